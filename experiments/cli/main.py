"""The command ``airllm``: its commands are the other files of this folder."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Annotated

import typer

from experiments.cli import output
from experiments.cli.channel import channel_app
from experiments.cli.describe import config_keys, info
from experiments.cli.federation import federation_app
from experiments.cli.learn import learn
from experiments.cli.options import Interrupted
from experiments.cli.present import pack, plot, report
from experiments.cli.run import run
from experiments.cli.sweep import sweep
from experiments.runtimes.flower_env import quieten

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
for command in (run, sweep, learn, plot, report, pack, info):
    app.command()(command)
app.command("config")(config_keys)
app.add_typer(channel_app, name="channel")
app.add_typer(federation_app, name="federation")


_NAMED = ("AppFailed", "OutOfMemoryError")  # the cloud's and torch's, not imported here


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command the way that Ctrl-C does."""


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
        elif type(error).__name__ in _NAMED:
            _say(f"error: {_sentence(error)}")
            _say_where()
            code = 2
        else:
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code if isinstance(code, int) else 0)


def _sentence(error: Exception) -> str:
    """What to say of an error in one line."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            "out of memory; make training.batch_size or model.max_length smaller, or leave "
            "runtime.stacked false"
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _say_where() -> None:
    """The traceback, for those who asked with -v."""
    logging.getLogger(__name__).info("raised here", exc_info=True)


def _say(text: str) -> None:
    output.stderr.print(text, style="bold red", markup=False, highlight=False, soft_wrap=True)
