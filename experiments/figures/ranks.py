"""Which projections get ranks: by depth and type, against the SNR."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from experiments.figures.snr import SNR, by_snr, left_out, panels_of
from experiments.figures.style import HEAT, PAGE_IN, Size, some, style
from experiments.results.folder import PACKED_RANKS, read_ranks, run_folder

# Long names of the types, as papers write them.
_SHORT = {
    "attention.self.query": "query", "attention.self.key": "key", "attention.self.value": "value",
    "attention.output.dense": "attn. out", "intermediate.dense": "ffn in",
    "output.dense": "ffn out",
    "self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "value",
    "self_attn.out_proj": "attn. out", "self_attn.o_proj": "attn. out", "fc1": "ffn in",
    "fc2": "ffn out", "mlp.gate_proj": "ffn gate", "mlp.up_proj": "ffn up",
    "mlp.down_proj": "ffn down", "attn.c_attn": "qkv", "attn.c_proj": "attn. out",
    "mlp.c_fc": "ffn in", "mlp.c_proj": "ffn out",
}  # fmt: skip


def rank_map(
    axes: Axes, ranks: NDArray[np.float64], names: Sequence[str], *, most: float
) -> AxesImage:
    """An image [types, depths] of mean ranks [projections]; ``most`` is the end of the scale."""
    places = [place_of(name) for name in names]
    kinds = list(dict.fromkeys(kind for _, kind in places))
    depths = sorted({depth for depth, _ in places})
    image = np.full((len(kinds), len(depths)), np.nan)
    for value, (depth, kind) in zip(ranks, places, strict=True):
        image[kinds.index(kind), depths.index(depth)] = value
    shown = axes.imshow(image, aspect="auto", cmap=HEAT, vmin=0.0, vmax=most)
    axes.grid(visible=False)
    axes.set_yticks(range(len(kinds)), kinds)
    ticks = some(range(len(depths)), 6)
    axes.set_xticks(ticks, [str(depths[i] + 1) for i in ticks])
    return shown


def mean_ranks(folder: Path | str, trials: pd.DataFrame) -> tuple[NDArray[np.float64], list[str]]:
    """Ranks [projections], mean over the runs of ``trials``, their rounds and devices."""
    folder = Path(folder)
    packed = folder / PACKED_RANKS
    if packed.is_file():
        with np.load(packed) as file:
            own = file["ranks"][np.isin(file["trials"], trials["trial"])]
            names = file["projections"]
        return own.mean(axis=0), [str(name) for name in names]
    found = [read_ranks(run_folder(folder, trial)) for trial in trials["trial"]]
    names = found[0][1]
    if any(other != names for _, other in found):
        raise ValueError("runs of different models have no projections in common to draw")
    return np.mean([ranks.mean(axis=(0, 1)) for ranks, _ in found], axis=0), names


def ranks_figure(
    folder: Path, trials: pd.DataFrame, *, most_labels: int = 4, figsize: Size | None = None
) -> Figure:
    """A row for each of the first labels, a column for each SNR; one scale for all.

    Where runs have no SNR, a column for each condition, up to five.
    """
    labels = list(pd.unique(trials["label"]))[:most_labels]
    columns = [panel for row in panels_of(trials) for panel in row]
    if trials[SNR].notna().all() or len(columns) > 5:
        columns = by_snr(trials, 5)
    maps = {}
    for label in labels:
        for column, (_, at) in enumerate(columns):
            own = at[at["label"] == label]
            if len(own):
                maps[label, column] = mean_ranks(folder, own)
    most = max(float(ranks.max()) for ranks, _ in maps.values()) or 1.0
    with style():
        size = figsize or (PAGE_IN, 0.8 + 1.15 * len(labels))
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(labels), len(columns), squeeze=False, sharex=True, sharey=True)
        for row, label in enumerate(labels):
            for column, (name, _) in enumerate(columns):
                axes = grid[row, column]
                if (label, column) not in maps:
                    axes.set_axis_off()
                    continue
                image = rank_map(axes, *maps[label, column], most=most)
                if row == 0:
                    axes.set_title(name.replace(", ", ",\n"))
                if row == len(labels) - 1:
                    axes.set_xlabel("layer")
            grid[row, 0].set_ylabel(label)
        figure.colorbar(image, ax=grid, label="mean rank", pad=0.01)
        note = f"mean over rounds, devices and seeds{left_out(len(labels), trials)}"
        figure.suptitle(note.replace("\n", "; "), fontsize=7.0)
        return figure


def place_of(name: str) -> tuple[int, str]:
    """Depth and type of a projection by its name, as airllm.models.base finds them."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if re.fullmatch(r"\d+", part)]
    if not numbers:
        return 0, name
    kind = ".".join(parts[numbers[0] + 1 :])
    return int(parts[numbers[0]]), _SHORT.get(kind, kind)
