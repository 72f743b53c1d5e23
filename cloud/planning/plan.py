"""What rounds and planners hand each other: links, plans, requests, and what came of them."""

from __future__ import annotations

from dataclasses import dataclass

from airllm.policies.knapsack import Ranks
from airllm.protocol import DeviceReport


@dataclass(frozen=True, slots=True)
class LinkReport:
    """The link of one device as it was reported to the cloud."""

    snr_db: float
    bandwidth_hz: float
    planned_rate_bps: float
    """rate the plan may count on, alone on the band, the margin taken off"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one round sends."""

    ranks: Ranks
    """[devices, projections]"""
    payloads: tuple[bytes, ...]
    """[devices] empty where nothing is sent"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one device's download."""

    report: DeviceReport | None
    """its answer; None when nothing reached it"""
    payload_bits: int
    rate_bps: float
    """true rate alone on the band"""


@dataclass(frozen=True, slots=True)
class UplinkRequest:
    """A device's request to send the update that it has trained."""

    report: DeviceReport
    """measured after its download"""
    utility: bytes
    """of its update's components (`airllm.protocol.pack_utility`)"""
    link: LinkReport
    """of the uplink, as it was reported"""
    ready_s: float
    """from the round's start"""


@dataclass(frozen=True, slots=True)
class Upload:
    """What came of one device's own update."""

    data: bytes | None
    """as it came up; None: it did not"""
    bits: int
    """as it was sent"""
    rate_bps: float
    """true rate of the uplink"""
    snr_db: float
    """true SNR of the uplink"""
