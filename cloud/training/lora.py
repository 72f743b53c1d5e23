"""The cloud's fine-tuning of the master adapter, and what its other ways (`cloud.training.adalora`,
`cloud.training.masked`) share with it.

In remote mode the training of LoRA and AdaLoRA does not depend on what the air does, so a
trajectory (the adapter after every round) is computed once and serves every policy and SNR of a
sweep. The published scheme trains under the ranks decided for the round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pydantic.dataclasses
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from airllm.bounds import NUMPY, STRICT, Count, CountOrZero, NonNegative, Positive
from airllm.lora.adapter import Adapter
from airllm.lora.multi_lora import MultiLora
from airllm.models.base import BaseModel
from airllm.models.batches import BatchSampler, Examples
from airllm.models.head import Head
from airllm.models.microbatches import whole
from airllm.streams import generator_for

logger = logging.getLogger(__name__)

# Keys of the independent random streams of the cloud; stream 0 is the head's.
_BATCH_STREAM, INIT_STREAM, _GAIN_STREAM, _DROPOUT_STREAM = 1, 2, 3, 4
_GAIN_PART = 16  # texts at most that are probed at once, with what one device holds
_ENOUGH = 128  # texts on which to probe, where it could be more


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class TrainingConfig:
    """How the cloud fine-tunes the head and the master adapter."""

    r_max: Annotated[int, Field(ge=1, le=255), NUMPY] = 8
    """largest rank of a projection, the rank the master trains at"""
    lora_alpha: Positive = 16.0
    """updates are scaled by lora_alpha / r_max, whatever rank is sent"""
    dropout: Annotated[float, Field(ge=0, lt=1), NUMPY] = 0.0
    """probability of dropping an input feature of an update while training"""
    steps_per_round: Count = 30
    """optimiser steps between two rounds"""
    batch_size: Count = 32
    """examples a step"""
    learning_rate: Positive = 3e-3
    """of the adapter; AdamW"""
    schedule: Literal["linear", "constant"] = "linear"
    """'linear': falls to 0 over the run; 'constant'"""
    weight_decay: NonNegative = 0.0
    """of the adapter"""
    head_examples: CountOrZero = 200
    """labelled texts there were when the head was trained and deployed; 0: all"""
    head_steps: CountOrZero = 100
    """steps of the classification head on the frozen base, before round 1"""
    head_learning_rate: Positive = 1e-2
    """of the head"""
    head_weight_decay: NonNegative = 0.0
    """of the head"""
    head_batch_size: Count = 64
    """examples a step of the head"""
    orthogonality: NonNegative = 0.1
    """weight of the penalty |P^T P - I|^2 + |Q Q^T - I|^2 (adalora and paper alone)"""
    adalora_budget: Annotated[float, Field(gt=0, le=1), NUMPY] = 0.5
    """share of the full rank that AdaLoRA prunes down to"""
    gain_examples: Count = 64
    """texts of the cloud on which the components of an update are probed, each device's its own"""


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
    data: Examples,
    config: TrainingConfig,
    *,
    seed: int,
    round_index: int,
    num_devices: int,
    num_adapters: int,
) -> list[Examples]:
    """The texts on which updates are probed in one round, the same for every policy, in parts.

    Each of ``num_adapters`` different adapters has ``gain_examples`` to itself. Where all have
    the same adapter, which takes few passes, there are more, as far as all devices' shares go.
    """
    count = max(
        num_adapters * config.gain_examples, min(num_devices * config.gain_examples, _ENOUGH)
    )
    sampler = BatchSampler(len(data.ids), count, seed, _GAIN_STREAM)
    index = sampler.indices(round_index)
    # As many parts for each adapter, so that all have their share.
    number = num_adapters * -(-len(index) // (num_adapters * _GAIN_PART))
    parts = np.array_split(index, min(number, len(index)))
    return [data.take(part) for part in parts]


class Stepper:
    """The optimiser loop that all ways of training share."""

    def __init__(
        self,
        data: Examples,
        config: TrainingConfig,
        parameters: Sequence[Tensor],
        backward: Callable[[Examples], Tensor],
        *,
        num_rounds: int,
        seed: int,
    ) -> None:
        """``backward`` gives the mean loss on a step's examples and leaves the gradient, of that
        and of what else is to be small, with the parameters, in place of the last one."""
        self.data, self.config, self._backward = data, config, backward
        self.total_steps = num_rounds * config.steps_per_round
        self.step_index = 0
        lengths = tuple(len(ids) for ids in data.ids)
        self.sampler = BatchSampler(
            len(data.ids), config.batch_size, seed, _BATCH_STREAM, lengths=lengths
        )
        self.optimiser = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    def run_round(self, *, after_step: Callable[[int], None] | None = None) -> float:
        """``steps_per_round`` steps; returns the mean loss.

        ``after_step`` still finds the gradients in place.
        """
        config, found = self.config, []
        for _ in range(config.steps_per_round):
            if config.schedule == "linear":
                share = 1.0 - self.step_index / self.total_steps
                self.optimiser.param_groups[0]["lr"] = config.learning_rate * share
            found.append(self._backward(self.data.take(self.sampler.indices(self.step_index))))
            self.optimiser.step()
            if after_step is not None:
                after_step(self.step_index)
            self.step_index += 1
        mean = float(torch.stack(found).mean())  # no synchronisation inside a step
        if not np.isfinite(mean):
            raise ValueError(
                f"training diverged (loss {mean}) with training.learning_rate "
                f"{config.learning_rate}; lower it"
            )
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Optimiser and position; what is trained belongs to the caller."""
        return {"optimiser": self.optimiser.state_dict(), "step_index": self.step_index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.optimiser.load_state_dict(state["optimiser"])
        self.step_index = int(state["step_index"])


def dropout_generator(base: BaseModel, seed: int) -> torch.Generator:
    """What decides which inputs of the master's updates are dropped."""
    return generator_for(seed, _DROPOUT_STREAM, device=base.device)


def train_lora(
    base: BaseModel,
    head: Head | None,
    data: Examples,
    config: TrainingConfig,
    *,
    num_rounds: int,
    seed: int,
) -> Trajectory:
    """Plain LoRA (Hu et al. 2021): W + (alpha / r_max) B A, with A Gaussian and B zero at first."""
    generator = generator_for(seed, INIT_STREAM)
    down = tuple(
        torch.randn(config.r_max, spec.in_features, generator=generator) * spec.in_features**-0.5
        for spec in base.specs
    )
    up = tuple(torch.zeros(spec.out_features, config.r_max) for spec in base.specs)
    lora = MultiLora(
        base, head, trained=[Adapter(down, up)], scale=config.lora_alpha / config.r_max,
        dropout=config.dropout, generator=dropout_generator(base, seed),
    )  # fmt: skip

    def backward(examples: Examples) -> Tensor:
        return lora.backward([whole(base, examples)])[0]

    stepper = Stepper(data, config, [lora.values], backward, num_rounds=num_rounds, seed=seed)
    adapters, mean_losses = [], []
    for round_index in range(num_rounds):
        mean_losses.append(stepper.run_round())
        adapters.append(lora.adapters()[0])
        logger.info("master round %d: training loss %.4f", round_index + 1, mean_losses[-1])
    ranks = np.full((num_rounds, len(base.specs)), config.r_max)
    return Trajectory(tuple(adapters), ranks, np.array(mean_losses))
