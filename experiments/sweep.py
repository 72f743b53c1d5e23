"""The cross product of policies, SNRs and seeds, one run folder each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.config import ExperimentConfig, LearnConfig, SweepConfig, cell_of
from experiments.config_loader import dump_config
from experiments.results import read_summary, write_results

logger = logging.getLogger(__name__)

_DONE = "summary.json"
"""its presence in a run's folder says that the run is complete"""

Run = Callable[[ExperimentConfig, Path, Callable[[int, int], None]], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep."""

    policy: str
    snr_db: float
    seed: int
    config: ExperimentConfig

    @property
    def folder(self) -> str:
        # Short where that says it all: two SNRs must not end in one folder.
        snr = f"{self.snr_db:g}" if float(f"{self.snr_db:g}") == self.snr_db else f"{self.snr_db!r}"
        return f"{self.policy.replace(':', '-')}_snr{snr}_seed{self.seed}"


def cells_of(config: ExperimentConfig) -> list[Cell]:
    """All runs, those of a seed together, because they share a trained master."""
    sweep = config.sweep
    return [
        Cell(policy, snr_db, seed, _one(config, policy, snr_db, seed))
        for seed in sweep.seeds
        for policy in sweep.policies
        for snr_db in sweep.snr_db
    ]


def _one(config: ExperimentConfig, policy: str, snr_db: float, seed: int) -> ExperimentConfig:
    """A run's configuration; sweep and learning, on which it does not depend, are left out."""
    single = cell_of(config, policy=policy, snr_db=snr_db, seed=seed)
    return replace(single, sweep=SweepConfig(), learn=LearnConfig())


def finished_summary(cell: Cell, out: Path) -> dict[str, Any] | None:
    """The summary of a run that was completed before with the same configuration, or None."""
    folder = out / cell.folder
    try:
        if (folder / "config.toml").read_text(encoding="utf-8") != dump_config(cell.config):
            return None
        return read_summary(folder)
    except (OSError, ValueError):
        return None


def run_sweep(
    config: ExperimentConfig,
    out: Path,
    run: Run,
    *,
    is_fresh: bool = False,
    on_progress: Callable[[Cell, int, int], None] = lambda cell, done, rounds: None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run what is not finished yet; the rows of results.csv, and the error of each failed run.

    Runs finished before with the same configuration are taken as they are (``is_fresh`` runs them
    again); one of another configuration stays until the run that replaces it has begun. results.csv
    is rewritten after every run, its rows always in the order of the sweep. A full disk ends the
    sweep; what else goes wrong with one run, as too little memory, costs no other.
    """
    cells = cells_of(config)
    kept = {} if is_fresh else {c.folder: s for c in cells if (s := finished_summary(c, out))}
    rows = {cell.folder: _row(cell, kept[cell.folder]) for cell in cells if cell.folder in kept}
    errors: dict[str, str] = {}
    others = [c for c in cells if c.folder not in kept and (out / c.folder / _DONE).exists()]
    if others and not is_fresh:
        logger.warning(
            "%d finished runs in %s have another configuration or are damaged; running them again",
            len(others),
            out,
        )

    def ordered() -> list[dict[str, Any]]:
        return [rows[cell.folder] for cell in cells if cell.folder in rows]

    if rows:
        write_results(out / "results.csv", ordered())
    for cell in cells:
        if cell.folder not in kept:
            try:
                summary = run(cell.config, out / cell.folder, partial(on_progress, cell))
            except (ValueError, MemoryError, RuntimeError) as error:
                # torch reports too little memory as a RuntimeError.
                reason = str(error) or type(error).__name__
                if reason not in errors.values():
                    logger.error("%s: %s", cell.folder, reason)
                    logger.info("raised here", exc_info=True)
                errors[cell.folder] = reason
            else:
                rows[cell.folder] = _row(cell, summary)
                write_results(out / "results.csv", ordered())
        on_progress(cell, config.rounds, config.rounds)
    return ordered(), errors


def _row(cell: Cell, summary: dict[str, Any]) -> dict[str, Any]:
    return {**summary, "policy": cell.policy, "snr_db": cell.snr_db, "seed": cell.seed}
