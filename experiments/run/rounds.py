"""The cloud's side of one run, over the grid of any runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from airllm.checkpoint import Stateful
from cloud.grids.local_grid import LocalGrid
from cloud.rounds.record import RoundResult
from cloud.server_app import Standing, run_federation
from experiments.assembly.parts import planners
from experiments.assembly.workbench import make_cell, workbench_for
from experiments.config.schema import ExperimentConfig
from experiments.run.recorder import Recorder


def run_rounds(
    grid: Grid,
    config: ExperimentConfig,
    out: Path | str | None,
    *,
    on_round: Callable[[int, int], None] | None = None,
    on_result: Callable[[RoundResult], None] = lambda result: None,
    is_stopped: Callable[[], bool] = lambda: False,
    is_resuming: bool = False,
) -> dict[str, Any]:
    """The cloud's side of one run over the grid of any runtime; returns the summary.

    With ``out``, writes config.toml, rounds.csv (flushed every round), ranks.npz and, once
    complete, summary.json there. Runs that share model, data, training and seed share what is
    dear. ``is_resuming`` goes on from the newest checkpoint in ``out``, to the very files that an
    uninterrupted run leaves; where there is none it begins at the beginning. Only a grid that can
    say what its nodes keep has checkpoints.
    """
    if config.runtime.stacked and not (isinstance(grid, LocalGrid) and grid.is_stacked):
        raise ValueError(
            "runtime.stacked computes all devices in one process: take --runtime local, or leave "
            "it false"
        )
    workbench = workbench_for(config)
    cell = make_cell(config.channel, config.num_devices, seed=config.seed)
    downlink, uplink = planners(workbench, config)
    standing = Standing()
    parts: dict[str, object] = {}
    if isinstance(grid, Stateful):
        parts = {"federation": standing, "downlink": downlink, "cell": cell, "grid": grid}
        if uplink is not None:
            parts["uplink"] = uplink
    with Recorder(
        config, workbench, out, on_round,
        parts=parts, is_resuming=is_resuming, is_settled=lambda done: done == standing.num_done,
    ) as recorder:  # fmt: skip

        def take(result: RoundResult) -> None:
            recorder.record(result)
            on_result(result)

        run_federation(
            grid,
            cell,
            downlink,
            uplink,
            on_round=take,
            reply_timeout_s=config.runtime.reply_timeout_s,
            connect_timeout_s=config.runtime.connect_timeout_s,
            is_stopped=is_stopped,
            standing=standing,
        )
        return recorder.finish(downlink.final())
