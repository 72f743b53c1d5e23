"""Aggregators that a minority of malicious devices cannot steer at will.

They have the signature of those in `cloud.aggregation.aggregate`. Neither needs to know who is
malicious.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from airllm.lora.adapter import Adapter, stack
from cloud.aggregation.aggregate import Aggregator, exact, shared_down

TRIM = 0.25
"""share of the devices that is left out at either end; malicious ones have to be fewer"""


def clipped(updates: Sequence[Adapter], weights: Sequence[float], max_rank: int) -> Adapter:
    """`exact` over updates whose norm is at most the median of all norms (Sun et al. 2019).

    Against updates that are scaled up. One that points the wrong way still counts, by its weight
    and no more. The median stands for the bound that would have to be known beforehand.
    """
    norms = np.array([update.norm() for update in updates])
    limit = float(np.median(norms))
    scales = np.minimum(1.0, limit / np.maximum(norms, 1e-30))
    each = [u.scaled(float(s)) for u, s in zip(updates, scales, strict=True)]
    return exact(each, weights, max_rank)


def trimmed(updates: Sequence[Adapter], weights: Sequence[float], max_rank: int) -> Adapter:
    """Coordinate by coordinate, the mean of B without its largest and smallest values, times A.

    The trimmed mean of Yin et al. 2018 needs coordinates that mean the same for all devices, hence
    the one frozen A of `frozen_a`. Values count alike, whatever their weights: a weight is what a
    device says of itself. Of the n devices that have a component, floor(n / 4) are left out at
    either end. Raises ValueError where the A differ.
    """
    down, (_, up) = shared_down(updates), stack(updates)
    ranks = np.stack([update.ranks for update in updates])  # [devices, projections]
    merged = []
    for q, b in enumerate(up):  # [devices, out, rank]
        mean = torch.zeros_like(b[0])
        for i in range(b.shape[2]):
            own = b[torch.from_numpy(ranks[:, q] > i), :, i].sort(dim=0).values  # [those, out]
            cut = int(TRIM * len(own))
            mean[:, i] = own[cut : len(own) - cut].mean(dim=0)
        merged.append(mean)
    return Adapter(tuple(down), tuple(merged)).truncate([max_rank] * len(down))


ROBUST: dict[str, Aggregator] = {"clipped": clipped, "trimmed": trimmed}
"""by name"""
