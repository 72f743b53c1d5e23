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


def probe(
    base: BaseModel,
    head: Head | None,
    held: Sequence[Adapter],
    candidates: Sequence[Adapter],
    parts: Sequence[Batch],
    *,
    width: int,
) -> Probe:
    """Probe every device's candidate components at what the device holds now.

    Each device has texts of its own (`deal`). ``width`` is the size of the rank axis of the result.
    One backward pass for each device and part, in which every text has a scale of its own.
    """
    shape = (len(held), len(base.specs), width)
    gain, fisher = np.zeros(shape), np.zeros(shape)
    dealt = deal(parts, len(held))
    for i, (have, candidate, batches) in enumerate(zip(held, candidates, dealt, strict=True)):
        if not candidate.ranks.any():
            continue
        count, num_texts = _count(base, batches), sum(len(batch.labels) for batch in batches)
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
                gain[i, p, : each.shape[1]] -= each.sum(axis=0) / num_texts
                fisher[i, p, : each.shape[1]] += (each**2).sum(axis=0) / num_texts
    return Probe(gain, fisher)


def deal(parts: Sequence[Batch], devices: int) -> list[Sequence[Batch]]:
    """[devices] parts of the texts, by turns; where there are too few, some serve several."""
    return [parts[i % len(parts) :: devices] for i in range(devices)]


def _derivatives(scale: Tensor, first: int) -> Array:
    if scale.grad is None:  # no component of this projection was loaded
        return np.zeros((scale.shape[1], 0))
    return scale.grad[0, :, first:].double().cpu().numpy()


def _count(base: BaseModel, batches: Sequence[Batch]) -> int:
    """Terms of the loss: texts, or predicted tokens."""
    if base.config.task == "causal":
        return sum(len(batch.predicted) for batch in batches)
    return sum(len(batch.labels) for batch in batches)


def pooled_gain(
    base: BaseModel,
    head: Head | None,
    held: Sequence[Adapter],
    candidates: Sequence[Adapter],
    parts: Sequence[Batch],
    *,
    width: int,
) -> Array:
    """[candidates, projections, rank] first-order decreases of the loss, nats, by all texts.

    Devices that hold different things go through the model with texts of their own; the mean of all
    these gradients with respect to the weights serves every candidate. Against `probe` a gain has
    the noise of a device's texts less, and is taken at weights near the device's own.
    """
    # Gradients of the summed loss with respect to every weight.
    slopes = [torch.zeros(s.out_features, s.in_features, device=base.device) for s in base.specs]
    count = 0
    for have, own in zip(held, deal(parts, len(held)), strict=True):
        for batch in own:
            base.bank.load_adapters([have], base.device)
            base.bank.slopes = slopes
            try:
                loss, _ = losses(base, head, batch)
                loss.sum().backward()
            finally:
                base.bank.clear()
            count += len(loss)
    found = np.zeros((len(candidates), len(slopes), width))
    down, up = stack(candidates)
    for p, slope in enumerate(slopes):
        d, u = down[p].to(slope.device), up[p].to(slope.device)
        each = ((u.mT @ slope) * d).sum(dim=2) / -count  # [devices, rank]
        found[:, p, : each.shape[1]] = each.double().cpu().numpy()
    return found
