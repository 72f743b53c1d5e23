"""The cell: devices behind one base station, round after round of virtual time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from channel.band import Band
from channel.config import ChannelConfig
from channel.fading import ClarkeProcess, rayleigh_power, rician_power, rng_for
from channel.link import LinkState, shannon_rate_bps
from channel.units import linear_to_db

Array = NDArray[np.float64]

# Keys of the random streams of this file; those of fading are in fading.py.
_SNR_STREAM, _SPREAD_STREAM, _CSI_STREAM, _ERROR_STREAM = 20, 21, 22, 23


@dataclass(frozen=True, slots=True)
class Links:
    """All devices' links at one time; arrays [devices]."""

    snr_db: Array
    bandwidth_hz: Array
    rate_bps: Array
    """of each device with the whole of its band to itself"""
    time_s: float

    def __len__(self) -> int:
        return len(self.snr_db)

    def __getitem__(self, device: int) -> LinkState:
        return LinkState(
            float(self.snr_db[device]),
            float(self.bandwidth_hz[device]),
            float(self.rate_bps[device]),
            self.time_s,
        )

    def __iter__(self) -> Iterator[LinkState]:
        return (self[device] for device in range(len(self)))


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the air did to one payload."""

    device: int
    bits: int
    """of the payload"""
    sent_bits: float
    """carried before the deadline"""
    delivered_bits: int
    """all of them or none"""
    delay_s: float
    """until the last bit, or the deadline"""
    energy_j: float
    """drawn by the device over the round"""
    is_delivered: bool
    has_bit_error: bool
    """arrived, with an error that the link did not notice"""


class Cell:
    """Virtual time, fading and sharing for a fixed set of devices.

    Round r starts at r * round_period_s whatever was sent before, and every draw is keyed by
    device and round: all policies meet the same channel, and a cell can be restored from the
    number of its round.
    """

    def __init__(self, config: ChannelConfig, num_devices: int, *, seed: int) -> None:
        if num_devices < 1:
            raise ValueError(f"num_devices must be >= 1, got {num_devices}")
        self.config, self.num_devices, self.seed = config, num_devices, seed
        self.round_index = -1
        self._env = simpy.Environment()
        self._offset_db = np.array(
            [
                config.snr_spread_db * rng_for(seed, _SPREAD_STREAM, d).standard_normal()
                for d in range(num_devices)
            ]
        )
        self._paths = (
            [ClarkeProcess(config.doppler_hz, seed=seed, device=d) for d in range(num_devices)]
            if config.fading == "clarke"
            else []
        )

    @property
    def now_s(self) -> float:
        """Virtual time in seconds."""
        return float(self._env.now)

    def begin_round(self, round_index: int) -> None:
        """Let virtual time pass until a round's start; rounds only go forward."""
        start_s = round_index * self.config.round_period_s
        if round_index <= self.round_index or start_s < self._env.now:
            raise ValueError(
                f"round_index must be above {self.round_index}, the round begun last, "
                f"got {round_index}"
            )
        if start_s > self._env.now:
            self._env.run(until=start_s)
        self.round_index = round_index

    def true_links(self) -> Links:
        """The links as they are now."""
        snr_db = self._mean_snr_db() + linear_to_db(self._fading_power(self.now_s))
        return self._links(snr_db)

    def reported_links(self) -> Links:
        """The links as the devices estimate and report them: with an error, on a grid."""
        config, snr_db = self.config, self.true_links().snr_db
        if config.csi_error_db:
            snr_db = snr_db + np.array(
                [
                    config.csi_error_db
                    * rng_for(self.seed, _CSI_STREAM, d, self.round_index).standard_normal()
                    for d in range(self.num_devices)
                ]
            )
        if config.csi_quantisation_db:
            snr_db = np.round(snr_db / config.csi_quantisation_db) * config.csi_quantisation_db
        return self._links(snr_db)

    def planned_rate_bps(self, reported: Links) -> Array:
        """[devices] rate that a plan may count on: the reported SNR less the margin."""
        return self._links(reported.snr_db - self.config.csi_margin_db).rate_bps

    def transfer(self, bits: Mapping[int, int]) -> dict[int, Delivery]:
        """Send payloads of the given bits to their devices, all starting now.

        What is not through at the deadline is lost, and that is an outcome, not an error. Time
        stands at the deadline or the last end afterwards, whichever comes first.
        """
        for device, size in bits.items():
            if not 0 <= device < self.num_devices:
                raise ValueError(f"device must be in 0..{self.num_devices - 1}, got {device}")
            if size < 0:
                raise ValueError(f"bits of device {device} must be >= 0, got {size}")
        start_s = self.now_s
        deadline_s = start_s + self.config.deadline_s
        band = Band(self._env, is_shared=self.config.sharing == "shared")
        rates = self.true_links().rate_bps
        for device in sorted(bits):
            if bits[device]:
                band.start(device, float(bits[device]), float(rates[device]))
        if self._paths:
            self._run_through_fading(band, deadline_s)
        elif band.active():
            self._env.run(until=deadline_s)
        cut = band.stop()
        return {
            device: self._delivery(device, size, start_s, band.finished_s, cut)
            for device, size in sorted(bits.items())
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint between rounds needs: every draw is keyed, so the round suffices."""
        return {"round_index": self.round_index, "now_s": self.now_s}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.round_index = int(state["round_index"])
        self._env = simpy.Environment(initial_time=float(state["now_s"]))

    def _run_through_fading(self, band: Band, deadline_s: float) -> None:
        """The channel changes within a transfer: new rates at every coherence time."""
        while band.active() and self._env.now < deadline_s:
            step_end_s = min(self._env.now + self.config.coherence_s, deadline_s)
            self._env.run(until=step_end_s)
            if band.active() and self._env.now < deadline_s:
                rates = self.true_links().rate_bps
                band.set_rates({device: float(rates[device]) for device in band.active()})

    def _delivery(
        self,
        device: int,
        size: int,
        start_s: float,
        finished_s: Mapping[int, float],
        cut: Mapping[int, float],
    ) -> Delivery:
        config = self.config
        is_delivered = device not in cut
        delay_s = finished_s.get(device, start_s) - start_s if is_delivered else config.deadline_s
        has_bit_error = False
        if is_delivered and size and config.residual_error_rate:
            rng = rng_for(self.seed, _ERROR_STREAM, device, self.round_index)
            has_bit_error = bool(rng.random() < config.residual_error_rate)
        idle_s = config.round_period_s - delay_s
        return Delivery(
            device=device,
            bits=size,
            sent_bits=float(size) if is_delivered else cut[device],
            delivered_bits=size if is_delivered else 0,
            delay_s=delay_s,
            energy_j=config.receive_power_w * delay_s + config.idle_power_w * idle_s,
            is_delivered=is_delivered,
            has_bit_error=has_bit_error,
        )

    def _mean_snr_db(self) -> Array:
        config = self.config
        if config.snr_db is not None:
            return config.snr_db + self._offset_db
        choices = np.asarray(config.snr_choices_db)
        index = [
            rng_for(self.seed, _SNR_STREAM, d, self.round_index).integers(len(choices))
            for d in range(self.num_devices)
        ]
        return choices[index] + self._offset_db

    def _fading_power(self, time_s: float) -> Array:
        config, devices = self.config, range(self.num_devices)
        if config.fading == "clarke":
            return np.array([float(path.power(time_s)) for path in self._paths])
        if config.fading == "rayleigh":
            return np.array([rayleigh_power(self.seed, d, self.round_index) for d in devices])
        if config.fading == "rician":
            k_db = config.rician_k_db
            return np.array([rician_power(self.seed, d, self.round_index, k_db) for d in devices])
        return np.ones(self.num_devices)

    def _links(self, snr_db: Array) -> Links:
        bandwidth_hz = np.full(self.num_devices, self.config.bandwidth_hz)
        rate_bps = shannon_rate_bps(bandwidth_hz, snr_db, self.config.snr_gap_db)
        return Links(snr_db, bandwidth_hz, rate_bps, self.now_s)
