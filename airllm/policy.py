"""The one protocol that every rank policy meets, learned or closed-form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.observation import RoundObservation
from airllm.ranks import Ranks

Importance = Literal["energy", "gain", "first"]


@dataclass(frozen=True, slots=True)
class RoundFeedback:
    """What came of the ranks of the last decision, one row per device."""

    reward: NDArray[np.float64]
    """[devices]"""
    is_last: bool
    """True at the time limit: a truncation, to be bootstrapped, never a terminal state"""
    next_observation: RoundObservation | None = None
    """what the server knows next; None after the last round"""


class RankPolicy(Protocol):
    """Decides one rank for each projection of each device, and learns from what the air did."""

    name: str
    importance: Importance
    """order in which an update's components are sent: rank r keeps the first r of it"""

    def decide(self, observation: RoundObservation) -> Ranks:
        """Ranks [devices, projections] in 0..r_max."""
        ...

    def learn(self, feedback: RoundFeedback) -> dict[str, float]:
        """Take in the outcome of the last decision; returns training scalars, empty if none."""
        ...
