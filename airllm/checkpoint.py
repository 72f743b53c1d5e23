"""Nested states of tensors and numbers as safetensors files, whole or not at all; no pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_TREE = "tree"  # key of the file's metadata under which the nesting stands, as JSON


def save_state(state: Any, path: Path) -> None:
    """Write dicts, lists, tensors, numbers and strings, nested as they like, to one file.

    Raises TypeError for anything else.
    """
    tensors: dict[str, torch.Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            name = f"t{len(tensors)}"
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[key, plain(v)] for key, v in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [plain(v) for v in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"a state holds tensors, numbers and text, got {type(value).__name__}")

    tree = json.dumps(plain(state))
    part = path.with_name(f".{path.name}.part")
    try:
        save_file(tensors, part, metadata={_TREE: tree})
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_state(path: Path) -> Any:
    """What `save_state` wrote; raises ValueError that names the file if it is damaged."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            tree = json.loads((file.metadata() or {})[_TREE])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

        def restored(value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            ((kind, inner),) = value.items()
            if kind == "tensor":
                return tensors[inner]
            if kind == "list":
                return [restored(v) for v in inner]
            return {key: restored(v) for key, v in inner}

        return restored(tree)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no saved state: {error}") from None
