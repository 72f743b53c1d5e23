"""What commands share: options, the configuration they name, and how they end when interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from experiments.config.schema import ExperimentConfig

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a value, such as channel.snr_db=10."),
]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write scalars for TensorBoard.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what happens meanwhile.")]


def out_option(what: str) -> Any:
    """``--out``; an empty one, as an unset variable gives, would be the working directory."""
    return typer.Option("--out", help=what, metavar="PATH", parser=_path)


def _path(text: str | Path) -> Path:
    if not str(text):
        raise typer.BadParameter("--out must not be empty; give a path")
    return Path(text)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, with where the finished part lies."""


def load(config: str | None, sets: list[str] | None) -> ExperimentConfig:
    from experiments.config.schema import load_experiment

    return load_experiment(config, sets or ())
