"""Text to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airllm.models.base import BaseModel

# Lengths are padded to a multiple of this, so that a device meets few shapes.
_PAD_MULTIPLE = 8


_POOLED_BATCHES = 8  # batches whose examples are sorted by length among themselves


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled texts, tokenised."""

    ids: Sequence[list[int]]
    labels: Sequence[int]
    """classes; unused by a causal model"""

    def take(self, indices: NDArray[np.int64]) -> Examples:
        """Some of them."""
        return Examples([self.ids[i] for i in indices], [self.labels[i] for i in indices])

    def by_length(self, size: int) -> list[Examples]:
        """Parts of a size, the last one of the rest, each of texts of like length."""
        order = np.argsort([len(ids) for ids in self.ids], kind="stable")
        return [self.take(order[i : i + size]) for i in range(0, len(order), size)]

    def num_terms(self, *, is_causal: bool) -> int:
        """Of the mean loss: predicted tokens of a causal model, or else texts."""
        if is_causal:
            return sum(max(len(ids) - 1, 0) for ids in self.ids)
        return len(self.ids)


def join(parts: Sequence[Examples]) -> Examples:
    """All examples of some parts."""
    return Examples(
        [ids for part in parts for ids in part.ids], [y for part in parts for y in part.labels]
    )


def tokenize(base: BaseModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, cut to the model's ``max_length``.

    Raises ValueError for a token that the model has no embedding of.
    """
    if not texts:
        return []
    encoded = base.tokenizer(list(texts), truncation=True, max_length=base.config.max_length)
    found = [list(ids) for ids in encoded["input_ids"]]
    most = max((max(ids) for ids in found if ids), default=0)
    if most >= base.num_embeddings:
        raise ValueError(
            f"model.name {base.config.name!r} has embeddings of {base.num_embeddings} tokens, but "
            f"its tokenizer, of {base.vocab_size}, gives a text the id {most} "
            f"({base.tokenizer.convert_ids_to_tokens(most)!r}); give it the tokenizer that it was "
            f"trained with"
        )
    return found


def padded_width(base: BaseModel, ids: Sequence[list[int]]) -> int:
    """Tokens to which these texts are padded where they share a pass."""
    longest = max(len(row) for row in ids)
    width = min(-(-longest // _PAD_MULTIPLE) * _PAD_MULTIPLE, base.config.max_length)
    return max(width, longest)


@dataclass(frozen=True, slots=True)
class BatchSampler:
    """Which examples step n trains on: a keyed permutation for each pass over the data.

    With ``lengths`` [examples] the batches of a step are of texts of like length, which saves
    padding: of every few batches' examples, which the permutation draws, the shortest make one
    batch, the next ones another, and these come in an order drawn at random.
    """

    num_examples: int
    batch_size: int
    seed: int
    stream: int
    lengths: tuple[int, ...] = ()

    def indices(self, step: int) -> NDArray[np.int64]:
        """[batch] example indices of one step."""
        if self.num_examples <= self.batch_size:
            return np.arange(self.num_examples)
        steps_per_pass = self.num_examples // self.batch_size
        epoch, position = divmod(step, steps_per_pass)
        key = np.random.SeedSequence(self.seed, spawn_key=(self.stream, epoch))
        order = np.random.default_rng(key).permutation(self.num_examples)
        if self.lengths:
            window = position // _POOLED_BATCHES
            first = window * _POOLED_BATCHES
            count = min(_POOLED_BATCHES, steps_per_pass - first)
            pool = order[first * self.batch_size : (first + count) * self.batch_size]
            pool = pool[np.argsort(np.asarray(self.lengths)[pool], kind="stable")]
            key = np.random.SeedSequence(self.seed, spawn_key=(self.stream, epoch, window))
            turn = np.random.default_rng(key).permutation(count)[position - first]
            return pool[turn * self.batch_size : (turn + 1) * self.batch_size]
        return order[position * self.batch_size : (position + 1) * self.batch_size]
