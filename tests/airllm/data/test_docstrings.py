"""Sentences of prose, the owner's name masked, without importing anything."""

import ast
import json
import sys

import pytest

from airllm.data import docstrings
from airllm.data.docstrings import load_sentences, sentences_of

DOC = """Convert a sparse matrix that somepkg has built to a dense one.

This is a second paragraph, which has `code marks` and :class:`~a.b.C` roles. It has two sentences
that are both long enough to be kept!

Parameters
----------
x : array_like

    >>> this is an example and no sentence of prose at all.

Too short.
"""


def test_prose_is_kept_and_everything_else_is_not():
    assert list(sentences_of(DOC, ["somepkg"])) == [
        "Convert a sparse matrix that it has built to a dense one.",
        "This is a second paragraph, which has code marks and a.b.C roles.",
        "It has two sentences that are both long enough to be kept!",
    ]


def test_the_mask_takes_the_whole_word_around_the_name():
    text = "Use PyTorchTensor or torch.nn to build a really big model here."
    assert list(sentences_of(text, ["torch"])) == [
        "Use it or it.nn to build a really big model here."
    ]


def test_a_short_name_is_no_reason_to_mask_a_word_that_holds_it():
    text = "A simple example updates the inputs of np and of pd.DataFrame in place."
    assert list(sentences_of(text, ["numpy", "np", "pandas", "pd", "mpl"])) == [
        "A simple example updates the inputs of it and of it.DataFrame in place."
    ]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "airllm"


def test_a_real_corpus_is_balanced_distinct_masked_and_cached(cache, monkeypatch):
    first = load_sentences(["peft", "rich"], 50)
    assert {name: len(set(s)) for name, s in first.items()} == {"peft": 50, "rich": 50}
    assert not any("peft" in s.lower() for s in first["peft"])
    assert not set(first["peft"]) & set(first["rich"])

    def must_not_run(*args):
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(docstrings, "_collect", must_not_run)
    assert load_sentences(["peft", "rich"], 50) == first


def test_a_broken_cache_is_built_again(cache):
    first = load_sentences(["peft", "rich"], 20)
    (file,) = cache.glob("*.json")
    for content in ("{", "[]", json.dumps({"peft": [], "rich": []})):
        file.write_text(content)
        assert load_sentences(["peft", "rich"], 20) == first
        assert json.loads(file.read_text()) == first


def test_an_unwritable_cache_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load_sentences(["peft", "rich"], 5)["peft"]) == 5


@pytest.mark.usefixtures("cache")
def test_absent_and_taciturn_packages_are_named():
    with pytest.raises(ValueError, match="'no-such-package', which is not installed"):
        load_sentences(["peft", "no-such-package"], 5)
    with pytest.raises(ValueError, match=r"'simpy' give \d+ distinct sentences; lower it"):
        load_sentences(["peft", "simpy"], 900)


NESTED = """
'''Module.'''
import contextlib
try:
    def a(): "in a try"
except ValueError:
    class B:
        "in a handler"
        async def c(self): return [lambda: 0 for _ in range(3)]
else:
    with contextlib.nullcontext():
        def d(): "in a with"
match 1:
    case 1:
        def e():
            def f(): "twice nested"
for _ in ():
    pass
else:
    def g(): "after a for"
"""


def test_the_quick_walk_meets_definitions_in_the_order_of_the_full_one():
    tree = ast.parse(NESTED)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    full = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    quick = [node for node in docstrings._statements(tree) if isinstance(node, kinds)]
    assert len(full) == 8
    assert quick == full


@pytest.fixture
def site_packages(tmp_path, monkeypatch):
    """Two made-up distributions whose modules must not run, in one folder on the path."""
    folder = tmp_path / "site"
    animals = ["heron", "otter", "marten", "badger", "weasel", "lapwing", "curlew", "plover"]
    for package, verb in (("fakealpha", "measures"), ("fakebeta", "renders")):
        files = {
            f"{package}/__init__.py": "raise AssertionError('imported')\n",
            f"{package}/broken.py": "def (:\n",
            f"{package}/tests/test_x.py": '"""A test says that nothing here is ever to be read."""',
        }
        for animal in animals:
            files[f"{package}/{animal}.py"] = (
                f'"""The {package} module {verb} the {animal} beside the quiet river.\n\n'
                f'Both packages share this long sentence about the {animal} word for word."""\n'
                f'odd = "\\d"  # an escape that Python warns of\n'
            )
        info = f"{package}-1.0.dist-info"
        files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in files)
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.mark.usefixtures("site_packages")
def test_what_is_read_of_a_site_packages_folder():
    found = load_sentences(["fakealpha", "fakebeta"], 8)
    for package, verb in (("fakealpha", "measures"), ("fakebeta", "renders")):
        assert package not in sys.modules
        # Masked, without the shared sentences, the tests and the file that does not parse, and
        # with the files that make Python warn (warnings are errors here).
        assert len(set(found[package])) == 8
        assert all(s.startswith(f"The it module {verb} the ") for s in found[package])


@pytest.mark.usefixtures("site_packages")
def test_the_corpus_does_not_depend_on_the_order_that_files_are_recorded_in(site_packages):
    first = load_sentences(["fakealpha", "fakebeta"], 6, cache=False)
    for record in site_packages.glob("*.dist-info/RECORD"):
        lines = record.read_text().splitlines()
        record.write_text("\n".join(reversed(lines)) + "\n")
    assert load_sentences(["fakealpha", "fakebeta"], 6, cache=False) == first


@pytest.mark.usefixtures("site_packages")
def test_without_a_home_there_is_no_cache(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(docstrings.Path, "home", homeless)
    assert len(load_sentences(["fakealpha", "fakebeta"], 4)["fakebeta"]) == 4
