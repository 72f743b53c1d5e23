"""Every command of the README runs, on a world small enough for a test."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
COMMANDS = [line for language, text in BLOCKS if not language for line in text.strip().splitlines()]
PYTHON = [text for language, text in BLOCKS if language == "python"]


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
def test_airllm_commands_run(command, run_command):
    run_command(command)


def test_the_python_example_runs(folder, small, monkeypatch):
    monkeypatch.chdir(folder)
    (text,) = PYTHON
    scope = {}
    exec(text.replace('"rounds=2"', ", ".join(repr(setting) for setting in small)), scope)
    assert scope["summary"]["rounds"] == 2


def test_nothing_else_is_left_untested():
    """`flwr run` has tests/experiments/runtimes/test_flower.py; activating needs none."""
    others = [c for c in COMMANDS if not c.startswith(("make ", "airllm "))]
    assert [c.split()[0] for c in others] == [
        ".", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1",
    ]  # fmt: skip
