"""What each component of an update would do to the loss, before it is sent."""

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
    """Decreases of the loss to first order, in nats: minus derivatives at a scale of 0.

    For component i = sigma u v^T of a projection with weight W and a scale in front of it the
    derivative is <dL/dW, sigma u v^T>. Zero where there is no component.
    """

    by_text: list[NDArray[np.float32]]
    """a table [texts, projections, rank] for each device, of its own texts at what it holds; their
    mean is the decrease of the mean loss"""
    pooled_gain: Array
    """[devices, projections, rank] mean over all texts, each one's gradient being taken at what the
    device holds whose text it is: with less noise than a device's own, and not quite its place"""

    @property
    def gain(self) -> Array:
        """[devices, projections, rank] mean over a device's own texts."""
        return np.stack([each.mean(axis=0, dtype=float) for each in self.by_text])

    @property
    def fisher(self) -> Array:
        """[devices, projections, rank] mean square: the empirical Fisher information of a scale."""
        return np.stack([(each.astype(float) ** 2).mean(axis=0) for each in self.by_text])


def probe(
    base: BaseModel,
    head: Head | None,
    held: Sequence[Adapter],
    candidates: Sequence[Adapter],
    parts: Sequence[Batch],
    *,
    width: int,
    is_pooled: bool = True,
) -> Probe:
    """Probe every device's candidate components at what the device holds now.

    The texts, in ``parts``, are dealt out to the devices by turns; where there are too few, some
    parts serve several. ``width`` is the size of the rank axis of the result. One backward pass for
    each device and part, in which every text has a scale of its own. Without ``is_pooled``, which
    takes a dense gradient, the pooled gain is the device's own.
    """
    by_text: list[NDArray[np.float32]] = []
    # Gradients of the summed loss with respect to every weight, all texts together; one device's
    # say nothing that its texts do not.
    slopes = None
    if is_pooled and len(held) > 1 and any(c.ranks.any() for c in candidates):
        shapes = [(spec.out_features, spec.in_features) for spec in base.specs]
        slopes = [torch.zeros(shape, device=base.device) for shape in shapes]
    total = 0
    for i, (have, candidate) in enumerate(zip(held, candidates, strict=True)):
        if slopes is None and not candidate.ranks.any():
            by_text.append(np.zeros((1, len(base.specs), width), dtype=np.float32))
            continue
        own = parts[i % len(parts) :: len(held)]
        count, num_texts = _count(base, own), sum(len(batch.labels) for batch in own)
        down, up = stack([have.plus(candidate)])
        known = [len(d) for d in have.down]
        tables = []
        for batch in own:
            scale = []
            for p, factor in enumerate(down):
                weight = torch.zeros(1, len(batch.labels), factor.shape[1])
                weight[:, :, : known[p]] = 1.0
                scale.append(weight.to(base.device).requires_grad_())
            base.bank.load(
                [d.to(base.device) for d in down], [u.to(base.device) for u in up], scale
            )
            base.bank.slopes = slopes
            try:
                loss, _ = losses(base, head, batch)
                loss.sum().backward()
            finally:
                base.bank.clear()
            table = np.zeros((len(batch.labels), len(down), width), dtype=np.float32)
            for p, s in enumerate(scale):
                if s.grad is not None:  # else no component of this projection was loaded
                    each = s.grad[0, :, known[p] :].float().cpu().numpy()  # [batch, rank]
                    # In a causal model a text counts by its tokens.
                    table[:, p, : each.shape[1]] = -each * (num_texts / count)
            tables.append(table)
        by_text.append(np.concatenate(tables))
        total += count
    if slopes is None:
        return Probe(by_text, np.stack([each.mean(axis=0, dtype=float) for each in by_text]))
    return Probe(by_text, _along(slopes, candidates, width) / -total)


def _along(slopes: Sequence[Tensor], candidates: Sequence[Adapter], width: int) -> Array:
    """[devices, projections, rank] inner products of components with matrices [out, in]."""
    found = np.zeros((len(candidates), len(slopes), width))
    for i, candidate in enumerate(candidates):
        for p, (down, up) in enumerate(zip(candidate.down, candidate.up, strict=True)):
            along = up.to(slopes[p].device).mT @ slopes[p]  # [rank, in]
            each = (along * down.to(along.device)).sum(dim=1)
            found[i, p, : len(each)] = each.double().cpu().numpy()
    return found


def _count(base: BaseModel, batches: Sequence[Batch]) -> int:
    """Terms of the loss: texts, or predicted tokens."""
    if base.config.task == "causal":
        return sum(len(batch.predicted) for batch in batches)
    return sum(len(batch.labels) for batch in batches)


def second_order_worth(found: Probe, cost: NDArray[np.floating]) -> Array:
    """[devices, projections, rank] decrease of the loss by each component after those before it.

    A set S of components is expected to lower the loss by the sum of their pooled gains less half
    the mean, over the device's texts n, of (sum of d_ni over S)^2, where d_ni is by how much
    component i lowers the loss of text n to first order: the quadratic model of the loss with the
    empirical Fisher information in the Hessian's place. So what pulls a text where others pull it
    already is worth less and less, and no set steps too far. Components are taken one after
    another, the one that brings most for its ``cost`` [projections] first; one that would bring
    nothing any more has no worth.
    """
    worth = np.zeros_like(found.pooled_gain)
    for i, each in enumerate(found.by_text):
        table = each.reshape(len(each), -1).astype(float)  # [texts, components]
        paid = np.repeat(cost, each.shape[2])
        # What each one would bring now.
        brings = found.pooled_gain[i].reshape(-1) - 0.5 * (table**2).mean(axis=0)
        value = worth[i].reshape(-1)  # a view
        last = np.inf
        for _ in range(len(brings)):
            k = int(np.argmax(brings / paid))
            if not brings[k] > 0.0:
                break
            # Never denser than the one before it, so that a plan takes them in this order.
            last = min(last, brings[k] / paid[k])
            value[k] = last * paid[k]
            brings -= table.T @ table[:, k] / len(table)
            brings[k] = -np.inf
    return worth
