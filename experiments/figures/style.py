"""How all figures look: sizes of a two-column paper, colours for any colour vision, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN_IN = 3.5
"""width of a paper's column"""
PAGE_IN = 7.16
"""width of both columns together"""
# Okabe and Ito's colours, told apart with any colour vision; markers tell them apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Of lines without markers; five, so that colour and line do not meet twice.
LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HEAT = "cividis"
STYLE = {
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 7.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    # Labels, file names and parts of one's own may have a $ in them.
    "text.parse_math": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "airllm",
}
Size = tuple[float, float]
"""width and height in inches"""
FORMATS = ("png", "pdf")
_NO_WIDTH = "\N{ZERO WIDTH SPACE}"


def style() -> Any:
    """A context in which figures are made."""
    return mpl.rc_context(cast(Any, STYLE))


def look(index: int) -> dict[str, Any]:
    """Colour and marker of a line; when these are used up, again with open markers and dashes."""
    again = index // len(COLOURS) % 2 == 1
    return {
        "color": COLOURS[index % len(COLOURS)],
        # A step on at each turn, so that colour and marker do not meet twice.
        "marker": MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
        "linestyle": (0, (4, 1.5)) if again else "-",
        "markerfacecolor": "white" if again else COLOURS[index % len(COLOURS)],
    }


def looks_of(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The look of each label of a frame, in the order in which they come."""
    labels = frame["label"]
    # A part of a frame knows the labels of the whole as categories.
    names = labels.cat.categories if hasattr(labels, "cat") else pd.unique(labels)
    return {name: look(i) | {"label": for_legend(name)} for i, name in enumerate(names)}


def for_legend(label: Any) -> str:
    """The label as matplotlib's legends show it: one that begins with _ they would leave out."""
    text = str(label)
    return _NO_WIDTH + text if text.startswith("_") else text


def lines_of(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The same for lines without markers: dashes tell them apart where colours do not."""
    return {
        name: {"color": own["color"], "linestyle": LINES[i % len(LINES)], "label": own["label"]}
        for i, (name, own) in enumerate(looks_of(frame).items())
    }


def legend_above(figure: Figure, panels: Axes | np.ndarray, title: str = "") -> None:
    """One legend for all panels, above them, of what each has named."""
    found = [axes.get_legend_handles_labels() for axes in np.asarray(panels).flat]
    entries: dict[str, Any] = {}
    for own in sorted(found, key=lambda own: -len(own[1])):  # in the order of the fullest
        entries |= {label: h for h, label in zip(*own, strict=True) if label not in entries}
    if entries:
        legend_of(figure, list(entries.values()), list(entries), title)


def legend_of(figure: Figure, handles: Sequence[Any], labels: Sequence[str], title: str) -> None:
    """A legend above all panels, in as many rows as the width needs."""
    # At 7.5 points a character is about 0.055 in wide, a handle with its gaps 0.45 in.
    widest = 0.45 + 0.055 * max(map(len, labels))
    columns = max(1, min(len(labels), int(figure.get_figwidth() / widest)))
    # A figure grows with the rows of its legend beyond the first two.
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.16 * max(0, rows - 2))
    legend = figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, title=title or None,
        columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_text(text.get_text().removeprefix(_NO_WIDTH))


def seeds_note(counts: Sequence[int] | pd.Series, what: str = "mean") -> str:
    """What a figure's legend says of its intervals."""
    few, many = int(min(counts)), int(max(counts))
    if many == 1:
        return "one seed, no intervals"
    seeds = f"{many} seeds" if few == many else f"{few} to {many} seeds"
    return f"{what} over {seeds}, bars: 95 % t-intervals"


def log_ticks(axes: Axes, values: Sequence[float] | pd.Series, which: str = "y") -> None:
    """A log axis with plain numbers; where a value is nothing, a zero below it."""
    values = np.asarray(values, dtype=np.float64)
    positive = values[values > 0]
    if not positive.size:
        return
    limits = axes.dataLim
    # Intervals reach beyond the means.
    reach = float(limits.y1 if which == "y" else limits.x1)
    low, high = float(positive.min()), max(reach, float(positive.max()))
    decades = 10.0 ** np.arange(np.floor(np.log10(low)) - 1, np.ceil(np.log10(high)) + 1)
    fine = [k * d for d in decades for k in (1.0, 2.0, 5.0)]
    ticks = [t for t in fine if 0.7 * low <= t <= 1.5 * high]
    if len(ticks) < 2:
        ticks = [t for t in fine if 0.4 * low <= t <= 2.5 * high]
    elif positive.max() > 100.0 * low:
        ticks = [d for d in decades if 0.7 * low <= d <= 1.5 * high]
    axis = axes.yaxis if which == "y" else axes.xaxis
    set_scale = axes.set_yscale if which == "y" else axes.set_xscale
    set_limits = axes.set_ylim if which == "y" else axes.set_xlim
    top = max(1.3 * high, ticks[-1])
    if (values == 0).any():
        set_limits(-0.15 * low, top)
        set_scale("symlog", linthresh=low, linscale=0.4)
        ticks = [0.0, *(t for t in ticks if t >= low)]
    else:
        # An interval that reaches to nothing must not push the means to the end.
        least = float(limits.minposy if which == "y" else limits.minposx)
        bottom = max(min(least, low), low / 10.0)
        set_limits(min(bottom / 1.3, ticks[0]), top)
        set_scale("log")
    axis.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
    axis.set_ticks([], minor=True)


def share_y(row: Sequence[Axes]) -> None:
    """Give drawn panels of a row one scale, named at the left."""
    if len(row) == 1:
        return
    limits = np.array([axes.get_ylim() for axes in row])
    ticks = sorted({tick for axes in row for tick in axes.get_yticks()})
    for axes in row:
        if axes.get_yscale() != "linear":
            axes.set_yscale(row[0].get_yscale())
            axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
            axes.set_yticks([], minor=True)
        axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())
        if axes is not row[0]:
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)


def some(values: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of sorted values, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    index = np.linspace(0, len(values) - 1, most).round().astype(int)
    return [values[i] for i in index]


def save(figure: Figure, out: Path, stem: str) -> list[Path]:
    """PNG and PDF without dates, so that the same numbers give the same bytes."""
    paths = [out / f"{stem}.{end}" for end in FORMATS]
    with style():  # of texts and fonts that are made no earlier
        figure.savefig(paths[0], dpi=300, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"CreationDate": None, "ModDate": None})
    return paths
