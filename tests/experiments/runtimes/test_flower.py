"""`flwr run .` under Flower's simulation runtime, and Ray's processes when a run is interrupted."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from experiments.config.loader import load_config
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.runtimes.flower_env import child_environment
from experiments.runtimes.local import run_simulation

pytestmark = pytest.mark.flower

ROOT = Path(__file__).parents[3]
SWITCH = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"  # without it: 12 GB of dependencies
(FLWR_RUN,) = (
    line
    for line in (ROOT / "README.md").read_text().splitlines()
    if line.startswith(f"{SWITCH}=1 flwr run")
)
MARK = "AIRLLM_TEST"  # in the environment of every process that a test has started
PATIENCE_S = 400.0  # for a state on a busy machine


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def environment(tmp_path):
    """Of all processes of a test, which are ended with it: `flwr run` leaves a SuperLink."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    more = {
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": free_port(),
        "FLWR_LOCAL_CONTROL_API_PORT": free_port(),
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        MARK: str(tmp_path),
    }
    yield child_environment(more)
    for _ in range(3):
        for process in alive(tmp_path):
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.2)


def alive(mark):
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(mark) and process.status() != "zombie":
                found.append(process)
    return found


def test_flwr_run_gives_the_numbers_of_the_local_runtime(tiny_toml, tmp_path, environment):
    tiny_toml.write_text(tiny_toml.read_text().replace('name = "uniform"', 'name = "airllm"'))
    sets = ["channel.bandwidth_hz=1e5"]
    config = load_config(ExperimentConfig, tiny_toml, sets, presets=PRESETS)
    run_simulation(config, tmp_path / "local")
    out = tmp_path / "flower-run"
    del environment[SWITCH]  # the line sets it
    line = FLWR_RUN.replace("run .", f"run {ROOT}").replace("'quick'", f"'{tiny_toml}' MORE")

    def flwr(*words):
        assert "run" not in words or words[0] == f"{SWITCH}=1"
        done = subprocess.run(
            ["env", *words, "--format", "json"], env=environment, cwd=tmp_path,
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        answer = json.loads(done.stdout[done.stdout.index("{") :])
        assert answer["success"], answer
        return answer

    def run(num_nodes, more):
        nodes = f"num-supernodes={num_nodes} client-resources-num-cpus=1"
        started = flwr(*shlex.split(line.replace("num-supernodes=4", nodes).replace("MORE", more)))
        deadline = time.monotonic() + PATIENCE_S
        while True:
            (found,) = flwr("flwr", "list", "--run-id", started["run-id"])["runs"]
            if found["status"].startswith("finished"):
                log = subprocess.run(
                    ["flwr", "log", started["run-id"], "--show"], env=environment, cwd=tmp_path,
                    capture_output=True, text=True, timeout=PATIENCE_S,
                )  # fmt: skip
                return found["status"], found["status-details"], log.stdout + log.stderr
            assert time.monotonic() < deadline
            time.sleep(1.0)

    status, _, log = run(2, f"set='channel.bandwidth_hz=1e5' out='{out}'")
    assert status == "finished:completed", log
    for file in ("rounds.csv", "config.toml", "summary.json"):
        assert (out / file).read_text() == (tmp_path / "local" / file).read_text()
    assert "round 2 of 2: accuracy" in log
    assert "airllm: accuracy" in log
    status, details, _ = run(3, "")
    assert status == "finished:failed"
    assert "num_devices is 2, but 3 nodes are connected" in details


@pytest.mark.slow
def test_an_interrupted_simulation_leaves_no_process(tiny_toml, tmp_path, environment):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "run", str(tiny_toml), "--runtime", "simulation",
         "--out", str(out), "--set", "rounds=300", "--set", "training.steps_per_round=1",
         "--set", "policy.name=fixed:0"],
        cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    rounds, deadline = out / "rounds.csv", time.monotonic() + PATIENCE_S
    while not rounds.exists() or len(rounds.read_text().splitlines()) < 4:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert any("ray" in p.name() for p in alive(tmp_path))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143, err
    assert "terminated: finished rounds are in" in err
    assert "Traceback" not in err
    deadline = time.monotonic() + 60.0
    while alive(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.5)
