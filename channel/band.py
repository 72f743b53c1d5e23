"""A band on which several transfers run at once, in SimPy's time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Generator, Mapping
from typing import Any

import simpy

from channel.timeline import Timeline

# A payload short of its end by no more than this part is through: it is what rounding leaves of
# one that fills a deadline. Relative, so that it means the same for any size and virtual time.
ROUNDING = 1e-10


class Band:
    """Transfers at constant rates: each of k active ones gets a k-th of the time.

    Time is kept by a work clock that runs at 1/k (processor sharing): a transfer of S bits at rate
    R ends when the clock has advanced by S/R, whoever comes and goes meanwhile. So one heap of ends
    and one SimPy timer serve any number of transfers. With ``is_shared`` False each transfer has a
    band of its own and the clock runs at 1. A transfer whose rate is 0 keeps its turns and never
    ends.
    """

    def __init__(
        self,
        env: Timeline,
        *,
        is_shared: bool,
        on_end: Callable[[int], None] = lambda device: None,
    ) -> None:
        """``on_end`` is called with each device whose transfer is through, at that time."""
        self.env, self.is_shared, self._on_end = env, is_shared, on_end
        self.finished_s: dict[int, float] = {}
        """time at which each finished transfer ended"""
        self._active: dict[int, tuple[float, float, float]] = {}  # bits, rate, clock at the start
        self._heap: list[tuple[float, int]] = []
        self._clock = 0.0
        self._clock_at = env.now
        self._timer: tuple[int, float] | None = None  # number and end of the wait that counts

    def start(self, transfers: Mapping[int, tuple[float, float]]) -> None:
        """Begin transfers now: (bits, rate in bit/s with the band to itself) of each device."""
        self._advance()
        for device, (bits, rate_bps) in transfers.items():
            self._active[device] = (bits, rate_bps, self._clock)
            self._heap.append((_end(*self._active[device]), device))
        heapq.heapify(self._heap)
        self._set_timer()

    def cancel(self, device: int) -> float:
        """Give up one transfer; the bits that it had got by now."""
        self._advance()
        bits, rate_bps, start = self._active.pop(device)
        self._heap = [entry for entry in self._heap if entry[1] != device]
        heapq.heapify(self._heap)
        self._set_timer()
        return min((self._clock - start) * rate_bps, bits)

    def stop(self) -> dict[int, float]:
        """Cut what is not through; the bits that each of these had got by now.

        SimPy stops before the events of the time it runs until: who ends just now ends here.
        """
        self._advance()
        cut = {}
        for device, (bits, rate_bps, start) in self._active.items():
            carried = (self._clock - start) * rate_bps
            if carried >= bits * (1.0 - ROUNDING):
                self.finished_s[device] = self.env.now
            else:
                cut[device] = carried
        self._active.clear()
        self._heap.clear()
        self._timer = None
        return cut

    def state_dict(self) -> dict[str, Any]:
        """What is on its way, for `load_state_dict`."""
        return {
            "active": [[device, *transfer] for device, transfer in self._active.items()],
            "clock": [self._clock, self._clock_at],
            "timer": self._timer,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, once `restart` has run."""
        self._active = {int(d): (bits, rate, start) for d, bits, rate, start in state["active"]}
        self._heap = [(_end(*transfer), device) for device, transfer in self._active.items()]
        heapq.heapify(self._heap)
        self._clock, self._clock_at = state["clock"]
        self._timer = tuple(state["timer"]) if state["timer"] else None

    @property
    def wait(self) -> int:
        """Number of the wait for the next end, 0 where there is none."""
        return self._timer[0] if self._timer else 0

    def restart(self) -> Generator[simpy.Event, Any, None]:
        """A SimPy process that begins the wait for the next end again."""
        if self._timer:
            self._wait_until(self._timer[1])
        yield from ()

    @property
    def is_idle(self) -> bool:
        return not self._active

    def _slope(self) -> float:
        return 1.0 / len(self._active) if self.is_shared and self._active else 1.0

    def _advance(self) -> None:
        self._clock += (self.env.now - self._clock_at) * self._slope()
        self._clock_at = self.env.now

    def _set_timer(self) -> None:
        self._timer = None
        if self._heap and math.isfinite(self._heap[0][0]):
            wait = max(self._heap[0][0] - self._clock, 0.0) / self._slope()
            self._wait_until(self.env.now + wait)

    def _wait_until(self, time_s: float) -> None:
        timer = self.env.until(time_s)
        timer.callbacks.append(self._on_timer)
        self._timer = self.env.num_waits, time_s

    def _on_timer(self, event: simpy.Event) -> None:
        # SimPy keeps an abandoned wait in its queue: its number says that it does not count.
        if event.value != self.wait:
            return
        # The clock is put on the head's own end: adding up would leave it a rounding error
        # short, and no epsilon fits every virtual time.
        self._clock, self._clock_at = self._heap[0][0], self.env.now
        ended = []
        while self._heap and self._heap[0][0] <= self._clock:
            _, device = heapq.heappop(self._heap)
            del self._active[device]
            self.finished_s[device] = self.env.now
            ended.append(device)
        self._set_timer()
        for device in ended:
            self._on_end(device)


def _end(bits: float, rate_bps: float, start: float) -> float:
    """Of a transfer, on the work clock."""
    return start + (bits / rate_bps if rate_bps > 0 else math.inf)
