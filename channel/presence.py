"""Devices that go away and come back."""

from __future__ import annotations

import numpy as np

from channel.streams import rng_for

_STREAM = 14


class Presence:
    """Alternating exponential times there and away, one independent sequence for each device."""

    def __init__(self, away_per_s: float, away_mean_s: float, *, seed: int, device: int) -> None:
        self._mean_s = (1.0 / away_per_s, away_mean_s)
        self._rng = rng_for(seed, _STREAM, device)
        # Starts in its steady state: away with probability a / (1 + a), a = rate times duration.
        load = away_per_s * away_mean_s
        self._starts_away = bool(self._rng.random() < load / (1.0 + load))
        self._toggles = [0.0]

    def is_here(self, time_s: float) -> bool:
        while self._toggles[-1] <= time_s:
            is_away = (len(self._toggles) - 1) % 2 == (0 if self._starts_away else 1)
            mean_s = self._mean_s[1 if is_away else 0]
            self._toggles.append(self._toggles[-1] + self._rng.exponential(mean_s))
        index = int(np.searchsorted(self._toggles, time_s, side="right")) - 1
        return (index % 2 == 1) == self._starts_away
