"""The cell: devices behind one base station, round after round of virtual time."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from channel.config import ChannelConfig
from channel.csi import Csi
from channel.delivery import Delivery, Direction
from channel.link import Links
from channel.process import LinkProcess, SnrModel
from channel.timeline import Timeline
from channel.transfer import RoundTime, TransferModel
from channel.transmission import goodput_bps
from channel.units import db_to_linear

Array = NDArray[np.float64]


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
        self._csi = Csi(config, self._process, num_devices, seed=seed)
        self._transfers = TransferModel(
            config, self._process, self._csi, num_devices,
            transmit_power_w=self.transmit_power_w, seed=seed,
        )  # fmt: skip

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
        after_s = time_s - self._start_s
        rate_bps, _ = self._transfers.goodput_bps(self._at, snr_db, direction, after_s=after_s)
        return self._links(snr_db, rate_bps)

    def reported_links(self, direction: Direction = "down", after_s: ArrayLike = 0.0) -> Links:
        """The links as they were estimated and reported: old, with an error, on a grid.

        ``after_s``, a number or [devices], is when each reports, from the round's start.
        """
        snr_db = self._csi.reported_snr_db(self._round, self._start_s, direction, after_s)
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
        return self._send(bits, offsets, direction, None, deadline_s)

    def broadcast(self, bits: int, devices: list[int]) -> dict[int, Delivery]:
        """Send one payload to all of ``devices`` at once, at the pace of the worst receiver."""
        if not devices:
            raise ValueError("devices must not be empty; a broadcast needs a receiver")
        each = dict.fromkeys(devices, bits)
        offsets = self._checked(each, None)
        return self._send(each, offsets, "down", np.array(devices), None)

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

    @property
    def _at(self) -> RoundTime:
        return RoundTime(self._round, self._start_s)

    def _send(
        self,
        bits: Mapping[int, int],
        offsets: Mapping[int, float],
        direction: Direction,
        worst_of: NDArray[np.int64] | None,
        deadline_s: float | None,
    ) -> dict[int, Delivery]:
        begin_s = self.now_s
        window_s = self.config.deadline_s if deadline_s is None else deadline_s
        sent = self._transfers.send(
            self._env, self._at, bits, offsets, direction, worst_of=worst_of, deadline_s=deadline_s
        )
        for d, delivery in sent.items():
            if delivery.bits:
                start_s = min(begin_s + offsets[d], begin_s + window_s)
                is_through = delivery.sent_bits >= delivery.bits
                end = "end" if delivery.is_delivered else "lost" if is_through else "cut"
                self.log += [(start_s, d, "start"), (start_s + delivery.delay_s, d, end)]
        return sent

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

    def _links(self, snr_db: Array, rate_bps: Array) -> Links:
        bandwidth_hz = np.full(self.num_devices, self.config.bandwidth_hz)
        return Links(snr_db, bandwidth_hz, rate_bps, self.now_s)
