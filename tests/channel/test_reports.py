"""What is known of a link: reports with errors, age and grids, and the modulation they lead to."""

import numpy as np
import pytest

from channel import Cell, ChannelConfig, LinkConfig, PathConfig
from channel.fading import ClarkeProcess


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


@pytest.mark.parametrize(("periods", "seen"), [(0, 5), (0.5, 4), (1, 4), (2, 3), (9, 0)])
def test_a_report_with_an_age_is_of_the_round_it_was_measured_in(begun, steady, periods, seen):
    config = steady(fading="rayleigh")
    old = steady(fading="rayleigh", csi_delay_s=periods * config.round_period_s)
    truth = begun(config, 4, round_index=seen).true_links().snr_db
    np.testing.assert_array_equal(begun(old, 4, round_index=5).reported_links().snr_db, truth)


def test_where_rounds_last_as_they_do_a_report_with_an_age_is_of_the_round_before(begun, steady):
    for delay_s, seen in ((0.0, 5), (0.1, 4), (100.0, 4)):
        cell = Cell(steady(fading="rayleigh", csi_delay_s=delay_s), 4, seed=0)
        cell.begin_round(5, start_s=7.77)
        truth = begun(steady(fading="rayleigh"), 4, round_index=seen).true_links().snr_db
        np.testing.assert_array_equal(cell.reported_links().snr_db, truth)


def test_a_report_of_the_uplink_is_the_uplinks_on_whatever_grid(begun, steady):
    config = steady(fading="rayleigh", uplink_offset_db=-7.0, csi_quantisation_db=0.5)
    cell = begun(config, 20)
    for direction in ("down", "up"):
        error = cell.reported_links(direction).snr_db - cell.true_links(direction).snr_db
        assert 0.1 < np.abs(error).max() <= 0.25
    gap = cell.true_links("down").snr_db - cell.true_links("up").snr_db
    np.testing.assert_allclose(gap, 7.0)


@pytest.mark.parametrize("values", [{}, {"fading": "clarke", "doppler_hz": 0.0}])
def test_link_adaptation_knows_the_uplink_in_events_and_in_slots(begun, steady, values):
    """Whose modulation followed the downlink, 20 dB better, would get nothing through."""
    link = LinkConfig(adaptation="cqi", max_tries=1, is_reliable=False)
    config = steady(sharing="orthogonal", snr_db=25.0, uplink_offset_db=-20.0, link=link, **values)
    found = begun(config, 30).transfer(dict.fromkeys(range(30), 10_000), direction="up")
    assert sum(d.is_delivered for d in found.values()) > 15


def test_link_adaptation_follows_the_channel_and_suffers_from_age(begun):
    """The same fading, reports of one slot or of half a second ago."""
    delivered = {}
    for delay_s in (0.0, 0.5):
        config = ChannelConfig(
            fading="clarke", doppler_hz=2.0, sharing="orthogonal", snr_db=12.0, csi_error_db=0.0,
            csi_delay_s=delay_s, link=LinkConfig(adaptation="cqi", max_tries=2, is_reliable=False),
        )  # fmt: skip
        got = begun(config, 60).transfer(dict.fromkeys(range(60), 400_000))
        delivered[delay_s] = sum(d.is_delivered for d in got.values())
    assert delivered[0.0] > 30
    assert delivered[0.5] < 15


def test_an_update_is_reported_on_when_it_is_ready(begun, steady):
    """Each device at a time of its own: what Clarke's fading was then, less the report's age."""
    config = steady(fading="clarke", doppler_hz=5.0, csi_delay_s=0.05, round_period_s=30.0)
    cell, ready_s = begun(config, 3, round_index=2), [0.0, 4.0, 17.5]
    found = cell.reported_links("up", ready_s).snr_db
    for d, after_s in enumerate(ready_s):
        assert found[d] == cell.true_links("up", 60.0 + after_s - 0.05).snr_db[d]
    blocks = begun(steady(fading="rayleigh", csi_delay_s=1.0), 2, round_index=1)
    before, now = begun(steady(fading="rayleigh"), 2).true_links(), blocks.true_links()
    assert blocks.reported_links("up", [0.5, 1.5]).snr_db.tolist() == [
        before.snr_db[0],
        now.snr_db[1],
    ]


def test_waiting_for_the_first_payload_takes_no_slots_and_changes_nothing(
    begun, steady, monkeypatch
):
    """An hour's computing before an upload would be 360,000 of them."""
    config = steady(fading="clarke", doppler_hz=5.0, sharing="orthogonal")
    late, cell, begins = 3600.0, begun(config, 2), []
    walk = cell._process.walk
    monkeypatch.setattr(
        cell._process,
        "walk",
        lambda r, begin_s, *at: begins.append(begin_s) or walk(r, begin_s, *at),
    )
    got = cell.transfer(
        {0: 10**6, 1: 10**6}, direction="up", start_s={0: late, 1: late + 0.5}, deadline_s=late + 9
    )
    assert min(begins) > late - 0.02
    twin = ClarkeProcess(2, 5.0, seed=0)
    for d, start_s in ((0, late), (1, late + 0.5)):
        left, slot = 1e6, 0
        while left > 0:
            power = twin.power(start_s + 0.01 * slot)[d]
            left -= 0.01 * 1e6 * np.log2(1 + 10**0.3 * power)
            slot += 1
        assert 0.01 * (slot - 1) - 1e-6 < got[d].delay_s < 0.01 * slot + 1e-6


def test_gaps_between_payloads_take_no_slots_and_an_empty_one_no_time(begun, steady, monkeypatch):
    config = steady(fading="clarke", doppler_hz=5.0, sharing="orthogonal")
    cell, slots = begun(config, 3), []
    walk = cell._process.walk

    def counted(*where):
        for snr_db in walk(*where):
            slots.append(where)
            yield snr_db

    monkeypatch.setattr(cell._process, "walk", counted)
    start_s = {0: 2.0, 1: 3600.0, 2: 0.0}
    got = cell.transfer({0: 1000, 1: 1000, 2: 0}, start_s=start_s, deadline_s=7200.0)
    assert len(slots) < 10
    assert all(got[d].is_delivered and got[d].delay_s < 0.1 for d in range(3))
    assert (got[2].delay_s, got[2].energy_j) == (0.0, 0.0)


@pytest.mark.parametrize("scenario", ["umi", "none"])
def test_times_of_their_own_are_those_of_each_device(begun, tmp_path, scenario):
    """Geometry and traces read for all devices at once, each at its own time."""
    path = tmp_path / "trace.csv"
    path.write_text("time_s,snr_db\n" + "".join(f"{t},{t % 7}\n" for t in range(50)))
    common = {"csi_delay_s": 0.3, "csi_error_db": 0.0, "csi_quantisation_db": 0.0}
    if scenario == "none":
        config = ChannelConfig.from_preset(f"trace:{path}", **common)
    else:
        place = PathConfig(scenario=scenario, mobility="waypoint", speed_max_mps=20.0)
        config = ChannelConfig(snr_db=None, fading="ar1", path=place, **common)
    cell, ready_s = begun(config, 4, round_index=3), [0.0, 0.2, 6.5, 40.0]
    found = cell.reported_links("up", ready_s).snr_db
    for d, after_s in enumerate(ready_s):
        assert found[d] == cell.reported_links("up", after_s).snr_db[d]
