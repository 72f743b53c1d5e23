"""Forward selection on a measured loss: what the best allocation for it is worth, nearly.

Dear: it asks for the loss hundreds of times a round. It knows the very texts on which the devices
are measured: a reference from above, and no policy that a cloud could follow.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter
from airllm.lora.sensitivity import Importance
from airllm.policies.base import RoundFeedback
from airllm.policies.knapsack import Ranks
from airllm.policies.observation import RoundObservation

Array = NDArray[np.float64]
Losses = Callable[[int, int, Sequence[Adapter]], Array]
"""round, device, adapters -> the device's mean losses [adapters]"""


class ForwardSelection:
    """Takes the component that lowers the loss most per second of air time, one after another.

    Lazily (Minoux 1978): what a component would bring is measured anew only when, by what it would
    have brought before, it comes first; for that the loss would have to be submodular in the set of
    components, which it is nearly. A projection's components come in their order. On a shared band
    all devices compete for one budget.
    """

    name = "forward"
    importance: Importance = "second-order"

    def __init__(self, losses: Losses) -> None:
        self._losses = losses

    def learn(self, feedback: RoundFeedback) -> dict[str, float]:
        return {}

    def decide(self, observation: RoundObservation) -> Ranks:
        """Ranks within the budget; raises ValueError where it is not shown the updates."""
        if len(observation.updates) != observation.num_devices:
            raise ValueError("policy forward needs the updates themselves in its observation")
        ranks = np.zeros((observation.num_devices, observation.num_projections), dtype=np.int64)
        devices = range(observation.num_devices)
        groups = [list(devices)] if observation.is_shared_band else [[d] for d in devices]
        for group in groups:
            self._select(observation, group, ranks)
        return ranks

    def _select(self, seen: RoundObservation, group: list[int], ranks: Ranks) -> None:
        """Fill in the rows ``group`` of ``ranks``, which share their budgets."""
        cost, left = seen.unit_cost_s, float(seen.budget_s[group].sum())
        losses = partial(self._losses, seen.round_index)
        loss = {d: float(losses(d, [seen.starts[d]])[0]) for d in group}
        before = dict(loss)
        queue: list[tuple[float, int, int, int]] = []  # -decrease per second, device, p, when

        def decrease(d: int, projections: Sequence[int]) -> Array:
            more = []
            for p in projections:
                trial = ranks[d].copy()
                trial[p] += 1
                more.append(seen.starts[d].plus(seen.updates[d].truncate(trial)))
            return loss[d] - losses(d, more)

        taken = dict.fromkeys(group, 0)  # by device: what was measured before is out of date
        for d in group:
            open_ = [
                p for p, have in enumerate(seen.updates[d].ranks) if have and cost[d, p] <= left
            ]
            for p, value in zip(open_, decrease(d, open_) if open_ else (), strict=True):
                queue.append((-value / cost[d, p], d, p, 0))
        heapq.heapify(queue)
        while queue:
            density, d, p, when = heapq.heappop(queue)
            if density >= 0.0:
                break
            if cost[d, p] > left * (1 + 1e-12):
                continue
            if when < taken[d]:
                (value,) = decrease(d, [p])
                heapq.heappush(queue, (-value / cost[d, p], d, p, taken[d]))
                continue
            ranks[d, p] += 1
            left -= cost[d, p]
            loss[d] += density * cost[d, p]
            taken[d] += 1
            if ranks[d, p] < min(seen.updates[d].ranks[p], seen.r_max):
                # The next component is expected to bring no more than this one has.
                heapq.heappush(queue, (density, d, p, taken[d] - 1))
        for d in group:
            # An absolute update replaces what the device holds: worse than that is not sent.
            if before[d] - loss[d] <= seen.fixed_charge[d]:
                ranks[d] = 0
