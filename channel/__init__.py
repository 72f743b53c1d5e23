"""A wireless channel for federated experiments: fading, links, a shared cell in virtual time."""

from channel.cell import Cell, Delivery, Links
from channel.config import PRESETS, ChannelConfig, preset_values
from channel.link import LinkState, shannon_rate_bps

__all__ = [
    "PRESETS",
    "Cell",
    "ChannelConfig",
    "Delivery",
    "LinkState",
    "Links",
    "preset_values",
    "shannon_rate_bps",
]
