"""Analog aggregation over the air: devices transmit at once and the channel adds them up.

y = sum_k h_k b_k s_k + z, read as y / (K sqrt(eta)) for the mean of the s_k. It sums aligned
coordinates of uncorrelated symbols, so the devices must share a basis: updates B A with one frozen
A will do, factors of unequal rank will not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

INVERSIONS = ("full", "truncated", "clipped")


@dataclass(frozen=True, slots=True)
class Alignment:
    """How the devices scale what they send, and what the receiver divides by."""

    gain: Array
    """[devices] |h_k b_k|: the amplitude with which each one's symbols arrive"""
    eta: float
    """the receiver takes sqrt(eta) for the common amplitude"""
    is_active: NDArray[np.bool_]
    """[devices] who transmits"""


def align(
    amplitude: ArrayLike, *, max_power: float, inversion: str, threshold: float = 0.0
) -> Alignment:
    """Channel inversion under a power limit for amplitudes |h_k| [devices].

    ``full``: everyone inverts, so the weakest link sets eta = P min|h|^2. ``truncated``: who is
    below ``threshold`` (on |h|^2) stays silent, and eta = P threshold. ``clipped``: everyone below
    the threshold sends at full power and arrives too weak (Cao et al. 2020).
    """
    h = np.asarray(amplitude, dtype=float)
    if inversion not in INVERSIONS:
        raise ValueError(f"inversion must be one of {', '.join(INVERSIONS)}, got {inversion!r}")
    if not max_power > 0:
        raise ValueError(f"max_power must be > 0, got {max_power}")
    if inversion == "full":
        eta = max_power * float(h.min() ** 2)
        if eta == 0.0:
            raise ValueError("full inversion needs every |h| > 0; use 'truncated' or 'clipped'")
        return Alignment(np.full(len(h), np.sqrt(eta)), eta, np.ones(len(h), dtype=bool))
    if not threshold > 0:
        raise ValueError(f"threshold must be > 0 for {inversion} inversion, got {threshold}")
    eta = max_power * threshold
    strong = h**2 >= threshold
    if inversion == "truncated":
        return Alignment(np.where(strong, np.sqrt(eta), 0.0), eta, strong)
    weak = np.sqrt(max_power) * h
    return Alignment(np.where(strong, np.sqrt(eta), weak), eta, np.ones(len(h), dtype=bool))


def aggregate(
    values: ArrayLike, alignment: Alignment, *, noise_power: float, rng: np.random.Generator
) -> Array:
    """The receiver's mean [coordinates] of ``values`` [devices, coordinates] over the air.

    Values are sent as real symbols, scaled by the largest root mean square of those who transmit,
    which they agree upon beforehand: that one's symbols have unit power, and nobody's more. The
    mean is over those who transmit.
    """
    v = np.asarray(values, dtype=float)
    if v.ndim != 2 or len(v) != len(alignment.gain):
        raise ValueError(
            f"values must be [devices, coordinates] with {len(alignment.gain)} devices sharing one "
            f"basis, got shape {v.shape}"
        )
    count = int(alignment.is_active.sum())
    if count == 0:
        raise ValueError("no device is above the threshold; lower it or wait")
    power = np.mean(v[alignment.is_active] ** 2, axis=1)  # [devices that transmit]
    scale = float(np.sqrt(power.max())) or 1.0
    noise = rng.standard_normal(v.shape[1]) * np.sqrt(noise_power)
    received = alignment.gain @ (v / scale) + noise
    return received * scale / (count * np.sqrt(alignment.eta))
