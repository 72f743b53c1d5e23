"""Fading and links against their closed forms, within what the sample size allows."""

import numpy as np
import pytest
from scipy.special import j0

from channel.fading import ClarkeProcess, rayleigh_power, rician_power
from channel.link import (
    rayleigh_ergodic_capacity,
    rayleigh_outage,
    rician_outage,
    shannon_rate_bps,
)
from channel.units import db_to_linear, linear_to_db, noise_power_dbm

NUM = 20_000


def within(sample, expected, num_errors=5.0):
    """The mean of a sample lies within so many of its standard errors."""
    error = np.std(sample) / np.sqrt(len(sample))
    return abs(np.mean(sample) - expected) < num_errors * error


@pytest.fixture(scope="module")
def rayleigh():
    return np.array([rayleigh_power(0, d, r) for d in range(20) for r in range(NUM // 20)])


@pytest.mark.parametrize(("snr_db", "known"), [(0, 0.8603), (10, 2.9065), (20, 5.8840)])
def test_rayleigh_ergodic_capacity(rayleigh, snr_db, known):
    assert rayleigh_ergodic_capacity(snr_db) == pytest.approx(known, abs=5e-5)
    assert within(shannon_rate_bps(1.0, snr_db + linear_to_db(rayleigh)), known)


@pytest.mark.parametrize("efficiency", [0.5, 2.0])
def test_rayleigh_outage(rayleigh, efficiency):
    rates = shannon_rate_bps(1.0, 5.0 + linear_to_db(rayleigh))
    assert within((rates < efficiency).astype(float), rayleigh_outage(5.0, efficiency))


def test_rician_moments_and_outage():
    k_db = 6.0
    power = np.array([rician_power(1, d, r, k_db) for d in range(20) for r in range(NUM // 20)])
    k = 10**0.6
    assert within(power, 1.0)
    assert within((power - 1.0) ** 2, (2 * k + 1) / (k + 1) ** 2)
    rates = shannon_rate_bps(1.0, 3.0 + linear_to_db(power))
    assert within((rates < 1.0).astype(float), rician_outage(3.0, 1.0, k_db))


def test_rician_outage_without_a_direct_path_is_rayleighs():
    assert rician_outage(5.0, 1.0, -60.0) == pytest.approx(rayleigh_outage(5.0, 1.0), rel=1e-4)


def test_clarke_autocorrelation_is_bessels():
    """Over independent devices: E[h(t) h*(t + tau)] = J0(2 pi f_d tau)."""
    doppler_hz, lags = 10.0, np.array([0.0, 0.005, 0.02, 0.038, 0.06])
    gains = np.array([ClarkeProcess(doppler_hz, seed=0, device=d).gain(lags) for d in range(4000)])
    products = (gains * gains[:, :1].conj()).real  # [devices, lags]
    for lag, product in zip(lags, products.T, strict=True):
        assert within(product, j0(2 * np.pi * doppler_hz * lag))


def test_clarke_power_is_near_exponential():
    power = np.array([ClarkeProcess(5.0, seed=2, device=d).power(0.3) for d in range(4000)])
    assert within(power, 1.0)
    # M sinusoids have the fourth moment 2 - 1/M of |h|, Rayleigh's 2 in the limit.
    assert within(power**2, 2.0 - 1.0 / 32)


def test_shannon_rate_at_0_db_is_the_bandwidth_and_a_gap_shifts_it():
    assert shannon_rate_bps(1e6, 0.0) == pytest.approx(1e6)
    assert shannon_rate_bps(1e6, 5.0, gap_db=2.0) == pytest.approx(shannon_rate_bps(1e6, 3.0))
    assert shannon_rate_bps(1e6, -np.inf) == 0.0


def test_units_are_inverse_and_noise_is_thermal():
    assert float(linear_to_db(db_to_linear(-7.3))) == pytest.approx(-7.3)
    assert noise_power_dbm(1e6, 7.0) == pytest.approx(-107.0)
