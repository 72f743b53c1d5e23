"""What a device computes with, by name."""

from __future__ import annotations

import difflib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

PROFILE_FOLDER = Path(__file__).parent / "profiles"


@dataclass(frozen=True, slots=True)
class Hardware:
    """A processor, as far as virtual time and energy need it: orders of magnitude."""

    name: str
    flops_per_s: float
    """sustained in training, not on paper"""
    power_w: float
    """drawn on top of idling while it computes"""
    memory_bytes: float
    """that training may take"""

    def __post_init__(self) -> None:
        for key in ("flops_per_s", "power_w", "memory_bytes"):
            value = getattr(self, key)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"hardware {self.name}: {key} must be > 0 and finite, got {value}")

    def compute_s(self, flops: float) -> float:
        """Virtual seconds that so many operations take."""
        return flops / self.flops_per_s

    def compute_j(self, flops: float) -> float:
        """Energy that they take: power times time."""
        return self.power_w * self.compute_s(flops)


def hardware_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in PROFILE_FOLDER.glob("*.toml"))


def load_hardware(name: str) -> Hardware:
    """A profile by name, or from a TOML file of one's own; raises ValueError naming the nearest."""
    path = Path(name) if name.endswith(".toml") else PROFILE_FOLDER / f"{name}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(name, hardware_names(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"federated.hardware {name!r} is not known; {hint}profiles are "
            f"{', '.join(hardware_names())} and the path of a TOML file"
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        return Hardware(name=path.stem, **{key: float(v) for key, v in values.items()})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise ValueError(
            f"federated.hardware {path} must give the numbers flops_per_s, power_w and "
            f"memory_bytes: {error}"
        ) from None
