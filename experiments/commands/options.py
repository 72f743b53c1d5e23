"""What commands share: options, the configuration they name, and how they end when interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from experiments.config import ExperimentConfig

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a value, such as channel.snr_db=10."),
]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write scalars for TensorBoard.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what happens meanwhile.")]


class Interrupted(Exception):
    """Ctrl-C or SIGTERM, with where the finished part lies."""


def load(config: str | None, sets: list[str] | None) -> ExperimentConfig:
    from experiments.config import load_experiment

    return load_experiment(config or None, sets or ())
