"""What every policy promises: plans inside the budget, and what each name stands for."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airllm.policies.airllm import budget_fraction, scaled_utility, smooth_basis
from airllm.policies.base import RoundFeedback
from airllm.policies.formulas import spread_order
from airllm.policies.knapsack import fit_budget
from airllm.policies.observation import RoundObservation
from airllm.policies.registry import NAMES as ALL_NAMES
from airllm.policies.registry import PolicyConfig, check_name, make_policy, preset_values
from airllm.rl.ddim import DdimConfig
from airllm.rl.ppo import PpoConfig

DEPTHS = [d for d in range(4) for _ in range(3)]
KINDS = ["q", "k", "v"] * 4
NUM = len(DEPTHS)
# What looks into the updates themselves has tests of its own (test_forward_selection.py).
NAMES = [name for name in ALL_NAMES if not name.startswith("forward")]
# Those that plan for the channel; the others say so in their names or their papers.
PLANNING = ("airllm", "uniform", "random", "adalora", "greedy:gain", "knapsack:gain")


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
        first_loss=rng.random(devices),
        fixed_charge=np.zeros(devices),
        previous_ranks=np.zeros((devices, NUM), dtype=np.int64),
        bits_per_rank=rng.integers(1000, 3000, NUM).astype(float),
        overhead_bits=100.0,
        r_max=r_max,
        energy=energy,
        utility=gain,
        trained_ranks=rng.integers(0, r_max + 1, NUM),
    )


def policy_of(name, *, seed=0, r_max=4, **values):
    config = PolicyConfig(name=name, **{"is_exploring": True} | values)
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
            "utility": np.where(seen.energy > 0.9, np.nan, seen.utility),
        }
    )
    policy = policy_of(name)
    for reward in ([0.1, -0.2], [np.nan, np.inf], [-np.inf, 1e300]):
        ranks = policy.decide(broken)
        assert ranks.shape == (2, NUM)
        scalars = policy.learn(RoundFeedback(np.array(reward), True, None))
        assert all(np.isfinite(value) for value in scalars.values())
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


@pytest.mark.parametrize("name", ["airllm", "paper"])
def test_a_saved_policy_goes_on_as_if_nothing_had_happened(name, tmp_path):
    """Saved in the middle of a segment and of a round, read back without running any code."""

    def rounds(policy, start, stop):
        made = []
        for r in range(start, stop):
            if r > 0:
                reward = np.sin(np.arange(3.0) + r)
                policy.learn(RoundFeedback(reward, r % 10 == 9, observation(seed=r)))
            made.append(policy.decide(observation(seed=r, round_index=r)))
        return np.stack(made)

    whole, policy, resumed = (policy_of(name, seed=s) for s in (3, 3, 4))
    expected = rounds(whole, 0, 24)
    rounds(policy, 0, 14)
    torch.save(policy.state_dict(), tmp_path / "policy.pt")
    resumed.load_state_dict(torch.load(tmp_path / "policy.pt", weights_only=True))
    np.testing.assert_array_equal(rounds(resumed, 14, 24), expected[14:])
    np.testing.assert_array_equal(rounds(policy, 14, 24), expected[14:])


@pytest.mark.parametrize("name", ["airllm", "paper"])
def test_what_is_learned_from_is_what_was_acted_on(name):
    """At the first minibatch of each update the ratio of new to old probabilities is 1."""
    policy, errors = policy_of(name), []
    for r in range(32):
        policy.decide(observation(seed=r, round_index=r))
        following = observation(seed=r + 1, round_index=r + 1)
        scalars = policy.learn(RoundFeedback(np.ones(3), False, following))
        errors += [scalars["ppo_first_ratio_error"]] if scalars else []
    assert len(errors) >= 2
    assert max(errors) < 1e-4


def test_a_policy_that_does_not_explore_stays_as_it_is():
    policy = policy_of("airllm", is_exploring=False)
    first = policy.decide(observation())
    for r in range(8):
        assert policy.learn(RoundFeedback(np.ones(3), r == 7, observation(seed=r))) == {}
        policy.decide(observation(seed=r))
    np.testing.assert_array_equal(policy.decide(observation()), first)


def test_uniform_is_the_largest_rank_that_fits_everywhere():
    seen = observation(rate_bps=(8e5,), is_shared=False, r_max=40)
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
    states = policy._states([seen])
    coarse = np.zeros((2, 16))
    coarse[1, 2] = 2.0
    refined = policy.refine(states, coarse)
    np.testing.assert_allclose(refined[0], 0.0, atol=1e-6)
    np.testing.assert_allclose(refined[1], 2.0 * smooth_basis(DEPTHS, KINDS)[0], atol=1e-5)


def test_no_device_outbids_the_others_by_raising_all_of_its_priorities():
    gain = observation().utility
    priority = np.random.default_rng(0).normal(size=gain.shape[:2])
    raised = scaled_utility(priority + np.array([[5.0], [0.0], [-5.0]]), gain)
    np.testing.assert_allclose(raised, scaled_utility(priority, gain))
    np.testing.assert_allclose(raised.clip(0.0).sum(axis=(1, 2)), gain.clip(0.0).sum(axis=(1, 2)))
    np.testing.assert_array_equal(scaled_utility(np.zeros_like(priority), gain), gain)
    assert np.isnan(scaled_utility(priority, np.full_like(gain, np.nan))).all()
    assert not scaled_utility(priority, np.zeros_like(gain)).any()


def test_guidance_means_more_of_what_was_better_than_expected():
    """Whoever sends more of one projection does better: the refiner learns to raise it."""
    config = DdimConfig(updates_per_turn=300, learning_rate=1e-3)
    policy = policy_of("airllm", ddim=config, refine_std=0.3, ppo=PpoConfig(num_steps=1))
    rng = np.random.default_rng(0)
    states, coarse = np.zeros((400, policy.features.size)), np.zeros((400, 16))
    refined = 0.3 * rng.normal(size=(400, NUM))
    policy._turns.replay.extend(
        zip(states, coarse, refined, refined[:, 4], refined[:, 4], strict=True)
    )
    policy._ddim_turn()

    def refined_at(guidance):
        policy.config = replace(config, guidance=guidance)
        return policy.refine(states, coarse).mean(axis=0)

    without, conditional, beyond = (refined_at(guidance) for guidance in (0.0, 1.0, 2.0))
    # Unlabelled rows have mean 0; labelled ones E[x | x > 0] = 0.3 sqrt(2 / pi) = 0.24.
    assert np.abs(without).mean() < 0.08
    assert conditional[4] == pytest.approx(0.24, abs=0.1)
    assert beyond[4] > conditional[4] + 0.05
    assert np.abs(np.delete(beyond, 4)).mean() < 0.1


def test_the_basis_is_orthogonal():
    basis = smooth_basis(DEPTHS, KINDS)
    found = basis[np.linalg.norm(basis, axis=1) > 0]
    gram = found @ found.T
    np.testing.assert_allclose(gram, np.eye(len(found)) * gram[0, 0], atol=1e-9)


def test_the_budget_fraction_is_whole_at_rest_and_never_below_its_floor():
    np.testing.assert_allclose(budget_fraction(np.array([-1.0, -0.2, 0.0, 1.0])), [0.3, 1, 1, 1])


USEFUL = np.array([1.0 if kind == "q" else 0.1 for kind in KINDS])[None, :, None]


def misleading(seed, round_index):
    """Gains that say nothing of the kind, of which only 'q' lowers the loss as much as it says."""
    rng = np.random.default_rng([seed, round_index])
    seen = observation(
        rate_bps=rng.uniform(2e4, 6e4, 8), seed=round_index, round_index=round_index % 8
    )
    gain = -np.sort(-rng.exponential(size=seen.utility.shape), axis=2)
    return replace(seen, utility=gain, bits_per_rank=np.full(NUM, 2000.0))


def reward_of_ranks(seen, ranks):
    """[devices] the true decrease of the loss, in hundredths of a nat as on a real task."""
    is_kept = np.arange(seen.r_max) < ranks[:, :, None]
    return 0.02 * (is_kept * seen.utility * USEFUL).sum(axis=(1, 2))


@pytest.mark.parametrize(
    ("rounds", "share"), [(160, 0.05), pytest.param(1600, 0.35, marks=pytest.mark.slow)]
)
def test_airllm_learns_what_the_gain_does_not_say(rounds, share):
    """Without exploration, on rounds never seen: the share of what greedy by gain leaves lying."""
    policy = policy_of("airllm", ppo=PpoConfig(log_std=-1.0))
    for r in range(rounds):
        seen, is_last = misleading(0, r), r % 8 == 7
        reward = reward_of_ranks(seen, policy.decide(seen))
        policy.learn(RoundFeedback(reward, is_last, None if is_last else misleading(0, r + 1)))
    policy.is_exploring = False

    def mean_reward(decide):
        fresh = [misleading(1, r) for r in range(40)]
        return np.mean([reward_of_ranks(seen, decide(seen)) for seen in fresh])

    def oracle(seen):
        return fit_budget(seen.utility * USEFUL, seen.unit_cost_s, seen.budget_s, is_joint=True)

    greedy = mean_reward(policy_of("greedy:gain").decide)
    best, learned = mean_reward(oracle), mean_reward(policy.decide)
    assert greedy < best
    assert learned - greedy > share * (best - greedy)


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
        check_name(name)


def test_a_fixed_rank_above_r_max_is_refused():
    with pytest.raises(ValueError, match="asks for more than training.r_max 4"):
        policy_of("fixed:5")
