"""Figures of sweeps and runs, for a paper's column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from experiments.results import read_rounds, read_summary

# Okabe and Ito's colours, told apart with any colour vision; markers tell them apart in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE = {
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}


def plot_sweep(results: pd.DataFrame, out: Path) -> list[Path]:
    """Accuracy and transmitted bits against SNR, one line a policy; sweep.png and sweep.pdf.

    With several seeds: means with 95 % t-intervals over seeds.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.0, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        num_seeds = results["seed"].nunique()
        for i, policy in enumerate(pd.unique(results["policy"])):
            rows = results[results["policy"] == policy]
            look: dict[str, Any] = {
                "color": _COLOURS[i % len(_COLOURS)],
                "marker": _MARKERS[i % len(_MARKERS)],
                "label": policy,
            }
            _line(left, rows, "accuracy", 100.0, look)
            _line(right, rows, "delivered_bits", 1e-6, look)
        # AdaLoRA and the published scheme train masters of their own.
        is_plain = ~results["policy"].str.match("adalora|paper")
        plain = results[is_plain] if is_plain.any() else results
        _reference(left, 100.0 * plain["full_accuracy"].mean(), "whole update")
        _reference(left, 100.0 * results["head_accuracy"].mean(), "no update (preloaded head)")
        left.set_ylabel("accuracy after the last round (%)")
        right.set_ylabel("payload (Mbit a device and round)")
        if (results["delivered_bits"] > 0).any():
            right.set_yscale("log")
            right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for axes in (left, right):
            axes.set_xlabel("mean SNR (dB)")
            axes.set_xticks(sorted(results["snr_db"].unique()))
        low, high = left.get_ylim()
        left.set_ylim(low - 0.03 * (high - low), high + 0.04 * (high - low))
        handles, labels = left.get_legend_handles_labels()
        note = f"{num_seeds} seeds, bars: 95 % t-intervals" if num_seeds > 1 else "one seed"
        figure.legend(
            handles, labels, loc="outside upper center", ncols=len(labels), title=note,
            title_fontsize=7.0,
        )  # fmt: skip
        return _save(figure, out, "sweep")


def plot_run(folder: Path) -> list[Path]:
    """Accuracy over the rounds and the ranks each projection got; run.png and run.pdf."""
    rounds, summary = read_rounds(folder), read_summary(folder)
    with np.load(folder / "ranks.npz") as file:
        ranks = file["ranks"].sum(axis=1)  # [rounds, projections], over the devices
        names = [str(name) for name in file["projections"]]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.0, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.3))
        for device, rows in rounds.groupby("device"):
            left.plot(
                rows["round"], 100.0 * rows["accuracy"],
                color="0.75", linewidth=0.8, label="one device" if device == 0 else None,
            )  # fmt: skip
        mean = rounds.groupby("round")["accuracy"].mean()
        left.plot(mean.index, 100.0 * mean, color=_COLOURS[0], marker="o", label="mean")
        left.set_xlabel("round")
        left.set_ylabel("accuracy (%)")
        left.set_xticks(_few(list(mean.index)))
        left.legend(loc="lower right")
        left.set_title(f"{summary['policy']}", fontsize=8.0)
        image = right.imshow(ranks.T, aspect="auto", origin="lower", cmap="viridis")
        right.grid(visible=False)
        right.set_xlabel("round")
        right.set_xticks(_few(list(range(len(ranks)))))
        right.set_xticklabels([str(i + 1) for i in _few(list(range(len(ranks))))])
        right.set_ylabel(f"projection (0 to {len(names) - 1}, by depth)")
        figure.colorbar(image, ax=right, label="ranks sent, summed over devices")
        return _save(figure, folder, "run")


def _few(values: list[int]) -> list[int]:
    return values[:: max(1, -(-len(values) // 10))]


def _line(axes: Axes, rows: pd.DataFrame, column: str, scale: float, look: dict[str, Any]) -> None:
    groups = rows.groupby("snr_db")[column]
    mean, count = groups.mean() * scale, groups.count()
    if (count > 1).all():
        half = stats.t.ppf(0.975, count - 1) * groups.std() * scale / np.sqrt(count)
        axes.errorbar(mean.index, mean, yerr=half, capsize=2, **look)
    else:
        axes.plot(mean.index, mean, **look)


def _reference(axes: Axes, value: float, text: str) -> None:
    if np.isfinite(value):
        axes.axhline(value, color="0.45", linestyle="--", linewidth=0.9, zorder=0)
        axes.annotate(
            text, (1.0, value), xycoords=("axes fraction", "data"), xytext=(-2, 2),
            textcoords="offset points", ha="right", va="bottom", fontsize=7, color="0.35",
        )  # fmt: skip


def _save(figure: Figure, out: Path, stem: str) -> list[Path]:
    """PNG and PDF without dates, so that the same numbers give the same bytes."""
    paths = [out / f"{stem}.png", out / f"{stem}.pdf"]
    figure.savefig(paths[0], dpi=200, metadata={"Software": None})
    figure.savefig(paths[1], metadata={"CreationDate": None, "ModDate": None})
    return paths
