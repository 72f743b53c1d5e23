"""Proximal policy optimisation (Schulman et al. 2017) for continuous actions, row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ACTIVATIONS = {"tanh": nn.Tanh, "mish": nn.Mish}


@dataclass(frozen=True, slots=True)
class PpoConfig:
    """PPO's settings; the symbols are those of the paper."""

    hidden: int = 64
    """width of the two hidden layers of actor and critic"""
    activation: str = "tanh"
    """'tanh' or 'mish'"""
    learning_rate: float = 3e-4
    """of Adam"""
    num_epochs: int = 4
    """K, passes over the rows of an update"""
    batch_size: int = 64
    """rows of a minibatch"""
    clip: float = 0.2
    """epsilon of the clipped objective"""
    gamma: float = 0.95
    """discount from round to round"""
    gae_lambda: float = 0.95
    """lambda of the generalised advantage estimate"""
    entropy_weight: float = 0.0
    """c2, bonus for the entropy of the policy"""
    value_weight: float = 0.5
    """c1, weight of the critic's squared error"""
    max_grad_norm: float = 0.5
    """bound on the norm of the gradient"""
    max_kl: float = 0.05
    """an update stops early once the policy has moved by this divergence"""
    log_std: float = -2.0
    """initial log standard deviation of the proposal, before tanh"""
    update_every: int = 4
    """rounds between two updates"""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"policy.ppo.activation must be one of {', '.join(ACTIVATIONS)}, "
                f"got {self.activation!r}"
            )
        for key in ("hidden", "num_epochs", "batch_size", "update_every"):
            if getattr(self, key) < 1:
                raise ValueError(f"policy.ppo.{key} must be >= 1, got {getattr(self, key)}")
        for key in ("gamma", "gae_lambda"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                raise ValueError(f"policy.ppo.{key} must be in [0, 1], got {getattr(self, key)}")
        for key in ("learning_rate", "clip", "max_grad_norm", "max_kl"):
            if not getattr(self, key) > 0:
                raise ValueError(f"policy.ppo.{key} must be > 0, got {getattr(self, key)}")


def gae(
    rewards: NDArray[np.float64],
    values: NDArray[np.float64],
    last_value: NDArray[np.float64],
    *,
    gamma: float,
    lam: float,
) -> NDArray[np.float64]:
    """Generalised advantages (Schulman et al. 2016, eq. 16); inputs [steps, rows], last [rows].

    A_t = sum_k (gamma lambda)^k delta_{t+k} with delta_t = r_t + gamma V(s_{t+1}) - V(s_t). The end
    of the segment is a time limit, not a terminal state: ``last_value`` is V of what follows.
    """
    following = np.concatenate([values[1:], last_value[None]])
    delta = rewards + gamma * following - values
    advantage = np.zeros_like(delta)
    running = np.zeros_like(last_value)
    for t in reversed(range(len(delta))):
        running = delta[t] + gamma * lam * running
        advantage[t] = running
    return advantage


class RunningNorm:
    """Mean and variance of all rows seen so far (Chan et al. 1979), to normalise states."""

    def __init__(self, size: int) -> None:
        self.mean, self.var, self.count = np.zeros(size), np.ones(size), 0.0

    def update(self, rows: NDArray[np.float64]) -> None:
        """Take in rows [rows, size]."""
        count = float(len(rows))
        delta, total = rows.mean(axis=0) - self.mean, self.count + count
        spread = self.var * self.count + rows.var(axis=0) * count
        spread = spread + delta**2 * self.count * count / total
        self.mean, self.var, self.count = self.mean + delta * count / total, spread / total, total

    def __call__(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows with mean 0 and variance 1, clipped to +-10."""
        return np.clip((rows - self.mean) / np.sqrt(self.var + 1e-8), -10.0, 10.0)


class ActorCritic(nn.Module):
    """A Gaussian policy and a value function, two layers each, orthogonally initialised.

    The small last layer of the actor starts every mean near 0 (Andrychowicz et al. 2021).
    """

    def __init__(
        self, num_states: int, num_actions: int, config: PpoConfig, generator: torch.Generator
    ) -> None:
        super().__init__()

        def network(num_outputs: int, last_gain: float) -> nn.Sequential:
            sizes = (num_states, config.hidden, config.hidden, num_outputs)
            gains = (math.sqrt(2.0), math.sqrt(2.0), last_gain)
            layers: list[nn.Module] = []
            for n_in, n_out, gain in zip(sizes[:-1], sizes[1:], gains, strict=True):
                layer = nn.Linear(n_in, n_out)
                nn.init.orthogonal_(layer.weight, gain, generator=generator)
                nn.init.zeros_(layer.bias)
                layers += [layer, ACTIVATIONS[config.activation]()]
            return nn.Sequential(*layers[:-1])

        self.actor, self.critic = network(num_actions, 0.01), network(1, 1.0)
        self.log_std = nn.Parameter(torch.full((num_actions,), config.log_std))

    def log_prob(self, states: Tensor, actions: Tensor) -> Tensor:
        """log N(action; mean(state), std) [rows]."""
        z = (actions - self.actor(states)) * torch.exp(-self.log_std)
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2.0 * math.pi)).sum(dim=1)

    def entropy(self) -> Tensor:
        return (self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum()

    def value(self, states: Tensor) -> Tensor:
        """V(state) [rows]."""
        return self.critic(states)[:, 0]


class Ppo:
    """Acts on rows of states and learns from segments of them.

    Actions are unbounded; where a bounded one is wanted, the caller squashes it. Then the ratio of
    probabilities needs no Jacobian, because it is the same above and below.
    """

    def __init__(self, num_states: int, num_actions: int, config: PpoConfig, *, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.norm = RunningNorm(num_states)
        self.model = ActorCritic(num_states, num_actions, config, self.generator)
        self.optimiser = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, eps=1e-5
        )

    @torch.no_grad()
    def act(
        self, states: NDArray[np.float64], *, is_exploring: bool = True
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Actions [rows, actions], their log probabilities [rows], values [rows]."""
        rows = self._rows(states)
        action = self.model.actor(rows)
        if is_exploring:
            noise = torch.randn(action.shape, generator=self.generator)
            action = action + noise * torch.exp(self.model.log_std)
        log_prob, value = self.model.log_prob(rows, action), self.model.value(rows)
        return action.double().numpy(), log_prob.double().numpy(), value.double().numpy()

    @torch.no_grad()
    def value(self, states: NDArray[np.float64]) -> NDArray[np.float64]:
        """V(state) [rows]."""
        return self.model.value(self._rows(states)).double().numpy()

    def update(
        self,
        states: NDArray[np.float64],
        actions: NDArray[np.float64],
        log_probs: NDArray[np.float64],
        advantages: NDArray[np.float64],
        returns: NDArray[np.float64],
    ) -> dict[str, float]:
        """Maximise the clipped objective over rows [rows, ...]; returns its diagnostics."""
        config, model = self.config, self.model
        s, a = self._rows(states), _tensor(actions)
        old, adv, ret = _tensor(log_probs), _tensor(advantages), _tensor(returns)
        with torch.no_grad():
            explained = 1.0 - float((ret - model.value(s)).var(correction=0)) / max(
                float(ret.var(correction=0)), 1e-12
            )
        kl, clipped, first_ratio, steps = 0.0, 0.0, float("nan"), 0
        for _ in range(config.num_epochs):
            order = torch.randperm(len(s), generator=self.generator)
            for index in order.split(config.batch_size):
                log_ratio = model.log_prob(s[index], a[index]) - old[index]
                ratio = log_ratio.exp()
                off = (ratio.detach() - 1.0).abs()
                batch_kl = float((ratio - 1.0 - log_ratio).detach().mean())
                if math.isnan(first_ratio):
                    first_ratio = float(off.max())
                if batch_kl > config.max_kl:
                    break
                batch = adv[index]
                if len(index) > 1:
                    batch = (batch - batch.mean()) / (batch.std() + 1e-8)
                bound = ratio.clamp(1.0 - config.clip, 1.0 + config.clip)
                loss = -torch.minimum(ratio * batch, bound * batch).mean()
                loss = (
                    loss + config.value_weight * (model.value(s[index]) - ret[index]).pow(2).mean()
                )
                loss = loss - config.entropy_weight * model.entropy()
                self.optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                self.optimiser.step()
                kl, steps = kl + batch_kl, steps + 1
                clipped += float((off > config.clip).float().mean())
        return {
            "ppo_kl": kl / max(steps, 1),
            "ppo_clip_fraction": clipped / max(steps, 1),
            "ppo_explained_variance": explained,
            "ppo_first_ratio_error": first_ratio,
        }

    def _rows(self, states: NDArray[np.float64]) -> Tensor:
        return _tensor(self.norm(states))


def _tensor(array: NDArray[np.float64]) -> Tensor:
    return torch.as_tensor(np.asarray(array, dtype=np.float32))
