"""What asynchronous rounds keep between two events, each with a state of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.lora.adapter import Adapter
from airllm.report import DeviceReport
from channel.delivery import Delivery
from channel.open_cell import Transfer
from cloud.rounds.synchronous import Transfers


@dataclass(frozen=True, slots=True)
class Books(Transfers):
    """What happened in one direction since the last merge, added up in place; arrays [devices]."""

    energy_j: NDArray[np.float64]

    @staticmethod
    def empty(devices: int, projections: int) -> Books:
        zeros = [np.zeros(devices) for _ in range(4)]
        whole = [np.zeros(devices, dtype=np.int64) for _ in range(2)]
        return Books(
            np.zeros((devices, projections), dtype=np.int64), zeros[0], whole[0], zeros[1],
            whole[1], zeros[2], np.zeros(devices, dtype=bool), zeros[3],
        )  # fmt: skip

    def add(self, delivery: Delivery, ranks: NDArray[np.int64], planned_bits: float) -> None:
        d = delivery.device
        self.ranks[d] = ranks
        self.planned_bits[d] += planned_bits
        self.payload_bits[d] += delivery.bits
        self.sent_bits[d] += delivery.sent_bits
        self.delivered_bits[d] += delivery.delivered_bits
        self.delay_s[d] += delivery.delay_s
        self.energy_j[d] += delivery.energy_j


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
class SinceMerge:
    """What happened since the last merge; arrays [devices]."""

    merged_at_s: float
    before: list[DeviceReport]
    """what each device had said of itself by then"""
    down: Books
    up: Books
    overhead_bits: NDArray[np.int64]
    compute: NDArray[np.float64]
    """[devices, 2] time in s and energy in J"""
    is_answered: NDArray[np.bool_]

    @staticmethod
    def begin(now_s: float, before: list[DeviceReport], projections: int) -> SinceMerge:
        n = len(before)
        return SinceMerge(
            now_s, before, Books.empty(n, projections), Books.empty(n, projections),
            np.zeros(n, dtype=np.int64), np.zeros((n, 2)), np.ones(n, dtype=bool),
        )  # fmt: skip

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> SinceMerge:
        before = [DeviceReport(**report) for report in state["before"]]
        books = {key: Books(**state[key]) for key in ("down", "up")}
        return SinceMerge(**{**state, "before": before, **books})


@dataclass(slots=True)
class Trip:
    """A device on its way: all that going on with it takes."""

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
    work: bytes = b""
    """ranks to train"""
    importance: str = ""
    has_update: bool = False
    """came down"""
    compute: tuple[float, float] = (0.0, 0.0)
    """of training, in s and J"""
    worth: bytes = b""

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> Trip:
        transfer = Transfer(**state["transfer"]) if state["transfer"] else None
        return Trip(**{**state, "transfer": transfer, "compute": tuple(state["compute"])})
