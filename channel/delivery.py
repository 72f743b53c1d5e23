"""What became of a transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["down", "up"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the air did to one payload."""

    device: int
    bits: int
    """of the payload"""
    sent_bits: float
    """of them, carried before the deadline"""
    delivered_bits: int
    """all of them or none"""
    delay_s: float
    """from the start of the transfer until the last bit, or the deadline"""
    air_s: float
    """time on the air, the shares of others taken off"""
    energy_j: float
    """drawn by the device for it: listening until the last bit, or transmitting"""
    is_delivered: bool
    has_bit_error: bool
    """arrived, with an error that the link did not notice"""
