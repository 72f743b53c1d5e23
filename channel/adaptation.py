"""From SNR to what real links carry: CQI tables, finite block lengths, block errors."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from channel.units import db_to_linear

Array = NDArray[np.float64]

# TS 38.214 table 5.2.2.1-2: efficiency in bit/s/Hz of CQI 1..15 (QPSK to 64QAM).
CQI_EFFICIENCY = np.array([
    0.1523, 0.2344, 0.3770, 0.6016, 0.8770, 1.1758, 1.4766, 1.9141, 2.4063, 2.7305, 3.3223,
    3.9023, 4.5234, 5.1152, 5.5547,
])  # fmt: skip
# SNR at which each reaches a block error rate of 10 %. Widely used; link-level simulation with LDPC
# needs up to 2 dB less with QPSK and 16QAM, up to 4 dB less with 64QAM.
CQI_THRESHOLD_DB = np.array([
    -6.7, -4.7, -2.3, 0.2, 2.4, 4.3, 5.9, 8.1, 10.3, 11.7, 14.1, 16.3, 18.7, 21.0, 22.7,
])  # fmt: skip
_THRESHOLD_ERROR, _THRESHOLD_SYMBOLS = 0.1, 1000  # what a threshold is for


def select_cqi(snr_db: ArrayLike) -> NDArray[np.int64]:
    """Largest CQI 1..15 whose threshold the SNR meets; 0: out of range, nothing is sent."""
    return np.searchsorted(CQI_THRESHOLD_DB, np.asarray(snr_db, dtype=float), side="right")


def cqi_efficiency(cqi: ArrayLike) -> Array:
    """bit/s/Hz of a CQI; 0 for CQI 0."""
    return np.concatenate([[0.0], CQI_EFFICIENCY])[np.asarray(cqi)]


def finite_blocklength_rate(snr_db: ArrayLike, symbols: int, error_rate: ArrayLike) -> Array:
    """R(n, e) = log2(1+g) - sqrt(V/n) Qinv(e) bit/s/Hz, not below 0; e below 0.5.

    Normal approximation for the complex AWGN channel, V = g (g+2) / (1+g)^2 log2(e)^2
    (Polyanskiy, Poor and Verdu 2010, eq. 293 f.), without its term log2(n) / (2n): that holds to
    O(1/n) for a fixed SNR, and where there is next to no signal would be all of the rate.
    """
    capacity, dispersion = _capacity_and_dispersion(snr_db)
    q_inverse = -ndtri(np.asarray(error_rate, dtype=float))
    return np.maximum(capacity - np.sqrt(dispersion / symbols) * q_inverse, 0.0)


def block_error_rate(snr_db: ArrayLike, symbols: int, efficiency: ArrayLike) -> Array:
    """The same, solved for the error: e = Q((C - R) / sqrt(V/n))."""
    capacity, dispersion = _capacity_and_dispersion(snr_db)
    excess = capacity - np.asarray(efficiency, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = excess / np.sqrt(dispersion / symbols)
    # Without signal there is neither capacity nor dispersion: nothing but errors.
    return np.where(dispersion > 0, ndtr(-np.nan_to_num(x, nan=0.0)), 1.0)


def cqi_block_error_rate(snr_db: ArrayLike, cqi: ArrayLike, symbols: int = 1000) -> Array:
    """Block error rate of a CQI's modulation and code.

    That of `block_error_rate`, moved to where a block of 1,000 symbols has 10 % at the CQI's
    threshold. CQI 0 sends nothing and counts as an error.
    """
    index = np.asarray(cqi)
    backoff_db = np.concatenate([[0.0], _backoff_db()])[index]
    error = block_error_rate(
        np.asarray(snr_db, dtype=float) - backoff_db, symbols, cqi_efficiency(index)
    )
    return np.where(index > 0, error, 1.0)


@functools.cache
def _backoff_db() -> Array:
    """[CQI 1..15] by which real codes, at their thresholds, are behind the normal approximation."""
    ideal_db = [
        brentq(
            lambda snr_db, e=e: (
                float(finite_blocklength_rate(snr_db, _THRESHOLD_SYMBOLS, _THRESHOLD_ERROR)) - e
            ),
            -20.0, 30.0,
        )
        for e in CQI_EFFICIENCY
    ]  # fmt: skip
    return CQI_THRESHOLD_DB - np.array(ideal_db)


def _capacity_and_dispersion(snr_db: ArrayLike) -> tuple[Array, Array]:
    g = db_to_linear(snr_db)
    dispersion = g * (g + 2.0) / (1.0 + g) ** 2 / np.log(2.0) ** 2
    return np.log1p(g) / np.log(2.0), dispersion
