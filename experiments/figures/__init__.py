"""Figures of sweeps, runs and learned policies.

Each module has functions that take a frame and an axis, for one's own figures, and one that makes
the whole figure that `airllm plot` draws by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from experiments.figures.aggregate import aggregate_figure
from experiments.figures.delays import delay_figure, timeline_figure
from experiments.figures.differences import differences_figure
from experiments.figures.over_time import learning_figure, time_figure
from experiments.figures.ranks import ranks_figure
from experiments.figures.run import plot_run
from experiments.figures.snr import snr_figure
from experiments.figures.style import save
from experiments.figures.tradeoff import energy_figure, pareto_figure
from experiments.results.folder import load, read_trials


class Source:
    """What a folder holds, read when first asked for; of some labels, in their order.

    ``reference`` is whom the others are compared with, the first label unless it is given.
    """

    def __init__(
        self, folder: Path, labels: Sequence[str] = (), reference: str | None = None
    ) -> None:
        self.folder, self._labels, self.reference = folder, labels, reference

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row a run."""
        return _chosen(read_trials(self.folder), self._labels)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a run, round and device."""
        return _chosen(load(self.folder).rounds, self._labels)


FIGURES: dict[str, tuple[str, Callable[[Source], Figure]]] = {
    "snr": ("accuracy and delivered bits against SNR", lambda s: snr_figure(s.trials)),
    "differences": (
        "paired differences of mean accuracy against SNR",
        lambda s: differences_figure(s.trials, s.reference),
    ),
    "pareto": ("accuracy against delivered bits", lambda s: pareto_figure(s.trials)),
    "time": ("accuracy against virtual time", lambda s: time_figure(s.rounds, s.trials)),
    "ranks": ("ranks by depth and type, against SNR", lambda s: ranks_figure(s.folder, s.trials)),
    "delay": ("distribution of delays", lambda s: delay_figure(s.rounds, s.trials)),
    "timeline": ("rounds as bars", lambda s: timeline_figure(s.rounds, s.trials)),
    "energy": ("energy against SNR, and what it bought", lambda s: energy_figure(s.trials)),
    "aggregate": ("interquartile means and profiles", lambda s: aggregate_figure(s.trials)),
}
"""what `airllm plot --figure` can draw of a sweep or a run: what it shows, and how it is made"""
CURVE = "learning_curve.csv"


def plot(
    folder: Path,
    names: Sequence[str] = (),
    labels: Sequence[str] = (),
    reference: str | None = None,
) -> list[Path]:
    """Draw figures of a folder, as PNG and PDF beside the numbers.

    Without ``names``: "snr" of a sweep, the overview of a run, the curve of what was learned.
    "learning" is of one learned policy's folder, or of all in a folder. With ``labels``, only
    those, in this order; ``reference`` is for "differences". Raises ValueError for what is unknown
    or absent.
    """
    if reference is not None and "differences" not in names:
        raise ValueError(f"--reference {reference!r} is for --figure differences; add that")
    if unknown := [n for n in names if n not in FIGURES and n not in ("run", "learning")]:
        known = ", ".join((*FIGURES, "run", "learning"))
        raise ValueError(f"--figure must be one of {known}, got {unknown[0]!r}")
    is_sweep = (folder / "results.csv").exists()
    if not names:
        is_run = not is_sweep and (folder / "rounds.csv").exists()
        is_learned = not is_sweep and not is_run and (folder / CURVE).exists()
        names = ["run"] if is_run else ["learning"] if is_learned else ["snr"]
    paths: list[Path] = []
    source = Source(folder, labels, reference)
    if reference is not None:
        check_label(reference, source.trials, "--reference")
    for name in names:
        if name in ("run", "learning"):
            if labels:
                raise ValueError(f"--label chooses among a sweep's runs, not for --figure {name}")
            paths += (plot_run if name == "run" else plot_learning)(folder)
        else:
            paths += save(FIGURES[name][1](source), folder, name)
    return paths


def plot_learning(folder: Path | str) -> list[Path]:
    """The curve of a learned policy, or those of all policies in a folder by their names."""
    folder = Path(folder)
    found = (
        [folder]
        if (folder / CURVE).exists()
        else sorted(p.parent for p in folder.glob(f"*/{CURVE}"))
    )
    if not found:
        raise ValueError(f"{folder} holds no {CURVE}; name the --out of `airllm learn`")
    curves = {where.name: pd.read_csv(where / CURVE) for where in found}
    return save(learning_figure(curves), folder, "learning")


def check_label(label: str, frame: pd.DataFrame, option: str) -> None:
    """Raise ValueError for a label that a frame does not have."""
    known = list(pd.unique(frame["label"]))
    if label not in known:
        raise ValueError(f"{option} {label!r} is none of {', '.join(known)}")


def _chosen(frame: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    if not labels:
        return frame
    for label in labels:
        check_label(label, frame, "--label")
    order = {label: i for i, label in enumerate(labels)}
    kept = frame[frame["label"].isin(order)]
    return kept.sort_values("label", key=lambda names: names.map(order), kind="stable")
