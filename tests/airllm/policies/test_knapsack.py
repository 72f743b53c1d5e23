from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airllm.models.projections import ProjectionSpec
from airllm.policies.knapsack import fit_budget, fit_knapsack, quantise


def test_params_per_rank_counts_a_row_and_a_column() -> None:
    spec = ProjectionSpec("layer.0.query", in_features=384, out_features=128, depth=0, kind="query")
    assert spec.params_per_rank == 512


def test_quantise_floors_onto_the_rank_range() -> None:
    proposal = np.array([[-2.0, -1.0, 0.0, 0.99, 1.0, 5.0]])
    assert quantise(proposal, r_min=1, r_max=8).tolist() == [[1, 1, 4, 7, 8, 8]]


@settings(deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(1, 5), st.booleans(), st.integers(0, 2**31)
)
def test_plan_stays_in_budget_is_maximal_and_grows(
    devices: int, projections: int, rank: int, is_joint: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    value = np.sort(rng.exponential(size=(devices, projections, rank)), axis=2)[:, :, ::-1]
    cost = np.broadcast_to(rng.uniform(0.5, 2.0, size=(devices, 1)), (devices, projections))
    budget = rng.uniform(0.0, 2.0 * projections, size=devices)
    ranks = fit_budget(value, cost, budget, is_joint=is_joint)
    larger = fit_budget(value, cost, budget * 1.5, is_joint=is_joint)
    spent = (ranks * cost).sum(axis=1)
    assert ranks.min() >= 0
    assert ranks.max() <= rank
    assert (larger >= ranks).all()
    if is_joint:
        assert spent.sum() <= budget.sum() + 1e-9
        if ranks.sum() < ranks.size * rank:
            assert budget.sum() - spent.sum() < cost.max() + 1e-9
    else:
        assert (spent <= budget + 1e-9).all()


def test_worthless_components_are_never_kept() -> None:
    value = np.array([[[1.0, -1.0, 2.0], [0.0, 0.0, 0.0]]])
    ranks = fit_budget(value, np.ones((1, 2)), np.array([100.0]), is_joint=False)
    assert ranks.tolist() == [[1, 0]]


def test_what_costs_infinitely_is_not_had_and_what_is_worth_infinitely_comes_first() -> None:
    value = np.array([[[1.0], [np.inf], [np.nan], [2.0], [-np.inf]]])
    cost = np.array([[np.inf, 1e-6, 1.0, 1.0, 1.0]])
    ranks = fit_budget(value, cost, np.array([1e-6]), is_joint=False)
    assert ranks.tolist() == [[0, 1, 0, 0, 0]]
    ranks = fit_budget(value, cost, np.array([100.0]), is_joint=True)
    assert ranks.tolist() == [[0, 1, 0, 1, 0]]
    assert not fit_budget(value, np.full((1, 5), np.inf), np.zeros(1), is_joint=True).any()


@settings(max_examples=60, deadline=None)
@given(
    devices=st.integers(1, 2), projections=st.integers(1, 3), rank=st.integers(1, 3),
    is_joint=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_no_plan_inside_the_budget_is_worth_more_than_the_knapsacks(
    devices, projections, rank, is_joint, seed
):
    rng = np.random.default_rng(seed)
    value = -np.sort(-rng.normal(0.5, 1.0, (devices, projections, rank)), axis=2)
    # Costs on the grid of the dynamic programme, so that it is exact.
    cost = rng.integers(1, 60, (devices, projections)) / 2000
    budget = np.full(devices, 0.1 / (devices if is_joint else 1))
    cost = cost * budget.sum() if is_joint else cost * 0.1
    ranks = fit_knapsack(value, cost * 20, budget, is_joint=is_joint)

    def utility(ranks):
        return (value * (np.arange(rank) < ranks[:, :, None])).sum(axis=(1, 2))

    spent = (ranks * cost * 20).sum(axis=1)
    groups = [list(range(devices))] if is_joint else [[d] for d in range(devices)]
    for group in groups:
        assert spent[group].sum() <= budget[group].sum() * (1 + 1e-9)
        best = 0.0
        for flat in product(range(rank + 1), repeat=len(group) * projections):
            other = np.zeros_like(ranks)
            other[group] = np.reshape(flat, (len(group), projections))
            if (other * cost * 20)[group].sum() <= budget[group].sum() * (1 + 1e-9):
                best = max(best, utility(other)[group].sum())
        assert utility(ranks)[group].sum() == pytest.approx(best, abs=1e-9)
    greedy = fit_budget(value, cost * 20, budget, is_joint=is_joint)
    assert utility(ranks).sum() >= utility(greedy).sum() - 1e-9


def test_a_knapsack_on_a_dead_link_is_empty():
    value = np.ones((2, 3, 2))
    cost = np.stack([np.full(3, np.inf), np.full(3, 0.1)])
    assert fit_knapsack(value, cost, np.full(2, 0.2), is_joint=True).tolist() == [
        [0, 0, 0], [2, 2, 0],
    ]  # fmt: skip
    assert not fit_knapsack(value, cost, np.zeros(2), is_joint=True).any()


def net_utility(value, ranks, fixed_charge):
    """[devices] utility of what is sent, less the fixed charges of those that are sent anything."""
    rank = value.shape[2]
    utility = (value * (np.arange(rank) < ranks[:, :, None])).sum(axis=(1, 2))
    return np.where(ranks.any(axis=1), utility - fixed_charge, 0.0)


def test_whom_to_serve_is_nearly_always_the_best_choice_there_is():
    """Against all subsets of up to four devices, each served by the water level."""
    rng, ratios = np.random.default_rng(0), []
    for _ in range(300):
        devices, projections, rank = rng.integers(1, (5, 4, 4))
        value = -np.sort(-rng.exponential(size=(devices, projections, rank)), axis=2)
        cost = np.broadcast_to(rng.uniform(0.2, 2.0, (devices, 1)), (devices, projections))
        budget = rng.uniform(0.0, projections * rank / 2, devices)
        fixed_charge = rng.uniform(0.0, projections * rank / 2, devices)
        ranks = fit_budget(value, cost, budget, is_joint=True, fixed_charge=fixed_charge)
        net = net_utility(value, ranks, fixed_charge)
        assert (net[ranks.any(axis=1)] > 0.0).all()
        assert (ranks * cost).sum() <= budget.sum() + 1e-9
        best = 0.0
        for served in product((0, 1), repeat=int(devices)):
            own = value * np.array(served)[:, None, None]
            other = fit_budget(own, cost, budget, is_joint=True)
            best = max(best, net_utility(value, other, fixed_charge).sum())
        if best > 0.0:
            ratios.append(net.sum() / best)
    assert len(ratios) > 150
    assert np.mean(np.array(ratios) > 1.0 - 1e-9) > 0.9
    assert np.mean(ratios) > 0.97


def test_a_stake_above_all_that_could_be_sent_leaves_the_air_to_the_others():
    value = np.array([[[3.0, 2.0]], [[4.0, 3.0]]])
    ranks = fit_budget(
        value, np.ones((2, 1)), np.ones(2), is_joint=True, fixed_charge=np.array([0.0, 7.5])
    )
    assert ranks.tolist() == [[2], [0]]
    # What is worth as much as its fixed charge is not worth being sent.
    ranks = fit_budget(
        value, np.ones((2, 1)), np.full(2, 2.0), is_joint=True, fixed_charge=np.array([5.0, 6.9])
    )
    assert ranks.tolist() == [[0], [2]]
