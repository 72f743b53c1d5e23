"""One simulation: what is on disk, what repeats, what no policy can do."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import evaluate
from airllm.models.batches import join
from cloud.grids.local_grid import LocalGrid
from experiments.assembly import workbench as build
from experiments.config.loader import dump_config, load_config
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.results.folder import ROUND_COLUMNS
from experiments.run.rounds import run_rounds
from experiments.run.summary import bits_until
from experiments.runtimes.flower_apps import client_app
from experiments.runtimes.local import run_simulation

POLICIES = (
    "airllm", "paper", "adalora", "adalora:blind", "uniform", "random", "fixed:4",
    "greedy:energy", "greedy:gain", "forward",
)  # fmt: skip
SHARED = Path(__file__).parents[3].parent / "shared" / "data"


def config_of(path, *sets):
    return load_config(ExperimentConfig, path, sets, presets=PRESETS)


@pytest.fixture(autouse=True)
def fresh_workbench():
    """No test may live on what another has cached."""
    build._workbench.cache_clear()
    build._base.cache_clear()


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_runs_and_no_more_is_delivered_than_the_band_carries(
    policy, tiny_toml, tmp_path
):
    summary = run_simulation(config_of(tiny_toml, f"policy.name={policy}"), tmp_path / "out")
    rounds = pd.read_csv(tmp_path / "out" / "rounds.csv")
    assert tuple(rounds.columns) == ROUND_COLUMNS
    assert len(rounds) == 4
    assert np.isfinite(rounds.drop(columns=["device"])).all().all()
    for _, of_round in rounds.groupby("round"):
        assert (of_round["sent_bits"] / of_round["rate_bps"]).sum() <= 1.0 + 1e-9
    lost = rounds[rounds["delivered"] == 0]
    assert (lost["delivered_bits"] == 0).all()
    assert summary["policy"] == policy
    with np.load(tmp_path / "out" / "ranks.npz") as file:
        assert file["ranks"].shape == (2, 2, 12)
        np.testing.assert_array_equal(file["ranks"].sum(axis=2).ravel(), rounds["rank_sum"])


def test_the_same_configuration_gives_the_same_bytes(tiny_toml, tmp_path):
    config = config_of(tiny_toml, "policy.name=airllm")
    for name in ("first", "second"):
        build._workbench.cache_clear()
        run_simulation(config, tmp_path / name)
    for file in ("rounds.csv", "summary.json", "config.toml"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    run_simulation(config_of(tiny_toml, "policy.name=airllm", "seed=1"), tmp_path / "third")
    assert (tmp_path / "third" / "rounds.csv").read_bytes() != (
        tmp_path / "first" / "rounds.csv"
    ).read_bytes()


def test_bits_are_counted_until_the_devices_are_there_on_average():
    r, d = np.repeat([1.0, 2.0, 3.0], 2), np.tile([0.0, 1.0], 3)
    columns = {
        "round": r, "delivered_bits": 100 * r + d, "uplink_delivered_bits": np.full(6, 10.0),
        "accuracy": 0.1 * r + 0.02 * d,
    }  # fmt: skip
    # Means over the devices: 110.5, 210.5, 310.5 bits down and up, and 0.11, 0.21, 0.31.
    assert bits_until(columns, 0.2) == 321.0
    assert bits_until(columns, 0.1) == 110.5
    assert np.isnan(bits_until(columns, 0.5))


def test_payload_bits_are_those_of_the_ranks(tiny_toml, tmp_path):
    """12 projections of tiny:bert: 8 of 32x32, 2 of 32x64, 2 of 64x32; 16 bits a parameter."""
    run_simulation(config_of(tiny_toml), tmp_path)
    rounds = pd.read_csv(tmp_path / "rounds.csv")
    with np.load(tmp_path / "ranks.npz") as file:
        ranks, names = file["ranks"], file["projections"]
    size = np.array([64 if "attention" in n else 96 for n in names])
    expected = 8 * (10 + 12) + 16 * (ranks @ size)
    np.testing.assert_array_equal(rounds["payload_bits"], expected.ravel())


def test_a_blind_policy_misses_its_deadline_and_the_device_keeps_what_it_has(tiny_toml, tmp_path):
    sets = ("policy.name=fixed:4", "channel.snr_db=-5", "channel.fading=none")
    summary = run_simulation(config_of(tiny_toml, *sets), tmp_path)
    rounds = pd.read_csv(tmp_path / "rounds.csv")
    assert summary["delivered_rate"] == 0.0
    assert rounds.groupby("device")["loss"].nunique().eq(1).all()
    assert summary["accuracy"] == pytest.approx(summary["head_accuracy"])
    assert (rounds["reward"] < 0).all()


def test_a_wide_band_delivers_the_masters_own_accuracy(tiny_toml, tmp_path):
    sets = ("policy.name=fixed:4", "channel.bandwidth_hz=1e9", "payload.number_format=fp32")
    sets += ("payload.coding=absolute", "training.steps_per_round=30")
    summary = run_simulation(config_of(tiny_toml, *sets), tmp_path)
    assert summary["delivered_rate"] == 1.0
    assert summary["loss"] == pytest.approx(summary["full_loss"], rel=1e-5)
    assert summary["loss"] < summary["head_loss"]


@pytest.mark.parametrize("coding", ["absolute", "residual"])
def test_damaged_payloads_change_nothing(coding, tiny_toml, tmp_path):
    sets = (
        f"payload.coding={coding}", "channel.residual_error_rate=1.0",
        "channel.bandwidth_hz=1e9",
    )  # fmt: skip
    summary = run_simulation(config_of(tiny_toml, *sets), tmp_path)
    assert summary["delivered_rate"] == 0.0
    assert summary["delivered_bits"] > 0
    assert summary["loss"] == pytest.approx(summary["head_loss"])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_causal_model_has_a_perplexity(family, tiny_toml, tmp_path):
    sets = (f"model.name=tiny:{family}", "model.task=causal", "data.label_column=")
    sets += ("channel.bandwidth_hz=1e9", "policy.name=greedy:gain")
    summary = run_simulation(config_of(tiny_toml, *sets), tmp_path)
    for which in ("", "head_", "full_"):
        assert summary[f"{which}perplexity"] == pytest.approx(np.exp(summary[f"{which}loss"]))
    assert summary["loss"] < summary["head_loss"]


def test_the_papers_configuration_runs_on_a_tiny_opt(tiny_toml, tmp_path):
    """As committed, with the model, the data and the length of the run replaced."""
    source = tomllib.loads(tiny_toml.read_text())["data"]["source"]
    config = load_config(
        ExperimentConfig,
        Path(build.__file__).parents[1] / "configs" / "paper.toml",
        (
            "model.name=tiny:opt", "model.precision=fp32", f"data.source={source}",
            "data.text_column=text", "rounds=3", "examples_per_device=8",
            "channel.bandwidth_hz=1e5", "policy.ddim.hidden=16", "runtime.threads=1",
        ),
        presets=PRESETS,
    )  # fmt: skip
    assert config.channel.sharing == "orthogonal"
    assert config.policy.ppo.hidden == 256
    run_simulation(config, tmp_path)
    with np.load(tmp_path / "ranks.npz") as file:
        assert file["ranks"].min() >= 1
        assert file["ranks"].max() <= 8
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["snr_db"] is None


def test_two_devices_need_two_examples(tiny_toml, tmp_path):
    with pytest.raises(ValueError, match="cannot be shared by 999 devices"):
        run_simulation(config_of(tiny_toml, "num_devices=999"), tmp_path)


@pytest.mark.parametrize("devices", [1, 3])
def test_too_little_text_names_the_key_that_took_it(devices, tiny_toml, tmp_path):
    source = tmp_path / "rows.jsonl"
    rows = [f'{{"text": "t{i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(50)]
    source.write_text("".join(rows))
    config = config_of(
        tiny_toml, f"data.source={source}", "mode=federated", f"num_devices={devices}",
        "training.head_examples=40",
    )  # fmt: skip
    message = f"head_examples 40 leaves 0 of 40 training texts for num_devices {devices} to share"
    with pytest.raises(ValueError, match=f"{message}; set .* to at most {40 - devices}"):
        run_simulation(config, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is not beside the repo")
def test_sst2_over_a_wide_and_a_narrow_band(tmp_path):
    common = (
        f"data.source={SHARED / 'sst2' / 'train.tsv'}",
        f"data.eval_source={SHARED / 'sst2' / 'dev.tsv'}", "data.eval_text_column=content",
    )  # fmt: skip
    path = Path(build.__file__).parents[1] / "configs" / "sst2.toml"
    wide, narrow = (
        run_simulation(config_of(path, *common, *sets), tmp_path / name)
        for name, sets in {
            "wide": ("channel.snr_db=15", "channel.preset=wide-band"),
            "narrow": ("channel.snr_db=-5", "channel.bandwidth_hz=1e5"),
        }.items()
    )
    assert wide["accuracy"] > 0.80
    assert narrow["accuracy"] < wide["accuracy"] - 0.05
    assert narrow["delivered_bits"] < 0.05 * wide["delivered_bits"]


def test_forward_selection_ends_below_what_a_formula_ends_at(tiny_toml):
    """One round: it selects by the very loss that the summary reports."""
    sets = ("rounds=1", "payload.coding=residual", "training.steps_per_round=12")
    loss = {
        policy: run_simulation(config_of(tiny_toml, *sets, f"policy.name={policy}"))["loss"]
        for policy in ("forward", "greedy:gain", "uniform")
    }
    assert loss["forward"] < min(loss["greedy:gain"], loss["uniform"])


def test_forward_selection_by_probe_sees_the_clouds_texts_and_not_the_devices(tiny_toml):
    config = config_of(
        tiny_toml, "rounds=1", "payload.coding=residual", "policy.name=forward:probe",
        "training.gain_examples=24", "training.steps_per_round=12",
    )  # fmt: skip
    bench, asked = build.workbench_for(config), []
    losses = bench.probe_losses

    def watched(round_index, device, adapters):
        found = losses(round_index, device, adapters)
        asked.append((device, found))
        return found

    bench.probe_losses = watched
    bench.losses = None
    assert run_simulation(config)["delivered_bits"] > 0
    zero = Adapter.zero(bench.base.specs)
    for device in range(config.num_devices):
        first, *later = (found for d, found in asked if d == device)
        parts = bench.probe_texts(0, config.num_devices, config.num_devices)[
            device :: config.num_devices
        ]
        assert sum(len(part.ids) for part in parts) == 24
        assert first == [evaluate(bench.base, bench.head, zero, join(parts)).loss]
        assert min(found.min() for found in later) < first


def test_stacked_devices_only_run_in_one_process(tiny_toml):
    config = config_of(tiny_toml, "runtime.stacked=true")
    with pytest.raises(ValueError, match=r"runtime.stacked .* take --runtime local"):
        run_rounds(object(), config, None)


def test_a_run_that_cannot_start_costs_the_one_before_it_nothing(tiny_toml, tmp_path):
    """With `--overwrite`: the old files go when there is a first row to take their place."""
    config = config_of(tiny_toml, "policy.name=uniform")
    run_simulation(config, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    grid = LocalGrid(client_app, config.num_devices + 1, {"config": dump_config(config)})
    with pytest.raises(ValueError, match="3 nodes are connected"):
        run_rounds(grid, config, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
