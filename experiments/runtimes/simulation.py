"""The simulation runtime: Flower's own engine, with Ray's worker processes, for one run."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid

from cloud.server_app import make_server_app
from edge.client_app import make_client_app
from experiments.assembly.threads import num_processes, num_threads
from experiments.config.schema import ExperimentConfig
from experiments.run.rounds import run_rounds
from experiments.runtimes.flower_apps import device_of
from experiments.runtimes.flower_env import quieten

_SHORT = "/tmp"
# A socket's path has 103 bytes on every system, of which Ray needs 68 below its folder:
# /ray/session_YYYY-MM-DD_HH-MM-SS_ffffff_PID/sockets/plasma_store, where PID has seven digits.
_MOST_BYTES = 103 - 68


def run_ray_simulation(
    config: ExperimentConfig,
    out: Path | str | None = None,
    *,
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run one simulation with its devices in ``runtime.workers`` processes; returns the summary.

    The same apps, the same numbers and the same files as `run.run_simulation`; nothing is left
    running. Raises ValueError where Ray is missing, and what the cloud's app raised.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError(
            "the simulation runtime needs ray, which is not installed; pip install "
            "'flwr[simulation]', or take --runtime local"
        )
    quieten()
    from flwr.simulation import run_simulation

    stop, ended = threading.Event(), threading.Event()
    summary: dict[str, Any] = {}

    def serve(grid: Grid, context: Context) -> None:
        try:
            summary.update(run_rounds(grid, config, out, on_round=on_round, is_stopped=stop.is_set))
        finally:
            ended.set()

    # As many threads in a worker as here: the numbers depend on it.
    threads = num_threads(config.runtime.threads)
    theirs = replace(config, runtime=replace(config.runtime, threads=threads))
    workers = num_processes(min(config.runtime.workers, config.num_devices), threads)
    with session_folder() as folder, _own_ray(workers, threads, folder, stop, ended):
        run_simulation(
            make_server_app(serve),
            make_client_app(partial(device_of, theirs)),
            config.num_devices,
            # As many actors as the cores have room for; Ray's own CPUs only count them.
            # One without a share of the GPU would not see it, and compute on the CPU instead.
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": _uses_gpu(config) / workers}
            },
        )
    return summary


@contextmanager
def session_folder() -> Iterator[str | None]:
    """A short folder for the time of Ray's session; None where the one that Ray takes will do.

    Raises ValueError that names TMPDIR where there is none.
    """
    name = next((n for n in ("RAY_TMPDIR", "TMPDIR") if n in os.environ), "")
    given = os.environ.get(name, _SHORT)
    size = len(os.fsencode(os.path.abspath(given)))
    if size <= _MOST_BYTES:
        yield None
        return
    try:
        own = tempfile.TemporaryDirectory(dir=_SHORT, prefix="airllm-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ValueError(
            f"{name} {given} is {size} bytes long, which leaves no room for the paths of Ray's "
            f"sockets, and {_SHORT} cannot be used instead ({error.strerror}); set RAY_TMPDIR to a "
            f"folder of at most {_MOST_BYTES} bytes, or take --runtime local"
        ) from None
    with own as folder:
        yield folder


def _uses_gpu(config: ExperimentConfig) -> bool:
    from airllm.models.device import resolve_device

    return resolve_device(config.model.device).type == "cuda"


@contextmanager
def _own_ray(
    workers: int,
    threads: int,
    folder: str | None,
    stop: threading.Event,
    ended: threading.Event,
) -> Iterator[None]:
    """Whatever happens inside, Ray's processes and the cloud's thread end with it."""
    import ray

    path = os.pathsep.join(filter(None, sys.path))
    is_verbose = logging.getLogger().isEnabledFor(logging.INFO)
    flower = logging.getLogger("flwr")
    level, on_sigterm = flower.level, signal.getsignal(signal.SIGTERM)
    # What an app raises is raised here again; Flower would print its traceback as well.
    if not is_verbose:
        flower.setLevel(logging.CRITICAL)
    try:
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            logging_level=logging.WARNING if is_verbose else logging.ERROR,
            log_to_driver=is_verbose,
            # Ray would set OMP_NUM_THREADS to the one CPU that it counts for a worker.
            runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}},
            _temp_dir=folder,
        )
        # Ray puts a handler of its own there, which aborts and leaves its processes behind.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
        yield
    except RuntimeError as error:
        # Flower's "An error was encountered" around "crashed" around what it was.
        cause: BaseException = error
        while isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        if cause is error:
            raise
        raise RuntimeError(f"the simulation runtime failed: {cause}") from error
    finally:
        stop.set()
        ray.shutdown()
        ended.wait(10.0)
        flower.setLevel(level)
