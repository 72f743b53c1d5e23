"""Low-rank factors of several devices in one flat tensor.

Consecutive devices of equal rank in a projection make a *run*, one batched product: nobody pays for
another's rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from airllm.lora.adapter import Adapter
from airllm.lora.multi_lora_linear import Factors
from airllm.models.base import BaseModel

# On CUDA, ranks are padded with zero components, which stay zero, to a multiple of a tensor core's
# tile, so that runs are few; on a CPU one component more is time more.
_CUDA_TILE = 16


class FlatFactors:
    """The factors of one adapter for each device, and where they are trained, their gradients."""

    values: Tensor
    """all factors, in full precision; where they are trained, ``values.grad`` is their gradient"""
    runs: list[list[Factors]]
    """[projections] views of the values, or of their copies in bf16 where that is multiplied"""

    def __init__(
        self,
        base: BaseModel,
        adapters: Sequence[Adapter],
        *,
        scale: float = 1.0,
        is_trained: bool = False,
        trains_down: bool = True,
    ) -> None:
        """``scale`` is a factor in front of the products: up factors lie here divided by it."""
        self._adapters, self._scale, self._specs = list(adapters), scale, base.specs
        self._cuts = _cuts(base, adapters)
        # Filled on the host, so that one copy brings all to a GPU.
        host = torch.zeros(self._cuts[-1].end if self._cuts else 0)
        for i, adapter in enumerate(self._adapters):
            own = self.views(host, i)
            for view, factor in zip(own.down, adapter.down, strict=True):
                view.copy_(factor)
            for view, factor in zip(own.up, adapter.up, strict=True):
                view.copy_(factor / scale)
        self.values = host.to(base.device).requires_grad_(is_trained)
        self._grad = torch.zeros_like(self.values, requires_grad=False) if is_trained else None
        self._low = self.values.detach().bfloat16() if base.precision == "bf16" else None
        self.runs = [[] for _ in base.specs]
        for cut in self._cuts:
            # The head's weight is not the module's own; it stays in full precision.
            weight = getattr(base.modules[cut.projection], "weight", None)
            is_low = weight is not None and weight.dtype == torch.bfloat16
            multiplied = self._low if is_low and self._low is not None else self.values.detach()
            down, up = cut.views(multiplied)
            down_grad, up_grad = (None, None) if self._grad is None else cut.views(self._grad)
            grads = down_grad if trains_down else None, up_grad
            self.runs[cut.projection].append(Factors(cut.first, scale, down, up, *grads))

    def begin_pass(self) -> None:
        """Copy the values, which an optimiser may have moved, to where they are multiplied."""
        if self._low is not None and self._grad is not None:
            self._low.copy_(self.values.detach())

    def zero_grad(self) -> None:
        """Make ``values.grad`` zero, and again the tensor to which backward passes add."""
        assert self._grad is not None
        self.values.grad = self._grad.zero_()

    def views(self, flat: Tensor, device: int) -> Adapter:
        """A device's part of ``values``, or of a tensor of their shape."""
        ranks = self._adapters[device].ranks
        down = [flat[:0].view(0, spec.in_features) for spec in self._specs]
        up = [flat[:0].view(spec.out_features, 0) for spec in self._specs]
        for cut in self._cuts:
            if 0 <= device - cut.first < cut.count:
                p, downs, ups = cut.projection, *cut.views(flat)
                down[p] = downs[device - cut.first, : ranks[p]]
                up[p] = ups[device - cut.first, : ranks[p]].T
        return Adapter(tuple(down), tuple(up))

    def adapters(self) -> list[Adapter]:
        """[devices] what they are now, on the CPU, the scale folded in."""
        host, found = self.values.detach().cpu(), []
        for i in range(len(self._adapters)):
            own = self.views(host, i)
            found.append(
                Adapter(tuple(d.clone() for d in own.down), tuple(u * self._scale for u in own.up))
            )
        return found


@dataclass(frozen=True, slots=True)
class _Cut:
    """Where the factors of a run lie in a flat tensor."""

    projection: int
    first: int
    count: int
    rank: int
    begin: int
    in_features: int
    out_features: int

    @property
    def end(self) -> int:
        return self.begin + self.count * self.rank * (self.in_features + self.out_features)

    def views(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """down [devices, rank, in] and, transposed, up [devices, rank, out]"""
        middle = self.begin + self.count * self.rank * self.in_features
        return (
            flat[self.begin : middle].view(self.count, self.rank, self.in_features),
            flat[middle : self.end].view(self.count, self.rank, self.out_features),
        )


def _cuts(base: BaseModel, adapters: Sequence[Adapter]) -> list[_Cut]:
    tile = _CUDA_TILE if base.device.type == "cuda" else 1
    found, begin = [], 0
    for p, spec in enumerate(base.specs):
        ranks = [-(-len(adapter.down[p]) // tile) * tile for adapter in adapters]
        for first, count, rank in consecutive(ranks):
            if rank:
                cut = _Cut(p, first, count, rank, begin, spec.in_features, spec.out_features)
                found.append(cut)
                begin = cut.end
    return found


def consecutive(keys: Sequence[Any]) -> list[tuple[int, int, Any]]:
    """(first, count, key) of each stretch of equal keys."""
    found, at = [], 0
    for key, group in groupby(keys):
        count = len(list(group))
        found.append((at, count, key))
        at += count
    return found
