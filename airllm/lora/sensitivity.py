"""What each component of an update would do to the loss, before it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from airllm.lora.adapter import Adapter
from airllm.lora.multi_lora import MultiLora
from airllm.models.base import BaseModel
from airllm.models.batches import Examples
from airllm.models.head import Head
from airllm.models.losses import predictions
from airllm.models.microbatches import whole
from airllm.streams import generator_for

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What components do to the loss, in nats, each with a scale in front of it, at a scale of 0.

    To first order component i = sigma u v^T of a projection with weight W lowers the loss by
    -<dL/dW, sigma u v^T>. Zero where there is no component.
    """

    by_text: list[NDArray[np.float32]]
    """a table of decreases [texts, projections, rank] for each device, of its own texts at what it
    holds; their mean is the decrease of the mean loss"""
    pooled_gain: Array
    """[devices, projections, rank] mean over all texts, each one's gradient being taken at what the
    device holds whose text it is: with less noise than a device's own, and not quite its place"""
    curvature: list[NDArray[np.float32]] | None = None
    """a table [texts, projections, rank] for each device, of its own texts at what it holds, with
    signs at random: over their draw the mean of its rows' outer products is, without bias, the
    Fisher information of the components' scales"""

    @property
    def gain(self) -> Array:
        """[devices, projections, rank] mean over a device's own texts."""
        return np.stack([each.mean(axis=0, dtype=float) for each in self.by_text])

    @property
    def fisher(self) -> Array:
        """[devices, projections, rank] mean square: the empirical Fisher information of a scale."""
        return np.stack([(each.astype(float) ** 2).mean(axis=0) for each in self.by_text])


def measure_sensitivity(
    base: BaseModel,
    head: Head | None,
    device_adapters: Sequence[Adapter],
    residuals: Sequence[Adapter],
    parts: Sequence[Examples],
    *,
    width: int,
    is_pooled: bool = True,
    with_curvature: bool = False,
) -> Sensitivity:
    """Probe every device's components of its residual at what the device holds now.

    The texts, in ``parts``, are dealt out to the devices by turns; where there are too few, some
    parts serve several. ``width`` is the size of the rank axis of the result. One backward pass for
    each device and part shows every projection's input x and the gradient delta of its output: by a
    component sigma u v^T the loss changes by the sum over tokens of sigma (v^T x) (u^T delta).
    ``with_curvature`` there is a second one. Without ``is_pooled`` the pooled gain is the device's
    own.
    """
    dealt = [parts[i % len(parts) :: len(device_adapters)] for i in range(len(device_adapters))]
    if is_pooled and len(device_adapters) > 1 and any(c.ranks.any() for c in residuals):
        sums = _Sums(base, residuals)
        tables = [
            sums.measure(head, i, device_adapters[i], dealt[i], width, with_curvature)
            for i in range(len(device_adapters))
        ]
        pooled = sums.pooled_gain(width)
    else:
        nothing = np.zeros((2, 1, len(base.specs), width), dtype=np.float32)
        tables = [
            _Sums(base, [residual]).measure(head, 0, have, own, width, with_curvature)
            if residual.ranks.any()
            else nothing
            for have, residual, own in zip(device_adapters, residuals, dealt, strict=True)
        ]
        pooled = np.stack([each[0].mean(axis=0, dtype=float) for each in tables])
    curvature = [each[1] for each in tables] if with_curvature else None
    return Sensitivity([each[0] for each in tables], pooled, curvature)


class _Sums:
    """By what each device's components change one sum of losses, over texts of all devices.

    For each projection either the changes themselves are summed, or the gradient of its weight,
    whichever takes fewer multiplications: with many devices the gradient.
    """

    def __init__(self, base: BaseModel, residuals: Sequence[Adapter]) -> None:
        self.base, self.residuals, self.count = base, residuals, 0
        self.dtype = torch.get_default_dtype()
        ranks = np.stack([residual.ranks for residual in residuals])
        self._ends = np.cumsum(ranks, axis=0)  # [devices, projections] of each one's components
        self._all: list[_Factors | None] = []
        self._sums: list[Tensor] = []  # [components of all devices], or [out, in]
        for p, spec in enumerate(base.specs):
            # What the device itself sends is multiplied in either case.
            others = ranks[:, p].sum() - ranks[:, p].mean()
            shape: tuple[int, ...] = (spec.out_features, spec.in_features)
            if spec.in_features * spec.out_features < others * spec.params_per_rank:
                self._all.append(None)
            else:
                shape = (int(ranks[:, p].sum()),)
                down = torch.cat([c.down[p] for c in residuals])
                up = torch.cat([c.up[p].mT for c in residuals])
                self._all.append(self._put(down, up))
            self._sums.append(torch.zeros(shape, device=base.device))

    def measure(
        self,
        head: Head | None,
        device: int,
        device_adapter: Adapter,
        parts: Sequence[Examples],
        width: int,
        with_curvature: bool,
    ) -> NDArray[np.float32]:
        """Count a device's texts in; the tables [1 or 2, texts, projections, width] of its own
        components: decreases of the loss and, ``with_curvature``, `Sensitivity.curvature`."""
        base, found = self.base, []
        generator = generator_for(0, device=base.device)  # the same signs in every probe
        is_causal = base.config.task == "causal"
        count = sum(part.num_terms(is_causal=is_causal) for part in parts)
        num_texts = sum(len(part.ids) for part in parts)
        self.count += count
        tables, is_first = torch.empty(0), True  # of the batch and of its first backward pass

        def watch(p: int, x: Tensor, delta: Tensor) -> None:
            x, delta = x.to(self.dtype), delta.to(self.dtype)
            if is_first:
                table, own = tables[0], self._add(device, p, x, delta)
            else:
                table, own = tables[1], _changes(self._own(device, p), x, delta)
            each = own.unflatten(1, (len(table), -1)).sum(dim=2)  # [rank, texts]
            table[:, p, : len(own)] += each.T  # a module may be passed more than once

        lora = MultiLora(base, head, [device_adapter], watch=watch)
        for part in parts:
            size = (1 + with_curvature, len(part.ids), len(base.specs), width)
            tables, is_first = torch.zeros(size, device=base.device), True
            batch = whole(base, part)
            with lora.applied_to(batch):
                logits = predictions(base, head, batch)[batch.terms]
            F.cross_entropy(logits, batch.target[batch.terms], reduction="sum").backward(
                retain_graph=with_curvature
            )
            if with_curvature:
                is_first = False
                logits.backward(_fisher_root(logits.detach(), generator))
            # In a causal model a text counts by its tokens, each of which has a curvature.
            share = num_texts / max(count, 1)
            tables[0] *= -share
            tables[1:] *= share**0.5
            found.append(tables.cpu().numpy())
        return np.concatenate(found, axis=1)

    def _add(self, device: int, projection: int, x: Tensor, delta: Tensor) -> Tensor:
        """Count in x [tokens, in] and delta [tokens, out]; [rank, tokens] the device's own."""
        factors, total = self._all[projection], self._sums[projection]
        if factors is None:
            total.addmm_(delta.T, x)
            return _changes(self._own(device, projection), x, delta)
        changes = _changes(factors, x, delta)
        total += changes.sum(dim=1)
        return changes[self._rows(device, projection)]

    def _rows(self, device: int, projection: int) -> slice:
        """Where a device's components stand among those of all."""
        end = self._ends[device, projection]
        return slice(end - len(self.residuals[device].down[projection]), end)

    def _own(self, device: int, projection: int) -> _Factors:
        if (factors := self._all[projection]) is not None:
            rows = self._rows(device, projection)
            return factors[0][rows], factors[1][rows]
        residual = self.residuals[device]
        down, up = residual.down[projection], residual.up[projection].mT
        return self._put(down, up)

    def _put(self, down: Tensor, up: Tensor) -> _Factors:
        device = self.base.device
        return down.to(device, self.dtype), up.to(device, self.dtype)

    def pooled_gain(self, width: int) -> Array:
        """[devices, projections, width] decreases of the mean loss."""
        shape = (len(self.residuals), len(self._sums), width)
        found = torch.zeros(shape, device=self.base.device)
        for p, (factors, total) in enumerate(zip(self._all, self._sums, strict=True)):
            for i in range(len(self.residuals)):
                if factors is None:
                    down, up = self._own(i, p)
                    own = ((up @ total) * down).sum(dim=1)
                else:
                    own = total[self._rows(i, p)]
                found[i, p, : len(own)] = own
        return found.double().cpu().numpy() / -max(self.count, 1)


_Factors = tuple[Tensor, Tensor]
"""of components: down [rank, in] and, transposed, up [rank, out]"""


def _changes(factors: _Factors, x: Tensor, delta: Tensor) -> Tensor:
    """[rank, tokens] of the loss by each component, of x [tokens, in] and delta [tokens, out]."""
    down, up = factors
    return (down @ x.T) * (up @ delta.T)


def _fisher_root(logits: Tensor, generator: torch.Generator) -> Tensor:
    """[predictions, classes] B z with random signs z, so that the mean of B z (B z)^T is B B^T =
    diag(p) - p p^T, the Hessian of the cross-entropy.

    With q = sqrt p, a unit vector, B is diag(q) times an orthonormal basis of all that is
    orthogonal to q: the reflection that maps the first axis to -q, without that axis. So there is
    one sign less than classes, and none of two classes is left to chance.
    """
    q = logits.float().softmax(dim=-1).sqrt()
    z = 2.0 * torch.randint(0, 2, q.shape, generator=generator, device=q.device) - 1.0
    z[..., 0] = 0.0
    normal = q.clone()
    normal[..., 0] += 1.0
    z -= normal * ((normal * z).sum(dim=-1, keepdim=True) / normal[..., :1])
    return (q * z).to(logits.dtype)


def second_order_utility(found: Sensitivity, cost: NDArray[np.floating]) -> Array:
    """[devices, projections, rank] decrease of the loss by each component after those before it.

    A set S of components is expected to lower the loss by the sum of their pooled gains g less half
    of s^T F s, with ones in s for S: the quadratic model of the loss with the Fisher information F
    (the generalised Gauss-Newton matrix of the cross-entropy) in the Hessian's place, estimated by
    the mean over the device's texts n of (sum of c_ni over S)^2, c the table of its curvature. So
    what pulls a text where others pull it already is worth less and less, and no set steps too far.
    Components are taken one after another, the one that brings most for its ``cost`` [projections]
    first; one that would bring nothing any more has no utility.
    """
    if found.curvature is None:
        raise ValueError("a utility of second order needs a probe with_curvature")
    utility = np.zeros_like(found.pooled_gain)
    for i, each in enumerate(found.curvature):
        table = each.reshape(len(each), -1).astype(float)  # [texts, components]
        paid = np.repeat(cost, each.shape[2])
        # What each one would bring now.
        brings = found.pooled_gain[i].reshape(-1) - 0.5 * (table**2).mean(axis=0)
        value = utility[i].reshape(-1)  # a view
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
    return utility


Importance = Literal["first", "energy", "gain", "gain-at-start", "second-order", "fisher"]
"""Order in which an update's components are sent: as trained, by squared singular value, by
first-order gain at what the device holds or at the bare model, by what it adds to second order to
those before it (`airllm.lora.sensitivity`), by empirical Fisher information of a scale in front of
it."""
