"""What each component of an update would do to the loss, to first order, before it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airllm.lora import Adapter, stack
from airllm.models import BaseModel
from airllm.tuning import Batch, Head, losses

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Probe:
    """Derivatives of the loss with respect to a scale in front of every component, at scale 0.

    For component i = sigma u v^T of a projection with weight W the derivative is
    <dL/dW, sigma u v^T>. Arrays are [devices, projections, rank], zero where there is no component.
    """

    gain: Array
    """mean over the texts of minus the derivative: the first-order decrease of the loss, nats"""
    fisher: Array
    """mean over the texts of its square: the empirical Fisher information of the scale"""
    num_texts: int

    @property
    def gain_variance(self) -> Array:
        """Variance of ``gain`` as an estimate from so many texts."""
        return np.maximum(self.fisher - self.gain**2, 0.0) / max(self.num_texts - 1, 1)


def probe(
    base: BaseModel,
    head: Head | None,
    held: Sequence[Adapter],
    candidates: Sequence[Adapter],
    batches: Sequence[Batch],
    *,
    width: int,
) -> Probe:
    """Probe every device's candidate components at what the device holds now.

    ``width`` is the size of the rank axis of the result. One backward pass for each device and
    batch, in which every text has a scale of its own; all devices see the same texts.
    """
    count = _count(base, batches)
    num_texts = sum(len(batch.labels) for batch in batches)
    shape = (len(held), len(base.specs), width)
    total, squares = np.zeros(shape), np.zeros(shape)
    for i, (have, candidate) in enumerate(zip(held, candidates, strict=True)):
        if not candidate.ranks.any():
            continue
        down, up = stack([have.plus(candidate)])
        known = [len(d) for d in have.down]
        for batch in batches:
            scale = []
            for p, factor in enumerate(down):
                weight = torch.zeros(1, len(batch.labels), factor.shape[1])
                weight[:, :, : known[p]] = 1.0
                scale.append(weight.to(base.device).requires_grad_())
            base.bank.load(
                [d.to(base.device) for d in down], [u.to(base.device) for u in up], scale
            )
            try:
                loss, _ = losses(base, head, batch)
                # In a causal model a text counts by its tokens.
                (loss.sum() * (num_texts / count)).backward()
            finally:
                base.bank.clear()
            for p, s in enumerate(scale):
                each = _derivatives(s, known[p])  # [batch, rank]
                total[i, p, : each.shape[1]] -= each.sum(axis=0)
                squares[i, p, : each.shape[1]] += (each**2).sum(axis=0)
    return Probe(total / num_texts, squares / num_texts, num_texts)


def _derivatives(scale: Tensor, first: int) -> Array:
    if scale.grad is None:  # no component of this projection was loaded
        return np.zeros((scale.shape[1], 0))
    return scale.grad[0, :, first:].double().cpu().numpy()


def _count(base: BaseModel, batches: Sequence[Batch]) -> int:
    """Terms of the loss: texts, or predicted tokens."""
    if base.config.task == "causal":
        return sum(len(batch.predicted) for batch in batches)
    return sum(len(batch.labels) for batch in batches)


def shrunk_gain(found: Probe, energy: Array) -> Array:
    """Gains [devices, projections, rank] less their noise, by empirical Bayes.

    A component is in the update because the master moved along it while its loss fell, so its gain
    is expected to grow with its ``energy`` sigma^2: per projection, gain / sigma is taken as normal
    around k sigma, with k and the spread estimated over devices and components by moments, and
    measured with the noise that the texts' own spread tells. The posterior mean lies between what
    was measured and what was expected, nearer the measurement the less noise it has.
    """
    sigma = np.sqrt(energy)
    there = sigma > 0
    safe = np.where(there, sigma, 1.0)
    slope = np.where(there, found.gain / safe, 0.0)  # derivative along the unit component
    noise = np.where(there, found.gain_variance / safe**2, 0.0)
    axes = (0, 2)
    k = (slope * sigma).sum(axis=axes) / np.maximum((sigma**2).sum(axis=axes), 1e-30)
    expected = np.maximum(k, 0.0)[None, :, None] * sigma
    number = np.maximum(there.sum(axis=axes), 1)
    spread = np.where(there, (slope - expected) ** 2 - noise, 0.0).sum(axis=axes) / number
    spread = np.maximum(spread, 0.0)[None, :, None]
    trust = spread / np.maximum(spread + noise, 1e-30)
    return np.where(there, sigma * (expected + trust * (slope - expected)), 0.0)
