"""What asynchronous rounds keep between two events, each with a state of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter
from airllm.lora.sensitivity import Importance
from channel.open_cell import Transfer


@dataclass(slots=True)
class Buffer:
    """Updates that have come in and are not merged yet."""

    devices: list[int] = field(default_factory=list)
    updates: list[Adapter] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """number of merges that each one started from"""

    def state_dict(self) -> dict[str, Any]:
        updates = [update.state_dict() for update in self.updates]
        return {"devices": self.devices, "updates": updates, "versions": self.versions}

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> Buffer:
        updates = [Adapter.of_state(update) for update in state["updates"]]
        return Buffer(list(state["devices"]), updates, list(state["versions"]))


@dataclass(slots=True)
class ClientCycle:
    """A device's download, training and upload under way: all that going on with it takes."""

    device: int
    version: int
    """merges before it set out"""
    stage: str = "begin"
    """begin, download, train, upload; rest where nothing was sent"""
    wait: int = 0
    """number of the wait that it is in"""
    until_s: float = 0.0
    """end of training or rest"""
    transfer: Transfer | None = None
    """under way"""
    data: bytes = b""
    """that is carried, whole"""
    ranks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[projections] of the data"""
    planned_bits: float = 0.0
    training_ranks: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """[projections]"""
    importance: Importance = "energy"
    has_update: bool = False
    """came down"""
    compute_s: float = 0.0
    compute_j: float = 0.0
    utility: bytes = b""

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> ClientCycle:
        transfer = Transfer(**state["transfer"]) if state["transfer"] else None
        return ClientCycle(**{**state, "transfer": transfer})
