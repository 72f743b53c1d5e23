"""`flwr run .` under Flower's simulation runtime gives the numbers of the local one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.config import PRESETS, ExperimentConfig
from experiments.config_loader import load_config
from experiments.run import run_simulation

ROOT = Path(__file__).parents[2]
FLWR = Path(sys.executable).parent / "flwr"


def end_processes_of(home):
    """`flwr run` leaves a SuperLink and Ray behind: end all that were started under this home."""
    marker = f"FLWR_HOME={home}".encode()
    for _ in range(3):
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if marker in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue
        time.sleep(0.2)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="ends processes through /proc")
def test_flower_simulation_gives_the_numbers_of_the_local_runtime(tiny_toml, tmp_path):
    config = load_config(ExperimentConfig, tiny_toml, ["policy.name=airllm"], presets=PRESETS)
    tiny_toml.write_text(tiny_toml.read_text().replace('name = "uniform"', 'name = "airllm"'))
    run_simulation(config, tmp_path / "local")
    home = tmp_path / "flower"
    env = {
        **os.environ,
        # flwr starts its own commands by name.
        "PATH": f"{FLWR.parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }
    out = tmp_path / "flower-run"

    def flwr(*arguments):
        done = subprocess.run(
            [str(FLWR), *arguments, "--format", "json"],
            env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        answer = json.loads(done.stdout[done.stdout.index("{") :])
        assert answer["success"], answer
        return answer

    # A copy without what a working tree has beside the project.
    app = tmp_path / "app"
    app.mkdir()
    for name in ("airllm", "channel", "edge", "cloud", "experiments"):
        shutil.copytree(ROOT / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, app / name)
    try:
        started = flwr(
            "run", str(app),
            "--run-config", f"config='{tiny_toml}' out='{out}'",
            "--federation-config", "num-supernodes=2 client-resources-num-cpus=1",
        )  # fmt: skip
        run_id = str(started["run-id"])
        deadline = time.monotonic() + 150
        status = ""
        while not status.startswith("finished") and time.monotonic() < deadline:
            time.sleep(1.0)
            status = flwr("list", "--run-id", run_id)["runs"][0]["status"]
        assert status == "finished:completed"
    finally:
        end_processes_of(home)
    for file in ("rounds.csv", "config.toml"):
        assert (out / file).read_text() == (tmp_path / "local" / file).read_text()
