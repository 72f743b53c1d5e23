"""The command ``airllm sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.cli import output
from experiments.cli.options import Interrupted, Sets, Tensorboard, Verbose, out_option
from experiments.cli.output import setup_logging


def sweep(
    config: str,
    sets: Sets = None,
    sweeps: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="KEY=VALUES",
            help="Sweep any key, such as channel.snr_db=[-5,5] or seed=10 (ten seeds).",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Runs side by side, of one thread each unless runtime.threads is set "
            "[default: as many as usable cores and free memory have room for; 1 on a GPU].",
        ),
    ] = None,
    out: Annotated[Path | None, out_option("Folder of the sweep [default: runs/CONFIG].")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Also run again what is finished already.")
    ] = False,
    tensorboard: Tensorboard = False,
    verbose: Verbose = False,
) -> None:
    """Run every combination of what the table [sweep] lists; goes on where it stopped.

    CONFIG is a TOML file or the name of a bundled one, such as quick.

    `airllm sweep quick --sweep channel.snr_db=[-5,5,15] --sweep seed=10 --jobs 2`

    `airllm sweep quick --sweep policy.name=airllm,uniform,my_policy:BestLinks`

    Any key can be swept, in the file or with --sweep. All runs of a seed meet the same data, fading
    and errors, so differences are the settings'. results.csv has a row for each run, and each run a
    folder. One seed proves nothing: take ten for a claim.
    """
    setup_logging(verbose)
    folder = out or Path("runs") / Path(config).stem
    from experiments.config.axes import parse_axis
    from experiments.results.folder import prepare_sweep, read_results
    from experiments.run.checkpoints import alone_in
    from experiments.sweep.sweep import default_jobs, load_sweep, run_sweep

    axes = dict(map(parse_axis, sweeps or ()))
    experiments = load_sweep(config, sets or (), axes)
    prepare_sweep(folder)
    jobs = jobs or default_jobs(experiments)
    from experiments.figures import plot
    from experiments.sweep.view import SweepView, print_results

    try:
        with alone_in(folder), SweepView(output.stderr, experiments, jobs) as view:
            listeners = [view.take]
            if tensorboard:
                from experiments.sweep.tracking import SweepScalars

                listeners.append(SweepScalars(folder).take)

            def on_event(trial: Any, event: Any) -> None:
                for listen in listeners:
                    listen(trial, event)

            rows, errors = run_sweep(
                experiments, folder, jobs=jobs, is_fresh=fresh, on_event=on_event
            )
    except KeyboardInterrupt:
        raise Interrupted(
            f"finished runs are in {folder}; the same command goes on from there"
        ) from None
    if rows:
        print_results(output.stdout, read_results(folder))
        names = ["results.csv", *(path.name for path in plot(folder))]
        typer.echo(f"written to {folder}: {', '.join(names)}")
    if errors:
        first, reason = next(iter(errors.items()))
        raise ValueError(
            f"{len(errors)} of {len(experiments.trials)} runs failed; {first}: {reason}"
        )
