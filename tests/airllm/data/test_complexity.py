"""Entropy at its bounds; words that the reference does not have."""

import math

import pytest

from airllm.data.complexity import oov_rate, reference_vocabulary, token_entropy


def test_entropy_is_one_when_no_token_comes_twice_and_zero_when_one_is_repeated():
    assert token_entropy([[1, 2], [3, 4]]) == pytest.approx(1.0)
    assert token_entropy([[7, 7], [7]]) == 0.0
    assert token_entropy([[5]]) == token_entropy([]) == 0.0


def test_entropy_of_a_fair_coin_over_four_tosses():
    assert token_entropy([[0, 1, 0, 1]]) == pytest.approx(1.0 / math.log2(4))


def test_oov_counts_running_words_that_the_reference_has_seen_less_than_twice():
    known = reference_vocabulary(["the cat sat", "The cat ran."])
    assert known == {"the", "cat"}
    assert oov_rate(["the dog", "a CAT!"], known) == 0.5
    assert oov_rate(["12 34", ""], known) == 0.0
