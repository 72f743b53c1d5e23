"""Text to batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airllm.models.base import BaseModel

# Lengths are padded to a multiple of this, so that a device meets few shapes.
_PAD_MULTIPLE = 8


_POOLED_BATCHES = 8  # batches whose examples are sorted by length among themselves


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens on the model's device."""

    input_ids: Tensor
    """[batch, tokens]"""
    attention_mask: Tensor
    """[batch, tokens] 1 for text, 0 for padding"""
    labels: Tensor
    """[batch] classes; unused by a causal model, whose labels are its tokens"""
    predicted: Tensor
    """[predicted tokens] places in the flattened [batch, tokens - 1]; none unless causal"""


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled texts, tokenised."""

    ids: Sequence[list[int]]
    labels: Sequence[int]
    """classes; unused by a causal model"""

    def take(self, indices: NDArray[np.int64]) -> Examples:
        """Some of them."""
        return Examples([self.ids[i] for i in indices], [self.labels[i] for i in indices])

    def batch(self, base: BaseModel) -> Batch:
        """All of them, by `collate`."""
        return collate(base, self.ids, self.labels)

    def num_terms(self, *, is_causal: bool) -> int:
        """Of the mean loss: predicted tokens of a causal model, or else texts."""
        if is_causal:
            return sum(max(len(ids) - 1, 0) for ids in self.ids)
        return len(self.ids)


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
    """Tokens to which `collate` pads these texts."""
    longest = max(len(row) for row in ids)
    width = min(-(-longest // _PAD_MULTIPLE) * _PAD_MULTIPLE, base.config.max_length)
    return max(width, longest)


def collate(base: BaseModel, ids: Sequence[list[int]], labels: Iterable[int]) -> Batch:
    """Pad token ids to one length, a multiple of eight."""
    width = padded_width(base, ids)
    input_ids = torch.full((len(ids), width), base.pad_id)
    mask = torch.zeros((len(ids), width), dtype=torch.long)
    for i, row in enumerate(ids):
        input_ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    target = torch.tensor(list(labels), dtype=torch.long)
    predicted = torch.empty(0, dtype=torch.long)
    if base.config.task == "causal":
        # Found here, where it is known without waiting for the model's device.
        predicted = mask[:, 1:].flatten().nonzero()[:, 0]
    return Batch(base.put(input_ids), base.put(mask), base.put(target), base.put(predicted))


def bucket(
    base: BaseModel, ids: Sequence[list[int]], labels: Sequence[int], batch_size: int
) -> list[Batch]:
    """Batches of texts of like length: the padding depends on these texts alone."""
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [collate(base, [ids[i] for i in c], [int(labels[i]) for i in c]) for c in chunks]


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
