"""The commands that explain: ``airllm info`` and ``airllm config``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table

from experiments.cli import output
from experiments.cli.options import Sets, load
from experiments.cli.output import setup_logging


def info() -> None:
    """Versions, device, and which models and data there are here, with a remedy for what is not."""
    setup_logging(False)
    from experiments.cli.info import describe

    table = Table("what", Column("state", overflow="fold"), show_header=False)
    for what, state in describe():
        table.add_row(escape(what), escape(state))
    output.stdout.print(table)


def config_keys(
    config: Annotated[str | None, typer.Argument()] = None,
    sets: Sets = None,
) -> None:
    """List every configuration key with its default, or print a configuration resolved.

    `airllm config` lists all keys. `airllm config quick --set channel.preset=umi-5g > mine.toml`
    writes a file with every value in it, to edit and to run.
    """
    if config or sets:
        from experiments.config.loader import dump_config

        typer.echo(dump_config(load(config, sets)), nl=False)
        return
    from experiments.config.describe import describe_config
    from experiments.config.schema import ExperimentConfig

    for key, _, default, text in describe_config(ExperimentConfig):
        output.stdout.print(f"[bold]{key}[/bold] = {escape(default) or '(empty)'}", soft_wrap=True)
        output.stdout.print(Padding(escape(text), (0, 0, 0, 4)), highlight=False)
