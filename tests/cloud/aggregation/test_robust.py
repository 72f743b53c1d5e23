"""Merging where a fifth of the devices are malicious."""

import numpy as np
import pytest
import torch

from airllm.lora.adapter import Adapter
from cloud.aggregation.aggregate import exact, frozen_a
from cloud.aggregation.robust import clipped, trimmed

SHAPES = ((20, 12), (8, 30))  # [projections] (out, in)
MAX_RANK = 8


def honest(number, *, shared, ranks=4):
    """Devices around one common change, each with noise of its own."""
    generator = torch.Generator().manual_seed(0)
    common_down = [torch.randn(ranks, i, generator=generator) for _, i in SHAPES]
    common_up = [torch.randn(o, ranks, generator=generator) for o, _ in SHAPES]

    def near(tensor):
        return tensor + 0.3 * torch.randn(tensor.shape, generator=generator)

    return [
        Adapter(
            tuple(common_down) if shared else tuple(map(near, common_down)),
            tuple(map(near, common_up)),
        )
        for _ in range(number)
    ]


def attacked(update, kind):
    generator = torch.Generator().manual_seed(1)
    up = {
        "scaled": lambda u: 100.0 * u,
        "sign-flipped": lambda u: -u,
        "scaled and flipped": lambda u: -100.0 * u,
        "noise": lambda u: 100.0 * torch.randn(u.shape, generator=generator),
    }[kind]
    return Adapter(update.down, tuple(map(up, update.up)))


def error(merged, wanted):
    return merged.minus(wanted).norm() / wanted.norm()


ATTACKS = ("scaled", "sign-flipped", "scaled and flipped", "noise")


@pytest.mark.parametrize("kind", ATTACKS)
@pytest.mark.parametrize(("plain", "robust"), [(exact, clipped), (frozen_a, trimmed)])
def test_a_fifth_of_malicious_devices_moves_the_result_little(plain, robust, kind):
    devices = honest(10, shared=robust is trimmed)
    wanted = plain(devices[2:], [1.0] * 8, MAX_RANK)
    received = [attacked(d, kind) for d in devices[:2]] + devices[2:]
    # Clipping leaves a malicious device the weight that it has: 2 of 10 pull against 8 of 10.
    bound = 0.5 if robust is clipped else 0.3
    assert error(robust(received, [1.0] * 10, MAX_RANK), wanted) < bound
    if kind != "sign-flipped":
        assert error(plain(received, [1.0] * 10, MAX_RANK), wanted) > 5.0


def test_without_malice_the_robust_ones_are_near_the_plain_ones():
    same = honest(1, shared=True) * 5
    assert error(clipped(same, [1.0] * 5, MAX_RANK), same[0]) < 1e-5
    assert error(trimmed(same, [1.0] * 5, MAX_RANK), same[0]) < 1e-6
    devices = honest(9, shared=True)
    mean = frozen_a(devices, [1.0] * 9, MAX_RANK)
    assert error(trimmed(devices, [1.0] * 9, MAX_RANK), mean) < 0.1
    assert error(clipped(devices, [1.0] * 9, MAX_RANK), mean) < 0.1


def test_the_trimmed_mean_is_that_of_sorted_values():
    down = (torch.ones(1, 3),)
    values = [5.0, 1.0, 100.0, 3.0, -50.0]
    updates = [Adapter(down, (torch.tensor([[v], [2 * v]]),)) for v in values]
    merged = trimmed(updates, [1.0, 9.0, 1.0, 1.0, 1.0], MAX_RANK)
    torch.testing.assert_close(merged.up[0], torch.tensor([[3.0], [6.0]]))
    assert torch.equal(merged.down[0], down[0])


def test_a_component_is_averaged_among_those_that_have_it_and_order_does_not_matter():
    devices = honest(6, shared=True)
    mixed = [d.truncate([4, 4]) if n < 3 else d.truncate([2, 0]) for n, d in enumerate(devices)]
    merged = trimmed(mixed, [1.0] * 6, MAX_RANK)
    again = trimmed(mixed[::-1], [1.0] * 6, MAX_RANK)
    np.testing.assert_array_equal(merged.ranks, [4, 4])
    for a, b in zip(merged.up, again.up, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(
        merged.up[1], torch.stack([d.up[1] for d in devices[:3]]).mean(dim=0)
    )


def test_different_a_are_refused():
    with pytest.raises(ValueError, match="a frozen A must be the same for all devices"):
        trimmed(honest(4, shared=False), [1.0] * 4, MAX_RANK)
