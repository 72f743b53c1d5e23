"""Training a low-rank update where the text is: what a device does with its own, or the cloud."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter, svd_form
from airllm.lora.evaluation import mean_loss
from airllm.lora.multi_lora import Fleet, Member
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
    base: BaseModel,
    head: Head | None,
    job: LocalJob,
    training: LocalTraining,
) -> LocalResult:
    """Train a job's components on top of the device's adapter; the base is left bare.

    By AdamW without decay, at a constant rate: a device keeps no optimiser between rounds. What is
    held and not trained stays loaded and frozen. Raises ValueError when training diverges.
    """
    frozen, before = _split(base, job.device_adapter, job.ranks, training, job.key)
    scale, device, dtype = training.scale, base.device, torch.get_default_dtype()
    down = [d.to(device, dtype)[None].clone() for d in before.down]  # [1, rank, in]
    up = [(u / scale).to(device, dtype)[None].clone() for u in before.up]  # [1, out, rank]
    trained = [f for f in ([*up, *down] if training.trains_down else up) if f.numel()]
    if not trained:
        return LocalResult(before, before, 0.0, 0.0)
    optimiser = torch.optim.AdamW(
        [f.requires_grad_() for f in trained], lr=training.learning_rate, weight_decay=0.0,
        fused=device.type == "cuda" or None,
    )  # fmt: skip
    kept_down = [d.to(device)[None] for d in frozen.down]
    kept_up = [u.to(device)[None] for u in frozen.up]
    total, flops = torch.zeros((), device=device), 0.0
    try:
        for step in range(training.steps):
            batch = job.examples_of(step).batch(base)
            base.bank.load(
                [torch.cat([d, k], dim=1) for d, k in zip(down, kept_down, strict=True)],
                [torch.cat([u * scale, k], dim=2) for u, k in zip(up, kept_up, strict=True)],
            )
            loss = mean_loss(base, head, batch)
            total += loss.detach()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            count, width = batch.input_ids.shape
            flops += training_flops(base, (count, width), job.ranks)
    finally:
        base.bank.clear()
    after = Adapter(
        tuple(d.detach()[0].cpu() for d in down),
        tuple((u.detach()[0] * scale).cpu() for u in up),
    )
    return LocalResult(before, after, _mean(float(total), training), flops)


def train_local_together(
    base: BaseModel, head: Head | None, jobs: Sequence[LocalJob], training: LocalTraining
) -> list[LocalResult]:
    """`train_local` of many devices in the same passes (`airllm.lora.multi_lora`).

    The results are those of each alone but for the order of sums, and with them for the last digits
    of a loss, and for what AdamW makes of these.
    """
    scale = training.scale
    starts = [_split(base, job.device_adapter, job.ranks, training, job.key) for job in jobs]
    results = [LocalResult(before, before, 0.0, 0.0) for _, before in starts]
    trained = [i for i, (_, before) in enumerate(starts) if before.ranks.any()]
    if not trained:
        return results
    members = [
        Member(
            Adapter(before.down, tuple(u / scale for u in before.up)),
            training.learning_rate,
            scale,
            frozen,
        )
        for frozen, before in (starts[i] for i in trained)
    ]
    total = torch.zeros(len(trained), dtype=torch.float64, device=base.device)
    flops = np.zeros(len(trained))
    with Fleet(base, head, members, trains_down=training.trains_down) as fleet:
        for step in range(training.steps):
            examples = [jobs[i].examples_of(step) for i in trained]
            total += fleet.step(examples)
            flops += [
                training_flops(base, (len(own.ids), padded_width(base, own.ids)), jobs[i].ranks)
                for i, own in zip(trained, examples, strict=True)
            ]
        for place, i in enumerate(trained):
            after = fleet.adapter(place).scaled(scale)
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
