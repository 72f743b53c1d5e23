"""Projections, rank vectors, and the two decoders that turn real-valued proposals into ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Ranks = NDArray[np.int64]  # [devices, projections]

_MORE = 4  # devices that are tried beyond those a price admits
_GRID = 2000  # levels of the budget in `fit_knapsack`


def quantise(proposal: NDArray[np.floating], *, r_min: int, r_max: int) -> Ranks:
    """Floor a proposal in [-1, 1] onto the integers r_min..r_max, as the published scheme does.

    Values outside [-1, 1] are clipped. Shape is kept: [devices, projections].
    """
    unit = (np.clip(proposal, -1.0, 1.0) + 1.0) / 2.0
    return np.floor(r_min + unit * (r_max - r_min)).astype(np.int64)


def fit_budget(
    value: NDArray[np.floating],
    unit_cost: NDArray[np.floating],
    budget: NDArray[np.floating],
    *,
    is_joint: bool,
    fixed_charge: NDArray[np.floating] | None = None,
) -> Ranks:
    """Project component values onto a budget: keep what is worth most per unit of cost.

    ``value`` [devices, projections, rank] is the utility of each component, non-increasing along
    the rank axis once made so by a running minimum (rank r stands for the *first* r components);
    components with value <= 0 are never kept. ``unit_cost`` [devices, projections] > 0 is what one
    component costs (infinite: it cannot be had), ``budget`` [devices] what there is; with
    ``is_joint`` the devices share the sum of the budgets. One shared water level on value/cost
    decides, so the plan never exceeds the budget, grows with it, and leaves less unused than the
    next component in line costs.

    ``fixed_charge`` [devices] >= 0 is what a device gives up as soon as it is sent anything; it is
    served only where the utility of what it is sent is larger (`_admitted`), and the others share
    the budget.
    """
    devices, projections, rank = value.shape
    ranks = np.zeros((devices, projections), dtype=np.int64)
    # The bounds leave room to divide by a small cost.
    known = np.clip(np.nan_to_num(value, nan=0.0), -1e150, 1e150)
    running = np.minimum.accumulate(known, axis=2)
    # A component that never gets through (rate 0, infinite cost) is worth nothing.
    density = np.where(np.isfinite(unit_cost)[:, :, None], running / unit_cost[:, :, None], 0.0)
    cost = np.broadcast_to(unit_cost[:, :, None], value.shape)
    groups = [np.arange(devices)] if is_joint else [np.array([d]) for d in range(devices)]
    for group in groups:
        own = density[group].reshape(len(group), -1)
        paid = cost[group].reshape(len(group), -1)
        if fixed_charge is None or not fixed_charge[group].any():
            kept = _level(own, paid, budget[group])
        else:
            kept = _admitted(own, paid, budget[group], fixed_charge[group])
        ranks[group] = kept.reshape(len(group), projections, rank).sum(axis=2)
    return ranks


def _level(density: Array, cost: Array, budget: Array) -> NDArray[np.bool_]:
    """[devices, items] the densest items until the next one would burst the joint budget."""
    flat = density.reshape(-1)
    # A stable sort keeps the lower rank first among equals, so ranks stay prefixes.
    order = np.argsort(-flat, kind="stable")
    order = order[flat[order] > 0.0]
    spent = np.cumsum(cost.reshape(-1)[order])
    kept = order[: int(np.searchsorted(spent, budget.sum() * (1 + 1e-12), "right"))]
    chosen = np.zeros(flat.shape, dtype=bool)
    chosen[kept] = True
    return chosen.reshape(density.shape)


def _admitted(density: Array, cost: Array, budget: Array, fixed_charge: Array) -> NDArray[np.bool_]:
    """`_level` over those devices only that it is worth serving.

    At a price for air time each device decides alone what it would take and whether that is worth
    more than its fixed charge (Lagrange relaxation of a knapsack with fixed charges); the price is
    found by bisection. What it leaves unused goes to those admitted, or to a few more devices, the
    nearest to being served first, as long as the sum of utility less fixed charges grows.
    """
    paid = np.where(density > 0.0, cost, 0.0)
    utility = np.where(density > 0.0, density * cost, 0.0)

    def demand(price: float) -> tuple[NDArray[np.bool_], Array, float]:
        takes = density > price
        surplus = ((utility - price * paid) * takes).sum(axis=1) - fixed_charge
        served = surplus > 0.0
        return served, surplus, float((paid * takes)[served].sum())

    def plan(served: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], float]:
        kept = _level(density * served[:, None], cost, budget)
        return kept, float((utility * kept).sum() - fixed_charge[kept.any(axis=1)].sum())

    total = budget.sum() * (1 + 1e-12)
    low, high = 0.0, float(density.max(initial=0.0))
    if demand(low)[2] <= total:
        high = low
    while high - low > 1e-6 * high:
        middle = 0.5 * (low + high)
        if demand(middle)[2] <= total:
            high = middle
        else:
            low = middle
    served, _, _ = demand(high)
    best, net = plan(served)
    surplus = np.where(served, -np.inf, demand(low)[1])
    for device in np.argsort(-surplus, kind="stable")[:_MORE]:
        if np.isfinite(surplus[device]):
            more = served.copy()
            more[device] = True
            kept, other = plan(more)
            if other > net:
                served, best, net = more, kept, other
    # Rounding may leave a device with less than its fixed charge.
    worthwhile = (utility * best).sum(axis=1) > fixed_charge
    return best & worthwhile[:, None]


def fit_knapsack(
    value: NDArray[np.floating],
    unit_cost: NDArray[np.floating],
    budget: NDArray[np.floating],
    *,
    is_joint: bool,
) -> Ranks:
    """`fit_budget` by dynamic programming instead of greedily; same arguments and guarantees.

    Costs are rounded up to a 2000th of the budget, so the plan never exceeds it; within this grid
    no plan is worth more. A projection's components cost the same and are worth less and less, so
    the best set of them is always its first ones.
    """
    devices, projections, rank = value.shape
    known = np.clip(np.nan_to_num(value, nan=0.0), -1e150, 1e150)
    running = np.minimum.accumulate(known, axis=2)
    ranks = np.zeros((devices, projections), dtype=np.int64)
    groups = [np.arange(devices)] if is_joint else [np.array([d]) for d in range(devices)]
    for group in groups:
        total = float(budget[group].sum())
        if not total > 0:
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            levels = np.ceil(unit_cost[group] / total * _GRID * (1 - 1e-12))  # [group, projections]
        utility = running[group].reshape(-1)
        cost = np.repeat(np.where(np.isfinite(levels), levels, _GRID + 1).reshape(-1), rank)
        items = np.flatnonzero((utility > 0) & (cost <= _GRID))
        best = np.zeros(_GRID + 1)
        taken = np.zeros((len(items), _GRID + 1), dtype=bool)
        for n, item in enumerate(items):
            c = max(int(cost[item]), 1)
            with_it = best[:-c] + utility[item]
            taken[n, c:] = with_it > best[c:]
            best[c:] = np.maximum(with_it, best[c:])
        level = _GRID
        count = np.zeros(len(group) * projections, dtype=np.int64)
        for n in range(len(items) - 1, -1, -1):
            if taken[n, level]:
                count[items[n] // rank] += 1
                level -= max(int(cost[items[n]]), 1)
        ranks[group] = count.reshape(len(group), projections)
    return ranks
