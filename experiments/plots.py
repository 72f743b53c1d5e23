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

from channel import Cell, ChannelConfig
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


def plot_channel(config: ChannelConfig, out: Path, *, seed: int = 0) -> list[Path]:
    """SNR over time, distribution of rates, and delays of a payload; channel.png and .pdf.

    The payload is what a device's share of the deadline carries at its mean rate. Where bands are
    orthogonal, fading is Rayleigh a block and the rate Shannon's, the delay's closed form
    P(T <= t) = exp(-(2^(S / (B t)) - 1) / g) is drawn over what was simulated.
    """
    num_devices, num_rounds = 8, 200
    cell = Cell(config, num_devices, seed=seed)
    snr, rate, delay, deliveries = [], [], [], 0
    payload = None
    for round_index in range(num_rounds):
        cell.begin_round(round_index)
        links = cell.true_links()
        snr.append(links.snr_db)
        rate.append(links.rate_bps)
        if payload is None:
            share = num_devices if config.sharing == "shared" else 1
            payload = max(int(0.5 * links.rate_bps.mean() * config.deadline_s / share), 8)
        for delivery in cell.transfer(dict.fromkeys(range(num_devices), payload)).values():
            delay.append(delivery.delay_s if delivery.is_delivered else np.inf)
            deliveries += delivery.is_delivered
    snr_db, rate_bps = np.array(snr), np.array(rate)  # [rounds, devices]
    shown = min(60, num_rounds)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.0, 2.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        time_s = np.arange(shown) * config.round_period_s
        for device in range(3):
            finite = np.where(np.isfinite(snr_db[:shown, device]), snr_db[:shown, device], np.nan)
            left.plot(time_s, finite, color=_COLOURS[device], linewidth=1.0, label=f"{device}")
        left.set_xlabel("time (s)")
        left.set_ylabel("SNR at the start of a round (dB)")
        left.legend(title="device", ncols=3, loc="lower center", fontsize=6.5, title_fontsize=6.5)
        low, high = left.get_ylim()
        left.set_ylim(low - 0.25 * (high - low), high)
        middle.ecdf(rate_bps.ravel() / 1e6, color=_COLOURS[0])
        middle.set_xlabel("rate alone on the band (Mbit/s)")
        middle.set_ylabel("share of links")
        ends = np.sort(np.array(delay))
        shares = np.arange(1, len(ends) + 1) / len(ends)
        seen = np.isfinite(ends)
        right.step(ends[seen], shares[seen], where="post", color=_COLOURS[0], label="simulated")
        has_closed_form = (
            config.sharing == "orthogonal" and config.fading == "rayleigh"
            and config.snr_db is not None and config.snr_spread_db == 0.0
            and config.link.adaptation == "shannon" and config.link.burst_start == 0.0
            and config.away_per_s == 0.0
        )  # fmt: skip
        if has_closed_form and config.snr_db is not None:
            gain = 10.0 ** ((config.snr_db - config.link.snr_gap_db) / 10.0)
            t = np.linspace(0.02, 1.0, 200) * config.deadline_s
            exponent = np.minimum(payload / (config.bandwidth_hz * t), 1000.0)
            right.plot(
                t, np.exp(-(2.0**exponent - 1.0) / gain), "--", color=_COLOURS[1],
                label="closed form",
            )  # fmt: skip
        right.set_xlim(0, config.deadline_s)
        right.set_ylim(0, 1.02)
        right.set_xlabel(f"delay of {payload / 1e3:,.0f} kbit (s)")
        right.set_ylabel("share delivered by then")
        right.legend(loc="lower right", fontsize=6.5)
        figure.suptitle(
            f"{config.preset}: {num_devices} devices, {num_rounds} rounds, "
            f"{100 * deliveries / len(delay):.0f} % in time",
            fontsize=8.0,
        )
        return _save(figure, out, "channel")
