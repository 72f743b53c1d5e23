"""Local files of labelled text: csv, tsv, JSON lines, parquet and TREC's .label."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".label")


def read_table(
    path: Path,
    text_column: str,
    label_column: str,
    encoding: str = "auto",
    *,
    has_header: bool = True,
) -> tuple[list[str], list[str]]:
    """Texts and labels (as strings) of a local file; no labels without a label column.

    Columns of a csv or tsv file without a header are numbers from 0. Raises ValueError that names
    file, row, column and remedy.
    """
    if not path.is_file():
        raise ValueError(f"data file {path} does not exist; name an existing file in data.source")
    suffix, hint = path.suffix.lower(), ""
    if suffix == ".parquet":
        rows = _parquet_rows(path)
    elif suffix == ".jsonl":
        rows = _jsonl_rows(path, encoding)
    elif suffix == ".label":
        rows = _trec_rows(path, encoding)
    elif suffix in (".csv", ".tsv"):
        rows = _separated_rows(path, encoding, is_tab=suffix == ".tsv", has_header=has_header)
        if has_header:
            hint = (
                "; the first line was taken for a header: where it is none, set data.header = "
                "false and give columns by number, from 0"
            )
    else:
        raise ValueError(
            f"data file {path} has the ending {suffix or '(none)'}; "
            f"it must be one of {', '.join(SUFFIXES)}"
        )
    if not rows:
        raise ValueError(f"data file {path} has no rows; name a file with text in data.source")
    texts, labels = [], []
    for number, row in enumerate(rows, start=1):
        for column in filter(None, (text_column, label_column)):
            if column not in row:
                there = shorten(", ".join(map(str, rows[0])))
                raise ValueError(
                    f"data file {path} has no {column!r} in row {number} (its columns: {there}); "
                    f"set data.text_column and data.label_column{hint}"
                )
        of = (f"data file {path}", number)
        texts.append(read_cell(row[text_column], *of, text_column))
        if label_column:
            labels.append(read_cell(row[label_column], *of, label_column))
    return texts, labels


def read_cell(value: Any, source: str, row: int, column: str) -> str:
    """A text or label; raises ValueError that names source, row (from 1), column and remedy."""
    where = f"in row {row}, column {column!r}"
    if is_missing(value):
        raise ValueError(f"{source} has nothing {where}; take the row out or fill it in")
    if not isinstance(value, str | int | float):
        raise ValueError(
            f"{source} has a value of type {type(value).__name__} {where}; it must be a text or a "
            f"number"
        )
    return str(value).strip()


def shorten(text: str) -> str:
    """At most 80 characters of it, for a message."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_missing(value: Any) -> bool:
    """Whether it is blank, or how a table writes a missing value."""
    text = str(value).strip()
    return not text or (not isinstance(value, str) and text in ("None", "nan", "NaT", "<NA>"))


def _read_text(path: Path, encoding: str) -> str:
    """UTF-8, or else Windows-1252, the usual other one of old corpora; or the encoding named."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"data file {path} cannot be read ({error.strerror}); check its permissions"
        ) from None
    if encoding == "auto" and b"\0" in data:
        raise ValueError(
            f"data file {path} has zero bytes, so it is UTF-16 or no text at all; "
            f"set data.encoding or give a text file"
        )
    for residual in ("utf-8-sig", "cp1252") if encoding == "auto" else (encoding,):
        try:
            return data.decode(residual).removeprefix("\ufeff")
        except UnicodeError:
            continue
    tried = "UTF-8 nor Windows-1252" if encoding == "auto" else f"readable as {encoding}"
    raise ValueError(
        f"data file {path} is {'neither' if encoding == 'auto' else 'not'} {tried}; "
        f"set data.encoding to the one it was written in"
    )


def _separated_rows(
    path: Path, encoding: str, *, is_tab: bool, has_header: bool
) -> list[dict[str, Any]]:
    # In tab-separated corpora a quotation mark is a character like any other. In csv files only
    # \r and \n end a line, and not the separators and form feeds at which splitlines() cuts too.
    lines = (
        [line for _, line in _lines(path, encoding)]
        if is_tab
        else io.StringIO(_read_text(path, encoding), newline="")
    )
    reader = csv.reader(
        lines,
        delimiter="\t" if is_tab else ",",
        quoting=csv.QUOTE_NONE if is_tab else csv.QUOTE_MINIMAL,
        strict=not is_tab,
    )
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    # The module's limit of a cell, 131,072 characters, is below the length of texts there are.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        for cells in filter(None, reader):
            if not names:
                names = (
                    [name.strip() for name in cells]
                    if has_header
                    else [str(i) for i in range(len(cells))]
                )
                if len(set(names)) < len(names):
                    raise ValueError(
                        f"data file {path} names a column twice ({', '.join(names)}); rename one"
                    )
                if has_header:
                    continue
            if len(cells) > len(names):
                hint = "take out surplus tabs" if is_tab else "quote texts that hold a comma"
                raise ValueError(
                    f"data file {path}, row {len(rows) + 1}, has {len(cells)} cells for "
                    f"{len(names)} columns; {hint}"
                )
            cells += [""] * (len(names) - len(cells))
            rows.append(dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise ValueError(
            f"data file {path}, line {reader.line_num}: {error}; mend the quotation marks there"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return rows


def _lines(path: Path, encoding: str) -> list[tuple[int, str]]:
    """Lines that are not blank, with their numbers in the file."""
    # Not splitlines(): text has form feeds and separators that end no line of a file.
    lines = enumerate(_read_text(path, encoding).split("\n"), start=1)
    return [(number, line.rstrip("\r")) for number, line in lines if line.strip("\r")]


def _jsonl_rows(path: Path, encoding: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in _lines(path, encoding):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"data file {path}, line {number}, is no JSON ({error}); mend or delete the line"
            ) from None
        if not isinstance(row, dict):
            raise ValueError(
                f"data file {path}, line {number}, is no JSON object; each line must be one, "
                f"with a text and a label"
            )
        rows.append(row)
    return rows


def _trec_rows(path: Path, encoding: str) -> list[dict[str, Any]]:
    """``COARSE:fine question``: columns label (coarse), fine and text."""
    rows = []
    for number, line in _lines(path, encoding):
        head, _, text = line.partition(" ")
        coarse, colon, fine = head.partition(":")
        if not colon:
            raise ValueError(
                f"data file {path}, line {number}, does not start with COARSE:fine; "
                f"mend the line or name a file of another format in data.source"
            )
        rows.append({"label": coarse, "fine": fine, "text": text})
    return rows


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return list(pyarrow.parquet.read_table(path).to_pylist())
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data file {path} is no readable parquet file: {error}") from None
