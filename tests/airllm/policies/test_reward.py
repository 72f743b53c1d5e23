"""The two rewards, by hand."""

import pytest

from airllm.policies.reward import RewardConfig, reward_of


def reward(kind, *, before=1.0, after=0.8, bits=50.0, rate_bps=100.0):
    return reward_of(
        RewardConfig(kind=kind), loss_before=before, loss_after=after, bits=bits,
        rate_bps=rate_bps, budget_s=1.0,
    )  # fmt: skip


def test_paired_is_the_decrease_less_the_airtimes_cost():
    assert reward("paired") == pytest.approx(0.2 - 0.1 * 0.5)


def test_a_payload_beyond_its_share_costs_the_share():
    assert reward("paired", after=1.0, bits=1e9) == pytest.approx(-0.1)
    assert reward("paired", after=1.0, rate_bps=0.0) == pytest.approx(-0.1)


def test_paper_is_the_published_formula_on_both_sides_of_the_limit():
    assert reward("paper") == pytest.approx(-0.8 - 0.1 * 0.5)
    assert reward("paper", bits=100.0) == pytest.approx(-0.8 - 0.1)
    assert reward("paper", bits=150.0) == pytest.approx(-(10.0 + 0.1 * 1.5))
