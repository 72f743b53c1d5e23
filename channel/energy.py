"""What communication costs a device; what computing does is its hardware's (`edge.hardware`)."""

from __future__ import annotations

from typing import Annotated

import pydantic.dataclasses
from pydantic import Field

from channel.bounds import NUMPY, STRICT, NonNegative


@pydantic.dataclasses.dataclass(frozen=True, slots=True, config=STRICT)
class EnergyConfig:
    """Powers and the constants of the usual models."""

    receive_power_w: NonNegative = 0.5
    """drawn while receiving"""
    idle_power_w: NonNegative = 0.01
    """drawn over the rest of a round"""
    transmit_power_w: NonNegative = 0.2
    """radiated while transmitting, where no geometry says it (path.device_power_dbm)"""
    amplifier_efficiency: Annotated[float, Field(gt=0, le=1), NUMPY] = 0.35
    """radiated power over the power the amplifier draws"""
    circuit_power_w: NonNegative = 0.1
    """drawn by the rest of the transmitter"""


def receive_energy_j(config: EnergyConfig, airtime_s: float) -> float:
    """P_rx T."""
    return config.receive_power_w * airtime_s


def transmit_energy_j(config: EnergyConfig, airtime_s: float, power_w: float) -> float:
    """(p / eta + P_circ) T, of which p is radiated."""
    drawn_w = power_w / config.amplifier_efficiency + config.circuit_power_w
    return drawn_w * airtime_s


def idle_energy_j(config: EnergyConfig, time_s: float) -> float:
    """P_idle T."""
    return config.idle_power_w * time_s
