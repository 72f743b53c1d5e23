"""Repetitions of a block (ARQ), and bursts of loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def arq_expected_tries(error_rate: ArrayLike, max_tries: int) -> Array:
    """E[tries] = (1 - e^M) / (1 - e) with at most M tries; M where every try fails."""
    e = np.asarray(error_rate, dtype=float)
    safe = np.where(e < 1.0, e, 0.0)
    return np.where(e < 1.0, (1.0 - safe**max_tries) / (1.0 - safe), float(max_tries))


def arq_residual_loss(error_rate: ArrayLike, max_tries: int) -> Array:
    """Probability e^M that a block is lost for good."""
    return np.asarray(error_rate, dtype=float) ** max_tries


class GilbertElliott:
    """A two-state chain of good and bad slots (Gilbert 1960, Elliott 1963).

    ``p`` leads from good to bad, ``r`` from bad to good: a share p / (p + r) of the slots is bad,
    bursts last 1 / r slots on average, and the correlation over n slots is (1 - p - r)^n.
    """

    def __init__(self, p: float, r: float, *, rng: np.random.Generator) -> None:
        for name, value in (("p", p), ("r", r)):
            if not 0.0 < value <= 1.0:
                raise ValueError(f"{name} must be in (0, 1], got {value}")
        self.p, self.r, self._rng = p, r, rng
        self._is_bad = bool(rng.random() < self.bad_share)
        self._left = 0  # slots of the present sojourn that are still to come

    @property
    def bad_share(self) -> float:
        return self.p / (self.p + self.r)

    def slots(self, count: int) -> NDArray[np.bool_]:
        """[count] True for the next slots that are bad, the same in however many calls.

        Drawn by sojourns, not slot by slot.
        """
        out = np.empty(count, dtype=bool)
        filled = 0
        while filled < count:
            if not self._left:
                self._left = int(self._rng.geometric(self.r if self._is_bad else self.p))
            stay = min(self._left, count - filled)
            out[filled : filled + stay] = self._is_bad
            filled, self._left = filled + stay, self._left - stay
            if not self._left:
                self._is_bad = not self._is_bad
        return out
