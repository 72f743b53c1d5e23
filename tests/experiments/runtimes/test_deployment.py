"""A real deployment on this machine: its numbers, its failures, and that nothing of it is left.

One federation serves all tests of this file, in their order: starting it takes longest. The
commands are those of docs/flower.md, on a world small enough for a test.
"""

import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from experiments.config.loader import load_config
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.runtimes.federation import Federation, running
from experiments.runtimes.flower_env import child_environment
from experiments.runtimes.identities import write_certificates, write_node_key
from experiments.runtimes.local import run_simulation
from experiments.runtimes.superlink import SuperLink

pytestmark = pytest.mark.flower

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "flower.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.strip().splitlines()
]  # fmt: skip
PATIENCE_S = 900.0  # for a state on a busy machine, where every process takes long to start


def command(start):
    """The one command of the documentation that begins so."""
    (found,) = (line for line in COMMANDS if line.startswith(start))
    return found


def environment(**more):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return child_environment({"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more})


STARTED = []


@pytest.fixture(autouse=True)
def reaped():
    """No process of a test outlives it, however it ends."""
    yield
    while STARTED:
        end(STARTED.pop())


def end(process):
    with process:  # closes its pipe and waits for it
        process.kill()


def start(line, folder, *more):
    """A command as written (but for `airllm`, which need not be installed) at work."""
    words = shlex.split(line)
    variables = dict(w.split("=", 1) for w in words if re.match(r"[A-Z_]+=", w))
    words = [w for w in words if not re.match(r"[A-Z_]+=", w)]
    own = environment(**variables)
    if words[0] == "airllm":
        words[:1] = [sys.executable, "-m", "experiments"]
        # As behind a company's proxy, which must not be asked for anything here.
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            del own[name]
        own |= {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        [*words, *more], cwd=folder, env=own, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    STARTED.append(process)
    return process


def ended(process):
    """(exit code, what it said)"""
    text, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, " ".join(text.split())


def wait_until(holds, process):
    """Until something holds, while a process lives that should bring it about."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.5)


def rounds_of(folder):
    try:
        return pd.read_csv(folder / "rounds.csv").set_index(["round", "device"])
    except (OSError, ValueError, KeyError):
        return pd.DataFrame(columns=["answered"])


def supernode(device, folder):
    """The SuperNode of a device."""
    for process in running(folder):
        words = process.cmdline()
        if any("flower-supernode" in w for w in words) and any(
            w.startswith(f"partition-id={device} ") for w in words
        ):
            return process
    return None


@pytest.fixture(scope="module")
def federation(tiny_folder):
    """A federation of two devices, which is up and goes down as Ctrl-C ends it."""
    folder = tiny_folder / "runs" / "federation"
    process, here = start(command("airllm federation up"), tiny_folder), Federation(folder)
    STARTED.remove(process)
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if "Ctrl-C ends it" in line:
                break
        assert process.poll() is None, "".join(said)
        yield here
        process.send_signal(signal.SIGINT)
        code, text = ended(process)
        assert (code, "the federation is down" in text) == (130, True), text
        assert running(folder) == []
        code, text = ended(start(command("airllm federation down"), tiny_folder))
        assert (code, text) == (0, "0 processes ended")
    finally:
        end(process)
        here.down()


@pytest.fixture(scope="module")
def pace():
    """Seconds that the runs of this machine have taken, by name."""
    return {}


def test_every_command_of_the_page_is_run():
    here = [
        "airllm federation up", "airllm federation status", "airllm federation down",
        "airllm run quick --runtime deployment", "FLWR_HOME=runs/federation/flower flwr run",
        "FLWR_HOME=runs/federation/flower flwr list",
    ]  # fmt: skip
    switch = "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1"
    elsewhere = [
        "airllm run quick --runtime simulation",
        f"{switch} flwr run .",
    ]  # in test_flower.py
    starts = (*here, *elsewhere)
    assert len(COMMANDS) == len(starts)
    assert all(command(start) for start in starts)


def test_what_is_secret_is_for_its_owner_only(federation):
    assert stat.S_IMODE(federation.folder.stat().st_mode) == 0o700
    secrets = [p for p in federation.folder.rglob("*") if p.suffix == ".key"]
    assert len(secrets) == 3
    for path in (*secrets, federation.folder / "flower" / "config.toml"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not (federation.folder / "ca.key").exists()


def test_status_counts_the_connected(federation, tiny_folder):
    code, text = ended(start(command("airllm federation status"), tiny_folder))
    assert code == 0
    assert text.startswith("2 of 2 SuperNodes are connected to 127.0.0.1:")


def test_the_numbers_are_those_of_the_local_runtime(federation, tiny_folder, pace):
    sets = ["policy.name=airllm", "num_devices=2", "data.source=data.csv"]
    line = command("airllm run quick --runtime deployment").replace("quick", "tiny.toml")
    out = tiny_folder / "runs" / "deployed"
    began = time.monotonic()
    code, text = ended(start(line, tiny_folder, *(w for s in sets for w in ("--set", s))))
    pace["run"] = time.monotonic() - began
    assert code == 0, text
    assert "accuracy" in text
    config = load_config(ExperimentConfig, tiny_folder / "tiny.toml", sets, presets=PRESETS)
    before = Path.cwd()
    os.chdir(tiny_folder)  # relative paths start where a run does
    try:
        run_simulation(config, tiny_folder / "local")
    finally:
        os.chdir(before)
    for file in ("rounds.csv", "config.toml", "summary.json"):
        assert (out / file).read_text() == (tiny_folder / "local" / file).read_text()


def test_flwr_run_sends_the_clone_and_flwr_list_tells_how_it_ended(federation, tiny_folder):
    """In federated mode, where the devices train as well and send their updates back."""
    one = tiny_folder / "one.toml"
    one.write_text(
        'mode = "federated"\n'
        + (tiny_folder / "tiny.toml").read_text().replace("rounds = 2", "rounds = 1")
    )
    out = tiny_folder / "flwr-run"
    line = command("FLWR_HOME=runs/federation/flower flwr run")
    line = line.replace("run .", f"run {ROOT}").replace("'quick'", f"'{one}' out='{out}'")
    line = line.replace("FLWR_HOME=runs", f"FLWR_HOME={tiny_folder / 'runs'}")
    code, text = ended(start(line, tiny_folder))
    assert code == 0, text
    (run_id,) = re.findall(r"Successfully started run (\d+)", text)
    link = SuperLink.find(str(federation.folder))
    deadline = time.monotonic() + PATIENCE_S
    while not (status := link.status(run_id)[0]).startswith("finished"):
        assert time.monotonic() < deadline
        time.sleep(2.0)
    assert status == "finished:completed"
    run_simulation(load_config(ExperimentConfig, one, presets=PRESETS), tiny_folder / "one")
    for file in ("rounds.csv", "config.toml", "summary.json"):
        assert (out / file).read_text() == (tiny_folder / "one" / file).read_text()
    code, text = ended(start(command("FLWR_HOME=runs/federation/flower flwr list"), tiny_folder))
    assert code == 0
    assert "finished:completed" in text


def test_a_run_that_cannot_be_ends_with_a_sentence(federation, tiny_folder, tmp_path):
    line = "airllm run tiny.toml --runtime deployment --out runs/failed"
    code, text = ended(start(line, tiny_folder, "--set", "num_devices=3"))
    assert code == 2
    assert "num_devices is 3, but 2 SuperNodes are connected to 127.0.0.1:" in text.replace(
        "\n", ""
    )
    # Found out at the SuperLink only: the app fails there.
    code, text = ended(start(line, tiny_folder, "--set", "data.source=absent.csv"))
    assert code == 2
    assert "the run has finished, failed" in text
    assert "data file absent.csv does not exist" in text
    assert "Traceback" not in text


def test_who_has_no_valid_key_or_certificate_is_refused(federation, tiny_folder, tmp_path):
    link = SuperLink.find(str(federation.folder))
    port = federation.about()["port"]
    for name in ("key", "none"):
        keys = ["--auth-supernode-private-key", str(write_node_key(tmp_path / "other.key"))]
        line = (
            f"flower-supernode --superlink 127.0.0.1:{port} --max-retries 1 "
            f"--root-certificates {federation.folder / 'ca.crt'} --isolation process "
            f"--node-config 'partition-id=0 num-partitions=2' --port {free_port()}"
        )
        code, text = ended(start(line, tmp_path, *(keys if name == "key" else [])))
        assert code != 0, text
        assert link.nodes_online() == 2
    # A client that trusts another authority does not speak to this SuperLink.
    write_certificates(tmp_path)
    other = tmp_path / "wrong" / "flower"
    other.mkdir(parents=True)
    config = (federation.folder / "flower" / "config.toml").read_text()
    (other / "config.toml").write_text(
        config.replace(str(federation.folder / "ca.crt"), str(tmp_path / "ca.crt"))
    )
    line = f"airllm run tiny.toml --runtime deployment --superlink {other.parent} --out runs/failed"
    code, text = ended(start(line, tiny_folder))
    assert code == 2
    assert f"no SuperLink answers at 127.0.0.1:{port} with the certificate" in text.replace(
        "\n", ""
    )


def test_a_second_federation_in_the_same_folder_is_refused(federation, tiny_folder):
    code, text = ended(start(command("airllm federation up"), tiny_folder))
    assert code == 2
    assert "a federation is up in" in text
    assert len([p for p in running(federation.folder) if "superlink" in " ".join(p.cmdline())]) >= 1


def test_a_supernode_that_is_killed_and_comes_back(federation, tiny_folder, pace):
    """It is killed in round 2, which ends at its deadline; the run goes on, and it joins again.

    A SuperLink counts it as online until its heartbeats have failed, and until then refuses a new
    process, which ends: whoever watches nodes starts another one.
    """
    out = tiny_folder / "runs" / "killed"
    # Three times what a phase takes here: the other device must never be taken for silent.
    timeout_s = max(15.0, 3.0 * pace.get("run", 200.0) / 5.0)
    line = f"airllm run tiny.toml --runtime deployment --out {out}"
    sets = ["rounds=12", "policy.name=fixed:2", "channel.bandwidth_hz=1e6"]
    sets.append(f"runtime.reply_timeout_s={timeout_s}")
    process = start(line, tiny_folder, *(w for s in sets for w in ("--set", s)))
    node = supernode(1, federation.folder)
    wait_until(lambda: len(rounds_of(out)) >= 2, process)
    node.kill()
    wait_until(lambda: len(rounds_of(out)) >= 4, process)
    frame = rounds_of(out)
    assert frame.loc[1, "answered"].tolist() == [1, 1]
    assert frame.loc[2, "answered"].tolist() == [1, 0]
    assert frame.loc[(2, 0), "delivered"] == 1
    assert not frame.loc[(2, 1), ["delivered", "delivered_bits"]].any()
    federation.start_device(1)

    def is_back():
        if "device-1" in federation.ended():
            federation.start_device(1)
        return rounds_of(out).xs(1, level="device")["answered"].iloc[2:].any()

    wait_until(is_back, process)
    code, text = ended(process)
    assert code == 0, text
    frame = rounds_of(out)
    assert len(frame) == 24
    assert frame.xs(0, level="device")["answered"].all()
    assert frame.loc[(12, 1), "answered"] == 1
    assert frame.loc[(12, 1), "delivered"] == 1


def test_ctrl_c_stops_the_run_at_the_superlink(federation, tiny_folder):
    out = tiny_folder / "runs" / "stopped"
    line = f"airllm run tiny.toml --runtime deployment --set rounds=50 --out {out}"
    process = start(line, tiny_folder)
    wait_until(lambda: len(rounds_of(out)) >= 2, process)
    process.send_signal(signal.SIGINT)
    code, text = ended(process)
    assert code == 130
    assert text.startswith("interrupted: ")
    link = SuperLink.find(str(federation.folder))
    (newest, *_) = link._flwr("list", link.connection)["runs"]
    assert newest["status"] == "finished:stopped"
    deadline = time.monotonic() + PATIENCE_S
    while any("serverapp" in " ".join(p.cmdline()) for p in running(federation.folder)):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
