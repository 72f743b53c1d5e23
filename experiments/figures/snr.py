"""Metrics against the mean SNR, one line a label, with intervals over seeds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.style import (
    COLUMN_IN,
    PAGE_IN,
    Size,
    legend_above,
    log_ticks,
    looks_of,
    seeds_note,
    share_y,
    some,
    style,
)
from experiments.results.folder import NO_SNR, RESULT_COLUMNS, condition_keys, spoken
from experiments.results.stats import mean_interval

SNR = "channel.snr_db"
NAMES = {
    "accuracy": ("accuracy after last round (%)", 100.0),
    "mean_accuracy": ("mean accuracy over rounds (%)", 100.0),
    "perplexity": ("perplexity after last round", 1.0),
    "loss": ("loss after last round (nats)", 1.0),
    "mean_loss": ("mean loss over rounds (nats)", 1.0),
    "delivered_bits": ("Mbit down, device and round", 1e-6),
    "total_delivered_bits": ("Mbit delivered in all", 1e-6),
    "bits_to_95": ("Mbit per device to 95 %", 1e-6),
    "energy_j": ("energy (J)", 1.0),
    "airtime_s": ("air time (s)", 1.0),
    "delivered_rate": ("updates in time (%)", 100.0),
    "reward": ("mean reward", 1.0),
}
"""axis label and factor of each metric"""


POINTS = ("label", SNR, "value", "low", "high", "seeds", "of")
"""columns of `points_against_snr`'s frame"""


def metric_against_snr(axes: Axes, trials: pd.DataFrame, metric: str) -> None:
    """Means over seeds with 95 % t-intervals, labels set a little apart.

    Runs without an SNR stand at the right end, joined to no others. A mean over some of the seeds,
    as of ``bits_to_95`` where not all reach it, has their number beside it. Raises ValueError for
    trials that differ in more than label, SNR and seed: these are no seeds of one condition.
    """
    check_part(trials, "snr_figure")
    text, scale = name_of(metric, trials)
    found = []
    for (label, snr), values in trials.groupby(["label", SNR], observed=True, dropna=False)[metric]:
        if values.notna().any():
            mean = mean_interval(scale * values.dropna())
            # Nothing but a reward can be below zero, however wide an interval is.
            low = max(mean.low, 0.0) if metric in NAMES and metric != "reward" else mean.low
            found.append((label, snr, mean.value, low, mean.high, values.count(), len(values)))
    points_against_snr(axes, trials, pd.DataFrame(found, columns=POINTS))
    if (trials[metric].isna() & trials[metric].notna().any()).any():
        reached = "that reached it" if metric == "bits_to_95" else "that have one"
        text += f"\n(n/N: seeds {reached})"
    axes.set_ylabel(text)
    if text.endswith("(%)"):
        bound_shares(axes)


def points_against_snr(axes: Axes, trials: pd.DataFrame, points: pd.DataFrame) -> None:
    """Values with their intervals, a line a label of ``trials``; "seeds" of "of" have a value."""
    looks = looks_of(trials)
    snrs = sorted(trials[SNR].dropna().unique())
    gap = min(np.diff(snrs), default=1.0)
    place = snrs[-1] + gap if snrs else 0.0  # of runs without an SNR
    step = gap / (3.0 * len(looks)) if trials["seed"].nunique() > 1 else 0.0
    for i, (label, own) in enumerate(looks.items()):
        rows = points[points["label"] == label].sort_values(SNR)
        if rows.empty:
            continue
        x = rows[SNR].fillna(place) + step * (i - (len(looks) - 1) / 2.0)
        ends = (rows["value"] - rows["low"]).fillna(0.0), (rows["high"] - rows["value"]).fillna(0.0)
        if any(end.any() for end in ends):
            axes.errorbar(
                x, rows["value"], yerr=ends, fmt="none", ecolor=own["color"], capsize=1.5,
                elinewidth=0.7,
            )  # fmt: skip
        axes.plot(*set_apart(np.array([x, rows["value"]]), rows), **own)
        for at, row in zip(x, rows.itertuples(), strict=True):
            if row.seeds < row.of:
                axes.annotate(
                    f"{row.seeds}/{row.of}", (at, row.value), xytext=(2, 2), color=own["color"],
                    textcoords="offset points", fontsize=6.0,
                )  # fmt: skip
    axes.set_xlabel("mean SNR (dB)" if snrs else "")
    axes.set_xticks(snrs)
    if trials[SNR].isna().any():
        names = [spoken(SNR, snr).removesuffix(" dB") for snr in snrs]
        axes.set_xticks([*snrs, place], [*names, NO_SNR.replace("of ", "of\n")])
    if not snrs:
        axes.set_xlim(-0.5, 0.5)


def check_trials(trials: pd.DataFrame) -> None:
    """Raise ValueError where there is nothing to draw."""
    if trials.empty:
        raise ValueError(
            "trials has no rows, so that there is nothing to draw; select less narrowly"
        )


def check_part(trials: pd.DataFrame, figure: str) -> None:
    """Raise ValueError where what else is swept would be taken for more seeds."""
    check_trials(trials)
    if others := other_keys(trials):
        raise ValueError(f"trials differ in {', '.join(others)} too; pick one, or use {figure}")


def other_keys(trials: pd.DataFrame) -> list[str]:
    """What is swept beside labels, SNRs and seeds."""
    return [key for key in condition_keys(trials) if key != SNR]


def set_apart(points: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    """[:, SNRs] with a gap before runs without an SNR, the last: no line leads to them."""
    has_gap = rows[SNR].isna().any() and points.shape[1] > 1
    return np.insert(points, -1, np.nan, axis=1) if has_gap else points


def name_of(metric: str, trials: pd.DataFrame) -> tuple[str, float]:
    """Axis label and factor of a metric; few bits are counted in kbit. One that has no name here
    goes by its column's."""
    if metric not in trials:
        raise ValueError(f"metric {metric!r} is no column; there are {', '.join(RESULT_COLUMNS)}")
    text, scale = NAMES.get(metric, (metric, 1.0))
    if text.startswith("Mbit") and trials[metric].max() < 1e5:
        return text.replace("Mbit", "kbit"), 1e-3
    return text, scale


def bound_shares(axes: Axes) -> None:
    """Keep an axis in per cent within what there can be, however wide an interval is."""
    low, high = axes.get_ylim()
    # With None, what is drawn later can still widen it.
    axes.set_ylim(max(low, 0.0), min(high, 103.0), auto=None)


def accuracy_against_snr(axes: Axes, trials: pd.DataFrame, metric: str = "accuracy") -> None:
    """Accuracy between that of the preloaded head alone and that of the whole update."""
    metric_against_snr(axes, trials, metric)
    _reference(axes, 100.0 * _whole(trials, "full_accuracy"), "whole update", "--")
    _reference(axes, 100.0 * trials["head_accuracy"].mean(), "preloaded head", ":")
    bound_shares(axes)


def perplexity_against_snr(axes: Axes, trials: pd.DataFrame) -> None:
    """Perplexity between that of the base model and that with the whole update."""
    metric_against_snr(axes, trials, "perplexity")
    _reference(axes, trials["head_perplexity"].mean(), "base model", ":")
    _reference(axes, _whole(trials, "full_perplexity"), "whole update", "--")


def bits_against_snr(axes: Axes, trials: pd.DataFrame, metric: str = "delivered_bits") -> None:
    """Payload that got through, on a log axis."""
    metric_against_snr(axes, trials, metric)
    means = trials.groupby(["label", SNR], observed=True, dropna=False)[metric].mean()
    log_ticks(axes, name_of(metric, trials)[1] * means)


def energy_against_snr(axes: Axes, trials: pd.DataFrame) -> None:
    """Energy of all devices and rounds."""
    metric_against_snr(axes, trials, "energy_j")
    axes.set_ylim(bottom=0.0)


def snr_figure(trials: pd.DataFrame, *, figsize: Size | None = None) -> Figure:
    """Accuracy (perplexity of causal models) and delivered bits; what else is swept has panels of
    its own."""
    is_causal = trials["perplexity"].notna().any()
    first = perplexity_against_snr if is_causal else accuracy_against_snr
    return panels(trials, (first, bits_against_snr), figsize=figsize)


def left_out(num_shown: int, trials: pd.DataFrame) -> str:
    """A title's second line where there is no room for all labels."""
    num_labels = trials["label"].nunique()
    return (
        f"\n{num_shown} of {num_labels} labels shown, choose with --label"
        if num_shown < num_labels
        else ""
    )


def parts_of(trials: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The runs of each combination of what is swept beside labels, SNRs and seeds, by its name."""
    check_trials(trials)
    keys = other_keys(trials)
    if not keys:
        return [("", trials)]
    parts = []
    for values, rows in trials.groupby(keys, sort=False, dropna=False):
        parts.append((", ".join(map(spoken, keys, values)), rows))
    return parts


def by_snr(trials: pd.DataFrame, most: int) -> list[tuple[str, pd.DataFrame]]:
    """The runs at each of at most so many SNRs, by its name; last those without one."""
    snrs = some(sorted(trials[SNR].dropna().unique()), most)
    found = [(spoken(SNR, snr), trials[trials[SNR].eq(snr)]) for snr in snrs]
    without = trials[trials[SNR].isna()]
    return found if without.empty else [*found, (NO_SNR, without)]


def panels_of(trials: pd.DataFrame) -> list[list[tuple[str, pd.DataFrame]]]:
    """A row for each of `parts_of`: its lowest, a middle and its highest SNR, or none, by name."""
    return [
        [(", ".join(filter(None, (snr, name))), rows) for snr, rows in by_snr(part, 3)]
        for name, part in parts_of(trials)
    ]


def panels(
    trials: pd.DataFrame, drawers: tuple, note: str = "", *, figsize: Size | None = None
) -> Figure:
    """A row for each of ``drawers`` (of an axis and a frame), a column for each of `parts_of`; a
    single column lies on its side. ``note`` is in the legend, how many seeds unless it is given."""
    parts = parts_of(trials)
    with style():
        if len(parts) == 1:
            width = COLUMN_IN if len(drawers) == 1 else PAGE_IN * 0.72
            figure = Figure(figsize=figsize or (width, 2.6), layout="constrained")
            grid = figure.subplots(1, len(drawers), squeeze=False).T
        else:
            width = min(PAGE_IN, 2.4 * len(parts))
            size = figsize or (width, 2.0 * len(drawers) + 0.6)
            figure = Figure(figsize=size, layout="constrained")
            grid = figure.subplots(len(drawers), len(parts), squeeze=False)
        looks = looks_of(trials)
        for row, draw in enumerate(drawers):
            for column, (name, rows) in enumerate(parts):
                axes = grid[row, column]
                # All panels know all labels, so that each has one look.
                draw(axes, rows.assign(label=pd.Categorical(rows["label"], list(looks))))
                if row == 0 and name:
                    axes.set_title(name.replace(", ", ",\n"))
                if row < len(drawers) - 1 and len(parts) > 1:
                    axes.set_xlabel("")
            share_y(grid[row])
        counts = trials.groupby(["label", *condition_keys(trials)], dropna=False)["seed"].nunique()
        legend_above(figure, grid, note or seeds_note(counts))
        return figure


def _whole(trials: pd.DataFrame, metric: str) -> float:
    """Mean over runs of the common master: AdaLoRA and the published scheme train their own."""
    is_plain = ~trials["policy.name"].str.match("adalora|paper")
    return float((trials[is_plain] if is_plain.any() else trials)[metric].mean())


def _reference(axes: Axes, value: float, text: str, line: str) -> None:
    """A grey line across, which the legend names."""
    if np.isfinite(value):
        axes.axhline(value, color="0.45", linestyle=line, linewidth=0.9, zorder=0, label=text)
