"""Which package, which folder and which file may know which: data flows one way."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("airllm", "channel", "edge", "cloud", "experiments")
# What each folder may import beside its own files: folders, or a file by its name.
ALLOWED = {
    "airllm": {"airllm/models", "airllm/lora"},
    "airllm/models": {"airllm"},
    "airllm/lora": {"airllm", "airllm/models"},
    "airllm/data": {"airllm"},
    "airllm/rl": {"airllm"},
    "airllm/policies": {"airllm", "airllm/models", "airllm/lora", "airllm/rl"},
    "channel": set(),
    "edge": {"airllm", "airllm/models", "airllm/lora", "airllm/policies"},
    "cloud/grids": {"channel"},
    "cloud/clients": {"airllm", "airllm/models", "airllm/lora"},
    "cloud/training": {"airllm", "airllm/models", "airllm/lora", "airllm/policies"},
    "cloud/aggregation": {
        *("airllm", "airllm/models", "airllm/lora", "channel"),
        *("cloud/clients", "cloud/training"),
    },
}
ALLOWED["cloud/planning"] = {
    "airllm", "airllm/models", "airllm/lora", "airllm/policies", "channel",
    "cloud/clients", "cloud/training", "cloud/aggregation",
}  # fmt: skip
ALLOWED["cloud/environment"] = {
    "airllm/models", "airllm/lora", "airllm/policies", "channel", "cloud/planning",
}  # fmt: skip
ALLOWED["cloud/rounds"] = ALLOWED["cloud/planning"] | {"cloud/planning"}
ALLOWED["cloud"] = ALLOWED["cloud/rounds"] | {"cloud/rounds", "cloud/grids"}
LIBRARY = {
    *("airllm", "airllm/models", "airllm/lora", "airllm/data", "airllm/rl", "airllm/policies"),
    *("channel", "edge", "cloud"),
    *(f"cloud/{room}" for room in ("grids", "clients", "training", "aggregation", "planning")),
    *("cloud/rounds", "cloud/environment"),
}
EXPERIMENTS = {
    "config": (),
    "results": (),
    "assembly": ("config",),
    "run": ("config", "results", "assembly"),
    "runtimes": ("config", "results", "assembly", "run"),
    "learning": ("config", "assembly"),
    "sweep": ("config", "results", "assembly", "run", "runtimes"),
    "figures": ("assembly", "results"),
    "report": ("figures", "results"),
    "cli": (
        *("config", "results", "assembly", "run", "runtimes", "learning", "sweep"),
        *("figures", "report"),
    ),
}
for room, below in EXPERIMENTS.items():
    ALLOWED[f"experiments/{room}"] = LIBRARY | {f"experiments/{other}" for other in below}
ALLOWED["experiments"] = {"experiments/cli"}
ALLOWED["experiments/bench"] = set(ALLOWED)

FORBIDDEN = {
    "airllm": {"flwr", "simpy", "matplotlib", "typer", "rich"},
    "channel": {"torch", "flwr", "transformers", "matplotlib"},
    "edge": {"simpy", "matplotlib"},
    "cloud": {"matplotlib"},
    "experiments": set(),
}
# Only these know Flower: messages, apps, grids, runtimes.
FLOWER = (
    "airllm/protocol.py", "edge/client_app.py", "edge/state.py", "cloud/server_app.py",
    "cloud/clients/manager.py", "cloud/grids", "experiments/run/rounds.py",
    "experiments/run/privacy_accounting.py", "experiments/runtimes", "experiments/bench",
)  # fmt: skip

FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def name_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


def imported(file):
    """Full names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def room_of(file):
    return file.parent.relative_to(ROOT).as_posix()


def edges():
    """(file, file that it imports) of the project."""
    return [
        (file, MODULES[name]) for file in FILES for name in set(imported(file)) if name in MODULES
    ]


@pytest.mark.parametrize("room", sorted({room_of(file) for file in FILES}))
def test_a_folder_imports_only_what_it_may(room):
    found = {room_of(other) for file, other in edges() if room_of(file) == room}
    assert found - {room} <= ALLOWED[room]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_the_libraries_that_it_may(package):
    for file in FILES:
        path = file.relative_to(ROOT).as_posix()
        if path.startswith(f"{package}/") and not path.startswith(FLOWER):
            names = {name.partition(".")[0] for name in imported(file)}
            assert not names & {"flwr", *FORBIDDEN[package]}, path


def unit_of(file):
    """Its folder; a file at the top of a package stands for itself."""
    return name_of(file) if file.parent.parent == ROOT else room_of(file)


@pytest.mark.parametrize("unit", [name_of, unit_of])
def test_nothing_imports_in_a_circle(unit):
    graph = {}
    for file, other in edges():
        # A folder's `__init__` stands for its public names: it may import what is in the folder.
        if unit(file) != unit(other) and file.name != "__init__.py":
            graph.setdefault(unit(file), set()).add(unit(other))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_every_folder_says_what_lives_there():
    for file in FILES:
        if file.name == "__init__.py":
            assert ast.get_docstring(ast.parse(file.read_text())), file


def test_the_channel_stands_by_itself():
    code = "import sys, channel; print(sorted({'torch', 'flwr', 'airllm'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_stream_of_random_numbers_has_a_number_of_its_own():
    """Two parts that drew from one would be tied together unseen."""
    found = {}
    for file in FILES:
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
