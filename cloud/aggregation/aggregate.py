"""Merging devices' low-rank updates of unequal ranks: pure functions with one signature.

Device k sends an update whose projection has the factors B_k [out, r_k] and A_k [r_k, in], its
scale folded in, and has the weight p_k (normalised here). Averaging the products is what federated
averaging means; averaging A and B apart is not, since mean(B) mean(A) != mean(B A).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airllm.lora.adapter import Adapter, stack, svd_of_product
from channel.aircomp import Alignment
from channel.aircomp import aggregate as sum_over_the_air

Array = NDArray[np.float64]
Aggregator = Callable[[Sequence[Adapter], Sequence[float], int], Adapter]
"""(updates [devices], weights [devices], max_rank) -> the merged update, max_rank at most"""


def exact(updates: Sequence[Adapter], weights: Sequence[float], max_rank: int) -> Adapter:
    """The best approximation of rank ``max_rank`` to sum_k p_k B_k A_k, strongest first.

    What FlexLoRA (Bai et al. 2024) takes from the SVD of the dense sum, had from the stacked
    factors: QR of both and an SVD of the small core (`svd_of_product`). Where the ranks add up to
    more than the smaller dimension, the sum itself is smaller than its factors, and taken.
    """
    p = _shares(updates, weights)
    return _merged(updates, [np.full((len(u.down), 1), s) for u, s in zip(updates, p, strict=True)],
                   max_rank)  # fmt: skip


def rank_partition(updates: Sequence[Adapter], weights: Sequence[float], max_rank: int) -> Adapter:
    """`exact`, with component i weighed among those devices alone that have an i-th one.

    Weights that do not know the ranks shrink what only few devices send, round after round, until
    the global update has nothing left beyond the smallest rank; raFLoRA (arXiv 2602.13486) takes
    p_k / sum of p_j over r_j > i instead.
    """
    p = _shares(updates, weights)
    ranks = np.stack([u.ranks for u in updates])  # [devices, projections]
    i = np.arange(max(int(ranks.max(initial=0)), 1))
    has = i[None, None, :] < ranks[:, :, None]  # [devices, projections, rank]
    total = (p[:, None, None] * has).sum(axis=0)
    share = np.where(has, p[:, None, None] / np.where(total > 0, total, 1.0), 0.0)
    return _merged(updates, list(share), max_rank)


def stacking(updates: Sequence[Adapter], weights: Sequence[float], max_rank: int) -> Adapter:
    """sum_k p_k B_k A_k with no cut: factors stacked, so that ranks add (FLoRA, Wang et al. 2024).

    ``max_rank`` does not bind. Beyond the smaller dimension the sum is brought back to it.
    """
    p = _shares(updates, weights)
    down, up = [], []
    for q in range(len(updates[0].down)):
        d, u = _stacked(updates, q, [np.full(1, s) for s in p])
        if len(d) > min(u.shape[0], d.shape[1]):
            d, u = _dense_form(d, u, None)
        down.append(d.float())
        up.append(u.float())
    return Adapter(tuple(down), tuple(up))


def zero_padding(updates: Sequence[Adapter], weights: Sequence[float], max_rank: int) -> Adapter:
    """mean(B) mean(A) of factors padded with zeros to the largest rank (HetLoRA, Cho et al. 2024).

    Component i must mean the same to all devices, so they send factors as they were trained.
    """
    p = torch.from_numpy(_shares(updates, weights))
    down, up = stack(updates)
    return Adapter(
        tuple((d * p[:, None, None]).sum(dim=0).float()[:max_rank] for d in down),
        tuple((u * p[:, None, None]).sum(dim=0).float()[:, :max_rank] for u in up),
    )


def naive(updates: Sequence[Adapter], weights: Sequence[float], max_rank: int) -> Adapter:
    """mean(B) mean(A) of factors of one rank (FedIT, Zhang et al. 2023).

    Raises ValueError for unequal ranks, which NumPy would broadcast where one of them is 1.
    """
    for device, update in enumerate(updates):
        unequal = np.flatnonzero(update.ranks != updates[0].ranks)
        if len(unequal):
            q = int(unequal[0])
            raise ValueError(
                f"naive averaging of factors needs equal ranks, but update {device} has rank "
                f"{update.ranks[q]} in projection {q} and update 0 has {updates[0].ranks[q]}; "
                f"use zero-padding or exact"
            )
    return zero_padding(updates, weights, max_rank)


def frozen_a(updates: Sequence[Adapter], weights: Sequence[float], max_rank: int) -> Adapter:
    """mean(B) A with the one A that all devices have and none trains (FFA-LoRA, Sun et al. 2024).

    Exact for equal ranks; shorter B are padded with zeros. Raises ValueError where the A differ.
    """
    p = torch.from_numpy(_shares(updates, weights))
    _, up = stack(updates)
    down = shared_down(updates)
    return Adapter(
        tuple(d[:max_rank] for d in down),
        tuple((u * p[:, None, None]).sum(dim=0).float()[:, :max_rank] for u in up),
    )


def over_the_air(
    updates: Sequence[Adapter],
    weights: Sequence[float],
    max_rank: int,
    *,
    alignment: Alignment,
    noise_power: float,
    rng: np.random.Generator,
) -> Adapter:
    """`frozen_a` where the channel does the sum: all B sent at once, as analog symbols.

    The devices scale their symbols by their weights beforehand; who is silent counts for nothing
    (`channel.aircomp`). Raises ValueError where the A differ, and where nobody transmits.
    """
    p = _shares(updates, weights)
    down, (_, up) = shared_down(updates), stack(updates)
    values = np.concatenate([u.double().numpy().reshape(len(u), -1) for u in up], axis=1)
    active = p * alignment.is_active
    if not active.any():
        raise ValueError("no device is above the threshold; lower it or wait")
    # The receiver forms a plain mean over those who transmit.
    scale = active / active.sum() * alignment.is_active.sum()
    mean = sum_over_the_air(
        values * scale[:, None], alignment, noise_power=noise_power, rng=rng
    )  # [coordinates]
    parts = np.split(mean, np.cumsum([u[0].numel() for u in up])[:-1])
    merged = (
        torch.from_numpy(part).float().reshape(u.shape[1:])
        for part, u in zip(parts, up, strict=True)
    )
    return Adapter(tuple(down), tuple(merged)).truncate([max_rank] * len(down))


AGGREGATORS: dict[str, Aggregator] = {
    "exact": exact,
    "rank-partition": rank_partition,
    "stacking": stacking,
    "zero-padding": zero_padding,
    "naive": naive,
    "frozen-a": frozen_a,
}
"""by name; 'aircomp' is `over_the_air`, bound to a round's channel by `air_aggregator`"""


def air_aggregator(
    alignment: Alignment, *, noise_power: float, rng: np.random.Generator
) -> Aggregator:
    """`over_the_air` in the channel of one round."""
    return partial(over_the_air, alignment=alignment, noise_power=noise_power, rng=rng)


def _shares(updates: Sequence[Adapter], weights: Sequence[float]) -> Array:
    """[devices] weights that add up to 1."""
    p = np.asarray(weights, dtype=float)
    if not updates or len(p) != len(updates):
        raise ValueError(f"weights must be one for each update, got {len(p)} for {len(updates)}")
    if not (np.isfinite(p).all() and (p >= 0).all() and p.sum() > 0):
        raise ValueError(f"weights must be >= 0, finite and not all 0, got {list(weights)}")
    return p / p.sum()


def _stacked(
    updates: Sequence[Adapter], projection: int, shares: Sequence[Array]
) -> tuple[Tensor, Tensor]:
    """Factors of one projection, [sum of ranks, in] and [out, sum of ranks], in float64.

    ``shares`` [devices][rank, or 1] weigh the components, half on either side.
    """
    total = sum(len(u.down[projection]) for u in updates)
    in_features, out_features = updates[0].down[projection].shape[1], len(updates[0].up[projection])
    down = torch.empty(total, in_features, dtype=torch.float64)
    up = torch.empty(out_features, total, dtype=torch.float64)
    at = 0
    for update, share in zip(updates, shares, strict=True):
        d, u = update.down[projection], update.up[projection]
        root = torch.from_numpy(np.sqrt(np.broadcast_to(share[: len(d)], len(d))))  # [rank]
        torch.mul(d, root[:, None], out=down[at : at + len(d)])
        torch.mul(u, root, out=up[:, at : at + len(d)])
        at += len(d)
    return down, up


def _merged(updates: Sequence[Adapter], shares: Sequence[Array], max_rank: int) -> Adapter:
    """Weighted sum of products cut to ``max_rank``; shares [devices][projections, rank or 1]."""
    down, up = [], []
    # One projection at a time: the factors of all of them at once would be the larger part of
    # the memory.
    for q in range(len(updates[0].down)):
        d, u = _stacked(updates, q, [share[q] for share in shares])
        if len(d) > min(u.shape[0], d.shape[1]):
            d, u = _dense_form(d, u, max_rank)
        else:
            d, u = svd_of_product(d, u, max_rank)
        down.append(d.float())
        up.append(u.float())
    return Adapter(tuple(down), tuple(up))


def _dense_form(down: Tensor, up: Tensor, max_rank: int | None) -> tuple[Tensor, Tensor]:
    """The product's SVD, cut; both factors carry the root of the singular values."""
    x, sigma, y = torch.linalg.svd(up @ down, full_matrices=False)
    root = sigma[:max_rank].sqrt()
    return y[:max_rank] * root[:, None], x[:, :max_rank] * root


def shared_down(updates: Sequence[Adapter]) -> list[Tensor]:
    """The longest A of each projection, of which all others must be a beginning."""
    longest = []
    for q in range(len(updates[0].down)):
        a = max((u.down[q] for u in updates), key=len)
        for device, update in enumerate(updates):
            if not torch.equal(update.down[q], a[: len(update.down[q])]):
                raise ValueError(
                    f"update {device} has an A of its own in projection {q}; a frozen A must be "
                    f"the same for all devices"
                )
        longest.append(a)
    return longest
