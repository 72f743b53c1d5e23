"""Completion times against closed forms, what the band can carry, and keyed randomness."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel import Cell, ChannelConfig, EnergyConfig, LinkConfig, PathConfig
from channel.adaptation import cqi_block_error_rate
from channel.fading import ClarkeProcess
from channel.pathloss import path_loss_db
from channel.process import LinkProcess
from channel.transmission import goodput_bps


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
        if not delivery.is_delivered:
            assert delivery.sent_bits < sizes[device]
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
    cell, twin = begun(config, 1, seed=5), ClarkeProcess(1, 10.0, seed=5)
    got = cell.transfer({0: 10**9})[0]
    carried = 0.0
    for block in range(100):
        carried += 0.01 * 1e6 * np.log2(1 + 10**0.5 * twin.power(block * 0.01)[0])
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
    cell = begun(steady(snr_db=-300.0), 2)
    got = cell.transfer({0: 0, 1: 10})
    assert (got[0].is_delivered, got[0].delay_s) == (True, 0.0)
    assert (got[1].is_delivered, got[1].delay_s) == (False, 1.0)
    assert got[1].sent_bits < 1e-9


def test_energy_is_listening_or_transmitting():
    energy = EnergyConfig(
        receive_power_w=2.0, idle_power_w=0.1, transmit_power_w=0.3, amplifier_efficiency=0.5,
        circuit_power_w=0.4,
    )  # fmt: skip
    cell = begun(steady(energy=energy), 2)
    quarter = int(cell.true_links().rate_bps[0] / 4)
    down = cell.transfer({0: quarter, 1: quarter})
    # Two share the band: both listen for half a second, and each is on the air for a quarter.
    for delivery in down.values():
        assert (delivery.delay_s, delivery.air_s) == pytest.approx((0.5, 0.25), rel=1e-5)
        assert delivery.energy_j == pytest.approx(2.0 * 0.5, rel=1e-5)
    cell.begin_round(1)
    up = cell.transfer({0: quarter, 1: quarter}, direction="up")
    assert up[0].energy_j == pytest.approx((0.3 / 0.5 + 0.4) * 0.25, rel=1e-5)


def test_what_a_device_radiates_is_the_power_that_its_uplink_has():
    """Ten times the power: ten decibels of SNR, and ten times the amplifier's draw."""
    found = []
    for power_dbm in (13.0, 23.0):
        path = PathConfig(scenario="umi", device_power_dbm=power_dbm)
        config = steady(snr_db=None, path=path, sharing="orthogonal", bandwidth_hz=1e5)
        cell = begun(config, 1)
        up = cell.transfer({0: 100_000}, direction="up")[0]
        found.append((cell.true_links("up").snr_db[0], up.energy_j / up.air_s))
    (low_db, low_w), (high_db, high_w) = found
    assert high_db - low_db == pytest.approx(10.0)
    assert low_w == pytest.approx(0.01995 / 0.35 + 0.1, rel=1e-3)
    assert high_w == pytest.approx(0.1995 / 0.35 + 0.1, rel=1e-3)


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


@pytest.mark.parametrize(("periods", "seen"), [(0, 5), (0.5, 4), (1, 4), (2, 3), (9, 0)])
def test_a_report_with_an_age_is_of_the_round_it_was_measured_in(periods, seen):
    config = steady(fading="rayleigh")
    old = steady(fading="rayleigh", csi_delay_s=periods * config.round_period_s)
    truth = begun(config, 4, round_index=seen).true_links().snr_db
    np.testing.assert_array_equal(begun(old, 4, round_index=5).reported_links().snr_db, truth)


def test_where_rounds_last_as_they_do_a_report_with_an_age_is_of_the_round_before():
    for delay_s, seen in ((0.0, 5), (0.1, 4), (100.0, 4)):
        cell = Cell(steady(fading="rayleigh", csi_delay_s=delay_s), 4, seed=0)
        cell.begin_round(5, start_s=7.77)
        truth = begun(steady(fading="rayleigh"), 4, round_index=seen).true_links().snr_db
        np.testing.assert_array_equal(cell.reported_links().snr_db, truth)


def test_the_log_tells_who_began_and_ended_when():
    cell = begun(steady(sharing="orthogonal"), 3)
    rate = cell.true_links().rate_bps[0]
    found = cell.transfer({0: 1000, 2: 10**9}, start_s={2: 0.25}, deadline_s=0.5)
    assert [(d, found[d].device, found[d].is_delivered) for d in found] == [
        (0, 0, True), (2, 2, False),
    ]  # fmt: skip
    assert sorted(cell.log) == [
        (0.0, 0, "start"), (pytest.approx(1000 / rate), 0, "end"),
        (0.25, 2, "start"), (0.5, 2, "cut"),
    ]  # fmt: skip


def test_a_report_of_the_uplink_is_the_uplinks_on_whatever_grid():
    config = steady(fading="rayleigh", uplink_offset_db=-7.0, csi_quantisation_db=0.5)
    cell = begun(config, 20)
    for direction in ("down", "up"):
        error = cell.reported_links(direction).snr_db - cell.true_links(direction).snr_db
        assert 0.1 < np.abs(error).max() <= 0.25
    gap = cell.true_links("down").snr_db - cell.true_links("up").snr_db
    np.testing.assert_allclose(gap, 7.0)


@pytest.mark.parametrize("values", [{}, {"fading": "clarke", "doppler_hz": 0.0}])
def test_link_adaptation_knows_the_uplink_in_events_and_in_slots(values):
    """Whose modulation followed the downlink, 20 dB better, would get nothing through."""
    link = LinkConfig(adaptation="cqi", max_tries=1, is_reliable=False)
    config = steady(sharing="orthogonal", snr_db=25.0, uplink_offset_db=-20.0, link=link, **values)
    found = begun(config, 30).transfer(dict.fromkeys(range(30), 10_000), direction="up")
    assert sum(d.is_delivered for d in found.values()) > 15


def test_rounds_only_go_forward():
    cell = begun(ChannelConfig(), 1, round_index=3)
    with pytest.raises(ValueError, match="round_index must be above 3, .* got 3"):
        cell.begin_round(3)


def test_transfers_that_run_into_the_next_round_are_said_to():
    cell = begun(ChannelConfig(), 1)
    cell.transfer({0: 10**9})
    cell.transfer({0: 10**9}, direction="up")
    with pytest.raises(ValueError, match="went on until 2 s; make channel.round_period_s longer"):
        cell.begin_round(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: begun(ChannelConfig(), 2).transfer({0: float("nan")}), "got nan"),
        (lambda: Cell(ChannelConfig(), 0, seed=0), "num_devices must be >= 1, got 0"),
        (lambda: begun(ChannelConfig(), 2).broadcast(1, []), "devices must not be empty"),
        (lambda: begun(ChannelConfig(), 2).transfer({2: 1}), r"device must be in 0..1, got 2"),
        (
            lambda: begun(ChannelConfig(), 2).transfer({0: -1}),
            "bits of device 0 must be >= 0 and finite",
        ),
    ],
)
def test_bad_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_who_starts_later_ends_as_processor_sharing_has_it():
    """Alone for 0.2 s, then two shares: by hand."""
    cell = begun(steady(deadline_s=9.0, round_period_s=9.0), 2)
    rate = cell.true_links().rate_bps[0]
    got = cell.transfer({0: int(rate), 1: int(0.4 * rate)}, start_s={1: 0.2})
    assert got[1].delay_s == pytest.approx(0.8, rel=1e-5)  # 0.4 s of work at half the band
    assert got[0].delay_s == pytest.approx(1.4, rel=1e-5)  # 0.2 + 0.8 + the 0.4 left over


@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=6), st.integers(0, 50))
@settings(max_examples=30)
def test_slots_and_events_agree_where_nothing_changes(sizes, seed):
    """Doppler 0 is a constant channel: the slotted path must find the events' completion times."""
    slotted = ChannelConfig(fading="clarke", doppler_hz=0.0, coherence_s=0.037)
    cell = begun(slotted, len(sizes), seed)
    got = cell.transfer(dict(enumerate(sizes)))
    rates = cell.true_links().rate_bps
    work = np.array(sizes) / rates
    order = np.argsort(work)
    times = np.cumsum((len(sizes) - np.arange(len(sizes))) * np.diff(work[order], prepend=0.0))
    for device, end in zip(order, times, strict=True):
        if end <= 1.0:
            assert got[int(device)].delay_s == pytest.approx(end, rel=1e-9)
        else:
            assert not got[int(device)].is_delivered


@pytest.mark.parametrize("scheduler", ["round-robin", "proportional-fair", "best-first"])
def test_every_scheduler_needs_the_least_makespan_when_nothing_is_wasted(scheduler):
    """At constant efficiency the last end is sum S_i / (B e_i), whatever the order."""
    config = steady(scheduler=scheduler, coherence_s=0.01, deadline_s=9.0, round_period_s=9.0,
                    snr_spread_db=4.0)  # fmt: skip
    cell = begun(config, 5)
    sizes = {d: 100_000 * (d + 1) for d in range(5)}
    makespan = sum(sizes[d] / cell.true_links().rate_bps[d] for d in range(5))
    got = cell.transfer(sizes)
    assert max(d.delay_s for d in got.values()) == pytest.approx(makespan, rel=1e-9)
    assert sum(d.air_s for d in got.values()) == pytest.approx(makespan, rel=1e-9)


@pytest.mark.parametrize(
    ("scheduler", "expected"), [("best-first", 4.6865), ("round-robin", 2.9065)]
)
def test_multiuser_capacity(scheduler, expected):
    """Best of 8 at 10 dB over Rayleigh fading, and in turn; five standard errors over seeds."""
    rates = []
    for seed in range(10):
        config = steady(scheduler=scheduler, fading="clarke", doppler_hz=30.0, snr_db=10.0,
                        coherence_s=0.02, deadline_s=20.0, round_period_s=20.0)  # fmt: skip
        got = begun(config, 8, seed=seed).transfer(dict.fromkeys(range(8), 10**12))
        rates.append(sum(d.sent_bits for d in got.values()) / 20.0 / 1e6)
    assert abs(np.mean(rates) - expected) < 5 * np.std(rates, ddof=1) / np.sqrt(len(rates))


def test_proportional_fair_lies_between_in_rate_and_serves_all():
    sums, least = {}, {}
    for scheduler in ("best-first", "proportional-fair", "round-robin"):
        config = steady(scheduler=scheduler, fading="clarke", doppler_hz=10.0, snr_db=5.0,
                        snr_spread_db=6.0, deadline_s=5.0, round_period_s=5.0)  # fmt: skip
        got = begun(config, 6, seed=2).transfer(dict.fromkeys(range(6), 10**12))
        sent = [d.sent_bits for d in got.values()]
        sums[scheduler], least[scheduler] = sum(sent), min(sent)
    assert sums["best-first"] > sums["proportional-fair"] > sums["round-robin"]
    assert least["proportional-fair"] > least["best-first"]


def test_a_broadcast_goes_at_the_pace_of_the_worst_it_must_reach():
    cell = begun(steady(snr_spread_db=6.0), 6)
    rates = cell.true_links().rate_bps
    got = cell.broadcast(100_000, [0, 2, 5])
    assert set(got) == {0, 2, 5}
    for delivery in got.values():
        assert delivery.delay_s == pytest.approx(100_000 / rates[[0, 2, 5]].min())


def test_a_device_that_is_away_gets_nothing_until_it_is_back():
    config = steady(away_per_s=2.0, away_mean_s=0.5, sharing="orthogonal", deadline_s=20.0,
                    round_period_s=20.0)  # fmt: skip
    cell = begun(config, 200)
    rate = cell.true_links().rate_bps[0]
    got = cell.transfer(dict.fromkeys(range(200), int(5 * rate)))
    there_s = 1.0 / 2.0
    # Five seconds of work with half the time there take ten on average.
    delays = np.array([d.delay_s for d in got.values()])
    expected = 5.0 * (there_s + 0.5) / there_s
    assert abs(delays.mean() - expected) < 5 * delays.std() / np.sqrt(len(delays))
    assert all(d.air_s == pytest.approx(5.0, rel=1e-3) for d in got.values() if d.is_delivered)


def test_bad_rounds_come_as_often_as_their_chain_says_and_deliver_nothing():
    config = steady(link=LinkConfig(burst_start=0.2, burst_end=0.4), sharing="orthogonal")
    cell = Cell(config, 100, seed=0)
    delivered = []
    for round_index in range(60):
        cell.begin_round(round_index)
        got = cell.transfer(dict.fromkeys(range(100), 8))
        delivered.append([d.is_delivered for d in got.values()])
    share, q = 0.2 / 0.6, 1 - 0.2 - 0.4
    error = np.sqrt(share * (1 - share) / 6000 * (1 + q) / (1 - q))
    assert abs(1 - np.mean(delivered) - share) < 5 * error


@pytest.mark.parametrize("adaptation", ["cqi", "finite-blocklength"])
def test_real_codes_carry_less_than_capacity_and_repeat_what_was_wrong(adaptation):
    rates = {}
    for tries in (1, 4):
        link = LinkConfig(adaptation=adaptation, max_tries=tries, combining="chase")
        cell = begun(steady(link=link, snr_db=6.0), 1)
        rates[tries] = cell.true_links().rate_bps[0]
    capacity = 1e6 * np.log2(1 + 10**0.6)
    assert rates[1] <= rates[4] < capacity  # combining saves what a second try would cost
    lossy = LinkConfig(adaptation=adaptation, max_tries=1, is_reliable=False)
    sure = LinkConfig(adaptation=adaptation, max_tries=8, combining="chase", is_reliable=False)
    delivered = {}
    for name, link in (("lossy", lossy), ("sure", sure)):
        config = steady(link=link, fading="rayleigh", csi_error_db=3.0, sharing="orthogonal")
        got = begun(config, 100).transfer(dict.fromkeys(range(100), 50_000))
        delivered[name] = np.mean([d.is_delivered for d in got.values()])
    assert delivered["sure"] > delivered["lossy"]


def test_geometry_gives_the_power_budget():
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


@pytest.mark.parametrize(
    "values",
    [
        {"path": PathConfig(scenario="umi", mobility="waypoint"), "snr_db": None},
        {"fading": "clarke", "away_per_s": 0.5, "link": LinkConfig(adaptation="cqi")},
        {"scheduler": "proportional-fair", "fading": "rician", "snr_spread_db": 3.0},
        {"link": LinkConfig(burst_start=0.3), "residual_error_rate": 0.2},
    ],
)
def test_the_same_seed_gives_the_same_log_and_more_devices_the_same_links(values):
    def logs(num_devices, rounds=3):
        cell, out = Cell(ChannelConfig(**values), num_devices, seed=4), []
        for round_index in range(rounds):
            cell.begin_round(round_index)
            snr_db = cell.reported_links().snr_db
            cell.transfer(dict.fromkeys(range(4), 40_000))
            out.append((snr_db[:4].tolist(), sorted(cell.log)))
        return out

    assert logs(4) == logs(4)
    # The four that send are undisturbed by four more that are only there.
    assert logs(4) == logs(8)


@pytest.mark.parametrize(
    "values",
    [
        {"snr_db": None, "path": PathConfig(scenario="uma", mobility="waypoint")},
        {"fading": "ar1", "doppler_hz": 0.1},
        {"link": LinkConfig(burst_start=0.3, burst_end=0.3)},
    ],
)
def test_a_cell_restored_in_the_middle_goes_on_the_same(values):
    def of_round(cell, round_index):
        cell.begin_round(round_index)
        got = cell.transfer(dict.fromkeys(range(20), 1000))
        return cell.true_links().snr_db.tolist(), got

    cell, late = (Cell(ChannelConfig(**values), 20, seed=1) for _ in range(2))
    whole = [of_round(cell, r) for r in range(8)]
    late.load_state_dict({"round_index": 4, "now_s": 4.0})
    assert [of_round(late, r) for r in range(5, 8)] == whole[5:]


def test_link_adaptation_follows_the_channel_and_suffers_from_age():
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


def test_a_block_given_up_costs_time_or_the_payload():
    """Rate B e (1 - loss) / E[tries] when sent again; else survival (1 - loss)^blocks."""
    again = LinkConfig(adaptation="cqi", max_tries=1, block_symbols=1000)
    lost = LinkConfig(adaptation="cqi", max_tries=1, block_symbols=1000, is_reliable=False)
    true_db, known_db = np.full(4000, 7.8), np.full(4000, 8.2)  # one CQI too optimistic
    error = float(cqi_block_error_rate(7.8, 8))
    assert 0.05 < error < 0.99
    rate, hazard = goodput_bps(again, 1e6, true_db, known_db)
    np.testing.assert_allclose(rate, 1e6 * 1.9141 * (1 - error))
    assert not hazard.any()
    _, hazard = goodput_bps(lost, 1e6, true_db, known_db)
    np.testing.assert_allclose(np.exp(-hazard * 1914.1 * 3), (1 - error) ** 3)


def test_processor_sharing_has_its_mean_sojourn():
    """M/M/1 with processor sharing: E[T] = E[x] / (1 - rho), for any size distribution."""
    rng, jobs, rho = np.random.default_rng(0), 6000, 0.5
    sojourn = []
    for seed in range(8):
        config = steady(deadline_s=1e5, round_period_s=1e5, coherence_s=1.0)
        cell = begun(config, jobs, seed)
        rate = cell.true_links().rate_bps[0]
        start = np.cumsum(rng.exponential(1.0 / rho, jobs))
        size = np.maximum(rng.exponential(1.0, jobs) * rate, 1.0).astype(int)
        got = cell.transfer(dict(enumerate(size.tolist())), start_s=dict(enumerate(start)))
        # The first tenth fills the queue from empty.
        sojourn.append(np.mean([got[d].delay_s for d in range(jobs // 10, jobs)]))
    error = np.std(sojourn, ddof=1) / np.sqrt(len(sojourn))
    assert abs(np.mean(sojourn) - 1.0 / (1.0 - rho)) < 5 * error


def test_a_synchronous_round_ends_as_its_distribution_says():
    """Orthogonal bands, Rayleigh blocks: P(T <= t) = exp(-sum_i (2^(S_i / (B t)) - 1) / g)."""
    config = steady(fading="rayleigh", sharing="orthogonal", snr_db=8.0)
    sizes = {0: 200_000, 1: 400_000, 2: 300_000}
    cell, ends = Cell(config, 3, seed=0), []
    for round_index in range(4000):
        cell.begin_round(round_index)
        got = cell.transfer(sizes)
        ends.append(max(d.delay_s if d.is_delivered else np.inf for d in got.values()))
    for t in (0.2, 0.4, 0.9):
        expected = np.exp(-sum((2 ** (s / (1e6 * t)) - 1) / 10**0.8 for s in sizes.values()))
        error = np.sqrt(expected * (1 - expected) / len(ends))
        assert abs(np.mean(np.array(ends) <= t) - expected) < 5 * error


def test_correlated_rounds_stay_alike():
    """AR(1) at a Doppler shift of 0.05 Hz: one second apart, the links hardly move."""
    still, moving = (
        LinkProcess(steady(fading="ar1", doppler_hz=shift), 500, seed=0) for shift in (0.05, 5.0)
    )
    change = [np.abs(np.diff([p.snr_db(r, r) for r in range(3)], axis=0)) for p in (still, moving)]
    assert np.median(change[0]) < 0.3 * np.median(change[1])


def test_links_forget_by_the_time_that_passes_and_not_by_the_number_of_rounds():
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
def test_within_a_round_a_link_stays_what_it_was_at_its_start(start_s):
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
