"""The linear projections of a transformer that take a LoRA pair."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from torch import Tensor, nn

from airllm.models.families import refusal


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


class HeadLayer(nn.Module):
    """The head as a projection: the bias is the weight of a last feature that is always 1."""

    def forward(self, inputs: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.linear(inputs, weight)


def find_projections(
    network: nn.Module, targets: tuple[str, ...] = (), *, name: str = ""
) -> tuple[tuple[ProjectionSpec, ...], tuple[nn.Module, ...]]:
    """Linear projections inside the repeated blocks of any transformer, in module order.

    A projection belongs to a block when its path has a number in it (``encoder.layer.3...``);
    poolers, embeddings and language-model heads have none. GPT-2's ``Conv1D`` is a linear
    layer with its weight transposed. Raises ValueError that names the model where there are none,
    and a target that matches none with the nearest that would.
    """
    specs, modules = [], []
    for path, module in network.named_modules():
        if isinstance(module, nn.Linear):
            in_features, out_features = module.in_features, module.out_features
        elif type(module).__name__ == "Conv1D":
            in_features, out_features = (int(n) for n in module.weight.shape)
        else:
            continue
        parts = path.split(".")
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        if not numbers:
            continue
        depth, kind = int(parts[numbers[0]]), ".".join(parts[numbers[0] + 1 :])
        specs.append(ProjectionSpec(path, in_features, out_features, depth, kind))
        modules.append(module)
    if not specs:
        raise refusal(name, "it has no linear projection in numbered blocks")
    for target in targets:
        if not any(_has_ending(spec, target) for spec in specs):
            raise ValueError(_no_such_target(target, specs))
    chosen = [
        i for i, s in enumerate(specs) if not targets or any(_has_ending(s, t) for t in targets)
    ]
    return tuple(specs[i] for i in chosen), tuple(modules[i] for i in chosen)


def _has_ending(spec: ProjectionSpec, target: str) -> bool:
    return f".{spec.name}".endswith(f".{target}")


def _no_such_target(target: str, specs: list[ProjectionSpec]) -> str:
    """What model.targets could have meant: any ending of a projection's path in its block."""
    kinds = list(dict.fromkeys(spec.kind for spec in specs))
    endings = [
        ".".join(parts[i:]) for parts in (k.split(".") for k in kinds) for i in range(len(parts))
    ]
    near = difflib.get_close_matches(target, endings, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"model.targets names {target!r}, which matches no linear projection of this model; {hint}"
        f"projections are {', '.join(kinds)}; leave it empty to take them all"
    )
