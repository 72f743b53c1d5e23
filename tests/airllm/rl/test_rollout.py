"""Generalised advantages by closed form; what an end, a time limit and a cut segment mean."""

import numpy as np
import pytest

from airllm.rl.rollout import ReturnScale, Rollout, gae


def test_gae_of_a_constant_critic_is_a_geometric_sum():
    """With V = v and r constant, delta = r + (gamma - 1) v; A_t = delta (1 - q^(T-t)) / (1 - q)."""
    gamma, lam, steps, v, r = 0.9, 0.8, 12, 3.0, 0.7
    values = np.full((steps, 2), v)
    got = gae(np.full((steps, 2), r), values, values, gamma=gamma, lam=lam)
    q, delta = gamma * lam, r + (gamma - 1) * v
    left = steps - np.arange(steps)
    np.testing.assert_allclose(got[:, 0], delta * (1 - q**left) / (1 - q))
    np.testing.assert_array_equal(got[:, 0], got[:, 1])


def filled(rewards, values, *, is_terminal=None, truncated_values=None):
    """A rollout of one agent whose state is its step number."""
    rollout = Rollout()
    for t, (reward, value) in enumerate(zip(rewards, values, strict=True)):
        rollout.add(
            states=np.array([[float(t)]]),
            actions=np.array([[-float(t)]]),
            log_probs=np.array([0.1 * t]),
            values=np.array([value]),
            rewards=np.array([reward]),
            is_terminal=None if is_terminal is None else np.array([is_terminal[t]]),
            truncated_values=None if truncated_values is None else np.array([truncated_values[t]]),
        )
    return rollout


def test_lambda_one_gives_discounted_returns():
    rng = np.random.default_rng(0)
    rewards, values, last = rng.random(5), rng.random(5), rng.random()
    segment = filled(rewards, values).finish(np.array([last]), gamma=0.9, lam=1.0)
    for t in range(5):
        future = sum(0.9**k * rewards[t + k] for k in range(5 - t)) + 0.9 ** (5 - t) * last
        assert segment.returns[t] == pytest.approx(future)
        assert segment.advantages[t] == pytest.approx(future - values[t])


def test_nothing_follows_an_end_and_a_value_follows_a_time_limit():
    """Ends after steps 1 (for real) and 3 (a time limit at a state worth 7): returns by hand."""
    nan = float("nan")
    segment = filled(
        [1.0, 2.0, 3.0, 4.0, 5.0],
        [0.0] * 5,
        is_terminal=[False, True, False, False, False],
        truncated_values=[nan, nan, nan, 7.0, nan],
    ).finish(np.array([10.0]), gamma=0.5, lam=1.0)
    fourth = 4.0 + 0.5 * 7.0
    np.testing.assert_allclose(
        segment.returns, [1.0 + 0.5 * 2.0, 2.0, 3.0 + 0.5 * fourth, fourth, 5.0 + 0.5 * 10.0]
    )


def test_rows_stay_together_and_a_finished_rollout_is_empty():
    rollout = filled([0.0] * 3, [0.0] * 3)
    segment = rollout.finish(np.zeros(1), gamma=0.9, lam=0.9)
    np.testing.assert_array_equal(segment.states[:, 0], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(segment.actions[:, 0], [0.0, -1.0, -2.0])
    np.testing.assert_allclose(segment.log_probs, [0.0, 0.1, 0.2])
    assert len(rollout) == 0


def test_an_interrupted_rollout_goes_on_from_its_state():
    whole, first, resumed = filled([1.0, 2.0], [0.3, 0.4]), filled([1.0], [0.3]), Rollout()
    resumed.load_state_dict(first.state_dict())
    resumed.add(
        states=np.array([[1.0]]), actions=np.array([[-1.0]]), log_probs=np.array([0.1]),
        values=np.array([0.4]), rewards=np.array([2.0]),
    )  # fmt: skip
    a, b = (r.finish(np.ones(1), gamma=0.9, lam=0.9) for r in (whole, resumed))
    np.testing.assert_array_equal(a.advantages, b.advantages)


def test_the_number_of_agents_must_not_change_within_a_segment():
    rollout = filled([0.0], [0.0])
    two = np.zeros((2, 1))
    with pytest.raises(ValueError, match=r"states must keep the shape \(1, 1\).* got \(2, 1\)"):
        rollout.add(
            states=two, actions=two, log_probs=two[:, 0], values=two[:, 0], rewards=two[:, 0]
        )


def test_first_rewards_are_not_blown_up_by_a_deviation_of_nothing():
    """Equal rewards have none; those of twenty steps have theirs."""
    scale = ReturnScale(0.9)
    over = np.zeros(4, dtype=bool)
    assert np.abs(scale(np.full(4, 0.05), over)).max() <= 10.0
    rng = np.random.default_rng(0)
    drawn = 0.05 + 0.01 * rng.standard_normal((200, 4))
    last = np.array([scale(rewards, over) for rewards in drawn])[-20:]
    assert 0.1 < last.mean() < 2.0
