"""A wireless channel for federated experiments: links, fading, a shared cell in virtual time."""

from channel.cell import Cell
from channel.config import (
    ChannelConfig,
    EnergyConfig,
    LinkConfig,
    PathConfig,
    preset_names,
    preset_values,
)
from channel.delivery import Delivery
from channel.link import Links, LinkState, shannon_rate_bps
from channel.process import SnrModel

__all__ = [
    "Cell",
    "ChannelConfig",
    "Delivery",
    "EnergyConfig",
    "LinkConfig",
    "LinkState",
    "Links",
    "PathConfig",
    "SnrModel",
    "preset_names",
    "preset_values",
    "shannon_rate_bps",
]
