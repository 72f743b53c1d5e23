"""The one protocol that every rank policy meets, learned or closed-form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.lora.sensitivity import Importance
from airllm.policies.knapsack import Ranks
from airllm.policies.observation import RoundObservation


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


def decide(policy: RankPolicy, observation: RoundObservation) -> Ranks:
    """Ranks [devices, projections] of anybody's policy; raises ValueError unless they are whole
    numbers in 0..r_max of that shape."""
    ranks = np.asarray(policy.decide(observation))
    shape = (observation.num_devices, observation.num_projections)
    if ranks.shape != shape or not np.issubdtype(ranks.dtype, np.integer):
        raise ValueError(
            f"policy {policy.name} must decide whole numbers [devices, projections] of shape "
            f"{shape}, got {ranks.dtype} of shape {ranks.shape}"
        )
    if ranks.size and not (ranks.min() >= 0 and ranks.max() <= observation.r_max):
        raise ValueError(
            f"policy {policy.name} must decide ranks in 0..{observation.r_max} (training.r_max), "
            f"got {ranks.min()}..{ranks.max()}"
        )
    return ranks.astype(np.int64)
