"""The two composed apps that Flower loads, in every runtime.

Run config: ``config`` is the name of a bundled configuration, the absolute path of a TOML file,
or its text; ``out`` is the absolute path of the run folder (empty: nothing is written).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid

from airllm.models import BaseModel
from cloud.server_app import make_server_app, run_federation
from edge.client_app import make_client_app
from edge.device import DeviceProfile
from experiments.build import make_cell, workbench_for
from experiments.config import PRESETS, ExperimentConfig
from experiments.config_loader import load_config
from experiments.paths import find_config
from experiments.run import Recorder


@lru_cache(maxsize=8)
def parse_config(given: str) -> ExperimentConfig:
    """The configuration of a run config's ``config``."""
    if "\n" in given:
        return load_config(ExperimentConfig, text=given, presets=PRESETS)
    return load_config(ExperimentConfig, find_config(given), presets=PRESETS)


def load_device(context: Context) -> tuple[BaseModel, DeviceProfile]:
    """Base model and profile of the node that a context belongs to."""
    config = parse_config(str(context.run_config["config"]))
    device = int(context.node_config["partition-id"])
    if not 0 <= device < config.num_devices:
        raise ValueError(f"partition-id must be in 0..{config.num_devices - 1}, got {device}")
    workbench = workbench_for(config)
    return workbench.base, workbench.device(device, config)


def serve(grid: Grid, context: Context) -> None:
    """The cloud's side under Flower's own runtimes."""
    config = parse_config(str(context.run_config["config"]))
    workbench = workbench_for(config)
    out = str(context.run_config.get("out", ""))
    with Recorder(config, workbench, Path(out) if out else None) as recorder:
        cell = make_cell(config.channel, config.num_devices, seed=config.seed)
        service = workbench.service(config)
        run_federation(
            grid,
            cell,
            service,
            on_round=recorder.record,
            reply_timeout_s=config.runtime.reply_timeout_s,
            connect_timeout_s=config.runtime.connect_timeout_s,
        )
        recorder.finish(service.final())


client_app = make_client_app(load_device)
server_app = make_server_app(serve)
