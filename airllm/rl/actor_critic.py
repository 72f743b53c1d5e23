"""The two networks of PPO, and the running normalisation of what they look at."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ACTIVATIONS = {"tanh": nn.Tanh, "mish": nn.Mish}
# A policy's file says how wide its networks are: it must not take all memory before it is refused.
MAX_WIDTH = 4096


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

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs, as tensors and numbers."""
        mean, var = torch.as_tensor(self.mean.copy()), torch.as_tensor(self.var.copy())
        return {"mean": mean, "var": var, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        mean, var = state["mean"].numpy().copy(), state["var"].numpy().copy()
        if not mean.shape == var.shape == self.mean.shape:
            raise ValueError(f"a state of {mean.shape} numbers is not one of {self.mean.shape}")
        self.mean, self.var = mean, var
        self.count = float(state["count"])


class ActorCritic(nn.Module):
    """A Gaussian policy and a value function, two hidden layers each, orthogonally initialised.

    The actor's last layer starts at 0, and so does every mean: small ones are advised
    (Andrychowicz et al. 2021), and at 0 a fresh policy is exactly the rule that it starts from. The
    critic's starts small: where rewards are hundredths of a nat, values of 1 drown them. The
    standard deviation is a parameter of its own for each action and does not depend on the state.
    """

    def __init__(
        self,
        num_states: int,
        num_actions: int,
        *,
        hidden: int,
        activation: str,
        log_std: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()

        def network(num_outputs: int, last_gain: float) -> nn.Sequential:
            sizes = (num_states, hidden, hidden, num_outputs)
            gains = (math.sqrt(2.0), math.sqrt(2.0), last_gain)
            layers: list[nn.Module] = []
            for n_in, n_out, gain in zip(sizes[:-1], sizes[1:], gains, strict=True):
                # Without skip_init the layer would draw from torch's global generator first.
                layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
                nn.init.orthogonal_(layer.weight, gain, generator=generator)
                nn.init.zeros_(layer.bias)
                layers += [layer, ACTIVATIONS[activation]()]
            return nn.Sequential(*layers[:-1])

        self.actor, self.critic = network(num_actions, 0.0), network(1, 0.01)
        self.log_std = nn.Parameter(torch.full((num_actions,), log_std))

    def log_prob(self, states: Tensor, actions: Tensor) -> Tensor:
        """log N(action; mean(state), std), summed over the actions [rows]."""
        z = (actions - self.actor(states)) * torch.exp(-self.log_std)
        return (-0.5 * z**2 - self.log_std - 0.5 * math.log(2.0 * math.pi)).sum(dim=1)

    def entropy(self) -> Tensor:
        """sum over actions of log std + log(2 pi e) / 2, the same in every state."""
        return (self.log_std + 0.5 * math.log(2.0 * math.pi * math.e)).sum()

    def value(self, states: Tensor) -> Tensor:
        """V(state) [rows]."""
        return self.critic(states)[:, 0]
