"""Accuracy against virtual time, and the curves of learning a policy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.snr import bound_shares, panels_of
from experiments.figures.style import (
    COLOURS,
    COLUMN_IN,
    PAGE_IN,
    Size,
    for_legend,
    legend_above,
    look,
    looks_of,
    seeds_note,
    share_y,
    style,
)
from experiments.results.folder import condition_keys
from experiments.results.stats import mean_interval


def accuracy_against_time(
    axes: Axes, rounds: pd.DataFrame, head_accuracy: float | None = None
) -> None:
    """Mean over devices and seeds, from when the last update of a round is in.

    ``rounds`` is the frame of `experiments.results.load`; a step holds until the next round's.
    Curves begin at that of the preloaded head, where it is given. 95 % t-intervals over seeds are
    bands around up to three labels; around more, which would hide each other, bars at the end.
    """
    looks, end = looks_of(rounds), float((rounds["time_s"] + rounds["delay_s"]).max())
    for i, (label, own) in enumerate(looks.items()):
        rows = rounds[rounds["label"] == label]
        if rows.empty:
            continue
        ends = rows.assign(end_s=rows["time_s"] + rows["delay_s"])
        each = ends.groupby(["trial", "round"]).agg(x=("end_s", "max"), y=("accuracy", "mean"))
        by_round = each.groupby("round")
        x = list(by_round["x"].mean())
        y = [mean_interval(100.0 * g["y"]) for _, g in by_round]
        if head_accuracy is not None:
            before = 100.0 * head_accuracy
            axes.plot([0.0, x[0]], [before, before], color=own["color"], linewidth=1.2)
            axes.plot([x[0], x[0]], [before, y[0].value], color=own["color"], linewidth=1.2)
        axes.plot(x, [e.value for e in y], drawstyle="steps-post", **(own | {"markersize": 3}))
        low, high = [e.low for e in y], [e.high for e in y]
        if len(looks) <= 3:
            axes.fill_between(x, low, high, step="post", color=own["color"], alpha=0.15, lw=0)
        elif np.isfinite(high[-1]):
            at = end + 0.02 * (i + 1) * end
            axes.plot([at, at], [low[-1], high[-1]], color=own["color"], linewidth=1.0)
            axes.plot(at, y[-1].value, "_", color=own["color"], markersize=4)
    axes.set_xlabel("virtual time (s)")
    axes.set_ylabel("accuracy (%)")
    bound_shares(axes)


def time_figure(
    rounds: pd.DataFrame, trials: pd.DataFrame, *, figsize: Size | None = None
) -> Figure:
    """One panel for the lowest, a middle and the highest SNR; a row for what else is swept."""
    panels = panels_of(trials)
    columns = max(map(len, panels))
    labels = list(looks_of(trials))
    with style():
        figure = Figure(
            figsize=figsize or (PAGE_IN if columns > 1 else COLUMN_IN, 0.7 + 1.9 * len(panels)),
            layout="constrained",
        )
        grid = figure.subplots(len(panels), columns, squeeze=False, sharex=True)
        for row, own in enumerate(panels):
            for axes in grid[row, len(own) :]:
                axes.set_axis_off()
            for column, (name, at) in enumerate(own):
                axes = grid[row, column]
                chosen = rounds[rounds["trial"].isin(at["trial"])]
                chosen = chosen.assign(label=pd.Categorical(chosen["label"], labels))
                accuracy_against_time(axes, chosen, at["head_accuracy"].mean())
                axes.set_title(name)
                if row < len(panels) - 1:
                    axes.set_xlabel("")
            share_y(list(grid[row, : len(own)]))
        counts = trials.groupby(["label", *condition_keys(trials)], dropna=False)["seed"].nunique()
        note = seeds_note(counts, "mean over devices and").replace("and over", "and")
        drawn = "bands" if len(labels) <= 3 else "bars at the end"
        legend_above(figure, grid, note.replace("bars", drawn))
        return figure


def learning_curve(axes: Axes, curve: pd.DataFrame, label: str = "", index: int = 0) -> None:
    """Held-out loss below the reference rule's against environment steps (learning_curve.csv).

    Bars are one standard error over the held-out scenarios; the thin line is the reward while
    exploring, a mean of five updates.
    """
    scored = curve.dropna(subset=["held_out"])
    colour = COLOURS[index % len(COLOURS)]
    axes.plot(
        curve["steps"], curve["reward"].rolling(5, min_periods=1).mean(),
        color=colour, alpha=0.35, linewidth=0.8,
        label=None if label else "while exploring (mean of 5 updates)",
    )  # fmt: skip
    axes.errorbar(
        scored["steps"], scored["held_out"], yerr=scored["held_out_stderr"], capsize=2,
        elinewidth=0.7,
        **(look(index) | {"label": for_legend(label) or "held-out scenarios, mode (± s.e.)"}),
    )  # fmt: skip
    axes.axhline(0.0, color="0.4", linewidth=0.8, linestyle=":")
    axes.set_xlabel("environment steps (rounds of single devices)")
    axes.set_ylabel("loss below the reference rule's (nats)")


def learning_figure(curves: Mapping[str, pd.DataFrame], *, figsize: Size | None = None) -> Figure:
    """The curve of one policy, or of several by their names."""
    with style():
        figure = Figure(figsize=figsize or (COLUMN_IN, 2.7), layout="constrained")
        axes = figure.subplots()
        for i, (name, curve) in enumerate(curves.items()):
            learning_curve(axes, curve, name if len(curves) > 1 else "", i)
        note = "mode on held-out scenarios (± s.e.); thin: exploring" if len(curves) > 1 else ""
        legend_above(figure, axes, note)
        return figure
