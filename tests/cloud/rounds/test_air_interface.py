"""What a round's updates meet on the air: what arrives, what is late, and who falls silent."""

import numpy as np
import pytest

from channel import Cell, ChannelConfig
from cloud.clients.participation import Dropout
from cloud.rounds.air_interface import AirInterface, received


class Unequal:
    """Device 0 at 10 dB, device 1 at 0 dB."""

    is_constant = True

    def snr_db(self, time_s, direction):
        return np.array([10.0, 0.0])


@pytest.fixture
def make_air():
    def make(dropouts=None, round_index=0, **channel):
        config = ChannelConfig(
            fading="none", snr_db=0.0, csi_error_db=0.0, csi_quantisation_db=0.0,
            csi_margin_db=3.0, **channel,
        )  # fmt: skip
        cell = Cell(config, 2, seed=0)
        cell.begin_round(round_index)
        return AirInterface(cell, dropouts=dropouts or {})

    return make


def test_links_are_reported_as_they_were_estimated_less_the_margin(make_air):
    links = make_air().reported_links("down", [0, 1])
    assert sorted(links) == [0, 1]
    for link in links.values():
        assert link.snr_db == pytest.approx(0.0)
        assert link.planned_rate_bps < 1e6  # 1 bit/s/Hz less the margin


def test_what_is_late_does_not_arrive(make_air, caplog):
    air = make_air()
    small, large = b"s" * 1000, b"x" * 10**6
    with caplog.at_level("INFO"):
        assert air.carry_down({0: small, 1: large}) == {0: small}
    assert "down: device 1 missed its deadline" in caplog.text
    assert air.downloads[0].delivered_bits == 8000
    assert air.downloads[1].delivered_bits == 0
    assert 0 < air.downloads[1].sent_bits < 8 * 10**6


def test_an_unnoticed_error_flips_one_bit(make_air):
    arrived = make_air(residual_error_rate=1.0).carry_down({0: bytes(100), 1: bytes(100)})
    assert [sum(bin(byte).count("1") for byte in arrived[d]) for d in (0, 1)] == [1, 1]


def test_an_error_damages_the_payload_that_it_hit_and_not_its_neighbour(make_air):
    shared, errors, damaged = bytes(10), [], []
    for r in range(8):
        air = make_air(residual_error_rate=0.5, round_index=r)
        arrived = air.carry_down({0: shared, 1: shared})
        errors += [air.downloads[d].has_bit_error for d in (0, 1)]
        damaged += [arrived[d] != shared for d in (0, 1)]
        for d in (0, 1):
            assert received(shared, air.downloads[d]) == arrived[d]
    assert damaged == errors
    assert 0 < sum(errors) < 16
    assert shared == bytes(10)


@pytest.mark.parametrize("stage", ["download", "upload"])
def test_who_drops_out_in_a_transfer_has_had_a_share_of_it_on_the_air(stage, make_air):
    air, data = make_air({1: Dropout(stage, 0.25)}), {0: bytes(1000), 1: bytes(1000)}
    down = air.carry_down(data)
    for d in down:
        air.computed(d, 0.1)
    up = air.carry_up({d: data[d] for d in down}, {})
    cut = (air.downloads if stage == "download" else air.uploads)[1]
    assert (cut.bits, cut.sent_bits, cut.delivered_bits) == (8000, 2000, 0)
    assert sorted(down) == ([0] if stage == "download" else [0, 1])
    assert sorted(up) == [0]


def test_an_upload_begins_once_its_device_is_ready_and_the_round_ends_with_the_last(make_air):
    air = make_air(sharing="orthogonal")
    air.carry_down({0: bytes(1000), 1: bytes(1000)})
    air.computed(0, 0.1)
    air.computed(1, 0.4)
    air.carry_up({0: bytes(500), 1: bytes(500)}, {})
    down, up = air.downloads, air.uploads
    assert air.ready_s[1] == down[1].delay_s + 0.4
    np.testing.assert_allclose(up[0].delay_s, up[1].delay_s)
    assert air.round_s() == air.ready_s[1] + up[1].delay_s


def test_what_is_not_up_by_the_rounds_deadline_is_lost():
    cell = Cell(ChannelConfig(fading="none", snr_db=0.0), 2, seed=0)
    cell.begin_round(0)
    air = AirInterface(cell, dropouts={}, round_deadline_s=0.5)
    for device, compute_s in ((0, 0.1), (1, 0.6)):
        air.computed(device, compute_s)
    assert air.carry_up({0: bytes(100), 1: bytes(100)}, {}) == {0: bytes(100)}
    assert air.round_s() == 0.5


def test_analog_symbols_go_up_at_once_from_those_above_the_threshold():
    cell = Cell(ChannelConfig(fading="none", bandwidth_hz=1e3), 2, seed=0, model=Unequal())
    cell.begin_round(0)
    air = AirInterface(cell, dropouts={}, superposition_threshold_db=5.0)
    air.computed(0, 0.1)
    air.computed(1, 0.2)
    assert air.carry_up({0: b"a", 1: b"b"}, {0: 100, 1: 100}) == {0: b"a"}
    assert air.uploads[0].delay_s == pytest.approx(0.1 + 100 / 2e3)  # waits for the other
    np.testing.assert_allclose(air.superposed_snr_db, [10.0, 0.0])
