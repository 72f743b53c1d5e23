"""Run folders: what is written, row by row, and read back."""

from __future__ import annotations

import csv
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from airllm.checkpoint import replacing

ROUND_COLUMNS = (
    "round", "device", "time_s", "snr_db", "bandwidth_hz", "rate_bps", "entropy", "oov_rate",
    "rank_sum", "planned_bits", "payload_bits", "sent_bits", "delivered_bits", "overhead_bits",
    "delay_s", "energy_j", "delivered", "answered", "loss", "accuracy", "reward", "compute_s",
    "round_s", "uplink_rank_sum", "uplink_planned_bits", "uplink_payload_bits", "uplink_sent_bits",
    "uplink_delivered_bits", "uplink_delay_s", "uplink_delivered",
)  # fmt: skip
KEY_COLUMNS = ("trial", "label", "policy.name", "channel.snr_db", "seed")
"""what tells the runs of every sweep apart; its other swept keys follow"""
RESULT_COLUMNS = (
    "accuracy", "loss", "mean_accuracy", "mean_loss", "bits_to_95", "head_accuracy",
    "full_accuracy", "payload_bits", "delivered_bits", "total_delivered_bits", "uplink_sent_bits",
    "uplink_delivered_bits", "airtime_s", "energy_j", "delivered_rate", "reward", "perplexity",
    "head_perplexity", "full_perplexity",
)  # fmt: skip
"""what a summary says of a run; perplexities of causal models only"""


_SWEEP_AGAIN = "give the same `airllm sweep` again, which keeps finished runs and writes it anew"
NO_SNR = "SNR of the channel"
"""the name of runs without a ``channel.snr_db``: geometry, a trace or a list says what theirs is"""
PACKED_ROUNDS, PACKED_RANKS = "rounds.parquet", "mean_ranks.npz"
"""in the place of the runs' own folders, where `airllm pack` has packed them"""


class Results(NamedTuple):
    """What a sweep, or a run, left: tidy frames."""

    trials: pd.DataFrame
    """one row per run: what is swept, then the summary's metrics"""
    rounds: pd.DataFrame
    """one row per run, round and device: what is swept (``channel.snr_db`` is the mean SNR), then
    the columns of rounds.csv (``snr_db`` is that of the round)"""


def load(folder: Path | str) -> Results:
    """The frames of a sweep's folder, or of a single run's; ValueError for a damaged one."""
    folder = Path(folder)
    trials = read_trials(folder)
    keys = trials.columns[: trials.columns.get_loc(RESULT_COLUMNS[0])]
    if (folder / PACKED_ROUNDS).is_file():
        rounds = pd.read_parquet(folder / PACKED_ROUNDS)
    else:
        own = [read_rounds(run_folder(folder, name)).assign(trial=name) for name in trials["trial"]]
        rounds = pd.concat(own, ignore_index=True)
    return Results(trials, trials[keys].merge(rounds, on="trial"))


def read_trials(folder: Path | str) -> pd.DataFrame:
    """One row per run of a sweep's folder; of a single run's, its own."""
    folder = Path(folder)
    if (folder / "results.csv").exists() or not (folder / "rounds.csv").exists():
        return read_results(folder)
    summary = read_summary(folder)
    keys = {
        "trial": folder.name, "label": summary["policy"], "policy.name": summary["policy"],
        "channel.snr_db": summary["snr_db"], "seed": summary["seed"],
    }  # fmt: skip
    return pd.DataFrame([{**keys, **{column: summary[column] for column in RESULT_COLUMNS}}])


def run_folder(folder: Path | str, trial: str) -> Path:
    """Where one of a sweep's runs lies; a single run's folder is its own."""
    folder = Path(folder)
    return folder / trial if (folder / "results.csv").exists() else folder


def condition_keys(trials: pd.DataFrame) -> list[str]:
    """What is swept beside labels and seeds: the columns in which runs of one label differ."""
    keys = list(trials.columns[2 : trials.columns.get_loc(RESULT_COLUMNS[0])])
    # What differs within no label is part of what the label stands for.
    within = trials.groupby("label")[keys].nunique(dropna=False).max()
    return [key for key in keys if key != "seed" and within[key] > 1]


def series_of(trials: pd.DataFrame) -> pd.Series:
    """A name for each run's line against the SNR: its label, and what else is swept but seeds."""
    names = trials["label"].astype(str)
    for key in condition_keys(trials):
        if key != "channel.snr_db":
            names = names + ", " + trials[key].map(partial(spoken, key))
    return names


def spoken(key: str, value: Any) -> str:
    """A swept value as a legend or a table's head has it: with its unit, or else with its name."""
    name = key.rpartition(".")[2]
    if value is None or value != value:
        return NO_SNR if key == "channel.snr_db" else f"{name} none"
    if not isinstance(value, int | float | np.number):
        return str(value)
    if name.endswith("_hz"):
        return f"{value / 1e6:g} MHz" if value >= 1e6 else f"{value / 1e3:g} kHz"
    for end, unit in (("_db", "dB"), ("_s", "s"), ("_bits", "bits"), ("_m", "m"), ("_mps", "m/s")):
        if name.endswith(end):
            return f"{value:g} {unit}".replace("-", "\N{MINUS SIGN}")
    return f"{name} {value:g}"


def prepare_out(out: Path, *, overwrite: bool = False, resume: bool = False) -> Path:
    """Make a run's folder.

    A finished run in it is replaced only with ``overwrite``, and then not before its successor has
    something to write (see `RoundsWriter`); one that can be resumed likewise. Raises ValueError
    where the folder cannot be written, or holds such a run or a sweep.
    """
    held = held_in(out)
    if held == "a sweep":
        raise ValueError(f"--out {out} holds a sweep; give another folder for the run")
    if held == "a finished run" and not overwrite:
        raise ValueError(f"{out} holds a finished run; give another --out, or --overwrite")
    if held == "an unfinished run" and not (overwrite or resume):
        raise ValueError(
            f"{out} holds an unfinished run; --resume goes on with it, --overwrite starts again"
        )
    return check_writable(out)


def held_in(out: Path) -> str:
    """What a run would take the place of in a folder; empty where there is nothing to lose."""
    if (out / "results.csv").exists():
        return "a sweep"
    if (out / "summary.json").exists():
        return "a finished run"
    return "an unfinished run" if any(out.glob("checkpoint-*")) else ""


def prepare_sweep(out: Path) -> Path:
    """Make a sweep's folder, or go on in it; raises ValueError where a single run lies there."""
    if (out / "summary.json").exists() or (out / "rounds.csv").exists():
        raise ValueError(f"--out {out} holds a single run; give another folder for the sweep")
    return check_writable(out)


def check_writable(out: Path) -> Path:
    """Make a folder; raises ValueError where nothing can be written in it."""
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
    """rounds.csv, flushed at the end of every round: what is finished is on disk.

    A summary beside it is removed first. It says that a run is complete, which from here on it is
    not; until here a run that cannot start has cost its predecessor nothing. With ``keep`` the
    file goes on after its first so many bytes.
    """

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        path.with_name("summary.json").unlink(missing_ok=True)
        self._path = path
        with _naming(path):
            self._file = path.open("r+b" if keep else "wb")
            self._file.truncate(keep)
            self._file.seek(keep)
            self._checksum = zlib.crc32(path.read_bytes())
            if not keep:
                self._append([ROUND_COLUMNS])

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with _naming(self._path):
            self._append([[number(row[column]) for column in ROUND_COLUMNS] for row in rows])

    def _append(self, rows: Sequence[Sequence[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        data = text.getvalue().encode()
        self._file.write(data)
        self._file.flush()
        self._checksum = zlib.crc32(data, self._checksum)

    def mark(self) -> dict[str, int]:
        """How much there is, safe on the disk, and its CRC-32: what `rows_until` takes."""
        with _naming(self._path):
            os.fsync(self._file.fileno())
        return {"size": self._file.tell(), "crc32": self._checksum}

    def __enter__(self) -> RoundsWriter:
        return self

    def __exit__(self, *args: object) -> None:
        # Closing tries once more to write what a full disk has refused.
        with _naming(self._path):
            self._file.close()


def rows_until(path: Path, mark: Mapping[str, int]) -> list[dict[str, Any]] | None:
    """The rows of a rounds.csv up to a mark; None where the file is not what it was then."""
    try:
        with path.open("rb") as file:
            data = file.read(mark["size"])
    except FileNotFoundError:
        return None
    if len(data) != mark["size"] or zlib.crc32(data) != mark["crc32"]:
        return None
    reader = csv.DictReader(io.StringIO(data.decode(), newline=""))
    return [{key: _parsed(text) for key, text in row.items()} for row in reader]


def _parsed(text: str) -> int | float:
    """The inverse of `number`."""
    try:
        return int(text)
    except ValueError:
        return float(text)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an OSError that does not, as that of a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


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
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """The whole file or none of it."""
    with _naming(path), replacing(path) as part:
        part.write_bytes(data)


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


def read_summary(folder: Path | str) -> dict[str, Any]:
    """summary.json of a finished run; raises ValueError for a missing or damaged one."""
    path = Path(folder) / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no finished run (no summary.json)") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; run it again") from None
    if not isinstance(summary, dict):
        raise ValueError(f"{path} is damaged: it is no table of names and values; run it again")
    missing = [column for column in RESULT_COLUMNS if column not in summary]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}; run it again")
    # JSON has no not-a-number: null stands for it.
    return {k: np.nan if v is None else v for k, v in summary.items()}


def write_results(
    path: Path, rows: Sequence[Mapping[str, Any]], keys: Sequence[str] = KEY_COLUMNS[2:]
) -> None:
    """results.csv, whole or not at all; ``keys`` are what is swept."""
    columns = (*KEY_COLUMNS[:2], *keys, *RESULT_COLUMNS)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(row[column]) for column in columns] for row in rows)
    write_text(path, text.getvalue())


def _field(value: Any) -> Any:
    """A number, a text, a list's items with blanks between; nothing where there is no value."""
    if isinstance(value, tuple):
        return " ".join(str(number(item)) for item in value)
    return "" if value is None or value != value else number(value)


def read_results(folder: Path | str) -> pd.DataFrame:
    """results.csv of a sweep; raises ValueError for a missing or damaged one."""
    path = Path(folder) / "results.csv"
    if not path.is_file():
        raise ValueError(f"{folder} holds no results.csv; name the folder of a sweep")
    frame = _read_table(path, (*KEY_COLUMNS, *RESULT_COLUMNS), text=KEY_COLUMNS[:3])
    if frame.empty:
        raise ValueError(f"{path} has no rows; no run of the sweep has finished yet")
    if frame["trial"].isna().any() or frame["trial"].duplicated().any():
        raise ValueError(f"{path} is damaged: a row names no run, or one twice; {_SWEEP_AGAIN}")
    return frame


def read_rounds(folder: Path | str) -> pd.DataFrame:
    """rounds.csv of a run, finished or not; raises ValueError for a missing or damaged one."""
    path = Path(folder) / "rounds.csv"
    if not path.is_file():
        raise ValueError(f"{folder} holds no rounds.csv; name the folder of a run")
    frame = _read_table(path, ROUND_COLUMNS, is_growing=True)
    if frame.empty:
        raise ValueError(f"{path} has no rows; no round of the run has finished yet")
    if frame[["round", "device"]].isna().any(axis=None):
        raise ValueError(f"{path} is damaged: a row is of no round or no device; run it again")
    # A round that a killed run or a full disk has cut short does not count.
    counts = frame["round"].value_counts()
    if len(counts) and counts[frame["round"].iloc[-1]] < counts.iloc[0]:
        frame = frame[frame["round"] != frame["round"].iloc[-1]]
    return frame


def read_ranks(folder: Path | str) -> tuple[NDArray[np.int64], list[str]]:
    """Ranks [rounds, devices, projections] and the projections' names, from ranks.npz."""
    path = Path(folder) / "ranks.npz"
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            # An entry whose own magic number is damaged comes back as bytes.
            ranks, names = np.asarray(file["ranks"]), [str(name) for name in file["projections"]]
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no ranks.npz; the run was killed, run it again, or with --resume"
        ) from None
    except Exception:  # zipfile, zlib and numpy raise a dozen kinds, too little memory among them
        raise ValueError(f"{path} is damaged; run it again") from None
    if ranks.ndim != 3 or ranks.shape[2] != len(names) or ranks.dtype.kind not in "iu":
        raise ValueError(
            f"{path} is damaged: ranks of shape {ranks.shape} and type {ranks.dtype}; run it again"
        )
    return ranks, names


def _read_table(
    path: Path, columns: Sequence[str], *, text: Sequence[str] = (), is_growing: bool = False
) -> pd.DataFrame:
    data = path.read_bytes()
    # Whole lines only: half of a number is another number.
    if is_growing:
        data = data[: data.rfind(b"\n") + 1]
    elif not data.endswith(b"\n"):
        raise ValueError(f"{path} is damaged: its last row is cut off; {_SWEEP_AGAIN}")
    try:
        frame = pd.read_csv(io.BytesIO(data), keep_default_na=False, na_values=["", "nan"])
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged: {reason}; run it again") from None
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks the columns {', '.join(missing)}")
    for column in columns:
        if column in text or frame.empty:
            continue
        if not pd.api.types.is_numeric_dtype(frame[column]):
            raise ValueError(f"{path} is damaged: column {column} is not all numbers")
    return frame
