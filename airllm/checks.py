"""Checks of a configuration's values, in the words that all sections use."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any


def check(
    section: str, config: Any, keys: str, is_valid: Callable[[Any], bool], bound: str
) -> None:
    """Raise ValueError that names the first of ``keys``, set apart by blanks, that is not valid."""
    for key in keys.split():
        value = getattr(config, key)
        try:
            is_fine = bool(is_valid(value))
        except (TypeError, ValueError):  # a text or an array, where a number belongs
            is_fine = False
        if not is_fine:
            raise ValueError(f"{section}.{key} must be {bound}, got {value!r}")


def check_least(section: str, config: Any, keys: str, least: float) -> None:
    check(section, config, keys, lambda v: v >= least, f">= {least}")


def check_positive(section: str, config: Any, keys: str) -> None:
    check(section, config, keys, lambda v: v > 0 and math.isfinite(v), "> 0 and finite")


def check_one_of(section: str, config: Any, key: str, known: Collection[str]) -> None:
    check(section, config, key, lambda v: v in known, f"one of {', '.join(known)}")
