"""Truncation against numpy, stacking against one device at a time, recompression."""

import numpy as np
import pytest
import torch

from airllm.lora.adapter import Adapter, accumulate, svd_form
from airllm.models.adapter_bank import AdapterBank, stack
from airllm.models.projections import ProjectionSpec

SPECS = (
    ProjectionSpec("block.0.wide", 12, 30, 0, "wide"),
    ProjectionSpec("block.0.tall", 30, 12, 0, "tall"),
    ProjectionSpec("block.1.small", 5, 4, 1, "small"),
)


def random_adapter(ranks, seed=0):
    generator = torch.Generator().manual_seed(seed)
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


def test_truncated_svd_form_is_numpys_truncated_svd():
    adapter = random_adapter([6, 6, 4])
    form = svd_form(adapter)
    for p in range(len(SPECS)):
        u, s, vt = np.linalg.svd(adapter.delta(p).double().numpy(), full_matrices=False)
        np.testing.assert_allclose(
            form.energy(4)[p], np.pad(s**2, (0, 4))[:4], rtol=1e-5, atol=1e-6
        )
        for rank in range(4):
            best = (u[:, :rank] * s[:rank]) @ vt[:rank]
            cut = form.truncate([rank] * 3).delta(p).numpy()
            np.testing.assert_allclose(cut, best, atol=1e-4)


def test_svd_form_of_rank_above_dimension_is_exact():
    """Projection 'small' is 4 x 5; sixteen stacked components still fit into four."""
    adapter = random_adapter([1, 1, 16])
    form = svd_form(adapter)
    assert form.ranks[2] == 4
    np.testing.assert_allclose(form.delta(2).numpy(), adapter.delta(2).numpy(), atol=1e-4)


def test_both_factors_of_a_component_have_the_same_norm():
    form = svd_form(random_adapter([3, 3, 3]))
    for down, up in zip(form.down, form.up, strict=True):
        torch.testing.assert_close(down.norm(dim=1), up.norm(dim=0))


def test_difference_of_equal_updates_has_no_energy():
    adapter = random_adapter([3, 2, 1])
    left = svd_form(adapter.minus(adapter))
    assert left.energy(8).max() < 1e-8 * svd_form(adapter).energy(8).max()


def test_accumulated_residuals_converge_to_the_master():
    """Error feedback: one component a round, and after rank many rounds nothing is missing."""
    master, device_adapter = svd_form(random_adapter([4, 4, 4])), Adapter.zero(SPECS)
    for _ in range(4):
        residual = svd_form(master.minus(device_adapter))
        device_adapter = accumulate(device_adapter, residual.truncate([1, 1, 1]), max_rank=6)
    for p in range(3):
        torch.testing.assert_close(device_adapter.delta(p), master.delta(p), atol=1e-4, rtol=1e-4)


def test_accumulate_never_exceeds_its_rank():
    device_adapter = Adapter.zero(SPECS)
    for seed in range(5):
        device_adapter = accumulate(device_adapter, random_adapter([3, 3, 3], seed), max_rank=4)
        assert device_adapter.ranks.max() <= (4 if seed else 3)


def test_truncate_names_a_wrong_length():
    with pytest.raises(ValueError, match="ranks must have 3 entries, got 2"):
        random_adapter([2, 2, 2]).truncate([1, 1])


@pytest.mark.parametrize("ranks", [[0, 0, 0], [2, 0, 1]])
def test_a_stack_of_devices_gives_each_its_own_update(ranks):
    linear = torch.nn.Linear(12, 30)
    bank = AdapterBank([linear, torch.nn.Linear(30, 12), torch.nn.Linear(5, 4)])
    adapters = [random_adapter(ranks, 1), random_adapter([3, 1, 2], 2), Adapter.zero(SPECS)]
    x = torch.randn(3, 4, 7, 12, generator=torch.Generator().manual_seed(3))
    bank.load_adapters(adapters, torch.device("cpu"))
    together = linear(x.reshape(12, 7, 12)).reshape(3, 4, 7, 30)
    for i, adapter in enumerate(adapters):
        bank.load_adapters([adapter], torch.device("cpu"))
        torch.testing.assert_close(together[i], linear(x[i]))
        bank.clear()
        expected = linear(x[i]) + x[i] @ adapter.delta(0).T
        torch.testing.assert_close(together[i], expected, atol=1e-4, rtol=1e-4)


def test_component_scales_are_differentiable_at_zero():
    """d loss / d scale_i is what adding component i would change, to first order."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(12, 30)
    bank = AdapterBank([linear])
    adapter = random_adapter([2, 0, 0])
    down, up = stack([adapter])
    scale = torch.zeros(1, 2, requires_grad=True)
    x, target = torch.randn(4, 3, 12), torch.randn(4, 3, 30)
    bank.load(down[:1], up[:1], [scale])
    ((linear(x) - target) ** 2).mean().backward()
    step = 1e-3
    for i in range(2):
        weights = torch.zeros(1, 2)
        weights[0, i] = step
        bank.load(down[:1], up[:1], [weights])
        high = ((linear(x) - target) ** 2).mean().item()
        bank.load(down[:1], up[:1], [-weights])
        low = ((linear(x) - target) ** 2).mean().item()
        assert scale.grad[0, i].item() == pytest.approx((high - low) / (2 * step), rel=1e-2)
