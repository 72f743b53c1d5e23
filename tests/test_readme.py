"""Every command of the README runs, on a world small enough for a test."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import cli

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if not language for line in text.strip().splitlines()]
PYTHON = [text for language, text in BLOCKS if language == "python"]
ROWS = "".join(f"{a} {b} number {i},{int(a == b)}\n" for i in range(30) for a in "ab" for b in "ab")
SMALL = (
    "model.name=tiny:bert", "model.precision=fp32", "num_devices=2", "examples_per_device=8",
    "rounds=2", "training.steps_per_round=2", "training.r_max=2", "data.label_column=label",
    "data.text_column=text", "data.source=data.csv", "data.eval_source=", "runtime.threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all commands, because some go on from others."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "data.csv").write_text("text,label\n" + ROWS)
    return folder


def test_the_readme_has_the_two_commands():
    assert COMMANDS[:2] == ["make run", "make test"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_knows_its_targets(command):
    done = subprocess.run(
        [*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = {"make run": "airllm sweep quick", "make test": "-m pytest"}[command]
    assert expected in done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("airllm ")])
def test_airllm_commands_run(command, folder, monkeypatch):
    arguments = shlex.split(command)
    if arguments[1] in ("run", "sweep"):
        # Later settings win, so the command is as written but for the size of its world.
        arguments += [part for setting in SMALL for part in ("--set", setting)]
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0


def test_the_python_example_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (text,) = PYTHON
    settings = ", ".join(repr(setting) for setting in SMALL)
    scope = {}
    exec(text.replace('"rounds=2"', settings), scope)
    assert scope["summary"]["rounds"] == 2


def test_nothing_else_is_left_untested():
    """`flwr run` has tests/experiments/test_flower.py; activating an environment needs none."""
    others = [c for c in COMMANDS if not c.startswith(("make ", "airllm "))]
    assert [c.split()[0] for c in others] == [".", "flwr"]
