"""What happens exactly at the deadline."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel import Cell, ChannelConfig

# 0 dB on 1 MHz: a million bits fill the deadline of one second exactly.
FULL = 1_000_000
EXACT = {"fading": "none", "csi_error_db": 0.0, "csi_quantisation_db": 0.0, "csi_margin_db": 0.0,
         "snr_db": 0.0}  # fmt: skip
PATHS = {
    "events": {},
    "events, orthogonal": {"sharing": "orthogonal"},
    "slots, equal": {"fading": "clarke", "doppler_hz": 0.0},
    "slots, round-robin": {"scheduler": "round-robin"},
    "slots, best-first": {"scheduler": "best-first"},
}


def begun(num_devices, round_index=0, **values):
    cell = Cell(ChannelConfig(**{**EXACT, **values}), num_devices, seed=0)
    cell.begin_round(round_index)
    return cell


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("round_index", [0, 1, 7, 1000, 10**5])
def test_what_fills_the_deadline_arrives_at_the_deadline(path, round_index):
    cell = begun(1, round_index, **PATHS[path])
    rate = float(cell.true_links().rate_bps[0])
    size = FULL if path != "slots, equal" else int(rate)
    got = cell.transfer({0: size})[0]
    assert got.is_delivered
    assert (got.sent_bits, got.delivered_bits) == (size, size)
    assert got.delay_s == pytest.approx(size / rate, rel=1e-9)


@pytest.mark.parametrize("path", [p for p in PATHS if p != "slots, equal"])
@pytest.mark.parametrize("round_index", [0, 7, 1000])
def test_what_is_a_bit_too_long_is_cut(path, round_index):
    got = begun(1, round_index, **PATHS[path]).transfer({0: FULL + 1})[0]
    assert not got.is_delivered
    assert got.delivered_bits == 0
    assert got.sent_bits == pytest.approx(FULL, rel=1e-9)
    assert got.sent_bits < FULL + 1
    assert got.delay_s == 1.0


@pytest.mark.parametrize("scheduler", ["equal", "round-robin", "best-first", "proportional-fair"])
@pytest.mark.parametrize("num_devices", [2, 3, 4, 7, 8, 64])
def test_a_joint_plan_that_fills_the_deadline_arrives_whole(scheduler, num_devices):
    sizes = np.full(num_devices, FULL // num_devices)
    sizes[: FULL % num_devices] += 1
    assert sizes.sum() == FULL
    got = begun(num_devices, 3, scheduler=scheduler).transfer(dict(enumerate(sizes.tolist())))
    assert all(d.is_delivered for d in got.values())
    assert max(d.delay_s for d in got.values()) == pytest.approx(1.0, rel=1e-9)


@settings(max_examples=60)
@given(
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=12),
    st.integers(0, 1000),
    st.integers(0, 2000),
)
def test_a_plan_with_its_sum_of_air_times_at_the_deadline_arrives(shares, seed, round_index):
    """sum_i bits_i / R_i <= deadline is all that equal sharing needs, at unequal rates too."""
    config = ChannelConfig(**{**EXACT, "fading": "rayleigh"})
    cell = Cell(config, len(shares), seed=seed)
    cell.begin_round(round_index)
    rates = cell.planned_rate_bps(cell.reported_links())
    part = np.array(shares) / np.sum(shares)
    got = cell.transfer({d: int(b) for d, b in enumerate(part * rates)})
    assert all(d.is_delivered for d in got.values())
