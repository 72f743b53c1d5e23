"""Paired differences from one label against the SNR: what policies differ by, seeds alike."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.snr import (
    POINTS,
    SNR,
    check_cells,
    check_part,
    name_of,
    panels,
    parts_of,
    points_against_snr,
)
from experiments.figures.style import Size, looks_of, seeds_note
from experiments.results.folder import condition_keys
from experiments.results.tables import comparison_table


def difference_against_snr(
    axes: Axes, cells: pd.DataFrame, reference: str, metric: str = "mean_accuracy"
) -> None:
    """Each other label less the reference: means over pairs of seeds, 95 % paired t-intervals.

    Each interval is by itself, not corrected for their number. Raises ValueError for cells that
    differ in more than label, SNR and seed.
    """
    check_part(cells, "differences_figure")
    text, scale = name_of(metric, cells)
    found = _differences(cells, reference, metric, scale)
    points_against_snr(axes, cells, found)
    axes.axhline(0.0, color="0.45", linewidth=0.9, zorder=0)
    what, _, unit = text.partition(" (")
    unit = f" ({unit}".replace("%", "points") if unit else ""
    axes.set_ylabel(f"{what}{unit}\nless that of {reference}")


def differences_figure(
    cells: pd.DataFrame,
    reference: str | None = None,
    metric: str = "mean_accuracy",
    *,
    figsize: Size | None = None,
) -> Figure:
    """Paired differences from ``reference``, the first label unless it is given; what else is
    swept has panels of its own."""
    check_cells(cells)
    reference = str(cells["label"].iloc[0]) if reference is None else reference
    # A part of the cells may lack the reference, and still knows it.
    cells = cells.assign(label=pd.Categorical(cells["label"], list(looks_of(cells))))
    found = [_differences(rows, reference, metric) for _, rows in parts_of(cells)]
    seeds = pd.concat([rows["seeds"] for rows in found])
    if seeds.empty:
        raise ValueError(
            f"no label has two seeds or more in common with {reference!r}; differences are of "
            "pairs, so sweep a second label and several seeds"
        )
    return panels(
        cells,
        (lambda axes, rows: difference_against_snr(axes, rows, reference, metric),),
        seeds_note(seeds, "mean difference, in pairs,"),
        figsize=figsize,
    )


def _differences(
    cells: pd.DataFrame, reference: str, metric: str, scale: float = 1.0
) -> pd.DataFrame:
    """`comparison_table` with its signs turned, as points to draw."""
    if reference in looks_of(cells) and reference not in set(cells["label"]):
        return pd.DataFrame(columns=POINTS)
    if num_empty := int(cells[metric].isna().sum()):
        raise ValueError(
            f"{metric} is empty for {num_empty} of {len(cells)} runs, of which there is no "
            "difference; take another metric"
        )
    if cells[SNR].nunique() > 1 and SNR not in condition_keys(cells):
        raise ValueError(
            "labels were run at one SNR each, and not at the same: there are no pairs; choose "
            "labels of one SNR"
        )
    table = comparison_table(cells, metric, reference)
    if SNR not in table:
        table[SNR] = cells[SNR].iloc[0]
    table["value"], table["low"], table["high"] = (
        -scale * table[end] for end in ("difference", "high", "low")
    )
    return table.assign(of=table["seeds"])[list(POINTS)]
