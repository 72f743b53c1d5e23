"""The command as a user meets it: exit codes, sentences, and what is left after Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from channel import preset_names
from experiments.cli import main as cli
from experiments.cli import output
from experiments.results.folder import RESULT_COLUMNS

ROOT = Path(__file__).parents[3]


def airllm(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["airllm", *map(str, arguments)])
    monkeypatch.setattr(output, "stderr", Console(stderr=True, width=200))
    monkeypatch.setattr(output, "stdout", Console(width=200))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.fixture
def call(monkeypatch, capsys):
    return lambda *arguments: airllm(monkeypatch, capsys, *arguments)


def test_help_and_version(call):
    code, out, _ = call("--help")
    assert code == 0
    assert all(word in out for word in ("run", "sweep", "plot", "info", "config"))
    assert call("--version")[1].startswith("airllm-sim ")


def test_run_plot_and_a_second_run_in_the_same_folder(call, tiny_toml, tmp_path):
    out = tmp_path / "run"
    code, text, _ = call("run", tiny_toml, "--out", out, "--set", "rounds=3")
    assert code == 0
    assert "accuracy" in text
    assert {p.name for p in out.iterdir()} == {
        "config.toml", "rounds.csv", "ranks.npz", "summary.json",
    }  # fmt: skip
    code, text, _ = call("plot", out)
    assert code == 0
    assert (out / "run.png").stat().st_size > 10_000
    assert (out / "run.pdf").read_bytes().startswith(b"%PDF")
    code, _, err = call("run", tiny_toml, "--out", out)
    assert code == 2
    assert "holds a finished run; give another --out, or --overwrite" in err
    assert call("run", tiny_toml, "--out", out, "--overwrite")[0] == 0
    assert len(pd.read_csv(out / "rounds.csv")) == 4


def test_sweep_and_plot_again(call, tiny_toml, tmp_path):
    out = tmp_path / "sweep"
    code, text, err = call("sweep", tiny_toml, "--out", out)
    assert code == 0
    assert "uniform" in text
    assert "\n4/4 " in err  # which run is the last depends on how many go side by side
    assert len(pd.read_csv(out / "results.csv")) == 4
    figures = [(out / f"snr.{end}").read_bytes() for end in ("png", "pdf")]
    assert call("plot", out)[0] == 0
    assert figures == [(out / f"snr.{end}").read_bytes() for end in ("png", "pdf")]


def test_every_preset_is_listed_and_drawn(call, tmp_path):
    code, out, _ = call("channel", "list")
    assert code == 0
    for name in (*preset_names(), "trace:<file>"):
        assert name in out
    example = ROOT / "docs" / "examples" / "walk.csv"
    for preset in ("indoor", f"trace:{example}"):
        assert call("channel", "show", preset, "--out", tmp_path)[0] == 0
        assert (tmp_path / "channel.png").stat().st_size > 20_000
    code, _, err = call("channel", "show", "indor")
    assert code == 2
    assert "did you mean 'indoor'" in err


def test_config_lists_keys_and_prints_one_resolved(call, tiny_toml):
    assert "\ntraining.orthogonality = 0.1\n    " in call("config")[1]
    code, out, _ = call("config", tiny_toml, "--set", "seed=9")
    assert code == 0
    assert "seed = 9" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing"), "config nothing does not exist; give a path, or one of "),
        (("run", "--set", "chanel.snr_db=1"), "did you mean channel.snr_db?"),
        (("run", "--set", "channel.bandwidth_hz=-1"), "channel.bandwidth_hz must be > 0, got -1"),
        (("sweep", "quick", "--sweep", "seed=[]"), "sweep.seed must not be empty"),
        (("sweep", "quick", "--sweep", "seed"), "--sweep must be key=values, such as"),
        (("sweep", "sst2"), "sweeps nothing; add a table [sweep]"),
        (("run", "--set", "training.r_max=0"), "training.r_max must be >= 1, got 0"),
        (("run", "--set", "rounds=many"), "rounds must be a whole number, got 'many'"),
        (("plot", "nowhere"), "nowhere is no folder; name the --out of a sweep or a run"),
        (("run", "quick", "--out", ""), "--out must not be empty; give a path"),
        (("pack", "x", "--out="), "--out must not be empty; give a path"),
        (("run", "--bogus"), "No such option"),
        (("fly",), "No such command"),
        (("sweep",), "Missing"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, message, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.source=absent.csv", "data file absent.csv does not exist"),
        ("data.text_column=sentence", "has no 'sentence' in row 1 (its columns: text, label)"),
        ("model.name=facebook/opt-1.3b", "hf download facebook/opt-1.3b"),
        ("model.targets=nothing", "matches no linear projection"),
    ],
)
def test_what_is_found_out_late_is_said_the_same_way(
    setting, message, call, tiny_toml, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = call("run", tiny_toml, "--set", setting, "--out", tmp_path / "out")
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_folder_that_cannot_be_written_is_named(call, tiny_toml, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = call("run", tiny_toml, "--out", tmp_path / "file" / "below")
    assert code == 2
    assert "cannot be written" in err


def started(tiny_toml, out, command):
    """The command at work in a process of its own, some rounds after its start."""
    own = ["--set", "policy.name=fixed:0"] if command == "run" else ["--sweep", "channel.snr_db=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", command, str(tiny_toml), "--out", str(out),
         "--set", "rounds=300", "--set", "training.steps_per_round=1", *own],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    rounds = out / ("rounds.csv" if command == "run" else "uniform_snr_db=0_seed=0/rounds.csv")
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if rounds.exists() and len(rounds.read_text().splitlines()) > 4:
            break
        time.sleep(0.1)
    return process, rounds


# Each command once and each signal once: both commands meet both signals in `main`.
@pytest.mark.parametrize(
    ("command", "sent", "code", "word"),
    [
        ("run", signal.SIGTERM, 143, "terminated"),
        ("sweep", signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_signal_leaves_what_is_finished_and_says_where(
    command, sent, code, word, call, tiny_toml, tmp_path
):
    out = tmp_path / "out"
    process, rounds = started(tiny_toml, out, command)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert f"{word}: finished" in err
    assert str(out) in err
    assert "Traceback" not in err
    assert len(pd.read_csv(rounds)) >= 4
    assert not (rounds.parent / "summary.json").exists()
    if command == "run":
        # What is finished can be looked at.
        assert call("plot", out)[0] == 0


@pytest.fixture
def fake_run(monkeypatch):
    """Put a function in the place of the simulation."""

    def put(function):
        monkeypatch.setattr("experiments.runtimes.local.run_simulation", function)

    return put


def test_ctrl_c_amid_a_sweep_keeps_its_results(call, fake_run, tiny_toml, tmp_path):
    calls = []

    def run(config, folder, *, on_round, is_resuming=False):
        calls.append(folder.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return dict.fromkeys(RESULT_COLUMNS, 0.5)

    fake_run(run)
    code, _, err = call("sweep", tiny_toml, "--jobs", 1, "--out", tmp_path / "out")
    assert code == 130
    assert "the same command goes on from there" in err
    assert len(pd.read_csv(tmp_path / "out" / "results.csv")) == 2


def test_ctrl_c_before_the_first_round_promises_nothing(call, fake_run, tiny_toml, tmp_path):
    def run(config, folder, *, on_round, is_resuming=False):
        raise KeyboardInterrupt

    fake_run(run)
    code, _, err = call("run", tiny_toml, "--out", tmp_path / "out")
    assert code == 130
    assert "interrupted: no round was finished yet" in err
    # In a run that goes on there are some already.
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "checkpoint-3.safetensors").touch()
    code, _, err = call("run", tiny_toml, "--out", tmp_path / "out", "--resume")
    assert code == 130
    assert "the same command with --resume goes on" in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "error: out of memory; make training.batch_size"),
        (ValueError("two\nlines"), "error: two lines\n"),
        (OSError(28, "No space left on device", "r.csv"), "error: r.csv: No space left on device"),
    ],
)
def test_what_ends_a_run_is_one_line(error, message, call, fake_run, tiny_toml, tmp_path):
    def run(config, folder, *, on_round, is_resuming=False):
        raise error

    fake_run(run)
    code, _, err = call("run", tiny_toml, "--out", tmp_path / "out")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_mistake_of_ours_is_not_passed_off_as_the_users(
    fake_run, tiny_toml, monkeypatch, tmp_path
):
    def run(config, folder, *, on_round, is_resuming=False):
        raise KeyError("bug")

    fake_run(run)
    monkeypatch.setattr(
        sys, "argv", ["airllm", "run", str(tiny_toml), "--out", str(tmp_path / "o")]
    )
    with pytest.raises(KeyError, match="bug"):
        cli.main()


def test_a_run_that_cannot_start_does_not_cost_the_one_before_it(
    call, fake_run, tiny_toml, tmp_path
):
    (tmp_path / "summary.json").write_text("{}")

    def run(config, folder, *, on_round, is_resuming=False):
        raise ValueError("model.name is not here")

    fake_run(run)
    assert call("run", tiny_toml, "--out", tmp_path, "--overwrite")[0] == 2
    assert call("channel", "show", "paper", "--out", tmp_path)[0] == 0
    code, _, err = call("sweep", tiny_toml, "--out", tmp_path)
    assert code == 2
    assert "holds a single run" in err
    assert (tmp_path / "summary.json").exists()


def test_a_sweep_with_failed_runs_says_so_and_shows_the_others(call, fake_run, tiny_toml, tmp_path):
    def run(config, folder, *, on_round, is_resuming=False):
        if folder.name.startswith("random"):
            raise RuntimeError("not enough memory")
        return dict.fromkeys(RESULT_COLUMNS, 0.5)

    fake_run(run)
    code, out, err = call("sweep", tiny_toml, "--jobs", 1, "--out", tmp_path / "out")
    assert code == 2
    assert "2 of 4 runs failed; random_snr_db=0_seed=0: not enough memory" in err
    assert "uniform" in out
    assert (tmp_path / "out" / "snr.pdf").exists()


def test_help_is_quick_and_a_reader_who_leaves_is_no_error():
    heavy = "{'torch', 'flwr', 'pandas'}"
    code = f"import sys, experiments.cli.main; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout == "[]\n", found.stderr
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "--help"], cwd=ROOT, stdout=write,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


def test_a_damaged_result_is_named(call, tmp_path):
    (tmp_path / "results.csv").write_text("")
    assert "is damaged" in call("plot", tmp_path)[2]
    (tmp_path / "results.csv").write_text("policy\nuniform\n")
    assert "lacks the columns" in call("plot", tmp_path)[2]
    (tmp_path / "results.csv").unlink()
    assert "holds no results.csv" in call("plot", tmp_path)[2]
    (tmp_path / "rounds.csv").write_text("round\n1\n")
    (tmp_path / "summary.json").write_text("{")
    assert "is damaged" in call("plot", tmp_path)[2]


@pytest.mark.parametrize(
    "command", ["", "run", "sweep", "learn", "plot", "report", "config", "channel show"]
)
def test_help_teaches_by_examples_and_loses_no_word(command, monkeypatch, capsys):
    """Brackets are no markup; arguments are explained in the text, since typer loses their help."""
    monkeypatch.setattr(sys, "argv", ["airllm", *command.split(), "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    if command:
        assert f"airllm {command} " in text.split("Arguments")[0].replace("Usage: airllm", "", 1)
    for words in {
        "sweep": ["the table [sweep] lists", "[default: runs/CONFIG]"],
        "run": ["CONFIG is a TOML file or the name of a bundled one"],
        "channel show": ["[default: runs/channel-PRESET]", "PRESET is a name that"],
    }.get(command, []):
        assert words in text
