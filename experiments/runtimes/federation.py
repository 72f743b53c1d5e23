"""A federation to try out on one machine: SuperLink and SuperNodes, TLS, node authentication."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import tomli_w

from experiments.runtimes.flower_env import child_environment, command
from experiments.runtimes.identities import (
    private_folder,
    write_certificates,
    write_node_key,
    write_private,
)
from experiments.runtimes.superlink import SuperLink

_MARK = "AIRLLM_FEDERATION"  # in the environment of every process that belongs to a federation
_START_S, _END_S = 300.0, 10.0  # patience: with a busy machine, and with a process that is to end


class Federation:
    """The processes of one folder; `up` starts them, `down` ends them and all they have started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def up(self, num_devices: int, *, port: int = 0) -> SuperLink:
        """Make certificates and keys, start everything, wait until all devices are connected.

        A ``port`` of 0 stands for any free one. Raises ValueError where the port is taken, the
        folder in use, or a process does not come up; nothing is left running then.
        """
        if num_devices < 1:
            raise ValueError(f"--devices must be >= 1, got {num_devices}")
        if running(self.folder):
            raise ValueError(
                f"a federation is up in {self.folder}; end it with `airllm federation down`, or "
                f"give another --out"
            )
        port = _free_port(port)
        try:
            return self._up(num_devices, port)
        except BaseException:
            self.down()
            raise

    def _up(self, num_devices: int, port: int) -> SuperLink:
        self._write(num_devices, port)
        link = SuperLink.find(str(self.folder))
        self._start(
            "superlink", "flower-superlink",
            "--host", "127.0.0.1", "--port", str(port),
            "--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt",
            "--ssl-keyfile", "server.key",
            "--enable-supernode-auth", "--disable-runtime-dependency-installation",
        )  # fmt: skip
        self._await("superlink", lambda: self._is_healthy(port))
        for device in range(num_devices):
            link.register(self.folder / f"device-{device}.key.pub")
        for device in range(num_devices):
            self.start_device(device)
        for device in range(num_devices):
            self._await(f"device-{device}", lambda: link.nodes_online() >= num_devices)
        return link

    def start_device(self, device: int, key: Path | None = None) -> int:
        """Start one SuperNode, again where it has ended; returns its process id."""
        about = self.about()
        return self._start(
            f"device-{device}", "flower-supernode",
            "--superlink", f"127.0.0.1:{about['port']}", "--root-certificates", "ca.crt",
            "--auth-supernode-private-key", str(key or f"device-{device}.key"),
            "--port", str(_free_port(0)),
            "--node-config", f"partition-id={device} num-partitions={about['devices']}",
        )  # fmt: skip

    def about(self) -> dict[str, int]:
        """Port and number of devices, as `up` has written them."""
        try:
            return dict(json.loads((self.folder / "federation.json").read_text("utf-8")))
        except (OSError, ValueError):
            raise ValueError(
                f"there is no federation in {self.folder}; start one with `airllm federation up`"
            ) from None

    def ended(self) -> list[str]:
        """Names of the processes that have ended by themselves since they were last asked for."""
        names = [name for name, process in self._started.items() if process.poll() is not None]
        for name in names:
            del self._started[name]
        return names

    def down(self) -> int:
        """End every process of this folder, gently first; returns how many there were."""
        found = alive = running(self.folder)
        for ask in (psutil.Process.terminate, psutil.Process.kill):
            for process in alive:
                with suppress(psutil.Error):
                    ask(process)
            psutil.wait_procs(alive, timeout=_END_S)
            alive = running(self.folder)  # what they had started may have outlived them
        for child in self._started.values():
            child.wait()
        self._started.clear()
        return len(found)

    def _write(self, num_devices: int, port: int) -> None:
        private_folder(self.folder)
        write_certificates(self.folder)
        for device in range(num_devices):
            write_node_key(self.folder / f"device-{device}.key")
        home = private_folder(self.folder / "flower")
        connection = {
            "address": f"127.0.0.1:{port}",
            "root-certificates": str(self.folder / "ca.crt"),
        }
        config = {"superlink": {"default": "airllm", "airllm": connection}}
        write_private(home / "config.toml", tomli_w.dumps(config).encode())
        about = {"port": port, "devices": num_devices}
        (self.folder / "federation.json").write_text(json.dumps(about), "utf-8")

    def _start(self, name: str, *arguments: str) -> int:
        # A home each: two that unpack the same app into one would run into each other.
        home = private_folder(self.folder / f"{name}-home")
        environment = child_environment({"FLWR_HOME": str(home), _MARK: str(self.folder)})
        with (self.folder / f"{name}.log").open("wb") as log:
            # A session of its own: Ctrl-C reaches us alone, and we end them in order.
            process = subprocess.Popen(
                [command(arguments[0]), *arguments[1:]],
                cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._started[name] = process
        return process.pid

    def _await(self, name: str, is_ready: Callable[[], bool]) -> None:
        """Until something is ready, while the process that makes it so lives."""
        deadline = time.monotonic() + _START_S
        while not is_ready():
            code = self._started[name].poll()
            if code is not None or time.monotonic() > deadline:
                why = f"ended with code {code}" if code is not None else f"took over {_START_S:g} s"
                log = self.folder / f"{name}.log"
                raise ValueError(f"{name} did not come up: it {why}; {_last_line(log)} ({log})")
            time.sleep(0.5)

    def _is_healthy(self, port: int) -> bool:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        # No proxy, whatever the environment names.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(f"https://127.0.0.1:{port}/health", timeout=5.0) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def running(folder: Path) -> list[psutil.Process]:
    """Every process that belongs to the federation of a folder, whoever its parent is by now."""
    mark, found = str(folder.resolve()), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _free_port(asked: int) -> int:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", asked))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"port {asked} cannot be had ({error}); give another --port, or 0 for a free one"
            ) from None
        return int(probe.getsockname()[1])


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it said nothing")
