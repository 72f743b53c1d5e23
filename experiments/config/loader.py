"""TOML and ``--set`` to checked dataclasses, and back."""

from __future__ import annotations

import ast
import copy
import difflib
import inspect
import textwrap
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tomli_w

from experiments.config.paths import find_config

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
    return _build(cls, tables, "")


def check_types(config: Any, prefix: str = "") -> None:
    """Raise ValueError that names the first value, in any section, that is not of its type."""
    for key, hint in _hints(type(config)).items():
        value = getattr(config, key)
        if not is_dataclass(hint):
            convert(prefix + key, value, hint)
        elif isinstance(value, typing.cast(type, hint)):
            check_types(value, f"{prefix}{key}.")
        else:
            raise ValueError(
                f"{prefix}{key} must be a {typing.cast(type, hint).__name__}, got {_short(value)}"
            )


def dump_config(config: Any) -> str:
    """Every value of a configuration as TOML that `load_config` reads back to the same."""
    return tomli_w.dumps(_plain(config))


def describe_config(cls: type) -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, help) of every value; help is the string under the field."""
    yield from _describe(cls, "")


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
    return list(sets.items())


def _parsed(cls: type, setting: str) -> tuple[str, Any]:
    if not isinstance(setting, str):
        raise ValueError(f"a setting must be text such as 'rounds=3', got {setting!r}")
    key, equals, raw = setting.partition("=")
    key, raw = key.strip(), raw.strip()
    if not equals or not key:
        raise ValueError(f"--set must be key=value, got {setting!r}")
    hint = type_at(cls, key)
    value, kind = scalar(raw), base_type(hint)
    if kind is not hint and _is_none(value):
        pass  # an optional value's none, whatever its type
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


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _known_hints:
        _known_hints[cls] = typing.get_type_hints(cls)
    return _known_hints[cls]


_known_hints: dict[type, dict[str, Any]] = {}


def _keys(cls: type, prefix: str = "") -> Iterator[str]:
    for field in fields(cls):
        hint = _hints(cls)[field.name]
        yield prefix + field.name
        if is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]


def type_at(cls: type, key: str) -> Any:
    """The type of a value by its dotted key; ValueError that names the nearest key."""
    hint: Any = cls
    for name in key.split("."):
        if not is_dataclass(hint) or name not in {f.name for f in fields(hint)}:
            raise ValueError(_unknown(cls, key))
        hint = _hints(typing.cast(type, hint))[name]
    if is_dataclass(hint):
        raise ValueError(f"{key} is a section; set one of its values, such as {key}.<name>")
    return hint


def _unknown(root: type, key: str) -> str:
    known = list(_keys(root))
    # Matching takes the square of a length: a key of a whole page is not compared.
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) if len(key) <= 100 else []
    if not near:
        last = key.rpartition(".")[2]
        near = [k for k in known if k.rpartition(".")[2] == last][:1]
    hint = f"; did you mean {near[0]}?" if near else "; `airllm config` lists all keys"
    return f"unknown config key {key}{hint}"


def _build(cls: type[C], tree: Mapping[str, Any], prefix: str, root: type | None = None) -> C:
    root = root or cls
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in hints:
            raise ValueError(_unknown(root, prefix + key))
        hint = hints[key]
        if is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ValueError(f"{prefix}{key} must be a table, got {value!r}")
            values[key] = _build(typing.cast(type, hint), value, f"{prefix}{key}.", root)
        else:
            values[key] = convert(prefix + key, value, hint)
    return cls(**values)


def convert(key: str, value: Any, hint: Any) -> Any:
    """``value`` as the field's type; an int will do for a float, a bool for nothing else."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None or _is_none(value):
            return None
        hint = base_type(hint)
    if is_tuple(hint):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{key} must be a list, got {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(convert(f"{key}[{i}]", v, item) for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{key} is too large for a number: {_short(value)}") from None
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        names = {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}
        raise ValueError(f"{key} must be {names.get(hint, hint)}, got {_short(value)}")
    return value


def _is_none(value: Any) -> bool:
    return isinstance(value, str) and value.lower() == "none"


def _short(value: Any) -> str:
    """A value as a sentence can hold it."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python will print
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def is_tuple(hint: Any) -> bool:
    """Whether a type is a list in TOML."""
    return typing.get_origin(hint) is tuple


def base_type(hint: Any) -> Any:
    """The type beside None in an optional one; any other as it is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


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


def _describe(cls: type, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    help_of = _help_strings(cls)
    for field in fields(cls):
        hint = _hints(cls)[field.name]
        if is_dataclass(hint):
            yield from _describe(typing.cast(type, hint), f"{prefix}{field.name}.")
            continue
        default = "" if field.default is MISSING else _show(field.default)
        kind = getattr(hint, "__name__", str(hint)) if not is_tuple(hint) else "list"
        yield f"{prefix}{field.name}", kind, default, help_of.get(field.name, "")


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return ", ".join(map(_show, value)) if isinstance(value, tuple) else str(value)


def _help_strings(cls: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    found = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for first, second in pairwise(statements):
        is_text = isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant)
        if isinstance(first, ast.AnnAssign) and isinstance(first.target, ast.Name) and is_text:
            found[first.target.id] = " ".join(str(second.value.value).split())  # type: ignore
    return found
