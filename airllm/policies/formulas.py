"""Policies that follow a formula: the yardsticks of the learned ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from airllm.lora.sensitivity import Importance
from airllm.policies.base import RoundFeedback
from airllm.policies.knapsack import Ranks, fit_budget, fit_knapsack
from airllm.policies.observation import RoundObservation

_RANDOM_STREAM = 53


class _Formula:
    """A policy with nothing to learn."""

    importance: Importance = "energy"

    def __init__(self, name: str) -> None:
        self.name = name

    def learn(self, feedback: RoundFeedback) -> dict[str, float]:
        return {}


class Uniform(_Formula):
    """The largest rank that fits everywhere, each device within its own share of the air time.

    Where not even rank 1 fits everywhere: rank 1 on as many projections as fit, taken in an order
    that spreads them evenly over depth and kind.
    """

    def __init__(self, depths: Sequence[int], kinds: Sequence[str]) -> None:
        super().__init__("uniform")
        self._order = spread_order(depths, kinds)

    def decide(self, observation: RoundObservation) -> Ranks:
        cost, budget = observation.unit_cost_s, observation.budget_s  # [devices, projections], [d]
        ranks = np.zeros(cost.shape, dtype=np.int64)
        for d in range(len(cost)):
            if not np.isfinite(cost[d]).all():
                continue
            everywhere = int(min(budget[d] * (1 + 1e-12) // cost[d].sum(), observation.r_max))
            if everywhere:
                ranks[d] = everywhere
                continue
            spent = np.cumsum(cost[d][self._order])
            count = int(np.searchsorted(spent, budget[d] * (1 + 1e-12), side="right"))
            ranks[d, self._order[:count]] = 1
        return ranks


class Fixed(_Formula):
    """The same rank everywhere, whatever the channel; it misses its deadline where it must."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"fixed:{rank}")
        self.rank = rank

    def decide(self, observation: RoundObservation) -> Ranks:
        shape = (observation.num_devices, observation.num_projections)
        return np.full(shape, min(self.rank, observation.r_max), dtype=np.int64)


class RandomFeasible(_Formula):
    """Components in a random order until a device's share of the air time is full."""

    def __init__(self, seed: int) -> None:
        super().__init__("random")
        self._seed = seed

    def decide(self, observation: RoundObservation) -> Ranks:
        shape = (*observation.unit_cost_s.shape, observation.r_max)
        key = np.random.SeedSequence(
            self._seed, spawn_key=(_RANDOM_STREAM, observation.round_index)
        )
        # Sorted along the rank axis, so that any order keeps the first components of each.
        value = -np.sort(-np.random.default_rng(key).random(shape), axis=2)
        cost = observation.unit_cost_s
        # Utility per cost is what is ranked: multiplied by the cost, all components stand equal.
        finite = np.where(np.isfinite(cost), cost, 0.0)
        return fit_budget(value * finite[:, :, None], cost, observation.budget_s, is_joint=False)


class Greedy(_Formula):
    """The components worth most per second of air time, by one importance or another."""

    def __init__(self, importance: Importance) -> None:
        super().__init__(f"greedy:{importance}")
        self.importance = importance

    def decide(self, observation: RoundObservation) -> Ranks:
        return fit_budget(
            observation.utility, observation.unit_cost_s, observation.budget_s,
            is_joint=observation.is_shared_band,
        )  # fmt: skip


class Knapsack(Greedy):
    """The components worth most in all, where the greedy rule may leave a gap: exact but for the
    grid of air times (`fit_knapsack`)."""

    def __init__(self, importance: Importance) -> None:
        super().__init__(importance)
        self.name = f"knapsack:{importance}"

    def decide(self, observation: RoundObservation) -> Ranks:
        return fit_knapsack(
            observation.utility, observation.unit_cost_s, observation.budget_s,
            is_joint=observation.is_shared_band,
        )  # fmt: skip


class AdaLora(_Formula):
    """AdaLoRA's ranks (Zhang et al. 2023), resized for transmission.

    PEFT's allocator has decided how the ranks are spread over the projections; where these do not
    fit, each is scaled down alike, as ``uniform`` is, to the largest size that fits the device's
    share of the air time. ``adalora:blind`` sends them as they are, and misses its deadline.
    """

    def __init__(self, *, is_blind: bool) -> None:
        super().__init__("adalora:blind" if is_blind else "adalora")
        self.is_blind = is_blind

    def decide(self, observation: RoundObservation) -> Ranks:
        trained = observation.trained_ranks
        if trained is None:
            raise ValueError("policy adalora needs the ranks the cloud trained under")
        ranks = np.minimum(trained, observation.r_max)
        if self.is_blind:
            return np.tile(ranks, (observation.num_devices, 1))
        cost, budget = observation.unit_cost_s, observation.budget_s
        # Component i of a projection of trained rank R stands for the size (i + 1/2) / R: a
        # falling value that a water level turns into ranks in proportion to the trained ones.
        i = np.arange(observation.r_max)
        size = (i[None, :] + 0.5) / np.maximum(ranks, 1)[:, None]  # [projections, rank]
        value = np.where(i[None, :] < ranks[:, None], 2.0 - size, 0.0)
        finite = np.where(np.isfinite(cost), cost, 0.0)
        return fit_budget(value[None] * finite[:, :, None], cost, budget, is_joint=False)


def spread_order(depths: Sequence[int], kinds: Sequence[str]) -> NDArray[np.int64]:
    """An order of the projections whose every beginning is spread over depth and kind.

    Greedy: each next one is of the kind and the depth that were taken least so far, and among
    these the one farthest in depth from the last.
    """
    left = list(range(len(depths)))
    order: list[int] = []
    taken_kind: dict[str, int] = dict.fromkeys(kinds, 0)
    taken_depth: dict[int, int] = dict.fromkeys(depths, 0)
    while left:
        last = depths[order[-1]] if order else -1
        best = min(
            left,
            key=lambda p: (
                taken_kind[kinds[p]] + taken_depth[depths[p]],
                taken_kind[kinds[p]],
                -abs(depths[p] - last),
                p,
            ),
        )
        left.remove(best)
        order.append(best)
        taken_kind[kinds[best]] += 1
        taken_depth[depths[best]] += 1
    return np.array(order, dtype=np.int64)
