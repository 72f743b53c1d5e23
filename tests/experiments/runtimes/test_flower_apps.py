"""What `flwr run` may ask of the two apps, without Flower's servers: run config and node config."""

import json
import logging

import pytest
from flwr.app import Context, RecordDict

from cloud.grids.local_grid import LocalGrid
from edge.client_app import make_client_app
from experiments.config.schema import load_experiment
from experiments.run.rounds import run_rounds
from experiments.runtimes.flower_apps import client_app, device_of, load_device, serve
from experiments.runtimes.local import run_simulation

STARTED = "the run was started"


@pytest.fixture
def flwr_run(tiny_toml):
    """The cloud's app with a run config, over nodes that are given the same."""

    def flwr_run(*, num_nodes=2, **given):
        run_config = {"config": str(tiny_toml), "set": "", "out": "", "folder": "", **given}
        grid = LocalGrid(client_app, num_nodes, run_config)
        serve(grid, Context(1, 1, {}, RecordDict(), run_config))

    return flwr_run


@pytest.fixture
def unstarted(monkeypatch):
    """Let a run end where it would start."""

    def run_rounds(grid, config, out, **_):
        raise RuntimeError(STARTED, out)

    monkeypatch.setattr("experiments.run.rounds.run_rounds", run_rounds)


def test_a_run_in_the_folder_is_kept_until_overwrite_is_given(flwr_run, tmp_path):
    out = tmp_path / "out"
    flwr_run(out=str(out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for more in ({"num_nodes": 3}, {"set": "seed=5"}):
        with pytest.raises(ValueError, match=r"holds a finished run; give another out, or over"):
            flwr_run(out=str(out), **more)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    flwr_run(out=str(out), set="seed=5", overwrite=True)
    assert json.loads((out / "summary.json").read_text())["seed"] == 5


@pytest.mark.usefixtures("unstarted")
def test_an_unfinished_run_and_a_sweep_are_kept(flwr_run, tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match=r"holds an unfinished run; give another out, or overw"):
        flwr_run(out=str(tmp_path))
    with pytest.raises(RuntimeError, match=STARTED):
        flwr_run(out=str(tmp_path), overwrite=True)
    (tmp_path / "results.csv").touch()
    with pytest.raises(ValueError, match=r"holds a sweep; give another folder for the run"):
        flwr_run(out=str(tmp_path), overwrite=True)


@pytest.mark.usefixtures("unstarted")
def test_where_a_run_folder_is(flwr_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    for given, out in (
        ({"out": "~/x"}, tmp_path / "x"),
        ({"out": "x", "folder": "~/folder"}, folder / "x"),
        ({"out": str(tmp_path / "y"), "folder": str(folder)}, tmp_path / "y"),
        ({"out": ""}, None),
    ):
        with pytest.raises(RuntimeError, match=STARTED) as raised:
            flwr_run(**given)
        assert raised.value.args[1] == out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data.csv", "folder", "tiny.toml", "x", "y",
    ]  # fmt: skip


@pytest.mark.usefixtures("unstarted")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out": "runs/x"}, "out must be an absolute path, or folder be given, got 'runs/x'"),
        ({"out": 5}, "out of the run config must be text in quotes, got 5"),
        ({"overwrite": "yes"}, "overwrite of the run config must be true or false, got 'yes'"),
        ({"folder": "/nonexistent"}, "folder must be the absolute path of a folder on the machine"),
        ({"folder": "."}, r"on the machine of the SuperLink, got \.; make it there, or start"),
        ({"set": "rounds='1"}, r"must be settings with blanks between, .* \(No closing quotation"),
        ({"set": "round=1"}, r"unknown config key round; did you mean rounds\?"),
    ],
)
def test_what_a_run_config_cannot_say(given, message, flwr_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"out": str(tmp_path / "x"), **given}
    with pytest.raises(ValueError, match=message):
        flwr_run(**given)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.csv", "tiny.toml"]


def test_a_node_does_without_the_folder(tiny_toml):
    run_config = {"config": str(tiny_toml), "folder": "/nonexistent"}
    context = Context(1, 2, {"partition-id": 1}, RecordDict(), run_config)
    assert load_device(context)[1] is not None


def test_settings_are_the_clouds_and_the_nodes(flwr_run, tiny_toml, tmp_path):
    """In remote mode, which the file states, devices have no work of their own to do."""
    sets = ["mode=federated", "rounds=1", "training.r_max=2", "channel.bandwidth_hz=1e7"]
    flwr_run(set=" ".join(sets), out=str(tmp_path / "flwr"))
    config = load_experiment(str(tiny_toml), sets)
    run_simulation(config, tmp_path / "own")
    for file in ("rounds.csv", "config.toml"):
        assert (tmp_path / "flwr" / file).read_bytes() == (tmp_path / "own" / file).read_bytes()


def test_flowers_log_has_a_line_a_round_and_the_result(flwr_run, caplog):
    with caplog.at_level(logging.INFO, logger="flwr"):
        flwr_run()
    said = [record.getMessage() for record in caplog.records if record.name == "flwr"]
    assert len(said) == 4
    for number, line in enumerate(said[:2], 1):
        assert line.startswith(f"round {number} of 2: accuracy 0.")
        assert "delivered " in line
    assert "0 bits up" in said[0]
    assert said[2].startswith("uniform: accuracy 0.")
    assert "nan" not in said[2]
    assert said[3] == "written to no folder: the run config's out is empty"


def test_mods_are_around_every_answer(tiny_toml):
    seen = []

    def mod(message, context, call_next):
        seen.append(message.metadata.message_type)
        return call_next(message, context)

    sets = ["mode=federated", "rounds=1", "channel.bandwidth_hz=1e7"]
    grid = LocalGrid(
        make_client_app(load_device, mods=[mod]),
        2,
        {"config": str(tiny_toml), "set": " ".join(sets)},
    )
    run_rounds(grid, load_experiment(str(tiny_toml), sets), None)
    assert set(seen) == {"query.deploy", "query", "train", "train.send"}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({}, r'no partition-id; start it with --node-config "partition-id=0 num-partitions=2"'),
        ({"partition-id": 2}, r"partition-id must be a whole number in 0\.\.1, got 2; correct"),
        ({"partition-id": 0.7}, r"partition-id must be a whole number in 0\.\.1, got 0\.7"),
        ({"partition-id": True}, "partition-id must be a whole number .* got True"),
        (
            {"partition-id": 0, "num-partitions": 10},
            "num-partitions must be num_devices 2, got 10; correct the SuperNode's --node-config",
        ),
    ],
)
def test_what_a_node_config_cannot_say(node, message, tiny_toml):
    with pytest.raises(ValueError, match=message):
        device_of(load_experiment(str(tiny_toml)), Context(1, 2, node, RecordDict(), {}))
