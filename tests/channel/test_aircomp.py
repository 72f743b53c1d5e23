"""Analog aggregation: measured errors against the closed form."""

import numpy as np
import pytest
from scipy.special import exp1

from channel.aircomp import aggregate, align

AMPLITUDE = np.array([0.4, 0.9, 1.3, 0.7])


def mean_square_error(alignment, *, noise_power: float) -> float:
    """[sum_k (|h_k b_k| / sqrt(eta) - 1)^2 + sigma^2 / eta] / K^2 for unit-power symbols.

    The sum and K are over those who transmit.
    """
    active = alignment.gain[alignment.is_active]
    bias = np.sum((active / np.sqrt(alignment.eta) - 1.0) ** 2)
    return float((bias + noise_power / alignment.eta) / len(active) ** 2)


def truncated_mean_power(eta_over_gain: float, threshold: float) -> float:
    """Mean transmit power of truncated inversion over Rayleigh fading: rho0 E1(g).

    Power rho0 / |h|^2 is spent where |h|^2 >= g; a share e^{-g} of the devices transmits.
    """
    return eta_over_gain * float(exp1(threshold))


@pytest.mark.parametrize(
    ("inversion", "threshold"), [("full", 0.0), ("truncated", 0.3), ("clipped", 0.6)]
)
def test_the_error_is_that_of_the_closed_form(inversion, threshold):
    alignment = align(AMPLITUDE, max_power=2.0, inversion=inversion, threshold=threshold)
    rng, noise = np.random.default_rng(0), 0.1
    values = rng.choice([-1.0, 1.0], size=(4, 200_000))  # unit power, uncorrelated
    got = aggregate(values, alignment, noise_power=noise, rng=rng)
    square = (got - values[alignment.is_active].mean(axis=0)) ** 2
    expected = mean_square_error(alignment, noise_power=noise)
    assert abs(square.mean() - expected) < 5 * square.std() / np.sqrt(len(square))


def test_of_unequal_symbols_the_strongest_have_the_power_and_nobody_more():
    """At the threshold a device sends at full power: symbols stronger than 1 would exceed it."""
    values = np.array([[10.0, -10.0], [1.0, 1.0], [30.0, 30.0]])
    alignment = align([1.0, 1.0, 0.1], max_power=1.0, inversion="truncated", threshold=1.0)
    rng, noise = np.random.default_rng(0), 1e-2
    got = np.array(
        [aggregate(values, alignment, noise_power=noise, rng=rng) for _ in range(20_000)]
    )
    # The noise is scaled up with the strongest of those who send, which the third one is not.
    np.testing.assert_allclose(got.std(axis=0), 10.0 * np.sqrt(noise) / 2.0, rtol=0.03)
    np.testing.assert_allclose(got.mean(axis=0), [5.5, -4.5], atol=0.03)


def test_full_inversion_has_noise_alone():
    """sigma^2 / (K^2 P min |h|^2)."""
    alignment = align(AMPLITUDE, max_power=2.0, inversion="full")
    expected = 0.1 / (16 * 2.0 * 0.4**2)
    assert mean_square_error(alignment, noise_power=0.1) == pytest.approx(expected)


def test_no_one_exceeds_its_power():
    for inversion, threshold in (("full", 0.0), ("truncated", 0.3), ("clipped", 0.6)):
        alignment = align(AMPLITUDE, max_power=2.0, inversion=inversion, threshold=threshold)
        assert ((alignment.gain / AMPLITUDE) ** 2 <= 2.0 * (1 + 1e-12)).all()


def test_truncation_silences_its_share_and_spends_its_mean_power():
    rng, threshold = np.random.default_rng(0), 0.4
    gain = rng.exponential(size=200_000)
    alignment = align(np.sqrt(gain), max_power=1.0, inversion="truncated", threshold=threshold)
    active = alignment.is_active
    error = np.sqrt(np.exp(-threshold) / len(gain))
    assert abs(active.mean() - np.exp(-threshold)) < 5 * error
    power = np.where(active, alignment.eta / gain, 0.0)
    expected = truncated_mean_power(alignment.eta, threshold)
    assert abs(power.mean() - expected) < 5 * power.std() / np.sqrt(len(power))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: align(AMPLITUDE, max_power=1.0, inversion="half"), "inversion must be one of"),
        (lambda: align(AMPLITUDE, max_power=0.0, inversion="full"), "max_power must be > 0"),
        (lambda: align([0.0, 1.0], max_power=1.0, inversion="full"), "needs every .h. > 0"),
        (lambda: align(AMPLITUDE, max_power=1.0, inversion="clipped"), "threshold must be > 0"),
        (
            lambda: aggregate(
                np.ones(3), align(AMPLITUDE, max_power=1.0, inversion="full"),
                noise_power=0.0, rng=np.random.default_rng(0),
            ),
            "sharing one basis, got shape",
        ),
        (
            lambda: aggregate(
                np.ones((4, 2)),
                align(AMPLITUDE, max_power=1.0, inversion="truncated", threshold=9.0),
                noise_power=0.0, rng=np.random.default_rng(0),
            ),
            "no device is above the threshold",
        ),
    ],
)  # fmt: skip
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
