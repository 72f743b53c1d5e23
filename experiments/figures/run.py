"""One run: accuracy over its rounds, and the ranks that each projection got."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.figures.ranks import place_of
from experiments.figures.style import COLOURS, HEAT, PAGE_IN, save, some, style
from experiments.results.folder import read_ranks, read_rounds, read_summary


def plot_run(folder: Path | str) -> list[Path]:
    """Accuracy over the rounds and the ranks each projection got; run.png and run.pdf.

    A run that was stopped is drawn as far as it came.
    """
    folder = Path(folder)
    rounds, (ranks, names) = read_rounds(folder), read_ranks(folder)
    if (folder / "summary.json").exists():
        title = str(read_summary(folder)["policy"])
    else:
        title = f"stopped after round {rounds['round'].max()}"
    total = ranks.sum(axis=1)  # [rounds, projections], over the devices
    with style():
        figure = Figure(figsize=(PAGE_IN * 0.75, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.3))
        for i, (_, rows) in enumerate(rounds.groupby("device")):
            left.plot(
                rows["round"], 100.0 * rows["accuracy"],
                color="0.7", linewidth=0.8, label=None if i else "one device",
            )  # fmt: skip
        mean = rounds.groupby("round")["accuracy"].mean()
        left.plot(mean.index, 100.0 * mean, color=COLOURS[0], marker="o", label="mean")
        left.set_xlabel("round")
        left.set_ylabel("accuracy (%)")
        left.set_xticks(some(list(mean.index), 10))
        figure.legend(loc="outside upper center", ncols=2, title=title)
        image = right.imshow(
            total.T, aspect="auto", origin="lower", cmap=HEAT, interpolation="nearest",
            vmin=0, vmax=max(int(total.max()), 1),
        )  # fmt: skip
        right.grid(visible=False)
        right.set_xlabel("round")
        ticks = some(range(len(total)), 10)
        right.set_xticks(ticks, [str(i + 1) for i in ticks])
        named = some(range(len(names)), 12)
        right.set_yticks(named, [_name(names[i]) for i in named])
        right.set_ylabel("layer and projection")
        figure.colorbar(
            image, ax=right, label="ranks sent, sum over devices", ticks=MaxNLocator(integer=True)
        )
        return save(figure, folder, "run")


def _name(projection: str) -> str:
    """Its layer and type, if it has them."""
    depth, kind = place_of(projection)
    return kind if kind == projection else f"{depth + 1} {kind}"
