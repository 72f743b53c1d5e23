"""Texts of many devices to passes: of one width each, a device's rows beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from airllm.models.base import BaseModel
from airllm.models.batches import Examples
from airllm.models.head import Head

_IGNORED = -100  # a target that counts for nothing


@dataclass(frozen=True, slots=True)
class Pass:
    """Rows that go through the model together, on the model's device, ordered by member."""

    input_ids: Tensor
    """[rows, width]"""
    attention_mask: Tensor
    """[rows, width]"""
    target: Tensor
    """[rows] classes, or [rows, width - 1] tokens, -100 where there is none"""
    weight: Tensor
    """[rows] of a row's summed losses in its member's mean"""
    place: Tensor
    """[rows] where a row stands among all examples of all members, one after another"""
    counts: tuple[int, ...]
    """[members] rows of each, 0 included"""


def make_passes(
    base: BaseModel,
    examples: Sequence[Examples],
    *,
    rows_of: Callable[[int], int],
    multiple: int,
    is_one_width: bool = False,
) -> list[Pass]:
    """Group texts by width, their own length rounded up to ``multiple``, whoever's they are.

    With ``is_one_width`` all have that of the longest. ``rows_of`` gives how many rows of a width a
    pass may have. Nothing here waits for the device.
    """
    is_causal = base.config.task == "causal"
    limit = base.config.max_length
    by_width: dict[int, list[tuple[int, int, list[int]]]] = {}  # (member, place, ids)
    terms, place = [], 0  # terms of each member's mean
    for member, own in enumerate(examples):
        # A member without anything to predict has a loss of 0.
        terms.append(max(own.num_terms(is_causal=is_causal), 1))
        for ids in own.ids:
            width = max(min(-(-len(ids) // multiple) * multiple, limit), len(ids))
            by_width.setdefault(width, []).append((member, place, ids))
            place += 1
    if is_one_width:
        rows = sorted((row for group in by_width.values() for row in group), key=_place)
        by_width = {max(by_width): rows} if rows else {}
    labels = [int(y) for own in examples for y in own.labels]
    passes = []
    for width, rows in sorted(by_width.items()):
        size = max(rows_of(width), 1)
        for first in range(0, len(rows), size):
            passes.append(
                _collate(base, rows[first : first + size], width, labels, terms, is_causal)
            )
    return passes


def _place(row: tuple[int, int, list[int]]) -> int:
    return row[1]


def _collate(
    base: BaseModel,
    rows: Sequence[tuple[int, int, list[int]]],
    width: int,
    labels: Sequence[int],
    terms: Sequence[int],
    is_causal: bool,
) -> Pass:
    input_ids = torch.full((len(rows), width), base.pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, (_, _, ids) in enumerate(rows):
        input_ids[i, : len(ids)] = torch.tensor(ids)
        mask[i, : len(ids)] = 1
    if is_causal:
        target = torch.where(mask[:, 1:].bool(), input_ids[:, 1:], _IGNORED)
    else:
        target = torch.tensor([labels[place] for _, place, _ in rows])
    counts = [0] * len(terms)
    for member, _, _ in rows:
        counts[member] += 1
    weight = torch.tensor([1.0 / terms[member] for member, _, _ in rows])
    where = torch.tensor([place for _, place, _ in rows])
    return Pass(
        base.put(input_ids),
        base.put(mask),
        base.put(target),
        base.put(weight),
        base.put(where),
        tuple(counts),
    )


def row_losses(base: BaseModel, head: Head | None, batch: Pass) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy in nats, and number of right answers, of each row: both [rows].

    Unlike `airllm.lora.evaluation.losses` it computes with what is padded too, so that its shapes
    are those of the pass.
    """
    if base.config.task == "causal":
        logits = base.hidden(batch.input_ids, batch.attention_mask)[:, :-1]
        flat = F.cross_entropy(
            logits.flatten(0, 1), batch.target.flatten(), ignore_index=_IGNORED, reduction="none"
        )
        right = logits.argmax(dim=-1) == batch.target  # [rows, width - 1]
        return flat.view(batch.target.shape).sum(dim=1), right.sum(dim=1)
    if head is None:
        raise ValueError("a model of task 'classify' needs a head")
    features = base.pooled(batch.input_ids, batch.attention_mask)
    logits = base.logits(features, head.weight, head.bias)
    loss = F.cross_entropy(logits, batch.target, reduction="none")
    return loss, logits.argmax(dim=-1) == batch.target
