"""The documentation is true: its commands run, its site is built, and needs no network."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.figures import style
from experiments.results.folder import KEY_COLUMNS, RESULT_COLUMNS, ROUND_COLUMNS
from experiments.sweep.sweep import load_sweep

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"```(\w*)\n(.*?)```", flags=re.DOTALL)


def blocks(page, language):
    return [text for kind, text in BLOCK.findall((DOCS / page).read_text()) if kind == language]


def commands(page):
    lines = [line for text in blocks(page, "") for line in text.strip().splitlines()]
    return [line for line in lines if line.startswith("airllm ")]


README = (ROOT / "README.md").read_text()
PAGES = ("tutorial.md", "own-data.md", "traces.md")
COMMANDS = [command for page in PAGES for command in commands(page) if command not in README]


@pytest.fixture(scope="module", autouse=True)
def files(folder):
    """What the pages take for granted."""
    (folder / "own.toml").write_text(*blocks("tutorial.md", "toml"))
    shutil.copytree(DOCS / "examples", folder / "docs" / "examples")
    ucc = "".join(f"2020.01.01_10.00.{i:02},{i % 7},-\n" for i in range(20))
    (folder / "Driving_B.csv").write_text("Timestamp,SNR,CQI\n" + ucc)
    (folder / "log.csv").write_text("seconds,sinr\n" + "".join(f"{i},{i % 9}\n" for i in range(20)))


def test_every_page_has_its_commands_tested():
    assert len(COMMANDS) == len(set(COMMANDS))
    for page in DOCS.glob("*.md"):
        # What starts Flower's servers is in tests/experiments/runtimes/test_deployment.py.
        if page.name not in (*PAGES, "flower.md"):
            assert not [c for c in commands(page.name) if c.startswith("airllm run")], page


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, run_command):
    run_command(command)


def test_the_sweep_of_its_page_is_one():
    """Three policies and a variant under all that is swept, and the dear one under less."""
    trials = load_sweep(text=blocks("sweeps.md", "toml")[0]).trials
    assert len(trials) == 4 * 3 * 2 * 10 + 2 * 2 * 2


@pytest.fixture
def own_sweep(run_command):
    """The tutorial's sweep, made here unless its command has made it before."""
    (command,) = [c for c in COMMANDS if c.startswith("airllm sweep own.toml")]
    run_command(command)


@pytest.mark.usefixtures("own_sweep")
def test_the_python_of_the_sweeps_page_runs(folder, monkeypatch):
    """It reads the tutorial's sweep."""
    monkeypatch.setattr(style, "COLOURS", style.COLOURS)
    scope = {}
    for text in blocks("sweeps.md", "python"):
        exec(text, scope)
    assert len(scope["rounds"]) == len(scope["trials"]) * 2 * 2  # rounds and devices
    assert (folder / "own.pdf").exists()
    assert (folder / "paper.pdf").exists()


@pytest.mark.usefixtures("own_sweep")
def test_every_column_is_explained_and_no_other(folder):
    page = (DOCS / "columns.md").read_text()
    rounds, results, summary = (
        re.findall(r"^\| `([\w.]+)` \|", part, flags=re.MULTILINE)
        for part in page.split("\n## ")[1:]
    )
    assert tuple(rounds) == ROUND_COLUMNS
    assert tuple(results) == (*KEY_COLUMNS, *RESULT_COLUMNS)
    written = json.loads(next((folder / "runs/own").glob("*/summary.json")).read_text())
    assert {*results, *summary} == {*written, *KEY_COLUMNS, "privacy_epsilon"}


@pytest.mark.usefixtures("own_sweep")
def test_the_figure_of_the_tutorial_is_drawn(folder):
    (text,) = blocks("tutorial.md", "python")
    exec(text, {})
    assert (folder / "runs/own/in-time.png").stat().st_size > 5000


def test_the_adapter_of_the_page_on_other_tools_is_written(folder, small, monkeypatch):
    monkeypatch.chdir(folder)
    text = blocks("interchange.md", "python")[0]
    settings = ", ".join(repr(setting) for setting in small)
    exec(text.replace('"model.name=minilm", "data.source=docstrings"', settings), {})
    assert (folder / "adapter/adapter_config.json").exists()


def test_the_python_of_the_traces_page_runs(folder):
    exec(*blocks("traces.md", "python"), {})


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return site


def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)', page.read_text()
        )
        assert not loaded, page


def test_equations_are_drawn(site):
    page = (site / "model" / "index.html").read_text()
    assert page.count("<math") > 40
    assert "arithmatex" not in page
    assert "\\frac" not in page


def test_the_docstrings_are_there(site):
    page = (site / "api" / "channel" / "index.html").read_text()
    for text in ("Virtual time, links and sharing for a fixed set of devices", "SnrModel"):
        assert text in page


def test_make_docs_builds_it():
    done = subprocess.run(
        [*shlex.split("make docs --dry-run")], cwd=ROOT, capture_output=True, text=True
    )
    assert "mkdocs build" in done.stdout


def test_the_files_and_tests_that_the_pages_name_are_there():
    files = [path for path in ROOT.glob("[acdet]*/**/*.py") if path.is_file()]
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")):
        for name in re.findall(r"`([\w/]+\.py)\b", page.read_text()):
            found = [path for path in files if path.as_posix().endswith(f"/{name}")]
            assert found, f"{page.name} names {name}"
        for name, test in re.findall(r"`(test_\w+\.py): (\w+)`", page.read_text()):
            texts = [path.read_text() for path in files if path.name == name]
            assert any(re.search(rf"def \w*{test}", text) for text in texts), f"{name}: {test}"
