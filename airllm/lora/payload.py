"""Adapters as the bytes that go over the air, with a header and a checksum.

Layout, little-endian: version (1 byte), number format and coding (1), update number (4), one byte
of rank for each projection, then for each projection of rank > 0 its factors, down [rank, in]
before up [out, rank], then the CRC-32 of all of it (4). Names and shapes are known to both sides
from the start and cost nothing; so do down factors that are shared and frozen.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pydantic.dataclasses
import torch
from numpy.typing import NDArray
from torch import Tensor

from airllm.bounds import STRICT, Count
from airllm.lora.adapter import Adapter, accumulate
from airllm.models.projections import ProjectionSpec

VERSION = 1
NumberFormat = Literal["fp32", "fp16", "bf16", "int8"]
Coding = Literal["absolute", "residual"]
FORMATS: tuple[NumberFormat, ...] = get_args(NumberFormat)
CODINGS: tuple[Coding, ...] = get_args(Coding)
MAX_RANK = 255  # a rank is one byte
_HALF = 0x80  # flag: the down factors are shared and not sent
_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8}
_FIXED_BYTES = 1 + 1 + 4 + 4
_SCALE_BYTES = 2 * 2  # int8: one fp16 scale for each row of A and each column of B


class PayloadError(Exception):
    """Bytes that are not an intact payload; the receiver keeps what it has."""


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class PayloadConfig:
    """How an update is written for the air."""

    number_format: NumberFormat = "fp16"
    """'fp32', 'fp16', 'bf16' or 'int8' (one scale for each row and column)"""
    coding: Coding = "residual"
    """'residual': the difference from what the device holds is sent, so that what was cut in one
    round comes in another; 'absolute': each update replaces the one before"""
    adapter_rank: Count = 24
    """rank to which a device recompresses what it has accumulated (residual coding)"""


@dataclass(frozen=True, slots=True)
class Update:
    """A decoded payload."""

    adapter: Adapter
    number: int
    """round in which it was made, or the receiver's client cycle where rounds are asynchronous"""
    coding: str

    def onto(self, device_adapter: Adapter, adapter_rank: int) -> Adapter:
        """What a device with ``device_adapter`` has after this, by the one rule of both sides."""
        if self.coding == "residual":
            return accumulate(device_adapter, self.adapter, adapter_rank)
        return self.adapter


def bits_per_rank(
    specs: Sequence[ProjectionSpec], number_format: str, *, is_half: bool = False
) -> NDArray[np.float64]:
    """[projections] bits that one component of each projection takes; half: of its up factor."""
    scales = 8 * _SCALE_BYTES if number_format == "int8" else 0
    if is_half:
        size = [s.out_features * _BITS[number_format] + scales // 2 for s in specs]
    else:
        size = [s.params_per_rank * _BITS[number_format] + scales for s in specs]
    return np.array(size, dtype=float)


def overhead_bits(num_projections: int) -> int:
    """Bits of a payload whose every rank is 0."""
    return 8 * (_FIXED_BYTES + num_projections)


def encode(
    adapter: Adapter, *, number: int, number_format: str, coding: str, is_half: bool = False
) -> bytes:
    """The bytes of an update; 8 times their number is its ``payload_bits``.

    ``is_half`` leaves out the down factors, which the receiver must have.
    """
    ranks = adapter.ranks
    if ranks.max(initial=0) > MAX_RANK:
        raise ValueError(f"a payload holds ranks up to {MAX_RANK}, got {int(ranks.max())}")
    flags = FORMATS.index(number_format) | CODINGS.index(coding) << 4 | _HALF * is_half
    parts = [struct.pack("<BBI", VERSION, flags, number), bytes(ranks.astype(np.uint8))]
    for down, up in zip(adapter.down, adapter.up, strict=True):
        if len(down):
            if not is_half:
                parts.append(_write(down, number_format))
            parts.append(_write(up.T, number_format))
    body = b"".join(parts)
    return body + struct.pack("<I", zlib.crc32(body))


def decode(
    data: bytes, specs: Sequence[ProjectionSpec], *, shared_down: Sequence[Tensor] | None = None
) -> Update:
    """The update in ``data``; raises PayloadError unless every byte is as it was sent.

    ``shared_down`` are the frozen factors [rank, in] that a half payload leaves out.

    No value in it is infinite or not a number: a peer that sends such a one, by a mistake in its
    training or on purpose, would spoil whatever it is added to.
    """
    if len(data) < _FIXED_BYTES + len(specs):
        raise PayloadError(f"payload of {len(data)} bytes is cut off in its header")
    body, checksum = data[:-4], struct.unpack("<I", data[-4:])[0]
    if zlib.crc32(body) != checksum:
        raise PayloadError("checksum does not match: the payload was damaged on the way")
    version, flags, number = struct.unpack_from("<BBI", body)
    is_half, kind = bool(flags & _HALF), flags >> 4 & 0x7
    if version != VERSION or flags & 0xF >= len(FORMATS) or kind >= len(CODINGS):
        raise PayloadError(f"payload version {version} or flags {flags:#x} are not known here")
    number_format, coding = FORMATS[flags & 0xF], CODINGS[kind]
    if is_half != (shared_down is not None):
        raise PayloadError("payload and receiver do not agree on whether the down factors are sent")
    offset = 6 + len(specs)
    down, up = [], []
    for p, (spec, rank) in enumerate(zip(specs, body[6:offset], strict=True)):
        if shared_down is None:
            d, offset = _read(body, offset, rank, spec.in_features, number_format)
        elif rank <= len(shared_down[p]):
            d = shared_down[p][:rank]
        else:
            raise PayloadError(f"payload has rank {rank} where {len(shared_down[p])} are shared")
        u, offset = _read(body, offset, rank, spec.out_features, number_format)
        down.append(d)
        up.append(u.T.contiguous())
    if offset != len(body):
        raise PayloadError(f"payload has {len(body) - offset} bytes more than its ranks say")
    return Update(Adapter(tuple(down), tuple(up)), number, coding)


def _write(rows: Tensor, number_format: str) -> bytes:
    """Rows [rank, features] as bytes."""
    rows = rows.detach().float().contiguous()
    if number_format == "fp32":
        return rows.numpy().astype("<f4").tobytes()
    if number_format == "fp16":
        limit = torch.finfo(torch.float16).max
        return rows.clamp(-limit, limit).numpy().astype("<f2").tobytes()
    if number_format == "bf16":
        return rows.bfloat16().view(torch.int16).numpy().astype("<i2").tobytes()
    # By the scale as it is sent, in fp16: it may be a little low, so that 127.06 has to be 127.
    top = rows.abs().amax(dim=1).double() / 127.0
    scale = top.clamp(max=torch.finfo(torch.float16).max).numpy().astype("<f2")
    step = torch.from_numpy(scale.astype(np.float32))[:, None].clamp_min(2.0**-24)
    levels = (rows / step).round().clamp(-127, 127).to(torch.int8)
    return scale.tobytes() + levels.numpy().tobytes()


def _read(
    body: bytes, offset: int, rank: int, features: int, number_format: str
) -> tuple[Tensor, int]:
    """Rows [rank, features] from ``offset``, and the offset behind them."""
    count = rank * features
    size = count * _BITS[number_format] // 8 + (2 * rank if number_format == "int8" else 0)
    chunk = body[offset : offset + size]
    if len(chunk) != size:
        raise PayloadError("payload ends before its ranks say")
    if number_format == "fp32":
        values = np.frombuffer(chunk, "<f4").astype(np.float32)
    elif number_format == "fp16":
        values = np.frombuffer(chunk, "<f2").astype(np.float32)
    elif number_format == "bf16":
        words = np.frombuffer(chunk, "<u2").astype(np.uint32) << 16
        values = words.view(np.float32)
    else:
        scale = np.frombuffer(chunk, "<f2", count=rank).astype(np.float32)
        step = np.maximum(scale, np.float32(2.0**-24))
        levels = np.frombuffer(chunk, np.int8, offset=2 * rank).astype(np.float32)
        with np.errstate(invalid="ignore"):  # an infinite scale, refused below
            values = (levels.reshape(rank, features) * step[:, None]).astype(np.float32)
    if not np.isfinite(values).all():
        raise PayloadError("payload has values that are infinite or not a number")
    return torch.from_numpy(values.reshape(rank, features).copy()), offset + size
