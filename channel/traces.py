"""Recorded links: CSV of time against SNR, CQI or throughput, cleaned and reported on."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic.dataclasses
from numpy.typing import NDArray

from channel.adaptation import CQI_THRESHOLD_DB
from channel.bounds import STRICT, Positive

Array = NDArray[np.float64]

Kind = Literal["snr_db", "cqi", "throughput"]
MISSING = ("", "-", "nan", "na", "n/a", "null", "none")
_MAX_SNR_DB = 300.0  # more is a mistake in the file
_MAX_EFFICIENCY = 100.0  # bit/s/Hz, Shannon's at 300 dB
_TIME_UNITS_S = {"seconds": 1.0, "milliseconds": 1e-3, "microseconds": 1e-6}
_UNITS_BPS = {"bit/s": 1.0, "kbit/s": 1e3, "mbit/s": 1e6, "mbits/sec": 1e6, "gbit/s": 1e9}


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class TraceFormat:
    """How to read a file: which column is what, and in what unit."""

    value_column: str
    """name, or number from 0 where there is no header"""
    kind: Kind
    """'snr_db', 'cqi' or 'throughput'"""
    time_column: str = ""
    """name or number; empty: rows are ``step_s`` apart"""
    time_format: str = "seconds"
    """'seconds', 'milliseconds', 'microseconds', 'iso' (dates of ISO 8601), or a strptime pattern
    such as '%Y.%m.%d_%H.%M.%S'; dates without a zone count as UTC"""
    step_s: Positive = 1.0
    """time between rows where there is no column of time"""
    unit: str = "bit/s"
    """of throughput: bit/s, kbit/s, Mbit/s or Gbit/s"""
    delimiter: str = ","
    has_header: bool = True
    max_gap_s: Positive = 10.0
    """longer gaps are closed: the trace goes on as if no time had passed"""

    def __post_init__(self) -> None:
        if self.unit.lower() not in _UNITS_BPS:
            raise ValueError(f"unit must be one of {', '.join(_UNITS_BPS)}, got {self.unit!r}")
        if self.time_format not in (*_TIME_UNITS_S, "iso") and "%" not in self.time_format:
            raise ValueError(
                f"time_format must be one of {', '.join(_TIME_UNITS_S)}, iso, or a pattern such as "
                f"'%Y.%m.%d_%H.%M.%S', got {self.time_format!r}"
            )


# The formats of three public data sets, and the plain one that our own files have.
FORMATS = {
    "plain": TraceFormat("snr_db", "snr_db", "time_s"),
    "ucc-5g": TraceFormat("SNR", "snr_db", "Timestamp", "%Y.%m.%d_%H.%M.%S"),
    "ucc-5g-cqi": TraceFormat("CQI", "cqi", "Timestamp", "%Y.%m.%d_%H.%M.%S"),
    # Time stamps of this set are rounded: only the order is usable, at 20 rows a second.
    "cicv5g": TraceFormat("sinr(db)", "snr_db", step_s=0.05, delimiter="\t"),
    "nyu-mets": TraceFormat("0", "throughput", unit="Mbit/s", has_header=False),
}


@dataclass(frozen=True, slots=True)
class TraceReport:
    """What cleaning did."""

    rows: int
    missing: int
    """rows without a value: left out"""
    repeated: int
    """rows with the time stamp of another: averaged"""
    backward: int
    """rows earlier than the one before: left out"""
    gaps: int
    """gaps longer than ``max_gap_s``: closed"""
    step_s: float
    """time between samples in the middle (median), before gaps were closed"""


@dataclass(frozen=True, slots=True)
class Trace:
    """Values over time, piecewise constant; starts again when it is over."""

    times_s: Array
    """[samples] from 0, rising"""
    values: Array
    """[samples] in dB, CQI or bit/s"""
    kind: str
    report: TraceReport

    @property
    def duration_s(self) -> float:
        """Length, the last sample held as long as samples are apart in the middle."""
        return float(self.times_s[-1] + np.median(np.diff(self.times_s)))

    def at(self, time_s: Array | float) -> Array:
        """The value at any time."""
        t = np.mod(np.asarray(time_s, dtype=float), self.duration_s)
        return self.values[np.searchsorted(self.times_s, t, side="right") - 1]

    def snr_db(self, time_s: Array | float, bandwidth_hz: float) -> Array:
        """The SNR that the recorded link amounts to.

        A CQI stands for the threshold it is chosen at, CQI 0 for out of range (-inf); a throughput
        R for 2^(R/B) - 1, the SNR at which a band of B carries it at Shannon's rate; ValueError
        where no link could.
        """
        values = self.at(time_s)
        if self.kind == "snr_db":
            return values
        if self.kind == "cqi":
            index = np.clip(np.round(values), 0, len(CQI_THRESHOLD_DB)).astype(int)
            return np.concatenate([[-np.inf], CQI_THRESHOLD_DB])[index]
        if self.values.max() > _MAX_EFFICIENCY * bandwidth_hz:
            raise ValueError(
                f"a trace of up to {self.values.max():g} bit/s does not fit a band of "
                f"{bandwidth_hz:g} Hz; make channel.bandwidth_hz wider or check the trace's unit"
            )
        with np.errstate(divide="ignore"):
            return 10.0 * np.log10(np.expm1(values / bandwidth_hz * np.log(2.0)))


def read_trace(path: Path | str, form: TraceFormat) -> Trace:
    """Read and clean a recorded link; raises ValueError that names file, row, column and remedy."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"trace {path} does not exist; give an existing file")
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    try:
        rows = [row for row in csv.reader(text.splitlines(), delimiter=form.delimiter) if row]
    except csv.Error as error:
        raise ValueError(f"trace {path} is no table of cells: {error}") from None
    header: list[str] = []
    if form.has_header and rows:
        header, rows = [name.strip() for name in rows[0]], rows[1:]
    if not rows:
        raise ValueError(f"trace {path} has no rows")
    value_at = _column(path, header, rows, "value", form.value_column)
    time_at = _column(path, header, rows, "time", form.time_column) if form.time_column else None
    times: list[float] = []
    values: list[float] = []
    missing = backward = 0
    for number, row in enumerate(rows, start=1):
        cell = row[value_at].strip() if value_at < len(row) else ""
        if cell.lower() in MISSING:
            missing += 1
            continue
        time_s = (number - 1) * form.step_s
        if time_at is not None:
            stamp = row[time_at].strip() if time_at < len(row) else ""
            time_s = _seconds(path, number, stamp, form.time_format)
        if times and time_s < times[-1]:
            backward += 1
            continue
        times.append(time_s)
        values.append(_value(path, number, cell, row, form, value_at))
    if len(set(times)) < 2:
        raise ValueError(
            f"trace {path} has fewer than two times with a value in column {form.value_column!r}"
        )
    unique, inverse, counts = np.unique(times, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=values) / counts
    steps = np.diff(unique)
    step_s = float(np.median(steps))
    is_gap = steps > form.max_gap_s
    if is_gap.any():
        steps = np.where(is_gap, np.median(steps[~is_gap]) if (~is_gap).any() else 1.0, steps)
    report = TraceReport(
        len(rows), missing, int(counts.sum() - len(unique)), backward, int(is_gap.sum()), step_s
    )
    return Trace(np.concatenate([[0.0], np.cumsum(steps)]), means, form.kind, report)


def _column(path: Path, header: list[str], rows: list[list[str]], what: str, name: str) -> int:
    if name in header:
        return header.index(name)
    if name.isdigit() and int(name) < len(rows[0]):
        return int(name)
    there = ", ".join(header) if header else f"{len(rows[0])} columns without names"
    raise ValueError(
        f"trace {path} has no column {name!r} (it has {there}); name that of the {what} with "
        f"channel.trace_{what}_column"
    )


def _seconds(path: Path, number: int, cell: str, time_format: str) -> float:
    from datetime import UTC, datetime

    try:
        if time_format in _TIME_UNITS_S:
            # Beyond 1e12 s, 30,000 years, sums of times lose the steps between them.
            if not abs(time_s := float(cell) * _TIME_UNITS_S[time_format]) <= 1e12:
                raise ValueError
            return time_s
        is_iso = time_format == "iso"
        moment = datetime.fromisoformat(cell) if is_iso else datetime.strptime(cell, time_format)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, OverflowError):
        raise ValueError(
            f"trace {path}, row {number}: {cell!r} is no time of the format {time_format!r}; set "
            f"channel.trace_time_format (seconds, milliseconds, microseconds, iso or a pattern)"
        ) from None


def _value(
    path: Path, number: int, cell: str, row: list[str], form: TraceFormat, value_at: int
) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(
            f"trace {path}, row {number}: {cell!r} in column {form.value_column!r} is no number"
        ) from None
    if not np.isfinite(value):
        raise ValueError(f"trace {path}, row {number}: the value must be finite, got {cell}")
    if form.kind == "snr_db" and abs(value) > _MAX_SNR_DB:
        raise ValueError(f"trace {path}, row {number}: no link has an SNR of {cell} dB")
    if form.kind == "throughput" and value < 0:
        raise ValueError(f"trace {path}, row {number}: the throughput must be >= 0, got {cell}")
    if form.kind != "throughput":
        return value
    # A unit beside the number, as some files have, wins over the format's.
    beside = row[value_at + 1].strip().lower() if value_at + 1 < len(row) else ""
    return min(value * _UNITS_BPS.get(beside, _UNITS_BPS[form.unit.lower()]), 1e300)
