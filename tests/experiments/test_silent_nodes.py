"""A run goes on without the devices that do not answer, whatever policy plans it."""

import numpy as np
import pandas as pd
import pytest
from flwr.app import RecordDict

from channel import Cell
from cloud.grids.local_grid import LocalGrid
from cloud.server_app import run_federation
from edge.state import read_state
from experiments.assembly.parts import planners
from experiments.assembly.workbench import workbench_for
from experiments.config.loader import dump_config, load_config
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.run.recorder import Recorder
from experiments.runtimes.flower_apps import client_app
from experiments.runtimes.local import run_simulation


class Hanging(LocalGrid):
    """Node 3 (device 1) takes query and update of one round and answers nothing."""

    def __init__(self, *arguments, silent_to):
        super().__init__(*arguments)
        self._silent_to = silent_to

    def push_messages(self, messages):
        messages = list(messages)
        ids = super().push_messages(messages)
        for key, message in zip(ids, messages, strict=True):
            about = (message.metadata.message_type, message.metadata.group_id)
            if message.metadata.dst_node_id == 3 and about in self._silent_to:
                del self._replies[key]
        return ids


@pytest.fixture
def run(tiny_toml, tmp_path):
    def run(policy, silent_to, *more, forgets_before=None, rounds=4):
        sets = [f"policy.name={policy}", f"rounds={rounds}", "channel.bandwidth_hz=1e6", *more]
        config = load_config(ExperimentConfig, tiny_toml, sets, presets=PRESETS)
        text = {"config": dump_config(config)}
        grid = Hanging(client_app, config.num_devices, text, silent_to=silent_to)
        bench = workbench_for(config)
        cell = Cell(config.channel, config.num_devices, seed=config.seed)
        with Recorder(config, bench, tmp_path / "run") as recorder:

            def on_round(result):
                recorder.record(result)
                if forgets_before == result.round_index + 2:
                    grid._contexts[3].state = RecordDict()

            downlink, uplink = planners(bench, config)
            run_federation(grid, cell, downlink, uplink, on_round=on_round, reply_timeout_s=0.05)
            recorder.finish(downlink.final())
        frame = pd.read_csv(tmp_path / "run" / "rounds.csv")
        return frame.set_index(["round", "device"]), downlink, grid

    return run


@pytest.mark.parametrize(
    "policy",
    ["airllm", "paper", "adalora", "uniform", "random", "greedy:gain", "greedy:energy", "fixed:2"],
)
def test_a_device_that_does_not_answer_a_query_is_sent_nothing(policy, run):
    frame, *_ = run(policy, {("query", "2")})
    row = frame.loc[2, 1]
    assert not row[["planned_bits", "payload_bits", "sent_bits", "overhead_bits"]].any()
    assert row["answered"] == 0
    assert frame.drop((2, 1))["answered"].all()
    assert frame.loc[[3, 4]]["delivered"].any()
    assert np.isfinite(frame).all(axis=None)


def test_an_update_without_an_answer_counts_as_missed_and_the_device_starts_afresh(run):
    frame, downlink, grid = run("fixed:2", {("train", "2")})
    row = frame.loc[2, 1]
    assert row["sent_bits"] > 0
    assert row[["answered", "delivered", "delivered_bits"]].tolist() == [0, 0, 0]
    assert row["loss"] == frame.loc[1, 1]["loss"]  # the last that was heard of it
    # It had installed what it did not acknowledge: only an absolute update is safe then.
    device_adapter = read_state(grid._contexts[3].state, downlink.base).device_adapter
    known = downlink.ledger.adapter(1)
    for ours, theirs in zip(
        device_adapter.down + device_adapter.up, known.down + known.up, strict=True
    ):
        assert np.array_equal(ours, theirs)


def test_a_device_that_comes_back_with_nothing_is_given_its_head_again(run):
    frame, *_ = run("fixed:2", {("train", "2")}, forgets_before=3)
    assert frame.loc[[3, 4]]["answered"].all()
    assert frame.loc[3, 1]["delivered"] == 1


@pytest.mark.parametrize("about", ["query", "train", "train.send"])
@pytest.mark.parametrize("forgets_before", [None, 3])
def test_a_federated_round_goes_on_without_a_silent_device(about, forgets_before, run):
    frame, *_ = run("uniform", {(about, "2")}, "mode=federated", forgets_before=forgets_before)
    assert frame.loc[2, 1]["answered"] == 0
    assert frame.loc[2, 1][["uplink_delivered", "uplink_delivered_bits"]].tolist() == [0, 0]
    assert frame.drop((2, 1))["answered"].all()
    assert frame.drop((2, 1))["uplink_delivered"].all()  # from who went on, and who came back
    assert np.isfinite(frame).all(axis=None)


def test_in_one_process_every_device_answers(tiny_toml, tmp_path):
    config = load_config(ExperimentConfig, tiny_toml, presets=PRESETS)
    run_simulation(config, tmp_path / "local")
    assert pd.read_csv(tmp_path / "local" / "rounds.csv")["answered"].all()
