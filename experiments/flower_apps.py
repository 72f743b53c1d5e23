"""The two composed apps that Flower loads, in every runtime.

Run config: ``config`` is the name of a bundled configuration, the absolute path of a TOML file,
or its text; ``out`` is the absolute path of the run folder (empty: nothing is written);
``folder`` is where relative paths of the configuration start (empty: where the process runs).
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid

from airllm.models import BaseModel
from cloud.server_app import make_server_app
from edge.client_app import make_client_app
from edge.device import DeviceProfile
from experiments.build import workbench_for
from experiments.config import ExperimentConfig, load_experiment


@lru_cache(maxsize=8)
def parse_config(given: str) -> ExperimentConfig:
    """The configuration of a run config's ``config``."""
    return load_experiment(text=given) if "\n" in given else load_experiment(given)


def load_device(context: Context) -> tuple[BaseModel, DeviceProfile]:
    """Base model and profile of the node that a context belongs to."""
    return device_of(_config(context), context)


def device_of(config: ExperimentConfig, context: Context) -> tuple[BaseModel, DeviceProfile]:
    """The same where the configuration is known; all nodes of a process share one base model."""
    device = int(context.node_config["partition-id"])
    if not 0 <= device < config.num_devices:
        raise ValueError(f"partition-id must be in 0..{config.num_devices - 1}, got {device}")
    workbench = workbench_for(config)
    return workbench.base, workbench.device(device, config)


def serve(grid: Grid, context: Context) -> None:
    """The cloud's side under Flower's own runtimes."""
    # A device, which loads this file as well, needs nothing of it; its import takes seconds.
    from experiments.run import run_rounds

    out = str(context.run_config.get("out", ""))
    run_rounds(grid, _config(context), Path(out) if out else None)


def _config(context: Context) -> ExperimentConfig:
    """The run's configuration, whose relative paths are those of the folder it was started in."""
    folder = str(context.run_config.get("folder", ""))
    if folder and Path(folder).is_dir():
        os.chdir(folder)
    return parse_config(str(context.run_config["config"]))


client_app = make_client_app(load_device)
server_app = make_server_app(serve)
