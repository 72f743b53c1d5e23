"""One page of HTML with a sweep's or a run's tables, figures and configuration, and no network."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray

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
    trials = source.trials
    for option, label in (("--reference", reference), ("--best", best)):
        if label is not None:
            check_label(label, trials, option)
    if best == "uniform":
        raise ValueError("--best 'uniform' is what a score of 0 stands for; name another one")
    page = _context(source, reference or str(trials["label"].iloc[0]), best)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    text = environment.get_template("page.html.j2").render(
        page, name=folder.resolve().name, **_configuration(folder)
    )
    out = out or folder / "report.html"
    write_text(out, text)
    return out


def _context(source: Source, reference: str, best: str | None) -> dict[str, Any]:
    """What the page says of the results."""
    trials = source.trials
    seeds = trials.groupby("label")["seed"].nunique()
    few, many = seeds.min(), seeds.max()
    crossed = [
        f"{key} ({', '.join(spoken(key, value) for value in pd.unique(trials[key]))})"
        for key in condition_keys(trials)
    ]
    page: dict[str, Any] = {
        "num_runs": len(trials),
        "num_labels": trials["label"].nunique(),
        "few": few,
        "many": many,
        "crossed": ", ".join(crossed),
        **_aggregates(trials),
        "by_condition": condition_keys(trials)
        and _crossed(interval_table(trials, "accuracy"), "value", trials, 100.0, 1),
        "comparisons": [],
        "figures": [_figure(name, source) for name in FIGURES],
    }
    if len(seeds) > 1 and many > 1:
        page |= {
            "reference": reference,
            "comparisons": [
                _comparison(trials, metric, reference) for metric in ("mean_accuracy", "accuracy")
            ],
            "improved": _table(improvement_table(trials, "mean_accuracy")),
            "best": best,
            "scores": best and _scores(trials, best),
            **_equal_accuracy(source, reference),
        }
    return page


def _aggregates(trials: pd.DataFrame) -> dict[str, Any]:
    """Interquartile means of all metrics, a row a label."""
    columns, num_conditions = {}, 0
    for metric, (name, unit, scale, decimals) in METRICS.items():
        if metric == "perplexity" and trials[metric].isna().all():
            continue
        table = aggregate_table(trials, metric)
        num_conditions = int(table["conditions"].max()) if len(table) else 0
        ends = scale * table[["value", "low", "high"]]
        columns[f"{name} ({unit})"] = _intervals(ends, decimals)
    frame = pd.DataFrame(columns).reindex(pd.unique(trials["label"]))
    return {"aggregates": _table(frame), "num_conditions": num_conditions}


def _crossed(
    table: pd.DataFrame, value: str, trials: pd.DataFrame, scale: float, decimals: int
) -> Markup:
    """A value with its interval: a row a label, a column a condition."""
    shown = table.assign(
        condition=[text or "all" for text in _conditions(table, trials)],
        cell=_intervals(scale * table[[value, "low", "high"]], decimals),
    )
    crossed = shown.pivot_table(
        index="label", columns="condition", values="cell", aggfunc="first", sort=False
    )
    return _table(crossed.reindex(pd.unique(table["label"])))


def _comparison(trials: pd.DataFrame, metric: str, reference: str) -> dict[str, Any]:
    """In how many conditions the reference is above each other label, and each of them."""
    name, _, scale, _ = METRICS[metric]
    table = comparison_table(trials, metric, reference)
    is_sure = table["p_holm"] < 0.05
    marked = table.assign(
        above=is_sure & (table["difference"] > 0), below=is_sure & (table["difference"] < 0)
    )
    groups = marked.groupby("label", sort=False)
    counts = {
        "mean difference (points)": scale * groups["difference"].mean(),
        "significantly above": groups["above"].sum(),
        "significantly below": groups["below"].sum(),
        "conditions": groups.size(),
    }
    names = zip(table["label"], _conditions(table, trials), strict=True)
    whole = {
        "difference (points)": _intervals(scale * table[["difference", "low", "high"]], 2),
        "effect (Hedges' g of pairs)": _intervals(
            table[["effect", "effect_low", "effect_high"]], 2
        ),
        "p": table["p"].map("{:.2g}".format),
        "p, Holm": table["p_holm"].map("{:.2g}".format),
        "seeds": table["seeds"],
    }
    return {
        "metric": name,
        "counts": _table(pd.DataFrame(counts)),
        "whole": _table(
            pd.DataFrame(whole).set_axis([", ".join(filter(None, pair)) for pair in names]),
            is_sure.to_numpy(),
        ),
        "is_short": len(table) <= 12,
    }


def _scores(trials: pd.DataFrame, best: str) -> Markup:
    table = score_table(trials, "mean_accuracy", best=best)
    columns = {
        "score": _intervals(table[["score", "low", "high"]], 2),
        "gain over uniform (points)": 100.0 * table["gain"],
    }
    return _table(pd.DataFrame(columns))


def _equal_accuracy(source: Source, reference: str) -> dict[str, str]:
    """How many times the reference's bits the others take, or why that is not known."""
    try:
        table = bits_ratio_table(Results(source.trials, source.rounds), reference)
    except ValueError as error:  # the runs' own folders are not there
        return {"ratios": "", "no_ratios": str(error)}
    return {"ratios": _crossed(table, "ratio", source.trials, 1.0, 2)}


def _figure(name: str, source: Source) -> dict[str, str]:
    """An image by itself, so that names within it do not meet those of another; or why not."""
    what, draw = FIGURES[name]
    file = io.BytesIO()
    try:
        figure = draw(source)
        with style():
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    except ValueError as error:
        logger.info("%s is not drawn: %s", name, error)
        return {"what": what, "image": "", "why": str(error)}
    image = base64.b64encode(file.getvalue()).decode()
    return {"what": what, "image": image, "width": f"{figure.get_figwidth() / PAGE_IN:.0%}"}


def _configuration(folder: Path) -> dict[str, str]:
    for name in ("sweep.toml", "config.toml"):
        path = folder / name
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            return {"config_name": name, "config": text}
    return {"config_name": ""}


def _conditions(table: pd.DataFrame, trials: pd.DataFrame) -> list[str]:
    """What each row's condition is called; nothing where nothing else was swept."""
    keys = condition_keys(trials)
    rows = table.to_dict("records")
    return [", ".join(spoken(key, row[key]) for key in keys) for row in rows]


def _intervals(table: pd.DataFrame, decimals: int) -> pd.Series:
    """Value, low and high of each row in a cell; the value alone where there is no interval."""
    shown = []
    for row in table.to_numpy(dtype=np.float64):
        value, low, high = (_number(number, decimals) for number in row)
        interval = Markup("{} <small>[{}, {}]</small>").format(value, low, high)
        shown.append(value if np.isnan(row[1:]).any() else interval)
    return pd.Series(shown, table.index, dtype=object)


def _number(value: float, decimals: int) -> Markup:
    if np.isnan(value):
        return Markup("–")
    if np.isinf(value):
        return Markup("never" if value > 0 else "−∞")
    return Markup(f"{value:.{decimals}f}".replace("-", "−"))


def _cell(content: object) -> Markup:
    return _number(content, 2) if isinstance(content, float) else escape(content)


def _table(frame: pd.DataFrame, is_bold: NDArray[np.bool_] | None = None) -> Markup:
    """Rows by their names."""
    styler = frame.style.hide(names=True).hide(axis="columns", names=True).format(_cell)
    if is_bold is not None:
        bold = (frame.index[is_bold], slice(None))
        styler.format(lambda content: Markup("<strong>{}</strong>").format(_cell(content)), bold)
    for axis in ("index", "columns"):
        styler.format_index(escape="html", axis=axis)
    return Markup(styler.to_html(exclude_styles=True))
