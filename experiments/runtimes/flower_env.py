"""What Flower and Ray are told through the environment: nothing leaves this machine by itself."""

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


def quieten() -> None:
    """Set the switches for this process, where the user has not set them otherwise."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    # Flower reads this one when it is imported, which may have happened already.
    if telemetry := sys.modules.get("flwr.supercore.telemetry"):
        telemetry.FLWR_TELEMETRY_ENABLED = os.environ["FLWR_TELEMETRY_ENABLED"]  # type: ignore


def child_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for Flower's own commands, which start each other by name."""
    scripts = str(Path(sys.executable).parent)
    path = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
    return {**_QUIET, **os.environ, "PATH": path, **(more or {})}


def command(name: str) -> str:
    """Path of one of Flower's commands, installed beside this Python."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ValueError(
            f"Flower's command {name} does not exist at {path}; pip install 'flwr[simulation]'"
        )
    return str(path)
