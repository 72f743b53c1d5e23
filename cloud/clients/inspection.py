"""Devices' updates are checked before anything of them reaches the global adapter."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airllm.lora.adapter import Adapter
from airllm.lora.payload import PayloadError, bits_per_rank, decode, overhead_bits
from airllm.models.projections import ProjectionSpec

logger = logging.getLogger(__name__)


class RefusedUpdate(Exception):
    """An update that must not be merged; ``reason`` is one of a few words, to be counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Inspector:
    """Opens updates, and counts those that it refuses, by reason."""

    def __init__(
        self,
        specs: Sequence[ProjectionSpec],
        *,
        number_format: str,
        coding: str,
        max_norm: float,
        shared_down: Sequence[Tensor] | None,
    ) -> None:
        self.specs, self.coding, self.max_norm = specs, coding, max_norm
        self._shared_down = shared_down
        self._bits = bits_per_rank(specs, number_format, is_half=shared_down is not None)
        self.refused: Counter[str] = Counter()

    def open(
        self, device: int, data: bytes, *, granted: NDArray[np.int64], number: int
    ) -> Adapter | None:
        """The update in ``data``, or None where it must not be used; the log says why.

        ``granted`` [projections] are the ranks that the device was allowed, ``number`` is the
        round's.
        """
        try:
            return self._opened(data, granted, number)
        except RefusedUpdate as error:
            self.refused[error.reason] += 1
            logger.warning("update of device %d refused (%s): %s", device, error.reason, error)
            return None

    def _opened(self, data: bytes, granted: NDArray[np.int64], number: int) -> Adapter:
        allowed = int(overhead_bits(len(self.specs)) + self._bits @ granted)
        if 8 * len(data) > allowed:
            # Before anything is unpacked: memory is what an oversized message is after.
            raise RefusedUpdate("size", f"{8 * len(data)} bits where {allowed} were granted")
        try:
            update = decode(data, self.specs, shared_down=self._shared_down)
        except PayloadError as error:
            reason = "checksum" if "checksum" in str(error) else "format"
            raise RefusedUpdate(reason, str(error)) from None
        if update.number != number or update.coding != self.coding:
            raise RefusedUpdate(
                "version",
                f"made for round {update.number} as {update.coding}, wanted is {number} as "
                f"{self.coding}",
            )
        ranks = update.adapter.ranks
        if (ranks > granted).any():
            p = int(np.argmax(ranks - granted))
            raise RefusedUpdate("rank", f"rank {ranks[p]} in projection {p}, granted {granted[p]}")
        norm = _largest_norm(update.adapter)
        if not norm <= self.max_norm:
            raise RefusedUpdate("norm", f"norm {norm:.3g} is beyond {self.max_norm:.3g}")
        return update.adapter

    def check_merged(self, result: Adapter, *, max_rank: int, num_updates: int, name: str) -> None:
        """Raise ValueError unless an aggregator has returned what an aggregator may return.

        Its norm may be what so many honest updates can add up to.
        """
        max_norm = num_updates * self.max_norm
        if flaw := self._flaw(result, max_rank, max_norm):
            raise ValueError(
                f"federated.aggregator {name} must return an Adapter of {len(self.specs)} "
                f"projections, finite detached float32 tensors on the CPU, down [rank, in] and up "
                f"[out, rank], of rank <= {max_rank} (max_rank) and norm <= {max_norm:g} "
                f"(federated.max_norm for each update); got {flaw}"
            )

    def _flaw(self, result: Adapter, max_rank: int, max_norm: float) -> str:
        if not isinstance(result, Adapter):
            return type(result).__name__
        if not (isinstance(result.down, Sequence) and isinstance(result.up, Sequence)):
            return f"down {type(result.down).__name__} and up {type(result.up).__name__}"
        if not len(result.down) == len(result.up) == len(self.specs):
            return f"{len(result.down)} projections down and {len(result.up)} up"
        for q, (spec, d, u) in enumerate(zip(self.specs, result.down, result.up, strict=True)):
            rank = min(len(d) if isinstance(d, Tensor) and d.ndim else 0, max_rank)
            if not (_fits(d, (rank, spec.in_features)) and _fits(u, (spec.out_features, rank))):
                return f"down {_form(d)} and up {_form(u)} in projection {q}"
        norm = _largest_norm(result)
        return "" if norm <= max_norm else f"norm {norm:.3g}"


def _largest_norm(adapter: Adapter) -> float:
    """Of the products and of the factors: where these are averaged apart, one may be huge and the
    other tiny."""
    factors = [f for f in (*adapter.down, *adapter.up) if f.numel()]
    return max(adapter.norm(), *(float(f.norm()) for f in factors), 0.0)


def _fits(factor: Tensor, shape: tuple[int, int]) -> bool:
    return (
        isinstance(factor, Tensor)
        and (factor.dtype, factor.device.type) == (torch.float32, "cpu")
        and tuple(factor.shape) == shape
        and not factor.requires_grad
        and bool(torch.isfinite(factor).all())
    )


def _form(factor: Tensor) -> str:
    if not isinstance(factor, Tensor):
        return type(factor).__name__
    finite = "" if torch.isfinite(factor).all() else " not finite"
    gradient = " with gradient" if factor.requires_grad else ""
    return f"{factor.dtype} {list(factor.shape)} on {factor.device}{finite}{gradient}"
