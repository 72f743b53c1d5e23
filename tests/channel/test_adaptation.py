"""CQI tables at their edges, finite block lengths against each other and against capacity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.adaptation import (
    CQI_EFFICIENCY,
    CQI_THRESHOLD_DB,
    block_error_rate,
    cqi_block_error_rate,
    cqi_efficiency,
    finite_blocklength_rate,
    select_cqi,
)


def test_a_cqi_is_chosen_from_its_threshold_on():
    for index, threshold in enumerate(CQI_THRESHOLD_DB, start=1):
        assert select_cqi(threshold) == index
        assert select_cqi(threshold - 1e-9) == index - 1
    assert cqi_efficiency([0, 1, 15]).tolist() == [0.0, CQI_EFFICIENCY[0], CQI_EFFICIENCY[-1]]


def test_no_cqi_is_above_capacity_at_its_threshold():
    capacity = np.log2(1 + 10 ** (CQI_THRESHOLD_DB / 10))
    assert (capacity > CQI_EFFICIENCY).all()


def test_a_cqi_has_ten_per_cent_of_errors_at_its_threshold():
    cqi = np.arange(1, 16)
    np.testing.assert_allclose(cqi_block_error_rate(CQI_THRESHOLD_DB, cqi), 0.1, rtol=1e-6)
    # A decibel less is hardly ever enough, one more nearly always.
    assert (cqi_block_error_rate(CQI_THRESHOLD_DB - 1.0, cqi) > 0.4).all()
    assert (cqi_block_error_rate(CQI_THRESHOLD_DB + 1.0, cqi) < 0.02).all()


@given(st.floats(-80, 40), st.floats(1e-9, 0.49), st.sampled_from([20, 100, 1000]))
def test_no_rate_is_above_capacity(snr_db, error, symbols):
    capacity = np.log1p(10 ** (snr_db / 10)) / np.log(2)
    assert finite_blocklength_rate(snr_db, symbols, error) <= capacity


@given(st.floats(-5, 20), st.floats(1e-6, 0.4), st.sampled_from([100, 1000, 10_000]))
def test_rate_and_error_are_inverse(snr_db, error, symbols):
    rate = finite_blocklength_rate(snr_db, symbols, error)
    if rate > 0:
        assert block_error_rate(snr_db, symbols, rate) == pytest.approx(error, rel=1e-6)


def test_long_blocks_reach_capacity_and_short_ones_do_not():
    capacity = np.log2(1 + 10.0)
    assert finite_blocklength_rate(10.0, 10**9, 1e-3) == pytest.approx(capacity, rel=1e-3)
    assert finite_blocklength_rate(10.0, 200, 1e-3) < 0.95 * capacity


def test_errors_fall_with_snr_and_are_certain_without_signal():
    snr_db = np.linspace(-30, 30, 200)
    for cqi in (1, 7, 15):
        error = cqi_block_error_rate(snr_db, cqi)
        assert (np.diff(error) <= 1e-12).all()
        assert error[0] == pytest.approx(1.0)
        assert error[-1] == pytest.approx(0.0, abs=1e-9)
    assert cqi_block_error_rate(-np.inf, 1) == 1.0
    assert cqi_block_error_rate(20.0, 0) == 1.0
