"""Asynchronous rounds: virtual time alone decides who comes first."""

import shutil
import time

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from airllm.lora.adapter import Adapter
from airllm.protocol import Deployment, DeviceReport
from channel.open_cell import OpenCell
from cloud.clients.manager import ClientManager
from cloud.grids.local_grid import LocalGrid
from cloud.rounds.asynchronous import AsynchronousRounds
from edge.state import read_state
from experiments.assembly.parts import planners
from experiments.assembly.workbench import make_cell, workbench_for
from experiments.config.loader import dump_config, load_config
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.runtimes.flower_apps import client_app
from experiments.runtimes.local import run_simulation

SETS = (
    "mode=federated", "channel.bandwidth_hz=1e6", "federated.buffer=2", "rounds=5",
    "num_devices=3", "examples_per_device=4",
)  # fmt: skip


def config_of(path, *sets):
    return load_config(ExperimentConfig, path, (*SETS, *sets), presets=PRESETS)


class Dawdling(LocalGrid):
    """A host that takes its time over one of the devices."""

    def _answer(self, message):
        if message.metadata.dst_node_id == 2:
            time.sleep(0.02)
        return super()._answer(message)


class Losing(LocalGrid):
    """Answers of node 3 (device 1) to updates ``lost`` are lost; with ``is_blank`` its state is."""

    lost, is_blank = (), False

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.asked, self.num_updates = [], 0

    def _answer(self, message):
        if message.metadata.dst_node_id != 3:
            return super()._answer(message)
        self.asked.append(message.metadata.message_type)
        is_update = "update" in message.content
        self.num_updates += is_update
        is_lost = is_update and self.num_updates in self.lost
        if is_lost and self.is_blank:
            self._contexts[3].state.clear()
        reply = super()._answer(message)
        if is_lost and not self.is_blank:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)
        return reply


def log_of(config, grid_type):
    log, results, *_ = run_of(config, grid_type)
    return log, results


def run_of(config, grid_type):
    grid = grid_type(client_app, config.num_devices, {"config": dump_config(config)})
    bench = workbench_for(config)
    cell = make_cell(config.channel, config.num_devices, seed=config.seed)
    downlink, uplink = planners(bench, config)
    clients = ClientManager(
        grid, config.num_devices, Deployment(downlink.head), reply_timeout_s=5.0
    )
    known = clients.assemble(wait_s=1.0)
    downlink.welcome(known)
    uplink.welcome(known)
    results, log = [], []
    AsynchronousRounds(
        clients, downlink, uplink, OpenCell(cell), known, results.append,
        on_event=lambda *event: log.append(event),
    ).run()  # fmt: skip
    return log, results, grid, downlink


@pytest.fixture
def uneven(tiny_toml, tmp_path):
    """One device of three computes for half a second, the others for next to nothing."""
    slow = tmp_path / "slow.toml"
    slow.write_text("flops_per_s = 2.5e8\npower_w = 1.0\nmemory_bytes = 1e9\n")
    return config_of(tiny_toml, f"federated.hardware=phone,phone,{slow}", "channel.fading=none")


def test_the_host_does_not_decide_what_happens_first(uneven):
    log, _ = log_of(uneven, LocalGrid)
    assert log == log_of(uneven, Dawdling)[0]
    times = [at for at, _, _ in log]
    assert times == sorted(times)
    assert sum(event == "merge" for _, _, event in log) == 5


def test_fast_devices_do_not_wait_for_slow_ones(uneven):
    log, results = log_of(uneven, LocalGrid)
    uploads = [d for _, d, event in log if event == "upload"]
    assert uploads.count(0) > uploads.count(2)
    assert all(r.round_s > 0 for r in results)
    assert np.isclose(sum(r.round_s for r in results), log[-1][0])


def test_every_merge_takes_a_full_buffer_and_the_model_learns(tiny_toml, tmp_path):
    sets = ("federated.local_learning_rate=1e-2", "rounds=8", "channel.fading=none")
    summary = run_simulation(config_of(tiny_toml, *sets), tmp_path)
    rounds = pd.read_csv(tmp_path / "rounds.csv")
    assert len(rounds) == 8 * 3
    assert summary["full_loss"] < summary["head_loss"]
    starts = rounds.groupby("round")["time_s"].first()
    ends = starts + rounds.groupby("round")["round_s"].first()
    np.testing.assert_allclose(starts[1:], ends[:-1])


def test_the_same_configuration_gives_the_same_bytes(tiny_toml, tmp_path):
    config = config_of(tiny_toml, "federated.dropout=0.7", "federated.participants=2", "rounds=8")
    for name in ("first", "second"):
        run_simulation(config, tmp_path / name)
    assert (tmp_path / "first" / "rounds.csv").read_bytes() == (
        tmp_path / "second" / "rounds.csv"
    ).read_bytes()
    rounds = pd.read_csv(tmp_path / "first" / "rounds.csv")
    # Some of what was begun was not finished.
    assert (rounds["uplink_delivered_bits"] < rounds["uplink_payload_bits"]).any()


@pytest.mark.parametrize(
    ("sets", "saved_after"),
    [
        (("federated.dropout=0.4", "federated.method=hetlora"), [1, 2, 3, 4]),
        # Transfers that are given up, and a deadline that each of them has to meet.
        (("channel.deadline_s=0.5", "channel.snr_db=-5"), [1, 2, 3, 4]),
        # Devices that move, are seen late, get damaged payloads, and take turns.
        (
            (
                "channel.preset=uma-vehicular",
                "channel.fading=rayleigh",
                "federated.participants=2",
                "channel.residual_error_rate=0.3",
            ),
            [1, 2, 3, 4],
        ),
        # All do the same at the same time: merges 1 and 2 are of one moment.
        (("channel.fading=none", "channel.sharing=orthogonal", "num_devices=4"), [2, 4]),
    ],
)
def test_a_run_goes_on_from_every_checkpoint_to_the_same_bytes(
    sets, saved_after, tiny_toml, tmp_path
):
    config = config_of(tiny_toml, "runtime.checkpoint_s=0", "runtime.threads=1", *sets)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"

    def keep(done, total):
        shutil.copytree(whole, stopped / str(done))

    run_simulation(config, whole, on_round=keep)
    saved = {done: stopped / str(done) / f"checkpoint-{done:06d}.safetensors" for done in range(6)}
    assert [done for done, path in saved.items() if path.exists()] == saved_after
    for done in saved_after:
        folder, rounds_left = stopped / str(done), []
        run_simulation(
            config, folder, is_resuming=True, on_round=lambda n, _, to=rounds_left: to.append(n)
        )
        assert rounds_left == list(range(done + 1, 6))
        for path in whole.iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes(), (done, path.name)


@pytest.mark.parametrize(
    ("buffer", "lost"),
    [(1, (1,)), (1, (1, 2)), (6, (2,))],  # 6: updates 1 and 2 go down between the same two merges
)
def test_after_a_lost_answer_the_books_say_what_the_device_holds(
    buffer, lost, tiny_toml, monkeypatch
):
    monkeypatch.setattr(Losing, "lost", lost)
    sets = (f"federated.buffer={buffer}", f"rounds={24 // buffer}", "channel.fading=none")
    _, results, grid, downlink = run_of(config_of(tiny_toml, *sets), Losing)
    assert sum(not r.record.is_answered[1] for r in results) >= 1
    assert grid.num_updates > max(lost) + 1
    if buffer == 1:  # there is one cycle of the device between two rows, and nobody confirmed it
        records = [r.record for r in results]
        silent = [of for of in records if not of.is_answered[1] and of.down.payload_bits[1]]
        assert silent
        assert not any(of.down.delivered_bits[1] for of in silent)
    device_adapter, known = (
        read_state(grid._contexts[3].state, downlink.base).device_adapter,
        downlink.ledger.adapter(1),
    )
    for ours, theirs in zip(
        device_adapter.down + device_adapter.up, known.down + known.up, strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_device_that_comes_back_with_nothing_goes_on(tiny_toml, monkeypatch):
    monkeypatch.setattr(Losing, "lost", (2,))
    monkeypatch.setattr(Losing, "is_blank", True)
    config = config_of(tiny_toml, "federated.buffer=1", "rounds=16", "channel.fading=none")
    _, results, grid, downlink = run_of(config, Losing)
    again = grid.asked.index("query")
    assert grid.asked[again - 1 : again + 5] == [
        "train", "query", "query.deploy", "query", "train", "train.send",
    ]  # fmt: skip
    (missed,) = [i for i, r in enumerate(results) if not r.record.is_answered[1]]
    assert any(r.record.up.is_delivered[1] for r in results[missed + 1 :])
    device_adapter, known = (
        read_state(grid._contexts[3].state, downlink.base).device_adapter,
        downlink.ledger.adapter(1),
    )
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(device_adapter.up, known.up, strict=True)
    )


def test_stale_updates_move_less(tiny_toml):
    config = config_of(tiny_toml)
    bench = workbench_for(config)
    generator = torch.Generator().manual_seed(0)
    update = Adapter(
        tuple(torch.randn(2, s.in_features, generator=generator) for s in bench.base.specs),
        tuple(torch.randn(s.out_features, 2, generator=generator) for s in bench.base.specs),
    )
    (_, fresh), (_, stale) = planners(bench, config), planners(bench, config)
    for uplink, discount in ((fresh, 1.0), (stale, 0.5)):
        uplink.welcome({0: DeviceReport(0, 0.5, 0.0, 8, 0.7, 0.5, 0)})
        uplink.merger.merge([0], [update], [discount])
    torch.testing.assert_close(2 * stale.master.final().delta(0), fresh.master.final().delta(0))


def test_a_federation_that_nothing_comes_up_from_ends(tiny_toml):
    with pytest.raises(ValueError, match="no update has come in over"):
        run_simulation(config_of(tiny_toml, "channel.snr_db=-200", "channel.fading=none"))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["federated.method=fedit"], "needs an aggregator of unequal ranks"),
        (["channel.fading=clarke"], "asynchronous rounds need channel.fading"),
        (["policy.name=airllm", "policy.is_exploring=true"], "federated.buffer = 0"),
    ],
)
def test_what_cannot_be_is_named(sets, message, tiny_toml):
    with pytest.raises(ValueError, match=message):
        run_simulation(config_of(tiny_toml, *sets))
