import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from airllm.ranks import ProjectionSpec, fit_budget, quantise


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
