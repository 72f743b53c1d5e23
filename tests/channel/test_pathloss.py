"""TR 38.901 by hand, and the statistics of shadowing."""

import numpy as np
import pytest

from channel.pathloss import (
    SCENARIOS,
    SPEED_OF_LIGHT_MPS,
    breakpoint_m,
    los_probability,
    path_loss_db,
    shadowing_step,
)


def test_umi_by_hand():
    """3.5 GHz, 1.5 m terminal at 100 m: the ground distance is before the breakpoint of 210 m."""
    edge = 4 * 9 * 0.5 * 3.5e9 / SPEED_OF_LIGHT_MPS
    assert breakpoint_m("umi", 3.5e9, 1.5) == pytest.approx(edge) == pytest.approx(210.1, abs=0.1)
    d3 = np.sqrt(100**2 + 8.5**2)
    los = 32.4 + 21 * np.log10(d3) + 20 * np.log10(3.5)
    nlos = 22.4 + 35.3 * np.log10(d3) + 21.3 * np.log10(3.5)
    assert path_loss_db("umi", 100.0, 3.5e9, is_los=True) == pytest.approx(los)
    assert path_loss_db("umi", 100.0, 3.5e9, is_los=False) == pytest.approx(nlos)


@pytest.mark.parametrize("scenario", ["umi", "uma"])
def test_loss_is_continuous_at_the_breakpoint(scenario):
    edge = breakpoint_m(scenario, 3.5e9, 1.5)
    below, above = path_loss_db(
        scenario, [edge * (1 - 1e-9), edge * (1 + 1e-9)], 3.5e9, is_los=True
    )
    assert below == pytest.approx(above, abs=1e-4)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_loss_rises_with_distance_and_frequency_and_is_never_less_without_sight(scenario):
    d = np.geomspace(1, 2000, 400)
    los, nlos = (path_loss_db(scenario, d, 3.5e9, is_los=s) for s in (True, False))
    assert (np.diff(los) > 0).all()
    assert (np.diff(nlos) > 0).all()
    assert (nlos >= los).all()
    assert (path_loss_db(scenario, d, 28e9, is_los=True) > los).all()


def test_probability_of_sight():
    for scenario in ("umi", "uma"):
        assert los_probability(scenario, 18.0) == 1.0
    assert los_probability("umi", 50.0) == pytest.approx(18 / 50 + np.exp(-50 / 36) * (1 - 18 / 50))
    assert los_probability("inh", 1.0) == 1.0
    assert los_probability("inh", 6.5) == pytest.approx(0.32)
    for scenario in SCENARIOS:
        p = los_probability(scenario, np.geomspace(0.5, 3000, 300))
        assert ((p >= 0) & (p <= 1)).all()
        assert (np.diff(p) <= 1e-12).all() or scenario == "inh"


def test_shadowing_keeps_its_variance_and_decorrelates_with_distance():
    rng, sigma, d_corr, moved = np.random.default_rng(0), 4.0, 10.0, 5.0
    walkers, steps = 20_000, 4
    x = sigma * rng.standard_normal(walkers)
    first = x
    for _ in range(steps):
        x = shadowing_step(
            x, moved, sigma_db=sigma, correlation_m=d_corr, normal=rng.standard_normal(walkers)
        )
    # Five standard errors of a variance and of a correlation coefficient.
    assert np.var(x) == pytest.approx(sigma**2, rel=5 * np.sqrt(2 / walkers))
    rho = np.exp(-steps * moved / d_corr)
    assert np.corrcoef(first, x)[0, 1] == pytest.approx(rho, abs=5 / np.sqrt(walkers))


def test_without_moving_shadowing_stays():
    assert shadowing_step(3.0, 0.0, sigma_db=4.0, correlation_m=10.0, normal=9.9) == 3.0
