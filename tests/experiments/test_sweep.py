"""Sweeps: the order of rows, going on after a stop, and one failure that costs no other run."""

import pandas as pd
import pytest

from experiments.config import PRESETS, ExperimentConfig
from experiments.config_loader import load_config
from experiments.results import RESULT_COLUMNS, read_results
from experiments.run import run_simulation
from experiments.sweep import cells_of, run_sweep


@pytest.fixture
def config(tiny_toml):
    return load_config(ExperimentConfig, tiny_toml, presets=PRESETS)


def fake(calls, *, fail_on=None, stop_on=None):
    """A run that notes it was called and returns a summary."""

    def run(config, folder, on_round):
        from experiments.config_loader import dump_config
        from experiments.results import write_summary

        name = folder.name
        calls.append(name)
        if name == fail_on:
            raise ValueError("no memory")
        if name == stop_on:
            raise KeyboardInterrupt
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(dump_config(config))
        summary = dict.fromkeys(RESULT_COLUMNS, 0.5)
        write_summary(folder / "summary.json", summary)
        return summary

    return run


NAMES = ["uniform_snr0_seed0", "uniform_snr10_seed0", "random_snr0_seed0", "random_snr10_seed0"]


def test_every_combination_runs_once_in_the_order_of_the_sweep(config, tmp_path):
    calls = []
    rows, errors = run_sweep(config, tmp_path, fake(calls))
    assert calls == NAMES
    assert not errors
    frame = read_results(tmp_path)
    assert list(frame["policy"]) == ["uniform", "uniform", "random", "random"]
    assert list(frame["snr_db"]) == [0, 10, 0, 10]
    assert len(rows) == 4


def test_a_stopped_sweep_leaves_what_is_finished_and_goes_on(config, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, tmp_path, fake([], stop_on=NAMES[2]))
    assert len(read_results(tmp_path)) == 2
    calls = []
    run_sweep(config, tmp_path, fake(calls))
    assert calls == NAMES[2:]
    assert len(read_results(tmp_path)) == 4
    fresh = []
    run_sweep(config, tmp_path, fake(fresh), is_fresh=True)
    assert fresh == NAMES


def test_another_configuration_is_not_taken_for_the_same(config, tiny_toml, tmp_path):
    run_sweep(config, tmp_path, fake([]))
    calls = []
    other = load_config(ExperimentConfig, tiny_toml, ["training.r_max=3"], presets=PRESETS)
    run_sweep(other, tmp_path, fake(calls))
    assert calls == NAMES


def test_one_more_policy_runs_only_what_is_new(config, tiny_toml, tmp_path):
    run_sweep(config, tmp_path, fake([]))
    calls = []
    more = load_config(
        ExperimentConfig, tiny_toml, ["sweep.policies=uniform,random,airllm"], presets=PRESETS
    )
    run_sweep(more, tmp_path, fake(calls))
    assert calls == ["airllm_snr0_seed0", "airllm_snr10_seed0"]


def test_a_failed_run_costs_no_other(config, tmp_path):
    rows, errors = run_sweep(config, tmp_path, fake([], fail_on=NAMES[1]))
    assert errors == {NAMES[1]: "no memory"}
    assert len(rows) == 3
    assert len(read_results(tmp_path)) == 3


@pytest.mark.parametrize("error", [ValueError("absent"), MemoryError(), RuntimeError("no memory")])
def test_a_sweep_that_cannot_run_leaves_the_one_before_it_alone(
    error, config, tiny_toml, tmp_path, caplog
):
    run_sweep(config, tmp_path, fake([]))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def fail(config, folder, on_round):
        raise error

    other = load_config(ExperimentConfig, tiny_toml, ["training.r_max=3"], presets=PRESETS)
    rows, errors = run_sweep(other, tmp_path, fail)
    assert not rows
    assert list(errors) == NAMES
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert "4 finished runs in" in caplog.text
    # The same reason is said once.
    assert sum(r.levelname == "ERROR" for r in caplog.records) == 1


def test_what_is_finished_is_in_the_results_before_the_next_run_starts(config, tiny_toml, tmp_path):
    run_sweep(config, tmp_path, fake([]))
    more = load_config(
        ExperimentConfig, tiny_toml, ["sweep.policies=airllm,uniform,random"], presets=PRESETS
    )
    with pytest.raises(KeyboardInterrupt):
        run_sweep(more, tmp_path, fake([], stop_on="airllm_snr10_seed0"))
    frame = read_results(tmp_path)
    assert list(frame["policy"]) == ["airllm", "uniform", "uniform", "random", "random"]


@pytest.mark.parametrize("content", ["3", "{}", "[1]", "{"])
def test_a_damaged_run_is_run_again(content, config, tmp_path):
    run_sweep(config, tmp_path, fake([]))
    (tmp_path / NAMES[1] / "summary.json").write_text(content)
    calls = []
    run_sweep(config, tmp_path, fake(calls))
    assert calls == [NAMES[1]]


def test_a_full_disk_ends_the_sweep(config, tmp_path):
    def full(config, folder, on_round):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        run_sweep(config, tmp_path, full)


def test_snrs_that_nearly_agree_have_their_own_runs(tiny_toml, tmp_path):
    near = load_config(
        ExperimentConfig, tiny_toml,
        ["sweep.snr_db=1.0,1.0000001", "sweep.policies=uniform"], presets=PRESETS,
    )  # fmt: skip
    calls = []
    run_sweep(near, tmp_path, fake(calls))
    assert calls == ["uniform_snr1_seed0", "uniform_snr1.0000001_seed0"]
    assert list(read_results(tmp_path)["snr_db"]) == [1.0, 1.0000001]


def test_a_policy_in_a_sweep_has_its_own_preset(tiny_toml):
    config = load_config(
        ExperimentConfig, tiny_toml, ["sweep.policies=paper,airllm"], presets=PRESETS
    )
    by_policy = {cell.policy: cell.config.policy for cell in cells_of(config)}
    assert by_policy["paper"].ppo.hidden == 256
    assert by_policy["airllm"].ppo.hidden == 64


def test_a_real_sweep_sends_more_over_a_better_link_and_repeats(config, tmp_path):
    def run(config, folder, on_round):
        return run_simulation(config, folder, on_round=on_round)

    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        run_sweep(config, tmp_path / name, run)
    first, second = (tmp_path / name / "results.csv" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    frame = pd.read_csv(first).set_index(["policy", "snr_db"])
    assert frame.loc[("uniform", 10), "payload_bits"] > frame.loc[("uniform", 0), "payload_bits"]
