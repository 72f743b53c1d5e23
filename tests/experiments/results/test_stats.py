"""Statistics against closed forms, published values, scipy, and their own coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from experiments.results import stats


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_interquartile_mean_is_that_of_the_middle_half():
    # Of 8 values the 2 smallest and the 2 largest go.
    assert stats.interquartile_mean([100, 1, 2, 3, 4, 5, -100, 6]) == (2 + 3 + 4 + 5) / 4
    assert list(stats.interquartile_mean(np.arange(12).reshape(3, 4))) == [1.5, 5.5, 9.5]
    assert stats.interquartile_mean([1, 2, 3, np.inf]) == 2.5
    x = np.random.default_rng(0).normal(size=39)
    assert stats.interquartile_mean(x) == pytest.approx(scipy_stats.trim_mean(x, 0.25))


def test_a_bootstrap_over_seeds_of_the_mean_has_its_standard_error(rng):
    # Within-condition variance over seeds alone: what lies between conditions does not count.
    scores = rng.normal(size=(40, 3)) + np.array([0.0, 10.0, 20.0])
    found = stats.bootstrap_over_seeds(
        scores, lambda x: x.mean(axis=-1), rng=rng, num_resamples=4000
    )
    error = (scores.mean(axis=1).var() / len(scores)) ** 0.5
    assert found.value == pytest.approx(scores.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_an_interval_covers_what_it_should(rng):
    # 95 % in the limit; a percentile interval of 20 seeds is a little too narrow. Seeds are what
    # differs most, and all conditions of one share it.
    covered = 0
    for _ in range(300):
        scores = rng.normal(size=(20, 1)) + 0.3 * rng.normal(size=(20, 5))
        found = stats.bootstrap_over_seeds(scores, rng=rng, num_resamples=200)
        covered += found.low <= 0.0 <= found.high
    assert 0.88 <= covered / 300 <= 0.98


def test_a_mark_that_some_never_reach_is_beyond_the_interval(rng):
    found = stats.bootstrap_over_seeds([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, np.inf, np.inf], rng=rng)
    assert np.isfinite(found.value)
    assert np.isfinite(found.low)
    assert found.high == np.inf


def test_the_probability_of_improvement_is_mann_whitneys(rng):
    x, y = rng.integers(0, 5, size=(8, 2)), rng.integers(0, 5, size=(6, 2))
    expected = np.mean(
        [scipy_stats.mannwhitneyu(x[:, k], y[:, k]).statistic / (8 * 6) for k in range(2)]
    )
    assert stats.probability_of_improvement(x, y) == pytest.approx(expected)
    assert stats.probability_of_improvement([2.0, 3.0], [0.0, 1.0]) == 1.0
    with pytest.raises(ValueError, match="same conditions, got 2 and 1"):
        stats.probability_of_improvement(x, y[:, :1])


def test_a_performance_profile_counts_runs_above_each_mark():
    np.testing.assert_allclose(
        stats.performance_profile([[0.1, 0.5], [0.5, 0.9]], [0.0, 0.5, 0.95]), [1.0, 0.25, 0.0]
    )


# Student's (1908) own data: hours of sleep that two drugs gained the same ten patients.
SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)


def test_students_sleep_data():
    # As R prints it: t.test(extra ~ group, data = sleep, paired = TRUE).
    paired = stats.compare_paired(*SLEEP)
    assert paired.difference.value == pytest.approx(-1.58)
    assert (paired.difference.low, paired.difference.high) == pytest.approx(
        (-2.4598858, -0.7001142), abs=1e-6
    )
    assert paired.p_value == pytest.approx(0.002833, abs=1e-6)


def test_effects_are_hedges_corrected_with_exact_intervals():
    paired = stats.compare_paired(*SLEEP).effect
    # d = -1.58 / 1.23, J(9) = Gamma(4.5) / (sqrt(4.5) Gamma(4)).
    j = 11.631728396567448 / (4.5**0.5 * 6.0)
    assert stats.hedges_correction(9) == pytest.approx(j)
    assert np.isnan(stats.hedges_correction(1))  # two seeds tell no effect
    assert stats.hedges_correction(100) == pytest.approx(1 - 3 / (4 * 100 - 1), abs=1e-5)
    d = np.mean(np.subtract(*SLEEP)) / np.std(np.subtract(*SLEEP), ddof=1)
    assert paired.value == pytest.approx(j * d)
    # At its ends the t that was seen is just at the edge of what is to be expected.
    t = d * 10**0.5
    for end, share in ((paired.low, 0.975), (paired.high, 0.025)):
        assert scipy_stats.nct.cdf(t, 9, end / j * 10**0.5) == pytest.approx(share, abs=1e-5)


def test_an_effects_interval_covers_the_truth(rng):
    covered = 0
    for _ in range(200):
        found = stats.compare_paired(rng.normal(0.8, 1.0, 10), np.zeros(10)).effect
        # Scaled by J, an exact interval covers J times the truth.
        covered += found.low <= 0.8 * stats.hedges_correction(9) <= found.high
    assert 0.91 <= covered / 200 <= 0.99


def test_of_pairs_that_all_differ_by_the_same_only_the_signs_tell():
    same = stats.compare_paired([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.p_value, same.effect.value) == (1.0, 0.0)
    shifted = stats.compare_paired([1.1, 2.1, 3.1], [1.0, 2.0, 3.0])
    assert shifted.p_value == 0.25  # two of eight ways to toss three coins are all alike
    assert shifted.difference.value == pytest.approx(0.1)
    assert np.isnan([shifted.difference.low, shifted.difference.high, shifted.effect.value]).all()
    with pytest.raises(ValueError, match="two seeds or more"):
        stats.compare_paired([1.0], [2.0])


def test_holm_on_a_worked_example():
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1: 0.03, 0.06, then no less than 0.06.
    np.testing.assert_allclose(stats.holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(stats.holm([0.5, 0.6]), [1.0, 1.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_between_no_correction_and_bonferronis(p):
    corrected = stats.holm(p)
    assert (corrected >= np.array(p)).all()
    assert (corrected <= np.minimum(1.0, np.array(p) * len(p)) + 1e-15).all()
    assert (np.argsort(corrected[np.argsort(p)], kind="stable") == np.arange(len(p))).all()


def test_a_normalised_score_is_a_ratio_of_means(rng):
    uniform = rng.normal(0.5, 0.05, size=(10, 3))
    best = uniform + np.array([0.0, 0.1, 0.3])
    half = stats.normalised_score(uniform + 0.5 * (best - uniform), uniform, best, rng=rng)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))
    noisy = uniform + 0.5 * (best - uniform) + rng.normal(0, 0.02, size=(10, 3))
    found = stats.normalised_score(noisy, uniform, best, rng=rng)
    assert found.low < 0.5 < found.high
    # A condition in which nothing is to be gained does not spoil the others.
    assert stats.normalised_score(best, uniform, best, rng=rng).value == pytest.approx(1.0)


def test_where_best_and_uniform_coincide_there_is_no_score(rng):
    uniform = rng.normal(size=(10, 1))
    best = uniform + rng.normal(0, 0.1, size=(10, 1))
    assert np.isnan(stats.normalised_score(best, uniform, uniform, rng=rng).value)
    assert np.isnan(stats.normalised_score(uniform, best, best - 0.001, rng=rng).value)
    with pytest.raises(ValueError, match=r"shapes \(10, 1\), \(10, 1\) and \(9, 1\)"):
        stats.normalised_score(best, uniform, uniform[1:], rng=rng)


def test_missing_scores_are_named(rng):
    with pytest.raises(ValueError, match=r"got shape \(2, 1\) with not-a-number"):
        stats.bootstrap_over_seeds([1.0, np.nan], rng=rng)
