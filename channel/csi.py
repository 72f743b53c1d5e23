"""Channel state information: what the server knows of the links, which is old and inexact."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from channel.config import ChannelConfig
from channel.delivery import Direction
from channel.process import LinkProcess
from channel.streams import rng_for

Array = NDArray[np.float64]

_CSI_STREAM = 22


class Csi:
    """Reports of the SNR: ``csi_delay_s`` old, with an error, on a grid."""

    def __init__(
        self, config: ChannelConfig, process: LinkProcess, num_devices: int, *, seed: int
    ) -> None:
        self.config, self.num_devices, self.seed = config, num_devices, seed
        self._process = process

    def reported_snr_db(
        self, round_index: int, start_s: float, direction: Direction, after_s: ArrayLike = 0.0
    ) -> Array:
        """[devices] as each reports it ``after_s``, a number or [devices], from the start of the
        round, ``start_s``."""
        process = self._process
        after = np.broadcast_to(np.asarray(after_s, dtype=float), self.num_devices)
        seen_s = start_s + after - self.config.csi_delay_s
        is_now = seen_s >= start_s - 1e-9
        snr_db = np.empty(self.num_devices)
        if is_now.any():
            now = process.snr_db(round_index, np.where(is_now, seen_s, start_s), direction, start_s)
            snr_db[is_now] = now[is_now]
        for time_s in np.unique(seen_s[~is_now]):
            before = process.snr_db(self._round_of(time_s, round_index, start_s), time_s, direction)
            snr_db[seen_s == time_s] = before[seen_s == time_s]
        return self.estimate(round_index, snr_db)

    def _round_of(self, seen_s: float, round_index: int, start_s: float) -> int:
        """The round, before the present one, in which something was measured."""
        period_s = self.config.round_period_s
        if start_s == round_index * period_s:
            return max(int(np.floor(seen_s / period_s + 1e-9)), 0)
        # Rounds of any length: what has an age is taken to be from the round before.
        return max(round_index - 1, 0)

    def estimate(self, round_index: int, snr_db: Array) -> Array:
        """An SNR as it is measured: with an error of the round's, on a grid."""
        config = self.config
        if config.csi_error_db:
            rng = rng_for(self.seed, _CSI_STREAM, round_index)
            snr_db = snr_db + config.csi_error_db * rng.standard_normal(self.num_devices)
        if config.csi_quantisation_db:
            snr_db = np.round(snr_db / config.csi_quantisation_db) * config.csi_quantisation_db
        return snr_db
