"""Where labelled text comes from: the embedded corpus, local files, the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic.dataclasses
from numpy.typing import NDArray
from pydantic import Field

from airllm.bounds import NUMPY, STRICT, CountOrZero, Positive, Several
from airllm.data.docstrings import load_sentences
from airllm.data.files import SUFFIXES, is_missing, read_cell, read_table, shorten
from airllm.data.partition import Partition

_SPLIT_STREAM, _CUT_STREAM = 31, 32


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class DataConfig:
    """The text, its labels, and how devices share it."""

    source: Annotated[str, Field(min_length=1)] = "docstrings"
    """'docstrings', 'sst2', a local csv, tsv, jsonl, parquet or TREC .label file, the id of a
    Hugging Face dataset, or one of your own, <module>:<function>"""
    configuration: str = ""
    """of a Hugging Face dataset that has several, the one to take"""
    eval_source: str = ""
    """local file of the devices' text; empty: a part of the source is held out for them"""
    text_column: Annotated[str, Field(min_length=1)] = "text"
    """name of the column with the text"""
    eval_text_column: str = ""
    """the same in the evaluation file, where it has another name; empty: text_column"""
    label_column: str = "label"
    """name of the column with the label; empty for text without labels (causal models)"""
    header: bool = True
    """whether csv and tsv files begin with the names of their columns; without, columns are numbers
    from 0"""
    encoding: str = "auto"
    """of local files: 'auto' (UTF-8, or else Windows-1252) or a name that Python knows"""
    eval_fraction: Annotated[float, Field(gt=0, lt=1), NUMPY] = 0.2
    """share held out for the devices where there is no evaluation text"""
    max_train: CountOrZero = 0
    """training examples to keep, drawn with the seed; 0: all"""
    max_eval: CountOrZero = 0
    """evaluation examples to keep, drawn with the seed; 0: all"""
    packages: Several[str] = (
        "torch", "numpy", "scipy", "matplotlib", "pandas", "transformers", "diffusers", "flwr",
        "networkx", "sympy",
    )  # fmt: skip
    """installed packages whose docstrings make the corpus, one class each (docstrings)"""
    sentences_per_class: Annotated[int, Field(ge=2), NUMPY] = 1000
    """distinct sentences from each of them (docstrings)"""
    partition: Partition = "iid"
    """how devices share the text: 'iid', 'dirichlet' (label skew), 'complexity' (sorted)"""
    dirichlet_alpha: Positive = 0.5
    """concentration of the label mixes; small: few labels a device (dirichlet)"""

    def __post_init__(self) -> None:
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
    if config.configuration and (own is not None or is_local or config.source == "docstrings"):
        raise ValueError(
            f"data.configuration {config.configuration!r} goes with a Hugging Face dataset in "
            f"data.source, which is {config.source!r}; leave it empty"
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


def _from_own(own: OwnText, config: DataConfig, seed: int) -> tuple[TextDataset, TextDataset]:
    def dataset(pairs: Pairs, names: tuple[str, ...] | None, part: str) -> TextDataset:
        texts, labels = [], []
        for row, pair in enumerate(pairs, start=1):
            is_pair = not isinstance(pair, str) and hasattr(pair, "__len__") and len(pair) == 2
            if not is_pair or is_missing(pair[0]):
                raise ValueError(
                    f"{config.source}{part} gives {shorten(repr(pair))} as row {row}; it must give "
                    f"pairs (text, label), the text not empty"
                )
            texts.append(str(pair[0]))
            labels.append(pair[1])
        if not texts:
            raise ValueError(f"{config.source}{part} gives no pairs (text, label)")
        if not any(str(label) for label in labels):
            labels = []
        for row, label in enumerate(labels, start=1):
            if is_missing(label):
                raise ValueError(
                    f"{config.source}{part} gives the label {label!r} in row {row}; leave the row "
                    f"out or give it a label (text without labels has '' in every row)"
                )
        return _dataset(texts, [str(x) for x in labels], names, f"{config.source}{part}")

    if not isinstance(own, Mapping):
        return _hold_out(dataset(own, None, ""), config.eval_fraction, seed)
    if set(own) != {"train", "evaluation"}:
        raise ValueError(
            f"{config.source} must give pairs by the keys 'train' and 'evaluation', "
            f"got {shorten(', '.join(map(str, own))) or 'none'}"
        )
    train = dataset(own["train"], None, ", train,")
    return train, dataset(own["evaluation"], train.label_names, ", evaluation,")


def _from_files(config: DataConfig, seed: int) -> tuple[TextDataset, TextDataset]:
    texts, labels = read_table(
        Path(config.source), config.text_column, config.label_column, config.encoding,
        has_header=config.header,
    )  # fmt: skip
    train = _dataset(texts, labels, None, config.source)
    if not config.eval_source:
        return _hold_out(train, config.eval_fraction, seed)
    text_column = config.eval_text_column or config.text_column
    texts, labels = read_table(
        Path(config.eval_source), text_column, config.label_column, config.encoding,
        has_header=config.header,
    )  # fmt: skip
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
            raise ValueError(
                f"{source} has the single label {shorten(repr(names[0]))}; two are needed at least"
            )
    index = {name: i for i, name in enumerate(names)}
    for row, label in enumerate(labels, start=1):
        if label not in index:
            raise ValueError(
                f"{source} has the label {shorten(repr(label))} in row {row}, which is not in "
                f"the training set (it has {shorten(', '.join(names))}); take the "
                f"row out or train on it"
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
        splits = datasets.load_dataset(name, *filter(None, [config.configuration]))
    except Exception as error:  # network stacks raise what they like; the remedy is the same
        _check_configuration(name, config, error)
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
        source = f"data.source {config.source!r}, split {split!r},"
        texts = [
            read_cell(text, source, row, text_column)
            for row, text in enumerate(table[text_column], start=1)
        ]
        if not label_column:
            return _dataset(texts, [], names, source)
        # Data sets with named classes write -1 where a label is kept back.
        has_names = isinstance(table.features[label_column], datasets.ClassLabel)
        labels = [
            read_cell(None if has_names and label == -1 else label, source, row, label_column)
            for row, label in enumerate(table[label_column], start=1)
        ]
        return _dataset(texts, labels, names, f"{source} column {label_column!r},")

    train = dataset("train", None)
    for split in ("validation", "test"):
        if split in splits:
            return train, dataset(split, train.label_names)
    return _hold_out(train, config.eval_fraction, seed)


def _check_configuration(name: str, config: DataConfig, error: Exception) -> None:
    """Raise ValueError where what failed is the choice of a configuration."""
    import datasets

    if not isinstance(error, ValueError):
        return
    try:
        there = datasets.get_dataset_config_names(name)
    except Exception:  # out of reach after all
        return
    if config.configuration in there or (not config.configuration and len(there) < 2):
        return
    what = (
        f"no configuration {config.configuration!r}"
        if config.configuration
        else "several configurations"
    )
    raise ValueError(
        f"data.source {config.source!r} has {what}; name one in "
        f"data.configuration: {', '.join(there)}"
    ) from None


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
            f"set data.eval_fraction, or give data.eval_source or more text"
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
