"""What is sent to a SuperLink is what a clone would send."""

import socket
import tomllib
from pathlib import Path

import pytest

from experiments.cli.run import Runtime, _runner
from experiments.config.schema import load_experiment
from experiments.runtimes.app_folder import APP, write_app
from experiments.runtimes.federation import Federation
from experiments.runtimes.flower_env import child_environment, command
from experiments.runtimes.superlink import SuperLink

ROOT = Path(__file__).parents[3]


def test_the_app_is_the_one_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"] == APP


def test_the_folder_holds_the_packages_and_no_data(tmp_path):
    write_app(tmp_path)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    assert project["project"]["name"] == "airllm-sim"
    for path in (
        "airllm/lora/adapter.py",
        "channel/presets/indoor.toml",
        "experiments/runtimes/flower_apps.py",
    ):
        assert (tmp_path / path).read_text() == (ROOT / path).read_text()
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} <= {".py", ".toml", ".json"}
    assert sum(p.stat().st_size for p in tmp_path.rglob("*")) < 5e6


def test_flowers_commands_are_told_to_keep_to_themselves(monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    environment = child_environment({"FLWR_HOME": "here"})
    assert environment["FLWR_TELEMETRY_ENABLED"] == "1"  # the user's own word counts
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["FLWR_HOME"] == "here"
    assert environment["PATH"].startswith(str(Path(command("flwr")).parent))
    with pytest.raises(ValueError, match="does not exist at .*; pip install 'flwr"):
        command("flower-nonsense")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text(
        '[superlink]\ndefault = "local"\n[superlink.local]\naddress = ":local:"\n'
        '[superlink.mine]\naddress = "10.0.0.1:9000"\n'
    )
    return tmp_path


def test_a_superlink_is_found_by_its_name(home):
    found = SuperLink.find("mine")
    assert (found.home, found.connection, found.address) == (home, "mine", "10.0.0.1:9000")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("local", "is Flower's local simulation, no deployment; take --runtime simulation"),
        ("yours", r"is no connection in .*config.toml \(there: local, mine\); add it there"),
        ("runs/federation", "there is no federation in runs/federation; start one with"),
    ],
)
def test_one_that_is_not_there_is_named(given, message, home, monkeypatch):
    monkeypatch.chdir(home)
    with pytest.raises(ValueError, match=message):
        SuperLink.find(given)


def test_no_configuration_of_flowers_is_no_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="there: none"):
        SuperLink.find("mine")


def test_the_users_word_on_a_run_in_the_folder_counts_at_the_superlink(
    tiny_toml, tmp_path, monkeypatch
):
    asked = []

    class Link:
        address = "10.0.0.1:9000"

        def nodes_online(self):
            return 2

        def start_run(self, app, run_config):
            asked.append(tomllib.loads(run_config.read_text()))
            raise ValueError("not now")

    monkeypatch.setattr(SuperLink, "find", lambda given: Link())
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="not now"):
            _runner(Runtime.DEPLOYMENT, "mine", overwrite)(
                load_experiment(str(tiny_toml)), tmp_path / "out"
            )
    assert [run_config["overwrite"] for run_config in asked] == [False, True]
    assert set(asked[0]) <= set(APP["config"])


def test_a_federation_that_cannot_be_is_refused_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} cannot be had .* or 0 for a free one"):
            Federation(tmp_path).up(2, port=port)
    with pytest.raises(ValueError, match="port 99999 cannot be had"):
        Federation(tmp_path).up(2, port=99999)
    with pytest.raises(ValueError, match="--devices must be >= 1, got 0"):
        Federation(tmp_path).up(0)
    with pytest.raises(ValueError, match="there is no federation in"):
        Federation(tmp_path).about()
    assert list(tmp_path.iterdir()) == []
