"""Texts of one or many devices to microbatches: of one width each, a device's rows together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from airllm.models.base import BaseModel
from airllm.models.batches import Examples, padded_width

# A pass by itself takes a CPU about as much time as so many tokens (MiniLM). A GPU's time is the
# number of its passes: there all texts of a step share one.
_PASS_TOKENS = {"fp32": 32, "bf16": 80}
IGNORED = -100  # a target that counts for nothing


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Rows that go through the model in one pass, ordered by device; on the model's device.

    A *term* is what a loss is a mean of: a text, or a predicted token of a causal model.
    """

    input_ids: Tensor
    """[rows, width]"""
    attention_mask: Tensor
    """[rows, width] 1 for text, 0 for padding"""
    target: Tensor
    """[rows] classes, or [rows * width] next tokens, -100 where there is none"""
    terms: Tensor
    """[terms] their places in ``target``"""
    weight: Tensor
    """[terms] of each one's loss in its device's mean"""
    num_rows: tuple[int, ...]
    """[devices] rows of each, 0 included"""
    num_terms: tuple[int, ...]
    """[devices] terms of each, 0 included"""
    places: tuple[int, ...]
    """[rows] where each stands among all examples of all devices, one after another"""


def microbatches(
    base: BaseModel,
    examples: Sequence[Examples],
    *,
    rows_of: Callable[[int], int] | None = None,
    pass_tokens: float | None = None,
) -> list[Microbatch]:
    """Group texts, whoever's they are, by their own length, rounded up to a multiple of eight.

    ``rows_of`` gives how many rows of a width a pass may have (None: all). Texts join longer ones
    where the padding is at most ``pass_tokens``; None: what is fastest, on CUDA any. Nothing here
    waits for the device.
    """
    if pass_tokens is None:
        is_cuda = base.device.type == "cuda"
        pass_tokens = math.inf if is_cuda else _PASS_TOKENS[base.precision]
    by_width: dict[int, list[_Row]] = defaultdict(list)
    place = 0
    for device, own in enumerate(examples):
        for ids, label in zip(own.ids, own.labels, strict=True):
            by_width[padded_width(base, [ids])].append(_Row(place, device, ids, int(label)))
            place += 1
    # A device without anything to predict has a loss of 0.
    weights = [
        1.0 / max(own.num_terms(is_causal=base.config.task == "causal"), 1) for own in examples
    ]
    found: list[Microbatch] = []
    rows: list[_Row] = []
    for width, wider in pairwise([*sorted(by_width), math.inf]):
        rows = sorted(rows + by_width[int(width)], key=lambda row: row.place)
        if wider < math.inf and len(rows) * (wider - width) <= pass_tokens:
            continue
        size = len(rows) if rows_of is None else max(rows_of(int(width)), 1)
        for first in range(0, len(rows), size):
            found.append(_collate(base, rows[first : first + size], int(width), weights))
        rows = []
    return found


def whole(base: BaseModel, examples: Examples) -> Microbatch:
    """One device's examples in one pass, in their order."""
    (batch,) = microbatches(base, [examples], pass_tokens=math.inf)
    return batch


@dataclass(frozen=True, slots=True)
class _Row:
    place: int
    device: int
    ids: list[int]
    label: int


def _collate(
    base: BaseModel, rows: Sequence[_Row], width: int, weights: Sequence[float]
) -> Microbatch:
    input_ids = torch.full((len(rows), width), base.pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
    # Where terms are is found here, without waiting for the model's device.
    if base.config.task == "causal":
        target = torch.full_like(input_ids, IGNORED)
        target[:, :-1] = torch.where(mask[:, 1:].bool(), input_ids[:, 1:], IGNORED)
        terms_of = [max(len(row.ids) - 1, 0) for row in rows]
        terms = [i * width + t for i, count in enumerate(terms_of) for t in range(count)]
    else:
        target = torch.tensor([row.label for row in rows])
        terms_of, terms = [1] * len(rows), list(range(len(rows)))
    num_rows, num_terms, weight = [0] * len(weights), [0] * len(weights), []
    for row, count in zip(rows, terms_of, strict=True):
        num_rows[row.device] += 1
        num_terms[row.device] += count
        weight += [weights[row.device]] * count
    return Microbatch(
        input_ids=base.put(input_ids),
        attention_mask=base.put(mask),
        target=base.put(target.flatten()),
        terms=base.put(torch.tensor(terms, dtype=torch.long)),
        weight=base.put(torch.tensor(weight)),
        num_rows=tuple(num_rows),
        num_terms=tuple(num_terms),
        places=tuple(row.place for row in rows),
    )
