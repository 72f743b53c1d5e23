"""Run folders: what is written, row by row, and read back."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROUND_COLUMNS = (
    "round", "device", "time_s", "snr_db", "bandwidth_hz", "rate_bps", "entropy", "oov_rate",
    "rank_sum", "planned_bits", "payload_bits", "sent_bits", "delivered_bits", "overhead_bits",
    "delay_s", "energy_j", "delivered", "loss", "accuracy", "reward",
)  # fmt: skip
RESULT_COLUMNS = (
    "policy", "snr_db", "seed", "accuracy", "loss", "head_accuracy", "full_accuracy",
    "payload_bits", "delivered_bits", "airtime_s", "energy_j", "delivered_rate", "reward",
)  # fmt: skip


def prepare_out(out: Path, *, overwrite: bool = False) -> Path:
    """Make a run's folder; raises ValueError where it cannot be written or holds a result."""
    if (out / "summary.json").exists():
        if not overwrite:
            raise ValueError(f"{out} holds a finished run; give another --out, or --overwrite")
        (out / "summary.json").unlink()
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"--out {out} cannot be written ({error.strerror}); give a folder that can"
        ) from None
    return out


class RoundsWriter:
    """rounds.csv, flushed at the end of every round: what is finished is on disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(ROUND_COLUMNS)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self._writer.writerow([number(row[column]) for column in ROUND_COLUMNS])
        self._file.flush()

    def __enter__(self) -> RoundsWriter:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()


def number(value: Any) -> Any:
    """The shortest text that reads back to the same number; truth as 1 or 0."""
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return value


def write_text(path: Path, text: str) -> None:
    """The whole file or none of it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """JSON with sorted keys; not-a-number becomes null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, np.generic):
            value = value.item()
        return None if isinstance(value, float) and not np.isfinite(value) else value

    write_text(path, json.dumps(plain(summary), indent=2, sort_keys=True) + "\n")


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a finished run."""
    path = folder / "summary.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no finished run (no summary.json)") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; run it again") from None


def write_results(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """results.csv, whole or not at all."""
    frame = [[number(row[column]) for column in RESULT_COLUMNS] for row in rows]
    lines = [",".join(RESULT_COLUMNS)]
    lines += [",".join("" if v is None else str(v) for v in row) for row in frame]
    write_text(path, "\n".join(lines) + "\n")


def read_results(folder: Path) -> pd.DataFrame:
    """results.csv of a sweep; raises ValueError for a missing or damaged one."""
    path = folder / "results.csv"
    if not path.is_file():
        raise ValueError(f"{folder} holds no results.csv; name the folder of a sweep")
    try:
        frame = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    missing = [column for column in RESULT_COLUMNS if column not in frame]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
    if frame.empty:
        raise ValueError(f"{path} has no rows; no run of the sweep has finished yet")
    return frame


def read_rounds(folder: Path) -> pd.DataFrame:
    """rounds.csv of a run."""
    path = folder / "rounds.csv"
    if not path.is_file():
        raise ValueError(f"{folder} holds no rounds.csv; name the folder of a run")
    try:
        return pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
