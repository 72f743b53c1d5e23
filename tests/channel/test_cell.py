"""Completion times against closed forms, what the band can carry, and keyed randomness."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channel import Cell, ChannelConfig, EnergyConfig, LinkConfig, PathConfig
from channel.adaptation import cqi_block_error_rate
from channel.transmission import goodput_bps


@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=9))
def test_equal_sharing_ends_at_the_closed_form(begun, steady, sizes):
    """T_(k) = sum_{j<=k} (N - j + 1)(s_j - s_{j-1}) for sorted transfer times s."""
    cell = begun(steady(deadline_s=50.0, round_period_s=50.0), len(sizes))
    rate = cell.true_links().rate_bps[0]
    got = cell.transfer(dict(enumerate(sizes)))
    work = np.sort(sizes) / rate
    gaps = np.diff(work, prepend=0.0)
    expected = np.cumsum((len(sizes) - np.arange(len(sizes))) * gaps)
    np.testing.assert_allclose(sorted(d.delay_s for d in got.values()), expected, rtol=1e-9)


def test_orthogonal_bands_do_not_slow_each_other(begun, steady):
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
def test_no_more_is_sent_than_the_band_could_carry(begun, sizes, fading, seed):
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


def test_a_plan_that_fills_the_deadline_arrives_and_one_bit_in_a_hundred_more_does_not(begun):
    config = ChannelConfig(csi_error_db=0.0, csi_quantisation_db=0.0, csi_margin_db=0.0)
    for factor, expected in ((1.0, True), (1.01, False)):
        cell = begun(config, 8, seed=3)
        plan = cell.planned_rate_bps(cell.reported_links()) * config.deadline_s / 8 * factor
        got = cell.transfer({d: int(b) for d, b in enumerate(plan)})
        assert all(d.is_delivered for d in got.values()) == expected


def test_a_device_more_changes_nothing_for_the_others(begun):
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


def test_a_checkpoint_goes_on_as_the_original(begun):
    config = ChannelConfig(fading="clarke", residual_error_rate=0.5)
    cell = begun(config, 4, seed=2)
    cell.transfer({0: 50_000})
    copy = Cell(config, 4, seed=2)
    copy.load_state_dict(cell.state_dict())
    for one in (cell, copy):
        one.begin_round(1)
    bits = {d: 60_000 for d in range(4)}
    assert cell.transfer(bits) == copy.transfer(bits)


def test_the_order_of_the_mapping_does_not_matter(begun):
    bits = {3: 70_000, 0: 50_000, 1: 90_000}
    config = ChannelConfig()
    first = begun(config, 4).transfer(bits)
    second = begun(config, 4).transfer(dict(sorted(bits.items())))
    assert first == second


def test_nothing_to_send_arrives_at_once_and_a_dead_link_never(begun, steady):
    cell = begun(steady(snr_db=-300.0), 2)
    got = cell.transfer({0: 0, 1: 10})
    assert (got[0].is_delivered, got[0].delay_s) == (True, 0.0)
    assert (got[1].is_delivered, got[1].delay_s) == (False, 1.0)
    assert got[1].sent_bits < 1e-9


def test_energy_is_listening_or_transmitting(begun, steady):
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


def test_what_a_device_radiates_is_the_power_that_its_uplink_has(begun, steady):
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


def test_residual_errors_come_at_their_rate(steady):
    cell = Cell(steady(residual_error_rate=0.3), 50, seed=0)
    hits = 0
    for round_index in range(40):
        cell.begin_round(round_index)
        hits += sum(d.has_bit_error for d in cell.transfer({i: 8 for i in range(50)}).values())
    # 2000 draws: five standard errors.
    assert abs(hits / 2000 - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 2000)


def test_the_log_tells_who_began_and_ended_when(begun, steady):
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


def test_rounds_only_go_forward(begun):
    cell = begun(ChannelConfig(), 1, round_index=3)
    with pytest.raises(ValueError, match="round_index must be above 3, .* got 3"):
        cell.begin_round(3)


def test_transfers_that_run_into_the_next_round_are_said_to(begun):
    cell = begun(ChannelConfig(), 1)
    cell.transfer({0: 10**9})
    cell.transfer({0: 10**9}, direction="up")
    with pytest.raises(ValueError, match="went on until 2 s; make channel.round_period_s longer"):
        cell.begin_round(1)


def test_a_round_is_begun_before_anything_is_sent():
    cell = Cell(ChannelConfig(), 1, seed=0)
    for send in (lambda: cell.transfer({0: 10}), lambda: cell.broadcast(10, [0])):
        with pytest.raises(ValueError, match="begin a round before transferring"):
            send()
    cell.begin_round(0)
    assert cell.transfer({0: 10})[0].is_delivered


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cell: cell.transfer({0: float("nan")}), "got nan"),
        (lambda _: Cell(ChannelConfig(), 0, seed=0), "whole number >= 1, got 0"),
        (lambda _: Cell(ChannelConfig(), 4.0, seed=0), "whole number >= 1, got 4.0"),
        (lambda _: Cell(ChannelConfig(), 1, seed=-1), "seed must be a whole number >= 0, got -1"),
        (lambda cell: cell.transfer([10, 10]), r"bits must map .* such as {0: 1000, 1: 500}"),
        (lambda cell: cell.broadcast(1, []), "devices must not be empty"),
        (lambda cell: cell.transfer({2: 1}), r"device must be in 0..1, got 2"),
        (
            lambda cell: cell.transfer({0: -1}),
            "bits of device 0 must be >= 0 and finite",
        ),
    ],
)
def test_bad_calls_are_named(begun, call, message):
    with pytest.raises(ValueError, match=message):
        call(begun(ChannelConfig(), 2))


def test_a_device_that_is_away_gets_nothing_until_it_is_back(begun, steady):
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


def test_bad_rounds_come_as_often_as_their_chain_says_and_deliver_nothing(steady):
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
def test_real_codes_carry_less_than_capacity_and_repeat_what_was_wrong(begun, steady, adaptation):
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
