"""A strategy and an app that know nothing of the channel, over the air."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp.strategy import FedAvg

from channel import Cell, ChannelConfig
from cloud.grids.channel_grid import MISSED_DEADLINE, ChannelGrid, array_bits
from cloud.grids.local_grid import LocalGrid

ROOT = Path(__file__).parents[3]
SECONDS = {0: 0.5, 1: 2.0, 2: 4.0}


@pytest.fixture
def make_grid():
    """Three nodes that add their number + 1, each after a time of its own."""

    def make(num_devices=3, **channel):
        app = ClientApp()

        @app.train()
        def train(message, context):
            device = context.node_config["partition-id"]
            (array,) = message.content["arrays"].to_numpy_ndarrays()
            content = {
                "arrays": ArrayRecord([array + device + 1]),
                "metrics": MetricRecord({"num-examples": 1, "seconds": SECONDS[device]}),
            }
            return Message(RecordDict(content), reply_to=message)

        known = {"fading": "none", "snr_db": 0.0, "deadline_s": 1.0, "round_period_s": 1.0}
        cell = Cell(ChannelConfig(**known | channel), num_devices, seed=0)
        return ChannelGrid(
            LocalGrid(app, 3, {}), cell, compute_s=lambda r: r.content["metrics"]["seconds"]
        )

    return make


def start(grid, size=1000, num_rounds=1):
    strategy = FedAvg(fraction_evaluate=0.0)
    arrays = ArrayRecord([np.zeros(size, np.float32)])
    found = strategy.start(grid, arrays, num_rounds=num_rounds)
    return found.arrays.to_numpy_ndarrays()[0][0], pd.DataFrame(grid.crossings)


def test_arrays_take_the_time_that_the_band_gives_them(make_grid):
    """1 MHz at 0 dB is 1 Mbit/s: shared by three on the way down, alone on the way up."""
    grid = make_grid()
    average, rows = start(grid, num_rounds=2)
    assert average == 2 * (1 + 2 + 3) / 3
    bits = array_bits(RecordDict({"arrays": ArrayRecord([np.zeros(1000, np.float32)])}))
    assert bits > 8 * 4 * 1000
    assert set(rows["bits"]) == {bits}
    down, up = (rows[rows["direction"] == way] for way in ("down", "up"))
    assert down["delay_s"].to_numpy() == pytest.approx(3 * bits / 1e6)
    assert up["delay_s"].to_numpy() == pytest.approx(bits / 1e6)
    ready = [3 * bits / 1e6 + seconds for seconds in SECONDS.values()]
    assert up[up["exchange"] == 0]["start_s"].tolist() == pytest.approx(ready)
    # The next exchange begins where the last upload of this one has ended.
    assert down[down["exchange"] == 1]["start_s"].to_numpy() == pytest.approx(ready[2] + bits / 1e6)


def test_what_is_late_is_left_out_of_the_average(make_grid):
    """The cell's worst link does not carry an upload in a second, nor does its best fail to."""
    grid = make_grid(sharing="orthogonal", uplink_offset_db=-8.0, snr_spread_db=6.0)
    average, rows = start(grid, size=8000)
    arrived = rows[(rows["direction"] == "up") & rows["is_delivered"]]["device"].to_numpy()
    assert 0 < len(arrived) < 3
    assert average == (arrived + 1).mean()


def test_a_message_that_is_late_never_reaches_its_node(make_grid):
    grid = make_grid(sharing="orthogonal", snr_spread_db=20.0)
    content = RecordDict({"arrays": ArrayRecord([np.zeros(20_000, np.float32)])})
    messages = [Message(content, node, "train") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages))
    rows = pd.DataFrame(grid.crossings)
    down = rows[rows["direction"] == "down"].set_index("device")["is_delivered"]
    assert 0 < down.sum() < 3
    assert set(rows[rows["direction"] == "up"]["device"]) == set(down[down].index)
    errors = [reply.error for reply in replies if reply.has_error()]
    assert {error.code for error in errors} == {MISSED_DEADLINE}
    assert len(replies) == 3
    assert len(errors) >= 3 - down.sum()


@pytest.mark.parametrize("direction", ["down", "up"])
def test_what_a_bit_error_hits_is_lost(make_grid, direction):
    """Nothing can hit what has no bits."""
    grid = make_grid(residual_error_rate=1.0)
    is_first = direction == "down"
    grid._bits_of = lambda content: 100 * (("metrics" in content) != is_first)
    content = RecordDict({"arrays": ArrayRecord([np.zeros(10, np.float32)])})
    replies = list(grid.send_and_receive([Message(content, 2, "train")]))
    assert [reply.error.code for reply in replies] == [MISSED_DEADLINE]
    crossed = {crossing.direction: crossing.is_delivered for crossing in grid.crossings}
    assert crossed == ({"down": False} if is_first else {"down": True, "up": False})


def test_the_superlinks_word_for_a_node_that_failed_comes_through(make_grid, monkeypatch):
    """It has the SuperLink's own id as its source."""
    grid = make_grid()
    inner = grid._grid
    answer = inner.send_and_receive

    def failing(messages, *, timeout=None):
        (first,) = (m for m in messages if m.metadata.dst_node_id == 2)
        others = [m for m in messages if m is not first]
        error = Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=first)
        error.metadata.__dict__["_src_node_id"] = 1
        return [error, *answer(others)]

    monkeypatch.setattr(inner, "send_and_receive", failing)
    average, rows = start(grid)
    assert average == (2 + 3) / 2
    assert rows[rows["direction"] == "up"]["device"].tolist() == [1, 2]


def test_a_node_keeps_its_link_whoever_joins_or_leaves(make_grid, monkeypatch):
    grid, nodes = make_grid(), [3, 4]
    monkeypatch.setattr(grid._grid, "get_node_ids", lambda: nodes)
    assert dict(grid._welcome()) == {3: 0, 4: 1}
    nodes[:] = [2, 3, 4]
    assert dict(grid._welcome()) == {3: 0, 4: 1, 2: 2}
    nodes[:] = [2, 4, 7]
    assert dict(grid._welcome()) == {4: 1, 2: 2, 7: 0}


def test_what_counts_is_the_users_to_say(make_grid):
    grid = make_grid()
    grid._bits_of = lambda content: 123
    start(grid)
    assert {crossing.bits for crossing in grid.crossings} == {123}
    record = RecordDict({"config": ConfigRecord({"payload": b"x" * 100})})
    assert array_bits(record) == 0


def test_bad_exchanges_are_named(make_grid):
    with pytest.raises(ValueError, match="3 nodes are connected, but num_devices of the cell is 2"):
        start(make_grid(num_devices=2))
    grid = make_grid()
    twice = [Message(RecordDict(), 2, "train"), Message(RecordDict(), 2, "train")]
    with pytest.raises(ValueError, match="node 2 was sent two messages at once"):
        grid.send_and_receive(twice)
    with pytest.raises(ValueError, match="node 9 is not among those that the grid knows"):
        grid.send_and_receive([Message(RecordDict(), 9, "train")])
    with pytest.raises(NotImplementedError, match="use send_and_receive"):
        grid.push_messages(twice)


def test_the_example_of_the_docs_runs():
    example = runpy.run_path(str(ROOT / "docs" / "examples" / "my_federation.py"))
    weights, crossings = example["run"](15.0, num_rounds=3)
    assert crossings["is_delivered"].all()
    assert weights[0] == pytest.approx(np.arange(8).mean() * (1 - 0.5**3))
    _, crossings = example["run"](-5.0, num_rounds=3)
    assert not crossings["is_delivered"].all()
