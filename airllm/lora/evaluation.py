"""Text to batches, and what is done with them: losses, evaluation, the head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from airllm.lora.adapter import Adapter
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


@dataclass(frozen=True, slots=True)
class Head:
    """Linear classification head on pooled features."""

    weight: Tensor
    """[classes, features]"""
    bias: Tensor
    """[classes]"""

    def to(self, device: torch.device) -> Head:
        return Head(self.weight.to(device), self.bias.to(device))


@dataclass(frozen=True, slots=True)
class Metrics:
    """Means over the examples of one device."""

    loss: float
    """cross-entropy in nats, per example (classify) or per token (causal)"""
    accuracy: float
    """share of right labels (classify) or right next tokens (causal)"""
    count: int
    """examples, or predicted tokens"""


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


def predictions(base: BaseModel, head: Head | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits and targets of what is predicted: [batch, classes] and [batch] (classify), or
    [predicted tokens, vocabulary] and [predicted tokens] (causal)."""
    if base.config.task == "causal":
        logits = base.hidden(batch.input_ids, batch.attention_mask)[:, :-1]
        target = batch.input_ids[:, 1:].flatten()[batch.predicted]
        return logits.flatten(0, 1)[batch.predicted], target
    if head is None:
        raise ValueError("a model of task 'classify' needs a head")
    features = base.pooled(batch.input_ids, batch.attention_mask)
    return base.logits(features, head.weight, head.bias), batch.labels


def losses(base: BaseModel, head: Head | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy and correctness, [batch] (classify) or [predicted tokens] (causal)."""
    logits, target = predictions(base, head, batch)
    loss = F.cross_entropy(logits, target, reduction="none")
    return loss, logits.argmax(dim=-1) == target


def mean_loss(base: BaseModel, head: Head | None, batch: Batch) -> Tensor:
    """Mean of `losses`; 0, and no gradient, where there is nothing to predict."""
    loss = losses(base, head, batch)[0]
    return loss.sum() / max(len(loss), 1)


@torch.no_grad()
def evaluate(base: BaseModel, head: Head | None, adapter: Adapter, batches: list[Batch]) -> Metrics:
    """Loss and accuracy with one adapter installed; the base is left bare."""
    base.bank.load_adapters([adapter], base.device)
    try:
        total, right, count = 0.0, 0, 0
        for batch in batches:
            loss, correct = losses(base, head, batch)
            total += float(loss.double().sum())
            right += int(correct.sum())
            count += len(loss)
    finally:
        base.bank.clear()
    if count == 0:
        raise ValueError("evaluation needs at least one example")
    return Metrics(total / count, right / count, count)


def generator_for(seed: int, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Torch's random numbers of one purpose; ``key`` tells purposes, devices and rounds apart."""
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return torch.Generator(device=device).manual_seed(int(state[0] >> 1))


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


def train_head(
    base: BaseModel,
    ids: Sequence[list[int]],
    labels: Sequence[int],
    *,
    num_classes: int,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    batch_size: int,
    seed: int,
) -> Head:
    """Fit a linear head on the frozen base's features, which are computed once."""
    rows: list[Tensor] = [torch.empty(0)] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    with torch.no_grad():
        for start in range(0, len(order), 128):
            chunk = order[start : start + 128]
            batch = collate(base, [ids[i] for i in chunk], [0] * len(chunk))
            features = base.pooled(batch.input_ids, batch.attention_mask)
            for i, row in zip(chunk, features, strict=True):
                rows[i] = row
    inputs = torch.stack(rows)  # [examples, features]
    target = torch.tensor(list(labels), device=base.device)
    weight = torch.zeros(num_classes, inputs.shape[1], device=base.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=base.device, requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=learning_rate, weight_decay=weight_decay)
    sampler = BatchSampler(len(ids), batch_size, seed, stream=0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * (1.0 - step / steps)
        index = torch.from_numpy(sampler.indices(step)).to(base.device)
        loss = F.cross_entropy(F.linear(inputs[index], weight, bias), target[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Head(weight.detach(), bias.detach())
