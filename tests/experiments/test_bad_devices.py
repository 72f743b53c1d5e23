"""A federation with a device that lies: the others go on, and nothing of it is merged."""

import numpy as np
import pandas as pd
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from airllm.lora.payload import decode
from cloud.grids.local_grid import LocalGrid
from cloud.server_app import run_federation
from experiments.assembly.parts import planners
from experiments.assembly.workbench import make_cell, workbench_for
from experiments.config.loader import dump_config, load_config
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.run.recorder import Recorder
from experiments.runtimes.flower_apps import client_app

LIAR = 3  # node of device 1


class Lying(LocalGrid):
    """What node `LIAR` answers is changed on its way."""

    def __init__(self, *arguments, lie):
        super().__init__(*arguments)
        self._lie = lie

    def _answer(self, message):
        reply = super()._answer(message)
        if message.metadata.dst_node_id == LIAR:
            self._lie(message.metadata.message_type, reply)
        return reply


@pytest.fixture
def run(tiny_toml, tmp_path):
    def run(lie, *sets):
        sets = ("mode=federated", "rounds=3", "channel.bandwidth_hz=1e7", *sets)
        config = load_config(ExperimentConfig, tiny_toml, sets, presets=PRESETS)
        grid = Lying(client_app, config.num_devices, {"config": dump_config(config)}, lie=lie)
        bench = workbench_for(config)
        cell = make_cell(config.channel, config.num_devices, seed=config.seed)
        downlink, uplink = planners(bench, config)
        with Recorder(config, bench, tmp_path / "run") as recorder:
            run_federation(
                grid, cell, downlink, uplink, on_round=recorder.record, reply_timeout_s=0.05
            )
            summary = recorder.finish(downlink.final())
        return summary, pd.read_csv(tmp_path / "run" / "rounds.csv"), uplink

    return run


def payload_of(change):
    def lie(message_type, reply):
        if message_type == "train.send":
            data = reply.content.config_records["update"]["payload"]
            reply.content["update"] = ConfigRecord({"payload": change(data)})

    return lie


def test_damaged_truncated_and_foreign_bytes_are_not_merged(run):
    for change in (lambda b: b[:-1], lambda b: b"", lambda b: b + b, lambda b: b"no payload"):
        _, rounds, uplink = run(payload_of(change))
        mine, liar = rounds[rounds["device"] == 0], rounds[rounds["device"] == 1]
        assert (mine["uplink_delivered"] == 1).all()
        assert (liar["uplink_delivered"] == 0).all()
        assert sum(uplink.inspector.refused.values()) == 3


def test_a_payload_that_is_no_string_of_bytes_is_refused(run):
    _, rounds, uplink = run(payload_of(lambda data: "text"))
    assert (rounds[rounds["device"] == 1]["uplink_delivered"] == 0).all()
    assert dict(uplink.inspector.refused) == {"format": 3}


def test_nothing_of_a_refused_update_is_left(run):
    """The global adapter is the same as if the device had sent nothing at all."""
    refused, _, uplink = run(payload_of(lambda data: data[:-1]))

    def silent(message_type, reply):
        if message_type == "train.send":
            reply.content = RecordDict()

    absent, _, other = run(silent)
    assert refused["full_loss"] == absent["full_loss"]
    for a, b in zip(uplink.master.final().up, other.master.final().up, strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("utility", [b"odd", b"\xff\x7f" * 13 * 4, "text"])
def test_a_request_that_is_no_table_of_numbers_is_granted_nothing(utility, run):
    def lie(message_type, reply):
        if message_type == "train":
            reply.content.config_records["work"]["utility"] = utility

    _, rounds, _ = run(lie)
    assert (rounds[rounds["device"] == 1]["uplink_payload_bits"] == 0).all()
    assert (rounds[rounds["device"] == 0]["uplink_delivered"] == 1).all()


@pytest.mark.parametrize("time_s", [float("nan"), -5.0, float("inf"), "soon"])
def test_a_time_that_cannot_be_counts_as_none(time_s, run):
    def lie(message_type, reply):
        if message_type == "train":
            reply.content.config_records["work"]["compute_s"] = time_s

    _, rounds, _ = run(lie)
    assert (rounds[rounds["device"] == 1]["compute_s"] == 0).all()
    assert np.isfinite(rounds["round_s"]).all()


def test_who_says_it_is_another_or_says_nothing_proper_is_not_heard(run, caplog):
    for key, value in (("device", 0), ("loss", None)):

        def lie(message_type, reply, key=key, value=value):
            if message_type == "train":
                report = dict(reply.content.metric_records["report"])
                report[key] = value
                reply.content["report"] = MetricRecord(
                    {k: v for k, v in report.items() if v is not None}
                )

        _, rounds, _ = run(lie)
        assert (rounds[rounds["device"] == 1]["uplink_payload_bits"] == 0).all()
        assert (rounds[rounds["device"] == 0]["uplink_delivered"] == 1).all()
    assert "node of device 1 says it is device 0" in caplog.text
    assert "a device's report lacks loss" in caplog.text


def test_who_claims_more_examples_later_weighs_no_more(run):
    def lie(message_type, reply):
        if message_type == "query":
            report = dict(reply.content.metric_records["report"])
            report["num_examples"] = 10**9
            reply.content["report"] = MetricRecord(report)

    _, _, uplink = run(lie, "federated.participants=0")
    honest = run(lambda message_type, reply: None)[2]
    for a, b in zip(uplink.master.final().up, honest.master.final().up, strict=True):
        assert np.array_equal(a.numpy(), b.numpy())


def test_who_claims_more_examples_than_anybody_from_the_start_counts_as_ten(run):
    def lie(message_type, reply):
        if message_type == "query.deploy":
            reply.content.metric_records["report"]["num_examples"] = 10**18

    _, _, uplink = run(lie)
    honest, liar = uplink.merger.weights([0, 1], [])
    assert liar == 10 * honest


@pytest.mark.parametrize(
    ("when", "record"),
    [
        ("train", ("work", MetricRecord({"utility": 1.0}))),
        ("train.send", ("update", MetricRecord({"payload": 1.0}))),
        ("train", ("report", "device")),
        ("query", ("report", "num_examples")),
    ],
)
def test_an_answer_of_the_wrong_kinds_is_left_out(when, record, run):
    name, value = record

    def lie(message_type, reply):
        if message_type != when:
            return
        if isinstance(value, str):
            reply.content.metric_records[name][value] = float("inf")
        else:
            del reply.content[name]
            reply.content[name] = value

    _, rounds, _ = run(lie)
    assert (rounds[rounds["device"] == 1]["uplink_delivered_bits"] == 0).all()
    assert (rounds[rounds["device"] == 0]["uplink_delivered"] == 1).all()


def test_work_before_there_was_any_is_no_answer(run):
    def lie(message_type, reply):
        if message_type == "query.deploy":
            reply.content["work"] = ConfigRecord({"utility": b""})

    with pytest.raises(ValueError, match=r"nodes \[3\] answered without a valid report"):
        run(lie)


def test_a_device_whose_answer_was_lost_is_not_started_afresh(run):
    """It has installed what was sent, which its next report says."""
    answers = []

    def lose(message_type, reply):
        answers.append(message_type)
        if message_type == "train" and answers.count("train") == 2:
            reply.content = RecordDict()

    _, rounds, uplink = run(lose)
    assert rounds[rounds["device"] == 1]["payload_bits"].tolist()[1:] != [0, 0]
    last = decode(uplink.downlink.ledger.sent(1), uplink.base.specs)
    assert (last.number, last.coding) == (3, "residual")
