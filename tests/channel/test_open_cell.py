"""Transfers that come and go: exact times, sharing, deadlines, and what is not supported."""

import numpy as np
import pytest

from channel import Cell, ChannelConfig
from channel.open_cell import OpenCell


def open_cell(devices=3, **values):
    values = {"fading": "none", "snr_db": 0.0, "bandwidth_hz": 1e3, "deadline_s": 10.0,
              "round_period_s": 10.0, **values}  # fmt: skip
    return OpenCell(Cell(ChannelConfig(**values), devices, seed=0))  # 1,000 bit/s each, alone


def send(cell, found, device, bits, start_s=0.0, direction="down"):
    def process():
        yield cell.env.timeout(start_s)
        found[device, direction] = yield from cell.carry(cell.begin(device, bits, direction))

    cell.env.process(process())


def test_transfers_share_the_band_while_they_overlap():
    """Alone for 1 s (1,000 bits), then by halves: 2 s for 1,000 bits more, then alone again."""
    cell, found = open_cell(), {}
    send(cell, found, 0, 3000)
    send(cell, found, 1, 1000, start_s=1.0)
    cell.env.run()
    assert found[1, "down"].delay_s == pytest.approx(2.0)
    assert found[0, "down"].delay_s == pytest.approx(4.0)
    assert found[0, "down"].air_s == pytest.approx(3.0)


def test_up_and_down_do_not_share():
    cell, found = open_cell(), {}
    send(cell, found, 0, 2000)
    send(cell, found, 1, 2000, direction="up")
    cell.env.run()
    assert found[0, "down"].delay_s == found[1, "up"].delay_s == pytest.approx(2.0)


def test_what_is_late_is_given_up_and_leaves_the_band_to_the_others():
    cell, found = open_cell(deadline_s=4.0), {}
    send(cell, found, 0, 9000)
    send(cell, found, 1, 3000, start_s=2.0)
    cell.env.run()
    late, other = found[0, "down"], found[1, "down"]
    assert not late.is_delivered
    assert (late.delay_s, late.sent_bits) == (4.0, pytest.approx(2000 + 1000))
    assert late.delivered_bits == 0
    assert other.delay_s == pytest.approx(2.0 + 2.0)  # by halves until 4 s, alone after that


def test_a_dead_link_ends_at_its_deadline():
    cell, found = open_cell(snr_db=-300.0), {}
    send(cell, found, 0, 10)
    cell.env.run()
    assert found[0, "down"].delay_s == 10.0
    assert not found[0, "down"].is_delivered


def test_nothing_takes_no_time():
    cell, found = open_cell(), {}
    send(cell, found, 0, 0)
    cell.env.run()
    assert found[0, "down"].is_delivered
    assert cell.now_s == 0.0


def test_the_channel_is_drawn_anew_in_every_block():
    cell = open_cell(fading="rayleigh")
    first = cell.true_links("down").snr_db
    cell.env.run(until=9.9)
    np.testing.assert_array_equal(cell.true_links("down").snr_db, first)
    cell.env.run(until=10.0)
    assert (cell.true_links("down").snr_db != first).all()


@pytest.mark.parametrize(
    ("values", "key"),
    [({"fading": "clarke", "doppler_hz": 5.0}, "fading"), ({"away_per_s": 1.0}, "away_per_s"),
     ({"scheduler": "round-robin"}, "scheduler")],
)  # fmt: skip
def test_what_would_change_a_rate_under_way_is_refused(values, key):
    with pytest.raises(ValueError, match=f"need channel.{key}"):
        open_cell(**values)
