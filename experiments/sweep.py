"""The cross product of policies, SNRs and seeds, one run folder each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.config import ExperimentConfig, SweepConfig, cell_of
from experiments.config_loader import dump_config
from experiments.results import read_summary, write_results

logger = logging.getLogger(__name__)

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
        return f"{self.policy.replace(':', '-')}_snr{self.snr_db:g}_seed{self.seed}"


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
    """A run's configuration; the extent of its sweep, on which it does not depend, is left out."""
    single = cell_of(config, policy=policy, snr_db=snr_db, seed=seed)
    return replace(single, sweep=SweepConfig())


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
    again). results.csv is rewritten after every run, its rows always in the order of the sweep.
    """
    cells = cells_of(config)
    rows: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    for cell in cells:
        summary = None if is_fresh else finished_summary(cell, out)
        if summary is None:
            folder = out / cell.folder
            (folder / "summary.json").unlink(missing_ok=True)
            try:
                summary = run(
                    cell.config,
                    folder,
                    lambda done, rounds, cell=cell: on_progress(cell, done, rounds),  # type: ignore
                )
            except ValueError as error:
                # One run that cannot be must not cost the others.
                errors[cell.folder] = str(error)
                logger.error("%s: %s", cell.folder, error)
        on_progress(cell, config.rounds, config.rounds)
        if summary is not None:
            rows[cell.folder] = {
                **summary,
                "policy": cell.policy,
                "snr_db": cell.snr_db,
                "seed": cell.seed,
            }
            ordered = [rows[c.folder] for c in cells if c.folder in rows]
            write_results(out / "results.csv", ordered)
    return [rows[c.folder] for c in cells if c.folder in rows], errors
