"""AirLLM's policy: PPO proposes, DDIM refines, a water level turns priorities into ranks.

Decisions start at the greedy rule by second-order utility, for which both networks are at zero, and
move from there by what the devices measure.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from airllm.lora.sensitivity import Importance
from airllm.policies.base import RoundFeedback
from airllm.policies.features import Features
from airllm.policies.knapsack import Ranks, fit_budget
from airllm.policies.observation import RoundObservation
from airllm.rl.alternating import Step, Turns
from airllm.rl.ddim import DdimConfig, make_scheduler, noised_target, sample, weighted_loss
from airllm.rl.denoiser import Denoiser
from airllm.rl.ppo import Ppo, PpoConfig, tensor

_STREAM = 50

Array = NDArray[np.float64]

NUM_COARSE = 16  # as published: budget fraction, level of the scaled utilities, and 14 priorities
ProposerKind = Literal["ppo", "direct", "none"]
RefinerKind = Literal["ddim", "mlp", "none"]
_NUM_CELL = 2  # the components that are about the whole cell
_LABEL_WIDTH = 8
_MIN_FRACTION = 0.3
_LEVEL_SCALE = 2.0


class Refiner(nn.Module):
    """Denoiser of the projections' priorities around the upsampled coarse vector.

    It predicts x0 as that vector plus what the network adds, nothing at first. Its condition is the
    optimality label (Frans et al. 2025, arXiv 2505.23458): rows with a positive advantage are
    labelled, and a learned embedding of its own says "no label"; state and coarse vector are always
    given. Guidance then means more of what turned out better than expected.
    """

    def __init__(
        self, basis: Tensor, num_states: int, config: DdimConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.register_buffer("basis", basis)  # [priorities, projections]
        self.network = Denoiser(
            basis.shape[1],
            num_states + _NUM_CELL + len(basis) + _LABEL_WIDTH,
            hidden=config.hidden,
            num_blocks=config.num_blocks,
            generator=generator,
        )
        # worse, better, none
        self.label = nn.utils.skip_init(nn.Embedding, 3, _LABEL_WIDTH)
        nn.init.normal_(self.label.weight, generator=generator)

    def upsample(self, coarse: Tensor) -> Tensor:
        """Coarse vector [rows, coarse] to one priority for each projection [rows, projections]."""
        basis: Tensor = self.basis  # type: ignore[assignment]
        return coarse[:, _NUM_CELL:] @ basis

    @property
    def num_projections(self) -> int:
        return self.network.size

    def forward(
        self, x: Tensor, steps: Tensor, states: Tensor, coarse: Tensor, label: Tensor
    ) -> Tensor:
        """The predicted x0 [rows, projections]; label [rows] is 0, 1, or 2 for none."""
        context = torch.cat([states, coarse, self.label(label)], dim=1)
        return self.upsample(coarse) + self.network(x, steps, context)


class AirLlmPolicy:
    """One row for each device, shared weights, a pooled context for the joint budget.

    ``proposer`` and ``refiner`` name what stands in each place, for ablations: 'direct' lets PPO
    propose every projection's priority, 'mlp' is the denoiser asked once, without diffusion.
    """

    name = "airllm"
    importance: Importance = "second-order"

    def __init__(
        self,
        *,
        depths: Sequence[int],
        kinds: Sequence[str],
        ppo: PpoConfig,
        ddim: DdimConfig,
        proposer: str = "ppo",
        refiner: str = "ddim",
        hide: Sequence[str] = (),
        priority_scale: float,
        refine_std: float,
        is_exploring: bool,
        seed: int,
    ) -> None:
        if ddim.prediction != "sample":
            raise ValueError(
                f"policy.ddim.prediction must be 'sample' for policy airllm, whose refiner "
                f"predicts x0 around the coarse vector, got {ddim.prediction!r}"
            )
        self.config, self.is_exploring = ddim, is_exploring
        self.proposer, self.refiner, self.hide = proposer, refiner, tuple(hide)
        self.priority_scale, self.refine_std = priority_scale, refine_std
        self.features = Features(depths, kinds, hide=hide)
        key = np.random.SeedSequence(seed, spawn_key=(_STREAM,)).generate_state(2)
        self._generator = torch.Generator().manual_seed(int(key[0]))
        basis = np.eye(len(depths)) if proposer == "direct" else smooth_basis(depths, kinds)
        num_states = self.features.size
        self.ppo = Ppo(num_states, _NUM_CELL + len(basis), ppo, seed=int(key[1]))
        self.network = Refiner(tensor(basis), num_states, ddim, self._generator)
        self._optimiser = torch.optim.Adam(self.network.parameters(), lr=ddim.learning_rate)
        self._scheduler = make_scheduler(ddim)
        self._turns = Turns(self.ppo, num_steps=ppo.num_steps, replay_size=ddim.replay_size)

    def decide(self, observation: RoundObservation) -> Ranks:
        """Ranks whose plan fits the budget fraction that was proposed."""
        return self.decide_all([observation])[0]

    def decide_all(self, observations: Sequence[RoundObservation]) -> list[Ranks]:
        """`decide` for several cells at once."""
        states = self.ppo.normalise(self._states(observations), is_learning=self.is_exploring)
        proposals, log_probs, values = self.ppo.act(states, is_exploring=self.is_exploring)
        coarse = np.tanh(proposals)
        if self.proposer == "none":
            coarse = np.zeros_like(coarse)
        refined = self.refine(states, coarse)
        if self.is_exploring and self.refiner != "none":
            noise = torch.randn(refined.shape, generator=self._generator).numpy()
            refined = refined + self.refine_std * noise
        self._turns.decided(Step(states, proposals, log_probs, values, coarse, refined))
        ends = np.cumsum([o.num_devices for o in observations])[:-1]
        pieces = zip(observations, np.split(coarse, ends), np.split(refined, ends), strict=True)
        return [decode(observation, c, self.priority_scale * r) for observation, c, r in pieces]

    def learn(self, feedback: RoundFeedback) -> dict[str, float]:
        """PPO's turn when a segment is full, and DDIM's turn after it."""
        following = feedback.next_observation
        return self.learn_all(
            feedback.reward,
            None if following is None else [following],
            is_last=feedback.is_last,
        )

    def learn_all(
        self,
        reward: Array,
        next_observations: Sequence[RoundObservation] | None,
        *,
        is_last: bool,
        is_terminal: NDArray[np.bool_] | None = None,
    ) -> dict[str, float]:
        """`learn` for several cells; reward and is_terminal are [devices of all cells]."""
        if not self.is_exploring:
            return {}
        following = None
        if next_observations is not None:
            following = self.ppo.normalise(self._states(next_observations), is_learning=False)
        scalars = self._turns.rewarded(reward, following, is_last=is_last, is_terminal=is_terminal)
        if scalars is None:
            return {}
        if self.refiner != "none":
            scalars["ddim_loss"] = self._ddim_turn()
        return scalars

    @torch.no_grad()
    def refine(self, states: Array, coarse: Array) -> Array:
        """From coarse vectors to priorities [devices, projections], guided towards "better"."""
        s, c = tensor(states), tensor(coarse)
        if self.refiner == "none":
            return self.network.upsample(c).double().numpy()

        def predict(x: Tensor, t: int, *, is_conditional: bool) -> Tensor:
            label = torch.full((len(x),), 1 if is_conditional else 2)
            return self.network(x, torch.full((len(x),), t), s, c, label)

        x = torch.zeros(len(states), self.network.num_projections)
        if self.refiner == "mlp":
            without = predict(x, 0, is_conditional=False)
            guided = predict(x, 0, is_conditional=True) - without
            refined = without + self.config.guidance * guided
        else:
            if self.is_exploring:
                x = torch.randn(x.shape, generator=self._generator)
            refined = sample(
                self._scheduler, predict, x,
                num_steps=self.config.sampling_steps, guidance=self.config.guidance,
            )  # fmt: skip
        return refined.double().numpy().clip(-3.0, 3.0)

    def _ddim_turn(self) -> float:
        total, config = 0.0, self.config
        for _ in range(config.updates_per_turn):
            batch = self._turns.draw(config.batch_size, self._generator)
            x0 = tensor(batch.refined)
            label = torch.as_tensor(batch.advantages > 0.0).long()
            drop = torch.rand(len(x0), generator=self._generator) < config.condition_dropout
            label = torch.where(drop, 2, label)
            if self.refiner == "mlp":
                x, target = torch.zeros_like(x0), x0
                steps = torch.zeros(len(x0), dtype=torch.long)
            else:
                steps = torch.randint(config.train_steps, (len(x0),), generator=self._generator)
                noise = torch.randn(x0.shape, generator=self._generator)
                x, target = noised_target(self._scheduler, x0, noise, steps)
            output = self.network(x, steps, tensor(batch.states), tensor(batch.coarse), label)
            loss = weighted_loss(output, target, torch.ones(len(x0)))
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            total += loss.item()
        return total / max(config.updates_per_turn, 1)

    def networks(self) -> dict[str, Any]:
        """What decisions depend on, without what only learning needs."""
        return {"ppo": self.ppo.networks(), "refiner": self.network.state_dict()}

    def load_networks(self, state: dict[str, Any]) -> None:
        """Decide by what `networks` gave."""
        self.ppo.load_networks(state["ppo"])
        self.network.load_state_dict(state["refiner"])

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that was learned and is under way: tensors and numbers."""
        return copy.deepcopy(
            {
                "ppo": self.ppo.state_dict(),
                "refiner": self.network.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "turns": self._turns.state_dict(),
                "generator": self._generator.get_state(),
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.ppo.load_state_dict(state["ppo"])
        self.network.load_state_dict(state["refiner"])
        self._optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        self._turns.load_state_dict(state["turns"])
        self._generator.set_state(state["generator"])

    def _states(self, observations: Sequence[RoundObservation]) -> Array:
        return np.concatenate([self.features(observation) for observation in observations])


def decode(observation: RoundObservation, coarse: Array, priority: Array) -> Ranks:
    """Ranks from coarse vectors [devices, coarse] and priorities [devices, projections].

    Devices on one band share its budget, so its fraction and the level of all scaled utilities
    against the fixed charges are means over them: no device can take the others' air time by
    raising its own.
    """
    cell = coarse[:, :_NUM_CELL]
    if observation.is_shared_band:
        cell = np.broadcast_to(cell.mean(axis=0), cell.shape)
    level = np.exp(_LEVEL_SCALE * cell[:, 1])
    return fit_budget(
        level[:, None, None] * scaled_utility(priority, observation.utility),
        observation.unit_cost_s,
        budget_fraction(cell[:, 0]) * observation.budget_s,
        is_joint=observation.is_shared_band,
        fixed_charge=observation.fixed_charge,
    )


def scaled_utility(priority: Array, utility: Array) -> Array:
    """Utilities [devices, projections, rank] times e^priority [devices, projections].

    Each device's positive scaled utilities add up to the sum of its utilities, so that priorities
    say what comes first within a device, while between devices the utilities decide, which are in
    the same unit. Otherwise every device would learn to raise all of its priorities and take the
    others' air time.
    """
    raised = np.exp(priority)[:, :, None] * utility

    def total(utility: Array) -> Array:
        return np.clip(np.nan_to_num(utility), 0.0, 1e30).sum(axis=(1, 2)) + 1e-30

    return raised * (total(utility) / total(raised))[:, None, None]


def budget_fraction(coarse: Array) -> Array:
    """Share of the budget that is used: all of it down to a coarse value of -0.2, then less."""
    below = np.maximum(-coarse - 0.2, 0.0) / 0.8
    return 1.0 - (1.0 - _MIN_FRACTION) * below


def smooth_basis(depths: Sequence[int], kinds: Sequence[str]) -> Array:
    """[14, projections] orthogonal rows of unit mean square: smooth over depth, apart by kind.

    Kinds first, then their cosines over depth, lowest first, as far as 14 rows go.
    """
    x = (np.asarray(depths) + 0.5) / (max(depths) + 1)
    names = sorted(set(kinds))
    indicator = np.array([[float(k == name) for k in kinds] for name in names])
    wanted = NUM_COARSE - _NUM_CELL
    found: list[Array] = []
    for order in range(max(depths) + 1):
        for row in indicator * np.cos(np.pi * order * x):
            for other in found:
                row = row - (row @ other) * other
            norm = np.linalg.norm(row)
            if norm > 1e-6 and len(found) < wanted:
                found.append(row / norm)
    basis = np.zeros((wanted, len(x)))
    basis[: len(found)] = found
    # A component of the coarse vector moves what it touches by about its own value.
    return basis * np.sqrt(len(x) / len(names))
