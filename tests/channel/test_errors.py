"""Counts of repetitions and bursts against their closed forms."""

import numpy as np
import pytest

from channel import LinkConfig
from channel.adaptation import cqi_block_error_rate, cqi_efficiency, select_cqi
from channel.errors import GilbertElliott, arq_expected_tries, arq_residual_loss
from channel.transmission import goodput_bps


def within(sample, expected, num_errors=5.0):
    return abs(np.mean(sample) - expected) < num_errors * np.std(sample) / np.sqrt(len(sample))


def test_arq_tries_and_loses_as_often_as_its_closed_forms_say():
    """Blocks played one by one."""
    rng, e, max_tries, blocks = np.random.default_rng(1), 0.4, 3, 50_000
    failed = rng.random((blocks, max_tries)) < e
    tries = np.where(failed.all(axis=1), max_tries, failed.argmin(axis=1) + 1)
    assert within(tries, arq_expected_tries(e, max_tries))
    assert within(failed.all(axis=1).astype(float), arq_residual_loss(e, max_tries))
    assert arq_expected_tries([0.0, 1.0], 4).tolist() == [1.0, 4.0]


def test_chase_combining_adds_up_the_copies_snrs():
    """k copies err as one at k times the SNR; a try is only made if those before it failed."""
    link = LinkConfig(adaptation="cqi", combining="chase", max_tries=3, is_reliable=False)
    true_db, known_db = np.array([2.0]), np.array([2.6])  # the code is too bold for one copy
    cqi = int(select_cqi(known_db)[0])
    error = [float(cqi_block_error_rate(2.0 + 10 * np.log10(k), cqi)) for k in (1, 2, 3)]
    assert error[0] > 0.5 > error[1] > error[2] > 0.0
    rate_bps, hazard = goodput_bps(link, 1e6, true_db, known_db)
    assert rate_bps[0] == pytest.approx(1e6 * cqi_efficiency(cqi) / (1 + error[0] + error[1]))
    bits = cqi_efficiency(cqi) * link.block_symbols
    assert np.exp(-hazard[0] * bits) == pytest.approx(1 - error[2], abs=1e-12)


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
    whole = GilbertElliott(p, r, rng=np.random.default_rng(0)).slots(count)
    np.testing.assert_array_equal(bad, whole)  # in however many pieces
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
