"""Sentences of prose, the owner's name masked, without importing anything."""

import json

import pytest

from airllm import docstrings
from airllm.docstrings import load_sentences, sentences_of

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
