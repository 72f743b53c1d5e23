"""The notebooks run, and what is committed is what running them gives."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


def kinds(notebook):
    """What each code cell shows: text, tables, pictures."""
    shown = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = (o.get("data", {o.output_type: 0}) for o in cell.outputs)
            shown.append(sorted(kind for output in outputs for kind in output))
    return shown


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_clean(path):
    """Executed from top to bottom, nothing on stderr, nothing of the machine it ran on."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    streams = [o for cell in code for o in cell.outputs if o.output_type == "stream"]
    assert {o.name for o in streams} <= {"stdout"}
    assert str(ROOT) not in path.read_text()
    assert "<matplotlib" not in path.read_text()


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_shows_what_is_committed(path, tmp_path, monkeypatch):
    for folder in ("experiments/notebooks", "docs/examples", "docs/data"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    before = kinds(notebook)
    where = {"metadata": {"path": str(tmp_path / "experiments" / "notebooks")}}
    # A busy machine may give what a cell prints in parts.
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=where, coalesce_streams=True
    )
    client.execute()
    assert kinds(notebook) == before
