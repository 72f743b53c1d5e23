"""Where bundled configurations lie."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"


def find_config(name: Path | str) -> Path:
    """A path as it is, or a bundled configuration by its name; ValueError names these."""
    path = Path(name)
    if path.is_file():
        return path
    bundled = CONFIGS / f"{path.name.removesuffix('.toml')}.toml"
    if path.parent == Path() and bundled.is_file():
        return bundled
    names = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.toml")))
    raise ValueError(f"config {name} does not exist; give a path, or one of {names}")
