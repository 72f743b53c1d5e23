"""The commands that show what there is already: ``airllm plot``, ``report`` and ``pack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.cli.options import out_option
from experiments.cli.output import setup_logging

Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help="Only these policies or variants; may be repeated."),
]

Reference = Annotated[
    str | None,
    typer.Option("--reference", help="Whom the others are compared with [default: the first]."),
]


def plot(
    folder: Path,
    figures: Annotated[
        list[str] | None,
        typer.Option(
            "--figure",
            help="snr, differences, pareto, time, ranks, delay, timeline, energy, aggregate, run "
            "or learning; may be repeated.",
        ),
    ] = None,
    labels: Labels = None,
    reference: Reference = None,
) -> None:
    """Draw figures as PNG and PDF beside the numbers.

    `airllm plot runs/quick`

    `airllm plot runs/quick --figure pareto --figure ranks --label airllm --label uniform`

    `airllm plot runs/quick --figure differences --reference uniform`

    FOLDER is what a sweep, a run or `airllm learn` was given as --out. Without --figure it is
    accuracy and bits against SNR for a sweep, the rounds of a run, the learning curve of a policy.
    """
    setup_logging(False)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the --out of a sweep or a run")
    from experiments import figures as drawing

    for path in drawing.plot(folder, figures or (), labels or (), reference):
        typer.echo(path)


def report(
    folder: Path,
    out: Annotated[Path | None, out_option("File [default: report.html in the folder].")] = None,
    labels: Labels = None,
    reference: Reference = None,
    best: Annotated[
        str | None, typer.Option("--best", help="Whose gain over uniform is a score of 1.")
    ] = None,
) -> None:
    """Write one HTML page with tables, statistics, figures and the configuration; no network.

    `airllm report runs/quick --reference uniform`

    FOLDER is what a sweep or a run was given as --out.
    """
    setup_logging(False)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the --out of a sweep or a run")
    from experiments.report.report import write_report

    typer.echo(write_report(folder, out, labels=labels or (), reference=reference, best=best))


def pack(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    out: Annotated[Path, out_option("Folder of the four files.")],
) -> None:
    """Put a sweep into four small files to commit; plot and report work on their folder as well."""
    setup_logging(False)
    from experiments.results.pack import pack as pack_sweep

    for path in pack_sweep(folder, out):
        typer.echo(path)
