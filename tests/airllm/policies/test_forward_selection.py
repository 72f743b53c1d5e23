"""Forward selection: the best set where that is known, the budget, and what it asks for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from airllm.lora.adapter import Adapter
from airllm.policies.forward_selection import ForwardSelection
from airllm.policies.observation import RoundObservation

R_MAX = 3


def world(seed, *, devices=2, projections=4, is_shared=True, fraction=0.3):
    """Updates of scalar components, and an observation in which a part of them fits."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.1, 1.0, (devices, projections, R_MAX))
    size = -np.sort(-size, axis=2)
    updates = [
        Adapter(
            tuple(torch.ones(R_MAX, 1) for _ in range(projections)),
            tuple(torch.tensor(size[d, p], dtype=torch.float32)[None] for p in range(projections)),
        )
        for d in range(devices)
    ]
    nothing = Adapter(
        tuple(torch.zeros(0, 1) for _ in range(projections)),
        tuple(torch.zeros(1, 0) for _ in range(projections)),
    )
    bits = np.full(projections, 100.0)
    share = devices if is_shared else 1
    rate = rng.uniform(1.0, 3.0, devices) * bits.sum() * R_MAX * fraction * share
    seen = RoundObservation(
        round_index=0, num_rounds=1, snr_db=np.zeros(devices), bandwidth_hz=np.ones(devices),
        planned_rate_bps=rate, deadline_s=1.0, is_shared_band=is_shared,
        entropy=np.zeros(devices), oov_rate=np.zeros(devices), loss=np.full(devices, 9.0),
        first_loss=np.full(devices, 9.0), fixed_charge=np.zeros(devices),
        previous_ranks=np.zeros((devices, projections), dtype=np.int64), bits_per_rank=bits,
        overhead_bits=0.0, r_max=R_MAX, energy=size**2, utility=size,
        updates=updates, starts=[nothing] * devices,
    )  # fmt: skip
    return seen, size


def additive(round_index, device, adapters):
    """A loss that every component lowers by its own size, whatever else is there."""
    return np.array([9.0 - sum(float(u.sum()) for u in a.up) for a in adapters])


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_where_components_do_not_meet_it_takes_the_densest_ones(seed, is_shared):
    seen, size = world(seed, is_shared=is_shared)
    ranks = ForwardSelection(additive).decide(seen)
    cost = seen.unit_cost_s
    spent = (ranks * cost).sum(axis=1)
    groups = [[0, 1]] if is_shared else [[0], [1]]
    for group in groups:
        budget = seen.budget_s[group].sum()
        assert spent[group].sum() <= budget * (1 + 1e-9)
        density = (size / cost[:, :, None])[group]
        kept = np.arange(R_MAX) < ranks[group][:, :, None]
        assert kept.any()
        assert not kept.all()
        # What was left out is either less dense than all that was kept, or did not fit any more.
        left = budget - spent[group].sum()
        fits = np.broadcast_to((cost[group] <= left)[:, :, None], kept.shape)
        following = np.arange(R_MAX) == ranks[group][:, :, None]
        assert not (following & fits).any()
        dearest = cost[group].max()
        assert density[kept].min() >= np.sort(density[~kept])[-1] - 1e-9 or left < dearest


def test_it_sees_what_components_do_together_which_no_formula_does():
    """Two projections are worth something only as a pair, a third one alone a little less."""
    seen, _ = world(0, devices=1, projections=3, fraction=0.2)
    seen = replace(
        seen, r_max=1, updates=[seen.updates[0].truncate([1, 1, 1])],
        planned_rate_bps=np.array([250.0]),
    )  # fmt: skip

    def loss(round_index, device, adapters):
        # One of the pair helps a little; then the other one more than what came first.
        table = {(0, 0): 0.0, (1, 0): 0.5, (0, 1): 0.3, (1, 1): 2.0}
        return np.array(
            [
                3.0 - table[int(a.ranks[0]), int(a.ranks[1])] - 0.4 * int(a.ranks[2])
                for a in adapters
            ]
        )

    assert ForwardSelection(loss).decide(seen).tolist() == [[1, 0, 1]]  # lazily: 0.4 before 0.3
    always = replace(seen, planned_rate_bps=np.array([350.0]))
    assert ForwardSelection(loss).decide(always).tolist() == [[1, 1, 1]]


def test_what_helps_nobody_is_not_sent():
    seen, _ = world(1)
    assert not ForwardSelection(lambda n, d, adapters: -additive(n, d, adapters)).decide(seen).any()


def test_an_absolute_update_must_be_worth_what_it_replaces():
    seen, _ = world(2)
    all_in_all = seen.utility.sum(axis=(1, 2))
    seen = replace(seen, fixed_charge=np.array([0.0, 2.0 * all_in_all[1]]))
    ranks = ForwardSelection(additive).decide(seen)
    assert ranks[0].any()
    assert not ranks[1].any()


def test_it_measures_again_only_what_comes_first():
    seen, _ = world(3, devices=1, projections=20, fraction=0.1)
    asked = []

    def counting(round_index, device, adapters):
        asked.append(len(adapters))
        return additive(round_index, device, adapters)

    ranks = ForwardSelection(counting).decide(seen)
    # Once each to begin with, then about one for each component that is taken.
    assert sum(asked) <= 1 + 20 + 3 * int(ranks.sum()) + 3


def test_without_the_updates_it_says_so():
    seen, _ = world(4)
    with pytest.raises(ValueError, match="policy forward needs the updates"):
        ForwardSelection(additive).decide(replace(seen, updates=()))
