"""Statistics over independent seeds, as arrays.

The unit is a seed: it draws data, training, channel and policy at once, and methods that met the
same seed are paired. Arrays of scores are [seeds, conditions], a condition being one value of what
else was swept, such as the SNR. Aggregates follow Agarwal et al. 2021 (Deep Reinforcement Learning
at the Edge of the Statistical Precipice; their package is rliable).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far one method is above another."""

    difference: Estimate
    """mean of the first less mean of the second, with its t-interval"""
    p_value: float
    """two-sided, not corrected"""
    effect: Estimate
    """the difference in standard deviations, Hedges-corrected"""
    num_seeds: int


def interquartile_mean(scores: ArrayLike) -> Array:
    """Mean of the middle half over the last axis; a quarter is cut off at each end."""
    return np.asarray(stats.trim_mean(np.asarray(scores, dtype=np.float64), 0.25, axis=-1))


def bootstrap_over_seeds(
    scores: ArrayLike,
    statistic: Callable[[Array], Array] = interquartile_mean,
    *,
    rng: np.random.Generator,
    num_resamples: int = 2000,
) -> Estimate:
    """A statistic of all scores [seeds, conditions] with its percentile interval.

    Seeds are drawn with replacement, each with all its conditions: these share its random numbers.
    Drawn within each condition apart, as for independent runs (Agarwal et al. 2021, section 4.1),
    the intervals would be far too narrow; every condition is there as often either way. An infinite
    score (a mark that was never reached) is larger than any other. ``statistic`` works
    on the last axis.
    """
    scores = _matrix(scores)
    drawn = rng.integers(len(scores), size=(num_resamples, len(scores)))
    resampled = scores[drawn].reshape(num_resamples, -1)
    return _percentiles(float(statistic(scores.reshape(-1))), statistic(resampled))


def probability_of_improvement(first: ArrayLike, second: ArrayLike) -> float:
    """P(X > Y) + P(X = Y) / 2 for a seed of each, mean over conditions (Mann-Whitney's U)."""
    x, y = _matrix(first), _matrix(second)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both need the same conditions, got {x.shape[1]} and {y.shape[1]}")
    above = stats.mannwhitneyu(x, y, axis=0, method="asymptotic").statistic  # [conditions]
    return float(above.mean() / (len(x) * len(y)))


def performance_profile(scores: ArrayLike, marks: ArrayLike) -> Array:
    """[marks] share of all runs whose score is above each mark (Dolan and More 2002)."""
    return (_matrix(scores).reshape(1, -1) > np.asarray(marks).reshape(-1, 1)).mean(axis=1)


def compare_paired(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Student's paired t on [seeds] that met the same random numbers.

    The effect is d = mean / s of the differences, times J(n - 1), with the exact interval of the
    noncentral t whose noncentrality is d sqrt(n) (Hedges and Olkin 1985).
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(f"pairs need two seeds or more, got shapes {x.shape} and {y.shape}")
    differences = x - y
    n, difference, error = len(x), float(differences.mean()), float(stats.sem(differences))
    if difference == error == 0.0:
        return Comparison(Estimate(0.0, 0.0, 0.0), 1.0, Estimate(0.0, 0.0, 0.0), n)
    if error <= 1e-12 * abs(difference):
        # Accuracies lie on a grid, so that a few pairs may well differ by the same: a spread of
        # nothing tells no interval, and only what n like signs alone can say of chance.
        nothing = Estimate(np.nan, np.nan, np.nan)
        by_signs = float(stats.binomtest(n, n).pvalue)
        return Comparison(Estimate(difference, np.nan, np.nan), by_signs, nothing, n)
    test = stats.ttest_rel(x, y)
    scale = hedges_correction(n - 1) * n**-0.5
    ends = (scale * _noncentrality(float(test.statistic), n - 1, share) for share in (0.975, 0.025))
    return Comparison(
        Estimate(difference, *map(float, test.confidence_interval())),
        float(test.pvalue),
        Estimate(float(scale * test.statistic), *ends),
        n,
    )


def holm(p_values: Sequence[float]) -> Array:
    """Holm's (1979) corrected p-values: the family-wise error of rejecting those below alpha."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(raised, 1.0)
    return corrected


def normalised_score(
    scores: ArrayLike,
    uniform: ArrayLike,
    best: ArrayLike,
    *,
    rng: np.random.Generator,
    num_resamples: int = 2000,
) -> Estimate:
    """Mean gain over ``uniform`` as a share of that of ``best``: 0 is uniform, 1 the best.

    A ratio of means over seeds and conditions, never a mean of ratios, since a single gain may be
    nothing. All three are [seeds, conditions] of the same seeds, which are drawn together. Not a
    number where best is not above uniform in 39 of 40 resamples: there only the points tell.
    """
    x, low, high = _matrix(scores), _matrix(uniform), _matrix(best)
    if not x.shape == low.shape == high.shape:
        raise ValueError(
            f"scores, uniform and best need the same seeds and conditions, got shapes {x.shape}, "
            f"{low.shape} and {high.shape}"
        )
    gain, most = (x - low).mean(axis=1), (high - low).mean(axis=1)  # [seeds]
    drawn = rng.integers(len(x), size=(num_resamples, len(x)))
    gains, mosts = gain[drawn].mean(axis=1), most[drawn].mean(axis=1)
    if most.mean() <= 0 or np.quantile(mosts, 0.025) <= 0:
        return Estimate(np.nan, np.nan, np.nan)
    ratios = gains[mosts > 0] / mosts[mosts > 0]
    return _percentiles(gain.mean() / most.mean(), ratios)


def hedges_correction(df: float) -> float:
    """J(df), which takes the bias off a standardised difference (Hedges 1981, equation 6e).

    Not a number below two degrees of freedom, where the mean of that difference does not exist.
    """
    if df < 2:
        return float("nan")
    return float(special.poch((df - 1) / 2, 0.5) / (df / 2) ** 0.5)


def mean_interval(values: ArrayLike) -> Estimate:
    """Mean and Student's t-interval of independent values; of one value no interval."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return Estimate(float(x.mean()), np.nan, np.nan)
    half = stats.t.ppf(0.975, len(x) - 1) * stats.sem(x)
    return Estimate(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(100)


def _noncentrality(t: float, df: float, share: float) -> float:
    """The noncentrality under which P(T <= t) is ``share``.

    P(T <= t) = E[Phi(t s - nc)] with s^2 = chi^2 / df, by quadrature over the quantiles of s:
    scipy's nctdtrinc is 4 % off at t = 1e5, and searches for minutes at 1e6.
    """
    s = np.sqrt(stats.chi2.ppf((_NODES + 1.0) / 2.0, df) / df)

    def miss(nc: float) -> float:
        return float(0.5 * _WEIGHTS @ special.ndtr(t * s - nc) - share)

    # T is about normal around nc with a spread of sqrt(1 + nc^2 / (2 df)).
    reach = 8.0 * (1.0 + t * t / (2.0 * df)) ** 0.5
    return float(optimize.brentq(miss, t - reach, t + reach))


def _matrix(scores: ArrayLike) -> Array:
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2 or not matrix.size or np.isnan(matrix).any():
        raise ValueError(
            f"scores must be [seeds, conditions] with none missing, got shape {matrix.shape}"
            f"{' with not-a-number' if matrix.size and np.isnan(matrix).any() else ''}"
        )
    return matrix


def _percentiles(value: float, resampled: Array) -> Estimate:
    # No interpolation: between a number and an infinite score there is none.
    low, high = np.quantile(resampled, (0.025, 0.975), method="inverted_cdf")
    return Estimate(float(value), float(low), float(high))
