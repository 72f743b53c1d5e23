"""What a configuration can say: each key with its type, default and help."""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from typing import Any

from experiments.config.validation import base_type, hints_of, is_optional, is_tuple


def describe_config(section: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(dotted key, type, default, help) of every value; help is the string under the field."""
    help_of = _help_strings(section)
    for field in fields(section):
        hint = hints_of(section)[field.name]
        if is_dataclass(hint):
            yield from describe_config(typing.cast(type, hint), f"{prefix}{field.name}.")
            continue
        default = "" if field.default is MISSING else _show(field.default)
        base = base_type(hint)
        kind = "list" if is_tuple(base) else base.__name__ + " | None" * is_optional(hint)
        yield f"{prefix}{field.name}", kind, default, help_of.get(field.name, "")


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return ", ".join(map(_show, value)) if isinstance(value, tuple) else str(value)


def _help_strings(section: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(section))).body[0]
    found = {}
    statements = body.body if isinstance(body, ast.ClassDef) else []
    for first, second in pairwise(statements):
        is_text = isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant)
        if isinstance(first, ast.AnnAssign) and isinstance(first.target, ast.Name) and is_text:
            found[first.target.id] = " ".join(str(second.value.value).split())  # type: ignore
    return found
