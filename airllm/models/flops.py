"""Floating-point operations of a pass through a base model, counted from its shapes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airllm.models.base import BaseModel


def forward_flops(base: BaseModel, shape: tuple[int, int], ranks: NDArray[np.int64]) -> float:
    """Of one forward pass over [batch, tokens] with an update of ``ranks`` [projections] loaded.

    A product [m, k] by [k, n] counts 2 m k n. Counted are the projections, their updates, and the
    two products of attention, 4 T^2 d a text and block; norms, activations and embeddings are left
    out, as in Kaplan et al. (2020).
    """
    batch, tokens = shape
    total = 0.0
    for spec, calls, rank in zip(base.specs, base.num_calls, ranks, strict=True):
        rows = calls * (batch if spec.kind == "head" else batch * tokens)
        total += 2.0 * rows * (spec.in_features * spec.out_features + rank * spec.params_per_rank)
    return total + _attention_flops(base, shape)


def _attention_flops(base: BaseModel, shape: tuple[int, int]) -> float:
    """Of the two products of attention in all blocks, a shared one as often as it is passed."""
    (batch, tokens), calls = shape, dict.fromkeys((s.depth for s in base.specs), 0)
    for spec, count in zip(base.specs, base.num_calls, strict=True):
        calls[spec.depth] = max(calls[spec.depth], count)
    return 4.0 * sum(calls.values()) * batch * tokens**2 * base.num_features


def training_flops(base: BaseModel, shape: tuple[int, int], ranks: NDArray[np.int64]) -> float:
    """Of one optimiser step of an update: forward, and backward through frozen weights.

    The gradient of a frozen projection's input costs one product more; an update's own weights
    need their gradients as well, so its products count three times, and attention's, which have two
    inputs, too.
    """
    frozen = np.zeros(len(base.specs), dtype=np.int64)
    attention = _attention_flops(base, shape)
    plain = forward_flops(base, shape, frozen) - attention
    update = forward_flops(base, shape, ranks) - attention - plain
    return 2.0 * plain + 3.0 * (update + attention)


def training_bytes(base: BaseModel, shape: tuple[int, int], ranks: NDArray[np.int64]) -> float:
    """Memory of training an update: base weights, what the backward pass needs, the optimiser.

    Autograd keeps every projection's input and output; an update's weights come with a gradient and
    Adam's two moments. Numbers take 4 bytes, or 2 where the base computes in bf16.
    """
    batch, tokens = shape
    width = 2 if base.precision == "bf16" else 4
    weights = sum(p.numel() for p in base.network.parameters())
    kept = sum(
        calls * batch * tokens * spec.params_per_rank
        for spec, calls in zip(base.specs, base.num_calls, strict=True)
    )
    trained = sum(r * spec.params_per_rank for spec, r in zip(base.specs, ranks, strict=True))
    return float(width * (weights + kept) + 16 * trained)
