"""The accountant against the exact cost of composed Gaussian mechanisms."""

import math

import pytest
from scipy.stats import norm

from experiments.run.privacy_accounting import epsilon


@pytest.mark.parametrize(("noise", "releases"), [(1.0, 1), (1.0, 10), (4.0, 10), (8.0, 300)])
def test_epsilon_is_an_upper_bound_of_the_exact_one_and_near_it(noise, releases):
    # Dong, Roth and Su 2022 (arXiv 1905.02383): composed Gaussian mechanisms are one of this mu.
    mu = math.sqrt(releases) / noise

    def delta(eps):
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)

    low, high = 0.0, 200.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > 1e-5 else (low, middle)
    assert high <= epsilon(noise, releases, 1e-5) <= 1.2 * high
