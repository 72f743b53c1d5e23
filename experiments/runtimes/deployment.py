"""The deployment runtime: the apps are sent to a SuperLink, and followed until they have ended."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli_w

from experiments.config.loader import dump_config
from experiments.config.schema import ExperimentConfig
from experiments.results.folder import read_summary
from experiments.runtimes.app_folder import write_app
from experiments.runtimes.superlink import SuperLink


def run_deployment(
    config: ExperimentConfig,
    out: Path | str,
    *,
    superlink: str,
    overwrite: bool = False,
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run one simulation on the SuperNodes of a SuperLink; returns the summary.

    The same apps, the same numbers and the same files as `run.run_simulation`, as long as every
    node answers in time. The cloud's app runs where the SuperLink runs, ``out`` is a folder there,
    and so has to be the working directory. Raises ValueError where there is no SuperLink, where
    there are more or fewer SuperNodes than devices, and where the run fails.
    """
    link = SuperLink.find(superlink)
    online = link.nodes_online()
    if online != config.num_devices:
        raise ValueError(
            f"num_devices is {config.num_devices}, but {online} SuperNodes are connected to "
            f"{link.address}; make them equal (--set num_devices={online}, or `airllm federation "
            f"up --devices {config.num_devices}`)"
        )
    out = Path(out).resolve()
    with tempfile.TemporaryDirectory(prefix="airllm-") as temporary:
        app = write_app(Path(temporary) / "app")
        asked = {
            "config": dump_config(config),
            "out": str(out),
            "overwrite": overwrite,
            "folder": str(Path.cwd()),
        }
        run_config = Path(temporary) / "run.toml"
        run_config.write_text(tomli_w.dumps(asked), encoding="utf-8")
        began = time.time()
        run_id = link.start_run(app, run_config)
        status, details = _follow(link, run_id, out / "rounds.csv", config, began, on_round)
    if status != "finished:completed":
        raise ValueError(f"the run has {status.replace(':', ', ')} at the SuperLink: {details}")
    summary = out / "summary.json"
    # One that was there before is another run's.
    if not summary.is_file() or summary.stat().st_mtime < began:
        raise ValueError(
            f"the run is complete, but {out} is on the machine of the SuperLink {link.address}; "
            f"fetch it from there"
        )
    return read_summary(out)


def _follow(
    link: SuperLink,
    run_id: str,
    rounds: Path,
    config: ExperimentConfig,
    began: float,
    on_round: Callable[[int, int], None] | None,
) -> tuple[str, str]:
    """(status, details) at the end of a run; whoever interrupts it stops the run as well."""
    is_verbose = logging.getLogger().isEnabledFor(logging.INFO)
    status = details = ""
    with tempfile.TemporaryFile() as nowhere:
        log = link.follow(run_id, sys.stderr.fileno() if is_verbose else nowhere.fileno())
        try:
            while not status.startswith("finished"):
                while log.poll() is None:
                    _say_rounds(rounds, config, began, on_round)
                    time.sleep(0.5)
                # The log has ended, or it was cut off: only the status says which.
                status, details = link.status(run_id)
                if not status.startswith("finished"):
                    time.sleep(2.0)
            _say_rounds(rounds, config, began, on_round)
            return status, details
        except BaseException:
            with suppress(ValueError):
                link.stop(run_id)
            raise
        finally:
            log.kill()
            log.wait()


def _say_rounds(
    rounds: Path,
    config: ExperimentConfig,
    began: float,
    on_round: Callable[[int, int], None] | None,
) -> None:
    """Progress as rounds.csv shows it, where the SuperLink is on this machine."""
    if on_round is None:
        return
    with suppress(OSError):
        if rounds.stat().st_mtime >= began:
            rows = rounds.read_bytes().count(b"\n") - 1
            if rows >= config.num_devices:
                on_round(rows // config.num_devices, config.rounds)
