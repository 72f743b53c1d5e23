"""The app as Flower takes it: a folder with our packages and a pyproject.toml."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import tomli_w

_PACKAGES = ("airllm", "channel", "edge", "cloud", "experiments")
_SUFFIXES = (".py", ".toml", ".json")  # what Flower's bundle takes
APP = {
    "publisher": "airllm",
    "fab-include": [f"/{package}/" for package in _PACKAGES],
    "components": {
        "serverapp": "experiments.runtimes.flower_apps:server_app",
        "clientapp": "experiments.runtimes.flower_apps:client_app",
    },
    "config": {"config": "quick", "set": "", "out": "", "overwrite": False, "folder": ""},
}
"""The table [tool.flwr.app] of pyproject.toml, which an installed package does not have."""


def write_app(folder: Path) -> Path:
    """Copy the packages as they run here, so that every node runs the same."""
    root = Path(__file__).parents[2]
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in _SUFFIXES and "__pycache__" not in path.parts:
                target = folder / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    about = {
        "project": {
            "name": "airllm-sim",
            "version": metadata.version("airllm-sim"),
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {"flwr": {"app": APP}},
    }
    (folder / "pyproject.toml").write_text(tomli_w.dumps(about), encoding="utf-8")
    return folder
