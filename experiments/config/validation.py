"""Values as TOML has them to checked types, by pydantic; its first complaint in one sentence."""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from datetime import date, time
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from airllm.bounds import STRICT

_BOUNDS = {
    "greater_than": "> {gt:g}", "greater_than_equal": ">= {ge:g}",
    "less_than": "< {lt:g}", "less_than_equal": "<= {le:g}",
    "finite_number": "finite", "literal_error": "{expected}",
    "float_type": "a number", "int_type": "a whole number", "int_parsing_size": "a whole number",
    "string_type": "a string", "bool_type": "true or false", "tuple_type": "a list",
    "dict_type": "a table", "dataclass_type": "a table",
}  # fmt: skip


def validated(hint: Any, value: Any, key: str, *, root: type) -> Any:
    """``value`` as the type ``hint``, a section's or a single value's.

    Raises ValueError that names the dotted key below ``key``, its bound and its value. ``root`` is
    the whole configuration's class, which knows all keys.
    """
    try:
        # In JSON, a list may become a tuple and a table a section even where pydantic is strict;
        # nothing else may become anything else.
        return _adapter(hint).validate_json(as_json(value, key))
    except ValidationError as error:
        raise ValueError(_sentence(error.errors()[0], key, root)) from None


def as_json(value: Any, key: str) -> str:
    """What TOML or Python states at a key; raises ValueError for what no configuration can say."""
    try:
        return json.dumps(value, default=_plain)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{key or 'the configuration'} cannot be read: {error}") from None


def type_at(cls: type, key: str) -> Any:
    """The type of a value by its dotted key; ValueError that names the nearest key."""
    hint: Any = cls
    for name in key.split("."):
        if not is_dataclass(hint) or name not in hints_of(typing.cast(type, hint)):
            raise ValueError(_unknown(cls, key))
        hint = hints_of(typing.cast(type, hint))[name]
    if is_dataclass(hint):
        raise ValueError(f"{key} is a section; set one of its values, such as {key}.<name>")
    return hint


def hints_of(section: type) -> dict[str, Any]:
    """The type of each value of a section, with its bounds."""
    if section not in _known:
        _known[section] = typing.get_type_hints(section, include_extras=True)
    return _known[section]


_known: dict[type, dict[str, Any]] = {}


def base_type(hint: Any) -> Any:
    """A type without its bounds and without None; str where some texts are allowed."""
    while True:
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin is Annotated:
            hint = inner[0]
        elif origin is Literal:
            return str
        elif is_optional(hint):
            hint = next(arg for arg in inner if arg is not type(None))
        else:
            return hint


def is_optional(hint: Any) -> bool:
    """Whether a value may be none."""
    if typing.get_origin(hint) is Annotated:
        return is_optional(typing.get_args(hint)[0])
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def is_tuple(hint: Any) -> bool:
    """Whether a type is a list in TOML."""
    return typing.get_origin(hint) is tuple


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint) if is_dataclass(hint) else TypeAdapter(hint, config=STRICT)


def _plain(value: Any) -> Any:
    """What JSON does not know, as what it does."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path | date | time):
        return str(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{_short(value)} is no text, number, list or table")


def _sentence(error: Mapping[str, Any], key: str, root: type) -> str:
    for part in error["loc"]:
        key = f"{key}[{part}]" if isinstance(part, int) else f"{key}.{part}".lstrip(".")
    kind, bounds = error["type"], error.get("ctx", {})
    if kind == "unexpected_keyword_argument":
        return _unknown(root, key)
    if kind == "value_error":
        return str(bounds["error"])
    if kind in ("too_short", "string_too_short"):
        return f"{key} must not be empty; give at least one value"
    must = _BOUNDS[kind].format(**bounds) if kind in _BOUNDS else error["msg"]
    known = re.findall(r"'([^']*)'", must) if kind == "literal_error" else []
    near = difflib.get_close_matches(str(error["input"])[:100], known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{key} must be {must}, got {_short(error['input'])}{hint}"


def _unknown(root: type, key: str) -> str:
    known = list(_keys(root))
    # Matching takes the square of a length: a key of a whole page is not compared.
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) if len(key) <= 100 else []
    if not near:
        last = key.rpartition(".")[2]
        near = [k for k in known if k.rpartition(".")[2] == last][:1]
    hint = f"; did you mean {near[0]}?" if near else "; `airllm config` lists all keys"
    return f"unknown config key {key}{hint}"


def _keys(section: type, prefix: str = "") -> Iterator[str]:
    for name, hint in hints_of(section).items():
        yield prefix + name
        if is_dataclass(hint):
            yield from _keys(typing.cast(type, hint), f"{prefix}{name}.")


def _short(value: Any) -> str:
    """A value as a sentence can hold it."""
    try:
        text = repr(value)
    except ValueError:  # more digits than Python will print
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
