"""What both learned policies share: rounds collected, PPO and DDIM optimised in turns."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airllm.ppo import Ppo, gae

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Step:
    """One round's decision; arrays are [devices, ...]."""

    states: Array
    proposals: Array
    """PPO's actions, before tanh"""
    log_probs: Array
    values: Array
    coarse: Array
    """the proposals after tanh, in [-1, 1]"""
    refined: Array
    """[devices, projections] what was decided by"""


@dataclass(frozen=True, slots=True)
class Experience:
    """One device's decision in one round and how it turned out."""

    state: Array
    coarse: Array
    refined: Array
    advantage: float
    reward: float


class Turns:
    """Collects decisions and rewards; when a segment is full PPO learns, then it is DDIM's turn."""

    def __init__(self, ppo: Ppo, *, update_every: int, replay_size: int) -> None:
        self.ppo, self.update_every = ppo, update_every
        self.replay: deque[Experience] = deque(maxlen=replay_size)
        self._steps: list[Step] = []
        self._rewards: list[Array] = []

    def decided(self, step: Step) -> None:
        """Note a decision; its reward comes with `rewarded`."""
        self._steps = self._steps[: len(self._rewards)]
        self._steps.append(step)

    def rewarded(
        self, reward: Array, next_states: Array | None, *, is_last: bool
    ) -> dict[str, float] | None:
        """PPO's diagnostics if it learned, which says that it is DDIM's turn; else None.

        At the end of a run nothing follows that could be looked at: the value of the last state
        stands for what would have followed, since a time limit is no terminal state.
        """
        if len(self._steps) != len(self._rewards) + 1:
            raise RuntimeError("a reward needs the decision it belongs to before it")
        self._rewards.append(reward)
        if len(self._rewards) < self.update_every and not is_last:
            return None
        steps, rewards = self._steps, np.stack(self._rewards)
        self._steps, self._rewards = [], []
        values = np.stack([step.values for step in steps])  # [steps, devices]
        last_value = values[-1] if next_states is None else self.ppo.value(next_states)
        config = self.ppo.config
        advantages = gae(rewards, values, last_value, gamma=config.gamma, lam=config.gae_lambda)
        for t, step in enumerate(steps):
            for d in range(len(step.states)):
                self.replay.append(
                    Experience(
                        step.states[d], step.coarse[d], step.refined[d],
                        float(advantages[t, d]), float(rewards[t, d]),
                    )
                )  # fmt: skip
        return self.ppo.update(
            np.concatenate([step.states for step in steps]),
            np.concatenate([step.proposals for step in steps]),
            np.concatenate([step.log_probs for step in steps]),
            advantages.reshape(-1),
            (advantages + values).reshape(-1),
        )

    def draw(self, count: int, generator: torch.Generator) -> list[Experience]:
        """Rows from the replay, with replacement."""
        index = torch.randint(len(self.replay), (count,), generator=generator)
        return [self.replay[i] for i in index.tolist()]


def rows(values: list[Array]) -> Tensor:
    """Stack rows as fp32."""
    return torch.as_tensor(np.stack(values).astype(np.float32))
