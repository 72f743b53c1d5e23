"""Merging: federated averaging of the products where that is promised, whoever comes first."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from airllm.lora.adapter import Adapter
from channel.aircomp import align
from cloud.aggregation.aggregate import (
    AGGREGATORS,
    air_aggregator,
    exact,
    naive,
    rank_partition,
    stacking,
)

SHAPES = ((24, 40), (40, 24), (24, 24))  # (out, in) of three projections
EXACT = ("exact", "rank-partition", "stacking")


def adapter(ranks, *, seed, shapes=SHAPES, shared=False):
    own = torch.Generator().manual_seed(seed)
    common = torch.Generator().manual_seed(99)
    down = [
        torch.randn(16, i, generator=common)[:r] if shared else torch.randn(r, i, generator=own)
        for r, (_, i) in zip(ranks, shapes, strict=True)
    ]
    up = [torch.randn(o, r, generator=own) for r, (o, _) in zip(ranks, shapes, strict=True)]
    return Adapter(tuple(down), tuple(up))


def dense(updates, weights, projection):
    p = np.asarray(weights) / np.sum(weights)
    return sum(w * u.delta(projection).double() for w, u in zip(p, updates, strict=True))


def cut(matrix, rank):
    x, s, y = torch.linalg.svd(matrix, full_matrices=False)
    return x[:, :rank] * s[:rank] @ y[:rank]


@pytest.mark.parametrize("ranks", [[(2, 1, 4), (3, 0, 2), (1, 2, 1)], [(16, 9, 16)] * 3])
def test_exact_equals_the_dense_computation(ranks):
    """Few ranks: by the small core; 48 of them in 24 dimensions: densely."""
    updates = [adapter(r, seed=k) for k, r in enumerate(ranks)]
    weights = [3.0, 1.0, 2.0]
    merged = exact(updates, weights, 4)
    for q in range(len(SHAPES)):
        expected = cut(dense(updates, weights, q), 4)
        error = torch.linalg.norm(merged.delta(q) - expected) / torch.linalg.norm(expected)
        assert error < 1e-5
    assert merged.ranks.max() == 4


@pytest.mark.parametrize("name", AGGREGATORS)
def test_equal_ranks_and_a_common_a_reduce_to_averaging_the_products(name):
    """So it is after one step from B = 0, which leaves A where it was for everyone."""
    updates = [adapter((3, 3, 3), seed=k, shared=True) for k in range(4)]
    weights = [1.0, 2.0, 3.0, 4.0]
    merged = AGGREGATORS[name](updates, weights, 8)
    for q in range(len(SHAPES)):
        torch.testing.assert_close(
            merged.delta(q), dense(updates, weights, q).float(), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", AGGREGATORS)
def test_the_order_of_the_devices_does_not_matter(name):
    ranks = [(3, 3, 3)] * 3 if name == "naive" else [(1, 4, 2), (3, 0, 2), (2, 2, 5)]
    updates = [adapter(r, seed=k, shared=name == "frozen-a") for k, r in enumerate(ranks)]
    first = AGGREGATORS[name](updates, [1.0, 2.0, 4.0], 8)
    again = AGGREGATORS[name]([updates[i] for i in (2, 0, 1)], [4.0, 1.0, 2.0], 8)
    for q in range(len(SHAPES)):
        torch.testing.assert_close(first.delta(q), again.delta(q), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EXACT)
def test_what_is_exact_loses_nothing_that_its_rank_can_hold(name):
    updates = [adapter((3, 3, 3), seed=k) for k in range(3)]
    merged = AGGREGATORS[name](updates, [1.0, 1.0, 2.0], 9)
    for q in range(len(SHAPES)):
        torch.testing.assert_close(
            merged.delta(q), dense(updates, [1, 1, 2], q).float(), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", ["zero-padding", "naive"])
def test_averaging_factors_is_not_averaging_products(name):
    updates = [adapter((3, 3, 3), seed=k) for k in range(3)]
    merged = AGGREGATORS[name](updates, [1.0] * 3, 9)
    expected = dense(updates, [1] * 3, 0)
    assert torch.linalg.norm(merged.delta(0) - expected) > 0.3 * torch.linalg.norm(expected)


def test_stacking_keeps_all_ranks_until_the_matrix_is_full():
    few = stacking([adapter((2, 1, 4), seed=k) for k in range(3)], [1.0] * 3, 4)
    assert list(few.ranks) == [6, 3, 12]
    full = stacking([adapter((16, 16, 16), seed=k) for k in range(3)], [1.0] * 3, 4)
    assert list(full.ranks) == [24, 24, 24]


def test_rank_partitions_keep_what_one_device_alone_sends():
    """Two devices, one of them of rank 1: its partner's second component keeps its size."""
    down, up = torch.eye(2), torch.eye(2)
    tall, low = Adapter((down,), (up,)), Adapter((down[:1],), (up[:, :1],))
    diluted = exact([tall, low], [1.0, 1.0], 2).delta(0)
    kept = rank_partition([tall, low], [1.0, 1.0], 2).delta(0)
    torch.testing.assert_close(diluted, torch.diag(torch.tensor([1.0, 0.5])))
    torch.testing.assert_close(kept, torch.eye(2))


def test_naive_refuses_unequal_ranks_that_would_broadcast():
    updates = [adapter((3, 3, 3), seed=0), adapter((3, 1, 3), seed=1)]
    with pytest.raises(ValueError, match=r"update 1 has rank 1 in projection 1 .* zero-padding"):
        naive(updates, [1.0, 1.0], 8)


def test_a_frozen_a_must_be_the_same():
    updates = [adapter((2, 2, 2), seed=0, shared=True), adapter((2, 2, 2), seed=1)]
    with pytest.raises(ValueError, match="update 1 has an A of its own in projection 0"):
        AGGREGATORS["frozen-a"](updates, [1.0, 1.0], 8)


def test_the_air_sums_up_to_its_noise():
    updates = [adapter((2, 2, 2), seed=k, shared=True) for k in range(4)]
    weights = [1.0, 2.0, 1.0, 4.0]
    amplitude = np.array([0.5, 1.0, 2.0, 1.5])
    everyone = align(amplitude, max_power=1.0, inversion="full")
    expected = AGGREGATORS["frozen-a"](updates, weights, 8)
    for noise_power, tolerance in ((0.0, 1e-5), (1e-4, 0.1)):
        air = air_aggregator(everyone, noise_power=noise_power, rng=np.random.default_rng(0))
        merged = air(updates, weights, 8)
        error = torch.linalg.norm(merged.up[0] - expected.up[0])
        assert error < tolerance * torch.linalg.norm(expected.up[0])
        assert (error > 1e-4) == (noise_power > 0)


def test_who_is_silent_on_the_air_does_not_count():
    updates = [adapter((2, 2, 2), seed=k, shared=True) for k in range(3)]
    loud = align(np.array([1.0, 0.01, 1.0]), max_power=1.0, inversion="truncated", threshold=0.5)
    merged = air_aggregator(loud, noise_power=0.0, rng=np.random.default_rng(0))(
        updates, [1.0, 5.0, 3.0], 8
    )
    expected = AGGREGATORS["frozen-a"]([updates[0], updates[2]], [1.0, 3.0], 8)
    torch.testing.assert_close(merged.up[0], expected.up[0], rtol=1e-4, atol=1e-5)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("name", EXACT)
def test_no_dense_matrix_is_formed_while_the_ranks_add_up_to_less(name):
    updates = [adapter((4,), seed=k, shapes=((256, 256),)) for k in range(20)]
    with Largest() as largest:
        AGGREGATORS[name](updates, [1.0] * 20, 8)
    assert largest.numel <= 256 * 80


@pytest.mark.parametrize("name", AGGREGATORS)
def test_nothing_merged_is_nothing(name):
    merged = AGGREGATORS[name]([adapter((0, 0, 0), seed=k) for k in range(2)], [1.0, 1.0], 4)
    assert all(not merged.delta(q).any() for q in range(len(SHAPES)))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_bad_weights_are_named(weights):
    with pytest.raises(ValueError, match="weights must be"):
        exact([adapter((1, 1, 1), seed=k) for k in range(2)], weights, 2)
