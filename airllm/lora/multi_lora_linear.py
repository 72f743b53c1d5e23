"""A frozen projection with the updates of one or many devices: one product, and two for each run.

A *run* is consecutive devices of one rank; its factors make one batched product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Factors:
    """One projection's factors of consecutive devices of one rank; ``up`` is transposed.

    Tensors are [devices, rank, features], or [rank, features] for one device alone, which saves a
    batched product's bookkeeping.
    """

    __slots__ = ("count", "down", "down_grad", "down_t", "first", "scale", "up", "up_grad", "up_t")

    def __init__(
        self, first: int, scale: float, down: Tensor, up: Tensor,
        down_grad: Tensor | None = None, up_grad: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Without gradients, which are added to where they lie, the factors are frozen."""
        self.first, self.count, self.scale = first, len(down), scale

        def one(tensor: Tensor) -> Tensor:
            return tensor[0] if self.count == 1 else tensor

        self.down, self.up = one(down), one(up)
        self.down_t, self.up_t = self.down.mT, self.up.mT
        self.down_grad = None if down_grad is None else one(down_grad)
        self.up_grad = None if up_grad is None else one(up_grad)

    def add(self, x: Tensor, sums: Tensor) -> Tensor:
        """sums += scale * (x down^T) up; returns x down^T. Both are [tokens, features]."""
        if self.count == 1:
            low = torch.mm(x, self.down_t)
            sums.addmm_(low, self.up, alpha=self.scale)
            return low
        low = torch.bmm(self._apart(x), self.down_t)
        self._apart(sums).baddbmm_(low, self.up, alpha=self.scale)
        return low

    def back(self, x: Tensor, low: Tensor, grad: Tensor, sums: Tensor | None) -> None:
        """Gradients of the factors, and of the input, added to ``sums``, by the chain rule."""
        if self.count > 1:
            x, grad = self._apart(x), self._apart(grad)
            sums = None if sums is None else self._apart(sums)
        if self.up_grad is not None:
            _add_product(self.up_grad, low.mT, grad, self.scale)
        if self.down_grad is None and sums is None:
            return
        low_grad = grad @ self.up_t
        if self.down_grad is not None:
            _add_product(self.down_grad, low_grad.mT, x, self.scale)
        if sums is not None:
            _add_product(sums, low_grad, self.down, self.scale)

    def _apart(self, x: Tensor) -> Tensor:
        """[devices, tokens of each, features] out of [tokens, features]."""
        return x.view(self.count, -1, x.shape[-1])

    def part(self, begin: int, end: int) -> Factors:
        """Those of some of the devices."""
        if (begin, end) == (0, self.count):
            return self
        cut = slice(begin, end)
        return Factors(
            self.first + begin,
            self.scale,
            self.down[cut],
            self.up[cut],
            None if self.down_grad is None else self.down_grad[cut],
            None if self.up_grad is None else self.up_grad[cut],
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """total += scale * left right, summed in the total's precision."""
    if left.dtype != total.dtype:
        total.add_(left @ right, alpha=scale)
    elif total.dim() == 2:
        total.addmm_(left, right, alpha=scale)
    else:
        total.baddbmm_(left, right, alpha=scale)


Segment = tuple[int, int, Factors]
"""begin and end of the tokens of some devices in a pass, and their factors"""

Watch = Callable[[Tensor, Tensor], None]
"""is shown a projection's input [tokens, in] and the gradient of its output [tokens, out]"""


class MultiLoraLinear(torch.autograd.Function):
    """x W^T + b, and each segment's update, in one memory.

    Gradients of factors go straight to where they lie. ``anchor`` is a number that requires a
    gradient, so that there is a backward pass where ``x`` needs none. ``dropped``, of the shape of
    ``x``, is what the updates see in its place.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, anchor: Tensor | None, weight: Tensor,
        bias: Tensor | None, segments: list[Segment], watch: Watch | None,
    ) -> Tensor:  # fmt: skip
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)  # [tokens, in]
        sums = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
        seen = flat if dropped is None else dropped.reshape(flat.shape).to(weight.dtype)
        lows = [factors.add(seen[i:j], sums[i:j]) for i, j, factors in segments]
        ctx.segments, ctx.watch, ctx.x_shape, ctx.x_dtype = segments, watch, x.shape, x.dtype
        ctx.save_for_backward(flat, seen, weight, *lows)
        return sums.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, seen, weight, *lows = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1])  # [tokens, out]
        if ctx.watch is not None:
            ctx.watch(flat, grad)
        back = grad @ weight.t() if ctx.needs_input_grad[0] else None
        # Where some is dropped, the updates have an input of their own.
        own = torch.zeros_like(seen) if ctx.needs_input_grad[1] else back
        for (i, j, factors), low in zip(ctx.segments, lows, strict=True):
            factors.back(seen[i:j], low, grad[i:j], None if own is None else own[i:j])

        def shaped(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.view(ctx.x_shape).to(ctx.x_dtype)

        return shaped(back), shaped(own) if own is not back else None, None, None, None, None, None
