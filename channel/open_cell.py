"""A cell without rounds: transfers begin whenever they do, and SimPy decides what comes first."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import simpy

from channel.band import Band
from channel.cell import Cell, Delivery, Direction, Links
from channel.config import ChannelConfig
from channel.energy import receive_energy_j, transmit_energy_j
from channel.fading import rng_for

_ERROR_STREAM = 29


class OpenCell:
    """Two bands, down and up, on which devices come and go.

    The channel is that of a `Cell`, drawn anew every ``round_period_s``; a transfer keeps the rate
    that it began with. Raises ValueError for what would change a rate while it runs.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell, self.env = cell, simpy.Environment()
        _check(cell.config)
        is_shared = cell.config.sharing == "shared"
        self._ended: dict[tuple[Direction, int], simpy.Event] = {}
        self._bands: dict[Direction, Band] = {
            "down": Band(self.env, is_shared=is_shared, on_end=lambda d: self._end("down", d)),
            "up": Band(self.env, is_shared=is_shared, on_end=lambda d: self._end("up", d)),
        }
        self._counts: dict[int, int] = {}

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

    def transfer(
        self, device: int, bits: int, direction: Direction
    ) -> Generator[simpy.Event, Any, Delivery]:
        """A SimPy process: send a payload, or give it up after ``deadline_s``.

        A device has one transfer at a time in each direction.
        """
        config, begin_s = self.cell.config, self.now_s
        rate_bps = float(self.true_links(direction).rate_bps[device])
        band = self._bands[direction]
        ended = self._ended[direction, device] = self.env.event()
        if bits:
            band.start({device: (float(bits), rate_bps)})
            yield ended | self.env.timeout(config.deadline_s)
        is_through = not bits or ended.triggered
        sent = float(bits) if is_through else band.cancel(device)
        delay_s = self.now_s - begin_s
        air_s = sent / rate_bps if rate_bps > 0 else 0.0
        self._counts[device] = self._counts.get(device, 0) + 1
        has_error = False
        if bits and is_through and config.residual_error_rate:
            rng = rng_for(self.cell.seed, _ERROR_STREAM, device, self._counts[device])
            has_error = bool(rng.random() < config.residual_error_rate)
        energy_j = (
            transmit_energy_j(config.energy, air_s)
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

    def _end(self, direction: Direction, device: int) -> None:
        self._ended[direction, device].succeed()


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
