"""What each device could be sent in a round, and what each part of it is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter, svd_form
from airllm.lora.sensitivity import Importance, measure_sensitivity, second_order_utility
from airllm.models.base import BaseModel
from airllm.models.batches import Examples
from airllm.models.head import Head

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Residuals:
    """Lists and arrays are [devices, ...]; components stand in the order in which they are sent."""

    adapters: list[Adapter]
    energy: Array
    """[devices, projections, rank] squared singular values"""
    utility: Array
    """[devices, projections, rank] by the importance that was asked for"""


def residuals_of(
    base: BaseModel,
    head: Head | None,
    master: Adapter,
    device_adapters: Sequence[Adapter],
    *,
    importance: Importance,
    is_residual: bool,
    r_max: int,
    texts: Callable[[int], Sequence[Examples]],
) -> Residuals:
    """The update that could be sent to each device, in SVD form and in order of importance.

    With residual coding it is what the master has and the device has not; else the master, whatever
    the device has; `second-order` is then the gain halfway between nothing and the master, by the
    midpoint rule. ``texts`` gives what an importance needs to probe so many adapters on, in parts.
    """
    if importance == "first":
        return _same_for_all(master, len(device_adapters), r_max)
    # What is asked once serves all devices for which it is the same.
    keys = [i if is_residual and h.ranks.any() else -1 for i, h in enumerate(device_adapters)]
    distinct = list(dict.fromkeys(keys))
    adapters = [
        svd_form(master if i < 0 else master.minus(device_adapters[i]), r_max) for i in distinct
    ]
    zero = Adapter.zero(base.specs)
    probed_at = [zero if i < 0 else device_adapters[i] for i in distinct]
    if importance == "second-order" and not is_residual:
        # As long a step as the whole update: halfway along it, gains add up to what it brings.
        probed_at, importance = [adapter.scaled(0.5) for adapter in adapters], "gain"
    parts = () if importance == "energy" else texts(len(distinct))
    found = ordered(
        base, head, adapters, probed_at, importance=importance, r_max=r_max, parts=parts
    )
    place = [distinct.index(key) for key in keys]
    return Residuals([found.adapters[i] for i in place], found.energy[place], found.utility[place])


def ordered(
    base: BaseModel,
    head: Head | None,
    updates: Sequence[Adapter],
    device_adapters: Sequence[Adapter],
    *,
    importance: Importance,
    r_max: int,
    parts: Sequence[Examples],
) -> Residuals:
    """Updates in SVD form, components in order of importance to the devices that hold adapters."""
    energy = np.stack([a.energy(r_max) for a in updates])
    if importance in ("first", "energy"):
        return Residuals(list(updates), energy, energy)
    at = (
        [Adapter.zero(base.specs)] * len(device_adapters)
        if importance == "gain-at-start"
        else device_adapters
    )
    is_pooled = importance in ("second-order", "gain-at-start")
    found = measure_sensitivity(
        base, head, at, updates, parts,
        width=r_max, is_pooled=is_pooled, with_curvature=importance == "second-order",
    )  # fmt: skip
    if importance == "second-order":
        utility = second_order_utility(found, np.array([s.params_per_rank for s in base.specs]))
    elif importance == "gain-at-start":
        utility = found.pooled_gain  # by the texts of all, who are all in one place
    else:
        utility = found.fisher if importance == "fisher" else found.gain
    order = np.argsort(-utility, axis=2, kind="stable")
    return Residuals(
        [_reordered(a, of) for a, of in zip(updates, order, strict=True)],
        np.take_along_axis(energy, order, axis=2),
        np.take_along_axis(utility, order, axis=2),
    )


def _same_for_all(master: Adapter, number: int, r_max: int) -> Residuals:
    energy = np.repeat(master.energy(r_max)[None], number, axis=0)
    return Residuals([master] * number, energy, energy)


def _reordered(adapter: Adapter, order: NDArray[np.int64]) -> Adapter:
    """Components by ``order`` [projections, r_max], of which an adapter may have fewer."""
    places = (o[o < len(d)] for o, d in zip(order, adapter.down, strict=True))
    return adapter.reorder([torch.from_numpy(p) for p in places])
