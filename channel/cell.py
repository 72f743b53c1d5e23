"""The cell: devices behind one base station, round after round of virtual time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from channel.band import Band
from channel.config import ChannelConfig
from channel.delivery import Delivery, Direction
from channel.energy import receive_energy_j, transmit_energy_j
from channel.errors import GilbertElliott
from channel.link import Links
from channel.presence import Presence
from channel.process import LinkProcess, SnrModel
from channel.slots import run_slots
from channel.streams import rng_for
from channel.timeline import Timeline
from channel.transmission import goodput_bps
from channel.units import db_to_linear

Array = NDArray[np.float64]

# Keys of the random streams of this file.
_CSI_STREAM, _ERROR_STREAM, _BURST_STREAM, _LOSS_STREAM = 22, 23, 27, 28


class Cell:
    """Virtual time, links and sharing for a fixed set of devices.

    Round r starts at r * round_period_s whatever was sent before, unless its start is given, and
    every draw is keyed: all policies meet the same channel, a device more changes nothing for the
    others, and a cell is restored from the number of its round.
    """

    def __init__(
        self,
        config: ChannelConfig,
        num_devices: int,
        *,
        seed: int,
        model: SnrModel | None = None,
    ) -> None:
        """``model`` is a source of the mean SNR of one's own, such as ``config.model`` names."""
        for key, value, least in (("num_devices", num_devices, 1), ("seed", seed, 0)):
            if not (isinstance(value, Integral) and value >= least):
                raise ValueError(f"{key} must be a whole number >= {least}, got {value!r}")
        self.config, self.num_devices, self.seed = config, num_devices, seed
        self.round_index = -1
        self.log: list[tuple[float, int, str]] = []
        """(time in s, device, event) of the present round: start, end, cut, lost"""
        self._env = Timeline()
        self._start_s = 0.0  # of the present round
        self._process = LinkProcess(config, num_devices, seed=seed, model=model)
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

    @property
    def now_s(self) -> float:
        """Virtual time in seconds."""
        return float(self._env.now)

    @property
    def transmit_power_w(self) -> float:
        """What a device radiates while it transmits: what its uplink SNR comes from, if geometry
        says, or else what its energy is counted with."""
        if not self._process.has_geometry:
            return self.config.energy.transmit_power_w
        return float(db_to_linear(self.config.path.device_power_dbm - 30.0))

    def begin_round(self, round_index: int, start_s: float | None = None) -> None:
        """Let virtual time pass until a round's start; rounds only go forward.

        ``start_s`` is for rounds that last as long as they do: it replaces the fixed period.
        """
        is_free = start_s is not None
        if start_s is None:
            start_s = round_index * self.config.round_period_s
        if round_index <= self.round_index:
            raise ValueError(
                f"round_index must be above {self.round_index}, the round begun last, "
                f"got {round_index}"
            )
        if is_free:
            # The round before may have ended before its deadline, up to which the clock has run.
            self._env = Timeline(initial_time=start_s)
        if start_s < self._env.now - 1e-9 * start_s:
            raise ValueError(
                f"round {round_index} starts at {start_s:g} s, but the transfers before it went on "
                f"until {self.now_s:g} s; make channel.round_period_s longer"
            )
        if start_s > self._env.now:
            self._env.run(until=start_s)
        self.round_index, self._start_s = round_index, start_s
        self.log = []

    def true_links(self, direction: Direction = "down", at_s: float | None = None) -> Links:
        """The links now, or at another time of the round; the rate is what the chosen modulation
        really carries."""
        time_s = self.now_s if at_s is None else at_s
        snr_db = self._process.snr_db(self._round, time_s, direction, self._start_s)
        rate_bps, _ = self._goodput(snr_db, direction, after_s=time_s - self._start_s)
        return self._links(snr_db, rate_bps)

    def reported_links(self, direction: Direction = "down", after_s: ArrayLike = 0.0) -> Links:
        """The links as they were estimated and reported: old, with an error, on a grid.

        ``after_s``, a number or [devices], is when each reports, from the round's start.
        """
        snr_db = self._reported_snr_db(direction, after_s)
        rate_bps, _ = goodput_bps(self.config.link, self.config.bandwidth_hz, snr_db, snr_db)
        return self._links(snr_db, rate_bps)

    def planned_rate_bps(self, reported: Links) -> Array:
        """[devices] rate that a plan may count on: the reported SNR less the margin."""
        snr_db = reported.snr_db - self.config.csi_margin_db
        return goodput_bps(self.config.link, self.config.bandwidth_hz, snr_db, snr_db)[0]

    def transfer(
        self,
        bits: Mapping[int, int],
        *,
        direction: Direction = "down",
        start_s: Mapping[int, float] | None = None,
        begin_s: float | None = None,
        deadline_s: float | None = None,
    ) -> dict[int, Delivery]:
        """Send payloads of the given bits to (or from) their devices.

        Transfers start now, or later by ``start_s``. What is not through ``deadline_s`` from now
        (channel.deadline_s unless given) is lost, and that is an outcome, not an error. Time stands
        at the deadline afterwards, or where the last transfer ended if the channel was stepped in
        slots. ``begin_s`` takes the place of now: up and down have carriers of their own, so that
        an uplink may begin while downlinks still went on.
        """
        offsets = self._checked(bits, start_s)
        if begin_s is not None:
            self._env = Timeline(initial_time=begin_s)
        return self._send(bits, offsets, direction, worst_of=None, deadline_s=deadline_s)

    def broadcast(self, bits: int, devices: list[int]) -> dict[int, Delivery]:
        """Send one payload to all of ``devices`` at once, at the pace of the worst receiver."""
        if not devices:
            raise ValueError("devices must not be empty; a broadcast needs a receiver")
        each = dict.fromkeys(devices, bits)
        offsets = self._checked(each, None)
        return self._send(each, offsets, "down", worst_of=np.array(devices))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint between rounds needs: every draw is keyed, so the round suffices."""
        return {"round_index": self.round_index, "now_s": self.now_s}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.round_index = int(state["round_index"])
        self._start_s = self.round_index * self.config.round_period_s
        self._env = Timeline(initial_time=float(state["now_s"]))

    @property
    def _round(self) -> int:
        return max(self.round_index, 0)

    def _checked(
        self, bits: Mapping[int, int], start_s: Mapping[int, float] | None
    ) -> dict[int, float]:
        if self.round_index < 0:
            raise ValueError("begin a round before transferring: cell.begin_round(0)")
        if not isinstance(bits, Mapping):
            raise ValueError(
                f"bits must map devices to their bits, such as {{0: 1000, 1: 500}}, got {bits!r}"
            )
        offsets = {device: (start_s or {}).get(device, 0.0) for device in bits}
        for device, size in bits.items():
            if not 0 <= device < self.num_devices:
                raise ValueError(f"device must be in 0..{self.num_devices - 1}, got {device}")
            if not 0 <= size < float("inf"):
                raise ValueError(f"bits of device {device} must be >= 0 and finite, got {size}")
            if not 0.0 <= offsets[device] < float("inf"):
                raise ValueError(
                    f"start_s of device {device} must be >= 0 and finite, got {offsets[device]}"
                )
        return offsets

    def _send(
        self,
        bits: Mapping[int, int],
        offsets: Mapping[int, float],
        direction: Direction,
        worst_of: NDArray[np.int64] | None,
        deadline_s: float | None = None,
    ) -> dict[int, Delivery]:
        config, begin_s = self.config, self.now_s
        window_s = config.deadline_s if deadline_s is None else deadline_s
        deadline_s = begin_s + window_s
        size = np.zeros(self.num_devices)
        size[list(bits)] = list(bits.values())
        ready_s = np.full(self.num_devices, begin_s)  # of who sends nothing, nobody asks
        ready_s[list(offsets)] += list(offsets.values())
        is_bad = self._in_burst()
        is_shared = config.sharing == "shared" and worst_of is None
        is_simple = self._process.is_constant and not self._presence
        if is_simple and (config.scheduler == "equal" or not is_shared):
            rates, hazard = self._goodput(
                self._process.snr_db(self._round, begin_s, direction, self._start_s),
                direction, worst_of, after_s=ready_s - self._start_s,
            )  # fmt: skip
            rates = np.where(is_bad, 0.0, rates)
            end_s, sent = self._run_band(size, bits, offsets, rates, deadline_s, is_shared)
            with np.errstate(divide="ignore", invalid="ignore"):
                air_s = np.where(rates > 0, sent / rates, 0.0)
                hazard = np.where(sent > 0, sent * hazard, 0.0)
        else:
            result = run_slots(
                self._env, size,
                lambda time_s: self._slots(ready_s, time_s, direction, is_bad, worst_of),
                start_s=ready_s, slot_s=config.coherence_s, deadline_s=deadline_s,
                scheduler=config.scheduler, is_shared=is_shared,
            )  # fmt: skip
            sent, end_s, air_s = result.sent_bits, result.end_s, result.air_s
            hazard = result.hazard
        return {
            d: self._delivery(
                d, bits[d], begin_s, offsets[d], float(end_s[d]), float(sent[d]),
                float(air_s[d]), float(hazard[d]), direction, window_s,
            )
            for d in sorted(bits)
        }  # fmt: skip

    def _run_band(
        self,
        size: Array,
        bits: Mapping[int, int],
        offsets: Mapping[int, float],
        rates: Array,
        deadline_s: float,
        is_shared: bool,
    ) -> tuple[Array, Array]:
        """(end times, bits sent) [devices] where rates are constant: events, not slots."""
        begin_s = self.now_s
        band = Band(self._env, is_shared=is_shared)
        waiting = sorted((offsets[d], d) for d in bits if bits[d])
        for offset in sorted({offset for offset, _ in waiting}):
            if begin_s + offset >= deadline_s:
                break
            if begin_s + offset > self._env.now:
                self._env.run(until=begin_s + offset)
            now = {d: (float(size[d]), float(rates[d])) for at, d in waiting if at == offset}
            band.start(now)
        if not band.is_idle and self._env.now < deadline_s:
            self._env.run(until=deadline_s)
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
        start_s: Array,
        begin_s: float,
        direction: Direction,
        is_bad: NDArray[np.bool_],
        worst_of: NDArray[np.int64] | None,
    ) -> Iterator[tuple[Array, Array, NDArray[np.bool_]]]:
        """Rates, hazards and presence of one slot after another, from ``begin_s`` on; ``start_s``
        [devices] is when a payload is ready."""
        slot_s = self.config.coherence_s
        at = (slot_s, direction, self._start_s)
        walk = self._process.walk(self._round, begin_s, *at)
        # Within a round, link adaptation follows what was measured csi_delay_s, and at least one
        # slot, before.
        lag_s = max(round(self.config.csi_delay_s / slot_s), 1) * slot_s
        measured = self._process.walk(self._round, begin_s - lag_s, *at)
        fixed: tuple[Array, Array] | None = None
        for number, (snr_db, known_db) in enumerate(zip(walk, measured, strict=False)):
            time_s = begin_s + number * slot_s
            if fixed is None or not self._process.is_constant:
                known = None if self._process.is_constant else self._estimate(known_db)
                rates, hazard = self._goodput(snr_db, direction, worst_of, known)
                fixed = np.where(is_bad, 0.0, rates), hazard
            is_here = start_s <= time_s + 1e-9
            if self._presence:
                is_here &= np.array([p.is_here(time_s) for p in self._presence])
            if worst_of is not None and not is_here[worst_of].all():
                is_here = np.zeros_like(is_here)  # a broadcast waits for all it must reach
            yield fixed[0], fixed[1], is_here

    def _goodput(
        self,
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
            known_db = self._reported_snr_db(direction, after_s) - self.config.csi_margin_db
        else:
            known_db = known_db - self.config.csi_margin_db
        if worst_of is not None:
            known_db = np.full_like(known_db, known_db[worst_of].min())
            rates, hazard = goodput_bps(link, self.config.bandwidth_hz, snr_db, known_db)
            return np.full_like(rates, rates[worst_of].min()), hazard
        return goodput_bps(link, self.config.bandwidth_hz, snr_db, known_db)

    def _reported_snr_db(self, direction: Direction, after_s: ArrayLike = 0.0) -> Array:
        process, start_s = self._process, self._start_s
        after = np.broadcast_to(np.asarray(after_s, dtype=float), self.num_devices)
        seen_s = start_s + after - self.config.csi_delay_s
        is_now = seen_s >= start_s - 1e-9
        snr_db = np.empty(self.num_devices)
        if is_now.any():
            now = process.snr_db(self._round, np.where(is_now, seen_s, start_s), direction, start_s)
            snr_db[is_now] = now[is_now]
        for time_s in np.unique(seen_s[~is_now]):
            before = process.snr_db(self._round_of(time_s), time_s, direction)
            snr_db[seen_s == time_s] = before[seen_s == time_s]
        return self._estimate(snr_db)

    def _round_of(self, seen_s: float) -> int:
        """The round, before the present one, in which something was measured."""
        period_s = self.config.round_period_s
        if self._start_s == self._round * period_s:
            return max(int(np.floor(seen_s / period_s + 1e-9)), 0)
        # Rounds of any length: what has an age is taken to be from the round before.
        return max(self._round - 1, 0)

    def _estimate(self, snr_db: Array) -> Array:
        """An SNR as it is measured: with an error of the round's, on a grid."""
        config = self.config
        if config.csi_error_db:
            rng = rng_for(self.seed, _CSI_STREAM, self._round)
            snr_db = snr_db + config.csi_error_db * rng.standard_normal(self.num_devices)
        if config.csi_quantisation_db:
            snr_db = np.round(snr_db / config.csi_quantisation_db) * config.csi_quantisation_db
        return snr_db

    def _in_burst(self) -> NDArray[np.bool_]:
        """[devices] who is in a bad round, in which nothing arrives."""
        bad = np.zeros(self.num_devices, dtype=bool)
        for d, chain in enumerate(self._chains):
            known = self._bursts[d]
            if len(known) <= self._round:
                known.extend(chain.slots(self._round + 1 - len(known)).tolist())
            bad[d] = known[self._round]
        return bad

    def _delivery(
        self,
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
        key = (device, self._round, int(direction == "up"))
        if is_through and size and hazard > 0:
            is_delivered = rng_for(self.seed, _LOSS_STREAM, *key).random() < np.exp(-hazard)
        if is_delivered and size and config.residual_error_rate:
            rng = rng_for(self.seed, _ERROR_STREAM, *key)
            has_bit_error = bool(rng.random() < config.residual_error_rate)
        if size:
            self.log.append((start_s, device, "start"))
            event = "end" if is_delivered else "lost" if is_through else "cut"
            self.log.append((start_s + delay_s, device, event))
        if direction == "up":
            energy_j = transmit_energy_j(config.energy, air_s, self.transmit_power_w)
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

    def _links(self, snr_db: Array, rate_bps: Array) -> Links:
        bandwidth_hz = np.full(self.num_devices, self.config.bandwidth_hz)
        return Links(snr_db, bandwidth_hz, rate_bps, self.now_s)
