"""No example lost, none doubled, and each kind does what its name says."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airllm.data.partition import Partition, partition


@given(
    st.integers(1, 9),
    st.integers(9, 200),
    st.sampled_from(get_args(Partition)),
    st.floats(1e-3, 100.0),
    st.integers(0, 5),
)
def test_every_example_is_somewhere_once_and_shares_are_even(devices, total, kind, alpha, seed):
    labels = np.arange(total) % 4
    parts = partition(
        labels, num_devices=devices, kind=kind, alpha=alpha,
        complexity=labels.astype(float), seed=seed,
    )  # fmt: skip
    assert sorted(np.concatenate(parts)) == list(range(total))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def share_of_commonest(alpha):
    labels = np.repeat(np.arange(10), 200)
    parts = partition(labels, num_devices=10, kind="dirichlet", alpha=alpha, seed=0)
    return np.mean([np.bincount(labels[p], minlength=10).max() / len(p) for p in parts])


def test_small_alpha_means_few_labels_a_device():
    assert share_of_commonest(0.05) > 0.55
    assert share_of_commonest(100.0) < 0.2


def test_complexity_is_sorted_over_the_devices():
    value = np.random.default_rng(0).random(50)
    parts = partition(np.zeros(50, int), num_devices=5, kind="complexity", complexity=value, seed=0)
    for first, second in pairwise(parts):
        assert value[first].max() <= value[second].min()


def test_the_seed_decides():
    parts = [
        partition(np.zeros(40, int), num_devices=4, kind="iid", seed=seed)[0] for seed in (0, 0, 1)
    ]
    assert list(parts[0]) == list(parts[1]) != list(parts[2])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_devices": 0}, "num_devices must be >= 1, got 0"),
        ({"num_devices": 9}, "8 examples cannot be shared by 9 devices"),
        ({"kind": "sorted"}, "kind must be one of iid, dirichlet, complexity, got 'sorted'"),
        ({"kind": "dirichlet", "alpha": 0.0}, "alpha must be > 0, got 0.0"),
        ({"kind": "complexity"}, "needs one value for each example"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        partition(np.zeros(8, int), **{"num_devices": 2, "kind": "iid", "seed": 0, **values})
