"""The first ratio, bootstrapped time limits, tasks that must be learned, same seed same actions."""

import numpy as np
import pytest
import torch

from airllm.rl.actor_critic import RunningNorm
from airllm.rl.ppo import Ppo, PpoConfig
from airllm.rl.rollout import Rollout, Segment


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
        mean = ppo.model.actor(torch.as_tensor(states, dtype=torch.float32))
        normal = torch.distributions.Normal(mean, ppo.model.log_std.exp())
        expected = normal.log_prob(torch.as_tensor(actions, dtype=torch.float32)).sum(dim=1)
    np.testing.assert_allclose(log_probs, expected.numpy(), atol=1e-4)


def learned_values(*, steps, updates):
    """Reward 1 for ever in one state, cut into segments by a time limit."""
    ppo = Ppo(
        1, 1, PpoConfig(gamma=0.8, learning_rate=3e-3, update_epochs=8, target_kl=1e9), seed=0
    )
    state = np.zeros((4, 1))
    for _ in range(updates):
        rollout = Rollout()
        for _ in range(steps):
            actions, log_probs, values = ppo.act(state)
            rollout.add(
                states=state, actions=actions, log_probs=log_probs, values=values,
                rewards=np.ones(4),
            )  # fmt: skip
        ppo.update(rollout.finish(ppo.value(state), gamma=0.8, lam=0.95))
    return ppo.value(state)[0]


def test_a_bootstrapped_time_limit_gives_the_infinite_horizons_value():
    """1 / (1 - gamma) = 5; a limit after 5 steps taken for an end would give 3.4 at most."""
    assert learned_values(steps=5, updates=120) == pytest.approx(5.0, rel=0.05)


def test_ppo_learns_to_copy_what_it_sees_and_its_first_ratio_is_one():
    """Reward -|action - state|^2: 2/3 on average for an action of 0 and states in [-1, 1]^2."""
    rng = np.random.default_rng(0)
    config = PpoConfig(learning_rate=3e-3, update_epochs=6, log_std=-1.0, target_kl=0.2)
    ppo = Ppo(2, 2, config, seed=0)
    for _ in range(60):
        wanted = rng.uniform(-1, 1, (256, 2))
        states = ppo.normalise(wanted)
        actions, log_probs, values = ppo.act(states)
        reward = -((actions - wanted) ** 2).sum(axis=1)
        scalars = ppo.update(Segment(states, actions, log_probs, reward - values, reward))
        # Up to the rounding of fp32: what was acted on is what is learned from.
        assert scalars["ppo_first_ratio_error"] < 1e-4
    assert scalars["ppo_explained_variance"] < 1.0
    wanted = rng.uniform(-1, 1, (500, 2))
    actions, _, _ = ppo.act(ppo.normalise(wanted, is_learning=False), is_exploring=False)
    assert ((actions - wanted) ** 2).sum(axis=1).mean() < 0.05


def segment_of(ppo, *, rows=64, seed=0):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(rows, 3))
    actions, log_probs, values = ppo.act(states)
    advantages = rng.normal(size=rows)
    return Segment(states, actions, log_probs, advantages, advantages + values)


def test_an_update_stops_once_the_policy_has_moved_too_far():
    """A limit that the second minibatch exceeds leaves one step, whatever the epochs."""
    config = PpoConfig(minibatch_size=16, update_epochs=5, learning_rate=1e-2, target_kl=1e-9)
    ppo = Ppo(3, 2, config, seed=0)
    before = ppo.optimiser.state_dict()["state"]
    scalars = ppo.update(segment_of(ppo))
    assert not before
    assert int(ppo.optimiser.state_dict()["state"][0]["step"]) == 1
    assert scalars["ppo_kl"] <= 1e-9


def test_the_divergence_reported_is_that_between_the_gaussians():
    """KL between two Gaussians of one spread is |difference of means|^2 / (2 std^2)."""
    ppo = Ppo(3, 2, PpoConfig(update_epochs=1, minibatch_size=50_000, target_kl=1e9), seed=0)
    segment = segment_of(ppo, rows=50_000)
    with torch.no_grad():
        ppo.model.actor[-1].bias += 0.1
    got = ppo.update(segment)["ppo_kl"]
    exact = 2 * 0.1**2 / (2 * np.exp(2 * ppo.config.log_std))
    assert got == pytest.approx(exact, rel=0.1)


def test_a_saved_agent_goes_on_as_if_nothing_had_happened():
    ppo = Ppo(3, 2, PpoConfig(), seed=0)
    ppo.normalise(np.random.default_rng(1).normal(size=(20, 3)))
    ppo.update(segment_of(ppo))
    other = Ppo(3, 2, PpoConfig(), seed=9)
    other.load_state_dict(ppo.state_dict())
    for agent in (ppo, other):
        agent.update(segment_of(agent, seed=1))
    states = np.random.default_rng(2).normal(size=(5, 3))
    for a, b in zip(ppo.act(ppo.norm(states)), other.act(other.norm(states)), strict=True):
        np.testing.assert_array_equal(a, b)


def cart_pole(state, force):
    """One step of 20 ms of Barto, Sutton and Anderson (1983); state [agents, 4]."""
    speed, angle, spin = state.T[1:]
    sin, cos = np.sin(angle), np.cos(angle)
    push = (force + 0.05 * spin**2 * sin) / 1.1
    torque = (9.8 * sin - cos * push) / (0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
    pull = push - 0.05 * torque * cos / 1.1
    return state + 0.02 * np.stack([speed, pull, spin, torque], axis=1)


def balanced_steps(ppo, rng, agents=20):
    """How long each of ``agents`` poles stands under the policy's mode, 500 steps at most."""
    state, alive = rng.uniform(-0.05, 0.05, (agents, 4)), np.ones(agents, dtype=bool)
    stood = np.zeros(agents)
    for _ in range(500):
        action, _, _ = ppo.act(ppo.normalise(state, is_learning=False), is_exploring=False)
        state = cart_pole(state, 10.0 * np.sign(action[:, 0]))
        alive &= (np.abs(state[:, 0]) < 2.4) & (np.abs(state[:, 2]) < 0.2095)
        stood += alive
    return stood


@pytest.mark.slow
def test_ppo_balances_a_pole():
    """CartPole-v1 with a real-valued action's sign as the push: 500 steps within 100,000."""
    agents, steps, limit = 8, 128, 500
    config = PpoConfig(
        learning_rate=1e-3,
        update_epochs=6,
        minibatch_size=128,
        gamma=0.98,
        log_std=0.0,
        target_kl=0.05,
    )
    ppo, rng = Ppo(4, 1, config, seed=0), np.random.default_rng(0)
    state, age = rng.uniform(-0.05, 0.05, (agents, 4)), np.zeros(agents)
    for _ in range(100_000 // (agents * steps)):
        rollout = Rollout()
        for _ in range(steps):
            rows = ppo.normalise(state)
            actions, log_probs, values = ppo.act(rows)
            state, age = cart_pole(state, 10.0 * np.sign(actions[:, 0])), age + 1
            fell = (np.abs(state[:, 0]) >= 2.4) | (np.abs(state[:, 2]) >= 0.2095)
            timed_out = ~fell & (age >= limit)
            final = ppo.value(ppo.normalise(state, is_learning=False))
            rollout.add(
                states=rows, actions=actions, log_probs=log_probs, values=values,
                rewards=np.ones(agents), is_terminal=fell,
                truncated_values=np.where(timed_out, final, np.nan),
            )  # fmt: skip
            over = fell | timed_out
            state[over], age[over] = rng.uniform(-0.05, 0.05, (int(over.sum()), 4)), 0
        last = ppo.value(ppo.normalise(state, is_learning=False))
        ppo.update(rollout.finish(last, gamma=config.gamma, lam=config.gae_lambda))
    assert balanced_steps(ppo, rng).mean() > 475


def test_the_seed_decides():
    states = np.random.default_rng(0).random((4, 3))
    before = torch.random.get_rng_state()
    first, again, other = (Ppo(3, 2, PpoConfig(), seed=s).act(states)[0] for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
