"""A SuperLink as its user sees it: what Flower's own commands say about it."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from experiments.runtimes.flower_env import child_environment, command, grpc_proxy

_TIMEOUT_S = 300.0  # of one of Flower's commands, on a machine that is busy with other things


@dataclass(frozen=True, slots=True)
class SuperLink:
    """A connection of Flower's configuration, and the Flower home that this lies in."""

    home: Path
    connection: str
    address: str

    @staticmethod
    def find(given: str) -> SuperLink:
        """A folder of `airllm federation up`, or a connection's name in Flower's configuration.

        Raises ValueError that names the remedy.
        """
        folder = Path(given)
        if (folder / "flower" / "config.toml").is_file():
            home, name = (folder / "flower").resolve(), "airllm"
        elif folder.exists() or folder.parent != Path():
            raise ValueError(
                f"there is no federation in {given}; start one with `airllm federation up`, or "
                f"name a connection of Flower's configuration as --superlink"
            )
        else:
            home, name = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr")), given
        path = home / "config.toml"
        try:
            known = tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {})
        except OSError:
            known = {}
        except ValueError as error:
            raise ValueError(f"{path} is not valid TOML: {error}") from None
        names = [key for key, value in known.items() if isinstance(value, dict)]
        if name not in names:
            raise ValueError(
                f"--superlink {name} is no connection in {path} (there: "
                f"{', '.join(names) or 'none'}); add it there, or start a federation on this "
                f"machine with `airllm federation up`"
            )
        address = str(known[name].get("address", ""))
        if not address or address.startswith(":"):
            raise ValueError(
                f"--superlink {name} is Flower's local simulation, no deployment; take "
                f"--runtime simulation, or name a connection with an address"
            )
        return SuperLink(home, name, address)

    def nodes_online(self) -> int:
        """Number of SuperNodes that are connected."""
        nodes = self._flwr("supernode", "list", self.connection)["nodes"]
        return sum(node["status"] == "online" for node in nodes)

    def register(self, public_key: Path) -> None:
        """Allow the SuperNode with this key to connect."""
        self._flwr("supernode", "register", str(public_key), self.connection)

    def start_run(self, app: Path, run_config: Path) -> str:
        """Send the app to the SuperLink and start it; returns the run's id."""
        answer = self._flwr("run", str(app), self.connection, "--run-config", str(run_config))
        return str(answer["run-id"])

    def status(self, run_id: str) -> tuple[str, str]:
        """(status, details) of a run; it has ended where the status begins with ``finished``."""
        (run,) = self._flwr("list", self.connection, "--run-id", run_id)["runs"]
        return run["status"], run["status-details"]

    def stop(self, run_id: str) -> None:
        """End a run before its time."""
        self._flwr("stop", run_id, self.connection)

    def follow(self, run_id: str, log: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """A process that writes the run's log and ends when the run does."""
        return subprocess.Popen(
            [command("flwr"), "log", run_id, self.connection],
            env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        return child_environment({"FLWR_HOME": str(self.home)})

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        # In a session of its own: Ctrl-C is for us, who may have to ask Flower something then.
        done = subprocess.run(
            [command("flwr"), *arguments, "--format", "json"],
            env=self._environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_TIMEOUT_S, start_new_session=True, check=False,
        )  # fmt: skip
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {"error-message": done.stderr.strip() or done.stdout.strip()}
        if answer.get("success"):
            return dict(answer)
        said = " ".join(str(answer.get("error-message", done.stderr)).split())
        if "Connection to the SuperLink is unavailable" in said:
            proxy = grpc_proxy(os.environ)
            raise ValueError(
                f"no SuperLink answers at {self.address} with the certificate that "
                f"{self.home / 'config.toml'} names; start it (`airllm federation up`), or "
                f"correct that connection"
                + (f"; if {proxy} must not be asked for it, add it to no_proxy" if proxy else "")
            )
        raise ValueError(f"flwr {' '.join(arguments[:2])} failed at {self.address}: {said}")
