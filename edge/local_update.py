"""What a device of federated mode does between its download and its upload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from airllm.lora.adapter import Adapter, svd_form
from airllm.lora.local_update import (
    LocalJob,
    LocalResult,
    LocalTraining,
    train_local,
)
from airllm.lora.privacy import Privacy
from airllm.lora.residuals import ordered
from airllm.lora.sensitivity import Importance
from airllm.models.base import BaseModel
from airllm.models.batches import BatchSampler, Examples
from airllm.models.head import Head
from edge.hardware import Hardware

# Key of the random stream of a device's batches; the device's index follows.
_BATCH_STREAM = 82
_PROBED = 64  # texts on which a device measures what parts of its update are worth
_PROBED_PART = 16


@dataclass(frozen=True, slots=True)
class LocalWork:
    """A device's own text and how it trains on it."""

    examples: Examples
    batch_size: int
    training: LocalTraining
    sends: str
    """'change' (what training added), 'adapter' (the trained components whole) or 'factors'"""
    number_format: str
    r_max: int
    """components of an update that may be sent"""
    initial: Adapter
    """the device's adapter at the deployment: zero, or the factors that the seed gives"""
    shared_down: Sequence[Tensor] | None
    """the frozen A, where only B travels"""
    hardware: Hardware
    privacy: Privacy | None = None
    """what is done to a change of B before anything of it is told"""


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished update that waits for its ranks."""

    adapter: Adapter
    """components in the order in which they would be sent"""
    utility: NDArray[np.float64]
    """[projections, r_max] of each component, by the importance that was asked for"""
    loss: float
    flops: float


@dataclass(frozen=True, slots=True)
class LocalTask:
    """What a device is asked to train in a round."""

    work: LocalWork
    device_adapter: Adapter
    """what it holds, and trains on from"""
    ranks: NDArray[np.int64]
    """[projections] to train at"""
    importance: Importance
    """by which components of what comes of it are ordered"""
    device: int
    round_index: int

    @property
    def job(self) -> LocalJob:
        """The training itself."""
        work = self.work
        # Factors that nobody has trained yet are as the seed gives them.
        device_adapter = (
            self.device_adapter.completed(work.initial)
            if work.training.is_factored
            else self.device_adapter
        )
        return LocalJob(
            device_adapter, self.ranks, self.examples_of, (self.device, self.round_index)
        )

    def examples_of(self, step: int) -> Examples:
        """The device's own texts of a step of the round."""
        work, stream = self.work, _BATCH_STREAM + 1000 * self.device
        count = len(work.examples.ids)
        sampler = BatchSampler(count, work.batch_size, work.training.seed, stream)
        index = sampler.indices(self.round_index * work.training.steps + step)
        return work.examples.take(index)

    def finish(self, base: BaseModel, head: Head | None, result: LocalResult) -> Trained:
        """The update that training left, its components in the order in which they are sent."""
        work = self.work
        if work.sends == "factors":
            # A component's place is its meaning: nothing is reordered.
            after = result.after
            if work.privacy is not None:
                key = (self.device, self.round_index)
                after = work.privacy.privatise(result.before, after, key)
            return Trained(after, after.energy(work.r_max), result.loss, result.flops)
        update = result.after if work.sends == "adapter" else result.change
        # A whole adapter takes the place of the device's; a change comes on top of it.
        at = Adapter.zero(base.specs) if work.sends == "adapter" else self.device_adapter
        probed: list[Examples] = []
        if self.importance not in ("first", "energy"):
            own = self.examples_of(0)
            own = Examples(own.ids[:_PROBED], own.labels[:_PROBED])
            probed = own.by_length(_PROBED_PART)
        found = ordered(
            base, head, [svd_form(update, work.r_max)], [at],
            importance=self.importance, r_max=work.r_max, parts=probed,
        )  # fmt: skip
        return Trained(found.adapters[0], found.utility[0], result.loss, result.flops)


def train(base: BaseModel, head: Head | None, tasks: Sequence[LocalTask]) -> list[Trained]:
    """Train an update for each task, all in the same passes and by the same `LocalTraining`."""
    results = train_local(base, head, [task.job for task in tasks], tasks[0].work.training)
    return [task.finish(base, head, r) for task, r in zip(tasks, results, strict=True)]
