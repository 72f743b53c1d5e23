"""--runtime simulation: Ray's workers give the numbers of one process, and leave nothing behind."""

import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rich.console import Console

from experiments.cli import main as cli
from experiments.cli import output
from experiments.config.loader import load_config
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.runtimes.flower_apps import device_of
from experiments.runtimes.local import run_simulation
from experiments.runtimes.simulation import run_ray_simulation, session_folder

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
FILES = ("rounds.csv", "config.toml", "summary.json")


@pytest.fixture
def config(tiny_toml, monkeypatch):
    # In federated mode the devices train as well: there is more in which runtimes could differ.
    # Parts of one's own are found from the working directory, by Ray's workers too.
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr("sys.path", list(sys.path))
    sets = [
        "mode=federated", "num_devices=3", "runtime.workers=1",
        "policy.name=my_policy:BestLinks", "channel.model=my_channel:Tunnel",
        "federated.hardware=my_device:watch", "federated.aggregator=my_aggregator:Clipped",
    ]  # fmt: skip
    return load_config(ExperimentConfig, tiny_toml, sets, presets=PRESETS)


def ray_processes():
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may end while it is looked at
            if process.status() != psutil.STATUS_ZOMBIE and "ray" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.flower
# Ray's own worker warns about its future defaults, and its sockets are closed by its collector.
@pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::ResourceWarning")
def test_the_numbers_are_those_of_the_local_runtime(config, tmp_path, monkeypatch):
    # The paths of Ray's sockets must be short, wherever temporary files are to lie.
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 20)))
    before = set(Path("/tmp").glob("airllm-*"))
    run_simulation(config, tmp_path / "local")
    data = (tmp_path / "data.csv").read_text()
    seen = []

    def on_round(done, rounds):
        seen.append((done, rounds))
        assert ray_processes()
        # Read once a process: a worker that read its text again for a round would fail now.
        (tmp_path / "data.csv").unlink(missing_ok=True)

    summary = run_ray_simulation(config, tmp_path / "ray", on_round=on_round)
    assert seen == [(1, 2), (2, 2)]
    assert summary["num_devices"] == 3
    for file in FILES:
        assert (tmp_path / "ray" / file).read_text() == (tmp_path / "local" / file).read_text()
    assert ray_processes() == []

    # Once more in the same process, with a failure in the cloud's app this time.
    (tmp_path / "data.csv").write_text(data)

    def fail(done, rounds):
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        run_ray_simulation(config, on_round=fail)
    assert ray_processes() == []
    assert set(Path("/tmp").glob("airllm-*")) == before


@pytest.mark.parametrize(
    ("name", "folder", "is_short"),
    [
        ("TMPDIR", "/tmp", True),
        ("TMPDIR", "/" + 34 * "x", True),
        ("TMPDIR", "/" + 35 * "x", False),
        ("TMPDIR", "/" + 17 * "\N{LATIN SMALL LETTER U WITH DIAERESIS}" + "x", False),
        ("RAY_TMPDIR", "/" + 200 * "x", False),
    ],
)
def test_rays_sockets_have_room(monkeypatch, name, folder, is_short):
    for other in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, folder)
    with session_folder() as own:
        assert (own is None) == is_short
        if own:
            assert len(own) <= 35
            assert Path(own).is_dir()
    assert own is None or not Path(own).exists()


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_where_no_folder_is_short_one_sentence_says_so(monkeypatch, name):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(name, "/" + "long/" * 20)
    said = rf"^{name} .* set RAY_TMPDIR to a folder"
    with pytest.raises(ValueError, match=said), session_folder():
        pass


def test_all_devices_of_a_process_share_one_base_model(config):
    bases = [
        device_of(config, SimpleNamespace(node_config={"partition-id": device}))[0]
        for device in range(3)
    ]
    assert bases[0] is bases[1] is bases[2]


def test_without_ray_one_sentence_says_so(tiny_toml, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "experiments.runtimes.simulation.importlib.util.find_spec", lambda name: None
    )
    arguments = ["run", str(tiny_toml), "--runtime", "simulation", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["airllm", *arguments])
    monkeypatch.setattr(output, "stderr", Console(stderr=True, width=200))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "needs ray, which is not installed; pip install" in capsys.readouterr().err
