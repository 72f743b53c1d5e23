"""The published policy's known weaknesses, each shown: this is what the preset is kept for."""

from dataclasses import replace

import numpy as np
import pytest

from airllm.policies.base import RoundFeedback
from airllm.policies.observation import RoundObservation
from airllm.policies.paper import PaperPolicy
from airllm.rl.ddim import DdimConfig
from airllm.rl.ppo import PpoConfig

NUM, R_MAX = 12, 8


def observation(*, rate_bps=1e5, previous=0):
    shape = (3, NUM, R_MAX)
    return RoundObservation(
        round_index=0,
        num_rounds=8,
        snr_db=np.array([-5.0, 5.0, 15.0]),
        bandwidth_hz=np.full(3, 1e8),
        planned_rate_bps=np.full(3, rate_bps),
        deadline_s=1.0,
        is_shared_band=False,
        entropy=np.full(3, 0.5),
        oov_rate=np.full(3, 0.1),
        loss=np.ones(3),
        first_loss=np.ones(3),
        fixed_charge=np.zeros(3),
        previous_ranks=np.full(shape[:2], previous),
        bits_per_rank=np.full(NUM, 2000.0),
        overhead_bits=100.0,
        r_max=R_MAX,
        energy=np.ones(shape),
        utility=np.ones(shape),
    )


@pytest.fixture
def policy():
    return PaperPolicy(
        num_projections=NUM,
        r_min=1,
        r_max=R_MAX,
        ppo=PpoConfig(hidden=32, activation="mish", num_steps=4),
        ddim=DdimConfig(hidden=64, prediction="epsilon", sampling_steps=20, updates_per_turn=4),
        is_exploring=True,
        seed=0,
    )


def refined(policy, coarse, *, guidance=1.5):
    """What comes of a coarse vector from the same noise each time."""
    policy._generator.manual_seed(1)
    policy.config = replace(policy.config, guidance=guidance)
    return policy._refine(coarse)


def test_ranks_are_loose_from_the_coarse_vector_at_first(policy):
    """The denoiser has seen nothing: opposite proposals from one noise give the same ranks."""
    coarse = np.ones((3, 16))
    np.testing.assert_array_equal(refined(policy, coarse), refined(policy, -coarse))


def test_the_zero_vector_is_a_condition_and_none_at_once(policy):
    """So guidance cannot say anything about the very proposal that PPO starts at."""
    for _ in range(8):
        policy.decide(observation())
        policy.learn(RoundFeedback(np.array([1.0, 2.0, 3.0]), False, observation()))
    zero, other = np.zeros((3, 16)), np.full((3, 16), 0.9)
    unguided = refined(policy, zero, guidance=0.0)
    np.testing.assert_allclose(refined(policy, zero, guidance=4.0), unguided, atol=1e-5)
    assert np.abs(refined(policy, other, guidance=4.0) - unguided).max() > 1e-3


def test_nothing_keeps_a_proposal_inside_its_budget(policy):
    tight = observation(rate_bps=5e3)
    ranks = policy.decide(tight)
    assert ranks.min() >= 1
    assert ((ranks * tight.unit_cost_s).sum(axis=1) > tight.budget_s).all()


def test_its_rounds_are_learned_from_in_turns(policy):
    for turn in range(2):
        for r in range(4):
            policy.decide(observation(previous=r))
            scalars = policy.learn(RoundFeedback(np.full(3, -0.5), False, observation()))
            assert bool(scalars) == (r == 3)
        assert scalars["ddim_loss"] > 0
        assert len(policy._turns.replay) == 12 * (turn + 1)


def test_a_rank_below_r_min_or_above_r_max_is_refused():
    with pytest.raises(ValueError, match=r"policy.r_min must be in 0..8 \(training.r_max\), got 9"):
        PaperPolicy(
            num_projections=NUM, r_min=9, r_max=R_MAX, ppo=PpoConfig(), ddim=DdimConfig(),
            is_exploring=True, seed=0,
        )  # fmt: skip
