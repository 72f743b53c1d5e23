"""Figures of sweeps and runs, for a paper's column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from channel import ChannelConfig
from experiments.results import read_ranks, read_rounds, read_summary, series_of

# Okabe and Ito's colours, told apart with any colour vision; markers tell them apart in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Between one column of a paper (3.5 in, where 8.5 pt become 5.7 pt) and two (7 in).
_SIZE = (5.2, 2.9)
_STYLE = {
    "font.size": 8.5,
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

    What else is swept tells lines apart as well. With several seeds: means with 95 % t-intervals
    over seeds, lines set a little apart so that their intervals do not hide each other.
    """
    results = results.assign(series=series_of(results)).dropna(subset="channel.snr_db")
    if results.empty:
        raise ValueError("no run has a mean SNR (channel.snr_db is none): nothing to draw over it")
    policies = list(pd.unique(results["series"]))
    snrs = sorted(results["channel.snr_db"].unique())
    seeds = results.groupby(["series", "channel.snr_db"])["seed"].nunique()
    step = min(np.diff(snrs), default=1.0) / (4.0 * len(policies)) if seeds.max() > 1 else 0.0
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, policy in enumerate(policies):
            rows = results[results["series"] == policy]
            look = _look(i) | {"label": policy}
            shift = step * (i - (len(policies) - 1) / 2.0)
            _line(left, rows, "accuracy", 100.0, shift, look)
            _line(right, rows, "delivered_bits", 1e-6, shift, look)
        # AdaLoRA and the published scheme train masters of their own.
        is_plain = ~results["policy.name"].str.match("adalora|paper")
        plain = results[is_plain] if is_plain.any() else results
        # Curves rise to the right: the corners above left and below right are free.
        _reference(left, 100.0 * plain["full_accuracy"].mean(), "whole update", "left")
        _reference(left, 100.0 * results["head_accuracy"].mean(), "preloaded head", "right")
        left.set_ylabel("accuracy after last round (%)")
        right.set_ylabel("Mbit per device and round")
        _scale_bits(
            right, 1e-6 * results.groupby(["series", "channel.snr_db"])["delivered_bits"].mean()
        )
        for axes in (left, right):
            axes.set_xlabel("mean SNR (dB)")
            axes.set_xticks(snrs)
        low, high = left.get_ylim()
        left.set_ylim(low - 0.07 * (high - low), high + 0.07 * (high - low))
        handles, labels = left.get_legend_handles_labels()
        few, many = seeds.min(), seeds.max()
        note = (
            "one seed"
            if many == 1
            else f"{many} seeds"
            if few == many
            else f"{few} to {many} seeds"
        )
        figure.legend(
            handles, labels, loc="outside upper center", ncols=min(len(labels), 4),
            title=note if many == 1 else f"mean of {note}, bars: 95 % t-intervals",
            title_fontsize=7.5, columnspacing=1.2, handletextpad=0.5,
        )  # fmt: skip
        return _save(figure, out, "sweep")


def plot_learning(folder: Path) -> list[Path]:
    """Loss below the reference rule's against devices' rounds; learning_curve.png and .pdf."""
    curve = pd.read_csv(folder / "learning_curve.csv")
    scored = curve.dropna(subset=["held_out"])
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.5, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            curve["steps"], curve["reward"].rolling(5, min_periods=1).mean(),
            color="0.7", linewidth=0.8, label="while exploring (mean of 5 updates)",
        )  # fmt: skip
        axes.errorbar(
            scored["steps"], scored["held_out"], yerr=scored["held_out_stderr"],
            color=_COLOURS[0], marker="o", capsize=2, label="held-out scenarios, mode (± s.e.)",
        )  # fmt: skip
        axes.axhline(0.0, color="0.4", linewidth=0.8, linestyle=":")
        axes.set_xlabel("rounds of single devices")
        axes.set_ylabel("loss below the starting rule's (nats)")
        figure.legend(loc="outside upper center")
        return _save(figure, folder, "learning_curve")


def plot_run(folder: Path) -> list[Path]:
    """Accuracy over the rounds and the ranks each projection got; run.png and run.pdf.

    A run that was stopped is drawn as far as it came.
    """
    rounds, (ranks, names) = read_rounds(folder), read_ranks(folder)
    if (folder / "summary.json").exists():
        title = str(read_summary(folder)["policy"])
    else:
        title = f"stopped after round {rounds['round'].max()}"
    total = ranks.sum(axis=1)  # [rounds, projections], over the devices
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.3))
        for i, (_, rows) in enumerate(rounds.groupby("device")):
            left.plot(
                rows["round"], 100.0 * rows["accuracy"],
                color="0.7", linewidth=0.8, label=None if i else "one device",
            )  # fmt: skip
        mean = rounds.groupby("round")["accuracy"].mean()
        left.plot(mean.index, 100.0 * mean, color=_COLOURS[0], marker="o", label="mean")
        left.set_xlabel("round")
        left.set_ylabel("accuracy (%)")
        left.set_xticks(_few(list(mean.index)))
        figure.legend(loc="outside upper center", ncols=2, title=title)
        image = right.imshow(
            total.T, aspect="auto", origin="lower", cmap="viridis", interpolation="nearest",
            vmin=0, vmax=max(int(total.max()), 1),
        )  # fmt: skip
        right.grid(visible=False)
        right.set_xlabel("round")
        ticks = _few(list(range(len(total))))
        right.set_xticks(ticks, [str(i + 1) for i in ticks])
        right.yaxis.set_major_locator(MaxNLocator(integer=True))
        right.set_ylabel(f"projection (0 to {len(names) - 1}, by depth)")
        figure.colorbar(
            image, ax=right, label="ranks sent, sum over devices", ticks=MaxNLocator(integer=True)
        )
        return _save(figure, folder, "run")


def _look(index: int) -> dict[str, Any]:
    """Colour and marker of a line; when these are used up, again with open markers and dashes."""
    again = index // len(_COLOURS) % 2 == 1
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        # A step on at each turn, so that colour and marker do not meet twice.
        "marker": _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)],
        "linestyle": (0, (4, 1.5)) if again else "-",
        "markerfacecolor": "white" if again else _COLOURS[index % len(_COLOURS)],
    }


def _scale_bits(axes: Axes, means_mbit: pd.Series) -> None:
    """A log axis with plain numbers; where nothing came through, a zero below it."""
    positive = means_mbit[means_mbit > 0]
    if positive.empty:
        return
    low, high = float(positive.min()), float(axes.dataLim.y1)  # intervals reach above the means
    decades = 10.0 ** np.arange(np.floor(np.log10(low)) - 1, np.ceil(np.log10(high)) + 1)
    fine = [k * d for d in decades for k in (1.0, 2.0, 5.0)]
    ticks = [t for t in fine if 0.7 * low <= t <= 1.5 * high]
    if len(ticks) < 2:
        ticks = [t for t in fine if 0.4 * low <= t <= 2.5 * high]
    elif high > 100.0 * low:
        ticks = [d for d in decades if 0.7 * low <= d <= 1.5 * high]
    top = max(1.3 * high, ticks[-1])
    if (means_mbit == 0).any():
        axes.set_ylim(-0.15 * low, top)
        axes.set_yscale("symlog", linthresh=low, linscale=0.4)
        ticks = [0.0, *(t for t in ticks if t >= low)]
    else:
        # An interval that reaches to nothing must not push the means to the top.
        bottom = max(min(float(axes.dataLim.minposy), low), low / 10.0)
        axes.set_ylim(min(bottom / 1.3, ticks[0]), top)
        axes.set_yscale("log")
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_yticks([], minor=True)


def _few(values: list[int]) -> list[int]:
    return values[:: max(1, -(-len(values) // 10))]


def _line(
    axes: Axes,
    rows: pd.DataFrame,
    column: str,
    scale: float,
    shift: float,
    look: dict[str, Any],
) -> None:
    groups = rows.groupby("channel.snr_db")[column]
    mean, count = groups.mean() * scale, groups.count()
    x = mean.index.to_numpy() + shift
    if (count > 1).any():
        # A point of one seed has no interval.
        half = stats.t.ppf(0.975, np.maximum(count - 1, 1)) * groups.std() * scale / np.sqrt(count)
        axes.errorbar(x, mean, yerr=half.fillna(0.0), capsize=1.5, elinewidth=0.8, **look)
    else:
        axes.plot(x, mean, **look)


def _reference(axes: Axes, value: float, text: str, side: str) -> None:
    """A dashed line across, its name at one end: above it on the left, below it on the right."""
    if np.isfinite(value):
        axes.axhline(value, color="0.45", linestyle="--", linewidth=0.9, zorder=0)
        is_left = side == "left"
        axes.annotate(
            text, (0.0 if is_left else 1.0, value), xycoords=("axes fraction", "data"),
            xytext=(3, 2) if is_left else (-3, -3), textcoords="offset points", ha=side,
            va="bottom" if is_left else "top", fontsize=7.5, color="0.3",
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
    from experiments.build import make_cell  # which imports torch

    num_devices, num_rounds = 8, 200
    cell = make_cell(config, num_devices, seed=seed)
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
