"""What a device of federated mode does between its download and its upload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from airllm.candidates import ordered
from airllm.local import LocalTraining, train_local
from airllm.lora import Adapter, svd_form
from airllm.models import BaseModel
from airllm.policy import Importance
from airllm.privacy import Privacy
from airllm.tuning import Batch, BatchSampler, Head, bucket, collate
from edge.profile import Hardware

# Key of the random stream of a device's batches; the device's index follows.
_BATCH_STREAM = 82
_PROBED = 64  # texts on which a device measures what parts of its update are worth
_PROBE_BATCH = 16


@dataclass(frozen=True, slots=True)
class LocalWork:
    """A device's own text and how it trains on it."""

    ids: Sequence[list[int]]
    labels: Sequence[int]
    batch_size: int
    training: LocalTraining
    sends: str
    """'change' (what training added), 'adapter' (the trained components whole) or 'factors'"""
    number_format: str
    r_max: int
    """components of an update that may be sent"""
    initial: Adapter
    """held from the deployment on: zero, or the factors that the seed gives"""
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
    worth: NDArray[np.float64]
    """[projections, r_max] of each component, by the importance that was asked for"""
    loss: float
    flops: float


def train(
    base: BaseModel,
    head: Head | None,
    held: Adapter,
    work: LocalWork,
    *,
    ranks: NDArray[np.int64],
    importance: Importance,
    device: int,
    round_index: int,
) -> Trained:
    """Train at ``ranks`` [projections] from what is held, and order what came of it."""
    steps, size = work.training.steps, work.batch_size
    sampler = BatchSampler(len(work.ids), size, work.training.seed, _BATCH_STREAM + 1000 * device)

    def batch_of(step: int) -> Batch:
        index = sampler.indices(round_index * steps + step)
        return collate(base, [work.ids[i] for i in index], [work.labels[i] for i in index])

    if work.training.is_factored:
        # Factors that nobody has trained yet are as the seed gives them.
        held = held.completed(work.initial)
    result = train_local(
        base, head, held, ranks, batch_of, work.training, key=(device, round_index)
    )
    if work.sends == "factors":
        # A component's place is its meaning: nothing is reordered.
        after = result.after
        if work.privacy is not None:
            after = work.privacy.privatise(result.before, after, (device, round_index))
        return Trained(after, after.energy(work.r_max), result.loss, result.flops)
    update = result.after if work.sends == "adapter" else result.change
    # A whole adapter takes the place of what is held; a change comes on top of it.
    at = Adapter.zero(base.specs) if work.sends == "adapter" else held
    probed: list[Batch] = []
    if importance not in ("first", "energy"):
        index = sampler.indices(round_index * steps)[:_PROBED]
        probed = bucket(
            base, [work.ids[i] for i in index], [work.labels[i] for i in index], _PROBE_BATCH
        )
    found = ordered(
        base, head, [svd_form(update, work.r_max)], [at],
        importance=importance, r_max=work.r_max, batches=probed,
    )  # fmt: skip
    return Trained(found.adapters[0], found.worth[0], result.loss, result.flops)
