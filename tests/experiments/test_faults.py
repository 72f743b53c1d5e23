"""What a run does when its surroundings fail; docs/reliability.md has the table."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import airllm.checkpoint
from airllm.checkpoint import load_state, save_state
from edge.device import Device
from experiments.config.loader import dump_config, load_config
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.results.folder import RoundsWriter, prepare_out, read_ranks, read_rounds
from experiments.run.checkpoints import Checkpoints, alone_in, can_resume, found
from experiments.runtimes.local import run_simulation
from experiments.sweep.pool import _simulate
from experiments.sweep.sweep import finished_summary

FILES = ("rounds.csv", "ranks.npz", "summary.json", "config.toml")


@pytest.fixture
def config(tiny_toml):
    sets = ("rounds=4", "runtime.checkpoint_s=0", "policy.name=random")
    return load_config(ExperimentConfig, tiny_toml, sets, presets=PRESETS)


def files_of(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def fail_at(monkeypatch, owner, name, number, error):
    """The ``number``-th call from now on raises."""
    real, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


FULL = OSError(28, "No space left on device")
FAULTS = {
    "disk full in rounds.csv": (RoundsWriter, "_append", 4, FULL, OSError, "No space left.*rounds"),
    "disk full in a checkpoint": (
        airllm.checkpoint, "save_file", 3,
        airllm.checkpoint.SafetensorError("I/O error: No space left on device"),
        OSError, "checkpoint-000003.*No space left",
    ),
    "out of memory": (Device, "install", 6, MemoryError(), MemoryError, None),
    "torch out of memory": (Device, "install", 6, RuntimeError("not enough memory"), RuntimeError,
                            "not enough memory"),
    "interrupted": (Device, "install", 6, KeyboardInterrupt(), KeyboardInterrupt, None),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_finished_rounds_stay_readable_and_a_resumed_run_repairs_all(
    fault, config, tmp_path, monkeypatch
):
    run_simulation(config, tmp_path / "whole")
    owner, name, number, error, raised, message = FAULTS[fault]
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_at(patch, owner, name, number, error)
        with pytest.raises(raised, match=message):
            run_simulation(config, out)
    rounds, (ranks, _) = read_rounds(out), read_ranks(out)
    assert list(rounds["round"]) == [n for n in range(1, rounds["round"].max() + 1) for _ in (0, 1)]
    assert len(ranks) >= rounds["round"].max() >= 2
    assert not (out / "summary.json").exists()
    assert not list(out.glob(".*.part"))
    with pytest.raises(ValueError, match="unfinished run; --resume goes on with it, --overwrite"):
        prepare_out(out)
    run_simulation(config, out, is_resuming=True)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert not found(out)


FEDERATED = (
    "mode=federated", "data.partition=dirichlet", "federated.dropout=0.2",
    "federated.cloud_steps=1", "payload.coding=residual", "federated.aggregator=clipped",
)  # fmt: skip


@pytest.mark.parametrize(
    "sets",
    [
        ("policy.name=airllm", "policy.is_exploring=true", "policy.ppo.num_steps=2"),
        ("policy.name=paper", "policy.ppo.num_steps=2", "training.dropout=0.1"),
        ("policy.name=greedy:gain", "channel.preset=uma-vehicular", "channel.away_per_s=0.3"),
        FEDERATED,
        ("mode=federated", "federated.aggregator=trimmed", "federated.dropout=0.2"),
        (*FEDERATED, "num_devices=5", "runtime.stacked=true"),
    ],
    ids=["learning", "paper", "moving", "federated", "shared-a", "stacked"],
)
def test_whatever_a_run_remembers_is_in_its_checkpoint(sets, tiny_toml, tmp_path):
    common = ("rounds=4", "runtime.checkpoint_s=0")
    config = load_config(ExperimentConfig, tiny_toml, (*common, *sets), presets=PRESETS)
    run_simulation(config, tmp_path / "whole")
    for after in (1, 3):
        stopped(config, tmp_path / f"out{after}", after)
        run_simulation(config, tmp_path / f"out{after}", is_resuming=True)
        assert files_of(tmp_path / f"out{after}") == files_of(tmp_path / "whole")


def test_a_round_cut_short_on_the_disk_does_not_count(config, tmp_path):
    run_simulation(config, tmp_path)
    path = tmp_path / "rounds.csv"
    whole = path.read_bytes()
    ends = [i for i, c in enumerate(whole) if c == 10]
    # Within the last row, and after the first of a round's two rows.
    for size in (len(whole) - 3, ends[-2] + 1, ends[-2] - 3):
        path.write_bytes(whole[:size])
        assert read_rounds(tmp_path)["round"].max() == 3
        assert len(read_rounds(tmp_path)) == 6


def stopped(config, out, after):
    class Stop(Exception):
        pass

    def on_round(done, total):
        if done == after:
            raise Stop

    with pytest.raises(Stop):
        run_simulation(config, out, on_round=on_round)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_it_used(
    damage, config, tmp_path, caplog
):
    run_simulation(config, tmp_path / "whole")
    out = tmp_path / "out"
    stopped(config, out, 3)
    newest = found(out)[0]
    data = bytearray(newest.read_bytes())
    if damage == "flipped":
        data[-100] ^= 1
    newest.write_bytes({"cut": data[:-8], "flipped": data, "empty": b""}[damage])
    run_simulation(config, out, is_resuming=True)
    assert "checkpoint-000003.safetensors is damaged" in caplog.text
    assert files_of(out) == files_of(tmp_path / "whole")


def test_where_no_checkpoint_is_usable_the_run_begins_again(config, tmp_path):
    run_simulation(config, tmp_path / "whole")
    out = tmp_path / "out"
    for spoil in (
        lambda: [path.write_bytes(b"x") for path in found(out)],
        lambda: (out / "rounds.csv").write_bytes(b"round\n"),
    ):
        stopped(config, out, 3)
        spoil()
        run_simulation(config, out, is_resuming=True)
        assert files_of(out) == files_of(tmp_path / "whole")


def test_a_sweep_begins_a_run_again_that_another_machine_had_begun(config, tmp_path, caplog):
    """It has no --resume to leave out."""
    run_simulation(config, tmp_path / "whole")
    out = tmp_path / "out"
    stopped(config, out, 2)
    for path in found(out):
        save_state(load_state(path) | {"arithmetic": "cuda in bf16"}, path)
    _simulate(config, out, lambda done, total: None)
    assert "run on cuda in bf16" in caplog.text
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_checkpoint_of_something_else_is_refused_with_the_reason(config, tiny_toml, tmp_path):
    stopped(config, tmp_path, 2)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    sets = ("rounds=4", "runtime.checkpoint_s=0", "policy.name=random")
    other = load_config(ExperimentConfig, tiny_toml, (*sets, "channel.snr_db=3"), presets=PRESETS)
    assert can_resume(dump_config(config), tmp_path)
    assert not can_resume(dump_config(other), tmp_path)
    assert not can_resume(dump_config(config), tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"run with channel.snr_db = 5.0, not 3.0; resume with"):
        run_simulation(other, tmp_path, is_resuming=True)
    newest = found(tmp_path)[0]
    state = load_state(newest)
    save_state(state | {"format": 99}, newest)
    with pytest.raises(ValueError, match="is of format 99, this version reads 6; resume with the"):
        run_simulation(config, tmp_path, is_resuming=True)
    save_state(state, newest)
    with pytest.raises(ValueError, match="run on other text than the configured source holds now"):
        Checkpoints(tmp_path, dump_config(config), "other").load()
    save_state(state | {"arithmetic": "cuda in bf16"}, newest)
    with pytest.raises(
        ValueError, match="run on cuda in bf16, this one would go on on cpu in fp32"
    ):
        run_simulation(config, tmp_path, is_resuming=True)
    save_state(state, newest)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    # How the host computes does not count, but whether devices are stacked does.
    faster, stacked = (
        load_config(ExperimentConfig, tiny_toml, (*sets, also), presets=PRESETS)
        for also in ("runtime.threads=2", "runtime.stacked=true")
    )
    assert can_resume(dump_config(faster), tmp_path)
    with pytest.raises(ValueError, match=r"run with runtime.stacked = False, not True; resume"):
        run_simulation(stacked, tmp_path, is_resuming=True)
    run_simulation(config, tmp_path, is_resuming=True)
    assert finished_summary(faster, tmp_path)
    assert finished_summary(stacked, tmp_path) is None


def test_two_runs_do_not_share_a_folder(config, tmp_path):
    run_simulation(config, tmp_path)
    before = files_of(tmp_path)
    with alone_in(tmp_path), pytest.raises(ValueError, match="is in use by another run; wait for"):
        run_simulation(config, tmp_path)
    assert files_of(tmp_path) == before
    with alone_in(tmp_path):
        pass  # given back


def test_a_clock_that_jumps_changes_nothing(config, tmp_path, monkeypatch):
    run_simulation(config, tmp_path / "steady")
    rng = np.random.default_rng(0)
    monkeypatch.setattr(time, "time", lambda: float(rng.uniform(0, 1e10)))
    run_simulation(config, tmp_path / "jumping")
    assert files_of(tmp_path / "jumping") == files_of(tmp_path / "steady")


@pytest.mark.parametrize("policy", ["uniform", "paper"])
def test_a_training_that_diverges_is_named_and_costs_nothing_finished(policy, tiny_toml, tmp_path):
    def config_of(*sets):
        return load_config(
            ExperimentConfig, tiny_toml, (f"policy.name={policy}", *sets), presets=PRESETS
        )

    run_simulation(config_of(), tmp_path)
    before = files_of(tmp_path)
    with pytest.raises(
        ValueError, match=r"training diverged \(loss .*\) with training.learning_ra"
    ):
        run_simulation(config_of("training.learning_rate=1e30"), tmp_path)
    if policy == "uniform":  # it trains before its first round, and so before it has a folder
        assert files_of(tmp_path) == before


def test_a_device_whose_loss_is_not_a_number_is_in_the_rows_and_stops_nobody(
    config, tmp_path, monkeypatch
):
    real = Device.report

    def report(device, *, is_installed=False):
        found = real(device, is_installed=is_installed)
        is_first = device.profile.device == 0 and is_installed
        return replace(found, loss=float("nan")) if is_first else found

    monkeypatch.setattr(Device, "report", report)
    run_simulation(config, tmp_path)
    rounds = read_rounds(tmp_path)
    assert len(rounds) == 8
    assert rounds[rounds["device"] == 1]["loss"].notna().all()
    assert rounds[(rounds["device"] == 0) & (rounds["payload_bits"] > 0)]["loss"].isna().any()


def test_only_the_newest_two_checkpoints_are_kept_and_time_says_when(config, tiny_toml, tmp_path):
    stopped(config, tmp_path / "often", 3)
    names = [p.name for p in found(tmp_path / "often")]
    assert names == ["checkpoint-000003.safetensors", "checkpoint-000002.safetensors"]
    rare = load_config(ExperimentConfig, tiny_toml, ("rounds=4",), presets=PRESETS)
    stopped(rare, tmp_path / "rare", 3)
    assert not found(tmp_path / "rare")


def test_a_checkpoint_holds_no_pickle(config, tmp_path):
    stopped(config, tmp_path, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", None)
        assert load_state(found(tmp_path)[0])["recorder"]["mark"]["size"] == os.path.getsize(
            tmp_path / "rounds.csv"
        )
