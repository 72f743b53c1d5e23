"""A cross product of settings, one run folder each; what is finished is not run again."""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.assembly.threads import num_in_memory, num_processes, num_threads
from experiments.config.axes import flatten, listed, parse_sweep
from experiments.config.loader import (
    Settings,
    build_config,
    dump_config,
    load_config,
    read_tree,
    settings_of,
)
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.results.folder import (
    KEY_COLUMNS,
    read_rounds,
    read_summary,
    write_results,
    write_text,
)
from experiments.run.checkpoints import difference, found
from experiments.sweep.pool import Event, Run, run_here, run_in_processes

logger = logging.getLogger(__name__)

_DONE = "summary.json"
"""its presence in a run's folder says that the run is complete"""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep."""

    label: str
    """name of its policy or variant; of its method where one policy is swept over methods"""
    folder: str
    settings: Mapping[str, Any]
    """value of each of the sweep's keys"""
    config: ExperimentConfig


@dataclass(frozen=True, slots=True)
class Sweep:
    """The runs, those which share a trained master next to each other."""

    base: ExperimentConfig
    """with all that is swept in its table `sweep`"""
    keys: tuple[str, ...]
    """of the columns that tell runs apart, beside the label"""
    trials: tuple[Trial, ...]


def load_sweep(
    path: Path | str | None = None,
    sets: Settings = (),
    axes: Mapping[str, Any] | None = None,
    *,
    text: str | None = None,
) -> Sweep:
    """What the table [sweep] of a file, or of a bundled one, states, with ``axes`` over it.

    ``axes`` are as in that table; whatever gives values, as ``range`` or an array, will do.
    Each run is what the file states with its own settings on top, so that a swept preset brings
    its values. The section [policy] counts for the policy it names; the others start from their
    presets. Raises ValueError for whatever is wrong with any of the runs.
    """
    tree = read_tree(ExperimentConfig, path, sets, text=text)
    base = build_config(ExperimentConfig, tree, presets=PRESETS)
    variants = base.sweep.get("variants", [])
    stated = dict(flatten({k: v for k, v in base.sweep.items() if k != "variants"}))
    own_axes = {key: listed(values) for key, values in (axes or {}).items()}
    table = {**stated, **own_axes, "variants": variants}
    crossed, labelled = parse_sweep(ExperimentConfig, table)
    if not crossed and not labelled:
        raise ValueError(
            f"config {path or 'given'} sweeps nothing; add a table [sweep], or "
            "--sweep channel.snr_db=[-5,5] (in Python axes={'channel.snr_db': [-5, 5]})"
        )
    for key, value in settings_of(ExperimentConfig, sets):
        if key in crossed:
            raise ValueError(
                f"setting {key}={value} would change nothing, since {key} is swept; "
                f"give --sweep {key}={value} (in Python axes) instead"
            )
    tree = {key: value for key, value in tree.items() if key not in ("sweep", "learn")}
    methods = [(variant.label, {**crossed, **variant.axes}) for variant in labelled]
    # Lines are policies, or where there is one policy alone, methods of federated mode.
    line = "policy.name"
    if line not in crossed and not methods and "federated.method" in crossed:
        line = "federated.method"
    if line in crossed:
        methods = [(name, {**crossed, line: (name,)}) for name in crossed[line]] + methods
    elif not methods:
        methods = [(base.policy.name, crossed)]
    labels = [label for label, _ in methods]
    if repeated := {label for label in labels if labels.count(label) > 1}:
        raise ValueError(
            f"sweep.variants must have labels of their own, got {min(repeated)!r} twice"
        )
    found = []
    for label, own in methods:
        # A variant's single values are what its label stands for.
        swept = [k for k in own if k in crossed or len(own[k]) > 1]
        # Mean SNR and seed always, so that a run keeps its name when they come to be swept.
        named = dict.fromkeys((*(k for k in swept if k != line), *KEY_COLUMNS[3:]))
        for values in itertools.product(*own.values()):
            settings = dict(zip(own, values, strict=True))
            config = _config_of(tree, base.policy.name, settings)
            parts = (f"{k.rpartition('.')[2]}={_text(value_of(config, k))}" for k in named)
            found.append((label, "_".join((label, *parts)), config))
    keys = list(dict.fromkeys((*KEY_COLUMNS[2:], *crossed, *(k for v in labelled for k in v.axes))))
    folders = _folders([name for _, name, _ in found], [config for *_, config in found])
    trials = [
        Trial(label, folder, {key: value_of(config, key) for key in keys}, config)
        for (label, _, config), folder in zip(found, folders, strict=True)
    ]
    return Sweep(replace(base, sweep=table), tuple(keys), tuple(_grouped(trials)))


def value_of(config: Any, key: str) -> Any:
    """A configuration's value by its dotted key."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def finished_summary(config: ExperimentConfig, folder: Path) -> dict[str, Any] | None:
    """The summary of a run that was completed before with the same configuration, or None."""
    try:
        before = load_config(ExperimentConfig, folder / "config.toml", presets=PRESETS)
        if difference(dump_config(before), dump_config(config)):
            return None
        if read_rounds(folder)["round"].nunique() < config.rounds:
            return None  # damaged since
        return read_summary(folder)
    except (OSError, ValueError):
        return None


def default_jobs(sweep: Sweep) -> int:
    """As many runs side by side as there are, with cores and memory for; one on a GPU."""
    from airllm.models.device import resolve_device

    configs = [trial.config for trial in sweep.trials]
    devices = {resolve_device(name).type for name in {c.model.device for c in configs}}
    if "cuda" in devices:
        return 1
    threads = max(num_threads(c.runtime.threads or 1) for c in configs)
    return num_processes(min(len(configs), num_in_memory()), threads)


def _finished(trial: Trial, out: Path) -> dict[str, Any] | None:
    return finished_summary(trial.config, out / trial.folder)


def run_sweep(
    sweep: Sweep,
    out: Path | str,
    *,
    jobs: int = 1,
    run: Run | None = None,
    is_fresh: bool = False,
    on_event: Callable[[Trial, Event], None] = lambda trial, event: None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run what is not finished yet; the rows of results.csv, and the error of each failed run.

    Runs finished before with the same configuration are taken as they are (``is_fresh`` runs them
    again), half-finished ones go on from their checkpoints; one of another configuration stays
    until the run that replaces it has begun. results.csv
    is rewritten after every run, its rows always in the order of the sweep. A full disk ends the
    sweep; what else goes wrong with one run, as too little memory, costs no other. ``jobs`` > 1
    runs them in so many processes, of one thread each unless ``runtime.threads`` says otherwise,
    and never more than its share of the cores; ``run`` replaces the
    simulation where they run in this one. After Ctrl-C results.csv holds all that was finished.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    trials, out = sweep.trials, Path(out)
    kept = {} if is_fresh else {t.folder: s for t in trials if (s := _finished(t, out))}
    rows = {t.folder: _row(t, kept[t.folder]) for t in trials if t.folder in kept}
    errors: dict[str, str] = {}
    todo = [trial for trial in trials if trial.folder not in kept]
    others = [trial for trial in todo if (out / trial.folder / _DONE).exists()]
    if others and not is_fresh:
        logger.warning(
            "%d finished runs in %s have another configuration or are damaged; running them again",
            len(others),
            out,
        )

    def ordered() -> list[dict[str, Any]]:
        return [rows[trial.folder] for trial in trials if trial.folder in rows]

    def write() -> None:
        if rows:
            write_text(out / "sweep.toml", dump_config(sweep.base))
            write_results(out / "results.csv", ordered(), sweep.keys)

    def handle(event: Event) -> None:
        trial = todo[event.task]
        if event.kind == "failed":
            if event.reason not in errors.values():
                logger.error("%s: %s", trial.folder, event.reason)
            errors[trial.folder] = event.reason
        elif event.kind == "done":
            rows[trial.folder] = _row(trial, event.summary)
            write()
        on_event(trial, event)

    write()
    for trial in trials:
        if trial.folder in kept:
            on_event(trial, Event("kept", summary=kept[trial.folder]))
    if is_fresh:
        # What is to be run again is not finished any more, whatever becomes of it.
        for trial in trials:
            for path in (out / trial.folder / _DONE, *found(out / trial.folder)):
                path.unlink(missing_ok=True)
        (out / "results.csv").unlink(missing_ok=True)
    jobs = min(jobs, len(trials))
    if jobs > 1:
        # Even where one run is left: it goes on with the threads that it began with.
        todo = [_with_threads(trial, jobs) for trial in todo]
    jobs = min(jobs, len(todo))
    runs = [(trial.config, out / trial.folder) for trial in todo]
    try:
        if jobs > 1:
            threads = max(trial.config.runtime.threads for trial in todo)
            groups = [list(g) for _, g in itertools.groupby(range(len(todo)), _master_of(todo))]
            run_in_processes(runs, groups, jobs, threads, handle)
        else:
            run_here(runs, run, handle)
    except KeyboardInterrupt:
        for trial in todo:
            if trial.folder not in rows and (summary := _finished(trial, out)):
                rows[trial.folder] = _row(trial, summary)
        write()
        raise
    return ordered(), errors


def _config_of(
    tree: Mapping[str, Any], policy: str, settings: Mapping[str, Any]
) -> ExperimentConfig:
    own = dict(tree)
    if settings.get("policy.name", policy) != policy:
        # Another policy's settings say nothing about this one: it starts from its own preset.
        own["policy"] = {}
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = own
        for name in parents:
            # Copied on the way down: the file's tree serves every run.
            node[name] = node = dict(node.get(name, {}))
        node[last] = value
    return build_config(ExperimentConfig, own, presets=PRESETS)


def _grouped(trials: Sequence[Trial]) -> list[Trial]:
    """Runs of one trained master together, masters as they first appear."""
    master_of = _master_of(trials)
    order: dict[Any, int] = {}
    for i in range(len(trials)):
        order.setdefault(master_of(i), len(order))
    return [trials[i] for i in sorted(range(len(trials)), key=lambda i: order[master_of(i)])]


def _master_of(trials: Sequence[Trial]) -> Callable[[int], Any]:
    from experiments.assembly.workbench import workbench_key

    return lambda i: workbench_key(trials[i].config)


def _folders(names: Sequence[str], configs: Sequence[ExperimentConfig]) -> list[str]:
    """A readable name for each run's folder; a checksum tells apart what would look the same."""
    clean = [re.sub(r"[^\w.=+-]+", "-", name) for name in names]
    return [
        name
        if len(name) <= 120 and clean.count(name) == 1
        else f"{name[:100]}_{hashlib.sha256(dump_config(config).encode()).hexdigest()[:8]}"
        for name, config in zip(clean, configs, strict=True)
    ]


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(_text, value))
    if isinstance(value, float):
        # Short where that says it all: two SNRs must not end in one folder.
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _with_threads(trial: Trial, jobs: int) -> Trial:
    runtime = trial.config.runtime
    own = replace(runtime, threads=num_threads(runtime.threads, jobs))
    return replace(trial, config=replace(trial.config, runtime=own))


def _row(trial: Trial, summary: Mapping[str, Any]) -> dict[str, Any]:
    return {**summary, "trial": trial.folder, "label": trial.label, **trial.settings}
