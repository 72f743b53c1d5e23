"""Small-scale fading: gains of unit mean power, keyed by stream and round."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import j0

from channel.streams import rng_for
from channel.units import db_to_linear

Array = NDArray[np.float64]

SPEED_OF_LIGHT_MPS = 299_792_458.0
NUM_SINUSOIDS = 32
_BLOCK_STREAM, _PATH_STREAM = 10, 11


def doppler_hz(speed_mps: float, carrier_hz: float) -> float:
    """f_d = v f_c / c, the largest Doppler shift."""
    return speed_mps * carrier_hz / SPEED_OF_LIGHT_MPS


def coherence_time_s(max_doppler_hz: float) -> float:
    """0.423 / f_d, the usual rule for the time a channel stays alike (Rappaport 2002, eq. 5.40)."""
    return 0.423 / max_doppler_hz if max_doppler_hz > 0 else float("inf")


def rayleigh_power(num_devices: int, *, seed: int, round_index: int) -> Array:
    """[devices] |h|^2 of h ~ CN(0, 1): exponential with mean 1, one draw a block."""
    return rng_for(seed, _BLOCK_STREAM, round_index).exponential(size=num_devices)


def rician_power(num_devices: int, k_db: ArrayLike, *, seed: int, round_index: int) -> Array:
    """[devices] |h|^2 of h = sqrt(K/(K+1)) e^{j theta} + sqrt(1/(K+1)) CN(0,1), one draw a block.

    Its mean is 1 and its variance (2K+1)/(K+1)^2. ``k_db`` is one number or [devices].
    """
    k = db_to_linear(k_db)
    normal = rng_for(seed, _BLOCK_STREAM, round_index).standard_normal((num_devices, 2))
    scatter = normal * np.sqrt(0.5 / (np.broadcast_to(k, num_devices) + 1.0))[:, None]
    return (np.sqrt(k / (k + 1.0)) + scatter[:, 0]) ** 2 + scatter[:, 1] ** 2


class ClarkeProcess:
    """Isotropic scattering with Doppler for all devices, as sums of M sinusoids.

    h(t) = M^-1/2 sum_m exp j(2 pi f_d t cos a_m + phi_m) with uniform a_m and phi_m has the
    autocorrelation J0(2 pi f_d tau) (Clarke 1968), and can be read at any time.
    """

    def __init__(self, num_devices: int, max_doppler_hz: float, *, seed: int) -> None:
        draw = rng_for(seed, _PATH_STREAM).uniform(size=(num_devices, 2, NUM_SINUSOIDS))
        angle, phase = 2.0 * np.pi * draw[:, 0], 2.0 * np.pi * draw[:, 1]
        self._omega = 2.0 * np.pi * max_doppler_hz * np.cos(angle)  # [devices, sinusoids]
        self._start = np.exp(1j * phase)

    def gain(self, time_s: Array | float) -> NDArray[np.complex128]:
        """[devices] complex gain h at one time, or at one for each device."""
        return self._sum(self._start * np.exp(1j * self._omega * np.reshape(time_s, (-1, 1))))

    def power(self, time_s: Array | float) -> Array:
        """[devices] |h|^2 at one time, or at one for each device."""
        return np.abs(self.gain(time_s)) ** 2

    def walk(self, start_s: float, step_s: float) -> Iterator[Array]:
        """|h|^2 [devices] at start, start + step, and so on.

        One multiplication a step instead of an exponential. A walk from the same start is the same
        to the last bit, however long it gets.
        """
        phasor = self._start * np.exp(1j * self._omega * start_s)
        turn = np.exp(1j * self._omega * step_s)
        while True:
            yield np.abs(self._sum(phasor)) ** 2
            phasor = phasor * turn

    @staticmethod
    def _sum(phasor: NDArray[np.complex128]) -> NDArray[np.complex128]:
        total: NDArray[np.complex128] = phasor.sum(axis=1) / np.sqrt(NUM_SINUSOIDS)
        return total


class Ar1Process:
    """First-order autoregressive gains from step to step, rho = J0(2 pi f_d T): the cheap option.

    The correlation is Clarke's at lag 1 and falls geometrically beyond, where Clarke's oscillates.
    """

    def __init__(
        self, num_devices: int, max_doppler_hz: float, step_s: float, *, seed: int
    ) -> None:
        self.rho = float(j0(2.0 * np.pi * max_doppler_hz * step_s))
        self._num_devices, self._seed = num_devices, seed
        self._gains: list[NDArray[np.complex128]] = []

    def gain(self, step: int) -> NDArray[np.complex128]:
        """[devices] complex gain h in one step; earlier steps are made first."""
        while len(self._gains) <= step:
            rng = rng_for(self._seed, _PATH_STREAM, len(self._gains))
            parts = rng.standard_normal((self._num_devices, 2)) * np.sqrt(0.5)
            fresh = parts[:, 0] + 1j * parts[:, 1]
            if self._gains:
                fresh = self.rho * self._gains[-1] + np.sqrt(1.0 - self.rho**2) * fresh
            self._gains.append(fresh)
        return self._gains[step]

    def power(self, step: int) -> Array:
        """[devices] |h|^2 in one step."""
        return np.abs(self.gain(step)) ** 2
