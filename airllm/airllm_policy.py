"""AirLLM's policy: PPO proposes, DDIM refines, a water level turns priorities into ranks.

Decisions start at the greedy rule by first-order gain, for which both networks are at zero, and
move from there by what the devices measure.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from airllm.ddim import DdimConfig, make_scheduler, noised_target, sample, weighted_loss
from airllm.denoiser import Denoiser
from airllm.learning import Step, Turns, tensor
from airllm.observation import RoundObservation
from airllm.policy import Importance, RoundFeedback
from airllm.ppo import Ppo, PpoConfig
from airllm.ranks import Ranks, fit_budget

NUM_COARSE = 16  # as published: component 0 is the budget fraction, the rest priorities
_LABEL_WIDTH = 8
_MIN_FRACTION = 0.3
_NUM_THIRDS = 3
_MAX_LOSS = 20.0  # nats; a uniform guess over 100,000 tokens costs 11.5


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
        self.register_buffer("basis", basis)  # [coarse - 1, projections]
        self.network = Denoiser(
            basis.shape[1],
            num_states + NUM_COARSE + _LABEL_WIDTH,
            hidden=config.hidden,
            num_blocks=config.num_blocks,
            generator=generator,
        )
        # worse, better, none
        self.label = nn.utils.skip_init(nn.Embedding, 3, _LABEL_WIDTH)
        nn.init.normal_(self.label.weight, generator=generator)

    def upsample(self, coarse: Tensor) -> Tensor:
        """Coarse vector [rows, 16] to one priority for each projection [rows, projections]."""
        basis: Tensor = self.basis  # type: ignore[assignment]
        return coarse[:, 1:] @ basis

    def forward(
        self, x: Tensor, steps: Tensor, states: Tensor, coarse: Tensor, label: Tensor
    ) -> Tensor:
        """The predicted x0 [rows, projections]; label [rows] is 0, 1, or 2 for none."""
        context = torch.cat([states, coarse, self.label(label)], dim=1)
        return self.upsample(coarse) + self.network(x, steps, context)


class AirLlmPolicy:
    """One row for each device, shared weights, a pooled context for the joint budget."""

    name = "airllm"
    importance: Importance = "shrunk-gain"

    def __init__(
        self,
        *,
        depths: Sequence[int],
        kinds: Sequence[str],
        ppo: PpoConfig,
        ddim: DdimConfig,
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
        self.priority_scale, self.refine_std = priority_scale, refine_std
        self._groups = feature_groups(depths, kinds)
        self.num_states = num_states = 2 * (8 + len(self._groups))
        key = np.random.SeedSequence(seed, spawn_key=(50,)).generate_state(2)
        self._generator = torch.Generator().manual_seed(int(key[0]))
        self.ppo = Ppo(num_states, NUM_COARSE, ppo, seed=int(key[1]))
        basis = tensor(smooth_basis(depths, kinds))
        self.refiner = Refiner(basis, num_states, ddim, self._generator)
        self._optimiser = torch.optim.Adam(self.refiner.parameters(), lr=ddim.learning_rate)
        self._scheduler = make_scheduler(ddim)
        self._turns = Turns(self.ppo, update_every=ppo.update_every, replay_size=ddim.replay_size)

    def decide(self, observation: RoundObservation) -> Ranks:
        """Ranks whose plan fits the budget fraction that was proposed."""
        states = self.ppo.normalise(self._states(observation), is_learning=self.is_exploring)
        proposals, log_probs, values = self.ppo.act(states, is_exploring=self.is_exploring)
        coarse = np.tanh(proposals)
        refined = self.refine(states, coarse)
        if self.is_exploring:
            noise = torch.randn(refined.shape, generator=self._generator).numpy()
            refined = refined + self.refine_std * noise
        self._turns.decided(Step(states, proposals, log_probs, values, coarse, refined))
        worth = bid(self.priority_scale * refined, observation.worth)
        fraction = budget_fraction(coarse[:, 0])
        return fit_budget(
            worth,
            observation.unit_cost_s,
            fraction * observation.budget_s,
            is_joint=observation.is_shared_band,
        )

    def learn(self, feedback: RoundFeedback) -> dict[str, float]:
        """PPO's turn when a segment is full, and DDIM's turn after it."""
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
    def refine(
        self, states: NDArray[np.float64], coarse: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """DDIM from noise to priorities [devices, projections], guided towards "better"."""
        s, c = tensor(states), tensor(coarse)

        def predict(x: Tensor, t: int, *, is_conditional: bool) -> Tensor:
            label = torch.full((len(x),), 1 if is_conditional else 2)
            return self.refiner(x, torch.full((len(x),), t), s, c, label)

        size = self.refiner.network.size
        if self.is_exploring:
            noise = torch.randn(len(states), size, generator=self._generator)
        else:
            noise = torch.zeros(len(states), size)
        refined = sample(
            self._scheduler, predict, noise,
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
            steps = torch.randint(config.train_steps, (len(x0),), generator=self._generator)
            noise = torch.randn(x0.shape, generator=self._generator)
            x, target = noised_target(self._scheduler, x0, noise, steps)
            output = self.refiner(x, steps, tensor(batch.states), tensor(batch.coarse), label)
            loss = weighted_loss(output, target, torch.ones(len(x0)))
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            total += loss.item()
        return total / max(config.updates_per_turn, 1)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that was learned and is under way: tensors and numbers."""
        return copy.deepcopy(
            {
                "ppo": self.ppo.state_dict(),
                "refiner": self.refiner.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "turns": self._turns.state_dict(),
                "generator": self._generator.get_state(),
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.ppo.load_state_dict(state["ppo"])
        self.refiner.load_state_dict(state["refiner"])
        self._optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        self._turns.load_state_dict(state["turns"])
        self._generator.set_state(state["generator"])

    def _states(self, observation: RoundObservation) -> NDArray[np.float64]:
        """[devices, states] each device's own features beside their mean over the devices."""
        devices = observation.num_devices
        everywhere_s = observation.unit_cost_s.sum(axis=1)
        with np.errstate(invalid="ignore"):
            ranks_that_fit = np.nan_to_num(observation.budget_s / everywhere_s)
        own = [
            np.clip(observation.snr_db, -40.0, 60.0) / 10.0,
            np.log10(np.maximum(observation.planned_rate_bps, 1.0)) / 6.0,
            np.log1p(ranks_that_fit),
            observation.entropy,
            observation.oov_rate,
            # A loss that is not a number is as bad as any.
            np.clip(np.nan_to_num(observation.loss, nan=_MAX_LOSS), -_MAX_LOSS, _MAX_LOSS),
            np.full(devices, observation.round_index / max(observation.num_rounds, 1)),
        ]
        gain = observation.worth
        # What the greedy rule would earn, in first-order nats: most of what tells rounds apart.
        kept = fit_budget(
            gain,
            observation.unit_cost_s,
            observation.budget_s,
            is_joint=observation.is_shared_band,
        )
        known = np.clip(np.nan_to_num(gain), 0.0, 1e30)  # [devices, projections, rank]
        is_kept = np.arange(gain.shape[2]) < kept[:, :, None]
        own.append(np.log((known * is_kept).sum(axis=(1, 2)) + 1e-3))
        worth = known.sum(axis=2)  # [devices, projections]
        worth = worth / (worth.sum(axis=1, keepdims=True) + 1e-12)
        own += [np.log(worth[:, group].sum(axis=1) + 1e-3) for group in self._groups]
        features = np.nan_to_num(np.stack(own, axis=1), posinf=1e6, neginf=-1e6)
        pooled = np.broadcast_to(features.mean(axis=0), features.shape)
        return np.concatenate([features, pooled], axis=1)


def bid(priority: NDArray[np.float64], gain: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gains [devices, projections, rank] times e^priority [devices, projections].

    Each device's positive bids add up to its gains' own sum, so that priorities say what comes
    first within a device, while between devices the gains decide, which are in the same unit.
    Otherwise every device would learn to raise all of its bids and take the others' air time.
    """
    raised = np.exp(priority)[:, :, None] * gain

    def total(worth: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(np.nan_to_num(worth), 0.0, 1e30).sum(axis=(1, 2)) + 1e-30

    return raised * (total(gain) / total(raised))[:, None, None]


def budget_fraction(coarse: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the budget that is used: all of it down to a coarse value of -0.2, then less."""
    below = np.maximum(-coarse - 0.2, 0.0) / 0.8
    return 1.0 - (1.0 - _MIN_FRACTION) * below


def feature_groups(depths: Sequence[int], kinds: Sequence[str]) -> list[NDArray[np.int64]]:
    """Projections by third of the depth and kind: what the state sums worth over."""
    third = np.asarray(depths) * _NUM_THIRDS // (max(depths) + 1)
    names = sorted(set(kinds))
    kind = np.array([names.index(k) for k in kinds])
    found = [
        np.flatnonzero((third == t) & (kind == k))
        for t in range(_NUM_THIRDS)
        for k in range(len(names))
    ]
    return [group for group in found if len(group)]


def smooth_basis(depths: Sequence[int], kinds: Sequence[str]) -> NDArray[np.float64]:
    """[15, projections] orthogonal rows of unit mean square: smooth over depth, apart by kind.

    Kinds first, then their cosines over depth, lowest first, as far as 15 rows go.
    """
    x = (np.asarray(depths) + 0.5) / (max(depths) + 1)
    names = sorted(set(kinds))
    indicator = np.array([[float(k == name) for k in kinds] for name in names])
    wanted = NUM_COARSE - 1
    found: list[NDArray[np.float64]] = []
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
