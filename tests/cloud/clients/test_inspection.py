"""What a device sends is believed only as far as it can be checked."""

import struct
import zlib

import numpy as np
import pytest
import torch

from airllm.lora.adapter import Adapter
from airllm.lora.payload import encode
from airllm.models.projections import ProjectionSpec
from cloud.clients.inspection import Inspector

SPECS = (ProjectionSpec("a", 6, 4, 0, "a"), ProjectionSpec("b", 4, 6, 0, "b"))
GRANTED = np.array([2, 1])
ROUND = 3


@pytest.fixture
def inspector():
    return Inspector(
        SPECS, number_format="fp32", coding="residual", max_norm=100.0, shared_down=None
    )


def update(ranks=(2, 1), *, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        tuple(
            scale * torch.randn(r, s.in_features, generator=generator)
            for r, s in zip(ranks, SPECS, strict=True)
        ),
        tuple(
            torch.randn(s.out_features, r, generator=generator)
            for r, s in zip(ranks, SPECS, strict=True)
        ),
    )


def bytes_of(adapter, *, number=ROUND, number_format="fp32", coding="residual", is_half=False):
    return encode(
        adapter, number=number, number_format=number_format, coding=coding, is_half=is_half
    )


def resealed(data, change):
    """The same bytes with some of them changed, under a checksum that fits."""
    body = bytearray(data[:-4])
    change(body)
    return bytes(body) + struct.pack("<I", zlib.crc32(bytes(body)))


def poisoned():
    def spoil(body):
        struct.pack_into("<f", body, 8, float("nan"))

    return resealed(bytes_of(update()), spoil)


def of_another_version():
    def bump(body):
        body[0] = 2

    return resealed(bytes_of(update()), bump)


def test_an_honest_update_is_opened_as_it_was_sent(inspector):
    sent = update()
    opened = inspector.open(0, bytes_of(sent), granted=GRANTED, number=ROUND)
    for p in range(len(SPECS)):
        assert torch.equal(opened.delta(p), sent.delta(p))
    assert not inspector.refused


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (poisoned(), "format"),
        (bytes_of(update(scale=1e3)), "norm"),
        (bytes_of(update())[:-9], "checksum"),
        (b"", "format"),
        (b"\x00" * 12, "checksum"),
        (bytes_of(update((2, 2))), "size"),
        (b"\x01" * 10_000, "size"),
        # One rank too many, where another projection made room for it.
        (bytes_of(update((1, 2))), "rank"),
        (bytes_of(update(), number=ROUND - 1), "version"),
        (bytes_of(update(), coding="absolute"), "version"),
        (of_another_version(), "format"),
        (bytes_of(update(), is_half=True), "format"),
    ],
)
def test_what_is_wrong_is_refused_counted_and_named(data, reason, inspector, caplog):
    assert inspector.open(7, data, granted=GRANTED, number=ROUND) is None
    assert dict(inspector.refused) == {reason: 1}
    assert f"update of device 7 refused ({reason})" in caplog.text


def test_an_oversized_update_is_not_even_unpacked(inspector, monkeypatch):
    def must_not_run(*args, **kwargs):
        raise AssertionError("what is too large must not be unpacked")

    monkeypatch.setattr("cloud.clients.inspection.decode", must_not_run)
    assert inspector.open(0, b"\x01" * 10**6, granted=GRANTED, number=ROUND) is None


def test_every_flipped_bit_is_noticed(inspector):
    data = bytes_of(update())
    for bit in range(0, 8 * len(data), 7):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert inspector.open(0, bytes(damaged), granted=GRANTED, number=ROUND) is None
    assert set(inspector.refused) == {"checksum"}


def test_with_a_frozen_a_only_b_is_taken():
    shared = [torch.randn(4, s.in_features) for s in SPECS]
    inspector = Inspector(
        SPECS, number_format="fp32", coding="absolute", max_norm=100.0, shared_down=shared
    )
    own = Adapter(tuple(a[:r] for a, r in zip(shared, GRANTED, strict=True)), update().up)
    data = bytes_of(own, coding="absolute", is_half=True)
    opened = inspector.open(0, data, granted=GRANTED, number=ROUND)
    assert torch.equal(opened.delta(0), own.delta(0))
    whole = bytes_of(own, coding="absolute")
    assert inspector.open(0, whole, granted=GRANTED, number=ROUND) is None


def test_a_huge_factor_is_refused_although_the_product_is_small(inspector):
    honest = update()
    lying = Adapter(
        tuple(1e6 * d for d in honest.down), tuple(1e-6 * u for u in honest.up)
    )  # fmt: skip
    assert inspector.open(0, bytes_of(lying), granted=GRANTED, number=ROUND) is None
    assert dict(inspector.refused) == {"norm": 1}


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "NoneType"),
        (update().down, "tuple"),
        (Adapter(update().down[:1], update().up[:1]), "1 projections down and 1 up"),
        (Adapter(update().up, update().down), r"down .*\[4, 2\] on cpu and up .* in projection 0"),
        (
            Adapter(tuple(d.numpy() for d in update().down), update().up),
            "down ndarray and up torch",
        ),
        (Adapter(tuple(d.double() for d in update().down), update().up), "down torch.float64"),
        (update(scale=float("nan")), "down torch.float32 .* on cpu not finite"),
        (update(scale=1e30), "norm inf"),
        (update(scale=1e3), "norm .*e.03"),
        (
            Adapter(update().down, tuple(u.requires_grad_() for u in update().up)),
            ".* with gradient",
        ),
        (Adapter(None, None), "down NoneType and up NoneType"),
        (Adapter((None, None), (None, None)), "down NoneType and up NoneType in projection 0"),
        (Adapter((torch.tensor(1.0),) * 2, update().up), r"down torch.float32 \[\] on cpu"),
        (update((3, 1)), r"down torch.float32 \[3, 6\]"),
    ],
)
def test_the_result_of_an_aggregator_must_be_an_adapter_of_these_projections(
    inspector, result, message
):
    with pytest.raises(ValueError, match=rf"a:B must return an Adapter of 2 .*; got {message}"):
        inspector.check_merged(result, max_rank=2, num_updates=3, name="a:B")
