"""GAE against its closed form, the first ratio, bootstrapping, and a task it must learn."""

import numpy as np
import pytest
import torch

from airllm.ppo import Ppo, PpoConfig, RunningNorm, gae


def test_gae_of_a_constant_critic_is_a_geometric_sum():
    """With V = v and r constant, delta = r + (gamma - 1) v; A_t = delta (1 - q^(T-t)) / (1 - q)."""
    gamma, lam, steps, v, r = 0.9, 0.8, 12, 3.0, 0.7
    got = gae(np.full((steps, 2), r), np.full((steps, 2), v), np.full(2, v), gamma=gamma, lam=lam)
    q, delta = gamma * lam, r + (gamma - 1) * v
    left = steps - np.arange(steps)
    np.testing.assert_allclose(got[:, 0], delta * (1 - q**left) / (1 - q))


def test_lambda_one_gives_discounted_returns_less_the_value():
    rng = np.random.default_rng(0)
    rewards, values, last = rng.random((5, 1)), rng.random((5, 1)), rng.random(1)
    got = gae(rewards, values, last, gamma=0.9, lam=1.0)
    for t in range(5):
        future = sum(0.9**k * rewards[t + k, 0] for k in range(5 - t)) + 0.9 ** (5 - t) * last[0]
        assert got[t, 0] == pytest.approx(future - values[t, 0])


def test_running_norm_is_that_of_all_rows():
    rows = np.random.default_rng(0).normal(3.0, 2.0, (500, 4))
    norm = RunningNorm(4)
    for chunk in np.array_split(rows, 7):
        norm.update(chunk)
    np.testing.assert_allclose(norm.mean, rows.mean(axis=0))
    np.testing.assert_allclose(norm.var, rows.var(axis=0))
    assert np.abs(norm(np.full((1, 4), 1e9))).max() == 10.0


def test_log_probabilities_are_the_gaussians():
    ppo = Ppo(3, 2, PpoConfig(), seed=0)
    states = np.random.default_rng(0).random((6, 3))
    actions, log_probs, _ = ppo.act(states)
    with torch.no_grad():
        mean = ppo.model.actor(torch.as_tensor(ppo.norm(states), dtype=torch.float32))
        normal = torch.distributions.Normal(mean, ppo.model.log_std.exp())
        expected = normal.log_prob(torch.as_tensor(actions, dtype=torch.float32)).sum(dim=1)
    np.testing.assert_allclose(log_probs, expected.numpy(), atol=1e-4)


def learned_values(*, steps, updates):
    """Reward 1 for ever in one state, cut into segments by a time limit."""
    ppo = Ppo(1, 1, PpoConfig(gamma=0.8, learning_rate=3e-3, num_epochs=8, max_kl=1e9), seed=0)
    state = np.zeros((4, 1))
    for _ in range(updates):
        records = [ppo.act(state) for _ in range(steps)]
        values = np.stack([v for _, _, v in records])
        advantages = gae(np.ones((steps, 4)), values, ppo.value(state), gamma=0.8, lam=0.95)
        ppo.update(
            np.tile(state, (steps, 1)),
            np.concatenate([a for a, _, _ in records]),
            np.concatenate([p for _, p, _ in records]),
            advantages.ravel(),
            (advantages + values).ravel(),
        )
    return ppo.value(state)[0]


def test_a_bootstrapped_time_limit_gives_the_infinite_horizons_value():
    """1 / (1 - gamma) = 5; a limit after 5 steps taken for an end would give 3.4 at most."""
    assert learned_values(steps=5, updates=120) == pytest.approx(5.0, rel=0.05)


def test_ppo_learns_to_copy_what_it_sees_and_its_first_ratio_is_one():
    """Reward -|action - state|^2: 2/3 on average for an action of 0 and states in [-1, 1]^2."""
    rng = np.random.default_rng(0)
    config = PpoConfig(learning_rate=3e-3, num_epochs=6, log_std=-1.0, max_kl=0.2)
    ppo = Ppo(2, 2, config, seed=0)
    for update in range(60):
        states = rng.uniform(-1, 1, (256, 2))
        if update == 0:
            ppo.norm.update(states)
        actions, log_probs, values = ppo.act(states)
        reward = -((actions - states) ** 2).sum(axis=1)
        scalars = ppo.update(states, actions, log_probs, reward - values, reward)
        assert scalars["ppo_first_ratio_error"] < 1e-3
    states = rng.uniform(-1, 1, (500, 2))
    actions, _, _ = ppo.act(states, is_exploring=False)
    assert ((actions - states) ** 2).sum(axis=1).mean() < 0.05


def test_the_seed_decides():
    states = np.random.default_rng(0).random((4, 3))
    first, again, other = (Ppo(3, 2, PpoConfig(), seed=s).act(states)[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"activation": "relu"}, "policy.ppo.activation must be one of tanh, mish, got 'relu'"),
        ({"gamma": 1.5}, r"policy.ppo.gamma must be in \[0, 1\], got 1.5"),
        ({"hidden": 0}, "policy.ppo.hidden must be >= 1, got 0"),
        ({"clip": 0.0}, "policy.ppo.clip must be > 0, got 0.0"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        PpoConfig(**values)
