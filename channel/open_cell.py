"""A cell without rounds: transfers begin whenever they do, and SimPy decides what comes first."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import simpy

from channel.band import Band
from channel.cell import Cell
from channel.config import ChannelConfig
from channel.delivery import Delivery, Direction
from channel.energy import receive_energy_j, transmit_energy_j
from channel.link import Links
from channel.streams import rng_for
from channel.timeline import Timeline

_ERROR_STREAM = 29


@dataclass(frozen=True, slots=True)
class Transfer:
    """A payload on its way."""

    device: int
    bits: int
    direction: Direction
    begin_s: float
    rate_bps: float


class OpenCell:
    """Two bands, down and up, on which devices come and go.

    The channel is that of a `Cell`, drawn anew every ``round_period_s``; a transfer keeps the rate
    that it began with. Raises ValueError for what would change a rate while it runs.
    """

    def __init__(self, cell: Cell) -> None:
        _check(cell.config)
        self.cell = cell
        self._counts: dict[int, int] = {}
        self._open(0.0)

    def _open(self, now_s: float) -> None:
        self.env = Timeline(now_s)
        self._ended: dict[tuple[Direction, int], simpy.Event] = {}
        self.bands: dict[Direction, Band] = {
            "down": self._band("down"),
            "up": self._band("up"),
        }

    def _band(self, direction: Direction) -> Band:
        return Band(
            self.env,
            is_shared=self.cell.config.sharing == "shared",
            on_end=lambda device: self._end(direction, device),
        )

    def _end(self, direction: Direction, device: int) -> None:
        self._ended[direction, device].succeed()

    @property
    def now_s(self) -> float:
        """Virtual time in seconds."""
        return float(self.env.now)

    def true_links(self, direction: Direction) -> Links:
        """The links as they are now."""
        self._begin_block()
        return self.cell.true_links(direction)

    def reported_links(self, direction: Direction) -> Links:
        """The links as they were estimated at the beginning of the present block."""
        self._begin_block()
        return self.cell.reported_links(direction)

    def begin(self, device: int, bits: int, direction: Direction) -> Transfer:
        """Put a payload on its way; a device has one at a time in each direction."""
        rate_bps = float(self.true_links(direction).rate_bps[device])
        if bits:
            self.bands[direction].start({device: (float(bits), rate_bps)})
        return Transfer(device, bits, direction, self.now_s, rate_bps)

    def carry(self, transfer: Transfer) -> Generator[simpy.Event, Any, Delivery]:
        """A SimPy process: until it is through, or given up after ``deadline_s``."""
        config, device, direction = self.cell.config, transfer.device, transfer.direction
        bits, rate_bps, band = transfer.bits, transfer.rate_bps, self.bands[direction]
        ended = self._ended[direction, device] = self.env.event()
        if bits:
            yield ended | self.env.until(transfer.begin_s + config.deadline_s)
        is_through = not bits or ended.triggered
        sent = float(bits) if is_through else band.cancel(device)
        delay_s = self.now_s - transfer.begin_s
        air_s = sent / rate_bps if rate_bps > 0 else 0.0
        self._counts[device] = self._counts.get(device, 0) + 1
        has_error = False
        if bits and is_through and config.residual_error_rate:
            rng = rng_for(self.cell.seed, _ERROR_STREAM, device, self._counts[device])
            has_error = bool(rng.random() < config.residual_error_rate)
        energy_j = (
            transmit_energy_j(config.energy, air_s, self.cell.transmit_power_w)
            if direction == "up"
            else receive_energy_j(config.energy, delay_s)
        )
        return Delivery(
            device=device, bits=bits, sent_bits=sent, delivered_bits=bits if is_through else 0,
            delay_s=delay_s, air_s=air_s, energy_j=energy_j, is_delivered=is_through,
            has_bit_error=has_error,
        )  # fmt: skip

    def _begin_block(self) -> None:
        # A hair is added, or a block's own start would fall into the one before.
        block = int(self.now_s / self.cell.config.round_period_s + 1e-9)
        if block > self.cell.round_index:
            self.cell.begin_round(block)

    def state_dict(self) -> dict[str, Any]:
        """What is on its way, for `load_state_dict`; the `Cell` below has a state of its own."""
        bands = {direction: band.state_dict() for direction, band in self.bands.items()}
        return {"now_s": self.now_s, "counts": dict(self._counts), "bands": bands}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, once its transfers are carried again and its bands
        restarted, in the order of their waits."""
        self._open(float(state["now_s"]))
        self._counts = dict(state["counts"])
        for direction, band in self.bands.items():
            band.load_state_dict(state["bands"][direction])


def _check(config: ChannelConfig) -> None:
    for key, value, wanted in (
        ("fading", config.fading != "clarke", "any but 'clarke'"),
        ("scheduler", config.scheduler == "equal" or config.sharing != "shared", "'equal'"),
        ("away_per_s", config.away_per_s == 0, "0"),
        ("link.burst_start", config.link.burst_start == 0, "0"),
        ("link.is_reliable", config.link.is_reliable, "true"),
    ):
        if not value:
            raise ValueError(
                f"asynchronous rounds need channel.{key} {wanted}: a transfer's rate must not "
                f"change while it runs; change it, or set federated.buffer = 0"
            )
