"""The linear projections of a transformer that take a LoRA pair."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProjectionSpec:
    """One linear projection of the base model into which a LoRA pair (B, A) is inserted."""

    name: str
    """module path inside the base model, such as ``encoder.layer.0.attention.self.query``"""
    in_features: int
    out_features: int
    depth: int
    """index of the transformer block"""
    kind: str
    """last path component(s) that tell the projections of one block apart, such as ``query``"""

    @property
    def params_per_rank(self) -> int:
        """Parameters of one rank: a row of A [in_features] and a column of B [out_features]."""
        return self.in_features + self.out_features
