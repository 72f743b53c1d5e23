"""A learned policy as a folder: what it is and its networks, under one checksum, in safetensors.

``policy.json`` beside it says the same and how the policy was learned, for people to read. A name
without a folder of that name stands for a policy that ships with the package.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airllm.checkpoint import load_state, replacing, save_state
from airllm.policies.airllm import AirLlmPolicy
from airllm.rl.ddim import DdimConfig
from airllm.rl.ppo import PpoConfig

logger = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent / "learned"
_STATE = "policy.safetensors"
_FORMAT = 3
_SETTINGS = ("proposer", "refiner", "hide", "priority_scale", "refine_std")


def save_policy(
    policy: AirLlmPolicy,
    folder: Path,
    *,
    depths: Sequence[int],
    kinds: Sequence[str],
    r_max: int,
    facts: dict[str, Any],
) -> None:
    """Write the policy into ``folder``; ``r_max`` is the largest rank that it was learned at,
    ``facts`` say how it was learned."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "format": _FORMAT,
        "depths": list(depths),
        "kinds": list(kinds),
        "r_max": r_max,
        "ppo": dataclasses.asdict(policy.ppo.config),
        "ddim": dataclasses.asdict(policy.config),
        **{key: getattr(policy, key) for key in _SETTINGS},
    }
    save_state({"about": about, "networks": policy.networks()}, folder / _STATE)
    with replacing(folder / "policy.json") as part:
        part.write_text(json.dumps(about | {"learned": facts}, indent=1) + "\n", encoding="utf-8")


def load_policy(
    path: str,
    *,
    depths: Sequence[int],
    kinds: Sequence[str],
    r_max: int,
    is_exploring: bool,
    seed: int,
) -> AirLlmPolicy:
    """The policy in a folder, for a model with these projections; its settings are its own.

    One that was learned at another ``r_max`` is warned about. Raises ValueError that names the
    remedy where there is none, or one for another model.
    """
    file = find_policy(path) / _STATE
    try:
        state = load_state(file)
        about = state["about"]
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']} is not {_FORMAT}")
        ppo, ddim = PpoConfig(**about["ppo"]), DdimConfig(**about["ddim"])
        settings = {key: about[key] for key in _SETTINGS}
        known = (list(about["depths"]), [str(kind) for kind in about["kinds"]])
        if known != (list(depths), list(kinds)):
            raise _OtherModel
        policy = AirLlmPolicy(
            depths=depths, kinds=kinds, ppo=ppo, ddim=ddim, is_exploring=is_exploring, seed=seed,
            **settings,
        )  # fmt: skip
        policy.load_networks(state["networks"])
    except _OtherModel:
        raise ValueError(
            f"policy.path {path} was learned for a model with {len(known[0])} projections "
            f"({', '.join(sorted(set(known[1])))}), this one has {len(depths)} "
            f"({', '.join(sorted(set(kinds)))}); learn one for it with `airllm learn`, or set "
            f"policy.path to nothing"
        ) from None
    except Exception as error:  # torch raises a dozen kinds for weights that do not fit
        raise ValueError(
            f"policy.path {path}: {file} is damaged or of another version ({error}); learn the "
            f"policy again with `airllm learn`"
        ) from None
    if about.get("r_max", r_max) != r_max:
        logger.warning(
            "policy.path %s was learned at training.r_max %s, this run's is %s; learn one at that, "
            "or set training.r_max = %s",
            path, about["r_max"], r_max, about["r_max"],
        )  # fmt: skip
    return policy


class _OtherModel(Exception):
    pass


def find_policy(path: str) -> Path:
    """The folder of a policy, or of the bundled one of that name."""
    for folder in (Path(path), BUNDLED / path):
        if (folder / _STATE).is_file():
            return folder
    names = sorted(p.parent.name for p in BUNDLED.glob(f"*/{_STATE}"))
    raise ValueError(
        f"policy.path {path!r} holds no {_STATE}; give a folder that `airllm learn` has "
        f"written, or a bundled policy ({', '.join(names) or 'there is none'})"
    )
