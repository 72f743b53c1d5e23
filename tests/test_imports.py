"""Which package may know which: data flows one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"airllm", "channel", "edge", "cloud", "experiments"}
ALLOWED = {
    "airllm": {"airllm"},
    "channel": {"channel"},
    "edge": {"edge", "airllm"},
    "cloud": {"cloud", "airllm", "channel"},
    "experiments": PACKAGES,
}
FORBIDDEN = {
    "airllm": {"flwr", "simpy", "matplotlib", "typer", "rich"},
    "channel": {"torch", "flwr", "transformers", "matplotlib"},
    "edge": {"simpy", "matplotlib"},
    "cloud": {"matplotlib"},
    "experiments": set(),
}


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_a_package_imports_only_what_it_may(package):
    for file in (ROOT / package).rglob("*.py"):
        names = set(imported(file))
        assert names & PACKAGES <= ALLOWED[package], file
        assert not names & FORBIDDEN[package], file


def test_devices_and_channels_know_no_flower_outside_their_own_files():
    for name in (
        "edge/device.py",
        "cloud/planning/downlink.py",
        "cloud/training/lora.py",
        "cloud/training/adapter_source.py",
    ):
        assert "flwr" not in set(imported(ROOT / name)), name


def test_the_channel_stands_by_itself():
    code = "import sys, channel; print(sorted({'torch', 'flwr', 'airllm'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_stream_of_random_numbers_has_a_number_of_its_own():
    """Two parts that drew from one would be tied together unseen."""
    found = {}
    for package in sorted(PACKAGES):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.parse(file.read_text()).body:
                if not isinstance(node, ast.Assign):
                    continue
                targets = getattr(node.targets[0], "elts", node.targets)
                values = getattr(node.value, "elts", [node.value])
                for target, value in zip(targets, values, strict=False):
                    if getattr(target, "id", "").endswith("STREAM"):
                        found.setdefault(value.value, []).append(f"{file.name}: {target.id}")
    assert len(found) > 30
    assert [parts for parts in found.values() if len(parts) > 1] == []
