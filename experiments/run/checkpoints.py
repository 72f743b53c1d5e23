"""What a run is between two rounds, kept in its folder so that a killed one goes on from there.

The state of every part is asked for here and nowhere else. rounds.csv is not repeated in it: a
checkpoint says how much of that file counts, and what it was.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airllm.checkpoint import load_state, save_state
from experiments.config.axes import flatten

logger = logging.getLogger(__name__)

_FORMAT = 6
_KEPT = 2  # the newest, and the one before it in case the newest is damaged


class OtherWorld(ValueError):
    """A checkpoint is of the same configuration, but not of what it stands for here and now."""


@dataclass
class Checkpoints:
    """The checkpoints in a run's folder, named by the number of rounds that are done."""

    folder: Path
    config: str
    """the run's, as TOML"""
    fingerprint: str = ""
    """of its text"""
    arithmetic: str = ""
    """the device and the precision that "auto" stands for here, such as 'cuda in bf16'"""
    every_s: float = 0.0
    """wall-clock time between two"""
    _last_s: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether the last one is old enough."""
        return time.monotonic() - self._last_s >= self.every_s

    def save(self, num_rounds: int, state: dict[str, Any]) -> None:
        """Write one, whole or not at all, and remove what is older than the one before it."""
        head = {
            "format": _FORMAT, "config": self.config, "fingerprint": self.fingerprint,
            "arithmetic": self.arithmetic,
        }  # fmt: skip
        save_state(head | state, self.folder / f"checkpoint-{num_rounds:06d}.safetensors")
        self._last_s = time.monotonic()
        for path in found(self.folder)[_KEPT:]:
            path.unlink()

    def load(self, is_usable: Any = lambda state: True) -> dict[str, Any] | None:
        """The newest that is whole and ``is_usable``; None where there is none.

        Raises ValueError where one is of another version or configuration, and `OtherWorld` where
        it is of another text, device or precision.
        """
        for path in found(self.folder):
            try:
                state = load_state(path)
            except ValueError as error:
                logger.warning("%s; taking the one before it", error)
                continue
            if state.get("format") != _FORMAT:
                raise ValueError(
                    f"{path} is of format {state.get('format')}, this version reads {_FORMAT}; "
                    f"resume with the version that wrote it, or start again without --resume"
                )
            if differing := difference(state["config"], self.config):
                raise ValueError(
                    f"{path} is of a run with {differing}; resume with its configuration, or "
                    f"start again without --resume"
                )
            if state["fingerprint"] != self.fingerprint:
                raise OtherWorld(
                    f"{path} is of a run on other text than the configured source holds now; "
                    f"bring the text back, or start again without --resume"
                )
            if state["arithmetic"] != self.arithmetic:
                raise OtherWorld(
                    f"{path} is of a run on {state['arithmetic']}, this one would go on on "
                    f"{self.arithmetic}; resume on such a device (model.device, model.precision), "
                    f"or start again without --resume"
                )
            if is_usable(state):
                return state
            logger.warning("%s does not fit the rounds.csv beside it; taking the one before", path)
        return None

    def clear(self) -> None:
        """Remove them: the run is finished, or starts from the beginning."""
        for path in found(self.folder):
            path.unlink()


def found(folder: Path) -> list[Path]:
    """Checkpoints in a folder, the newest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)


def can_resume(config: str, folder: Path) -> bool:
    """Whether a run of this configuration was stopped in a folder and left a checkpoint."""
    for path in found(folder):
        try:
            state = load_state(path)
        except ValueError:
            continue
        return state.get("format") == _FORMAT and not difference(state["config"], config)
    return False


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a folder to oneself; raises ValueError where another process has it.

    The lock is on the open folder itself, so it ends with the process, however that ends, and
    leaves nothing behind. File systems that know no locks have none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder} is in use by another run; wait for its end, or give another --out"
            ) from None
        except OSError as error:
            logger.info("%s cannot be locked: %s", folder, error.strerror)
        yield
    finally:
        os.close(descriptor)


def difference(theirs: str, ours: str) -> str:
    """The first value in which two configurations differ; how the host computes does not count,
    unless it moves more than the order of a thread's sums."""
    before, now = (dict(flatten(tomllib.loads(text))) for text in (theirs, ours))
    for key in sorted(before.keys() | now.keys()):
        counts = key == "runtime.stacked" or not key.startswith("runtime.")
        if before.get(key) != now.get(key) and counts:
            return f"{key} = {before.get(key)!r}, not {now.get(key)!r}"
    return ""
