"""Low-rank updates added to a frozen model's projections, by forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LowRankUpdate(Protocol):
    """An update of every projection by its factors, such as `airllm.lora.adapter.Adapter`."""

    @property
    def down(self) -> tuple[Tensor, ...]:
        """a tensor [rank, in_features] for each projection"""
        ...

    @property
    def up(self) -> tuple[Tensor, ...]:
        """a tensor [out_features, rank] for each projection"""
        ...


class AdapterBank:
    """Adds stacked updates to the projections of one frozen base, by forward hooks.

    With D devices loaded, a batch is [devices * batch, tokens], device-major; every device's rows
    meet its own factors. The base's weights exist once, however many devices there are.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._factors: list[tuple[Tensor, Tensor, Tensor | float] | None] = [None] * len(modules)
        self.dropout = 0.0  # of the inputs of an update, while it trains
        self.generator: torch.Generator | None = None
        self.watch: Callable[[int, Tensor, Tensor], None] | None = None
        """is shown, in a backward pass, each projection's number, its input [..., in] and the
        gradient of its output [..., out], as often as the pass went through it; with it there is a
        backward pass, whatever is trained"""
        for p, module in enumerate(modules):
            module.register_forward_hook(self._hook(p))

    def load(
        self,
        down: Sequence[Tensor],
        up: Sequence[Tensor],
        scale: Sequence[Tensor] | float = 1.0,
    ) -> None:
        """Per projection: down [devices, rank, in], up [devices, out, rank], and a scale: one
        number, or a tensor [devices, rank] that weighs each component. They are multiplied in
        full precision, torch's default."""
        dtype = torch.get_default_dtype()
        for p, (d, u) in enumerate(zip(down, up, strict=True)):
            weight = scale if isinstance(scale, float) else scale[p]
            self._factors[p] = (d.to(dtype), u.to(dtype), weight) if d.shape[1] else None

    def load_adapters(self, adapters: Sequence[LowRankUpdate], device: torch.device) -> None:
        """Load one finished adapter for each device."""
        down, up = stack(adapters)
        parts = _moved([*down, *up], device)
        self.load(parts[: len(down)], parts[len(down) :])

    def clear(self) -> None:
        """Back to the bare base model."""
        self._factors = [None] * len(self._factors)
        self.dropout, self.watch = 0.0, None

    def _hook(self, projection: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            result = add_update(args[0], output)
            if self.watch is not None:
                if not result.requires_grad:
                    result = result.detach().requires_grad_()
                result.register_hook(partial(self.watch, projection, args[0].detach()))
            return result

        def add_update(x: Tensor, output: Tensor) -> Tensor:  # x [..., in], device-major
            factors = self._factors[projection]
            if factors is None:
                return output
            down, up, scale = factors
            if self.dropout:
                keep = 1.0 - self.dropout
                mask = torch.rand(x.shape, generator=self.generator, device=x.device) < keep
                x = x * mask / keep
            if len(down) == 1:
                low = F.linear(x, down[0])  # [batch, tokens, rank]
                low = low * (scale if isinstance(scale, float) else scale[0])
                return output + F.linear(low, up[0]).to(output.dtype)
            rows = x.reshape(len(down), -1, x.shape[-1])  # [devices, batch * tokens, in]
            low = rows @ down.transpose(1, 2)  # [devices, batch * tokens, rank]
            low = low * (scale if isinstance(scale, float) else scale[:, None, :])
            return output + (low @ up.transpose(1, 2)).reshape(output.shape).to(output.dtype)

        return hook


def _moved(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The same on a device; one copy takes all to a GPU, each of which the host waits for."""
    if device.type == "cpu":
        return list(tensors)
    moved = torch.cat([t.flatten() for t in tensors]).to(device)
    parts = moved.split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def stack(adapters: Sequence[LowRankUpdate]) -> tuple[list[Tensor], list[Tensor]]:
    """Factors of several devices as [devices, rank, in] and [devices, out, rank].

    Zero components pad unequal ranks; they change no product.
    """
    downs, ups = [], []
    for p in range(len(adapters[0].down)):
        rank = max(len(adapter.down[p]) for adapter in adapters)
        downs.append(
            torch.stack([F.pad(a.down[p], (0, 0, 0, rank - len(a.down[p]))) for a in adapters])
        )
        ups.append(torch.stack([F.pad(a.up[p], (0, rank - a.up[p].shape[1])) for a in adapters]))
    return downs, ups
