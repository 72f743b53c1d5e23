"""Loss and accuracy of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airllm.lora.adapter import Adapter
from airllm.lora.multi_lora import MultiLora
from airllm.models.base import BaseModel
from airllm.models.batches import Examples
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


def evaluate(base: BaseModel, head: Head | None, adapter: Adapter, examples: Examples) -> Metrics:
    """Loss and accuracy with one adapter."""
    return evaluate_together(base, head, [adapter], [examples])[0]


def evaluate_together(
    base: BaseModel, head: Head | None, adapters: Sequence[Adapter], examples: Sequence[Examples]
) -> list[Metrics]:
    """Loss and accuracy of several devices, each on examples of its own, in the same passes.

    Raises ValueError for one that has nothing to predict.
    """
    is_causal = base.config.task == "causal"
    counts = [own.num_terms(is_causal=is_causal) for own in examples]
    if not all(counts):
        raise ValueError("evaluation needs at least one example")
    lora = MultiLora(base, head, adapters)
    found = lora.evaluate(lora.microbatches(examples))
    loss, right = (each.tolist() for each in found)
    return [Metrics(x, r / n, n) for x, r, n in zip(loss, right, counts, strict=True)]
