"""Parts of one's own, named in a configuration and made where a simulation is put together.

A name is ``module:object``, found from the working directory or installed, or that of an entry
point; arguments may follow: ``my_policies:Capped(share=0.5)``. The object is a class or a function.
It is called with what it asks for, by name, of what its kind is offered (`KINDS`) and with those
arguments. The libraries take what it returns and know nothing of names.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Any

import torch

from airllm.policies import registry as policies
from cloud.aggregation import methods
from edge import hardware

_NAME = re.compile(r"(?P<target>[^()]+)(?:\((?P<arguments>.*)\))?", re.DOTALL)
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the places where a part of one's own can stand."""

    key: str
    """of the configuration"""
    group: str
    """of entry points"""
    what: str
    """a word for it"""
    protocol: str
    """what it has to be, and where that is described"""
    members: tuple[str, ...]
    """attributes it must have, and methods with the arguments that they are given"""
    offered: tuple[str, ...]
    """arguments it may ask for"""
    is_bundled: Callable[[str], bool] = lambda name: False
    """whether a name belongs to a part that comes with the packages"""


KINDS = {
    "policy": Kind(
        "policy.name", "airllm.policies", "policy", "airllm.policies.base.RankPolicy",
        ("name", "importance", "decide(observation)", "learn(feedback)"),
        ("depths", "kinds", "r_max", "num_devices", "num_rounds", "seed"),
        policies.is_bundled,
    ),
    "channel": Kind(
        "channel.model", "airllm.channels", "channel model", "channel.process.SnrModel",
        ("snr_db(time_s, direction)", "is_constant"),
        ("config", "num_devices", "seed"),
    ),
    "data": Kind(
        "data.source", "airllm.datasets", "data set", "airllm.data.datasets.OwnText",
        (),
        ("seed",),
    ),
    "aggregator": Kind(
        "federated.aggregator", "airllm.aggregators", "aggregator",
        "cloud.aggregation.aggregate.Aggregator",
        ("__call__(updates, weights, max_rank)",),
        ("num_devices", "seed"),
        lambda name: name in methods.BUNDLED,
    ),
    "hardware": Kind(
        "federated.hardware", "airllm.hardware", "device profile", "edge.hardware.Hardware",
        ("name", "memory_bytes", "compute_s(flops)", "compute_j(flops)"),
        (),
        lambda name: name in hardware.hardware_names(),
    ),
}  # fmt: skip


def is_own(kind: str, name: str) -> bool:
    """Whether a configuration's value names a part of one's own."""
    target = _target(name)
    if KINDS[kind].is_bundled(target):
        return False
    is_offered = target in _offered(KINDS[kind]).names
    return bool(_MODULE.fullmatch(target)) or is_offered


def check_policy_name(name: str) -> None:
    """Raise ValueError unless ``name`` is a bundled policy or has the form of one of one's own.

    A module is not imported here: a run folder can be read, and a device can be configured, where
    it is not installed.
    """
    if not is_own("policy", name):
        policies.check_name(name, _others("policy"))


def check_aggregator_name(name: str) -> None:
    """The same for an aggregator."""
    if not is_own("aggregator", name):
        methods.check_aggregator(name, _others("aggregator"))


def policy_preset(name: str) -> dict[str, Any]:
    """What a policy's name sets in its section."""
    check_policy_name(name)
    return {} if is_own("policy", name) else dict(policies.preset_values(name))


def _others(kind: str) -> tuple[str, ...]:
    return (*sorted(_offered(KINDS[kind]).names), "<module>:<object>")


def _offered(kind: Kind) -> EntryPoints:
    """What installed packages offer."""
    return _installed(kind.group, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> EntryPoints:
    return entry_points(group=group)  # reads the metadata of all of ``path``, which takes 10 ms


def make_own(kind: str, name: str, **offered: Any) -> Any:
    """Find and make a part of one's own; it has every member that its kind must have.

    Raises ValueError that says what is not found, what does not fit, and what to do about it; so do
    the part's methods where its code raises anything.
    """
    of, where = KINDS[kind], f"{KINDS[kind].key} {name!r}"
    factory = _find(of, _target(name), where)
    if not callable(factory):
        raise ValueError(
            f"{where} is no class or function, but {type(factory).__name__}; name what makes "
            f"the {of.what}"
        )
    given = _arguments(name, where)
    known = _parameters(factory)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    if unknown := [key for key in given if key not in known and not takes_any]:
        raise ValueError(
            f"{where} takes no {unknown[0]!r}; its arguments are {', '.join(known) or 'none'}"
        )
    passed = {key: value for key, value in offered.items() if key in known} | given
    lacking = [
        key
        for key, p in known.items()
        if p.default is p.empty and key not in passed
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]  # fmt: skip
    if lacking:
        raise ValueError(
            f"{where} asks for {lacking[0]!r}; give it in brackets, as in {_target(name)}"
            f"({lacking[0]}=1), or ask only for {', '.join(of.offered)}"
        )
    module = getattr(factory, "__module__", None) or ""
    with _told(where, _target(name).rpartition(":")[2], module):
        part = factory(**passed)
        if kind == "data":
            part = _drawn(part)
        unfit = [text for member in of.members if (text := _unfit(part, member))]
    if part is None:
        raise ValueError(f"{where} returns nothing; it must return the {of.what}: {of.protocol}")
    if unfit:
        raise ValueError(
            f"{where} makes no {of.what}: {type(part).__name__} has {', '.join(unfit)}; "
            f"see {of.protocol}"
        )
    return part if kind == "data" else _Own(part, where, module)


class _Own:
    """Stands for a part of one's own, and tells of what its code raises in one sentence."""

    def __init__(self, part: Any, where: str, module: str) -> None:
        self._part, self._where, self._module = part, where, module

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # for isinstance; typeshed lets it be set
        return type(self._part)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        return partial(self._call, name) if callable(value) else value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call("__call__", *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Own, (self._part, self._where, self._module)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        with _told(self._where, name, self._module):
            return getattr(self._part, name)(*args, **kwargs)


@contextmanager
def _told(where: str, name: str, module: str) -> Iterator[None]:
    """Raise ValueError that says what one's own code raised, and at which of its lines.

    That is the last one of ``module`` or of its package, or else the first that is not ours.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        found = [
            (str(frame.f_globals.get("__name__")), f"{frame.f_code.co_filename}:{line}")
            for frame, line in traceback.walk_tb(error.__traceback__)
        ]
        top = module.partition(".")[0]
        lines = [line for of, line in found if of.partition(".")[0] == top]
        lines = lines or [line for of, line in found if of != __name__][:1]
        raise ValueError(
            f"{where}: {name} raised {type(error).__name__}: {error}"
            f"{f' ({lines[-1]})' if lines else ''}"
        ) from error


def _unfit(part: Any, member: str) -> str:
    """What of a part is not the member it must have; empty where it is."""
    name, _, arguments = member.partition("(")
    if not hasattr(part, name):
        return f"no {member}"
    method = part if name == "__call__" else getattr(part, name)
    if not arguments:
        return ""
    if not callable(method):
        return f"{name} {method!r} in place of {member}"
    try:
        signature = inspect.signature(method)
    except ValueError:  # some written in C tell nothing
        return ""
    try:
        signature.bind(*arguments.rstrip(")").split(", "))
    except TypeError:
        return f"{name}{signature} in place of {member}"
    return ""


def _drawn(text: Any) -> Any:
    """All pairs of a data set, drawn while what its code raises is told."""
    if isinstance(text, Mapping):
        return {key: list(pairs) for key, pairs in text.items()}
    return None if text is None else list(text)


def _target(name: str) -> str:
    found = _NAME.fullmatch(name.strip())
    return found["target"].strip() if found else name


def _arguments(name: str, where: str) -> dict[str, Any]:
    """What stands in brackets: ``key=literal``, separated by commas."""
    found = _NAME.fullmatch(name.strip())
    text = (found["arguments"] if found else None) or ""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not all(k.arg for k in call.keywords):
            raise ValueError
        return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (ValueError, SyntaxError):
        raise ValueError(
            f"{where}: what is in brackets must be key=value with numbers, texts or lists, "
            f"separated by commas, got ({text})"
        ) from None


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # some classes written in C tell nothing
        return {}


def _find(kind: Kind, target: str, where: str) -> Any:
    points = _offered(kind)
    if _MODULE.fullmatch(target):
        point = EntryPoint(target, target, kind.group)
    elif target in points.names:
        point = points[target]
    else:
        raise ValueError(
            f"{where} is neither module:object nor an entry point of the group {kind.group} "
            f"({', '.join(sorted(points.names)) or 'there is none'})"
        )
    if str(Path.cwd()) not in sys.path:
        # Last, so that no file of the working directory stands in for an installed module.
        sys.path.append(str(Path.cwd()))
    try:
        importlib.import_module(point.module)
    except ModuleNotFoundError as error:
        if error.name and point.module.startswith(error.name):
            raise ValueError(
                f"{where}: there is no module {error.name!r} in {Path.cwd()} or installed; start "
                f"from the folder that it is in, or install it"
            ) from None
        raise ValueError(f"{where}: {point.module} cannot be imported: {error}") from error
    except Exception as error:  # whatever one's own code raises, the remedy is the same
        raise ValueError(
            f"{where}: {point.module} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    try:
        return point.load()
    except AttributeError as error:
        near = difflib.get_close_matches(str(error.name), dir(error.obj), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "check the name"
        file = getattr(error.obj, "__file__", None)
        raise ValueError(
            f"{where}: {point.module}{f' ({file})' if file else ''} has no {error.name!r}; {hint}"
        ) from None
