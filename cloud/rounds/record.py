"""What a round, synchronous or asynchronous, leaves for the records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.policies.knapsack import Ranks
from airllm.protocol import DeviceReport
from channel.delivery import Delivery
from channel.link import Links

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Transfers:
    """What one direction of a round was, added up in place; arrays are [devices]."""

    ranks: Ranks
    """[devices, projections] of the last plan"""
    planned_bits: Array
    """what plans allowed each device: planned rate times its share of the deadline"""
    payload_bits: NDArray[np.int64]
    sent_bits: Array
    delivered_bits: NDArray[np.int64]
    delay_s: Array
    energy_j: Array
    """drawn by the devices for it"""
    is_delivered: NDArray[np.bool_]
    """arrived in time, intact, and in use; False too where nothing was sent"""

    @staticmethod
    def none(devices: int, projections: int) -> Transfers:
        """Nothing yet."""
        return Transfers(
            ranks=np.zeros((devices, projections), dtype=np.int64),
            planned_bits=np.zeros(devices),
            payload_bits=np.zeros(devices, dtype=np.int64),
            sent_bits=np.zeros(devices),
            delivered_bits=np.zeros(devices, dtype=np.int64),
            delay_s=np.zeros(devices),
            energy_j=np.zeros(devices),
            is_delivered=np.zeros(devices, dtype=bool),
        )

    def plan(self, device: int, ranks: NDArray[np.int64], planned_bits: float) -> None:
        """Note what a device's plan says."""
        self.ranks[device] = ranks
        self.planned_bits[device] += planned_bits

    def add(self, delivery: Delivery) -> None:
        """Note what the air did to a payload."""
        d = delivery.device
        self.payload_bits[d] += delivery.bits
        self.sent_bits[d] += delivery.sent_bits
        self.delivered_bits[d] += delivery.delivered_bits
        self.delay_s[d] += delivery.delay_s
        self.energy_j[d] += delivery.energy_j

    def unconfirmed(self, delivery: Delivery) -> None:
        """What nobody confirms has not arrived."""
        self.delivered_bits[delivery.device] -= delivery.delivered_bits


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """A round so far, or what happened since the last merge; added up in place."""

    begin_s: float
    """virtual time"""
    before: list[DeviceReport]
    """[devices] what each had said of itself by then"""
    down: Transfers
    up: Transfers
    """the devices' own updates (federated mode)"""
    overhead_bits: NDArray[np.int64]
    """[devices] of the uplink: reports, requests and acknowledgements"""
    compute_s: Array
    """[devices] virtual time that training took"""
    compute_j: Array
    """[devices] energy that it took"""
    is_answered: NDArray[np.bool_]
    """[devices] its node answered in wall-clock time to all that reached it; False only in a
    deployment"""

    @staticmethod
    def begin(begin_s: float, before: list[DeviceReport], projections: int) -> RoundRecord:
        """An empty one."""
        n = len(before)
        return RoundRecord(
            begin_s, before, Transfers.none(n, projections), Transfers.none(n, projections),
            np.zeros(n, dtype=np.int64), np.zeros(n), np.zeros(n), np.ones(n, dtype=bool),
        )  # fmt: skip

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> RoundRecord:
        """The inverse of `dataclasses.asdict`."""
        before = [DeviceReport(**report) for report in state["before"]]
        transfers = {key: Transfers(**state[key]) for key in ("down", "up")}
        return RoundRecord(**{**state, "before": before, **transfers})


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one round was; lists and arrays are [devices]."""

    round_index: int
    links: Links
    """as they truly were"""
    record: RoundRecord
    after: list[DeviceReport]
    """what each device says of itself at its end"""
    energy_j: Array
    """drawn over the round: transfers, training, idling"""
    round_s: float
    """virtual time until the round was over"""
    reward: Array
