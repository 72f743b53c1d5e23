"""When updates arrive: the distribution of delays, and a round as a timeline."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.figures.snr import SNR, check_trials, left_out, panels_of
from experiments.figures.style import (
    COLOURS,
    COLUMN_IN,
    PAGE_IN,
    Size,
    legend_above,
    legend_of,
    lines_of,
    looks_of,
    some,
    style,
)
from experiments.results.folder import condition_keys, spoken

# Phases of a round in their order: the column with the duration, its name, its colour and hatch.
PHASES = (
    ("delay_s", "downlink", COLOURS[0], ""),
    ("compute_s", "computing", COLOURS[4], "//"),
    ("uplink_delay_s", "uplink", COLOURS[2], "\\\\"),
)


def delay_cdf(axes: Axes, rounds: pd.DataFrame) -> None:
    """Share of all updates sent that were in by then; what never came in keeps a line below 1."""
    last = float(rounds["delay_s"].max()) if len(rounds) else 1.0
    for label, line in lines_of(rounds).items():
        sent = rounds[(rounds["label"] == label) & (rounds["payload_bits"] > 0)]
        if sent.empty:
            continue
        ends = np.sort(sent.loc[sent["delivered"] > 0, "delay_s"].to_numpy())
        shares = np.arange(1, len(ends) + 1) / len(sent)
        # On to the right, so that a share that never came in is seen.
        reached = shares[-1] if len(shares) else 0.0
        axes.step([0.0, *ends, last], [0.0, *shares, reached], where="post", **line)
    axes.set_xlim(0.0, 1.02 * max(last, axes.get_xlim()[1] / 1.02))
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("delay (s)")
    axes.set_ylabel("share of updates in by then")


def delay_figure(
    rounds: pd.DataFrame, trials: pd.DataFrame, *, figsize: Size | None = None
) -> Figure:
    """One panel for the lowest, a middle and the highest SNR; a row for what else is swept."""
    panels = panels_of(trials)
    columns = max(map(len, panels))
    labels = list(looks_of(trials))
    with style():
        figure = Figure(
            figsize=figsize or (PAGE_IN if columns > 1 else COLUMN_IN, 0.6 + 1.8 * len(panels)),
            layout="constrained",
        )
        # Delays of one geometry may be a hundredth of another's.
        sharex: Literal["all", "row"] = "all" if trials[SNR].notna().all() else "row"
        grid = figure.subplots(len(panels), columns, squeeze=False, sharex=sharex, sharey=True)
        for row, own in enumerate(panels):
            for axes in grid[row, len(own) :]:
                axes.set_axis_off()
            for column, (name, at) in enumerate(own):
                axes = grid[row, column]
                chosen = rounds[rounds["trial"].isin(at["trial"])]
                delay_cdf(axes, chosen.assign(label=pd.Categorical(chosen["label"], labels)))
                axes.set_title(name)
                if column:
                    axes.set_ylabel("")
                if row < len(panels) - 1:
                    axes.set_xlabel("")
        legend_above(figure, grid, "all devices, rounds and seeds")
        return figure


def timeline(axes: Axes, rounds: pd.DataFrame) -> None:
    """Bars of one run's rounds, a line for each device: downlink, computing, uplink, waiting.

    What did not come in is drawn pale until it was given up; waiting lasts until the next round.
    """
    starts = rounds.groupby("round")["time_s"].min()
    period = float(np.median(np.diff(starts))) if len(starts) > 1 else rounds["delay_s"].max()
    origin = float(starts.iloc[0])
    phases = _recorded(rounds)
    for row in rounds.itertuples():
        begin = starts[row.round] - origin
        axes.barh(row.device, period, left=begin, height=0.62, color="0.92", linewidth=0)
        at = begin
        for column, name, colour, hatch in phases:
            duration = getattr(row, column)
            if not np.isfinite(duration) or duration <= 0:
                continue
            is_lost = name == "downlink" and not row.delivered and row.payload_bits > 0
            axes.barh(
                row.device, duration, left=at, height=0.62, color=colour, hatch=hatch,
                alpha=0.35 if is_lost else 1.0, edgecolor="white", linewidth=0.3,
            )  # fmt: skip
            if is_lost:
                axes.plot(at + duration, row.device, "x", color="black", markersize=3.5)
            at += duration
    for start in starts:
        axes.axvline(start - origin, color="0.3", linewidth=0.6)
    devices = sorted(rounds["device"].unique())
    axes.set_yticks(some(devices, 10))
    axes.set_ylim(devices[-1] + 0.6, devices[0] - 0.6)
    axes.set_xlim(0.0, float(starts.iloc[-1]) - origin + period)
    axes.grid(visible=False)
    axes.set_xlabel("virtual time since the first round shown (s)")
    axes.set_ylabel("device")


def timeline_figure(
    rounds: pd.DataFrame,
    trials: pd.DataFrame,
    *,
    num_rounds: int = 3,
    figsize: Size | None = None,
) -> Figure:
    """The first rounds of each label's first run at the middle SNR, one below the other.

    A label without it has its first run without an SNR; where there are such, all conditions are
    named. Four labels have room.
    """
    check_trials(trials)
    snrs = sorted(trials[SNR].dropna().unique())
    snr = snrs[len(snrs) // 2] if snrs else np.nan
    runs = trials[trials[SNR].eq(snr) | trials[SNR].isna()].sort_values(SNR, kind="stable")
    chosen = runs.drop_duplicates("label").head(4)
    has_all = trials[SNR].notna().all()
    named = [] if has_all else condition_keys(trials)
    with style():
        height = 0.9 + sum(0.35 + 0.13 * rounds["device"].nunique() for _ in range(len(chosen)))
        figure = Figure(figsize=figsize or (COLUMN_IN, height), layout="constrained")
        grid = figure.subplots(len(chosen), 1, squeeze=False, sharex=True)[:, 0]
        for axes, run in zip(grid, chosen.to_dict("records"), strict=True):
            own = rounds[rounds["trial"] == run["trial"]]
            timeline(axes, own[own["round"] <= num_rounds])
            axes.set_title(
                ", ".join([run["label"], *(spoken(k, run[k]) for k in named)]), loc="left", pad=2
            )
            if axes is not grid[-1]:
                axes.set_xlabel("")
        names = _recorded(rounds)
        handles = [Patch(facecolor=c, hatch=h, edgecolor="white", label=n) for _, n, c, h in names]
        handles.append(Patch(color="0.92", label="waiting"))
        at = f"{spoken(SNR, snr)}, " if has_all else ""
        seed = f"seed {chosen['seed'].iloc[0]}"
        title = f"{at}{seed}; crosses: not in by the deadline{left_out(len(chosen), trials)}"
        legend_of(figure, handles, [str(handle.get_label()) for handle in handles], title)
        return figure


def _recorded(rounds: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """The phases that there were: in remote mode devices neither compute nor send."""
    return [phase for phase in PHASES if phase[0] in rounds and (rounds[phase[0]] > 0).any()]
