"""Nested states of tensors and numbers as safetensors files, whole or not at all; no pickle.

safetensors itself has no checksum. Here each tensor is named by the SHA-256 of what it is, so equal
ones are stored once, and the nesting, which refers to these names, carries a SHA-256 of its own: no
bit of a state can change unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

# The file's only metadata: the checksum of the nesting and the nesting, as JSON. safetensors would
# write several keys in an order of its own each time, and equal states would be unequal files.
_TREE = "sha256 tree"


@runtime_checkable
class Stateful(Protocol):
    """A part of a run that remembers something from round to round."""

    def state_dict(self) -> dict[str, Any]:
        """All of it, in what `save_state` can write."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        ...


def state_of(part: object) -> dict[str, Any]:
    """The state of a part, nothing for one that has none."""
    return part.state_dict() if isinstance(part, Stateful) else {}


def restore(part: object, state: dict[str, Any]) -> None:
    """Put back what `state_of` gave."""
    if isinstance(part, Stateful):
        part.load_state_dict(state)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of ``path`` at the end, whole or not at all.

    Written, synchronised, renamed, and the folder synchronised: at no moment, of a crash or of a
    power failure, is there anything but the old file or the new one.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        _synchronise(part)
        os.replace(part, path)
        _synchronise(path.parent)
    finally:
        part.unlink(missing_ok=True)


def save_state(state: Any, path: Path) -> None:
    """Write dicts, lists, tensors, arrays, bytes, numbers and text, nested as they like, to a file.

    Raises TypeError for anything else.
    """
    tensors: dict[str, torch.Tensor] = {}

    def stored(value: torch.Tensor) -> str:
        own = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        name = _name(own)
        tensors[name] = own
        return name

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {"tensor": stored(value)}
        if isinstance(value, np.ndarray):
            return {"array": stored(torch.from_numpy(value))}
        if isinstance(value, bytes):
            octets = np.frombuffer(value, dtype=np.uint8).copy()
            return {"bytes": stored(torch.from_numpy(octets))}
        if isinstance(value, dict):
            return {"dict": [[key, plain(v)] for key, v in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [plain(v) for v in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"a state holds tensors, numbers and text, got {type(value).__name__}")

    tree = json.dumps(plain(state))
    with replacing(path) as part:
        try:
            save_file(tensors, part, metadata={_TREE: f"{_sum(tree)} {tree}"})
        except SafetensorError as error:  # a full disk, in words of its own
            raise OSError(f"{path}: {error}") from None


def load_state(path: Path) -> Any:
    """What `save_state` wrote, to the bit; raises ValueError that names the file if it is not."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            checksum, _, tree = (file.metadata() or {})[_TREE].partition(" ")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if checksum != _sum(tree):
            raise ValueError("its checksum does not match")
        for name, tensor in tensors.items():
            if name != _name(tensor):
                raise ValueError("the checksum of a tensor does not match")

        def restored(value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            ((kind, inner),) = value.items()
            if kind == "tensor":
                return tensors[inner].clone()
            if kind == "array":
                return tensors[inner].clone().numpy()
            if kind == "bytes":
                return tensors[inner].numpy().tobytes()
            if kind == "list":
                return [restored(v) for v in inner]
            return {key: restored(v) for key, v in inner}

        return restored(json.loads(tree))
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is damaged or no saved state: {error}") from None


def _name(tensor: torch.Tensor) -> str:
    """SHA-256 over type, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _synchronise(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
