"""The Gaussian mechanism on a device's update."""

import numpy as np
import pytest
import torch

from airllm.lora.adapter import Adapter
from airllm.lora.privacy import Privacy


def adapters(size=300.0):
    generator = torch.Generator().manual_seed(0)
    down = tuple(torch.randn(4, 30, generator=generator) for _ in range(3))
    before = Adapter(down, tuple(torch.randn(200, 4, generator=generator) for _ in range(3)))
    up = tuple(b + size * torch.randn(200, 4, generator=generator) for b in before.up)
    return before, Adapter(down, up)


def change(before, after):
    return torch.cat([(a - b).flatten() for a, b in zip(after.up, before.up, strict=True)])


def test_a_large_change_is_cut_to_the_norm_and_a_small_one_left():
    before, after = adapters()
    cut = Privacy(clip=0.5, noise=1e-9, seed=0).privatise(before, after, (0, 0))
    whole = change(before, after)
    torch.testing.assert_close(change(before, cut), 0.5 * whole / whole.norm(), rtol=0, atol=1e-5)
    left = Privacy(clip=1e6, noise=1e-15, seed=0).privatise(before, after, (0, 0))
    torch.testing.assert_close(change(before, left), whole)
    assert all(torch.equal(a, b) for a, b in zip(cut.down, after.down, strict=True))


def test_the_noise_is_that_of_the_sensitivity_and_every_draw_its_own():
    before, _ = adapters()
    privacy = Privacy(clip=0.25, noise=3.0, seed=0)
    drawn = {
        key: change(before, privacy.privatise(before, before, key))
        for key in ((0, 0), (0, 1), (1, 0))
    }
    for noise in drawn.values():
        assert float(noise.std()) == pytest.approx(2 * 0.25 * 3.0, rel=0.05)
        assert abs(float(noise.mean())) < 0.1
    pairs = [drawn[0, 0], drawn[0, 1], drawn[1, 0]]
    assert np.abs(np.corrcoef(torch.stack(pairs).numpy()) - np.eye(3)).max() < 0.1
    again = Privacy(clip=0.25, noise=3.0, seed=0).privatise(before, before, (0, 1))
    assert torch.equal(change(before, again), drawn[0, 1])
