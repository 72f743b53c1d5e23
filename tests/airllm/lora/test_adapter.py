"""Truncation against numpy, stacking, recompression."""

import numpy as np
import pytest
import torch

from airllm.lora.adapter import Adapter, accumulate, stack, svd_form
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


def test_a_stack_pads_unequal_ranks_with_components_that_change_nothing():
    adapters = [random_adapter([2, 0, 1], 1), random_adapter([3, 1, 2], 2), Adapter.zero(SPECS)]
    down, up = stack(adapters)
    assert [tuple(d.shape[:2]) for d in down] == [(3, 3), (3, 1), (3, 2)]
    for p in range(len(SPECS)):
        for i, adapter in enumerate(adapters):
            torch.testing.assert_close(up[p][i] @ down[p][i], adapter.delta(p))
