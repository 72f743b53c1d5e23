"""What every policy promises: plans inside the budget, and what each name stands for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airllm.airllm_policy import budget_fraction, smooth_basis
from airllm.baselines import spread_order
from airllm.observation import RoundObservation
from airllm.policies import NAMES, PolicyConfig, make_policy, preset_values
from airllm.policy import RoundFeedback
from airllm.ppo import PpoConfig

DEPTHS = [d for d in range(4) for _ in range(3)]
KINDS = ["q", "k", "v"] * 4
NUM = len(DEPTHS)
# Those that plan for the channel; the others say so in their names or their papers.
PLANNING = ("airllm", "uniform", "random", "adalora", "greedy:energy", "greedy:gain")


def observation(*, rate_bps=(3e4, 1e5, 6e4), seed=0, is_shared=True, r_max=4, round_index=0):
    rng = np.random.default_rng(seed)
    devices = len(rate_bps)
    energy = -np.sort(-rng.random((devices, NUM, r_max)), axis=2)
    gain = -np.sort(-rng.normal(0.3, 1.0, (devices, NUM, r_max)), axis=2)
    return RoundObservation(
        round_index=round_index,
        num_rounds=8,
        snr_db=rng.normal(5.0, 3.0, devices),
        bandwidth_hz=np.full(devices, 1e6),
        planned_rate_bps=np.asarray(rate_bps, dtype=float),
        deadline_s=1.0,
        is_shared_band=is_shared,
        entropy=rng.random(devices),
        oov_rate=rng.random(devices),
        loss=rng.random(devices),
        previous_ranks=np.zeros((devices, NUM), dtype=np.int64),
        bits_per_rank=rng.integers(1000, 3000, NUM).astype(float),
        overhead_bits=100.0,
        r_max=r_max,
        energy=energy,
        gain=gain,
        trained_ranks=rng.integers(0, r_max + 1, NUM),
    )


def policy_of(name, *, seed=0, r_max=4, **values):
    config = PolicyConfig(name=name, **values)
    return make_policy(
        config, num_projections=NUM, depths=DEPTHS, kinds=KINDS, r_max=r_max, seed=seed
    )


def airtime_s(seen, ranks):
    """[devices] with nothing spent where nothing is sent, whatever the rate."""
    cost = np.where(ranks > 0, seen.unit_cost_s, 0.0) * ranks
    return cost.sum(axis=1)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(PLANNING),
    rates=st.lists(st.floats(0.0, 1e6), min_size=1, max_size=5),
    is_shared=st.booleans(),
    seed=st.integers(0, 20),
)
def test_no_plan_exceeds_its_budget(name, rates, is_shared, seed):
    seen = observation(rate_bps=rates, seed=seed, is_shared=is_shared)
    ranks = policy_of(name, seed=seed).decide(seen)
    assert ranks.shape == (len(rates), NUM)
    assert ranks.min() >= 0
    assert ranks.max() <= seen.r_max
    used, budget = airtime_s(seen, ranks), seen.budget_s
    if is_shared:
        assert used.sum() <= budget.sum() * (1 + 1e-9)
    else:
        assert (used <= budget * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_dead_link_and_a_loss_that_is_not_finite_break_nothing(name):
    seen = observation(rate_bps=(0.0, 1e5))
    broken = RoundObservation(
        **{
            **{f: getattr(seen, f) for f in seen.__dataclass_fields__},
            "loss": np.array([np.inf, np.nan]),
            "snr_db": np.array([-np.inf, 3.0]),
        }
    )
    policy = policy_of(name)
    ranks = policy.decide(broken)
    assert ranks.shape == (2, NUM)
    policy.learn(RoundFeedback(np.array([0.1, -0.2]), True, None))
    if name in PLANNING:
        assert not ranks[0].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_what_a_policy_does_over_several_turns(name):
    def decisions(seed):
        policy = policy_of(name, seed=seed)
        ranks = []
        for r in range(10):
            ranks.append(policy.decide(observation(seed=r, round_index=r)))
            following = observation(seed=r + 1, round_index=r + 1) if r < 9 else None
            reward = ranks[-1].sum(axis=1) * 0.01
            policy.learn(RoundFeedback(reward, following is None, following))
        return np.stack(ranks)

    np.testing.assert_array_equal(decisions(3), decisions(3))


def test_uniform_is_the_largest_rank_that_fits_everywhere():
    seen = observation(rate_bps=(1e6,), is_shared=False, r_max=40)
    (ranks,) = policy_of("uniform", r_max=40).decide(seen)
    assert (ranks == ranks[0]).all()
    one_more = (ranks[0] + 1) * seen.unit_cost_s.sum()
    assert airtime_s(seen, ranks[None])[0] <= seen.budget_s[0] < one_more


def test_uniform_below_one_rank_spreads_over_depth_and_kind():
    order = spread_order(DEPTHS, KINDS)
    assert sorted(order) == list(range(NUM))
    first = order[:4]
    assert len({DEPTHS[p] for p in first}) == 4
    assert len({KINDS[p] for p in first}) == 3
    (ranks,) = policy_of("uniform").decide(observation(rate_bps=(8e3,), is_shared=False))
    assert set(ranks) == {0, 1}


def test_uniform_sends_more_over_a_better_link():
    sums = [
        policy_of("uniform").decide(observation(rate_bps=(rate,), is_shared=False)).sum()
        for rate in (5e3, 1e4, 2e4, 4e4, 8e4, 1.6e5)
    ]
    assert all(a <= b for a, b in pairwise(sums))
    assert sums[0] < sums[-1]


def test_adalora_keeps_the_proportions_of_what_was_trained():
    seen = observation(rate_bps=(1e9,), is_shared=False)
    (whole,) = policy_of("adalora").decide(seen)
    np.testing.assert_array_equal(whole, seen.trained_ranks)
    tight = observation(rate_bps=(3e4,), is_shared=False)
    (cut,) = policy_of("adalora").decide(tight)
    assert (cut <= tight.trained_ranks).all()
    assert 0 < cut.sum() < whole.sum()
    share = cut / np.maximum(tight.trained_ranks, 1)
    kept = share[tight.trained_ranks > 0]
    assert kept.max() - kept.min() <= 1.0
    (blind,) = policy_of("adalora:blind").decide(tight)
    np.testing.assert_array_equal(blind, tight.trained_ranks)


def test_fixed_ignores_the_channel():
    assert (policy_of("fixed:2").decide(observation(rate_bps=(1.0,))) == 2).all()


def test_airllm_starts_at_the_greedy_rule_by_gain():
    for seed in range(5):
        seen = observation(seed=seed)
        ours = policy_of("airllm", seed=seed, is_exploring=False).decide(seen)
        greedy = policy_of("greedy:gain").decide(seen)
        # The actor's last layer is small, not zero: a component at the water level may differ.
        assert np.abs(ours - greedy).sum() <= 2


def test_airllms_proposal_moves_the_ranks_it_is_about():
    """Raising the priorities of one kind sends more of it and less of the others."""
    policy = policy_of("airllm", is_exploring=False)
    seen = observation(rate_bps=(5e4, 5e4))
    states = policy._states(seen)
    coarse = np.zeros((2, 16))
    coarse[1, 1] = 2.0
    refined = policy.refine(states, coarse)
    np.testing.assert_allclose(refined[0], 0.0, atol=1e-6)
    np.testing.assert_allclose(refined[1], 2.0 * smooth_basis(DEPTHS, KINDS)[0], atol=1e-5)


def test_the_basis_is_orthogonal():
    basis = smooth_basis(DEPTHS, KINDS)
    found = basis[np.linalg.norm(basis, axis=1) > 0]
    gram = found @ found.T
    np.testing.assert_allclose(gram, np.eye(len(found)) * gram[0, 0], atol=1e-9)


def test_the_budget_fraction_is_whole_at_rest_and_never_below_its_floor():
    np.testing.assert_allclose(budget_fraction(np.array([-1.0, -0.2, 0.0, 1.0])), [0.3, 1, 1, 1])


def misleading(round_index):
    """Gain says all kinds are alike, but only the kind 'q' lowers the loss."""
    seen = observation(rate_bps=[4e4] * 8, seed=round_index, round_index=round_index % 8)
    return RoundObservation(
        **{
            **{f: getattr(seen, f) for f in seen.__dataclass_fields__},
            "gain": np.abs(seen.gain) * 0 + np.linspace(1.0, 0.5, 4),
        }
    )


def test_airllm_learns_what_the_gain_does_not_say():
    policy = policy_of("airllm", ppo=PpoConfig(learning_rate=3e-3, update_every=8, gamma=0.0))
    useful = np.array([kind == "q" for kind in KINDS])
    rewards = []
    for r in range(480):
        ranks = policy.decide(misleading(r))
        reward = ranks[:, useful].sum(axis=1) / 16.0
        rewards.append(reward.mean())
        is_last = r % 8 == 7
        policy.learn(RoundFeedback(reward, is_last, None if is_last else misleading(r + 1)))
    assert np.mean(rewards[-60:]) > 1.3 * np.mean(rewards[:60])


def test_the_papers_preset_is_the_published_setting():
    values = preset_values("paper")
    assert values["ppo"]["hidden"] == 256
    assert values["ddim"]["sampling_steps"] == 50
    assert values["r_min"] == 1
    ranks = policy_of("paper").decide(observation())
    assert ranks.min() >= 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("airlm", "'airlm' is not known; did you mean 'airllm'"),
        ("fixed:x", "fixed:<rank> needs a rank >= 0, got 'fixed:x'"),
        ("greedy", "policies are airllm, paper"),
    ],
)
def test_an_unknown_name_is_named_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        PolicyConfig(name=name)


def test_a_fixed_rank_above_r_max_is_refused():
    with pytest.raises(ValueError, match="asks for more than training.r_max 4"):
        policy_of("fixed:5")
