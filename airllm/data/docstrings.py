"""The embedded corpus: sentences from the docstrings of installed packages.

A real task on real English text without any download: which package does this sentence document?
Files are parsed with ``ast``, never imported.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import logging
import os
import re
import tempfile
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

logger = logging.getLogger(__name__)

_FORMAT = 3  # of the cache; raise it when a rule below changes
_BLANK = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])")
_MARKUP = re.compile(r":[a-zA-Z:]+:`~?([^`]*)`|``?([^`]*)``?")
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
_NOT_PROSE = re.compile(r">>>|::|\.\. |={3,}|-{3,}|https?:|[{}<>|\\=\[\]@#$^*_]")
_MIN_WORDS, _MAX_WORDS = 6, 40
_MAX_PER_FILE = 40
_SHORT_NAME = 4  # letters; shorter names are masked as whole words only
_HOLDERS = (ast.stmt, ast.ExceptHandler, ast.match_case)
# Other names of a package, masked like its own.
_ALIASES = {
    "numpy": ("np", "ndarray"),
    "pandas": ("pd",),
    "matplotlib": ("mpl", "pyplot"),
    "torch": ("pytorch",),
    "transformers": ("hugging", "huggingface"),
    "diffusers": ("hugging", "huggingface"),
    "flwr": ("flower",),
}


def load_sentences(
    packages: Sequence[str], per_package: int, *, cache: bool = True
) -> dict[str, list[str]]:
    """``per_package`` distinct sentences from each package, its own name masked.

    Reads files in a seeded order that depends on their paths alone, and stops at twice the number
    needed. Raises ValueError for a package that is absent or has too little to say.
    """
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed = {d.name for d in metadata.distributions() if d.name}
            near = difflib.get_close_matches(package, sorted(installed), n=1)
            hint = f"did you mean {near[0]!r}? or " if near else ""
            raise ValueError(
                f"data.packages names {package!r}, which is not installed here; {hint}"
                f"pip install it or take it out"
            ) from None
    key_text = json.dumps([_FORMAT, per_package, versions], sort_keys=True)
    key = hashlib.sha256(key_text.encode()).hexdigest()[:16]
    folder = _cache_folder() if cache else None
    path = folder / f"docstrings-{key}.json" if folder else None
    if path and (found := _read_cache(path, packages, per_package)) is not None:
        return found
    raw = {package: _collect(package, 2 * per_package) for package in packages}
    # A sentence that two packages share says nothing about either.
    owners: dict[str, set[str]] = {}
    for package, sentences in raw.items():
        for sentence in sentences:
            owners.setdefault(sentence.lower(), set()).add(package)
    result = {}
    for package, sentences in raw.items():
        own = [s for s in sentences if len(owners[s.lower()]) == 1][:per_package]
        if len(own) < per_package:
            raise ValueError(
                f"data.sentences_per_class is {per_package}, but the docstrings of {package!r} "
                f"give {len(own)} distinct sentences; lower it or take the package out"
            )
        result[package] = own
    if path:
        _write_cache(path, result)
    return result


def sentences_of(docstring: str, mask: Sequence[str]) -> Iterator[str]:
    """Sentences of a docstring's prose: no code, no tables, no section lists; names masked."""
    for paragraph in _BLANK.split(docstring):
        text = " ".join(_MARKUP.sub(lambda m: m[1] or m[2] or "", paragraph).split())
        if not text or not text[0].isalpha() or text[-1] not in ".!?":
            continue
        for sentence in _SENTENCE_END.split(text):
            words = _WORD.findall(sentence)
            if not _MIN_WORDS <= len(words) <= _MAX_WORDS or _NOT_PROSE.search(sentence):
                continue
            if sentence.isascii() and sentence[-1] in ".!?" and sentence[0].isupper():
                yield _mask(sentence, mask)


def _mask(sentence: str, names: Sequence[str]) -> str:
    # A short name is a part of other words ("np" of "input", "mpl" of "example"), a long one of
    # names made from it ("networkx" of "NetworkXError").
    pattern = "|".join(
        re.escape(name) if len(name) < _SHORT_NAME else rf"\w*{re.escape(name)}\w*"
        for name in names
    )
    return re.sub(rf"(?i)\b(?:{pattern})\b", "it", sentence)


def _collect(package: str, wanted: int) -> list[str]:
    """Up to ``wanted`` distinct sentences; files in the order of a hash of their paths."""
    names = [package, *_ALIASES.get(package, ())]
    seen: dict[str, str] = {}
    for file in _source_files(package):
        try:
            with warnings.catch_warnings():
                # Their invalid escapes are not ours to report, and must not drop the file.
                warnings.simplefilter("ignore")
                tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError, RecursionError, ValueError):
            continue
        taken = 0
        for node in _statements(tree):
            if not isinstance(
                node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            ):
                continue
            for sentence in sentences_of(ast.get_docstring(node) or "", names):
                # No single file may stand for its package.
                if taken < _MAX_PER_FILE and sentence.lower() not in seen:
                    seen[sentence.lower()] = sentence
                    taken += 1
        if len(seen) >= wanted:
            break
    return list(seen.values())[:wanted]


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements in the order of ``ast.walk``, which spends its time in expressions.

    Only statements, handlers and cases hold statements, always in lists.
    """
    queue: deque[ast.AST] = deque([tree])
    while queue:
        node = queue.popleft()
        yield node
        for name in node._fields:
            children = getattr(node, name, None)
            if isinstance(children, list):
                queue.extend(c for c in children if isinstance(c, _HOLDERS))


def _source_files(package: str) -> list[Path]:
    """Python files of an installed distribution, tests left out, in a fixed mixed order."""
    files = metadata.files(package) or []
    chosen = [
        f
        for f in files
        if f.suffix == ".py"
        and f.parts[0] == package
        and not any(part in ("tests", "testing", "_vendor", "vendored") for part in f.parts)
        and not f.name.startswith("test_")
    ]
    chosen.sort(key=lambda f: hashlib.sha256(f.as_posix().encode()).digest())
    return [Path(str(f.locate())) for f in chosen]


def _cache_folder() -> Path | None:
    """None where the user has no home: then nothing is cached."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return root / "airllm"


def _read_cache(
    path: Path, packages: Sequence[str], per_package: int
) -> dict[str, list[str]] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if all(len(data[package]) == per_package for package in packages):
            return {package: [str(s) for s in data[package]] for package in packages}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        logger.info("the cached corpus %s is not readable: built again", path)
    return None


def _write_cache(path: Path, data: dict[str, list[str]]) -> None:
    """Whole or not at all; a cache that cannot be written is done without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False
        ) as file:
            try:
                json.dump(data, file)
                file.close()
                os.replace(file.name, path)
            except OSError:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        logger.info("corpus not cached: %s", error)
