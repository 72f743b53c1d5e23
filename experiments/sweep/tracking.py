"""TensorBoard scalars: the rows of rounds.csv and learning_curve.csv, while they are written."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from experiments.sweep.pool import Event
from experiments.sweep.sweep import Trial


class CsvScalars:
    """Sends what a CSV file has gained to TensorBoard, in the file's own folder.

    Every column of numbers is a scalar, the mean of the rows that share a step: of rounds.csv
    (``step`` is "round") the mean over devices, of learning_curve.csv ("steps") the row itself.
    What an earlier run left in the folder goes first. Raises ValueError where the package
    tensorboard is absent.
    """

    def __init__(self, path: Path, step: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "--tensorboard needs the package tensorboard; pip install 'airllm-sim[tensorboard]'"
            ) from None
        self._path, self._step, self._sent = path, step, -1.0
        for old in path.parent.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(path.parent))

    def update(self) -> None:
        """Send the steps that are new."""
        if not self._path.exists():
            return
        means = pd.read_csv(self._path).groupby(self._step).mean(numeric_only=True)
        for step, row in means[means.index > self._sent].iterrows():
            for name, value in row.dropna().items():
                self._writer.add_scalar(f"{self._path.stem}/{name}", value, int(step))
            self._sent = float(step)
        self._writer.flush()

    def __enter__(self) -> CsvScalars:
        return self

    def __exit__(self, *args: object) -> None:
        """Send what is left, also of what was interrupted; of what never began, nothing."""
        if self._sent >= 0.0:
            self.update()
        self._writer.close()


class SweepScalars:
    """The scalars of a sweep's runs, each in its own folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, CsvScalars] = {}

    def take(self, trial: Trial, event: Event) -> None:
        """Follow one run."""
        if event.kind == "round":
            if trial.folder not in self._open:
                path = self._folder / trial.folder / "rounds.csv"
                self._open[trial.folder] = CsvScalars(path, "round")
            self._open[trial.folder].update()
        elif event.kind in ("done", "failed") and trial.folder in self._open:
            self._open.pop(trial.folder).__exit__()
