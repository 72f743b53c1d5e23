"""How payloads cross the air in one window of time, and what becomes of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from channel.band import Band
from channel.config import ChannelConfig
from channel.csi import Csi
from channel.delivery import Delivery, Direction
from channel.energy import receive_energy_j, transmit_energy_j
from channel.errors import GilbertElliott
from channel.presence import Presence
from channel.process import LinkProcess
from channel.slots import run_slots
from channel.streams import rng_for
from channel.timeline import Timeline
from channel.transmission import goodput_bps

Array = NDArray[np.float64]

# Keys of the random streams of this file.
_ERROR_STREAM, _BURST_STREAM, _LOSS_STREAM = 23, 27, 28


@dataclass(frozen=True, slots=True)
class RoundTime:
    """A round of the cell."""

    index: int
    start_s: float
    """virtual time"""


class TransferModel:
    """Rates, sharing, losses and energy of transfers within a round.

    Where nothing changes within the round they are events on a `Band`; else they are stepped in
    slots of ``coherence_s``.
    """

    def __init__(
        self,
        config: ChannelConfig,
        process: LinkProcess,
        csi: Csi,
        num_devices: int,
        *,
        transmit_power_w: float,
        seed: int,
    ) -> None:
        self.config, self.num_devices, self.seed = config, num_devices, seed
        self._process, self._csi, self._transmit_power_w = process, csi, transmit_power_w
        self._presence = [
            Presence(config.away_per_s, config.away_mean_s, seed=seed, device=d)
            for d in range(num_devices)
            if config.away_per_s > 0
        ]
        self._bursts: list[list[bool]] = [[] for _ in range(num_devices)]
        self._chains = [
            GilbertElliott(
                config.link.burst_start, config.link.burst_end, rng=rng_for(seed, _BURST_STREAM, d)
            )
            for d in range(num_devices)
            if config.link.burst_start > 0
        ]

    def send(
        self,
        env: Timeline,
        at: RoundTime,
        bits: Mapping[int, int],
        offsets: Mapping[int, float],
        direction: Direction,
        *,
        worst_of: NDArray[np.int64] | None,
        deadline_s: float | None = None,
    ) -> dict[int, Delivery]:
        """Deliveries by device; the time of ``env`` goes on to the deadline, or in slots to the end
        of the last transfer. ``offsets`` are from now in s; with ``worst_of`` [devices] all
        payloads are one, at the pace of the worst of these."""
        config, begin_s = self.config, float(env.now)
        window_s = config.deadline_s if deadline_s is None else deadline_s
        deadline_s = begin_s + window_s
        size = np.zeros(self.num_devices)
        size[list(bits)] = list(bits.values())
        ready_s = np.full(self.num_devices, begin_s)  # of who sends nothing, nobody asks
        ready_s[list(offsets)] += list(offsets.values())
        is_bad = self._in_burst(at.index)
        is_shared = config.sharing == "shared" and worst_of is None
        is_simple = self._process.is_constant and not self._presence
        if is_simple and (config.scheduler == "equal" or not is_shared):
            rates, hazard = self.goodput_bps(
                at, self._process.snr_db(at.index, begin_s, direction, at.start_s),
                direction, worst_of, after_s=ready_s - at.start_s,
            )  # fmt: skip
            rates = np.where(is_bad, 0.0, rates)
            end_s, sent = self._run_band(env, size, bits, offsets, rates, deadline_s, is_shared)
            with np.errstate(divide="ignore", invalid="ignore"):
                air_s = np.where(rates > 0, sent / rates, 0.0)
                hazard = np.where(sent > 0, sent * hazard, 0.0)
        else:
            result = run_slots(
                env, size,
                lambda time_s: self._slots(at, ready_s, time_s, direction, is_bad, worst_of),
                start_s=ready_s, slot_s=config.coherence_s, deadline_s=deadline_s,
                scheduler=config.scheduler, is_shared=is_shared,
            )  # fmt: skip
            sent, end_s, air_s = result.sent_bits, result.end_s, result.air_s
            hazard = result.hazard
        return {
            d: self._delivery(
                at, d, bits[d], begin_s, offsets[d], float(end_s[d]), float(sent[d]),
                float(air_s[d]), float(hazard[d]), direction, window_s,
            )
            for d in sorted(bits)
        }  # fmt: skip

    def _run_band(
        self,
        env: Timeline,
        size: Array,
        bits: Mapping[int, int],
        offsets: Mapping[int, float],
        rates: Array,
        deadline_s: float,
        is_shared: bool,
    ) -> tuple[Array, Array]:
        """(end times, bits sent) [devices] where rates are constant: events, not slots."""
        begin_s = float(env.now)
        band = Band(env, is_shared=is_shared)
        waiting = sorted((offsets[d], d) for d in bits if bits[d])
        for offset in sorted({offset for offset, _ in waiting}):
            if begin_s + offset >= deadline_s:
                break
            if begin_s + offset > env.now:
                env.run(until=begin_s + offset)
            now = {d: (float(size[d]), float(rates[d])) for at, d in waiting if at == offset}
            band.start(now)
        if not band.is_idle and env.now < deadline_s:
            env.run(until=deadline_s)
        cut = band.stop()
        end_s = np.where(size > 0, np.inf, begin_s)
        sent = size.copy()
        sent[[d for _, d in waiting]] = 0.0
        for device, when in band.finished_s.items():
            end_s[device], sent[device] = when, size[device]
        for device, carried in cut.items():
            sent[device] = carried
        return end_s, sent

    def _slots(
        self,
        at: RoundTime,
        start_s: Array,
        begin_s: float,
        direction: Direction,
        is_bad: NDArray[np.bool_],
        worst_of: NDArray[np.int64] | None,
    ) -> Iterator[tuple[Array, Array, NDArray[np.bool_]]]:
        """Rates, hazards and presence of one slot after another, from ``begin_s`` on; ``start_s``
        [devices] is when a payload is ready."""
        slot_s = self.config.coherence_s
        step = (slot_s, direction, at.start_s)
        walk = self._process.walk(at.index, begin_s, *step)
        # Within a round, link adaptation follows what was measured csi_delay_s, and at least one
        # slot, before.
        lag_s = max(round(self.config.csi_delay_s / slot_s), 1) * slot_s
        measured = self._process.walk(at.index, begin_s - lag_s, *step)
        fixed: tuple[Array, Array] | None = None
        for number, (snr_db, known_db) in enumerate(zip(walk, measured, strict=False)):
            time_s = begin_s + number * slot_s
            if fixed is None or not self._process.is_constant:
                known = (
                    None if self._process.is_constant else self._csi.estimate(at.index, known_db)
                )
                rates, hazard = self.goodput_bps(at, snr_db, direction, worst_of, known)
                fixed = np.where(is_bad, 0.0, rates), hazard
            is_here = start_s <= time_s + 1e-9
            if self._presence:
                is_here &= np.array([p.is_here(time_s) for p in self._presence])
            if worst_of is not None and not is_here[worst_of].all():
                is_here = np.zeros_like(is_here)  # a broadcast waits for all it must reach
            yield fixed[0], fixed[1], is_here

    def goodput_bps(
        self,
        at: RoundTime,
        snr_db: Array,
        direction: Direction,
        worst_of: NDArray[np.int64] | None = None,
        known_db: Array | None = None,
        after_s: ArrayLike = 0.0,
    ) -> tuple[Array, Array]:
        """Rates and hazards at a true SNR; modulation and code follow what is known of it: what
        was reported ``after_s`` from the round's start, unless it is given."""
        link = self.config.link
        if link.adaptation == "shannon":
            known_db = snr_db
        elif known_db is None:
            known_db = self._csi.reported_snr_db(at.index, at.start_s, direction, after_s)
            known_db = known_db - self.config.csi_margin_db
        else:
            known_db = known_db - self.config.csi_margin_db
        if worst_of is not None:
            known_db = np.full_like(known_db, known_db[worst_of].min())
            rates, hazard = goodput_bps(link, self.config.bandwidth_hz, snr_db, known_db)
            return np.full_like(rates, rates[worst_of].min()), hazard
        return goodput_bps(link, self.config.bandwidth_hz, snr_db, known_db)

    def _in_burst(self, round_index: int) -> NDArray[np.bool_]:
        """[devices] who is in a bad round, in which nothing arrives."""
        bad = np.zeros(self.num_devices, dtype=bool)
        for d, chain in enumerate(self._chains):
            known = self._bursts[d]
            if len(known) <= round_index:
                known.extend(chain.slots(round_index + 1 - len(known)).tolist())
            bad[d] = known[round_index]
        return bad

    def _delivery(
        self,
        at: RoundTime,
        device: int,
        size: int,
        begin_s: float,
        offset_s: float,
        end_s: float,
        sent: float,
        air_s: float,
        hazard: float,
        direction: Direction,
        window_s: float,
    ) -> Delivery:
        config = self.config
        start_s = min(begin_s + offset_s, begin_s + window_s)
        is_through = bool(np.isfinite(end_s))
        delay_s = max(end_s - start_s, 0.0) if is_through else begin_s + window_s - start_s
        is_delivered, has_bit_error = is_through, False
        key = (device, at.index, int(direction == "up"))
        if is_through and size and hazard > 0:
            is_delivered = rng_for(self.seed, _LOSS_STREAM, *key).random() < np.exp(-hazard)
        if is_delivered and size and config.residual_error_rate:
            rng = rng_for(self.seed, _ERROR_STREAM, *key)
            has_bit_error = bool(rng.random() < config.residual_error_rate)
        if direction == "up":
            energy_j = transmit_energy_j(config.energy, air_s, self._transmit_power_w)
        else:
            # A receiver listens until its last bit, to the shares of others as well.
            energy_j = receive_energy_j(config.energy, delay_s)
        return Delivery(
            device=device,
            bits=size,
            sent_bits=float(size) if is_through else min(sent, float(size)),
            delivered_bits=size if is_delivered else 0,
            delay_s=delay_s,
            air_s=air_s,
            energy_j=energy_j,
            is_delivered=bool(is_delivered),
            has_bit_error=has_bit_error,
        )
