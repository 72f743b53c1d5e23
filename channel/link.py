"""A link, from SNR to rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from channel.units import db_to_linear


@dataclass(frozen=True, slots=True)
class LinkState:
    """One device's link at one time."""

    snr_db: float
    bandwidth_hz: float
    rate_bps: float
    """with the whole of its band to itself"""
    time_s: float


@dataclass(frozen=True, slots=True)
class Links:
    """All devices' links at one time; arrays [devices]."""

    snr_db: NDArray[np.float64]
    bandwidth_hz: NDArray[np.float64]
    rate_bps: NDArray[np.float64]
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


def shannon_rate_bps(
    bandwidth_hz: ArrayLike, snr_db: ArrayLike, gap_db: float = 0.0
) -> NDArray[np.float64]:
    """R = B log2(1 + snr / gap); inputs broadcast. An SNR of -inf dB gives rate 0."""
    snr = db_to_linear(np.asarray(snr_db, dtype=float) - gap_db)
    return np.asarray(bandwidth_hz, dtype=float) * np.log1p(snr) / np.log(2.0)
