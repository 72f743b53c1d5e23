"""The command ``airllm run``."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from experiments.cli import output
from experiments.cli.federation import DEFAULT_FOLDER
from experiments.cli.options import Interrupted, Sets, Tensorboard, Verbose, load, out_option
from experiments.cli.output import progress_bar, scalars, setup_logging

if TYPE_CHECKING:
    from experiments.config.schema import ExperimentConfig


class Runtime(StrEnum):
    """Where the devices of a run are; the numbers are the same."""

    LOCAL = "local"
    SIMULATION = "simulation"
    DEPLOYMENT = "deployment"


def run(
    config: Annotated[str | None, typer.Argument()] = None,
    sets: Sets = None,
    out: Annotated[Path, out_option("Folder of the run.")] = Path("runs/run"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the folder.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder where it stopped.")
    ] = False,
    runtime: Annotated[
        Runtime,
        typer.Option("--runtime", help="Devices in this process, Ray's workers, or SuperNodes."),
    ] = Runtime.LOCAL,
    superlink: Annotated[
        str,
        typer.Option(
            "--superlink",
            help="For --runtime deployment: a folder of `airllm federation up`, or a connection of "
            "Flower's configuration.",
        ),
    ] = str(DEFAULT_FOLDER),
    tensorboard: Tensorboard = False,
    verbose: Verbose = False,
) -> None:
    """Run one simulation; writes config.toml, rounds.csv, ranks.npz and summary.json.

    CONFIG is a TOML file or the name of a bundled one, such as quick; without it all is default.

    `airllm run quick --set policy.name=greedy:gain --set channel.snr_db=0 --out runs/one`

    `airllm run quick --set data.source=my.csv --set channel.preset=trace:link.csv --out runs/mine`

    In the table, `head_accuracy` is what the devices had before anything was sent and
    `full_accuracy` what the whole update would have given: what a policy can win lies between.
    rounds.csv has a row for each round and device. The same configuration gives the same numbers.
    """
    setup_logging(verbose)
    experiment = load(config, sets)
    from experiments.results.folder import prepare_out

    if overwrite and resume:
        raise ValueError("--resume keeps what --overwrite replaces; give one of them")
    if resume and runtime is not Runtime.LOCAL:
        raise ValueError(
            f"--resume is for --runtime local, whose devices' states are in the checkpoint, got "
            f"{runtime.value}"
        )
    if experiment.runtime.stacked and runtime is not Runtime.LOCAL:
        raise ValueError(
            f"runtime.stacked is for --runtime local, where all devices are in one process, got "
            f"{runtime.value}"
        )
    from experiments.sweep.sweep import finished_summary

    summary = finished_summary(experiment, out) if resume else None
    if summary is None:
        prepare_out(out, overwrite=overwrite, resume=resume)
        simulate = _runner(runtime, superlink, overwrite)
        if resume:
            simulate = partial(simulate, is_resuming=True)
        summary = _simulate(simulate, experiment, out, tensorboard)
    table = Table("", "value", title=f"{summary['policy']}, {experiment.rounds} rounds")
    for key in (
        "accuracy", "loss", "perplexity", "head_perplexity", "full_perplexity", "head_accuracy",
        "full_accuracy", "payload_bits", "delivered_bits", "delivered_rate", "airtime_s",
        "energy_j", "reward",
    ):  # fmt: skip
        if "perplexity" not in key or summary[key] == summary[key]:
            table.add_row(
                key, f"{summary[key]:,.4g}" if abs(summary[key]) < 1e4 else f"{summary[key]:,.0f}"
            )
    output.stdout.print(table)
    typer.echo(f"written to {out}")


def _simulate(
    simulate: Callable[..., dict[str, Any]],
    experiment: ExperimentConfig,
    out: Path,
    tensorboard: bool,
) -> dict[str, Any]:
    from experiments.run.checkpoints import found

    num_done = 0
    try:
        with progress_bar() as progress, scalars(tensorboard, out / "rounds.csv", "round") as track:
            task = progress.add_task("training the master", total=experiment.rounds)

            def on_round(done: int, total: int) -> None:
                nonlocal num_done
                num_done = done
                progress.update(task, completed=done, description="rounds")
                track()

            return simulate(experiment, out, on_round=on_round)
    except KeyboardInterrupt:
        if not num_done and not found(out):
            raise Interrupted("no round was finished yet") from None
        how = "; the same command with --resume goes on" if found(out) else ""
        raise Interrupted(
            f"finished rounds are in {out / 'rounds.csv'}; `airllm plot {out}` draws them{how}"
        ) from None


def _runner(runtime: Runtime, superlink: str, overwrite: bool) -> Callable[..., dict[str, Any]]:
    if runtime is Runtime.SIMULATION:
        from experiments.runtimes.simulation import run_ray_simulation

        return run_ray_simulation
    if runtime is Runtime.DEPLOYMENT:
        from experiments.runtimes.deployment import run_deployment

        return partial(run_deployment, superlink=superlink, overwrite=overwrite)
    from experiments.runtimes.local import run_simulation

    return run_simulation
