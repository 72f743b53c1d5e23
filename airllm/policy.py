"""The one protocol that every rank policy meets, learned or closed-form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.observation import RoundObservation
from airllm.ranks import Ranks

Importance = Literal["first", "energy", "gain", "gain-at-start", "second-order", "fisher"]
"""Order in which an update's components are sent: as trained, by squared singular value, by
first-order gain at what the device holds or at the bare model, by what it adds to second order to
those before it (`airllm.probe`), by empirical Fisher information of a scale in front of it."""


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
    """Decides one rank for each projection of each device, and learns from what the air did.

    One that remembers anything from round to round also has ``state_dict`` and ``load_state_dict``
    (`airllm.checkpoint.Stateful`), or a run that is resumed will not repeat one that was not.
    """

    name: str
    importance: Importance
    """rank r keeps the first r components by it"""

    def decide(self, observation: RoundObservation) -> Ranks:
        """Ranks [devices, projections] in 0..r_max."""
        ...

    def learn(self, feedback: RoundFeedback) -> dict[str, float]:
        """Take in the outcome of the last decision; returns training scalars, empty if none."""
        ...
