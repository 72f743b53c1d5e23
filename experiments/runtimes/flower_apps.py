"""The two composed apps that Flower loads, in every runtime.

Run config: ``config`` is the name of a bundled configuration, the absolute path of a TOML file,
or its text; ``set`` are settings on top, with blanks between; ``out`` is the run folder (empty:
nothing is written), in which ``overwrite`` replaces a run; ``folder`` is where relative paths, that
of ``out`` among them, start (empty: where the process runs, and ``out`` has to be absolute).
"""

from __future__ import annotations

import logging
import os
import shlex
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.serverapp import Grid

from airllm.models.base import BaseModel
from cloud.server_app import make_server_app
from edge.client_app import make_client_app
from edge.device import DeviceProfile
from experiments.assembly.parts import device_profile
from experiments.assembly.workbench import workbench_for
from experiments.config.schema import ExperimentConfig, load_experiment

if TYPE_CHECKING:
    from cloud.rounds.record import RoundResult

logger = logging.getLogger("flwr")  # what `flwr log` shows


@lru_cache(maxsize=8)
def parse_config(given: str, sets: str = "") -> ExperimentConfig:
    """The configuration of a run config's ``config`` and ``set``."""
    try:
        settings = shlex.split(sets)
    except ValueError as error:
        raise ValueError(
            f"set of the run config must be settings with blanks between, such as 'rounds=1 "
            f"seed=2', got {sets!r} ({error})"
        ) from None
    text, name = (given, None) if "\n" in given else (None, given)
    return load_experiment(name, settings, text=text)


def load_device(context: Context) -> tuple[BaseModel, DeviceProfile]:
    """Base model and profile of the node that a context belongs to."""
    return device_of(_config(context), context)


def device_of(config: ExperimentConfig, context: Context) -> tuple[BaseModel, DeviceProfile]:
    """The same where the configuration is known; all nodes of a process share one base model."""
    count, given = config.num_devices, context.node_config
    if "partition-id" not in given:
        raise ValueError(
            f'a SuperNode has no partition-id; start it with --node-config "partition-id=0 '
            f'num-partitions={count}", each with a number of its own from 0 to {count - 1}'
        )
    device, partitions = given["partition-id"], given.get("num-partitions", count)
    if type(device) is not int or not 0 <= device < count:
        raise ValueError(
            f"partition-id must be a whole number in 0..{count - 1}, got {device!r}; correct the "
            f"SuperNode's --node-config"
        )
    if partitions != count:
        raise ValueError(
            f"num-partitions must be num_devices {count}, got {partitions!r}; correct the "
            f"SuperNode's --node-config, or set num_devices"
        )
    workbench = workbench_for(config)
    return workbench.base, device_profile(workbench, device, config)


def serve(grid: Grid, context: Context) -> None:
    """The cloud's side under Flower's own runtimes."""
    # A device, which loads this file as well, needs nothing of it; its import takes seconds.
    from experiments.results.folder import RESULT_COLUMNS
    from experiments.run.rounds import run_rounds

    _check_folder(context)
    config, out = _config(context), _out(context)
    summary = run_rounds(grid, config, out, on_result=lambda result: _say(result, config.rounds))
    shown = [f"{key} {summary[key]:.6g}" for key in RESULT_COLUMNS if summary[key] == summary[key]]
    logger.info("%s: %s", summary["policy"], ", ".join(shown))
    logger.info("written to %s", out or "no folder: the run config's out is empty")


def _say(result: RoundResult, num_rounds: int) -> None:
    reports = result.after
    logger.info(
        "round %d of %d: accuracy %.4f, loss %.4f, delivered %d bits down, %d bits up",
        result.round_index + 1,
        num_rounds,
        sum(report.accuracy for report in reports) / len(reports),
        sum(report.loss for report in reports) / len(reports),
        sum(result.record.down.delivered_bits),
        sum(result.record.up.delivered_bits),
    )


def _config(context: Context) -> ExperimentConfig:
    """The run's configuration, whose relative paths are those of the folder it was started in."""
    folder = _path(context, "folder")
    if folder is not None and folder.is_dir():
        os.chdir(folder)
    return parse_config(_given(context, "config", ""), _given(context, "set", ""))


def _check_folder(context: Context) -> None:
    """Refuse a folder that the cloud's machine lacks; a node's may, which has data of its own."""
    folder = _path(context, "folder")
    if folder is not None and not (folder.is_absolute() and folder.is_dir()):
        raise ValueError(
            f"folder must be the absolute path of a folder on the machine of the SuperLink, got "
            f"{folder}; make it there, or start the run in one that is there"
        )


def _out(context: Context) -> Path | None:
    """The run folder, if there is to be one, in which no run is lost."""
    from experiments.results.folder import check_writable, held_in

    out, folder = _path(context, "out"), _path(context, "folder")
    is_overwriting = _given(context, "overwrite", False)
    if out is None:
        return None
    if folder is not None:
        out = folder / out
    if not out.is_absolute():
        raise ValueError(f"out must be an absolute path, or folder be given, got {str(out)!r}")
    held = held_in(out)
    if held == "a sweep":
        raise ValueError(f"out {out} holds a sweep; give another folder for the run")
    if held and not is_overwriting:
        raise ValueError(f"out {out} holds {held}; give another out, or overwrite=true")
    return check_writable(out)


def _path(context: Context, key: str) -> Path | None:
    given = _given(context, key, "")
    return Path(os.path.expanduser(given)) if given else None


def _given(context: Context, key: str, default: Any) -> Any:
    """A value of the run config; ValueError for one of another type."""
    value = context.run_config.get(key, default)
    if type(value) is not type(default):
        kind = "text in quotes" if isinstance(default, str) else "true or false"
        raise ValueError(f"{key} of the run config must be {kind}, got {value!r}")
    return value


client_app = make_client_app(load_device)
server_app = make_server_app(serve)
