"""SimPy's clock, for simulations that are written down in the middle and set up again."""

from __future__ import annotations

import simpy


class Timeline(simpy.Environment):
    """Its waits end at given times, to the bit, and are numbered in the order they began in.

    Of events at one time SimPy takes the one that was scheduled first. Waits that are begun again
    in the order of their numbers, until the same times, end in the same order.
    """

    def __init__(self, initial_time: float = 0.0) -> None:
        super().__init__(float(initial_time))
        self.num_waits = 0

    def until(self, time_s: float) -> simpy.Timeout:
        """An event at ``time_s``; its value is the number of the wait.

        Raises ValueError for a time that is over.
        """
        time_s = float(time_s)  # NumPy's numbers would not ask how to be added
        if not time_s >= self.now:
            raise ValueError(f"time_s must be >= {self.now}, which is now, got {time_s}")
        self.num_waits += 1
        return self.timeout(_Delay(time_s, self.now), value=self.num_waits)


class _Delay(float):
    """Seconds from now until a time, which now + delay gives back unrounded."""

    time_s: float

    def __new__(cls, time_s: float, now_s: float) -> _Delay:
        delay = super().__new__(cls, time_s - now_s)
        delay.time_s = time_s
        return delay

    def __radd__(self, now_s: float) -> float:
        return self.time_s
