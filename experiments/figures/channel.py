"""A channel before anything is sent over it: SNR, rates and delays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from channel import ChannelConfig
from experiments.figures.style import COLOURS, save, style


def plot_channel(config: ChannelConfig, out: Path, *, seed: int = 0) -> list[Path]:
    """SNR over time, distribution of rates, and delays of a payload; channel.png and .pdf.

    The payload is what a device's share of the deadline carries at its mean rate. Where bands are
    orthogonal, fading is Rayleigh a block and the rate Shannon's, the delay's closed form
    P(T <= t) = exp(-(2^(S / (B t)) - 1) / g) is drawn over what was simulated.
    """
    from experiments.assembly.workbench import make_cell  # which imports torch

    num_devices, num_rounds = 8, 200
    cell = make_cell(config, num_devices, seed=seed)
    snr, rate, delay, deliveries = [], [], [], 0
    payload: int = 0
    for round_index in range(num_rounds):
        cell.begin_round(round_index)
        links = cell.true_links()
        snr.append(links.snr_db)
        rate.append(links.rate_bps)
        if not payload:
            share = num_devices if config.sharing == "shared" else 1
            payload = max(int(0.5 * links.rate_bps.mean() * config.deadline_s / share), 8)
        for delivery in cell.transfer(dict.fromkeys(range(num_devices), payload)).values():
            delay.append(delivery.delay_s if delivery.is_delivered else np.inf)
            deliveries += delivery.is_delivered
    snr_db, rate_bps = np.array(snr), np.array(rate)  # [rounds, devices]
    shown = min(60, num_rounds)
    with style():
        figure = Figure(figsize=(7.16, 2.6), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        time_s = np.arange(shown) * config.round_period_s
        for device in range(3):
            finite = np.where(np.isfinite(snr_db[:shown, device]), snr_db[:shown, device], np.nan)
            left.plot(time_s, finite, color=COLOURS[device], linewidth=1.0, label=f"{device}")
        left.set_xlabel("time (s)")
        left.set_ylabel("SNR at the start of a round (dB)")
        left.legend(title="device", ncols=3, loc="lower center", fontsize=6.5, title_fontsize=6.5)
        low, high = left.get_ylim()
        left.set_ylim(low - 0.25 * (high - low), high)
        middle.ecdf(rate_bps.ravel() / 1e6, color=COLOURS[0])
        middle.set_xlabel("rate alone on the band (Mbit/s)")
        middle.set_ylabel("share of links")
        ends = np.sort(np.array(delay))
        shares = np.arange(1, len(ends) + 1) / len(ends)
        seen = np.isfinite(ends)
        right.step(ends[seen], shares[seen], where="post", color=COLOURS[0], label="simulated")
        if (
            config.sharing == "orthogonal" and config.fading == "rayleigh"
            and config.snr_db is not None and config.snr_spread_db == 0.0
            and config.link.adaptation == "shannon" and config.link.burst_start == 0.0
            and config.away_per_s == 0.0
        ):  # fmt: skip
            gain = 10.0 ** ((config.snr_db - config.link.snr_gap_db) / 10.0)
            t = np.linspace(0.02, 1.0, 200) * config.deadline_s
            exponent = np.minimum(payload / (config.bandwidth_hz * t), 1000.0)
            right.plot(
                t, np.exp(-(2.0**exponent - 1.0) / gain), "--", color=COLOURS[1],
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
        return save(figure, out, "channel")
