"""What a model predicts of a microbatch, and how far that is from what is there."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from airllm.models.base import BaseModel
from airllm.models.head import Head
from airllm.models.microbatches import IGNORED, Microbatch


def predictions(base: BaseModel, head: Head | None, batch: Microbatch) -> Tensor:
    """Logits for each entry of ``batch.target``: [rows, classes], or [rows * width, vocabulary]."""
    if base.config.task == "causal":
        return base.hidden(batch.input_ids, batch.attention_mask).flatten(0, 1)
    if head is None:
        raise ValueError("a model of task 'classify' needs a head")
    features = base.pooled(batch.input_ids, batch.attention_mask)
    return base.logits(features, head.weight, head.bias)


def losses(base: BaseModel, head: Head | None, batch: Microbatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats, and whether the answer is right, of each term: both [terms]."""
    logits = predictions(base, head, batch)
    loss = F.cross_entropy(logits, batch.target, ignore_index=IGNORED, reduction="none")
    right = logits.argmax(dim=-1) == batch.target
    return loss[batch.terms], right[batch.terms]


def mean_loss(base: BaseModel, head: Head | None, batch: Microbatch) -> Tensor:
    """The mean over a device's terms, if the batch has all of them; 0 where there are none."""
    return (losses(base, head, batch)[0] * batch.weight).sum()
