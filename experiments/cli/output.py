"""Where commands write: consoles, log, progress bars and TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

stderr = Console(stderr=True)
stdout = Console()


def setup_logging(is_verbose: bool) -> None:
    logging.basicConfig(
        level=logging.INFO if is_verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=stderr, show_path=False)],
    )
    for noisy in ("httpx", "httpx2", "flwr", "matplotlib", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=stderr,
        disable=not stderr.is_terminal,
    )


@contextmanager
def scalars(is_wanted: bool, path: Path, step: str) -> Iterator[Callable[[], None]]:
    """What sends a file's new rows to TensorBoard; nothing where that is not wanted."""
    if not is_wanted:
        yield lambda: None
        return
    from experiments.sweep.tracking import CsvScalars

    with CsvScalars(path, step) as scalars:
        yield scalars.update
