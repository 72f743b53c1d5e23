"""Paired differences from one label against the SNR: what policies differ by, seeds alike."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.snr import (
    POINTS,
    SNR,
    check_part,
    check_trials,
    name_of,
    panels,
    parts_of,
    points_against_snr,
)
from experiments.figures.style import Size, looks_of, seeds_note
from experiments.results.folder import condition_keys
from experiments.results.tables import comparison_table


def difference_against_snr(
    axes: Axes, trials: pd.DataFrame, reference: str, metric: str = "mean_accuracy"
) -> None:
    """Each other label less the reference: means over pairs of seeds, 95 % paired t-intervals.

    Each interval is by itself, not corrected for their number. Raises ValueError for trials that
    differ in more than label, SNR and seed.
    """
    check_part(trials, "differences_figure")
    text, scale = name_of(metric, trials)
    found = _differences(trials, reference, metric, scale)
    points_against_snr(axes, trials, found)
    axes.axhline(0.0, color="0.45", linewidth=0.9, zorder=0)
    what, _, unit = text.partition(" (")
    unit = f" ({unit}".replace("%", "points") if unit else ""
    axes.set_ylabel(f"{what}{unit}\nless that of {reference}")


def differences_figure(
    trials: pd.DataFrame,
    reference: str | None = None,
    metric: str = "mean_accuracy",
    *,
    figsize: Size | None = None,
) -> Figure:
    """Paired differences from ``reference``, the first label unless it is given; what else is
    swept has panels of its own."""
    check_trials(trials)
    reference = str(trials["label"].iloc[0]) if reference is None else reference
    # A part of the trials may lack the reference, and still knows it.
    trials = trials.assign(label=pd.Categorical(trials["label"], list(looks_of(trials))))
    found = [_differences(rows, reference, metric) for _, rows in parts_of(trials)]
    seeds = pd.concat([rows["seeds"] for rows in found])
    if seeds.empty:
        raise ValueError(
            f"no label has two seeds or more in common with {reference!r}; differences are of "
            "pairs, so sweep a second label and several seeds"
        )
    return panels(
        trials,
        (lambda axes, rows: difference_against_snr(axes, rows, reference, metric),),
        seeds_note(seeds, "mean difference, in pairs,"),
        figsize=figsize,
    )


def _differences(
    trials: pd.DataFrame, reference: str, metric: str, scale: float = 1.0
) -> pd.DataFrame:
    """`comparison_table` with its signs turned, as points to draw."""
    if reference in looks_of(trials) and reference not in set(trials["label"]):
        return pd.DataFrame(columns=POINTS)
    if num_empty := int(trials[metric].isna().sum()):
        raise ValueError(
            f"{metric} is empty for {num_empty} of {len(trials)} runs, of which there is no "
            "difference; take another metric"
        )
    if trials[SNR].nunique() > 1 and SNR not in condition_keys(trials):
        raise ValueError(
            "labels were run at one SNR each, and not at the same: there are no pairs; choose "
            "labels of one SNR"
        )
    table = comparison_table(trials, metric, reference)
    if SNR not in table:
        table[SNR] = trials[SNR].iloc[0]
    table["value"], table["low"], table["high"] = (
        -scale * table[end] for end in ("difference", "high", "low")
    )
    return table.assign(of=table["seeds"])[list(POINTS)]
