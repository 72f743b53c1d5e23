"""Every policy by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, cast

import pydantic.dataclasses

from airllm.bounds import STRICT, CountOrZero, NonNegative, Several
from airllm.lora.sensitivity import Importance
from airllm.policies.airllm import AirLlmPolicy, ProposerKind, RefinerKind
from airllm.policies.base import RankPolicy
from airllm.policies.features import Hideable
from airllm.policies.formulas import AdaLora, Fixed, Greedy, Knapsack, RandomFeasible, Uniform
from airllm.policies.forward_selection import ForwardSelection, Losses
from airllm.policies.paper import PaperPolicy
from airllm.policies.store import load_policy
from airllm.rl.ddim import DdimConfig
from airllm.rl.ppo import PpoConfig

NAMES = (
    "airllm", "paper", "uniform", "random", "adalora", "adalora:blind",
    "greedy:energy", "greedy:gain", "greedy:gain-at-start", "greedy:second-order", "greedy:fisher",
    "knapsack:energy", "knapsack:gain", "forward",
)  # fmt: skip

# arXiv 2507.11515 and the authors' public configuration.
PAPER: dict[str, Any] = {
    "ppo": {
        "hidden": 256,
        "activation": "mish",
        "learning_rate": 1e-4,
        "update_epochs": 4,
        "clip_coef": 0.2,
        "gamma": 0.95,
        "gae_lambda": 0.95,
        "ent_coef": 0.01,
        "vf_coef": 0.5,
        "num_steps": 15,
        "log_std": -1.0,  # not published
        "target_kl": 1e9,
    },
    "ddim": {
        "hidden": 512,
        "prediction": "epsilon",
        "train_steps": 1000,
        "sampling_steps": 50,
        "guidance": 1.5,
        "condition_dropout": 0.1,
        "learning_rate": 5e-5,
        "updates_per_turn": 4,
        "replay_size": 10_000,
    },
    "r_min": 1,
    # It learns while it runs.
    "is_exploring": True,
}


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class PolicyConfig:
    """Which policy decides the ranks, and the settings of a learned one."""

    name: str = "airllm"
    """airllm, paper, uniform, random, fixed:<rank>, adalora, adalora:blind,
    greedy:<importance> and knapsack:<importance> with the importance energy or gain, greedy also
    with gain-at-start, second-order and fisher; forward, which selects by the loss of the texts the
    devices are measured on, a dear reference from above; or one of your own, <module>:<class>"""
    ppo: PpoConfig = field(default_factory=PpoConfig)
    ddim: DdimConfig = field(default_factory=DdimConfig)
    r_min: CountOrZero = 1
    """smallest rank of a projection (paper alone; the others may leave projections out)"""
    priority_scale: NonNegative = 1.0
    """a priority of 1 counts a projection's utility e^this times (airllm)"""
    refine_std: NonNegative = 0.1
    """exploration in the priorities of single projections (airllm)"""
    path: str = ""
    """folder of a policy that `airllm learn` has saved, or the name of a bundled one; it brings its
    own settings (airllm)"""
    proposer: ProposerKind = "ppo"
    """'ppo' proposes 16 numbers; 'direct': one for every projection; 'none': zeros (airllm)"""
    refiner: RefinerKind = "ddim"
    """'ddim' refines them; 'mlp': a network of its size, without diffusion; 'none' (airllm)"""
    hide: Several[Hideable] = ()
    """what the networks do not see: link, complexity, loss, round, utility (airllm)"""
    is_exploring: bool = False
    """True: proposals are drawn and learned from; False: the policy's mode, nothing learned"""

    def __post_init__(self) -> None:
        if self.path and self.name != "airllm":
            raise ValueError(f"policy.path is for policy airllm alone, got it with {self.name!r}")


def is_bundled(name: str) -> bool:
    """Whether ``name`` is, or is meant to be, that of a policy that comes with the package."""
    return name in NAMES or name.partition(":")[0] in {n.partition(":")[0] for n in NAMES} | {
        "fixed"
    }


def check_name(name: str, others: Sequence[str] = ()) -> None:
    """Raise ValueError that names the nearest policy unless ``name`` is a bundled one.

    ``others`` are named beside these.
    """
    kind, _, value = name.partition(":")
    if kind == "fixed":
        if not value.isdigit():
            raise ValueError(f"policy.name fixed:<rank> needs a rank >= 0, got {name!r}")
        return
    if name not in NAMES:
        near = difflib.get_close_matches(name, (*NAMES, *others), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"policy.name {name!r} is not known; {hint}policies are "
            f"{', '.join((*NAMES, *others))} and fixed:<rank>"
        )


def preset_values(name: str) -> Mapping[str, Any]:
    """What a policy's name sets in its section."""
    check_name(name)
    return PAPER if name == "paper" else {}


def make_policy(
    config: PolicyConfig,
    *,
    num_projections: int,
    depths: Sequence[int],
    kinds: Sequence[str],
    r_max: int,
    seed: int,
    losses: Losses | None = None,
) -> RankPolicy:
    """The policy of a run; policy forward alone looks at the losses of the devices' own texts.

    Raises ValueError for a name that is none of the bundled ones'.
    """
    name = config.name
    check_name(name)
    if name == "airllm" and config.path:
        return load_policy(
            config.path, depths=depths, kinds=kinds, r_max=r_max,
            is_exploring=config.is_exploring, seed=seed,
        )  # fmt: skip
    if name == "airllm":
        return AirLlmPolicy(
            depths=depths,
            kinds=kinds,
            ppo=config.ppo,
            ddim=config.ddim,
            proposer=config.proposer,
            refiner=config.refiner,
            hide=config.hide,
            priority_scale=config.priority_scale,
            refine_std=config.refine_std,
            is_exploring=config.is_exploring,
            seed=seed,
        )
    if name == "paper":
        return PaperPolicy(
            num_projections=num_projections,
            r_min=config.r_min,
            r_max=r_max,
            ppo=config.ppo,
            ddim=config.ddim,
            is_exploring=config.is_exploring,
            seed=seed,
        )
    if name == "uniform":
        return Uniform(depths, kinds)
    if name == "forward":
        if losses is None:
            raise ValueError("policy.name 'forward' needs losses, which are not here")
        return ForwardSelection(losses)
    if name == "random":
        return RandomFeasible(seed)
    if name.startswith("adalora"):
        return AdaLora(is_blind=name.endswith(":blind"))
    if name.startswith(("greedy:", "knapsack:")):
        kind, _, importance = name.partition(":")
        return (Greedy if kind == "greedy" else Knapsack)(cast(Importance, importance))
    rank = int(name.partition(":")[2])
    if rank > r_max:
        raise ValueError(f"policy.name {name!r} asks for more than training.r_max {r_max}")
    return Fixed(rank)
