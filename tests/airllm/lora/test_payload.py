"""Payload bits against the bytes; what a damaged payload does."""

import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from airllm.lora.adapter import Adapter
from airllm.lora.payload import (
    FORMATS,
    VERSION,
    PayloadError,
    bits_per_rank,
    decode,
    encode,
    overhead_bits,
)
from airllm.models.projections import ProjectionSpec

SPECS = (
    ProjectionSpec("a", 12, 30, 0, "a"),
    ProjectionSpec("b", 30, 7, 0, "b"),
    ProjectionSpec("c", 5, 4, 1, "c"),
)
TOLERANCE = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 1 / 127}


def adapter_of(ranks, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        tuple(
            scale * torch.randn(r, s.in_features, generator=generator)
            for r, s in zip(ranks, SPECS, strict=True)
        ),
        tuple(
            scale * torch.randn(s.out_features, r, generator=generator)
            for r, s in zip(ranks, SPECS, strict=True)
        ),
    )


@given(
    ranks=st.lists(st.integers(0, 9), min_size=3, max_size=3),
    number_format=st.sampled_from(FORMATS),
    coding=st.sampled_from(["absolute", "residual"]),
)
def test_bits_are_those_of_the_bytes_and_everything_comes_back(ranks, number_format, coding):
    adapter = adapter_of(ranks)
    data = encode(adapter, number=7, number_format=number_format, coding=coding)
    bits = overhead_bits(3) + float(np.array(ranks) @ bits_per_rank(SPECS, number_format))
    assert 8 * len(data) == bits
    update = decode(data, SPECS)
    assert (update.number, update.coding) == (7, coding)
    assert list(update.adapter.ranks) == ranks
    for sent, got in zip(adapter.down, update.adapter.down, strict=True):
        assert got.shape == sent.shape
        if len(sent):
            worst = ((sent - got).abs() / sent.abs().amax(dim=1, keepdim=True)).max().item()
            assert worst <= TOLERANCE[number_format]


def test_fp32_is_exact():
    adapter = adapter_of([3, 2, 1])
    got = decode(encode(adapter, number=0, number_format="fp32", coding="absolute"), SPECS)
    for p in range(3):
        assert torch.equal(got.adapter.up[p], adapter.up[p])


def test_writing_again_what_was_read_gives_the_same_bytes():
    """Device and cloud then hold the same numbers: rounding happens once."""
    for number_format in ("fp32", "fp16", "bf16"):
        data = encode(
            adapter_of([3, 2, 1]), number=1, number_format=number_format, coding="residual"
        )
        again = decode(data, SPECS).adapter
        assert encode(again, number=1, number_format=number_format, coding="residual") == data


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_any_flipped_bit_is_detected(position, bit):
    data = bytearray(
        encode(adapter_of([2, 1, 1]), number=1, number_format="fp16", coding="absolute")
    )
    data[position % len(data)] ^= 1 << bit
    with pytest.raises(PayloadError):
        decode(bytes(data), SPECS)


@pytest.mark.parametrize("cut", [0, 1, 9, 13, 40])
def test_a_cut_payload_is_detected(cut):
    data = encode(adapter_of([2, 1, 1]), number=1, number_format="fp16", coding="absolute")
    with pytest.raises(PayloadError):
        decode(data[:cut], SPECS)


def test_int8_keeps_tiny_and_zero_components_finite():
    for scale in (0.0, 1e-9, 1e-4):
        data = encode(
            adapter_of([1, 1, 1], scale=scale), number=1, number_format="int8", coding="absolute"
        )
        assert torch.isfinite(decode(data, SPECS).adapter.down[0]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("number_format", ["fp32", "bf16", "int8"])
def test_values_that_are_no_numbers_are_refused_by_the_receiver(value, number_format):
    """Found by the fuzzer: a sender's diverged training would have spoilt what it is added to."""
    adapter = adapter_of([2, 1, 1])
    adapter.down[1][0, 3] = value
    data = encode(adapter, number=1, number_format=number_format, coding="residual")
    if number_format == "int8" and value == float("inf"):
        assert torch.isfinite(decode(data, SPECS).adapter.down[1]).all()  # clamped, as in fp16
        return
    with pytest.raises(PayloadError, match="infinite or not a number"):
        decode(data, SPECS)


def test_int8_clamps_what_its_scale_cannot_say():
    """Found by the fuzzer: a scale above 65504 was infinite, and the payload not a number."""
    data = encode(
        adapter_of([1, 1, 1], scale=1e9), number=1, number_format="int8", coding="absolute"
    )
    got = decode(data, SPECS).adapter.down[0]
    assert got.abs().max() == pytest.approx(127 * 65504.0)


def test_rank_above_one_byte_is_refused():
    with pytest.raises(ValueError, match="ranks up to 255, got 300"):
        encode(adapter_of([300, 0, 0]), number=1, number_format="fp16", coding="absolute")


def test_what_is_wrong_with_a_payload_is_said():
    data = encode(adapter_of([1, 1, 1]), number=1, number_format="fp16", coding="absolute")
    with pytest.raises(PayloadError, match="payload of 7 bytes is cut off in its header"):
        decode(data[:7], SPECS)
    body = bytes([VERSION + 1]) + data[1:-4]
    with pytest.raises(PayloadError, match=f"version {VERSION + 1} or flags 0x.* are not known"):
        decode(body + struct.pack("<I", zlib.crc32(body)), SPECS)
