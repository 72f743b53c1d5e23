"""What an agent lived through between two updates, and its generalised advantages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from airllm.rl.actor_critic import RunningNorm

Array = NDArray[np.float64]


def gae(
    rewards: Array,
    values: Array,
    next_values: Array,
    *,
    gamma: float,
    lam: float,
    is_cut: NDArray[np.bool_] | None = None,
) -> Array:
    """Generalised advantages (Schulman et al. 2016, eq. 16); all arrays are [steps, rows].

    A_t = sum_k (gamma lambda)^k delta_{t+k} with delta_t = r_t + gamma V(s_{t+1}) - V(s_t).
    ``next_values`` holds V(s_{t+1}): 0 after a terminal state, the critic's opinion everywhere
    else, a time limit included. The sum over k ends after steps that are cut, of either sort.
    """
    delta = rewards + gamma * next_values - values
    goes_on = np.ones_like(delta) if is_cut is None else 1.0 - is_cut
    advantage = np.zeros_like(delta)
    running = np.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        running = delta[t] + gamma * lam * goes_on[t] * running
        advantage[t] = running
    return advantage


@dataclass(frozen=True, slots=True)
class Segment:
    """What PPO learns from; rows are steps x agents, the agents of one step side by side."""

    states: Array
    """[rows, states] as the networks saw them"""
    actions: Array
    log_probs: Array
    advantages: Array
    returns: Array


class ReturnScale:
    """Divides rewards by the standard deviation of the discounted return so far.

    Clipped to +-10, as usual: the first ones, or equal ones, have no deviation to speak of.
    """

    def __init__(self, gamma: float) -> None:
        self.gamma, self._norm = gamma, RunningNorm(1)
        self._running = np.zeros(0)

    def __call__(self, rewards: Array, is_over: NDArray[np.bool_]) -> Array:
        """Rewards [agents], scaled; ``is_over`` [agents] says whose episode ends with them."""
        if len(self._running) != len(rewards):
            self._running = np.zeros(len(rewards))
        self._running = self.gamma * self._running + rewards
        self._norm.update(self._running[:, None])
        self._running = np.where(is_over, 0.0, self._running)
        return np.clip(rewards / np.sqrt(self._norm.var[0] + 1e-8), -10.0, 10.0)

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs, as tensors and numbers."""
        return {"norm": self._norm.state_dict(), "running": torch.as_tensor(self._running.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._norm.load_state_dict(state["norm"])
        self._running = state["running"].numpy().copy()


class Rollout:
    """Steps of several agents (devices, or copies of an environment) side by side."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Array]] = []

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def rewards(self) -> Array:
        """[steps, agents] so far."""
        return np.stack([step["rewards"] for step in self._steps])

    def add(
        self,
        *,
        states: Array,
        actions: Array,
        log_probs: Array,
        values: Array,
        rewards: Array,
        is_terminal: NDArray[np.bool_] | None = None,
        truncated_values: Array | None = None,
    ) -> None:
        """Take in one step, [agents, ...] each.

        ``is_terminal`` [agents] says whose episode really ended; ``truncated_values`` [agents] is
        V of the state at which a time limit cut an episode, nan where none did.
        """
        if self._steps and states.shape != self._steps[0]["states"].shape:
            raise ValueError(
                f"states must keep the shape {self._steps[0]['states'].shape} until the segment is "
                f"finished, got {states.shape}"
            )
        agents = len(rewards)
        ended = np.zeros(agents) if is_terminal is None else is_terminal.astype(np.float64)
        limit = np.full(agents, np.nan) if truncated_values is None else truncated_values
        self._steps.append(
            {
                "states": states, "actions": actions, "log_probs": log_probs, "values": values,
                "rewards": rewards, "is_terminal": ended, "truncated_values": limit,
            }
        )  # fmt: skip

    def finish(self, last_values: Array, *, gamma: float, lam: float) -> Segment:
        """The segment, its last step followed by states of value ``last_values`` [agents]."""
        column = {key: np.stack([step[key] for step in self._steps]) for key in self._steps[0]}
        self._steps = []
        values, limit = column["values"], column["truncated_values"]  # [steps, agents]
        ended = column["is_terminal"].astype(bool)
        next_values = np.concatenate([values[1:], last_values[None]])
        next_values = np.where(np.isnan(limit), next_values, limit)
        advantages = gae(
            column["rewards"], values, np.where(ended, 0.0, next_values),
            gamma=gamma, lam=lam, is_cut=ended | ~np.isnan(limit),
        )  # fmt: skip

        def flat(array: Array) -> Array:
            return array.reshape(-1, *array.shape[2:])  # [steps, agents, ...] -> [rows, ...]

        return Segment(
            flat(column["states"]), flat(column["actions"]), flat(column["log_probs"]),
            flat(advantages), flat(advantages + values),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The steps so far, as tensors."""
        return {"steps": [{k: torch.as_tensor(v) for k, v in s.items()} for s in self._steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._steps = [{k: v.numpy() for k, v in step.items()} for step in state["steps"]]
