"""What Flower and Ray are told through the environment: nothing leaves this machine by itself.

Nor does what is for this machine: no proxy is asked for a loopback address.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # An app runs with what is installed beside it, or fails; it installs nothing.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # All workers see the GPUs that there are, as the cloud does, whatever share Ray counts.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Python knows no ranges of addresses, gRPC does; neither takes one notation for another.
_LOOPBACK = ("127.0.0.1", "127.0.0.0/8", "localhost", "::1")


def quieten() -> None:
    """Set the switches for this process, where the user has not set them otherwise."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    os.environ.update(past_proxies(os.environ))
    # Flower reads this one when it is imported, which may have happened already.
    if telemetry := sys.modules.get("flwr.supercore.telemetry"):
        telemetry.FLWR_TELEMETRY_ENABLED = os.environ["FLWR_TELEMETRY_ENABLED"]  # type: ignore


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for Flower's own commands, which start each other by name."""
    scripts = str(Path(sys.executable).parent)
    path = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
    all_given = {**_QUIET, **os.environ, "PATH": path, **(more or {})}
    return {**all_given, **past_proxies(all_given)}


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that keep loopback from every proxy, beside what the user keeps from them.

    gRPC reads no_grpc_proxy before no_proxy, and small letters alone; Python small letters before
    capitals, and a lone * as everything, which gRPC does not know.
    """
    lower, upper = environment.get("no_proxy", ""), environment.get("NO_PROXY", "")
    grpc = environment.get("no_grpc_proxy", "") or lower or upper
    given = {"no_proxy": lower or upper, "NO_PROXY": upper or lower, "no_grpc_proxy": grpc}
    return {
        name: value if value.strip() == "*" and name != "no_grpc_proxy" else _with_loopback(value)
        for name, value in given.items()
    }


def grpc_proxy(environment: Mapping[str, str]) -> str:
    """The name of the variable whose proxy gRPC asks; empty where there is none."""
    names = ("grpc_proxy", "https_proxy", "http_proxy")
    return next((name for name in names if environment.get(name)), "")


def _with_loopback(given: str) -> str:
    names = [name for part in given.split(",") if (name := part.strip())]
    return ",".join(dict.fromkeys((*names, *_LOOPBACK)))


def command(name: str) -> str:
    """Path of one of Flower's commands, installed beside this Python."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ValueError(
            f"Flower's command {name} does not exist at {path}; pip install 'flwr[simulation]'"
        )
    return str(path)
