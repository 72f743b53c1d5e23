"""What a channel is made of, and presets by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FADINGS = ("none", "rayleigh", "rician", "clarke")
SHARINGS = ("shared", "orthogonal")

PRESETS: dict[str, dict[str, Any]] = {
    # Eight sensors on one narrow carrier: less than one rank everywhere fits into a round.
    "shared-cell": {},
    # arXiv 2507.11515: 100 MHz for each device, SNR drawn from a list at every step, Shannon
    # rate, one second of latency, perfect knowledge of the channel.
    "paper": {
        "sharing": "orthogonal",
        "bandwidth_hz": 100e6,
        "snr_db": None,
        "fading": "none",
        "csi_error_db": 0.0,
        "csi_quantisation_db": 0.0,
        "csi_margin_db": 0.0,
    },
    # The shared cell without its scarcity: whole updates fit.
    "wide-band": {"bandwidth_hz": 20e6},
}


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """The downlink from the cloud to its devices."""

    preset: str = "shared-cell"
    """where the other values come from unless they are given: shared-cell, paper or wide-band"""
    sharing: str = "shared"
    """'shared': one band, equal shares among those still receiving; 'orthogonal': a band each"""
    bandwidth_hz: float = 1e6
    """of the shared band, or of each device's own"""
    snr_db: float | None = 5.0
    """mean SNR over the band; none: drawn for each device and round from snr_choices_db"""
    snr_choices_db: tuple[float, ...] = (-5.0, 0.0, 5.0, 10.0, 15.0)
    """what snr_db = none draws from, each with the same probability"""
    snr_spread_db: float = 0.0
    """standard deviation of a fixed offset of each device from the mean SNR"""
    fading: str = "rayleigh"
    """'none', 'rayleigh' or 'rician' (one draw a round), 'clarke' (in time, with Doppler)"""
    rician_k_db: float = 7.0
    """power of the direct path over the scattered ones"""
    doppler_hz: float = 5.0
    """largest Doppler shift, v fc / c (clarke)"""
    coherence_s: float = 0.01
    """time over which the channel counts as constant within a transfer (clarke)"""
    deadline_s: float = 1.0
    """air time of a round; what is not through by then is lost"""
    round_period_s: float = 1.0
    """virtual time from one round's start to the next one's"""
    snr_gap_db: float = 0.0
    """loss of real modulation and coding against Shannon"""
    csi_error_db: float = 0.5
    """standard deviation of the error in the reported SNR"""
    csi_quantisation_db: float = 1.0
    """step of the reported SNR; 0: none"""
    csi_margin_db: float = 1.0
    """taken off the reported SNR when a rate is planned"""
    report_bits: int = 64
    """uplink bits of a device's report, counted as overhead"""
    ack_bits: int = 8
    """uplink bits of an acknowledgement, counted as overhead"""
    residual_error_rate: float = 0.0
    """probability that a payload arrives with a wrong bit that the link did not notice"""
    receive_power_w: float = 0.5
    """drawn by a device while it receives"""
    idle_power_w: float = 0.01
    """drawn by a device over the rest of the round"""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(_unknown_preset(self.preset))
        _one_of("sharing", self.sharing, SHARINGS)
        _one_of("fading", self.fading, FADINGS)
        for key in ("bandwidth_hz", "deadline_s", "round_period_s", "coherence_s"):
            _check(key, getattr(self, key), getattr(self, key) > 0, "> 0")
        for key in (
            "snr_spread_db", "doppler_hz", "snr_gap_db", "csi_error_db", "csi_quantisation_db",
            "report_bits", "ack_bits", "receive_power_w", "idle_power_w",
        ):  # fmt: skip
            _check(key, getattr(self, key), getattr(self, key) >= 0, ">= 0")
        for key in ("csi_margin_db", "rician_k_db"):
            _check(key, getattr(self, key), True, "finite")
        rate = self.residual_error_rate
        _check("residual_error_rate", rate, 0.0 <= rate <= 1.0, "in [0, 1]")
        if self.deadline_s > self.round_period_s:
            raise ValueError(
                f"channel.deadline_s {self.deadline_s} must not exceed channel.round_period_s "
                f"{self.round_period_s}: the next round starts then"
            )
        if self.snr_db is not None:
            _check("snr_db", self.snr_db, True, "finite")
        elif not self.snr_choices_db:
            raise ValueError(
                "channel.snr_choices_db must not be empty while channel.snr_db is none; "
                "give an SNR or a list of them"
            )
        for value in self.snr_choices_db:
            _check("snr_choices_db", value, True, "finite")

    @staticmethod
    def from_preset(name: str, **overrides: Any) -> ChannelConfig:
        """A preset's values, with some of them replaced."""
        return ChannelConfig(preset=name, **{**preset_values(name), **overrides})


def preset_values(name: str) -> Mapping[str, Any]:
    """What a preset sets; raises ValueError that names the nearest preset."""
    if name not in PRESETS:
        raise ValueError(_unknown_preset(name))
    return PRESETS[name]


def _unknown_preset(name: str) -> str:
    near = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"channel.preset {name!r} is not known; {hint}presets are {', '.join(PRESETS)}"


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"channel.{key} must be one of {', '.join(allowed)}, got {value!r}")


def _check(key: str, value: float, is_valid: bool, bound: str) -> None:
    if not (is_valid and math.isfinite(value)):
        raise ValueError(f"channel.{key} must be {bound}, got {value}")
