"""Messages over the air: what arrives, what is lost, and what is only control."""

import numpy as np
import pytest
from cloud.grids.air_grid import MISSED_DEADLINE, AirGrid
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from airllm.protocol import DeviceReport
from channel import Cell, ChannelConfig
from cloud.grids.local_grid import LocalGrid


@pytest.fixture
def seen():
    return []


@pytest.fixture
def make_air(seen):
    """An AirGrid over two nodes that note the payloads they get."""

    def make(**channel):
        app = ClientApp()

        def report(context):
            device = context.node_config["partition-id"]
            report = DeviceReport(device, 0.5, 0.0, 8, 0.7, 0.5, 0)
            return RecordDict({"report": MetricRecord(report.to_metrics())})

        @app.query()
        def query(message, context):
            return Message(report(context), reply_to=message)

        @app.train()
        def train(message, context):
            seen.append(message.content["update"]["payload"])
            return Message(report(context), reply_to=message)

        config = ChannelConfig(
            fading="none", snr_db=0.0, csi_error_db=0.0, csi_quantisation_db=0.0,
            csi_margin_db=3.0, **channel,
        )  # fmt: skip
        cell = Cell(config, 2, seed=0)
        cell.begin_round(0)
        return AirGrid(LocalGrid(app, 2, {}), cell)

    return make


def ask(air):
    messages = [Message(RecordDict(), n, "query") for n in air.get_node_ids()]
    return list(air.send_and_receive(messages))


def updates(air, payloads):
    return [
        Message(RecordDict({"update": ConfigRecord({"payload": data})}), node, "train")
        for node, data in zip(air.get_node_ids(), payloads, strict=True)
    ]


def test_reports_come_back_with_the_link_as_it_was_estimated(make_air):
    for reply in ask(make_air()):
        link = reply.content["link"]
        assert link["snr_db"] == pytest.approx(0.0)
        assert link["planned_rate_bps"] < 1e6  # 1 bit/s/Hz less the margin


def test_what_is_late_is_an_error_and_never_reaches_its_node(make_air, seen):
    air = make_air()
    ask(air)
    small, large = b"s" * 1000, b"x" * 10**6
    replies = list(air.send_and_receive(updates(air, [small, large])))
    assert seen == [small]
    assert sorted(reply.has_content() for reply in replies) == [False, True]
    (lost,) = (reply for reply in replies if not reply.has_content())
    assert lost.error.code == MISSED_DEADLINE
    assert "device 1 missed its deadline" in lost.error.reason
    assert air.deliveries[0].delivered_bits == 8000
    assert air.deliveries[1].delivered_bits == 0
    assert 0 < air.deliveries[1].sent_bits < 8 * 10**6


def test_an_unnoticed_error_flips_one_bit(make_air, seen):
    air = make_air(residual_error_rate=1.0)
    ask(air)
    list(air.send_and_receive(updates(air, [bytes(100), bytes(100)])))
    assert [sum(bin(byte).count("1") for byte in data) for data in seen] == [1, 1]


def test_push_and_pull_go_through_the_same_air(make_air, seen):
    air = make_air()
    ask(air)
    ids = list(air.push_messages(updates(air, [b"s" * 1000, b"x" * 10**6])))
    assert len(set(ids)) == 2
    replies = list(air.pull_messages(ids))
    assert sorted(reply.has_content() for reply in replies) == [False, True]
    assert seen == [b"s" * 1000]
    assert list(air.pull_messages(ids)) == []


def test_a_device_app_that_raises_ends_the_run():
    app = ClientApp()

    @app.query()
    def query(message, context):
        raise KeyError("broken app")

    air = AirGrid(LocalGrid(app, 1, {}), Cell(ChannelConfig(), 1, seed=0))
    with pytest.raises(KeyError, match="broken app"):
        ask(air)


def test_ids_come_in_the_order_of_the_messages_and_never_twice(make_air):
    air = make_air()
    ask(air)
    pulled = []
    for _ in range(2):
        ids = list(air.push_messages(updates(air, [b"x" * 10**6, b"s" * 1000])))
        assert [key.startswith("lost") for key in ids] == [True, False]
        pulled += ids
    assert len(set(pulled)) == 4
    assert len(list(air.pull_messages([pulled[0], pulled[2], *pulled[1::2]]))) == 4


def test_an_error_damages_the_message_that_it_hit_and_not_its_neighbour(make_air, seen):
    """Strategies give one content to all nodes."""
    air = make_air(residual_error_rate=0.5)
    ask(air)
    shared, errors = RecordDict({"update": ConfigRecord({"payload": bytes(10)})}), []
    for r in range(1, 9):
        air.begin_round(r)
        list(air.send_and_receive([Message(shared, n, "train") for n in air.get_node_ids()]))
        errors += [air.deliveries[d].has_bit_error for d in (0, 1)]
    assert [payload != bytes(10) for payload in seen] == errors
    assert 0 < sum(errors) < 16
    assert shared["update"]["payload"] == bytes(10)


def test_messages_of_others_are_refused(make_air):
    air = make_air()
    with pytest.raises(ValueError, match="node 2 has not said which device it is"):
        air.push_messages(updates(air, [b"1", b"2"]))
    ask(air)
    arrays = ArrayRecord([np.zeros(3)])
    with pytest.raises(ValueError, match="give other apps a ChannelGrid"):
        air.push_messages([Message(RecordDict({"arrays": arrays}), 2, "train")])
    with pytest.raises(TypeError, match="got ArrayRecord; .* ChannelGrid"):
        air.push_messages([Message(RecordDict({"update": arrays}), 2, "train")])
    with pytest.raises(ValueError, match="device 0 was sent two updates at once"):
        air.push_messages([updates(air, [b"1", b"2"])[0]] * 2)
