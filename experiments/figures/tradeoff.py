"""What accuracy costs: bits or energy, and which runs no other is better than in both."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.snr import (
    SNR,
    bound_shares,
    check_part,
    energy_against_snr,
    name_of,
    panels,
    parts_of,
    set_apart,
)
from experiments.figures.style import (
    PAGE_IN,
    Size,
    legend_above,
    log_ticks,
    looks_of,
    seeds_note,
    share_y,
    style,
)
from experiments.results.folder import condition_keys
from experiments.results.stats import mean_interval


def accuracy_against(
    axes: Axes, trials: pd.DataFrame, cost: str = "delivered_bits", metric: str = "accuracy"
) -> None:
    """One point a label and SNR, means over seeds with t-intervals, joined in the order of SNR.

    The grey staircase is the Pareto front of these means: what no label reaches with less. Raises
    ValueError for trials that differ in more than label, SNR and seed.
    """
    check_part(trials, "pareto_figure")
    (x_text, x_scale), (y_text, y_scale) = name_of(cost, trials), name_of(metric, trials)
    costs, gains = [], []
    for label, own in looks_of(trials).items():
        rows = trials[trials["label"] == label]
        groups = [g for _, g in rows.groupby(SNR, dropna=False)]
        if not groups:
            continue
        x = [mean_interval(x_scale * g[cost]) for g in groups]
        y = [mean_interval(y_scale * g[metric]) for g in groups]
        at = np.array([[e.value for e in x], [e.value for e in y]])
        axes.errorbar(
            at[0],
            at[1],
            xerr=np.nan_to_num([e.high - e.value for e in x]),
            yerr=np.nan_to_num([e.high - e.value for e in y]),
            fmt="none", ecolor=own["color"], elinewidth=0.6, alpha=0.35,
        )  # fmt: skip
        axes.plot(*set_apart(at, rows), **(own | {"linewidth": 0.7}))
        costs += list(at[0])
        gains += list(at[1])
    front = pareto_front(np.array(costs), np.array(gains))
    if len(front):
        x, y = np.array(costs)[front], np.array(gains)[front]
        axes.step(
            [*x, max(costs)], [*y, y[-1]], where="post", color="0.6", linewidth=2.5, alpha=0.5,
            zorder=0, label="Pareto front",
        )  # fmt: skip
    axes.set_xlabel(x_text)
    axes.set_ylabel(y_text)
    bound_shares(axes)
    log_ticks(axes, costs, "x")


def pareto_front(cost: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Indices, by rising cost, of points that none of lower or equal cost is as good as."""
    order = np.lexsort((-gain, cost))
    best = np.maximum.accumulate(np.concatenate(([-np.inf], gain[order])))[:-1]
    return order[gain[order] > best]


def pareto_figure(trials: pd.DataFrame, *, figsize: Size | None = None) -> Figure:
    """Accuracy against transmitted bits."""
    parts = parts_of(trials)
    with style():
        width = min(PAGE_IN, 2.0 + 2.0 * len(parts))
        figure = Figure(figsize=figsize or (width, 3.0), layout="constrained")
        grid = figure.subplots(1, len(parts), squeeze=False)[0]
        labels = list(looks_of(trials))
        for axes, (name, rows) in zip(grid, parts, strict=True):
            accuracy_against(axes, rows.assign(label=pd.Categorical(rows["label"], labels)))
            axes.set_title(name.replace(", ", ",\n"))
        share_y(grid)
        counts = trials.groupby(["label", *condition_keys(trials)], dropna=False)["seed"].nunique()
        legend_above(figure, grid, f"a point per SNR, {seeds_note(counts)}")
        return figure


def energy_figure(trials: pd.DataFrame, *, figsize: Size | None = None) -> Figure:
    """Energy against SNR, and what accuracy it bought."""
    return panels(
        trials,
        (energy_against_snr, lambda axes, c: accuracy_against(axes, c, "energy_j")),
        figsize=figsize,
    )
