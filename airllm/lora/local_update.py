"""Training a low-rank update where the text is: what a device does with its own, or the cloud."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter, svd_form
from airllm.lora.multi_lora import MultiLora
from airllm.models.base import BaseModel
from airllm.models.batches import Examples, padded_width
from airllm.models.flops import training_flops
from airllm.models.head import Head
from airllm.models.projections import ProjectionSpec
from airllm.streams import generator_for

STARTS = ("device", "fresh")
_FACTOR_STREAM, _FRESH_STREAM = 80, 81


@dataclass(frozen=True, slots=True)
class LocalTraining:
    """How an update is trained, the same on every device."""

    steps: int
    learning_rate: float
    scale: float
    """lora_alpha / r_max: the trained up factors are multiplied by it"""
    start: str
    """'device': the strongest components of the device's adapter go on; 'fresh': A random, B 0"""
    is_factored: bool
    """True: the device adapter's factors themselves are trained, components keep their places"""
    trains_down: bool
    """False: A is frozen (FFA-LoRA)"""
    seed: int


@dataclass(frozen=True, slots=True)
class LocalResult:
    """What training left."""

    before: Adapter
    """the trained components as they were at the start"""
    after: Adapter
    """the same components after training, the scale folded in"""
    loss: float
    """mean over the steps"""
    flops: float

    @property
    def change(self) -> Adapter:
        """after - before, of up to twice the trained ranks."""
        return self.after.minus(self.before)


@dataclass(frozen=True, slots=True)
class LocalJob:
    """What is trained, on what."""

    device_adapter: Adapter
    ranks: NDArray[np.int64]
    """[projections] components that are trained on top of the device's adapter"""
    examples_of: Callable[[int], Examples]
    """what step n is on"""
    key: tuple[int, ...]
    """tells apart the random factors of devices and rounds"""


def initial_factors(specs: Sequence[ProjectionSpec], r_max: int, seed: int) -> Adapter:
    """A Gaussian, B zero: what everybody starts from where factors are trained, from the seed."""
    generator = generator_for(seed, _FACTOR_STREAM)
    return Adapter(
        tuple(
            torch.randn(r_max, s.in_features, generator=generator) * s.in_features**-0.5
            for s in specs
        ),
        tuple(torch.zeros(s.out_features, r_max) for s in specs),
    )


def train_local(
    base: BaseModel, head: Head | None, jobs: Sequence[LocalJob], training: LocalTraining
) -> list[LocalResult]:
    """Train each job's components on top of the device's adapter, all in the same passes.

    By AdamW without decay, at a constant rate: a device keeps no optimiser between rounds. What is
    held and not trained stays loaded and frozen. A job's result is what it is alone but for the
    order of sums, and for what AdamW makes of that. Raises ValueError when training diverges.
    """
    starts = [_split(base, job.device_adapter, job.ranks, training, job.key) for job in jobs]
    results = [LocalResult(before, before, 0.0, 0.0) for _, before in starts]
    trained = [i for i, (_, before) in enumerate(starts) if before.ranks.any()]
    if not trained:
        return results
    lora = MultiLora(
        base, head, [starts[i][0] for i in trained], [starts[i][1] for i in trained],
        scale=training.scale, trains_down=training.trains_down,
    )  # fmt: skip
    optimiser = torch.optim.AdamW(
        [lora.values], lr=training.learning_rate, weight_decay=0.0, fused=True
    )
    total = torch.zeros(len(trained), dtype=torch.float64, device=base.device)
    flops = np.zeros(len(trained))
    for step in range(training.steps):
        examples = [jobs[i].examples_of(step) for i in trained]
        total += lora.backward(lora.microbatches(examples))
        optimiser.step()
        # A device's own batch is padded to its longest text.
        flops += [
            training_flops(base, (len(own.ids), padded_width(base, own.ids)), jobs[i].ranks)
            for i, own in zip(trained, examples, strict=True)
        ]
    for place, (i, after) in enumerate(zip(trained, lora.adapters(), strict=True)):
        mean = _mean(float(total[place]), training)
        results[i] = LocalResult(starts[i][1], after, mean, float(flops[place]))
    return results


def _mean(total: float, training: LocalTraining) -> float:
    """Mean loss over the steps; raises ValueError where training diverged."""
    mean = total / training.steps
    if not np.isfinite(mean):
        raise ValueError(
            f"local training diverged (loss {mean}) with federated.local_learning_rate "
            f"{training.learning_rate}; lower it"
        )
    return mean


def _split(
    base: BaseModel,
    device_adapter: Adapter,
    ranks: NDArray[np.int64],
    training: LocalTraining,
    key: tuple[int, ...],
) -> tuple[Adapter, Adapter]:
    """What stays frozen, and the components that are trained as they start."""
    if training.is_factored:
        return Adapter.zero(base.specs), device_adapter.truncate(ranks)
    if training.start == "fresh" or not device_adapter.ranks.any():
        frozen, own = device_adapter, Adapter.zero(base.specs)
    else:
        form = _without_zeros(svd_form(device_adapter))
        own = form.truncate(ranks)
        frozen = Adapter(
            tuple(d[len(o) :] for d, o in zip(form.down, own.down, strict=True)),
            tuple(u[:, o.shape[1] :] for u, o in zip(form.up, own.up, strict=True)),
        )
    generator = generator_for(training.seed, _FRESH_STREAM, *key)
    down, up = [], []
    for spec, rank, d, u in zip(base.specs, ranks, own.down, own.up, strict=True):
        fresh = torch.randn(int(rank), spec.in_features, generator=generator)
        # Rows of A of about unit length, B with the size: steps are as large as from a fresh start.
        length = d.norm(dim=1).clamp_min(1e-12)
        missing = int(rank) - len(d)
        down.append(torch.cat([d / length[:, None], fresh[:missing] * spec.in_features**-0.5]))
        up.append(torch.cat([u * length, torch.zeros(spec.out_features, missing)], dim=1))
    return frozen, Adapter(tuple(down), tuple(up))


def _without_zeros(form: Adapter) -> Adapter:
    """An update in SVD form, without the components that are zero: nothing could train them."""
    return form.truncate((form.energy(int(form.ranks.max(initial=0))) > 0).sum(axis=1))
