"""What each stage of a program in one thread has to itself, measured from outside."""

from __future__ import annotations

import functools
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_PACKAGES = ("airllm", "channel", "edge", "cloud", "experiments")


class Stages:
    """The process's seconds by stage; time in a stage inside another one counts there alone.

    A stage may be a detail, such as a backward pass: its time is booked under the stage that it is
    in, as "stage: detail". What is in no stage is booked under ``rest``.
    """

    def __init__(self, rest: str = "all else") -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._open, self._within = [rest], [rest]
        self._since = time.process_time()

    @contextmanager
    def stage(self, name: str, *, is_detail: bool = False) -> Iterator[None]:
        """Book what happens inside under ``name``."""
        label = f"{self._within[-1]}: {name}" if is_detail else name
        self.calls[label] += 1
        self.settle()
        self._open.append(label)
        self._within.append(self._within[-1] if is_detail else name)
        try:
            yield
        finally:
            self.settle()
            self._open.pop()
            self._within.pop()

    def settle(self) -> None:
        """Book the time until now."""
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @property
    def within(self) -> str:
        """The stage that is under way, details aside."""
        return self._within[-1]

    def watch(self, owner: Any, attribute: str, name: str, *, is_detail: bool = False) -> None:
        """Make every call of a method, or of a module's function, a stage.

        A function is replaced in all modules of the project that have imported it.
        """
        original: Callable[..., Any] = getattr(owner, attribute)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name, is_detail=is_detail):
                return original(*args, **kwargs)

        setattr(owner, attribute, watched)
        for path, module in list(sys.modules.items()):
            if path.partition(".")[0] in _PACKAGES and vars(module).get(attribute) is original:
                setattr(module, attribute, watched)


def watch_transport(stages: Stages) -> None:
    """What a round of either mode has beside the model: payloads, devices' states, the channel."""
    # Here, so that who only keeps stages need not load the project.
    import airllm.lora.payload
    import edge.client_app
    from channel.cell import Cell

    for name in ("encode", "decode"):
        stages.watch(airllm.lora.payload, name, "payload")
    for name in ("read_state", "write_state"):
        stages.watch(edge.client_app, name, "device state")
    for name in ("begin_round", "true_links", "reported_links", "transfer"):
        stages.watch(Cell, name, "channel")
