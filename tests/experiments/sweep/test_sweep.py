"""Sweeps: the order of rows, going on after a stop, and one failure that costs no other run."""

import os
import signal

import numpy as np
import pandas as pd
import pytest

from experiments.config.loader import dump_config
from experiments.results.folder import (
    RESULT_COLUMNS,
    ROUND_COLUMNS,
    RoundsWriter,
    load,
    read_results,
    write_summary,
)
from experiments.sweep.pool import _cut
from experiments.sweep.sweep import load_sweep, run_sweep, value_of


@pytest.fixture
def sweep(tiny_toml):
    return load_sweep(tiny_toml)


def fake(calls, *, fail_on=None, stop_on=None):
    """A run that notes it was called and returns a summary."""

    def run(config, folder, on_round):
        name = folder.name
        calls.append(name)
        if name == fail_on:
            raise ValueError("no memory")
        if name == stop_on:
            raise KeyboardInterrupt
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(dump_config(config))
        with RoundsWriter(folder / "rounds.csv") as rounds:
            for r in range(config.rounds):
                rounds.write([{**dict.fromkeys(ROUND_COLUMNS, 0), "round": r + 1}])
        summary = dict.fromkeys(RESULT_COLUMNS, 0.5)
        write_summary(folder / "summary.json", summary)
        return summary

    return run


NAMES = [
    "uniform_snr_db=0_seed=0",
    "uniform_snr_db=10_seed=0",
    "random_snr_db=0_seed=0",
    "random_snr_db=10_seed=0",
]


def test_every_combination_runs_once_in_the_order_of_the_sweep(sweep, tmp_path):
    calls = []
    rows, errors = run_sweep(sweep, tmp_path, run=fake(calls))
    assert calls == NAMES
    assert not errors
    frame = read_results(tmp_path)
    assert list(frame["label"]) == ["uniform", "uniform", "random", "random"]
    assert list(frame["channel.snr_db"]) == [0, 10, 0, 10]
    assert len(rows) == 4


def test_a_stopped_sweep_leaves_what_is_finished_and_goes_on(sweep, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, tmp_path, run=fake([], stop_on=NAMES[2]))
    assert len(read_results(tmp_path)) == 2
    calls = []
    run_sweep(sweep, tmp_path, run=fake(calls))
    assert calls == NAMES[2:]
    assert len(read_results(tmp_path)) == 4
    fresh = []
    run_sweep(sweep, tmp_path, run=fake(fresh), is_fresh=True)
    assert fresh == NAMES


def test_what_is_run_again_is_not_finished_until_it_is(sweep, tmp_path):
    """Old and new runs must not stand beside each other in one results.csv."""
    run_sweep(sweep, tmp_path, run=fake([]))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, tmp_path, run=fake([], stop_on=NAMES[1]), is_fresh=True)
    assert len(read_results(tmp_path)) == 1
    calls = []
    run_sweep(sweep, tmp_path, run=fake(calls))
    assert calls == NAMES[1:]


def test_another_configuration_is_not_taken_for_the_same(sweep, tiny_toml, tmp_path):
    run_sweep(sweep, tmp_path, run=fake([]))
    calls = []
    other = load_sweep(tiny_toml, ["training.r_max=3"])
    run_sweep(other, tmp_path, run=fake(calls))
    assert calls == NAMES


@pytest.mark.parametrize(
    "values", [range(-5, 16, 5), np.arange(-5, 16, 5), (v for v in (-5, 0, 5, 10, 15))]
)
def test_axes_take_whatever_gives_values(values, tiny_toml, tmp_path):
    axes = {"policy.name": "uniform", "channel.snr_db": values}
    sweep = load_sweep(str(tiny_toml), {"rounds": 1}, axes)
    assert [trial.config.channel.snr_db for trial in sweep.trials] == [-5.0, 0.0, 5.0, 10.0, 15.0]
    assert sweep.base.rounds == 1
    run_sweep(sweep, str(tmp_path / "out"), run=fake([]))
    assert "-5" in (tmp_path / "out" / "sweep.toml").read_text()


def test_one_more_policy_runs_only_what_is_new(sweep, tiny_toml, tmp_path):
    run_sweep(sweep, tmp_path, run=fake([]))
    calls = []
    more = load_sweep(tiny_toml, axes={"policy.name": ["uniform", "random", "airllm"]})
    run_sweep(more, tmp_path, run=fake(calls))
    assert calls == ["airllm_snr_db=0_seed=0", "airllm_snr_db=10_seed=0"]


def test_a_failed_run_costs_no_other(sweep, tmp_path):
    rows, errors = run_sweep(sweep, tmp_path, run=fake([], fail_on=NAMES[1]))
    assert errors == {NAMES[1]: "no memory"}
    assert len(rows) == 3
    assert len(read_results(tmp_path)) == 3


@pytest.mark.parametrize("error", [ValueError("absent"), MemoryError(), RuntimeError("no memory")])
def test_a_sweep_that_cannot_run_leaves_the_one_before_it_alone(
    error, sweep, tiny_toml, tmp_path, caplog
):
    run_sweep(sweep, tmp_path, run=fake([]))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def fail(config, folder, on_round):
        raise error

    other = load_sweep(tiny_toml, ["training.r_max=3"])
    rows, errors = run_sweep(other, tmp_path, run=fail)
    assert not rows
    assert list(errors) == NAMES
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert "4 finished runs in" in caplog.text
    # The same reason is said once.
    assert sum(r.levelname == "ERROR" for r in caplog.records) == 1


def test_what_is_finished_is_in_the_results_before_the_next_run_starts(sweep, tiny_toml, tmp_path):
    run_sweep(sweep, tmp_path, run=fake([]))
    more = load_sweep(tiny_toml, axes={"policy.name": ["airllm", "uniform", "random"]})
    with pytest.raises(KeyboardInterrupt):
        run_sweep(more, tmp_path, run=fake([], stop_on="airllm_snr_db=10_seed=0"))
    frame = read_results(tmp_path)
    assert list(frame["label"]) == ["airllm", "uniform", "uniform", "random", "random"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("summary.json", content) for content in ("3", "{}", "[1]", "{")),
        ("rounds.csv", ""), ("rounds.csv", ",".join(ROUND_COLUMNS) + "\n"),
    ],
)  # fmt: skip
def test_a_damaged_run_is_run_again(file, content, sweep, tmp_path):
    run_sweep(sweep, tmp_path, run=fake([]))
    (tmp_path / NAMES[1] / file).write_text(content)
    calls = []
    run_sweep(sweep, tmp_path, run=fake(calls))
    assert calls == [NAMES[1]]


def test_a_full_disk_ends_the_sweep(sweep, tmp_path):
    def full(config, folder, on_round):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        run_sweep(sweep, tmp_path, run=full)


def test_snrs_that_nearly_agree_have_their_own_runs(tiny_toml, tmp_path):
    axes = {"channel.snr_db": [1.0, 1.0000001], "policy.name": "uniform"}
    calls = []
    run_sweep(load_sweep(tiny_toml, axes=axes), tmp_path, run=fake(calls))
    assert calls == ["uniform_snr_db=1_seed=0", "uniform_snr_db=1.0000001_seed=0"]
    assert list(read_results(tmp_path)["channel.snr_db"]) == [1.0, 1.0000001]


def test_a_policy_in_a_sweep_has_its_own_preset(tiny_toml):
    sweep = load_sweep(tiny_toml, axes={"policy.name": ["paper", "airllm"]})
    by_policy = {trial.label: trial.config.policy for trial in sweep.trials}
    assert by_policy["paper"].ppo.hidden == 256
    assert by_policy["airllm"].ppo.hidden == 64


def test_any_key_is_swept_and_is_a_column(tiny_toml, tmp_path):
    axes = {
        "payload.coding": ["absolute", "residual"], "channel.bandwidth_hz": [1e4, 3e4],
        "channel.snr_choices_db": [[0, 5], [10, 15]], "policy.name": "uniform", "seed": 2,
    }  # fmt: skip
    sweep = load_sweep(tiny_toml, axes=axes)
    assert len(sweep.trials) == 2 * 2 * 2 * 2 * 2
    for trial in sweep.trials:
        assert all(value_of(trial.config, key) == trial.settings[key] for key in sweep.keys)
    # Two seeds are two masters: each is trained once.
    assert [trial.config.seed for trial in sweep.trials] == [0] * 16 + [1] * 16
    run_sweep(sweep, tmp_path, run=fake([]))
    frame = read_results(tmp_path)
    assert frame[["payload.coding", "channel.bandwidth_hz", "seed"]].value_counts().nunique() == 1
    assert set(frame["channel.snr_choices_db"]) == {"0 5", "10 15"}
    assert frame["trial"].is_unique


def test_a_swept_preset_brings_its_values_and_the_files_own_win(tiny_toml):
    sweep = load_sweep(tiny_toml, axes={"channel.preset": ["paper", "iot-shared-1mhz"]})
    by_preset = {c.settings["channel.preset"]: c.config.channel for c in sweep.trials}
    assert by_preset["paper"].sharing == "orthogonal"
    assert by_preset["iot-shared-1mhz"].sharing == "shared"
    assert {c.bandwidth_hz for c in by_preset.values()} == {3e4}


VARIANTS = """
[[sweep.variants]]
label = "airllm without DDIM"
"policy.name" = "airllm"
"policy.refiner" = "none"

[[sweep.variants]]
label = "dear"
"policy.name" = "greedy:gain"
"channel.snr_db" = 5
seed = [0, 7]
"""


def test_variants_of_a_policy_stand_beside_it_with_axes_of_their_own(tiny_toml):
    text = tiny_toml.read_text() + VARIANTS
    sweep = load_sweep(text=text, axes={"policy.name": ["airllm", "uniform"], "seed": 2})
    found = {}
    for trial in sweep.trials:
        found.setdefault(trial.label, []).append(trial)
    assert {label: len(trials) for label, trials in found.items()} == {
        "airllm": 4, "uniform": 4, "airllm without DDIM": 4, "dear": 2,
    }  # fmt: skip
    assert {c.config.policy.refiner for c in found["airllm"]} == {"ddim"}
    without = found["airllm without DDIM"]
    assert {c.config.policy.refiner for c in without} == {"none"}
    assert without[0].folder == "airllm-without-DDIM_snr_db=0_seed=0"
    assert {(c.config.channel.snr_db, c.config.seed) for c in found["dear"]} == {(5, 0), (5, 7)}
    # Those of one seed stay together, whatever the label.
    assert [c.config.seed for c in sweep.trials] == sorted(c.config.seed for c in sweep.trials)


def test_with_one_policy_the_lines_are_the_methods(tiny_toml):
    methods = {"federated.method": ["airllm", "hetlora"], "seed": 1}
    text = 'mode = "federated"\n' + tiny_toml.read_text().replace('"policy.name"', "#")
    trials = load_sweep(text=text, axes=methods).trials
    assert {(c.label, c.folder) for c in trials} == {
        (m, f"{m}_snr_db={snr}_seed=0") for m in methods["federated.method"] for snr in (0, 10)
    }
    both = load_sweep(text=text, axes={"policy.name": ["uniform", "random"], **methods}).trials
    assert {c.label for c in both} == {"uniform", "random"}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"channel.snrdb": [1]}, "unknown config key channel.snrdb; did you mean channel.snr_db?"),
        ({"channel.snr_db": ["a"]}, r"sweep.channel.snr_db\[0\] must be a number, got 'a'"),
        ({"channel.snr_db": []}, "sweep.channel.snr_db must not be empty"),
        ({"channel.snr_db": [1, 1.0]}, "sweep.channel.snr_db must not repeat a value"),
        ({"rounds": [1, 0]}, "sweep.rounds.1. must be >= 1, got 0"),
        ({"seed": 0}, "sweep.seed must be a number of seeds >= 1, or a list, got 0"),
        ({"seed": [0, -1]}, "sweep.seed.1. must be >= 0, got -1"),
        ({"policy.name": ["unifrom"]}, "did you mean 'uniform'"),
        ({"learn.updates": [1, 2]}, "learn.updates cannot be swept"),
        ({"channel": [1, 2]}, "channel is a section"),
    ],
)
def test_what_cannot_be_swept_is_named_before_anything_runs(axes, message, tiny_toml):
    with pytest.raises(ValueError, match=message):
        load_sweep(tiny_toml, axes=axes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds = 2", "sweeps nothing; add a table \\[sweep\\]"),
        ("[sweep]\nvariants = 3", "write each as \\[\\[sweep.variants\\]\\]"),
        ("[[sweep.variants]]\nseed = 2", "label must be a name, got None"),
        ("[[sweep.variants]]\nlabel = 'a'\nseeds = 2", "did you mean seed\\?"),
        (2 * "[[sweep.variants]]\nlabel = 'a'\n", "labels of their own, got 'a' twice"),
    ],
)
def test_a_sweep_table_that_says_nothing_clear_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        load_sweep(text=text)


def test_names_that_would_look_the_same_are_told_apart(tiny_toml):
    text = "".join(f"[[sweep.variants]]\nlabel = '{label}'\nrounds = {r}\n" for r, label in
                   ((1, "a/b"), (2, "a:b"), (3, "long " * 40)))  # fmt: skip
    folders = [trial.folder for trial in load_sweep(text=text).trials]
    assert len(set(folders)) == 3
    assert max(map(len, folders)) <= 120


def test_a_real_sweep_sends_more_over_a_better_link_and_repeats(sweep, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        run_sweep(sweep, tmp_path / name)
    first, second = (tmp_path / name / "results.csv" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    frame = pd.read_csv(first).set_index(["label", "channel.snr_db"])
    assert frame.loc[("uniform", 10), "payload_bits"] > frame.loc[("uniform", 0), "payload_bits"]
    trials, rounds = load(tmp_path / "first")
    assert len(rounds) == 4 * 2 * 2
    per_trial = rounds.groupby("trial", sort=False)
    assert list(per_trial["accuracy"].mean()) == pytest.approx(list(trials["mean_accuracy"]))
    assert list(per_trial["delivered_bits"].sum()) == list(trials["total_delivered_bits"])


@pytest.mark.parametrize(
    ("sizes", "jobs", "expected"),
    [
        ([4, 4, 4], 2, [4, 4, 2, 2]),
        ([5], 2, [2, 3]),
        ([1], 3, [1]),
        ([3, 3], 2, [3, 3]),
        ([4, 6], 4, [2, 2, 3, 3]),
        ([2, 2, 2], 1, [2, 2, 2]),
        ([], 2, []),
    ],
)
def test_no_process_is_left_with_a_whole_group_while_others_have_nothing(sizes, jobs, expected):
    ends = np.cumsum(sizes).tolist()
    groups = [list(range(end - n, end)) for n, end in zip(sizes, ends, strict=True)]
    found = _cut([list(g) for g in groups], jobs)
    assert [len(group) for group in found] == expected
    assert [i for group in found for i in group] == list(range(sum(sizes)))


def test_processes_side_by_side_find_the_same_and_one_that_dies_costs_one_run(
    sweep, tiny_toml, tmp_path
):
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    more = load_sweep(tiny_toml, axes={"policy.name": ["uniform", "random", "fixed:9"], "seed": 2})
    killed = "random_snr_db=0_seed=1"
    pids, ended = {}, []

    def on_event(trial, event):
        if event.kind == "start":
            pids[trial.folder] = event.pid
            if trial.folder == killed:
                os.kill(event.pid, signal.SIGKILL)
        elif event.kind != "round":
            ended.append(trial.folder)

    rows, errors = run_sweep(more, tmp_path / "together", jobs=2, on_event=on_event)
    assert len(rows) == 7
    assert sorted(ended) == sorted(trial.folder for trial in more.trials)
    assert errors.pop(killed) == (
        "its process was killed (SIGKILL); too little memory? try fewer --jobs"
    )
    assert set(errors.values()) == {"policy.name 'fixed:9' asks for more than training.r_max 4"}
    assert len(errors) == 4
    # A seed's runs stay in one process, but for those that the killed one left behind.
    assert len({pid for name, pid in pids.items() if name.endswith("seed=0")}) == 1
    assert len(set(pids.values())) == 3
    assert os.getpid() not in pids.values()
    run_sweep(sweep, tmp_path / "alone")
    together = read_results(tmp_path / "together").set_index("trial")
    alone = read_results(tmp_path / "alone").set_index("trial")
    pd.testing.assert_frame_equal(together.loc[alone.index], alone)


def test_a_run_finished_with_other_threads_is_finished(sweep, tiny_toml, tmp_path):
    run_sweep(sweep, tmp_path, run=fake([]))
    calls = []
    run_sweep(load_sweep(tiny_toml, ["runtime.threads=2"]), tmp_path, run=fake(calls))
    assert calls == []


@pytest.mark.parametrize("axes", [None, {"training.r_max": [2, 4]}])
def test_a_setting_that_the_sweeps_axes_would_hide_is_refused(tiny_toml, axes):
    setting = "training.r_max=3" if axes else "channel.snr_db=3"
    with pytest.raises(ValueError, match=rf"{setting}.* would change nothing.*--sweep {setting}"):
        load_sweep(tiny_toml, [setting], axes)
