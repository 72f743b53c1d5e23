"""Decibels and noise, converted once, at the edge of a function."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def db_to_linear(value_db: ArrayLike) -> NDArray[np.float64]:
    """10^(x/10)."""
    return np.power(10.0, np.asarray(value_db, dtype=float) / 10.0)


def linear_to_db(value: ArrayLike) -> NDArray[np.float64]:
    """10 log10 x; zero gives -inf, as a link without signal has."""
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(np.asarray(value, dtype=float))


def noise_power_dbm(bandwidth_hz: float, noise_figure_db: float) -> float:
    """Thermal noise at 290 K in a band: -174 dBm/Hz + 10 log10 B + NF."""
    return -174.0 + 10.0 * float(np.log10(bandwidth_hz)) + noise_figure_db
