"""What a terminal shows of a sweep: its trials while they run, and its results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.results.folder import series_of, spoken
from experiments.sweep.pool import Event
from experiments.sweep.sweep import Sweep, Trial


class SweepView:
    """A live table of a sweep's trials; off a terminal one line for each that has ended."""

    def __init__(self, console: Console, sweep: Sweep, jobs: int) -> None:
        self._console, self._jobs = console, jobs
        self._total = len(sweep.trials)
        self._kept = 0
        self._running: dict[str, tuple[float, float]] = {}  # since when, share of its rounds
        self._done: list[tuple[str, str]] = []
        self._failed: dict[str, str] = {}
        self._began = time.monotonic()
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> SweepView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._live.stop()
        if self._console.is_terminal and self._failed:
            self._console.print(self._failures())

    def take(self, trial: Trial, event: Event) -> None:
        """Show what has happened to one trial."""
        name = trial.folder
        if event.kind == "kept":
            self._kept += 1
        elif event.kind == "start":
            self._running[name] = (time.monotonic(), 0.0)
        elif event.kind == "round":
            self._running[name] = (self._running[name][0], event.rounds[0] / event.rounds[1])
        else:
            since, _ = self._running.pop(name, (time.monotonic(), 0.0))
            took = _time(time.monotonic() - since)
            if event.kind == "done":
                what = f"{_quality(event.summary)}, {took}"
                self._done.append((name, what))
            else:
                what = f"failed: {event.reason}"
                self._failed[name] = event.reason
            if not self._console.is_terminal:
                ended = self._kept + len(self._done) + len(self._failed)
                self._console.print(
                    f"{ended}/{self._total} {name} {what}", soft_wrap=True, highlight=False,
                    markup=False,
                )  # fmt: skip

    def _render(self) -> RenderableType:
        ended = self._kept + len(self._done) + len(self._failed)
        table = Table("trial", "state", "", box=None, padding=(0, 1))
        room = max(self._console.height - 6, 6)
        for name, (since, share) in self._running.items():
            state = f"running {_time(time.monotonic() - since)}"
            table.add_row(
                escape(name),
                state,
                ProgressBar(total=1.0, completed=share, width=20, pulse=not share),
            )
        failed = list(self._failed.items())[-max(room - len(self._running), 3) :]
        for name, reason in failed:
            table.add_row(escape(name), Text(f"failed: {reason}", style="red", overflow="ellipsis"))
        for name, what in reversed(self._done[-max(room - len(self._running) - len(failed), 0) :]):
            table.add_row(escape(name), f"done, {what}", style="dim")
        line = (
            f"{self._kept + len(self._done)} of {self._total} done"
            f"{f' ({self._kept} before)' if self._kept else ''}, {len(self._running)} running, "
            f"{len(self._failed)} failed, {self._total - ended - len(self._running)} waiting; "
            f"{self._left()}"
        )
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=self._total, completed=ended, width=30), line)
        return Group(bar, table)

    def _left(self) -> str:
        now = len(self._done) + len(self._failed)
        worked = now + sum(share for _, share in self._running.values())
        spent = time.monotonic() - self._began
        if worked < 1.0:
            return f"{_time(spent)} so far"
        return f"about {_time(spent / worked * (self._total - self._kept - worked))} left"

    def _failures(self) -> Table:
        table = Table("failed trial", "reason")
        for name, reason in self._failed.items():
            table.add_row(escape(name), escape(reason))
        return table


def print_results(console: Console, results: pd.DataFrame) -> None:
    """Policies against SNRs, means over seeds."""
    results = results.assign(series=series_of(results))
    is_causal = results["perplexity"].notna().any()
    titles = {
        "perplexity": ("perplexity after the last round", 1.0, "{:.1f}"),
        "accuracy": ("accuracy after the last round, %", 100.0, "{:.1f}"),
        "delivered_bits": ("delivered payload, kbit per device and round", 1e-3, "{:,.0f}"),
        "delivered_rate": ("updates in time, %", 100.0, "{:.0f}"),
    }
    del titles["accuracy" if is_causal else "perplexity"]
    for column, (title, scale, form) in titles.items():
        means = results.pivot_table(
            column, "series", "channel.snr_db", sort=False, dropna=False
        ).sort_index(axis="columns")
        snrs = [spoken("channel.snr_db", snr) for snr in means]
        table = Table("policy", *snrs, title=title, title_justify="left")
        for series, row in means.iterrows():
            cells = [form.format(scale * value) if value == value else "-" for value in row]
            table.add_row(escape(str(series)), *cells)
        console.print(table)
    what, scale, unit = ("perplexity", 1.0, "") if is_causal else ("accuracy", 100.0, " %")
    none = scale * results[f"head_{what}"].mean()
    console.print(
        f"no update ({'base model' if is_causal else 'preloaded head'}): {none:.1f}{unit}"
    )
    for series, rows in results.groupby("series", sort=False):
        console.print(f"whole update, {series}: {scale * rows[f'full_{what}'].mean():.1f}{unit}")


def _quality(summary: Mapping[str, Any]) -> str:
    if np.isnan(summary["perplexity"]):
        return f"accuracy {100 * summary['accuracy']:.1f} %"
    return f"perplexity {summary['perplexity']:.1f}"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
