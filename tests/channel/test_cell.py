"""Completion times against closed forms, what the band can carry, and keyed randomness."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel import Cell, ChannelConfig


def steady(**values):
    """A cell whose links are known exactly: 3 dB on 1 MHz, no fading, perfect reports."""
    base = {"fading": "none", "csi_error_db": 0.0, "csi_quantisation_db": 0.0,
            "csi_margin_db": 0.0, "snr_db": 3.0}  # fmt: skip
    return ChannelConfig(**{**base, **values})


def begun(config, num_devices, seed=0, round_index=0):
    cell = Cell(config, num_devices, seed=seed)
    cell.begin_round(round_index)
    return cell


@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=9))
def test_equal_sharing_ends_at_the_closed_form(sizes):
    """T_(k) = sum_{j<=k} (N - j + 1)(s_j - s_{j-1}) for sorted transfer times s."""
    cell = begun(steady(deadline_s=50.0, round_period_s=50.0), len(sizes))
    rate = cell.true_links().rate_bps[0]
    got = cell.transfer(dict(enumerate(sizes)))
    work = np.sort(sizes) / rate
    gaps = np.diff(work, prepend=0.0)
    expected = np.cumsum((len(sizes) - np.arange(len(sizes))) * gaps)
    np.testing.assert_allclose(sorted(d.delay_s for d in got.values()), expected, rtol=1e-9)


def test_orthogonal_bands_do_not_slow_each_other():
    cell = begun(steady(sharing="orthogonal"), 3)
    rate = cell.true_links().rate_bps[0]
    got = cell.transfer({0: 100_000, 1: 200_000, 2: 50_000})
    assert [got[d].delay_s for d in range(3)] == pytest.approx(
        [100_000 / rate, 200_000 / rate, 50_000 / rate]
    )


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 2_000_000), min_size=1, max_size=8),
    st.sampled_from(["none", "rayleigh", "rician", "clarke"]),
    st.integers(0, 1000),
)
def test_no_more_is_sent_than_the_band_could_carry(sizes, fading, seed):
    """Shares of the air time, bits_i / R_i, add up to the deadline at most."""
    config = ChannelConfig(fading=fading, doppler_hz=20.0)
    cell = begun(config, len(sizes), seed)
    rates = cell.true_links().rate_bps
    got = cell.transfer(dict(enumerate(sizes)))
    for device, delivery in got.items():
        assert delivery.sent_bits <= sizes[device]
        assert delivery.delivered_bits in (0, sizes[device])
        assert 0.0 <= delivery.delay_s <= config.deadline_s
        assert delivery.is_delivered == (delivery.sent_bits == sizes[device])
    if fading != "clarke":
        used = sum(d.sent_bits / rates[i] for i, d in got.items())
        assert used <= config.deadline_s * (1 + 1e-9)
        if any(not d.is_delivered for d in got.values()):
            assert used == pytest.approx(config.deadline_s)


def test_a_plan_that_fills_the_deadline_arrives_and_one_bit_in_a_hundred_more_does_not():
    config = ChannelConfig(csi_error_db=0.0, csi_quantisation_db=0.0, csi_margin_db=0.0)
    for factor, expected in ((1.0, True), (1.01, False)):
        cell = begun(config, 8, seed=3)
        plan = cell.planned_rate_bps(cell.reported_links()) * config.deadline_s / 8 * factor
        got = cell.transfer({d: int(b) for d, b in enumerate(plan)})
        assert all(d.is_delivered for d in got.values()) == expected


def test_clarke_transfers_follow_the_rate_as_it_changes():
    """One device alone: its bits are the integral of the rate over the blocks."""
    config = ChannelConfig(fading="clarke", doppler_hz=10.0, coherence_s=0.01)
    cell, twin = begun(config, 1, seed=5), Cell(config, 1, seed=5)
    got = cell.transfer({0: 10**9})[0]
    carried = 0.0
    for block in range(100):
        power = twin._paths[0].power(block * 0.01)
        carried += 0.01 * 1e6 * np.log2(1 + 10**0.5 * power)
    assert not got.is_delivered
    assert got.sent_bits == pytest.approx(float(carried), rel=1e-6)


def test_a_device_more_changes_nothing_for_the_others():
    config = ChannelConfig(snr_db=None, snr_spread_db=3.0)
    few, many = begun(config, 3, seed=1, round_index=4), begun(config, 5, seed=1, round_index=4)
    np.testing.assert_array_equal(few.true_links().snr_db, many.true_links().snr_db[:3])
    np.testing.assert_array_equal(few.reported_links().snr_db, many.reported_links().snr_db[:3])


def test_the_channel_does_not_depend_on_what_was_sent():
    config = ChannelConfig(fading="clarke")
    busy, idle = Cell(config, 2, seed=0), Cell(config, 2, seed=0)
    for round_index in range(3):
        busy.begin_round(round_index)
        busy.transfer({0: 10**7, 1: 10})
    idle.begin_round(2)
    start = Cell(config, 2, seed=0)
    start.begin_round(2)
    assert idle.now_s == start.now_s == 2.0
    busy.begin_round(3)
    idle.begin_round(3)
    np.testing.assert_array_equal(busy.true_links().snr_db, idle.true_links().snr_db)


def test_a_checkpoint_goes_on_as_the_original():
    config = ChannelConfig(fading="clarke", residual_error_rate=0.5)
    cell = begun(config, 4, seed=2)
    cell.transfer({0: 50_000})
    copy = Cell(config, 4, seed=2)
    copy.load_state_dict(cell.state_dict())
    for one in (cell, copy):
        one.begin_round(1)
    bits = {d: 60_000 for d in range(4)}
    assert cell.transfer(bits) == copy.transfer(bits)


def test_the_order_of_the_mapping_does_not_matter():
    bits = {3: 70_000, 0: 50_000, 1: 90_000}
    config = ChannelConfig()
    first = begun(config, 4).transfer(bits)
    second = begun(config, 4).transfer(dict(sorted(bits.items())))
    assert first == second


def test_nothing_to_send_arrives_at_once_and_a_dead_link_never():
    cell = begun(steady(snr_db=-4000.0), 2)
    got = cell.transfer({0: 0, 1: 10})
    assert (got[0].is_delivered, got[0].delay_s) == (True, 0.0)
    assert (got[1].is_delivered, got[1].sent_bits, got[1].delay_s) == (False, 0.0, 1.0)


def test_energy_is_receiving_and_idling():
    config = steady(receive_power_w=2.0, idle_power_w=0.1, sharing="orthogonal")
    cell = begun(config, 1)
    got = cell.transfer({0: int(cell.true_links().rate_bps[0] / 4)})[0]
    assert got.energy_j == pytest.approx(2.0 * 0.25 + 0.1 * 0.75, rel=1e-5)


def test_residual_errors_come_at_their_rate():
    cell = Cell(steady(residual_error_rate=0.3), 50, seed=0)
    hits = 0
    for round_index in range(40):
        cell.begin_round(round_index)
        hits += sum(d.has_bit_error for d in cell.transfer({i: 8 for i in range(50)}).values())
    # 2000 draws: five standard errors.
    assert abs(hits / 2000 - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 2000)


def test_reports_are_quantised_and_scatter_around_the_truth():
    config = ChannelConfig(csi_error_db=0.5, csi_quantisation_db=1.0)
    errors = []
    cell = Cell(config, 50, seed=0)
    for round_index in range(40):
        cell.begin_round(round_index)
        reported = cell.reported_links().snr_db
        np.testing.assert_array_equal(reported, np.round(reported))
        errors.append(reported - cell.true_links().snr_db)
    # Gaussian error plus a uniform quantisation error of one step.
    sigma = np.sqrt(0.5**2 + 1 / 12)
    assert np.std(errors) == pytest.approx(sigma, rel=5 / np.sqrt(2 * 2000))
    assert abs(np.mean(errors)) < 5 * sigma / np.sqrt(2000)


def test_rounds_only_go_forward():
    cell = begun(ChannelConfig(), 1, round_index=3)
    with pytest.raises(ValueError, match="round_index must be above 3, .* got 3"):
        cell.begin_round(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Cell(ChannelConfig(), 0, seed=0), "num_devices must be >= 1, got 0"),
        (lambda: begun(ChannelConfig(), 2).transfer({2: 1}), r"device must be in 0..1, got 2"),
        (lambda: begun(ChannelConfig(), 2).transfer({0: -1}), "bits of device 0 must be >= 0"),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
