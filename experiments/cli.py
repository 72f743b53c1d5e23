"""The command ``airllm``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from experiments.federation_cli import DEFAULT_FOLDER, federation_app
from experiments.flower_env import quieten

if TYPE_CHECKING:
    from experiments.config import ExperimentConfig

# torch and its relatives take seconds to import: only the commands that need them do.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Not rich's own markup, which would take [sweep] for a style.
    rich_markup_mode="markdown",
    help="""Simulate fine-tuning over the air: which LoRA ranks to send to which device.

    Devices hang on fading links of a shared cell; a cloud fine-tunes an adapter of a real model and
    sends each of them as much of it as the air carries; a policy decides which part.

    Start with `airllm run quick --set policy.name=uniform`, draw the folder it names with
    `airllm plot`, then compare policies over SNR with `airllm sweep quick`. `airllm config`
    explains every setting, `airllm COMMAND --help` a command.""",
)
stderr = Console(stderr=True)
stdout = Console()

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a value, such as channel.snr_db=10."),
]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write scalars for TensorBoard.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what happens meanwhile.")]


class Runtime(StrEnum):
    """Where the devices of a run are; the numbers are the same."""

    LOCAL = "local"
    SIMULATION = "simulation"
    DEPLOYMENT = "deployment"


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, with where the finished part lies."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command the way that Ctrl-C does."""


def _setup_logging(is_verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if is_verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=stderr, show_path=False)],
    )
    for noisy in ("httpx", "httpx2", "flwr", "matplotlib", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _version(is_asked: bool) -> None:
    if is_asked:
        from importlib import metadata

        try:
            version = metadata.version("airllm-sim")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        typer.echo(f"airllm-sim {version}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def _load(config: str | None, sets: list[str] | None) -> ExperimentConfig:
    from experiments.config import PRESETS, ExperimentConfig
    from experiments.config_loader import load_config
    from experiments.paths import find_config

    path = find_config(config) if config else None
    return load_config(ExperimentConfig, path, sets or (), presets=PRESETS)


@app.command()
def run(
    config: Annotated[str | None, typer.Argument()] = None,
    sets: Sets = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")] = Path("runs/run"),
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
    _setup_logging(verbose)
    experiment = _load(config, sets)
    from experiments.results import prepare_out

    if overwrite and resume:
        raise ValueError("--resume keeps what --overwrite replaces; give one of them")
    if resume and runtime is not Runtime.LOCAL:
        raise ValueError(
            f"--resume is for --runtime local, whose devices' states are in the checkpoint, got "
            f"{runtime.value}"
        )
    from experiments.sweep import finished_summary

    summary = finished_summary(experiment, out) if resume else None
    if summary is None:
        prepare_out(out, overwrite=overwrite, resume=resume)
        simulate = _runner(runtime, superlink)
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
                key, f"{summary[key]:,.4g}" if abs(summary[key]) < 1e4 else _count(summary[key])
            )
    stdout.print(table)
    typer.echo(f"written to {out}")


def _simulate(
    simulate: Callable[..., dict[str, Any]],
    experiment: ExperimentConfig,
    out: Path,
    tensorboard: bool,
) -> dict[str, Any]:
    from experiments.checkpoints import found

    num_done = 0
    try:
        with _progress() as progress, _scalars(tensorboard, out / "rounds.csv", "round") as track:
            task = progress.add_task("training the master", total=experiment.rounds)

            def on_round(done: int, total: int) -> None:
                nonlocal num_done
                num_done = done
                progress.update(task, completed=done, description="rounds")
                track()

            return simulate(experiment, out, on_round=on_round)
    except KeyboardInterrupt:
        if not num_done:
            raise Interrupted("no round was finished yet") from None
        how = "; the same command with --resume goes on" if found(out) else ""
        raise Interrupted(
            f"finished rounds are in {out / 'rounds.csv'}; `airllm plot {out}` draws them{how}"
        ) from None


def _runner(runtime: Runtime, superlink: str) -> Callable[..., dict[str, Any]]:
    if runtime is Runtime.SIMULATION:
        from experiments.simulation import run_ray_simulation

        return run_ray_simulation
    if runtime is Runtime.DEPLOYMENT:
        from experiments.deployment import run_deployment

        return partial(run_deployment, superlink=superlink)
    from experiments.run import run_simulation

    return run_simulation


@app.command()
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
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs side by side.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the sweep [default: runs/CONFIG].")
    ] = None,
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
    _setup_logging(verbose)
    folder = out or Path("runs") / Path(config).stem
    from experiments.axes import parse_axis
    from experiments.checkpoints import alone_in
    from experiments.paths import find_config
    from experiments.results import prepare_sweep, read_results
    from experiments.sweep import load_sweep, run_sweep

    axes = dict(map(parse_axis, sweeps or ()))
    experiments = load_sweep(find_config(config), sets or (), axes)
    prepare_sweep(folder)
    from experiments.figures import plot
    from experiments.sweep_view import SweepView, print_results

    try:
        with alone_in(folder), SweepView(stderr, experiments, jobs) as view:
            listeners = [view.take]
            if tensorboard:
                from experiments.tracking import SweepScalars

                listeners.append(SweepScalars(folder).take)

            def on_event(cell: Any, event: Any) -> None:
                for listen in listeners:
                    listen(cell, event)

            rows, errors = run_sweep(
                experiments, folder, jobs=jobs, is_fresh=fresh, on_event=on_event
            )
    except KeyboardInterrupt:
        raise Interrupted(
            f"finished runs are in {folder}; the same command goes on from there"
        ) from None
    if rows:
        results = read_results(folder)
        print_results(stdout, results)
        has_snr = results["channel.snr_db"].notna().any()
        paths = plot(folder) if has_snr else []
        typer.echo(f"written to {folder}: {', '.join(['results.csv', *(p.name for p in paths)])}")
    if errors:
        first, reason = next(iter(errors.items()))
        raise ValueError(
            f"{len(errors)} of {len(experiments.cells)} runs failed; {first}: {reason}"
        )


@app.command()
def learn(
    config: str,
    out: Annotated[Path, typer.Option("--out", help="Folder of the policy.")],
    sets: Sets = None,
    tensorboard: Tensorboard = False,
    verbose: Verbose = False,
) -> None:
    """Learn a policy before it is used; goes on where it stopped.

    CONFIG is a TOML file or the name of a bundled one, such as learn.

    `airllm learn learn --out my-policy`, then
    `airllm run quick --set policy.name=airllm --set policy.path=my-policy`

    Runs are recorded, put behind channels drawn at random, and learned from; what scores best on
    runs that were held out is kept. learning_curve.csv says how it goes.
    """
    _setup_logging(verbose)
    experiment = _load(config, sets)
    from experiments.figures import plot_learning
    from experiments.learn import make_learner

    try:
        curve = out / "learning_curve.csv"
        with _progress() as progress, _scalars(tensorboard, curve, "steps") as track:
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


@app.command()
def plot(
    folder: Path,
    figures: Annotated[
        list[str] | None,
        typer.Option(
            "--figure",
            help="snr, pareto, time, ranks, delay, timeline, energy, aggregate, run or learning; "
            "may be repeated.",
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", help="Draw only these policies or variants; may be repeated."),
    ] = None,
) -> None:
    """Draw figures as PNG and PDF beside the numbers.

    `airllm plot runs/quick`

    `airllm plot runs/quick --figure pareto --figure ranks --label airllm --label uniform`

    FOLDER is what a sweep, a run or `airllm learn` was given as --out. Without --figure it is
    accuracy and bits against SNR for a sweep, the rounds of a run, the learning curve of a policy.
    """
    _setup_logging(False)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the --out of a sweep or a run")
    from experiments import figures as drawing

    for path in drawing.plot(folder, figures or (), labels or ()):
        typer.echo(path)


@app.command()
def report(
    folder: Path,
    out: Annotated[
        Path | None, typer.Option("--out", help="File [default: report.html in the folder].")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", help="Only these policies or variants; may be repeated."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Whom the others are compared with.")
    ] = None,
    best: Annotated[
        str | None, typer.Option("--best", help="Whose gain over uniform is a score of 1.")
    ] = None,
) -> None:
    """Write one HTML page with tables, statistics, figures and the configuration; no network.

    `airllm report runs/quick --reference uniform`

    FOLDER is what a sweep or a run was given as --out.
    """
    _setup_logging(False)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the --out of a sweep or a run")
    from experiments.report import write_report

    typer.echo(write_report(folder, out, labels=labels or (), reference=reference, best=best))


@app.command()
def pack(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the four files.")],
) -> None:
    """Put a sweep into four small files to commit; plot and report work on their folder as well."""
    _setup_logging(False)
    from experiments.pack import pack as pack_sweep

    for path in pack_sweep(folder, out):
        typer.echo(path)


@app.command()
def info() -> None:
    """Versions, device, and which models and data there are here, with a remedy for what is not."""
    _setup_logging(False)
    from experiments.info import describe

    table = Table("what", Column("state", overflow="fold"), show_header=False)
    for what, state in describe():
        table.add_row(escape(what), escape(state))
    stdout.print(table)


@app.command("config")
def config_keys(
    config: Annotated[str | None, typer.Argument()] = None,
    sets: Sets = None,
) -> None:
    """List every configuration key with its default, or print a configuration resolved.

    `airllm config` lists all keys. `airllm config quick --set channel.preset=umi-5g > mine.toml`
    writes a file with every value in it, to edit and to run.
    """
    if config or sets:
        from experiments.config_loader import dump_config

        typer.echo(dump_config(_load(config, sets)), nl=False)
        return
    from experiments.config import ExperimentConfig
    from experiments.config_loader import describe_config

    table = Table("key", "default", "what it is")
    for key, _, default, text in describe_config(ExperimentConfig):
        table.add_row(key, escape(default), escape(text))
    stdout.print(table)


channel_app = typer.Typer(no_args_is_help=True, help="List the channel's presets, or draw one.")
app.add_typer(channel_app, name="channel")
app.add_typer(federation_app, name="federation")


@channel_app.command("list")
def channel_list() -> None:
    """Name the presets and say what they are."""
    from channel.config import PRESET_FOLDER, preset_names

    table = Table("preset", "what it is")
    for name in preset_names():
        lines = (PRESET_FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()
        text = " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))
        table.add_row(name, escape(text))
    table.add_row(
        "trace:<file>", "A recorded link, replayed; channel.trace_format says how to read it."
    )
    stdout.print(table)


@channel_app.command("show")
def channel_show(
    preset: str,
    sets: Sets = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder [default: runs/channel-PRESET].")
    ] = None,
) -> None:
    """Draw SNR over time, the distribution of rates, and delays: channel.png and channel.pdf.

    PRESET is a name that `airllm channel list` gives, or trace:FILE.

    `airllm channel show umi-5g`

    `airllm channel show trace:link.csv --set channel.bandwidth_hz=2e5`

    Look at a channel before you simulate on it: where all that is sent arrives, all policies look
    alike.
    """
    _setup_logging(False)
    from experiments.config import PRESETS, ExperimentConfig
    from experiments.config_loader import load_config
    from experiments.figures.channel import plot_channel
    from experiments.results import check_writable

    settings = [f"channel.preset={preset}", *(sets or ())]
    config = load_config(ExperimentConfig, sets=settings, presets=PRESETS)
    folder = out or Path("runs") / f"channel-{Path(preset.replace(':', '-')).stem}"
    check_writable(folder)
    for path in plot_channel(config.channel, folder, seed=config.seed):
        typer.echo(path)


@contextmanager
def _scalars(is_wanted: bool, path: Path, step: str) -> Iterator[Callable[[], None]]:
    """What sends a file's new rows to TensorBoard; nothing where that is not wanted."""
    if not is_wanted:
        yield lambda: None
        return
    from experiments.tracking import CsvScalars

    with CsvScalars(path, step) as scalars:
        yield scalars.update


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=stderr,
        disable=not stderr.is_terminal,
    )


def _count(value: float) -> str:
    return f"{value:,.0f}"


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2, Ctrl-C is 130, SIGTERM 143."""
    quieten()
    is_terminated = False

    def on_sigterm(signum: int, frame: object) -> None:
        nonlocal is_terminated
        is_terminated = True
        raise _Terminated

    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        code = app(standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (Interrupted, KeyboardInterrupt, typer.Abort) as interrupt:
        where = f": {interrupt}" if isinstance(interrupt, Interrupted) else ""
        _say(f"{'terminated' if is_terminated else 'interrupted'}{where}")
        code = 143 if is_terminated else 130
    except BrokenPipeError:
        # The reader of our output has left; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (ValueError, OSError, MemoryError) as error:
        _say(f"error: {_sentence(error)}")
        _say_where()
        code = 2
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            say = getattr(error, "format_message", None)
            message = say() if say else str(error)
            _say(f"error: {message}; see airllm --help")
            code = 2
        elif type(error).__name__ == "AppFailed":  # the cloud's, which is not imported here
            _say(f"error: {_sentence(error)}")
            _say_where()
            code = 2
        elif type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            _say(f"error: {_sentence(MemoryError())}")
            _say_where()
            code = 2
        else:
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code if isinstance(code, int) else 0)


def _sentence(error: Exception) -> str:
    """What to say of an error in one line."""
    if isinstance(error, MemoryError):
        return (
            "out of memory; make training.batch_size, runtime.eval_batch_size or "
            "model.max_length smaller"
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _say_where() -> None:
    """The traceback, for those who asked with -v."""
    logging.getLogger(__name__).info("raised here", exc_info=True)


def _say(text: str) -> None:
    stderr.print(text, style="bold red", markup=False, highlight=False, soft_wrap=True)
