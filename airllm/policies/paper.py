"""The published policy (arXiv 2507.11515), with what is known to be weak in it left as it is.

PPO's 16 numbers condition a DDIM that predicts the noise, is trained on its own samples weighted by
reward, never sees the state, and takes zeros for "no condition"; its output is floored to ranks.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airllm.lora.sensitivity import Importance
from airllm.policies.base import RoundFeedback
from airllm.policies.knapsack import Ranks, quantise
from airllm.policies.observation import RoundObservation
from airllm.rl.alternating import Step, Turns
from airllm.rl.ddim import DdimConfig, make_scheduler, noised_target, sample, weighted_loss
from airllm.rl.denoiser import Denoiser
from airllm.rl.ppo import Ppo, PpoConfig, tensor

_STREAM = 51

NUM_COARSE = 16


class PaperPolicy:
    """State [snr, bandwidth, entropy, OOV, ranks / r_max] to ranks in r_min..r_max."""

    name = "paper"
    importance: Importance = "first"

    def __init__(
        self,
        *,
        num_projections: int,
        r_min: int,
        r_max: int,
        ppo: PpoConfig,
        ddim: DdimConfig,
        is_exploring: bool,
        seed: int,
    ) -> None:
        if not 0 <= r_min <= r_max:
            raise ValueError(f"policy.r_min must be in 0..{r_max} (training.r_max), got {r_min}")
        self.config, self.is_exploring = ddim, is_exploring
        self.r_min, self.r_max, self.num_projections = r_min, r_max, num_projections
        key = np.random.SeedSequence(seed, spawn_key=(_STREAM,)).generate_state(2)
        self._generator = torch.Generator().manual_seed(int(key[0]))
        self.ppo = Ppo(4 + num_projections, NUM_COARSE, ppo, seed=int(key[1]))
        self.denoiser = Denoiser(
            num_projections,
            NUM_COARSE,
            hidden=ddim.hidden,
            num_blocks=ddim.num_blocks,
            generator=self._generator,
        )
        self._optimiser = torch.optim.Adam(self.denoiser.parameters(), lr=ddim.learning_rate)
        self._scheduler = make_scheduler(ddim, clip=True)
        self._turns = Turns(self.ppo, num_steps=ppo.num_steps, replay_size=ddim.replay_size)

    def decide(self, observation: RoundObservation) -> Ranks:
        """Floored proposals; nothing keeps them inside the budget."""
        states = self.ppo.normalise(self._states(observation), is_learning=self.is_exploring)
        proposals, log_probs, values = self.ppo.act(states, is_exploring=self.is_exploring)
        coarse = np.tanh(proposals)
        refined = self._refine(coarse)
        self._turns.decided(Step(states, proposals, log_probs, values, coarse, refined))
        return quantise(refined, r_min=self.r_min, r_max=self.r_max)

    def learn(self, feedback: RoundFeedback) -> dict[str, float]:
        """PPO's turn at the end of an episode, then DDIM's."""
        if not self.is_exploring:
            return {}
        following = feedback.next_observation
        scalars = self._turns.rewarded(
            feedback.reward,
            None
            if following is None
            else self.ppo.normalise(self._states(following), is_learning=False),
            is_last=feedback.is_last,
        )
        if scalars is None:
            return {}
        scalars["ddim_loss"] = self._ddim_turn()
        return scalars

    @torch.no_grad()
    def _refine(self, coarse: NDArray[np.float64]) -> NDArray[np.float64]:
        condition = tensor(coarse)

        def predict(x: Tensor, t: int, *, is_conditional: bool) -> Tensor:
            given = condition if is_conditional else torch.zeros_like(condition)
            return self.denoiser(x, torch.full((len(x),), t), given)

        noise = torch.randn(len(coarse), self.num_projections, generator=self._generator)
        refined = sample(
            self._scheduler, predict, noise,
            num_steps=self.config.sampling_steps, guidance=self.config.guidance,
        )  # fmt: skip
        return refined.double().numpy()

    def _ddim_turn(self) -> float:
        total, config = 0.0, self.config
        for _ in range(config.updates_per_turn):
            batch = self._turns.draw(config.batch_size, self._generator)
            x0, condition = tensor(batch.refined).clamp(-1.0, 1.0), tensor(batch.coarse)
            drop = torch.rand(len(x0), generator=self._generator) < config.condition_dropout
            condition = torch.where(drop[:, None], 0.0, condition)
            reward = tensor(batch.rewards)
            # The best row of a batch weighs 1, the worst 0; of equals each weighs alike.
            spread = reward.max() - reward.min()
            weight = (reward - reward.min()) / spread if spread > 0 else torch.ones_like(reward)
            steps = torch.randint(config.train_steps, (len(x0),), generator=self._generator)
            noise = torch.randn(x0.shape, generator=self._generator)
            x, target = noised_target(self._scheduler, x0, noise, steps)
            loss = weighted_loss(self.denoiser(x, steps, condition), target, weight)
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            total += loss.item()
        return total / max(config.updates_per_turn, 1)

    def _states(self, observation: RoundObservation) -> NDArray[np.float64]:
        columns = [
            observation.snr_db, observation.bandwidth_hz, observation.entropy,
            observation.oov_rate,
        ]  # fmt: skip
        own = np.nan_to_num(np.stack(columns, axis=1), neginf=-100.0)
        return np.concatenate([own, observation.previous_ranks / self.r_max], axis=1)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that was learned and is under way: tensors and numbers."""
        return copy.deepcopy(
            {
                "ppo": self.ppo.state_dict(),
                "denoiser": self.denoiser.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "turns": self._turns.state_dict(),
                "generator": self._generator.get_state(),
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.ppo.load_state_dict(state["ppo"])
        self.denoiser.load_state_dict(state["denoiser"])
        self._optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        self._turns.load_state_dict(state["turns"])
        self._generator.set_state(state["generator"])
