"""The cloud's fine-tuning of the master adapter, under one of three parametrisations.

In remote mode the training of ``lora`` and ``adalora`` does not depend on what the air does, so a
trajectory (the adapter after every round) is computed once and serves every policy and SNR of a
sweep. ``masked``, the published scheme, trains under the ranks decided for the round and is
stepped through `MaskedTrainer`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airllm.lora import Adapter
from airllm.models import BaseModel
from airllm.tuning import Batch, BatchSampler, Head, collate, generator_for, losses

logger = logging.getLogger(__name__)

# Keys of the independent random streams of the cloud; stream 0 is the head's.
_BATCH_STREAM, _INIT_STREAM, _GAIN_STREAM, _DROPOUT_STREAM = 1, 2, 3, 4
_GAIN_PART = 16  # texts that are probed at once, with what one device holds
_ENOUGH = 128  # texts on which to probe, where it could be more


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How the cloud fine-tunes the head and the master adapter."""

    r_max: int = 8
    """largest rank of a projection, the rank the master trains at"""
    lora_alpha: float = 16.0
    """updates are scaled by lora_alpha / r_max, whatever rank is sent"""
    dropout: float = 0.0
    """probability of dropping an input feature of an update while training"""
    steps_per_round: int = 30
    """optimiser steps between two rounds"""
    batch_size: int = 32
    """examples a step"""
    learning_rate: float = 3e-3
    """of the adapter; AdamW"""
    schedule: str = "linear"
    """'linear': falls to 0 over the run; 'constant'"""
    weight_decay: float = 0.0
    """of the adapter"""
    head_examples: int = 200
    """labelled texts there were when the head was trained and deployed; 0: all"""
    head_steps: int = 100
    """steps of the classification head on the frozen base, before round 1"""
    head_learning_rate: float = 1e-2
    """of the head"""
    head_weight_decay: float = 0.0
    """of the head"""
    head_batch_size: int = 64
    """examples a step of the head"""
    orthogonality: float = 0.1
    """weight of the penalty |P^T P - I|^2 + |Q Q^T - I|^2 (adalora and paper alone)"""
    adalora_budget: float = 0.5
    """share of the full rank that AdaLoRA prunes down to"""
    gain_examples: int = 64
    """texts of the cloud on which the components of an update are probed, each device's its own"""

    def __post_init__(self) -> None:
        for key in ("r_max", "steps_per_round", "batch_size", "head_batch_size", "gain_examples"):
            if getattr(self, key) < 1:
                raise ValueError(f"training.{key} must be >= 1, got {getattr(self, key)}")
        if self.r_max > 255:
            raise ValueError(f"training.r_max must be <= 255 (one byte), got {self.r_max}")
        for key in ("learning_rate", "head_learning_rate", "lora_alpha"):
            value = getattr(self, key)
            if not (value > 0 and np.isfinite(value)):
                raise ValueError(f"training.{key} must be > 0 and finite, got {value}")
        for key in (
            "weight_decay", "head_weight_decay", "orthogonality", "head_examples",
            "head_steps",
        ):  # fmt: skip
            if not getattr(self, key) >= 0:
                raise ValueError(f"training.{key} must be >= 0, got {getattr(self, key)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"training.dropout must be in [0, 1), got {self.dropout}")
        if not 0.0 < self.adalora_budget <= 1.0:
            raise ValueError(
                f"training.adalora_budget must be in (0, 1], got {self.adalora_budget}"
            )
        if self.schedule not in ("linear", "constant"):
            raise ValueError(
                f"training.schedule must be 'linear' or 'constant', got {self.schedule!r}"
            )


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """The cloud's own labelled text, tokenised."""

    ids: Sequence[list[int]]
    labels: Sequence[int]

    def take(self, indices: NDArray[np.int64]) -> TrainingSet:
        """Some of it."""
        return TrainingSet([self.ids[i] for i in indices], [self.labels[i] for i in indices])

    def batch(self, base: BaseModel, indices: NDArray[np.int64]) -> Batch:
        return collate(base, [self.ids[i] for i in indices], [self.labels[i] for i in indices])


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The master after each round of training: entry r is what the cloud has in round r."""

    adapters: tuple[Adapter, ...]
    """[rounds]"""
    ranks: NDArray[np.int64]
    """[rounds, projections] under which it trained; r_max everywhere but for AdaLoRA"""
    losses: NDArray[np.float64]
    """[rounds] mean training loss"""


def probe_texts(
    base: BaseModel,
    data: TrainingSet,
    config: TrainingConfig,
    *,
    seed: int,
    round_index: int,
    num_devices: int,
    num_held: int,
) -> list[Batch]:
    """The texts on which updates are probed in one round, the same for every policy, in parts.

    Each of ``num_held`` different adapters has ``gain_examples`` to itself. Where devices hold the
    same, which takes few passes, there are more, as far as all devices' shares go.
    """
    count = max(num_held * config.gain_examples, min(num_devices * config.gain_examples, _ENOUGH))
    sampler = BatchSampler(len(data.ids), count, seed, _GAIN_STREAM)
    index = sampler.indices(round_index)
    size = min(_GAIN_PART, config.gain_examples)
    parts = [index[i : i + size] for i in range(0, len(index), size)]
    return [data.batch(base, part) for part in parts]


class _Stepper:
    """The optimiser loop that all three parametrisations share."""

    def __init__(
        self,
        base: BaseModel,
        head: Head | None,
        data: TrainingSet,
        config: TrainingConfig,
        parameters: Sequence[Tensor],
        *,
        num_rounds: int,
        seed: int,
    ) -> None:
        self.base, self.head, self.data, self.config = base, head, data, config
        self.total_steps = num_rounds * config.steps_per_round
        self.step_index = 0
        lengths = tuple(len(ids) for ids in data.ids)
        self.sampler = BatchSampler(
            len(data.ids), config.batch_size, seed, _BATCH_STREAM, lengths=lengths
        )
        self.optimiser = torch.optim.AdamW(
            parameters,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=base.device.type == "cuda" or None,
        )
        base.bank.generator = generator_for(seed, _DROPOUT_STREAM, device=base.device)

    def run_round(
        self,
        *,
        before_step: Callable[[], None] | None = None,
        penalty: Callable[[], Tensor] | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> float:
        """``steps_per_round`` steps; returns the mean loss without the penalty.

        ``after_step`` still finds the gradients in place.
        """
        config, total = self.config, torch.zeros((), device=self.base.device)
        for _ in range(config.steps_per_round):
            if config.schedule == "linear":
                share = 1.0 - self.step_index / self.total_steps
                self.optimiser.param_groups[0]["lr"] = config.learning_rate * share
            if before_step is not None:
                before_step()
            batch = self.data.batch(self.base, self.sampler.indices(self.step_index))
            loss = losses(self.base, self.head, batch)[0].mean()
            total += loss.detach()  # summed on the device: no synchronisation inside a step
            if penalty is not None:
                loss = loss + penalty()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            if after_step is not None:
                after_step(self.step_index)
            self.step_index += 1
        mean = float(total) / config.steps_per_round
        if not np.isfinite(mean):
            raise ValueError(
                f"training diverged (loss {mean}) with training.learning_rate "
                f"{config.learning_rate}; lower it"
            )
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, random stream and position; what is trained belongs to the caller."""
        generator = self.base.bank.generator
        return {
            "optimiser": self.optimiser.state_dict(),
            "generator": None if generator is None else generator.get_state(),
            "step_index": self.step_index,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.optimiser.load_state_dict(state["optimiser"])
        if self.base.bank.generator is not None:
            self.base.bank.generator.set_state(state["generator"])
        self.step_index = int(state["step_index"])


def train_lora(
    base: BaseModel,
    head: Head | None,
    data: TrainingSet,
    config: TrainingConfig,
    *,
    num_rounds: int,
    seed: int,
    on_round: Callable[[int, float], None] | None = None,
) -> Trajectory:
    """Plain LoRA (Hu et al. 2021): W + (alpha / r_max) B A, with A Gaussian and B zero at first."""
    generator = generator_for(seed, _INIT_STREAM)
    scale = config.lora_alpha / config.r_max
    down, up = [], []
    for spec in base.specs:
        a = torch.randn(1, config.r_max, spec.in_features, generator=generator)
        down.append((a * spec.in_features**-0.5).to(base.device).requires_grad_())
        up.append(
            torch.zeros(1, spec.out_features, config.r_max, device=base.device).requires_grad_()
        )
    stepper = _Stepper(base, head, data, config, [*down, *up], num_rounds=num_rounds, seed=seed)
    adapters, mean_losses = [], []
    for round_index in range(num_rounds):
        base.bank.load(down, up, scale)
        base.bank.dropout = config.dropout
        try:
            mean_losses.append(stepper.run_round())
        finally:
            base.bank.clear()
        adapters.append(
            Adapter(
                tuple(d.detach()[0].cpu().clone() for d in down),
                tuple((u.detach()[0] * scale).cpu() for u in up),
            )
        )
        logger.info("master round %d: training loss %.4f", round_index + 1, mean_losses[-1])
        if on_round is not None:
            on_round(round_index, mean_losses[-1])
    ranks = np.full((num_rounds, len(base.specs)), config.r_max)
    return Trajectory(tuple(adapters), ranks, np.array(mean_losses))


def train_adalora(
    base: BaseModel,
    head: Head | None,
    data: TrainingSet,
    config: TrainingConfig,
    *,
    num_rounds: int,
    seed: int,
    on_round: Callable[[int, float], None] | None = None,
) -> Trajectory:
    """AdaLoRA (Zhang et al. 2023) by PEFT: P diag(E) Q pruned by sensitivity to a rank budget.

    PEFT's allocator runs on its cubic schedule over the middle of the training; the ranks of a
    round are the entries of E that are not zero then.
    """
    from peft import AdaLoraConfig, get_peft_model

    total = num_rounds * config.steps_per_round
    target = max(1, round(config.r_max * config.adalora_budget))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence(seed, spawn_key=(9,)).generate_state(1)[0]))
        with warnings.catch_warnings():
            # PEFT 0.21 reads an attribute that transformers 5 has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            model: Any = get_peft_model(
                base.network,
                AdaLoraConfig(
                    init_r=config.r_max,
                    target_r=target,
                    # From a first tenth without pruning to a last third with the budget fixed.
                    tinit=total // 10,
                    tfinal=total // 3,
                    deltaT=max(1, config.steps_per_round // 10),
                    total_step=max(total, 3),
                    # PEFT divides by the number of ranks left; ours is alpha / r_max at full rank.
                    lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
                    lora_dropout=config.dropout,
                    target_modules=[spec.name for spec in base.specs],
                ),
            )
        layers: list[Any] = [base.network.get_submodule(spec.name) for spec in base.specs]
        try:
            parameters = [p for p in model.parameters() if p.requires_grad]
            stepper = _Stepper(
                base, head, data, config, parameters, num_rounds=num_rounds, seed=seed
            )
            adapters, ranks, mean_losses = [], [], []

            def penalty() -> Tensor:
                rows = [layer.lora_A["default"] for layer in layers]
                rows += [layer.lora_B["default"].T for layer in layers]
                return _orthogonality(rows, config.orthogonality)

            def allocate(step: int) -> None:
                # Gradients are still there: the allocator reads its sensitivities from them.
                model.base_model.update_and_allocate(step + 1)

            for round_index in range(num_rounds):
                mean_losses.append(stepper.run_round(penalty=penalty, after_step=allocate))
                down, up = [], []
                for layer in layers:
                    e = layer.lora_E["default"].detach()[:, 0]
                    kept = e != 0
                    scale = layer.scaling["default"] / (
                        float(layer.ranknum["default"].detach()) + 1e-5
                    )
                    down.append(layer.lora_A["default"].detach()[kept].float().cpu().clone())
                    weighted = layer.lora_B["default"].detach()[:, kept] * (e[kept] * scale)
                    up.append(weighted.float().cpu())
                adapters.append(Adapter(tuple(down), tuple(up)))
                ranks.append(adapters[-1].ranks)
                logger.info("AdaLoRA round %d: loss %.4f", round_index + 1, mean_losses[-1])
                if on_round is not None:
                    on_round(round_index, mean_losses[-1])
        finally:
            base.network = model.unload()
            base.network.requires_grad_(False)
    return Trajectory(tuple(adapters), np.stack(ranks), np.array(mean_losses))


def _orthogonality(rows: Sequence[Tensor], weight: float) -> Tensor:
    """Mean over matrices [rank, features] of |M M^T - I|_F, weighted (AdaLoRA, eq. 4)."""
    total = rows[0].new_zeros(())
    for m in rows:
        m = m.float()
        total = total + torch.linalg.matrix_norm(m @ m.T - torch.eye(len(m), device=m.device))
    return weight * total / len(rows)


class MaskedTrainer:
    """The published scheme (arXiv 2507.11515): P diag(E) Q trained under the round's ranks.

    A rank r leaves the *first* r components active, in training as on the air. Devices with
    unequal ranks share one master, so a projection trains under the largest rank among them.
    """

    def __init__(
        self,
        base: BaseModel,
        head: Head | None,
        data: TrainingSet,
        config: TrainingConfig,
        *,
        num_rounds: int,
        seed: int,
    ) -> None:
        generator = generator_for(seed, _INIT_STREAM)
        self.base, self.config = base, config

        def matrix(*shape: int) -> Tensor:
            values = 0.02 * torch.randn(1, *shape, generator=generator)
            return values.to(base.device).requires_grad_()

        self.down = [matrix(config.r_max, s.in_features) for s in base.specs]
        self.up = [matrix(s.out_features, config.r_max) for s in base.specs]
        self.weight = [
            torch.zeros(1, config.r_max, device=base.device).requires_grad_() for _ in base.specs
        ]
        self._stepper = _Stepper(
            base, head, data, config, [*self.down, *self.up, *self.weight],
            num_rounds=num_rounds, seed=seed,
        )  # fmt: skip

    def run_round(self, ranks: NDArray[np.int64]) -> Adapter:
        """Train one round under ``ranks`` [devices, projections]; the master it leaves."""
        config, base = self.config, self.base
        scale = config.lora_alpha / config.r_max
        active = ranks.max(axis=0)
        masks = [
            (torch.arange(config.r_max, device=base.device) < int(r)).float()[None] * scale
            for r in active
        ]

        def load() -> None:
            weights = [w * m for w, m in zip(self.weight, masks, strict=True)]
            base.bank.load(self.down, self.up, weights)

        def penalty() -> Tensor:
            rows = [d[0] for d in self.down] + [u[0].T for u in self.up]
            return _orthogonality(rows, config.orthogonality)

        base.bank.dropout = config.dropout
        try:
            self._stepper.run_round(before_step=load, penalty=penalty)
        finally:
            base.bank.clear()
        return self.snapshot()

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from, as tensors and numbers."""
        return {
            "parameters": [*self.down, *self.up, *self.weight],
            "stepper": self._stepper.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        own = [*self.down, *self.up, *self.weight]
        for parameter, value in zip(own, state["parameters"], strict=True):
            parameter.copy_(value)
        self._stepper.load_state_dict(state["stepper"])

    def snapshot(self) -> Adapter:
        """The master with E and the scaling folded into P, components in training order."""
        scale = self.config.lora_alpha / self.config.r_max
        return Adapter(
            tuple(d.detach()[0].cpu().clone() for d in self.down),
            tuple(
                (u.detach() * w.detach()[:, None, :])[0].cpu() * scale
                for u, w in zip(self.up, self.weight, strict=True)
            ),
        )
