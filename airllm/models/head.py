"""The linear classification head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from airllm.models.base import BaseModel
from airllm.models.batches import BatchSampler, Examples
from airllm.models.microbatches import microbatches


@dataclass(frozen=True, slots=True)
class Head:
    """Linear classification head on pooled features."""

    weight: Tensor
    """[classes, features]"""
    bias: Tensor
    """[classes]"""

    def to(self, device: torch.device) -> Head:
        return Head(self.weight.to(device), self.bias.to(device))


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
    inputs = torch.empty(len(ids), base.num_features, device=base.device)
    with torch.no_grad():
        for batch in microbatches(base, [Examples(ids, labels)], rows_of=lambda width: 128):
            places = base.put(torch.tensor(batch.places))
            inputs[places] = base.pooled(batch.input_ids, batch.attention_mask)
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
