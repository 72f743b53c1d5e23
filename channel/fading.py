"""Small-scale fading: power gains |h|^2 of unit mean, keyed by device and round."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from channel.units import db_to_linear

_BLOCK_STREAM, _PATH_STREAM = 10, 11
NUM_SINUSOIDS = 32


def rng_for(seed: int, *key: int) -> np.random.Generator:
    """An independent stream for a key such as (stream, device, round).

    Keyed rather than drawn in order, so that one more device or one more draw elsewhere changes
    nothing here.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def rayleigh_power(seed: int, device: int, round_index: int) -> float:
    """|h|^2 of h ~ CN(0, 1): exponential with mean 1, one draw a block."""
    return float(rng_for(seed, _BLOCK_STREAM, device, round_index).exponential())


def rician_power(seed: int, device: int, round_index: int, k_db: float) -> float:
    """|h|^2 of h = sqrt(K/(K+1)) e^{j theta} + sqrt(1/(K+1)) CN(0,1), one draw a block.

    Its mean is 1 and its variance (2K+1)/(K+1)^2.
    """
    k = float(db_to_linear(k_db))
    rng = rng_for(seed, _BLOCK_STREAM, device, round_index)
    scatter = rng.standard_normal(2) * np.sqrt(0.5 / (k + 1.0))
    return float((np.sqrt(k / (k + 1.0)) + scatter[0]) ** 2 + scatter[1] ** 2)


class ClarkeProcess:
    """Isotropic scattering with Doppler, as a sum of M sinusoids.

    h(t) = M^-1/2 sum_m exp j(2 pi f_d t cos a_m + phi_m) with uniform a_m and phi_m has the
    autocorrelation J0(2 pi f_d tau) (Clarke 1968), and can be read at any time.
    """

    def __init__(self, doppler_hz: float, *, seed: int, device: int) -> None:
        rng = rng_for(seed, _PATH_STREAM, device)
        angle = rng.uniform(0.0, 2.0 * np.pi, NUM_SINUSOIDS)
        self._omega = 2.0 * np.pi * doppler_hz * np.cos(angle)
        self._phase = rng.uniform(0.0, 2.0 * np.pi, NUM_SINUSOIDS)

    def gain(self, time_s: ArrayLike) -> NDArray[np.complex128]:
        """Complex gain h at the given times; the result has their shape."""
        t = np.asarray(time_s, dtype=float)[..., None]  # [..., sinusoids]
        return np.exp(1j * (self._omega * t + self._phase)).sum(axis=-1) / np.sqrt(NUM_SINUSOIDS)

    def power(self, time_s: ArrayLike) -> NDArray[np.float64]:
        """|h|^2 at the given times."""
        return np.abs(self.gain(time_s)) ** 2
