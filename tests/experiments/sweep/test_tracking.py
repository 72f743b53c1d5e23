"""TensorBoard: what is in the files is in the scalars, once, and nothing of a run before."""

import sys

import pandas as pd
import pytest

from experiments.cli import main as cli
from experiments.results.folder import read_rounds
from experiments.sweep.tracking import CsvScalars

tensorboard = pytest.importorskip("tensorboard")


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_new_rows_are_sent_once_and_means_are_over_devices(tmp_path):
    path = tmp_path / "rounds.csv"
    rows = pd.DataFrame({"round": [1, 1, 2, 2], "loss": [1.0, 3.0, 0.5, 0.7], "note": list("abcd")})
    with CsvScalars(path, "round") as tracked:
        tracked.update()  # nothing there yet
        for end in (2, 4, 4):
            rows[:end].to_csv(path, index=False)
            tracked.update()
    found = scalars(tmp_path)
    assert found == {"rounds/loss": [(1, 2.0), (2, pytest.approx(0.6))]}
    # Begun anew, the folder holds one run.
    rows[:2].to_csv(path, index=False)
    with CsvScalars(path, "round"):
        pass  # what never got to a round has nothing to say of an older file
    assert scalars(tmp_path) == {}
    with CsvScalars(path, "round") as tracked:
        tracked.update()
    assert scalars(tmp_path) == {"rounds/loss": [(1, 2.0)]}


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_runs_and_sweeps_are_tracked(command, tiny_toml, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = [command, str(tiny_toml), "--out", str(out), "--tensorboard"]
    if command == "sweep":
        arguments += ["--sweep", "channel.snr_db=0", "--sweep", "policy.name=uniform"]
    monkeypatch.setattr(sys, "argv", ["airllm", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    folder = out if command == "run" else out / "uniform_snr_db=0_seed=0"
    accuracy = read_rounds(folder).groupby("round")["accuracy"].mean()
    found = scalars(folder)["rounds/accuracy"]
    assert [step for step, _ in found] == [1, 2]
    assert [value for _, value in found] == pytest.approx(list(accuracy))


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'airllm-sim\[tensorboard\]'"):
        CsvScalars(tmp_path / "rounds.csv", "round")
