"""Devices' updates are checked before anything of them reaches the global adapter."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airllm.lora import Adapter
from airllm.payload import PayloadError, bits_per_rank, decode, overhead_bits
from airllm.ranks import ProjectionSpec
from cloud.robust import norm_of

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
        factors = [f for f in (*update.adapter.down, *update.adapter.up) if f.numel()]
        if not all(bool(torch.isfinite(f).all()) for f in factors):
            raise RefusedUpdate("values", "not all numbers are finite")
        # Of the factors too: where these are averaged apart, one may be huge and the other tiny.
        norm = max(norm_of(update.adapter), *(float(f.norm()) for f in factors), 0.0)
        if not norm <= self.max_norm:
            raise RefusedUpdate("norm", f"norm {norm:.3g} is beyond {self.max_norm:.3g}")
        return update.adapter
