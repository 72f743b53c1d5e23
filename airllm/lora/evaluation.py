"""Losses, and the evaluation of one adapter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from airllm.lora.adapter import Adapter
from airllm.models.base import BaseModel
from airllm.models.batches import Batch
from airllm.models.head import Head


@dataclass(frozen=True, slots=True)
class Metrics:
    """Means over the examples of one device."""

    loss: float
    """cross-entropy in nats, per example (classify) or per token (causal)"""
    accuracy: float
    """share of right labels (classify) or right next tokens (causal)"""
    count: int
    """examples, or predicted tokens"""


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
