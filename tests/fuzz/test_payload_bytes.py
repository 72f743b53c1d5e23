"""Bytes from the air: damage is noticed, and what has a right checksum is well-formed."""

import struct
import zlib

import pytest
import torch

from airllm.lora.adapter import Adapter
from airllm.lora.payload import CODINGS, FORMATS, PayloadError, decode, encode
from airllm.models.projections import ProjectionSpec

SPECS = (
    ProjectionSpec("a", 12, 30, 0, "a"),
    ProjectionSpec("b", 30, 7, 0, "b"),
    ProjectionSpec("c", 5, 4, 1, "c"),
)


def adapter_of(ranks):
    generator = torch.Generator().manual_seed(sum(ranks))
    return Adapter(
        tuple(
            torch.randn(r, s.in_features, generator=generator)
            for r, s in zip(ranks, SPECS, strict=True)
        ),
        tuple(
            torch.randn(s.out_features, r, generator=generator)
            for r, s in zip(ranks, SPECS, strict=True)
        ),
    )


ORIGINALS = [
    encode(adapter_of(ranks), number=3, number_format=form, coding=coding)
    for ranks in ([0, 0, 0], [2, 1, 1], [1, 0, 3])
    for form in FORMATS
    for coding in CODINGS
]


def test_no_damaged_payload_is_taken_for_an_intact_one(fuzz):
    def check(data):
        if data in ORIGINALS:
            return
        with pytest.raises(PayloadError):
            decode(data, SPECS)

    fuzz(check, ORIGINALS, quick=5000)


def test_a_payload_with_a_right_checksum_is_refused_or_well_formed(fuzz):
    """What a peer with bad intentions sends: the checksum is no obstacle to it."""

    def check(data):
        try:
            update = decode(data, SPECS)
        except PayloadError:
            return
        assert update.coding in CODINGS
        assert 0 <= update.number < 2**32
        for spec, down, up in zip(SPECS, update.adapter.down, update.adapter.up, strict=True):
            rank = len(down)
            assert rank <= 255
            assert down.shape == (rank, spec.in_features)
            assert up.shape == (spec.out_features, rank)
            assert torch.isfinite(down).all()
            assert torch.isfinite(up).all()

    def repair(data):
        body = data[:-4]
        return body + struct.pack("<I", zlib.crc32(body))

    fuzz(check, ORIGINALS, quick=5000, repair=repair)
