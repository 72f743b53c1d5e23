"""A learned policy as a folder: ``policy.json`` says what it is, the networks are in safetensors.

A name without a folder of that name stands for a policy that ships with the package.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airllm.airllm_policy import AirLlmPolicy
from airllm.checkpoint import load_state, save_state
from airllm.ddim import DdimConfig
from airllm.ppo import PpoConfig

BUNDLED = Path(__file__).parent / "learned"
_FORMAT = 1
_SETTINGS = ("proposer", "refiner", "hide", "priority_scale", "refine_std")


def save_policy(
    policy: AirLlmPolicy,
    folder: Path,
    *,
    depths: Sequence[int],
    kinds: Sequence[str],
    facts: dict[str, Any],
) -> None:
    """Write the policy into ``folder``; ``facts`` say how it was learned."""
    folder.mkdir(parents=True, exist_ok=True)
    save_state(policy.networks(), folder / "policy.safetensors")
    about = {
        "format": _FORMAT,
        "depths": list(depths),
        "kinds": list(kinds),
        "ppo": dataclasses.asdict(policy.ppo.config),
        "ddim": dataclasses.asdict(policy.config),
        **{key: getattr(policy, key) for key in _SETTINGS},
        "learned": facts,
    }
    part = folder / ".policy.json.part"
    part.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / "policy.json")


def load_policy(
    path: str, *, depths: Sequence[int], kinds: Sequence[str], is_exploring: bool, seed: int
) -> AirLlmPolicy:
    """The policy in a folder, for a model with these projections; its settings are its own.

    Raises ValueError that names the remedy where there is none, or one for another model.
    """
    folder = find_policy(path)
    try:
        about = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
        if about["format"] != _FORMAT:
            raise ValueError(f"format {about['format']} is not {_FORMAT}")
        ppo, ddim = PpoConfig(**about["ppo"]), DdimConfig(**about["ddim"])
        settings = {key: about[key] for key in _SETTINGS}
        known = (list(about["depths"]), list(about["kinds"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"policy.path {path}: {folder / 'policy.json'} is damaged or of another version "
            f"({error}); learn the policy again with `airllm learn`"
        ) from None
    if known != (list(depths), list(kinds)):
        raise ValueError(
            f"policy.path {path} was learned for a model with {len(known[0])} projections "
            f"({', '.join(sorted(set(known[1])))}), this one has {len(depths)} "
            f"({', '.join(sorted(set(kinds)))}); learn one for it with `airllm learn`, or set "
            f"policy.path to nothing"
        )
    policy = AirLlmPolicy(
        depths=depths, kinds=kinds, ppo=ppo, ddim=ddim, is_exploring=is_exploring, seed=seed,
        **settings,
    )  # fmt: skip
    try:
        policy.load_networks(load_state(folder / "policy.safetensors"))
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"policy.path {path}: {error}") from None
    return policy


def find_policy(path: str) -> Path:
    """The folder of a policy, or of the bundled one of that name."""
    for folder in (Path(path), BUNDLED / path):
        if (folder / "policy.json").is_file():
            return folder
    names = sorted(p.parent.name for p in BUNDLED.glob("*/policy.json"))
    raise ValueError(
        f"policy.path {path!r} holds no policy.json; give a folder that `airllm learn` has "
        f"written, or a bundled policy ({', '.join(names) or 'there is none'})"
    )
