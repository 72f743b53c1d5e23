"""Linguistic complexity of a device's text, as the rank policy observes it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def words_of(text: str) -> list[str]:
    """Lower-case words of letters; digits and marks are none."""
    return _WORD.findall(text.lower())


def token_entropy(token_ids: Iterable[Sequence[int]]) -> float:
    """Normalised entropy of the tokens of all texts together: H / log2 of their number, 0..1.

    H = -sum p log2 p over the distinct tokens. Divided by log2 of the number of tokens, which H
    reaches when every token is another: 0 is one token repeated, 1 is no token twice. (By the size
    of the vocabulary, the entropy of a short text would measure its length.)
    """
    counts = np.array(list(Counter(t for ids in token_ids for t in ids).values()), dtype=float)
    total = counts.sum()
    if total <= 1 or len(counts) == 1:
        return 0.0
    p = counts / total
    return float(min(-(p * np.log2(p)).sum() / np.log2(total), 1.0))


def reference_vocabulary(texts: Iterable[str], *, min_count: int = 2) -> frozenset[str]:
    """Words that occur at least ``min_count`` times in the reference text.

    The cloud's training text is the reference: a word that it has hardly seen is one that its
    update cannot know. A tokenizer's own unknown token is no measure, since byte-level and
    word-piece tokenizers spell any word.
    """
    counts = Counter(word for text in texts for word in words_of(text))
    return frozenset(word for word, count in counts.items() if count >= min_count)


def oov_rate(texts: Iterable[str], vocabulary: frozenset[str]) -> float:
    """Share of running words outside the vocabulary, 0..1; 0 for text without words."""
    words = [word for text in texts for word in words_of(text)]
    return sum(word not in vocabulary for word in words) / len(words) if words else 0.0
