"""A plain twin of what the engine computes: merged weights, one padded batch, autograd."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


def merged(base, head, down, up, examples):
    """Logits and targets with W + up down in the place of W; factors are lists of tensors."""
    deltas = [u @ d for d, u in zip(down, up, strict=True)]
    weights = {}
    for spec, module, delta in zip(base.specs, base.modules, deltas, strict=True):
        if spec.kind != "head":
            is_linear = isinstance(module, nn.Linear)  # Conv1D keeps its weight as [in, out]
            weights[f"{spec.name}.weight"] = module.weight + (delta if is_linear else delta.T)
    width = max(map(len, examples.ids))
    ids = torch.tensor([row + [base.pad_id] * (width - len(row)) for row in examples.ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in examples.ids])
    inputs = {"input_ids": ids, "attention_mask": mask}
    found = torch.func.functional_call(base.network, weights, (), inputs)
    if base.config.task == "causal":
        kept = mask[:, 1:].bool()
        return found.logits[:, :-1][kept], ids[:, 1:][kept]
    hidden, mask = found.last_hidden_state, mask[:, :, None]
    features = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    weight = torch.cat([head.weight, head.bias[:, None]], dim=1)
    if base.specs[-1].kind == "head":
        weight = weight + deltas[-1]
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    return F.linear(features, weight), torch.tensor(examples.labels)


@pytest.fixture
def merged_loss():
    """Mean loss of one device by the twin."""

    def loss(base, head, down, up, examples):
        return F.cross_entropy(*merged(base, head, down, up, examples))

    return loss


@pytest.fixture
def merged_logits():
    """Logits and target of each term by the twin."""
    return merged
