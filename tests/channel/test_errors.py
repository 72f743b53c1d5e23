"""Counts of repetitions and bursts against their closed forms."""

import numpy as np
import pytest

from channel.adaptation import cqi_block_error_rate
from channel.errors import (
    GilbertElliott,
    arq_expected_tries,
    arq_residual_loss,
    arq_transmissions,
    harq_error_rates,
    harq_expected_tries,
)


def within(sample, expected, num_errors=5.0):
    return abs(np.mean(sample) - expected) < num_errors * np.std(sample) / np.sqrt(len(sample))


def test_unlimited_arq_has_the_mean_and_variance_of_its_closed_form():
    rng, n, e = np.random.default_rng(0), 40, 0.3
    sent = np.array([arq_transmissions(n, e, None, rng=rng)[0] for _ in range(20_000)])
    assert within(sent, n / (1 - e))
    variance = n * e / (1 - e) ** 2
    assert within((sent - n / (1 - e)) ** 2, variance)


@pytest.mark.parametrize("max_tries", [1, 3])
def test_limited_arq_tries_and_loses_as_often_as_it_should(max_tries):
    rng, n, e = np.random.default_rng(1), 50, 0.4
    runs = [arq_transmissions(n, e, max_tries, rng=rng) for _ in range(20_000)]
    sent, lost = np.array(runs).T / n
    assert within(sent, arq_expected_tries(e, max_tries)) or max_tries == 1
    assert within(lost, arq_residual_loss(e, max_tries))


def test_arq_at_its_ends():
    rng = np.random.default_rng(0)
    assert arq_transmissions(7, 0.0, None, rng=rng) == (7, 0)
    assert arq_transmissions(7, 1.0, 3, rng=rng) == (21, 7)
    assert arq_transmissions(0, 0.5, None, rng=rng) == (0, 0)
    assert arq_expected_tries([0.0, 1.0], 4).tolist() == [1.0, 4.0]
    with pytest.raises(ValueError, match="needs max_tries"):
        arq_transmissions(1, 1.0, None, rng=rng)


def test_chase_combining_gains_three_decibels_with_the_second_copy():
    rates = harq_error_rates(2.0, lambda snr: float(cqi_block_error_rate(snr, 6)), 3)
    assert rates[1] == pytest.approx(float(cqi_block_error_rate(2.0 + 10 * np.log10(2), 6)))
    assert rates[0] > rates[1] > rates[2]
    assert harq_expected_tries(rates) == pytest.approx(1 + rates[0] + rates[1])


def test_gilbert_elliott_share_burst_and_correlation():
    p, r, count = 0.05, 0.25, 400_000
    chain = GilbertElliott(p, r, rng=np.random.default_rng(0))
    # Drawn in pieces, because a sojourn may go on from one piece into the next.
    bad = np.concatenate([chain.slots(size) for size in [1, 7, count // 2, count // 2 - 8]])
    share = p / (p + r)
    # Correlated slots: the variance of the mean is larger by (1 + q) / (1 - q).
    q = 1 - p - r
    error = np.sqrt(share * (1 - share) / len(bad) * (1 + q) / (1 - q))
    assert abs(bad.mean() - share) < 5 * error
    edges = np.flatnonzero(np.diff(bad.astype(int)))
    lengths = np.diff(edges)[0 if not bad[0] else 1 :: 2]
    assert within(lengths, 1 / r)
    for lag in (1, 3):
        correlation = np.corrcoef(bad[:-lag], bad[lag:])[0, 1]
        assert correlation == pytest.approx(q**lag, abs=0.02)


@pytest.mark.parametrize(("p", "r"), [(0.0, 0.5), (0.5, 1.5)])
def test_impossible_chains_are_refused(p, r):
    with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
        GilbertElliott(p, r, rng=np.random.default_rng(0))
