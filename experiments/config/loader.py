"""TOML and ``--set`` to checked dataclasses, and back."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tomli_w

from experiments.config.paths import find_config
from experiments.config.validation import (
    as_json,
    base_type,
    is_optional,
    is_tuple,
    type_at,
    validated,
)

C = TypeVar("C")
Presets = Mapping[str, Callable[[str], Mapping[str, Any]]]
Settings = Sequence[str] | Mapping[str, Any]
"""``["channel.snr_db=5"]`` or ``{"channel.snr_db": 5}``"""


def load_config(
    cls: type[C],
    path: Path | str | None = None,
    sets: Settings = (),
    *,
    presets: Presets | None = None,
    text: str | None = None,
) -> C:
    """The configuration in ``path`` (or ``text``) with settings on top.

    ``path`` may be the name of a bundled one, such as "quick".

    In rising order of weight: the defaults of ``cls``, the preset that a section names, what the
    file states, the settings. The preset's name is settled first, so where a setting names another
    preset, what the file states still wins over it; and since a dumped configuration states every
    value, no preset changes it. A file's section [policy] counts for the policy it names: where a
    setting names another one, that one starts from its own preset. ``presets`` maps the key that
    names one, such as ``channel.preset``, to what gives its values. In a setting, a list may be
    written with commas and ``none`` stands for no value. Raises ValueError naming the key, its
    value and the remedy.
    """
    return build_config(cls, read_tree(cls, path, sets, text=text), presets=presets)


def read_tree(
    cls: type, path: Path | str | None = None, sets: Settings = (), *, text: str | None = None
) -> dict[str, Any]:
    """What ``path`` (or ``text``) states, as nested tables, with the settings on top."""
    tree = _read(find_config(path)) if path else _parse(text or "", "the given text")
    named = _policy_of(cls, tree)
    stated: dict[str, Any] = {}
    for key, value in settings_of(cls, sets):
        _put(tree, key, value)
        _put(stated, key, value)
    if _policy_of(cls, tree) != named:
        tree["policy"] = stated["policy"]
    return tree


def _policy_of(cls: type, tree: Mapping[str, Any]) -> Any:
    """The policy that nested tables name, or the one that is meant where they name none."""
    section = tree.get("policy")
    if isinstance(section, dict) and "name" in section:
        return section["name"]
    return next((f.default_factory().name for f in fields(cls) if f.name == "policy"), None)  # type: ignore


def build_config(cls: type[C], tree: Mapping[str, Any], *, presets: Presets | None = None) -> C:
    """The configuration that nested tables state, over presets and defaults."""
    tables = copy.deepcopy(dict(tree))
    for key, values_of in (presets or {}).items():
        section, _, name = key.rpartition(".")
        node: Any = tables.setdefault(section, {}) if section else tables
        if not isinstance(node, dict):
            raise ValueError(f"{section} must be a table, got {node!r}")
        if name in node:
            if not isinstance(node[name], str):
                raise ValueError(f"{key} must be a string, got {node[name]!r}")
            merged = _merge(values_of(node[name]), node)
            node.clear()
            node.update(merged)
    found: C = validated(cls, tables, "", root=cls)
    return found


def dump_config(config: Any) -> str:
    """Every value of a configuration as TOML that `load_config` reads back to the same."""
    return tomli_w.dumps(_plain(config))


def _read(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"config {path} cannot be read: {error.strerror}") from None
    try:
        return _parse(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError:
        raise ValueError(f"config {path} is not UTF-8 text") from None


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Not only TOMLDecodeError: a number of thousands of digits, brackets a thousand deep.
        raise ValueError(f"config {source} is not valid TOML: {error}") from None


def settings_of(cls: type, sets: Settings) -> list[tuple[str, Any]]:
    """Dotted key and value of each setting; ValueError for what is none, or of an unknown key."""
    if isinstance(sets, str):
        raise ValueError(f"sets must be a list of settings, or a mapping; give [{sets!r}]")
    if not isinstance(sets, Mapping):
        return [_parsed(cls, setting) for setting in sets]
    for key in sets:
        if not isinstance(key, str):
            raise ValueError(f"the key of a setting must be text such as 'rounds', got {key!r}")
        type_at(cls, key)
    return [(key, json.loads(as_json(value, key))) for key, value in sets.items()]


def _parsed(cls: type, setting: str) -> tuple[str, Any]:
    if not isinstance(setting, str):
        raise ValueError(f"a setting must be text such as 'rounds=3', got {setting!r}")
    key, equals, raw = setting.partition("=")
    key, raw = key.strip(), raw.strip()
    if not equals or not key:
        raise ValueError(f"--set must be key=value, got {setting!r}")
    hint = type_at(cls, key)
    value, kind = scalar(raw), base_type(hint)
    if is_optional(hint) and str(value).lower() == "none":
        pass  # whatever its type
    elif is_tuple(kind) and not isinstance(value, list):
        value = [scalar(part) for part in raw.split(",") if part.strip()]
    elif kind is str and not isinstance(value, str | dict | list):
        value = raw
    return key, value


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    node = tree
    *parents, last = key.split(".")
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ValueError(f"{name} in the setting {key} is no section")
    node[last] = value


def scalar(text: str) -> Any:
    """A TOML value; what is none, or more than one, is the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text.strip()}")
    except (ValueError, RecursionError):
        return text.strip()
    return parsed["value"] if len(parsed) == 1 else text.strip()


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """``high`` over ``low``, section by section."""
    merged = dict(low)
    for key, value in high.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _plain(value: Any) -> Any:
    """A configuration, or a part of one, as TOML has it."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    # TOML has no null; the string is what a config file would say as well.
    return "none" if value is None else value
