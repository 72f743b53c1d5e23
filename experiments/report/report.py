"""One page of HTML with a sweep's or a run's tables, figures and configuration, and no network."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.figures import FIGURES, Source, check_label
from experiments.figures.style import PAGE_IN, style
from experiments.results.equal_accuracy import bits_ratio_table
from experiments.results.folder import Results, condition_keys, spoken, write_text
from experiments.results.tables import (
    aggregate_table,
    comparison_table,
    improvement_table,
    interval_table,
    score_table,
)

logger = logging.getLogger(__name__)

METRICS = {
    "mean_accuracy": ("accuracy, mean over rounds", "%", 100.0, 1),
    "accuracy": ("accuracy after the last round", "%", 100.0, 1),
    "mean_loss": ("loss, mean over rounds", "nats", 1.0, 3),
    "perplexity": ("perplexity after the last round", "per token", 1.0, 1),
    "total_delivered_bits": ("delivered in all", "Mbit", 1e-6, 3),
    "bits_to_95": ("delivered per device to 95 % of the whole update's accuracy", "Mbit", 1e-6, 3),
    "airtime_s": ("air time", "s", 1.0, 2),
    "energy_j": ("energy", "J", 1.0, 1),
}
"""name, unit, factor and decimals of each metric"""

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin-bottom: 0.3rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.2rem 0.7rem; border-bottom: 1px solid #e4e4e4; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #999; white-space: normal; max-width: 9rem;
  vertical-align: bottom; }
td.sure { font-weight: 600; }
td small { color: #666; }
figure { margin: 1.2rem 0; }
figure img { height: auto; }
summary { cursor: pointer; }
figcaption, p.note { color: #555; font-size: 0.9rem; max-width: 48rem; }
pre { background: #f6f6f6; padding: 0.8rem; overflow-x: auto; font-size: 0.8rem; }
"""


def write_report(
    folder: Path,
    out: Path | None = None,
    *,
    labels: Sequence[str] = (),
    reference: str | None = None,
    best: str | None = None,
) -> Path:
    """Write the page; ``out`` is report.html in the folder unless it is given.

    ``reference`` is whom the others are compared with, the first label unless it is given. With
    ``best``, scores are normalised: 0 is uniform, 1 is that label. What cannot be drawn, because
    the runs' own folders are not there, is said in its place. Raises ValueError for a folder
    without results, and for labels that it does not have.
    """
    source = Source(folder, labels, reference)
    cells = source.cells
    for option, label in (("--reference", reference), ("--best", best)):
        if label is not None:
            check_label(label, cells, option)
    if best == "uniform":
        raise ValueError("--best 'uniform' is what a score of 0 stands for; name another one")
    several = cells.groupby("label")["seed"].nunique().max() > 1
    parts = [
        f"<h1>{escape(folder.resolve().name)}</h1>",
        f"<p class=note>{_summary(cells)}</p>",
        "<h2>Results</h2>",
        *_aggregates(cells, several),
        *_by_condition(cells),
    ]
    if cells["label"].nunique() > 1 and several:
        parts += _comparisons(cells, reference, best)
        parts += _equal_accuracy(source, reference)
    parts += ["<h2>Figures</h2>", *(_figure(name, source) for name in FIGURES)]
    parts += ["<h2>Configuration</h2>", *_configuration(folder)]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(folder.resolve().name)}</title><style>{_CSS}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    out = out or folder / "report.html"
    write_text(out, page)
    return out


def _summary(cells: pd.DataFrame) -> str:
    seeds = cells.groupby("label")["seed"].nunique()
    few, many = seeds.min(), seeds.max()
    counted = f"{many} seed{'s' if many > 1 else ''}" if few == many else f"{few} to {many} seeds"
    keys = condition_keys(cells)
    crossed = ", ".join(
        f"{escape(key)} ({', '.join(escape(spoken(key, v)) for v in pd.unique(cells[key]))})"
        for key in keys
    )
    return (
        f"{len(cells)} runs of {cells['label'].nunique()} policies or variants, {counted} each"
        f"{f'; under {crossed}' if crossed else ''}."
    )


def _aggregates(cells: pd.DataFrame, several: bool) -> list[str]:
    """Interquartile means of all metrics, a row a label."""
    columns = {}
    conditions = 0
    for metric, (name, unit, scale, decimals) in METRICS.items():
        if metric == "perplexity" and cells[metric].isna().all():
            continue
        table = aggregate_table(cells, metric)
        conditions = int(table["conditions"].max()) if len(table) else 0
        columns[f"{name} ({unit})"] = [
            _interval(scale * table.loc[label, ["value", "low", "high"]], decimals)
            if label in table.index
            else "–"
            for label in pd.unique(cells["label"])
        ]
    note = f"Interquartile mean over the seeds and the {conditions} conditions that all have" + (
        ", with 95 % bootstrap intervals over seeds, too narrow where these are few. Labels of no "
        "more than half of the median label's seeds are left out."
        if several
        else "; one seed, no intervals."
    )
    return [_table(pd.unique(cells["label"]), columns), f"<p class=note>{note}</p>"]


def _by_condition(cells: pd.DataFrame) -> list[str]:
    """Accuracy of each label under each condition."""
    keys = condition_keys(cells)
    if not keys:
        return []
    table = interval_table(cells, "accuracy")
    table[["value", "low", "high"]] *= 100.0
    return [
        "<h3>Accuracy after the last round, %</h3>",
        _crossed(table, "value", keys, list(pd.unique(cells["label"])), 1),
        "<p class=note>Mean over seeds with 95 % t-intervals.</p>",
    ]


def _crossed(
    table: pd.DataFrame, value: str, keys: Sequence[str], labels: Sequence[str], decimals: int
) -> str:
    """A value with its interval: a row a label, a column a condition."""
    columns: dict[str, dict[str, str]] = {}
    for row in table.to_dict("records"):
        condition = ", ".join(spoken(key, row[key]) for key in keys) or "all"
        found = _interval([row[value], row["low"], row["high"]], decimals)
        columns.setdefault(condition, {})[row["label"]] = found
    shown = {name: [own.get(label, "–") for label in labels] for name, own in columns.items()}
    return _table(labels, shown)


def _comparisons(cells: pd.DataFrame, reference: str | None, best: str | None) -> list[str]:
    reference = reference or str(cells["label"].iloc[0])
    keys = condition_keys(cells)
    parts = [f"<h2>Compared with {escape(reference)}</h2>"]
    for metric in ("mean_accuracy", "accuracy"):
        name, _, scale, _ = METRICS[metric]
        table = comparison_table(cells, metric, reference)
        head = [
            ", ".join([row["label"], *(spoken(key, row[key]) for key in keys)])
            for row in table.to_dict("records")
        ]
        columns = {
            "difference (points)": [
                _interval(scale * row, 2) for row in table[["difference", "low", "high"]].to_numpy()
            ],
            "effect (Hedges' g of pairs)": [
                _interval(row, 2)
                for row in table[["effect", "effect_low", "effect_high"]].to_numpy()
            ],
            "p": [f"{p:.2g}" for p in table["p"]],
            "p, Holm": [f"{p:.2g}" for p in table["p_holm"]],
            "seeds": [str(n) for n in table["seeds"]],
        }
        parts.append(f"<h3>{escape(reference)} less each other: {escape(name)}</h3>")
        parts.append(_table(*_counts(table, scale)))
        whole = _table(head, columns, sure=list(table["p_holm"] < 0.05))
        is_open = " open" if len(head) <= 12 else ""
        parts.append(
            f"<details{is_open}><summary>Each condition by itself</summary>{whole}</details>"
        )
    parts.append(
        "<p class=note>Pairs of seeds that met the same random numbers; Student's paired t, "
        "corrected by Holm's method over the table. Bold: below 0.05 after correction.</p>"
    )
    improved = improvement_table(cells, "mean_accuracy")
    shown = {
        name: ["–" if np.isnan(v) else f"{v:.2f}" for v in column]
        for name, column in improved.items()
    }
    parts.append("<h3>Probability that the row's mean accuracy is above the column's</h3>")
    parts.append(_table(list(improved.index), shown))
    if best is not None:
        scores = score_table(cells, "mean_accuracy", best=best)
        parts.append(f"<h3>Normalised score: 0 is uniform, 1 is {escape(best)}</h3>")
        parts.append(
            _table(
                list(scores.index),
                {
                    "score": [_interval(v, 2) for v in scores[["score", "low", "high"]].to_numpy()],
                    "gain over uniform (points)": [_number(100 * g, 2) for g in scores["gain"]],
                },
            )
        )
    return parts


def _equal_accuracy(source: Source, reference: str | None) -> list[str]:
    """How many times the reference's bits the others take, as a table of conditions."""
    reference = reference or str(source.cells["label"].iloc[0])
    keys = condition_keys(source.cells)
    head = f"<h3>Times the bits that {escape(reference)} takes, at equal accuracy</h3>"
    try:
        table = bits_ratio_table(Results(source.cells, source.rounds), reference)
    except ValueError as error:  # the runs' own folders are not there
        return [head, f"<p class=note>{escape(str(error))}</p>"]
    note = (
        "Bits delivered to the accuracy that both reach, the lower of their last ones, by their "
        "mean curves over seeds; 95 % bootstrap intervals over seeds. No number where the "
        "preloaded head has that accuracy."
    )
    crossed = _crossed(table, "ratio", keys, list(pd.unique(table["label"])), 2)
    return [head, crossed, f"<p class=note>{note}</p>"]


def _counts(table: pd.DataFrame, scale: float) -> tuple[list[str], dict[str, list[str]]]:
    """In how many conditions the reference is above each other label."""
    groups = table.groupby("label", sort=False)
    is_sure = table["p_holm"] < 0.05
    above = (is_sure & (table["difference"] > 0)).groupby(table["label"], sort=False).sum()
    below = (is_sure & (table["difference"] < 0)).groupby(table["label"], sort=False).sum()
    return list(groups.groups), {
        "mean difference (points)": [_number(v, 2) for v in scale * groups["difference"].mean()],
        "significantly above": [str(n) for n in above],
        "significantly below": [str(n) for n in below],
        "conditions": [str(n) for n in groups.size()],
    }


def _figure(name: str, source: Source) -> str:
    what, draw = FIGURES[name]
    try:
        image, width = _svg(lambda: draw(source))
    except ValueError as error:
        logger.info("%s is not drawn: %s", name, error)
        return f"<p class=note>Not drawn, {escape(what)}: {escape(str(error))}.</p>"
    return (
        f'<figure><img style="width: {width:.0%}" alt="{escape(what)}" '
        f'src="data:image/svg+xml;base64,{image}">'
        f"<figcaption>{escape(what[0].upper() + what[1:])}.</figcaption></figure>"
    )


def _svg(draw: Callable[[], Figure]) -> tuple[str, float]:
    """A figure as base64 text, and its share of a page's width.

    It is an image by itself, so that names within it do not meet those of another.
    """
    file = io.BytesIO()
    figure = draw()
    with style():
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return base64.b64encode(file.getvalue()).decode(), figure.get_figwidth() / PAGE_IN


def _configuration(folder: Path) -> list[str]:
    for name in ("sweep.toml", "config.toml"):
        path = folder / name
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            return [f"<p class=note>{name}, every value:</p>", f"<pre>{escape(text)}</pre>"]
    return ["<p class=note>The folder holds no configuration.</p>"]


def _interval(found: Sequence[float] | pd.Series, decimals: int) -> str:
    value, low, high = (float(v) for v in found)
    text = _number(value, decimals)
    if np.isnan(low) or np.isnan(high):
        return text
    return f"{text} <small>[{_number(low, decimals)}, {_number(high, decimals)}]</small>"


def _number(value: float, decimals: int) -> str:
    if np.isnan(value):
        return "–"
    if np.isinf(value):
        return "never" if value > 0 else "−∞"
    return f"{value:.{decimals}f}".replace("-", "−")


def _table(
    names: Sequence[str], columns: dict[str, list[str]], sure: Sequence[bool] | None = None
) -> str:
    """Rows by their names; cells are HTML already."""
    head = "".join(f"<th>{escape(column)}</th>" for column in ("", *columns))
    rows = []
    for i, name in enumerate(names):
        mark = " class=sure" if sure is not None and sure[i] else ""
        body = "".join(f"<td{mark}>{values[i]}</td>" for values in columns.values())
        rows.append(f"<tr><td>{escape(str(name))}</td>{body}</tr>")
    return (
        f"<div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
