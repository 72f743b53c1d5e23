"""Every policy by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airllm.baselines import AdaLora, Fixed, Greedy, RandomFeasible, Uniform
from airllm.policy import RankPolicy

NAMES = ("uniform", "random", "adalora", "adalora:blind", "greedy:energy", "greedy:gain")


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Which policy decides the ranks."""

    name: str = "greedy:gain"
    """uniform, random, adalora, adalora:blind, greedy:energy, greedy:gain or fixed:<rank>"""

    def __post_init__(self) -> None:
        check_name(self.name)


def check_name(name: str) -> None:
    """Raise ValueError that names the nearest policy unless ``name`` is one."""
    kind, _, value = name.partition(":")
    if kind == "fixed":
        if not value.isdigit():
            raise ValueError(f"policy.name fixed:<rank> needs a rank >= 0, got {name!r}")
        return
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"policy.name {name!r} is not known; {hint}policies are {', '.join(NAMES)} "
            f"and fixed:<rank>"
        )


def preset_values(name: str) -> Mapping[str, Any]:
    """What a policy's name sets in its section."""
    check_name(name)
    return {}


def make_policy(
    config: PolicyConfig,
    *,
    num_projections: int,
    depths: Sequence[int],
    kinds: Sequence[str],
    r_max: int,
    seed: int,
) -> RankPolicy:
    """The policy of a run."""
    name = config.name
    if name == "uniform":
        return Uniform(depths, kinds)
    if name == "random":
        return RandomFeasible(seed)
    if name.startswith("adalora"):
        return AdaLora(is_blind=name.endswith(":blind"))
    if name == "greedy:energy":
        return Greedy("energy")
    if name == "greedy:gain":
        return Greedy("gain")
    rank = int(name.partition(":")[2])
    if rank > r_max:
        raise ValueError(f"policy.name {name!r} asks for more than training.r_max {r_max}")
    return Fixed(rank)
