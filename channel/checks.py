"""Checks of a channel's configuration, in the words that all its sections use."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real


def check_one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless ``value`` is among those allowed."""
    if value not in allowed:
        raise ValueError(f"channel.{key} must be one of {', '.join(allowed)}, got {value!r}")


def check(key: str, value: float, is_valid: Callable[[float], bool], bound: str) -> None:
    """Raise ValueError unless ``value`` is a finite number that is valid."""
    if not isinstance(value, Real):
        raise ValueError(f"channel.{key} must be a number {bound}, got {value!r}")
    if not (is_valid(value) and math.isfinite(value)):
        raise ValueError(f"channel.{key} must be {bound}, got {value}")
