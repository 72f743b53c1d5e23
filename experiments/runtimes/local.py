"""The local runtime: every device in this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cloud.grids.local_grid import LocalGrid
from edge.client_app import answer_together
from experiments.config.loader import dump_config
from experiments.config.schema import ExperimentConfig
from experiments.run.rounds import run_rounds
from experiments.runtimes.flower_apps import client_app, load_device


def run_simulation(
    config: ExperimentConfig,
    out: Path | str | None = None,
    *,
    on_round: Callable[[int, int], None] | None = None,
    is_resuming: bool = False,
) -> dict[str, Any]:
    """Run one simulation in this process; returns the summary and writes what `run_rounds` does.

    Raises ValueError for what the configuration asks and this machine does not have.
    """
    together = partial(answer_together, load_device) if config.runtime.stacked else None
    grid = LocalGrid(
        client_app, config.num_devices, {"config": dump_config(config)}, answer_together=together
    )
    return run_rounds(grid, config, out, on_round=on_round, is_resuming=is_resuming)
