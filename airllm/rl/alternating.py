"""What both learned policies share: rounds collected, PPO and DDIM optimised in turns."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from airllm.rl.ppo import Ppo
from airllm.rl.rollout import ReturnScale, Rollout

Array = NDArray[np.float64]

# What stands for a reward that is not a number (a loss that diverged): the published penalty.
_NOT_A_REWARD = 10.0
_MAX_REWARD = 1e3


@dataclass(frozen=True, slots=True)
class Step:
    """One round's decision; arrays are [devices, ...]."""

    states: Array
    """as the networks saw them, normalised"""
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
    """Devices' decisions and how they turned out; arrays are [rows, ...]."""

    states: Array
    coarse: Array
    refined: Array
    advantages: Array
    rewards: Array


class Turns:
    """Collects decisions and rewards; when a segment is full PPO learns, then it is DDIM's turn."""

    def __init__(self, ppo: Ppo, *, num_steps: int, replay_size: int) -> None:
        self.ppo, self.num_steps = ppo, num_steps
        self.replay: deque[tuple[Any, ...]] = deque(maxlen=replay_size)  # rows of Experience
        self._rollout = Rollout()
        self._scale = ReturnScale(ppo.config.gamma)
        self._steps: list[Step] = []  # those in the rollout, and the one that awaits its reward

    def decided(self, step: Step) -> None:
        """Note a decision; its reward comes with `rewarded`."""
        self._steps = [*self._steps[: len(self._rollout)], step]

    def rewarded(
        self,
        reward: Array,
        next_states: Array | None,
        *,
        is_last: bool,
        is_terminal: NDArray[np.bool_] | None = None,
    ) -> dict[str, float] | None:
        """PPO's diagnostics if it learned, which says that it is DDIM's turn; else None.

        At the end of a run nothing follows that could be looked at: the value of the last state
        stands for what would have followed, since a time limit is no terminal state. Rows that
        ``is_terminal`` [agents] marks have no future, whatever comes next in their place.
        """
        if len(self._steps) != len(self._rollout) + 1:
            raise RuntimeError("a reward needs the decision it belongs to before it")
        step = self._steps[-1]
        bound = _NOT_A_REWARD
        known = np.nan_to_num(reward, nan=-bound, posinf=bound, neginf=-bound)
        known = known.clip(-_MAX_REWARD, _MAX_REWARD)
        if self.ppo.config.norm_reward:
            over = np.full(len(known), is_last) if is_terminal is None else is_terminal | is_last
            known = self._scale(known, over)
        self._rollout.add(
            states=step.states,
            actions=step.proposals,
            log_probs=step.log_probs,
            values=step.values,
            rewards=known,
            is_terminal=is_terminal,
        )
        if len(self._rollout) < self.num_steps and not is_last:
            return None
        config = self.ppo.config
        last_values = step.values if next_states is None else self.ppo.value(next_states)
        steps, rewards = self._steps, self._rollout.rewards.reshape(-1)
        self._steps = []
        segment = self._rollout.finish(last_values, gamma=config.gamma, lam=config.gae_lambda)
        coarse = np.concatenate([s.coarse for s in steps])
        refined = np.concatenate([s.refined for s in steps])
        self.replay.extend(
            zip(segment.states, coarse, refined, segment.advantages, rewards, strict=True)
        )
        return self.ppo.update(segment)

    def draw(self, count: int, generator: torch.Generator) -> Experience:
        """Rows from the replay, with replacement."""
        index = torch.randint(len(self.replay), (count,), generator=generator)
        return self._experience([self.replay[i] for i in index.tolist()])

    @staticmethod
    def _experience(rows: list[tuple[Any, ...]]) -> Experience:
        return Experience(*(np.stack(column) for column in zip(*rows, strict=True)))

    def state_dict(self) -> dict[str, Any]:
        """Replay and the unfinished segment, as tensors."""
        state: dict[str, Any] = {
            "rollout": self._rollout.state_dict(),
            "scale": self._scale.state_dict(),
            "steps": [
                {f.name: torch.as_tensor(getattr(step, f.name)) for f in fields(Step)}
                for step in self._steps
            ],
            "replay": {},
        }
        if self.replay:
            columns = self._experience(list(self.replay))
            state["replay"] = {
                f.name: torch.as_tensor(getattr(columns, f.name)) for f in fields(Experience)
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self._rollout.load_state_dict(state["rollout"])
        self._scale.load_state_dict(state["scale"])
        self._steps = [Step(**{k: v.numpy() for k, v in s.items()}) for s in state["steps"]]
        columns = [state["replay"][f.name].numpy() for f in fields(Experience) if state["replay"]]
        self.replay.clear()
        self.replay.extend(zip(*columns, strict=True))
