"""The command ``airllm learn``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.options import Interrupted, Sets, Tensorboard, Verbose, load, out_option
from experiments.cli.output import progress_bar, scalars, setup_logging


def learn(
    config: str,
    out: Annotated[Path, out_option("Folder of the policy.")],
    sets: Sets = None,
    tensorboard: Tensorboard = False,
    verbose: Verbose = False,
) -> None:
    """Learn a policy before it is used; goes on where it stopped.

    CONFIG is a TOML file or the name of a bundled one, such as learn.

    `airllm learn learn --out my-policy`, then
    `airllm run quick --set policy.name=airllm --set policy.path=my-policy`

    Runs are recorded, put behind channels drawn at random, and learned from; what scores best on
    runs that were held out, a standard error taken off, is kept. learning_curve.csv says how it
    goes.
    """
    setup_logging(verbose)
    experiment = load(config, sets)
    from experiments.figures import plot_learning
    from experiments.learning.learn import make_learner

    try:
        curve = out / "learning_curve.csv"
        with progress_bar() as progress, scalars(tensorboard, curve, "steps") as track:
            task = progress.add_task("training the master", total=None)

            def on_progress(what: str, done: int, total: int) -> None:
                progress.update(task, description=what, completed=done, total=total)
                if what == "updates":
                    track()

            make_learner(experiment, on_progress).run(out, on_progress)
    except KeyboardInterrupt:
        raise Interrupted(
            f"what was learned until the last score is in {out}; the same command goes on there"
        ) from None
    paths = plot_learning(out)
    typer.echo(f"written to {out}: policy.json, {', '.join(p.name for p in paths)}")
