"""Labels over all conditions: interquartile means with intervals, and performance profiles."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.snr import check_trials, name_of
from experiments.figures.style import PAGE_IN, Size, legend_above, lines_of, looks_of, style
from experiments.results.stats import performance_profile
from experiments.results.tables import aggregate_table, scores_of


def aggregate(axes: Axes, trials: pd.DataFrame, metric: str = "mean_accuracy") -> None:
    """Interquartile mean over seeds and conditions, 95 % bootstrap intervals over seeds."""
    text, scale = name_of(metric, trials)
    table = scale * aggregate_table(trials, metric)[["value", "low", "high"]]
    y = np.arange(len(table))
    error = np.nan_to_num([table["value"] - table["low"], table["high"] - table["value"]])
    for label, own in looks_of(trials).items():
        if label in table.index:
            i = table.index.get_loc(label)
            axes.errorbar(table["value"].iloc[i], y[i], xerr=error[:, i : i + 1], capsize=2, **own)
    axes.set_yticks(y, table.index)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel(f"IQM of {text}")


def profile(axes: Axes, trials: pd.DataFrame, metric: str = "mean_accuracy") -> None:
    """Share of runs above each mark, one line a label."""
    text, scale = name_of(metric, trials)
    found = scores_of(trials, metric)
    every = np.concatenate([scores.to_numpy().ravel() for scores in found.values()])
    marks = np.linspace(every.min(), every.max(), 200)
    for label, line in lines_of(trials).items():
        if found[label].size:
            shares = performance_profile(found[label].to_numpy(), marks)
            axes.plot(scale * marks, shares, drawstyle="steps-post", **line)
    axes.set_xlabel(text)
    axes.set_ylabel("share of runs above")


def aggregate_figure(
    trials: pd.DataFrame, metric: str = "mean_accuracy", *, figsize: Size | None = None
) -> Figure:
    """Aggregates at the left, performance profiles at the right."""
    check_trials(trials)
    table = aggregate_table(trials, metric, num_resamples=1)
    if table.empty:
        raise ValueError(
            "the labels share no condition to average over; --label picks some that do"
        )
    with style():
        height = max(2.2, 0.7 + 0.17 * trials["label"].nunique())
        figure = Figure(figsize=figsize or (PAGE_IN, height), layout="constrained")
        left, right = figure.subplots(1, 2)
        aggregate(left, trials, metric)
        profile(right, trials, metric)
        note = "bars: 95 % bootstrap intervals over seeds"
        missing = trials["label"].nunique() - len(table)
        left_out = f"; left out for fewer seeds: {missing} of the labels" if missing else ""
        legend_above(figure, right, f"{note}; {_counted(table)}{left_out}")
        return figure


def _counted(table: pd.DataFrame) -> str:
    seeds = sorted(table["seeds"].unique())
    conditions = int(table["conditions"].max())
    named = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"{named} seeds x {conditions} conditions".replace(" x ", " \N{MULTIPLICATION SIGN} ")
