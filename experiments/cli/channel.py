"""The commands ``airllm channel``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from experiments.cli import output
from experiments.cli.options import Sets, load, out_option
from experiments.cli.output import setup_logging

channel_app = typer.Typer(no_args_is_help=True, help="List the channel's presets, or draw one.")


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
    output.stdout.print(table)


@channel_app.command("show")
def channel_show(
    preset: str,
    sets: Sets = None,
    out: Annotated[Path | None, out_option("Folder [default: runs/channel-PRESET].")] = None,
) -> None:
    """Draw SNR over time, the distribution of rates, and delays: channel.png and channel.pdf.

    PRESET is a name that `airllm channel list` gives, or trace:FILE.

    `airllm channel show umi-5g`

    `airllm channel show trace:link.csv --set channel.bandwidth_hz=2e5`

    Look at a channel before you simulate on it: where all that is sent arrives, all policies look
    alike.
    """
    setup_logging(False)
    from experiments.figures.channel import plot_channel
    from experiments.results.folder import check_writable

    settings = [f"channel.preset={preset}", *(sets or ())]
    config = load(None, settings)
    folder = out or Path("runs") / f"channel-{Path(preset.replace(':', '-')).stem}"
    check_writable(folder)
    for path in plot_channel(config.channel, folder, seed=config.seed):
        typer.echo(path)
