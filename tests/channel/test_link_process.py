"""How a link changes: over rounds, within one, and with where a device is."""

import numpy as np
import pytest

from channel import Cell, ChannelConfig, PathConfig, process
from channel.fading import ClarkeProcess
from channel.mobility import read_trajectories
from channel.pathloss import path_loss_db
from channel.process import LinkProcess


def test_clarke_transfers_follow_the_rate_as_it_changes(begun):
    """One device alone: its bits are the integral of the rate over the blocks."""
    config = ChannelConfig(fading="clarke", doppler_hz=10.0, coherence_s=0.01)
    cell, twin = begun(config, 1, seed=5), ClarkeProcess(1, 10.0, seed=5)
    got = cell.transfer({0: 10**9})[0]
    carried = 0.0
    for block in range(100):
        carried += 0.01 * 1e6 * np.log2(1 + 10**0.5 * twin.power(block * 0.01)[0])
    assert not got.is_delivered
    assert got.sent_bits == pytest.approx(float(carried), rel=1e-6)


def test_geometry_gives_the_power_budget(steady):
    """30 dBm over a UMi street at 1 MHz: by hand from the device's place and its shadowing."""
    config = steady(snr_db=None, path=PathConfig(scenario="umi"))
    process = LinkProcess(config, 50, seed=0)
    down, up = (process.mean_snr_db(0, 0.0, d) for d in ("down", "up"))
    # Downlink less uplink: 30 - 23 dBm of power, 9 - 5 dB of noise figure.
    np.testing.assert_allclose(down - up, 7.0 - 4.0)
    large = process._large_scale
    distance = np.hypot(*process.positions_m(0.0).T)
    assert distance.max() <= 200.0
    loss = path_loss_db("umi", distance, 3.5e9, is_los=large.is_los)
    expected = 30.0 - loss - large._shadow_db(0) - (-174.0 + 60.0 + 9.0)
    np.testing.assert_allclose(down, expected)


def test_correlated_rounds_stay_alike(steady):
    """AR(1) at a Doppler shift of 0.05 Hz: one second apart, the links hardly move."""
    still, moving = (
        LinkProcess(steady(fading="ar1", doppler_hz=shift), 500, seed=0) for shift in (0.05, 5.0)
    )
    change = [np.abs(np.diff([p.snr_db(r, r) for r in range(3)], axis=0)) for p in (still, moving)]
    assert np.median(change[0]) < 0.3 * np.median(change[1])


def test_links_forget_by_the_time_that_passes_and_not_by_the_number_of_rounds(steady):
    """Rounds of federated mode last as long as they do: a minute is more than a second."""
    path = PathConfig(
        scenario="uma", mobility="waypoint", speed_min_mps=10.0, speed_max_mps=30.0,
        cell_radius_m=2000.0,
    )  # fmt: skip
    moving = LinkProcess(ChannelConfig(snr_db=None, path=path, fading="none"), 300, seed=1)
    large = moving._large_scale
    shadow = []
    for time_s in (0.0, 1.0, 60.0):
        distance = np.hypot(*moving.positions_m(time_s).T)
        loss = path_loss_db("uma", distance, 3.5e9, is_los=large.is_los)
        budget_db = 30.0 - (-174.0 + 60.0 + 9.0)
        shadow.append((budget_db - loss - moving.mean_snr_db(1, time_s)) / large._sigma_db)
    assert np.corrcoef(shadow[0], shadow[1])[0, 1] > 0.5
    assert abs(np.corrcoef(shadow[0], shadow[2])[0, 1]) < 0.25
    fading = LinkProcess(steady(fading="ar1", doppler_hz=0.05), 2000, seed=0)
    power = [10 ** (fading.snr_db(1, time_s) / 10) for time_s in (0.0, 1.0, 60.0)]
    assert np.corrcoef(power[0], power[1])[0, 1] > 0.9  # J0(2 pi 0.05)^2
    assert abs(np.corrcoef(power[0], power[2])[0, 1]) < 0.5 * 0.952**120 + 5 / np.sqrt(2000)


@pytest.mark.parametrize("start_s", [None, 3.7])
def test_within_a_round_a_link_stays_what_it_was_at_its_start(steady, start_s):
    """Until the deadline, when the next period has begun: it is still this round."""
    cell = Cell(steady(fading="ar1", doppler_hz=0.4), 8, seed=0)
    cell.begin_round(2, start_s)
    before = cell.true_links("up").snr_db
    cell.transfer(dict.fromkeys(range(8), 10**9))
    assert cell.now_s == pytest.approx((2.0 if start_s is None else start_s) + 1.0)
    np.testing.assert_array_equal(cell.true_links("up").snr_db, before)
    cell.begin_round(3, None if start_s is None else 9.0)
    assert (cell.true_links("up").snr_db != before).all()


def test_a_way_past_the_base_station_comes_no_nearer_than_the_formulas_hold():
    path = PathConfig(
        scenario="umi", mobility="waypoint", min_distance_m=35.0, speed_min_mps=8.0,
        speed_max_mps=20.0,
    )  # fmt: skip
    process = LinkProcess(ChannelConfig(snr_db=None, path=path, fading="none"), 100, seed=0)
    large = process._large_scale
    limit_db = -path_loss_db("umi", np.full(100, 35.0), 3.5e9, is_los=large.is_los)
    nearest = np.inf
    for r in range(100):
        distance = np.hypot(*process.positions_m(float(r)).T)
        nearest = min(nearest, distance.min())
        mean_db = process.mean_snr_db(r, float(r)) + large._shadow_db(r)
        assert (mean_db - 30.0 - 174.0 + 60.0 + 9.0 <= limit_db + 1e-9).all()
    assert nearest < 20.0


def test_shadowing_of_a_round_does_not_depend_on_what_was_asked_before():
    """A report with an age is of an earlier round, and a cell may be set up again in between."""
    path = PathConfig(scenario="uma", mobility="waypoint", speed_min_mps=10.0, speed_max_mps=30.0)
    config = ChannelConfig(snr_db=None, path=path, fading="none")
    asked = LinkProcess(config, 4, seed=1)
    asked.snr_db(5, 5.0)
    for r in (2, 5, 0, 3):
        fresh = LinkProcess(config, 4, seed=1)
        np.testing.assert_array_equal(asked.snr_db(r, float(r)), fresh.snr_db(r, float(r)))


class TimeOnly:
    is_constant = True

    def snr_db(self, time_s):
        return np.zeros(1)


class NoConstant:
    def snr_db(self, time_s, direction):
        return np.zeros(1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TimeOnly(), r"channel model TimeOnly needs a method snr_db\(time_s, direction\); see"),
        (NoConstant(), "channel model NoConstant needs is_constant; see channel.process.SnrModel"),
        (object(), "channel model object needs is_constant"),
    ],
)
def test_a_model_that_is_none_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        Cell(ChannelConfig(), 1, seed=0, model=model)


def test_a_trajectory_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "car.csv"
    path.write_text("device,time_s,x_m,y_m\n0,0,100,0\n0,10,400,0\n")
    own = PathConfig(scenario="uma", mobility="trajectory", trajectory_file=str(path))
    reads = []
    monkeypatch.setattr(
        process, "read_trajectories", lambda p: reads.append(p) or read_trajectories(p)
    )
    Cell(ChannelConfig(snr_db=None, path=own), 2, seed=0)
    assert reads == [str(path)]


def test_a_trace_goes_on_while_a_payload_is_on_the_air(begun, tmp_path):
    """4 s of 1 MHz at 0 dB, then 20 dB: the bits are the integral of the rate, up and down."""
    path = tmp_path / "step.csv"
    rows = "".join(f"{t},{0 if t % 10 < 4 else 20}\n" for t in range(20))
    path.write_text("time_s,snr_db\n" + rows)
    config = ChannelConfig.from_preset(
        f"trace:{path}", sharing="orthogonal", deadline_s=8.0, round_period_s=10.0,
        uplink_offset_db=-3.0,
    )  # fmt: skip
    cell = begun(config, 3)
    shift_s = cell._process._trace_start_s
    for direction, offset_db in (("down", 0.0), ("up", -3.0)):
        got = cell.transfer(dict.fromkeys(range(3), 10**9), direction=direction, begin_s=0.0)
        for d in range(3):
            time_s = np.arange(800) * 0.01 + shift_s[d]
            snr_db = np.where(np.floor(time_s) % 10 < 4, 0.0, 20.0) + offset_db
            carried = (1e6 * np.log2(1 + 10 ** (snr_db / 10)) * 0.01).sum()
            assert got[d].sent_bits == pytest.approx(carried, rel=1e-9)


def test_a_car_drives_on_while_it_receives(begun, tmp_path):
    """From 100 to 400 m in 10 s: the rate is integrated over the path loss on its way."""
    path = tmp_path / "car.csv"
    path.write_text("device,time_s,x_m,y_m\n0,0,100,0\n0,10,400,0\n")
    config = ChannelConfig(
        snr_db=None, fading="none", deadline_s=9.0, round_period_s=10.0,
        path=PathConfig(scenario="uma", mobility="trajectory", trajectory_file=str(path)),
    )  # fmt: skip
    cell = begun(config, 1)
    large = cell._process._large_scale
    got = cell.transfer({0: 10**9})[0]
    carried = 0.0
    for slot in range(900):
        time_s = slot // 10 * 0.1  # a place is held for 0.1 s
        loss_db = path_loss_db("uma", np.array([100.0 + 30.0 * time_s]), 3.5e9, is_los=large.is_los)
        shadow_db = large._shadow_db(0)[0]  # the period of 10 s has not passed
        snr_db = 30.0 + 174.0 - 60.0 - 9.0 - loss_db[0] - shadow_db
        carried += 0.01 * 1e6 * np.log2(1 + 10 ** (snr_db / 10))
    assert got.sent_bits == pytest.approx(carried, rel=1e-9)
    assert carried < 0.9 * 9.0 * cell.true_links(at_s=0.0).rate_bps[0]
