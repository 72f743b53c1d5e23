"""Proximal policy optimisation (Schulman et al. 2017) for continuous actions, row by row."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import pydantic.dataclasses
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from airllm.bounds import NUMPY, STRICT, Count, NonNegative, Number, Positive, Share
from airllm.rl.actor_critic import MAX_WIDTH, ActorCritic, RunningNorm
from airllm.rl.rollout import Segment


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class PpoConfig:
    """PPO's settings; the symbols are those of the paper."""

    hidden: Annotated[int, Field(ge=1, le=MAX_WIDTH), NUMPY] = 64
    """width of the two hidden layers of actor and critic"""
    activation: Literal["tanh", "mish"] = "tanh"
    """'tanh' or 'mish'"""
    learning_rate: Positive = 1e-3
    """of Adam"""
    update_epochs: Count = 4
    """K, passes over the rows of an update"""
    minibatch_size: Count = 64
    """rows of a minibatch"""
    clip_coef: Positive = 0.2
    """epsilon of the clipped objective"""
    gamma: Share = 0.5
    """discount from round to round; most of an allocation's utility shows in its own round"""
    gae_lambda: Share = 0.95
    """lambda of the generalised advantage estimate"""
    ent_coef: Number = 0.0
    """c2, bonus for the entropy of the policy"""
    vf_coef: Number = 0.5
    """c1, weight of the critic's squared error"""
    vf_clip_coef: NonNegative = 0.0
    """how far a value may move in one update; 0: as far as it likes"""
    norm_reward: bool = False
    """True: rewards are divided by the standard deviation of the discounted return so far"""
    max_grad_norm: Positive = 0.5
    """bound on the norm of the gradient"""
    target_kl: Positive = 0.05
    """an update stops early once the policy has moved by this divergence (a huge one: never)"""
    log_std: Number = -2.0
    """initial log standard deviation of the proposal, before tanh"""
    num_steps: Count = 4
    """rounds between two updates"""


class Ppo:
    """Acts on rows of states and learns from segments of them.

    States are normalised once, when they are first seen, and stay as the networks saw them: were
    they normalised again at the update, by statistics that have moved on, old and new policy would
    differ before anything was learned. Actions are unbounded; where a bounded one is wanted, the
    caller squashes it, and the ratio of probabilities needs no Jacobian, because it is the same
    above and below.
    """

    def __init__(self, num_states: int, num_actions: int, config: PpoConfig, *, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.norm = RunningNorm(num_states)
        self.model = ActorCritic(
            num_states,
            num_actions,
            hidden=config.hidden,
            activation=config.activation,
            log_std=config.log_std,
            generator=self.generator,
        )
        self.optimiser = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, eps=1e-5
        )

    def normalise(
        self, states: NDArray[np.float64], *, is_learning: bool = True
    ) -> NDArray[np.float64]:
        """States [rows, states] as all other methods take them; in learning they are counted in."""
        if is_learning:
            self.norm.update(states)
        return self.norm(states)

    @torch.no_grad()
    def act(
        self, states: NDArray[np.float64], *, is_exploring: bool = True
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Actions [rows, actions], their log probabilities [rows], values [rows]."""
        rows = tensor(states)
        action = self.model.actor(rows)
        if is_exploring:
            noise = torch.randn(action.shape, generator=self.generator)
            action = action + noise * torch.exp(self.model.log_std)
        log_prob, value = self.model.log_prob(rows, action), self.model.value(rows)
        return action.double().numpy(), log_prob.double().numpy(), value.double().numpy()

    @torch.no_grad()
    def value(self, states: NDArray[np.float64]) -> NDArray[np.float64]:
        """V(state) [rows]."""
        return self.model.value(tensor(states)).double().numpy()

    def update(self, segment: Segment, *, share: float = 1.0) -> dict[str, float]:
        """Maximise the clipped objective over a segment; returns its diagnostics.

        Passes end early at the first minibatch on which the policy has moved too far. ``share`` of
        the learning rate and of ``clip_coef`` is used, for a caller that anneals them.
        """
        config, model = self.config, self.model
        clip = share * config.clip_coef
        self.optimiser.param_groups[0]["lr"] = share * config.learning_rate
        s, a = tensor(segment.states), tensor(segment.actions)
        old, adv = tensor(segment.log_probs), tensor(segment.advantages)
        ret = tensor(segment.returns)
        with torch.no_grad():
            old_value = model.value(s)
            explained = 1.0 - float((ret - old_value).var(correction=0)) / max(
                float(ret.var(correction=0)), 1e-12
            )
        kl, clipped, first_ratio, steps = 0.0, 0.0, float("nan"), 0
        for index in self._minibatches(len(s)):
            log_ratio = model.log_prob(s[index], a[index]) - old[index]
            ratio = log_ratio.exp()
            off = (ratio.detach() - 1.0).abs()
            # E[r - 1 - log r] estimates KL(old || new) without bias, and is never negative.
            batch_kl = float((ratio - 1.0 - log_ratio).detach().mean())
            if math.isnan(first_ratio):
                first_ratio = float(off.max())
            if batch_kl > config.target_kl:
                break
            batch = adv[index]
            if len(index) > 1:
                batch = (batch - batch.mean()) / (batch.std() + 1e-8)
            bound = ratio.clamp(1.0 - clip, 1.0 + clip)
            loss = -torch.minimum(ratio * batch, bound * batch).mean()
            value = model.value(s[index])
            error = (value - ret[index]).pow(2)
            if config.vf_clip_coef:
                near = (value - old_value[index]).clamp(-config.vf_clip_coef, config.vf_clip_coef)
                error = torch.maximum(error, (old_value[index] + near - ret[index]).pow(2))
            loss = loss + config.vf_coef * error.mean()
            loss = loss - config.ent_coef * model.entropy()
            self.optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            self.optimiser.step()
            kl, steps = kl + batch_kl, steps + 1
            clipped += float((off > clip).float().mean())
        return {
            "ppo_kl": kl / max(steps, 1),
            "ppo_clip_fraction": clipped / max(steps, 1),
            "ppo_explained_variance": explained,
            "ppo_entropy": float(model.entropy().detach()),
            "ppo_first_ratio_error": first_ratio,
        }

    def _minibatches(self, num_rows: int) -> Iterator[Tensor]:
        for _ in range(self.config.update_epochs):
            order = torch.randperm(num_rows, generator=self.generator)
            yield from order.split(self.config.minibatch_size)

    def networks(self) -> dict[str, Any]:
        """What `act` depends on without exploration."""
        return {"model": self.model.state_dict(), "norm": self.norm.state_dict()}

    def load_networks(self, state: dict[str, Any]) -> None:
        """Act by what `networks` gave."""
        self.model.load_state_dict(state["model"])
        self.norm.load_state_dict(state["norm"])

    def state_dict(self) -> dict[str, Any]:
        """A copy of networks, optimiser, normalisation and generator: tensors and numbers."""
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "norm": self.norm.state_dict(),
                "generator": self.generator.get_state(),
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        # The optimiser would go on in the very tensors it is given.
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        self.norm.load_state_dict(state["norm"])
        self.generator.set_state(state["generator"])


def tensor(array: NDArray[np.float64]) -> Tensor:
    """In the full precision that the networks compute in, torch's default."""
    return torch.as_tensor(array, dtype=torch.get_default_dtype())
