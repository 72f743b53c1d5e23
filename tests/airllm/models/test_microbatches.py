"""Which texts share a pass, and where everything lies in it."""

import math

import pytest
import torch

from airllm.models.base import ModelConfig
from airllm.models.batches import Examples, join
from airllm.models.head import Head
from airllm.models.losses import losses
from airllm.models.microbatches import microbatches, whole
from airllm.models.sources import load_base

LENGTHS = [[3, 20, 9], [30, 4, 10, 12]]


def load(family="bert", task="classify"):
    config = ModelConfig(name=f"tiny:{family}", task=task, precision="fp32", device="cpu")
    return load_base(config, seed=0)


def examples_of(lengths=LENGTHS):
    return [
        Examples([[7 + d] * n for n in own], [n % 3 for n in own]) for d, own in enumerate(lengths)
    ]


def shapes(batches):
    return [tuple(batch.input_ids.shape) for batch in batches]


def test_padding_is_that_of_the_own_length_where_passes_cost_nothing():
    batches = microbatches(load(), examples_of(), pass_tokens=0)
    assert shapes(batches) == [(2, 8), (3, 16), (1, 24), (1, 32)]
    assert [batch.places for batch in batches] == [(0, 4), (2, 5, 6), (1,), (3,)]
    assert [batch.num_rows for batch in batches] == [(1, 1), (1, 2), (1, 0), (0, 1)]
    for batch in batches:
        lengths = batch.attention_mask.sum(dim=1)
        assert (lengths > batch.input_ids.shape[1] - 8).all()


@pytest.mark.parametrize(
    ("pass_tokens", "expected"),
    [(8, [(2, 8), (3, 16), (2, 32)]), (16, [(5, 16), (2, 32)]), (math.inf, [(7, 32)])],
)
def test_texts_join_longer_ones_where_that_is_less_than_a_pass(pass_tokens, expected):
    batches = microbatches(load(), examples_of(), pass_tokens=pass_tokens)
    assert shapes(batches) == expected
    assert sorted(place for batch in batches for place in batch.places) == list(range(7))
    assert all(list(batch.places) == sorted(batch.places) for batch in batches)


def test_no_pass_has_more_rows_than_it_may():
    batches = microbatches(
        load(), examples_of(), pass_tokens=math.inf, rows_of=lambda width: 100 // width
    )
    assert shapes(batches) == [(3, 32), (3, 32), (1, 32)]


@pytest.mark.parametrize(("family", "task"), [("bert", "classify"), ("opt", "causal")])
def test_a_device_has_the_same_losses_however_its_texts_go_through(family, task, float64):
    base, examples = load(family, task), examples_of()
    weight = torch.randn(3, base.num_features, generator=torch.Generator().manual_seed(0))
    head = Head(weight, torch.zeros(3)) if task == "classify" else None

    def means(batches):
        found = torch.zeros(2)
        for batch in batches:
            each = losses(base, head, batch)[0] * batch.weight
            found += torch.stack([part.sum() for part in each.split(batch.num_terms)])
        return found

    expected = torch.stack([losses(base, head, whole(base, own))[0].mean() for own in examples])
    for pass_tokens in (0, 16, math.inf):
        found = means(microbatches(base, examples, pass_tokens=pass_tokens))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_terms_of_a_causal_model_are_its_next_tokens():
    batch = whole(load("opt", "causal"), Examples([[5, 6, 7], [8], [9, 4]], [0, 0, 0]))
    assert batch.terms.tolist() == [0, 1, 16]
    assert batch.target[batch.terms].tolist() == [6, 7, 4]
    assert int((batch.target != -100).sum()) == 3
    assert (batch.num_rows, batch.num_terms) == ((3,), (3,))


def test_parts_of_like_length_have_all_examples():
    (own, *_) = examples_of()
    parts = own.by_length(2)
    assert [[len(ids) for ids in part.ids] for part in parts] == [[3, 9], [20]]
    assert join(parts) == Examples([own.ids[i] for i in (0, 2, 1)], [0, 0, 2])
    assert join([]) == Examples([], [])
