"""Where labelled text comes from: the embedded corpus, local files, the Hugging Face hub."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.docstrings import load_sentences
from airllm.partition import KINDS

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".label")
_SPLIT_STREAM, _CUT_STREAM = 31, 32


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The text, its labels, and how devices share it."""

    source: str = "docstrings"
    """'docstrings', 'sst2', a local csv, tsv, jsonl, parquet or TREC .label file, the id of a
    Hugging Face dataset, or one of your own, <module>:<function>"""
    eval_source: str = ""
    """local file of the devices' text; empty: a part of the source is held out for them"""
    text_column: str = "text"
    """name of the column with the text"""
    eval_text_column: str = ""
    """the same in the evaluation file, where it has another name; empty: text_column"""
    label_column: str = "label"
    """name of the column with the label; empty for text without labels (causal models)"""
    encoding: str = "auto"
    """of local files: 'auto' (UTF-8, or else Windows-1252) or a name that Python knows"""
    eval_fraction: float = 0.2
    """share held out for the devices where there is no evaluation text"""
    max_train: int = 0
    """training examples to keep, drawn with the seed; 0: all"""
    max_eval: int = 0
    """evaluation examples to keep, drawn with the seed; 0: all"""
    packages: tuple[str, ...] = (
        "torch", "numpy", "scipy", "matplotlib", "pandas", "transformers", "diffusers", "flwr",
        "networkx", "sympy",
    )  # fmt: skip
    """installed packages whose docstrings make the corpus, one class each (docstrings)"""
    sentences_per_class: int = 1000
    """distinct sentences from each of them (docstrings)"""
    partition: str = "iid"
    """how devices share the text: 'iid', 'dirichlet' (label skew), 'complexity' (sorted)"""
    dirichlet_alpha: float = 0.5
    """concentration of the label mixes; small: few labels a device (dirichlet)"""

    def __post_init__(self) -> None:
        if not self.source or not self.text_column:
            raise ValueError("data.source and data.text_column must not be empty")
        if self.partition not in KINDS:
            raise ValueError(
                f"data.partition must be one of {', '.join(KINDS)}, got {self.partition!r}"
            )
        if not 0.0 < self.eval_fraction < 1.0:
            raise ValueError(f"data.eval_fraction must be in (0, 1), got {self.eval_fraction}")
        if not self.dirichlet_alpha > 0:
            raise ValueError(f"data.dirichlet_alpha must be > 0, got {self.dirichlet_alpha}")
        for key in ("max_train", "max_eval"):
            if getattr(self, key) < 0:
                raise ValueError(f"data.{key} must be >= 0 (0: all), got {getattr(self, key)}")
        if self.sentences_per_class < 2:
            raise ValueError(
                f"data.sentences_per_class must be >= 2, got {self.sentences_per_class}"
            )
        try:
            "".encode("utf-8" if self.encoding == "auto" else self.encoding)
        except (LookupError, ValueError):
            raise ValueError(
                f"data.encoding must be 'auto' or an encoding such as 'utf-8' or 'utf-16', "
                f"got {self.encoding!r}"
            ) from None
        if self.source == "docstrings" and len(set(self.packages)) < 2:
            raise ValueError(
                f"data.packages must name at least two packages, got {list(self.packages)}"
            )


@dataclass(frozen=True, slots=True)
class TextDataset:
    """Texts with class indices; ``label_names`` is empty where there are no labels."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> TextDataset:
        index = np.asarray(indices, dtype=np.int64)
        return replace(self, texts=tuple(self.texts[i] for i in index), labels=self.labels[index])


@dataclass(frozen=True, slots=True)
class TextSplits:
    """The cloud's text, the devices' text, and a checksum over both."""

    train: TextDataset
    evaluation: TextDataset
    fingerprint: str
    """sha256 over all texts and labels in order"""


Pairs = Iterable[tuple[str, str]]
"""(text, label) after (text, label); the label is empty for text without labels"""
OwnText = Pairs | Mapping[str, Pairs]
"""A data set of one's own: pairs, of which a part is held out for the devices, or pairs by the keys
'train' and 'evaluation'"""


def load_splits(config: DataConfig, *, seed: int, own: OwnText | None = None) -> TextSplits:
    """Training and evaluation text; raises ValueError that names file, column and remedy.

    ``own`` takes the place of what ``config.source`` names.
    """
    path = Path(config.source)
    # A folder is no data file: one called 'sst2' must not hide the data set.
    is_local = path.suffix.lower() in SUFFIXES or path.is_file()
    if config.eval_source and not is_local:
        raise ValueError(
            f"data.eval_source {config.eval_source!r} goes with a local file in data.source, which "
            f"is {config.source!r}; leave it empty"
        )
    if own is not None:
        train, evaluation = _from_own(own, config, seed)
    elif config.source == "docstrings":
        whole = _docstrings(config)
        train, evaluation = _hold_out(whole, config.eval_fraction, seed)
    elif is_local:
        train, evaluation = _from_files(config, seed)
    else:
        train, evaluation = _from_hub(config, seed)
    train = _cut(train, config.max_train, seed, 0)
    evaluation = _cut(evaluation, config.max_eval, seed, 1)
    return TextSplits(train, evaluation, _fingerprint(train, evaluation))


def read_table(
    path: Path, text_column: str, label_column: str, encoding: str = "auto"
) -> tuple[list[str], list[str]]:
    """Texts and labels (as strings) of a local file; no labels without a label column."""
    if not path.is_file():
        raise ValueError(f"data file {path} does not exist; name an existing file in data.source")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        rows = _parquet_rows(path)
    elif suffix == ".jsonl":
        rows = _jsonl_rows(path, encoding)
    elif suffix == ".label":
        rows = _trec_rows(path, encoding)
    elif suffix in (".csv", ".tsv"):
        rows = _separated_rows(path, encoding, is_tab=suffix == ".tsv")
    else:
        raise ValueError(
            f"data file {path} has the ending {suffix or '(none)'}; "
            f"it must be one of {', '.join(SUFFIXES)}"
        )
    if not rows:
        raise ValueError(f"data file {path} has no rows; name a file with text in data.source")
    texts, labels = [], []
    for number, row in enumerate(rows, start=1):
        for column in (text_column, label_column):
            if column and (column not in row or row[column] is None):
                there = ", ".join(str(key) for key in rows[0] if key is not None)
                raise ValueError(
                    f"data file {path} has no {column!r} in row {number} (its columns: {there}); "
                    f"set data.text_column and data.label_column"
                )
        text = str(row[text_column]).strip()
        if not text:
            raise ValueError(f"data file {path} has an empty text in row {number}; take it out")
        texts.append(text)
        if label_column:
            label = row[label_column]
            # A float that is not equal to itself: how a table writes a missing value.
            if not str(label).strip() or label != label:
                raise ValueError(
                    f"data file {path} has no label in row {number}, column {label_column!r}; "
                    f"take the row out or fill it in"
                )
            labels.append(str(label).strip())
    return texts, labels


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
    for candidate in ("utf-8-sig", "cp1252") if encoding == "auto" else (encoding,):
        try:
            return data.decode(candidate)
        except UnicodeError:
            continue
    tried = "UTF-8 nor Windows-1252" if encoding == "auto" else f"readable as {encoding}"
    raise ValueError(
        f"data file {path} is {'neither' if encoding == 'auto' else 'not'} {tried}; "
        f"set data.encoding to the one it was written in"
    )


def _separated_rows(path: Path, encoding: str, *, is_tab: bool) -> list[dict[str, Any]]:
    # In tab-separated corpora a quotation mark is a character like any other. In csv files only
    # \r and \n end a line, and not the separators and form feeds at which splitlines() cuts too.
    lines = (
        [line for _, line in _lines(path, encoding)]
        if is_tab
        else io.StringIO(_read_text(path, encoding), newline="")
    )
    reader = csv.DictReader(
        lines,
        delimiter="\t" if is_tab else ",",
        quoting=csv.QUOTE_NONE if is_tab else csv.QUOTE_MINIMAL,
        strict=not is_tab,
    )
    try:
        return list(reader)
    except csv.Error as error:
        raise ValueError(
            f"data file {path}, line {reader.line_num}: {error}; mend the quotation marks there"
        ) from None


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


def _from_own(own: OwnText, config: DataConfig, seed: int) -> tuple[TextDataset, TextDataset]:
    def dataset(pairs: Pairs, names: tuple[str, ...] | None, part: str) -> TextDataset:
        texts, labels = [], []
        for row, pair in enumerate(pairs, start=1):
            if len(pair) != 2 or not str(pair[0]).strip():
                raise ValueError(
                    f"{config.source}{part} gives {pair!r} as row {row}; it must give pairs "
                    f"(text, label), the text not empty"
                )
            texts.append(str(pair[0]))
            labels.append(str(pair[1]))
        if not texts:
            raise ValueError(f"{config.source}{part} gives no pairs (text, label)")
        return _dataset(texts, labels if any(labels) else [], names, f"{config.source}{part}")

    if not isinstance(own, Mapping):
        return _hold_out(dataset(own, None, ""), config.eval_fraction, seed)
    if set(own) != {"train", "evaluation"}:
        raise ValueError(
            f"{config.source} must give pairs by the keys 'train' and 'evaluation', "
            f"got {', '.join(map(str, own)) or 'none'}"
        )
    train = dataset(own["train"], None, ", train,")
    return train, dataset(own["evaluation"], train.label_names, ", evaluation,")


def _from_files(config: DataConfig, seed: int) -> tuple[TextDataset, TextDataset]:
    texts, labels = read_table(
        Path(config.source), config.text_column, config.label_column, config.encoding
    )
    train = _dataset(texts, labels, None, config.source)
    if not config.eval_source:
        return _hold_out(train, config.eval_fraction, seed)
    text_column = config.eval_text_column or config.text_column
    texts, labels = read_table(
        Path(config.eval_source), text_column, config.label_column, config.encoding
    )
    return train, _dataset(texts, labels, train.label_names, config.eval_source)


def _dataset(
    texts: list[str], labels: list[str], names: tuple[str, ...] | None, source: str
) -> TextDataset:
    """Labels become indices into the training set's sorted names."""
    if not labels:
        return TextDataset(tuple(texts), np.zeros(len(texts), dtype=np.int64), ())
    if names is None:
        names = tuple(sorted(set(labels)))
        if len(names) < 2:
            raise ValueError(f"{source} has the single label {names[0]!r}; two are needed at least")
    index = {name: i for i, name in enumerate(names)}
    for row, label in enumerate(labels, start=1):
        if label not in index:
            raise ValueError(
                f"{source} has the label {label!r} in row {row}, which is not in the training "
                f"set (it has {', '.join(names[:10])}); take the row out or train on that label"
            )
    return TextDataset(tuple(texts), np.array([index[x] for x in labels], dtype=np.int64), names)


def _docstrings(config: DataConfig) -> TextDataset:
    sentences = load_sentences(config.packages, config.sentences_per_class)
    names = tuple(sorted(sentences))
    texts = [sentence for name in names for sentence in sentences[name]]
    labels = np.repeat(np.arange(len(names)), config.sentences_per_class)
    return TextDataset(tuple(texts), labels.astype(np.int64), names)


def _from_hub(config: DataConfig, seed: int) -> tuple[TextDataset, TextDataset]:
    name, text_column, label_column = config.source, config.text_column, config.label_column
    if name == "sst2":
        name = "stanfordnlp/sst2"
        text_column = "sentence" if text_column == "text" else text_column
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"data.source {config.source!r} is no local file, and Hugging Face datasets need "
            f"`pip install 'airllm-sim[hub]'`"
        ) from None
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # network stacks raise what they like; the remedy is the same
        raise ValueError(
            f"data.source {config.source!r} is no local file and could not be had from the "
            f"Hugging Face hub ({type(error).__name__}); give a local csv, tsv, jsonl or parquet "
            f"file, or download it where there is a network"
        ) from None
    if "train" not in splits:
        raise ValueError(f"data.source {config.source!r} has no split 'train'")

    def dataset(split: str, names: tuple[str, ...] | None) -> TextDataset:
        table = splits[split]
        for column in (text_column, label_column):
            if column and column not in table.column_names:
                raise ValueError(
                    f"data.source {config.source!r} has no column {column!r} (it has "
                    f"{', '.join(table.column_names)}); set data.text_column, data.label_column"
                )
        texts = [str(text) for text in table[text_column]]
        labels = [str(label) for label in table[label_column]] if label_column else []
        return _dataset(texts, labels, names, f"{config.source}, split {split},")

    train = dataset("train", None)
    for split in ("validation", "test"):
        if split in splits:
            return train, dataset(split, train.label_names)
    return _hold_out(train, config.eval_fraction, seed)


def _hold_out(whole: TextDataset, fraction: float, seed: int) -> tuple[TextDataset, TextDataset]:
    """A share of each label is held out, so that both parts have the same mix."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_SPLIT_STREAM,)))
    kept: list[int] = []
    held: list[int] = []
    for label in np.unique(whole.labels):
        order = rng.permutation(np.flatnonzero(whole.labels == label))
        count = round(fraction * len(order))
        held.extend(order[:count])
        kept.extend(order[count:])
    if not kept or not held:
        raise ValueError(
            f"{len(whole)} examples are too few to hold out {fraction:g} of each label; "
            f"give data.eval_source or more text"
        )
    return whole.take(sorted(kept)), whole.take(sorted(held))


def _cut(dataset: TextDataset, limit: int, seed: int, part: int) -> TextDataset:
    if not limit or limit >= len(dataset):
        return dataset
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_CUT_STREAM, part)))
    return dataset.take(np.sort(rng.permutation(len(dataset))[:limit]))


def _fingerprint(*datasets: TextDataset) -> str:
    digest = hashlib.sha256()
    for dataset in datasets:
        for text, label in zip(dataset.texts, dataset.labels, strict=True):
            digest.update(f"{label}\t{text}\n".encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()
