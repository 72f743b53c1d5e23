"""Each device's share of the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Partition = Literal["iid", "dirichlet", "complexity"]
_STREAM = 30


def partition(
    labels: NDArray[np.int64],
    *,
    num_devices: int,
    kind: Partition,
    alpha: float = 0.5,
    complexity: Sequence[float] | None = None,
    seed: int,
) -> list[NDArray[np.int64]]:
    """Indices of each device's examples: every example once, shares as even as they can be.

    ``iid`` shuffles. ``dirichlet`` draws each device's label mix from Dirichlet(alpha) (Hsu et al.
    2019): device by device, from what is left of each label. ``complexity`` sorts by the given
    value, so that device 0 has the plainest text and the last the most complex.
    """
    if kind not in get_args(Partition):
        raise ValueError(f"kind must be one of {', '.join(get_args(Partition))}, got {kind!r}")
    total = len(labels)
    if num_devices < 1:
        raise ValueError(f"num_devices must be >= 1, got {num_devices}")
    if total < num_devices:
        raise ValueError(
            f"{total} examples cannot be shared by {num_devices} devices; "
            f"take fewer devices or more examples"
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM,)))
    if kind == "iid":
        order = rng.permutation(total)
    elif kind == "complexity":
        if complexity is None or len(complexity) != total:
            raise ValueError("partition by complexity needs one value for each example")
        order = np.argsort(np.asarray(complexity), kind="stable")
    else:
        if not alpha > 0:
            raise ValueError(f"alpha must be > 0, got {alpha}")
        order = _dirichlet_order(labels, num_devices, alpha, rng)
    return [np.sort(part).astype(np.int64) for part in np.array_split(order, num_devices)]


def _dirichlet_order(
    labels: NDArray[np.int64], num_devices: int, alpha: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    classes = np.unique(labels)
    pools = [list(rng.permutation(np.flatnonzero(labels == c))) for c in classes]
    sizes = [len(part) for part in np.array_split(np.arange(len(labels)), num_devices)]
    order: list[int] = []
    for size in sizes:
        # Gamma draws normalised: Dirichlet, with a floor that keeps tiny alphas from 0/0.
        mix = rng.gamma(alpha, size=len(classes)) + 1e-12
        for _ in range(size):
            weights = np.where([len(pool) > 0 for pool in pools], mix, 0.0)
            chosen = rng.choice(len(classes), p=weights / weights.sum())
            order.append(int(pools[chosen].pop()))
    return np.array(order, dtype=np.int64)
