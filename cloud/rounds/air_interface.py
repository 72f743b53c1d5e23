"""What the air does to one synchronous round: who is heard, what comes down, what comes up."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from channel.cell import Cell
from channel.delivery import Delivery, Direction
from channel.energy import transmit_energy_j
from channel.units import db_to_linear
from cloud.clients.participation import Dropout
from cloud.planning.plan import LinkReport

logger = logging.getLogger(__name__)


class AirInterface:
    """One round on the cell, from its begin on.

    Updates go down at once, on what devices have of the band. A device's own update crosses the
    uplink as soon as it is ready: its download is through, and the time that it took to compute is
    over. Reports and grants are control traffic, counted but not timed.
    """

    def __init__(
        self,
        cell: Cell,
        *,
        dropouts: Mapping[int, Dropout],
        round_deadline_s: float | None = None,
        superposition_threshold_db: float | None = None,
    ) -> None:
        """The cell's round has begun. ``dropouts`` says by device who falls silent, and when.
        ``round_deadline_s`` is from the round's start; what is not up by then is lost (None: all
        are waited for). With ``superposition_threshold_db`` updates come up all at once, as analog
        symbols, from those whose SNR is above it."""
        self.cell, self.dropouts = cell, dropouts
        self.round_deadline_s = round_deadline_s
        self._threshold_db = superposition_threshold_db
        self.start_s = cell.now_s
        """of the round, in virtual time"""
        self.downloads = cell.transfer(dict.fromkeys(range(cell.num_devices), 0))
        """what the air did to each device's download, nothing where none was sent"""
        self.uploads: dict[int, Delivery] = {}
        """the same of the updates that devices sent"""
        self.ready_s: dict[int, float] = {}
        """from the round's start until a device had its own update"""
        self.superposed_snr_db: NDArray[np.float64] | None = None
        """[devices] of the uplinks when symbols came up all at once, if they did"""

    def stage(self, device: int) -> str:
        """When a device drops out (`cloud.clients.participation.STAGES`); empty: it does not."""
        return self.dropouts[device].stage if device in self.dropouts else ""

    def reported_links(
        self, direction: Direction, devices: Collection[int]
    ) -> dict[int, LinkReport]:
        """By device, the link as it is reported: of the round's start, or for an upload of when it
        is ready."""
        every = range(self.cell.num_devices)
        ready_s = np.array([self.ready_s.get(d, 0.0) if direction == "up" else 0.0 for d in every])
        if self.round_deadline_s is not None:
            ready_s = np.minimum(ready_s, self.round_deadline_s)  # who is later sends nothing
        links = self.cell.reported_links(direction, ready_s)
        planned_bps = self.cell.planned_rate_bps(links)
        return {
            d: LinkReport(links[d].snr_db, links[d].bandwidth_hz, float(planned_bps[d]))
            for d in devices
        }

    def carry_down(self, payloads: Mapping[int, bytes]) -> dict[int, bytes]:
        """By device, what arrives of the payloads; what is late never reaches its device."""
        self.downloads |= (sent := self._transfer(payloads, "down"))
        return _arrived(payloads, sent, "down")

    def computed(self, device: int, compute_s: float) -> None:
        """A device has trained, for so long after its download."""
        self.ready_s[device] = self.downloads[device].delay_s + compute_s

    def carry_up(
        self, payloads: Mapping[int, bytes], symbols: Mapping[int, int]
    ) -> dict[int, bytes]:
        """By device, what arrives of all updates of a round; ``symbols`` are the numbers in each,
        for analog transmission."""
        if self._threshold_db is None:
            self.uploads |= self._transfer(payloads, "up")
        else:
            self.uploads |= self._superpose({d: symbols[d] for d in payloads})
        return _arrived(payloads, self.uploads, "up")

    def round_s(self) -> float:
        """How long the round took: until the last transfer ended, or was given up."""
        ends = [d.delay_s for d in self.downloads.values()]
        ends += list(self.ready_s.values())
        ends += [self.ready_s[d] + up.delay_s for d, up in self.uploads.items()]
        longest = max(ends, default=0.0)
        if self.round_deadline_s is not None:
            longest = min(longest, self.round_deadline_s)
        return longest

    def _uplink_end_s(self) -> float:
        """From the round's start until uplinks are given up."""
        last = max(self.ready_s.values(), default=0.0) + self.cell.config.deadline_s
        return last if self.round_deadline_s is None else min(last, self.round_deadline_s)

    def _transfer(self, payloads: Mapping[int, bytes], direction: Direction) -> dict[int, Delivery]:
        """Through the cell; a device that drops out meanwhile has had a part on the air."""
        if not payloads:
            return {}
        bits = {device: 8 * len(data) for device, data in payloads.items()}
        stage = "download" if direction == "down" else "upload"
        shares = {d: share_on_air(stage, self.dropouts.get(d)) for d in bits}
        on_air = {d: int(n * shares[d]) if shares[d] < 1.0 else n for d, n in bits.items()}
        if direction == "down":
            sent = self.cell.transfer(on_air)
        else:
            sent = self.cell.transfer(
                on_air,
                direction="up",
                start_s={d: self.ready_s.get(d, 0.0) for d in bits},
                begin_s=self.start_s,
                deadline_s=self._uplink_end_s(),
            )
        return {
            d: delivery if shares[d] == 1.0 else cut_short(delivery, bits[d])
            for d, delivery in sent.items()
        }

    def _superpose(self, symbols: Mapping[int, int]) -> dict[int, Delivery]:
        """All at once, as soon as the last is ready: two real symbols a channel use.

        Bits are no measure here: what counts as bits is the number of symbols. A device whose SNR
        is too low to invert its channel is silent, and so is one that drops out. Who is heard
        arrives with the SNR of the threshold, and radiates only as much as that takes.
        """
        config = self.cell.config
        air_s = max(symbols.values(), default=0) / (2.0 * config.bandwidth_hz)
        start_s = max((self.ready_s.get(d, 0.0) for d in symbols), default=0.0)
        snr_db = self.cell.true_links("up", self.start_s + start_s).snr_db
        self.superposed_snr_db = snr_db
        is_in_time = start_s + air_s <= self._uplink_end_s()
        threshold_db, found = float(self._threshold_db or 0.0), {}
        for d, count in symbols.items():
            is_heard = bool(is_in_time and snr_db[d] >= threshold_db)
            is_heard = is_heard and self.stage(d) != "upload"
            sent_s, waited_s = air_s * is_heard, start_s - self.ready_s.get(d, 0.0)
            surplus = float(db_to_linear(snr_db[d] - threshold_db))
            power_w = self.cell.transmit_power_w / max(surplus, 1.0)
            found[d] = Delivery(
                device=d, bits=count, sent_bits=float(count * is_heard),
                delivered_bits=count * is_heard, delay_s=waited_s + sent_s,
                air_s=sent_s, energy_j=transmit_energy_j(config.energy, sent_s, power_w),
                is_delivered=is_heard, has_bit_error=False,
            )  # fmt: skip
        return found


def share_on_air(stage: str, dropout: Dropout | None) -> float:
    """Of a payload, what is sent before its device drops out in this stage; 1: all."""
    return dropout.share if dropout is not None and dropout.stage == stage else 1.0


def cut_short(delivery: Delivery, bits: int) -> Delivery:
    """A transfer whose device dropped out: of so many bits, none counts."""
    return replace(delivery, bits=bits, delivered_bits=0, is_delivered=False)


def received(payload: bytes, delivery: Delivery) -> bytes:
    """A payload as it arrives: with an error in it where the link let one through."""
    if not delivery.has_bit_error:
        return payload
    data = bytearray(payload)
    # Any bit will do: the checksum covers them all.
    data[len(data) // 2] ^= 1
    return bytes(data)


def _arrived(
    payloads: Mapping[int, bytes], deliveries: Mapping[int, Delivery], direction: Direction
) -> dict[int, bytes]:
    arrived = {}
    for device, data in payloads.items():
        delivery = deliveries[device]
        if delivery.is_delivered:
            arrived[device] = received(data, delivery)
        else:
            logger.info(
                "%s: device %d missed its deadline: %.0f of %d bits after %g s",
                direction, device, delivery.sent_bits, delivery.bits, delivery.delay_s,
            )  # fmt: skip
    return arrived
