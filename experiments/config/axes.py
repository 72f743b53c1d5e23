"""The [sweep] table: any key of a configuration with its values, and variants under labels.

[sweep]
"policy.name" = ["airllm", "uniform"]
"channel.snr_db" = [-5, 5, 15]
seed = 10                          # ten seeds, 0 to 9

[[sweep.variants]]                 # beside the policies above
label = "airllm without DDIM"
"policy.name" = "airllm"
"policy.refiner" = "none"
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.config.loader import scalar
from experiments.config.validation import base_type, is_tuple, type_at, validated

Axes = dict[str, tuple[Any, ...]]
"""values of each swept key, by its dotted name"""


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings under a label of their own; they stand in the place of the sweep's own axes."""

    label: str
    axes: Axes


def parse_sweep(cls: type, table: Mapping[str, Any]) -> tuple[Axes, tuple[Variant, ...]]:
    """Axes and variants of a [sweep] table, their values as the types of ``cls``.

    A value that is no list is an axis of one, but ``seed = n`` stands for the seeds 0 to n - 1.
    Raises ValueError that names the key, its value and the remedy.
    """
    variants = table.get("variants", [])
    if not isinstance(variants, list) or not all(isinstance(v, Mapping) for v in variants):
        raise ValueError("sweep.variants must be tables; write each as [[sweep.variants]]")
    return (
        _axes(cls, {k: v for k, v in table.items() if k != "variants"}, "sweep"),
        tuple(_variant(cls, variant) for variant in variants),
    )


def parse_axis(text: str) -> tuple[str, Any]:
    """Key and values of ``channel.snr_db=[-5, 5]`` or ``policy.name=airllm,uniform``."""
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--sweep must be key=values, such as channel.snr_db=[-5,5], got {text!r}")
    value = scalar(raw)
    if isinstance(value, str) and value == raw.strip() and "," in raw:
        value = [scalar(part) for part in raw.split(",") if part.strip()]
    return key.strip(), value


def listed(values: Any) -> Any:
    """A range, an array or whatever else gives values as their list; anything else as it is."""
    if isinstance(values, np.ndarray):
        return values.tolist()
    is_plain = isinstance(values, str | list | tuple | Mapping) or not isinstance(values, Iterable)
    return values if is_plain else list(values)


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values: ``a.b = 1`` and ``"a.b" = 1`` are the same."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _variant(cls: type, table: Mapping[str, Any]) -> Variant:
    label = table.get("label")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"sweep.variants: label must be a name, got {label!r}; give each one")
    settings = {key: value for key, value in table.items() if key != "label"}
    return Variant(label, _axes(cls, settings, f"sweep.variants {label!r}: "))


def _axes(cls: type, table: Mapping[str, Any], where: str) -> Axes:
    return {key: _values(cls, key, value, where) for key, value in flatten(table)}


def _values(cls: type, key: str, given: Any, where: str) -> tuple[Any, ...]:
    hint = type_at(cls, key)
    if key.partition(".")[0] in ("sweep", "learn"):
        raise ValueError(f"{key} cannot be swept: a sweep runs simulations, which do not use it")
    name = f"{where}{'' if where.endswith(' ') else '.'}{key}"
    if key == "seed" and isinstance(given, int) and not isinstance(given, bool):
        if given < 1:
            raise ValueError(f"{name} must be a number of seeds >= 1, or a list, got {given}")
        given = list(range(given))
    is_axis = isinstance(given, list | tuple)
    if is_axis and given and is_tuple(base_type(hint)):
        # A key whose value is itself a list is swept by a list of lists.
        is_axis = all(isinstance(value, list | tuple) for value in given)
    values = list(given) if is_axis else [given]
    if not values:
        raise ValueError(f"{name} must not be empty; give at least one value")
    converted = tuple(
        validated(hint, v, f"{name}[{i}]" if is_axis else name, root=cls)
        for i, v in enumerate(values)
    )
    if len(set(converted)) != len(converted):
        raise ValueError(f"{name} must not repeat a value, got {values}")
    return converted
