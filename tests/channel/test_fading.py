"""Fading and links against their closed forms, within what the sample size allows."""

import numpy as np
import pytest
from scipy.special import exp1, j0
from scipy.stats import ncx2

from channel.fading import (
    Ar1Process,
    ClarkeProcess,
    coherence_time_s,
    doppler_hz,
    rayleigh_power,
    rician_power,
)
from channel.link import shannon_rate_bps
from channel.units import db_to_linear, linear_to_db, noise_power_dbm

NUM = 20_000


def rayleigh_ergodic_capacity(mean_snr_db: float) -> float:
    """E[log2(1 + g |h|^2)] = e^{1/g} E1(1/g) / ln 2 in bit/s/Hz (Alouini and Goldsmith 1999)."""
    g = float(db_to_linear(mean_snr_db))
    return float(np.exp(1.0 / g) * exp1(1.0 / g) / np.log(2.0))


def rayleigh_outage(mean_snr_db: float, efficiency: float) -> float:
    """P(log2(1 + g |h|^2) < R) = 1 - exp(-(2^R - 1) / g)."""
    g = float(db_to_linear(mean_snr_db))
    return float(-np.expm1(-(2.0**efficiency - 1.0) / g))


def rician_outage(mean_snr_db: float, efficiency: float, k_db: float) -> float:
    """1 - Q1(sqrt(2K), sqrt(2 (K+1) (2^R - 1) / g)), as a noncentral chi-square distribution."""
    g, k = float(db_to_linear(mean_snr_db)), float(db_to_linear(k_db))
    return float(ncx2.cdf(2.0 * (k + 1.0) * (2.0**efficiency - 1.0) / g, 2, 2.0 * k))


def within(sample, expected, num_errors=5.0):
    """The mean of a sample lies within so many of its standard errors."""
    error = np.std(sample) / np.sqrt(len(sample))
    return abs(np.mean(sample) - expected) < num_errors * error


@pytest.fixture(scope="module")
def rayleigh():
    return np.concatenate([rayleigh_power(20, seed=0, round_index=r) for r in range(NUM // 20)])


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
    power = np.concatenate(
        [rician_power(20, k_db, seed=1, round_index=r) for r in range(NUM // 20)]
    )
    k = 10**0.6
    assert within(power, 1.0)
    assert within((power - 1.0) ** 2, (2 * k + 1) / (k + 1) ** 2)
    rates = shannon_rate_bps(1.0, 3.0 + linear_to_db(power))
    assert within((rates < 1.0).astype(float), rician_outage(3.0, 1.0, k_db))


def test_rician_outage_without_a_direct_path_is_rayleighs():
    assert rician_outage(5.0, 1.0, -60.0) == pytest.approx(rayleigh_outage(5.0, 1.0), rel=1e-4)


def test_clarke_autocorrelation_is_bessels():
    """Over independent devices: E[h(t) h*(t + tau)] = J0(2 pi f_d tau)."""
    shift_hz, lags = 10.0, np.array([0.0, 0.005, 0.02, 0.038, 0.06])
    process = ClarkeProcess(4000, shift_hz, seed=0)
    gains = np.stack([process.gain(lag) for lag in lags], axis=1)
    products = (gains * gains[:, :1].conj()).real  # [devices, lags]
    for lag, product in zip(lags, products.T, strict=True):
        assert within(product, j0(2 * np.pi * shift_hz * lag))


def test_clarke_power_is_near_exponential():
    power = ClarkeProcess(4000, 5.0, seed=2).power(0.3)
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


def test_a_walk_is_the_process_itself_step_by_step():
    process = ClarkeProcess(3, 12.0, seed=0)
    steps = process.walk(2.0, 0.01)
    for number in range(200):
        np.testing.assert_allclose(next(steps), process.power(2.0 + 0.01 * number), rtol=1e-9)


def test_level_crossings_and_fade_durations():
    """Rice's formulas for the envelope at rho times its root mean square."""
    shift_hz, rho, step_s, num_devices, steps = 10.0, 0.5, 1e-3, 400, 4000
    walk = ClarkeProcess(num_devices, shift_hz, seed=3).walk(0.0, step_s)
    below = np.stack([next(walk) < rho**2 for _ in range(steps)])  # [steps, devices]
    crossings = (below[1:] & ~below[:-1]).sum(axis=0) / (steps * step_s)
    assert within(crossings, np.sqrt(2 * np.pi) * shift_hz * rho * np.exp(-(rho**2)))
    duration = below.sum() * step_s / (below[1:] & ~below[:-1]).sum()
    expected = (np.exp(rho**2) - 1) / (rho * shift_hz * np.sqrt(2 * np.pi))
    assert duration == pytest.approx(expected, rel=0.05)


def test_autoregressive_fading_is_right_at_lag_one_alone():
    shift_hz, step_s = 10.0, 0.01
    process = Ar1Process(20_000, shift_hz, step_s, seed=0)
    gain = [process.gain(step) for step in range(4)]
    rho = j0(2 * np.pi * shift_hz * step_s)
    assert within((gain[1] * gain[0].conj()).real, rho)
    assert within((gain[3] * gain[0].conj()).real, rho**3)
    assert within(np.abs(gain[3]) ** 2, 1.0)


def test_doppler_and_coherence():
    assert doppler_hz(30.0, 2e9) == pytest.approx(200.1, abs=0.1)
    assert coherence_time_s(200.0) == pytest.approx(2.1e-3, rel=0.01)
    assert coherence_time_s(0.0) == np.inf
