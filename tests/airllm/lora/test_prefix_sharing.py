"""Shared evaluation against one adapter at a time."""

from collections import Counter

import pytest
import torch

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import evaluate
from airllm.lora.prefix_sharing import evaluate_many
from airllm.models.base import ModelConfig
from airllm.models.batches import Examples, tokenize
from airllm.models.head import Head
from airllm.models.sources import load_base

TEXTS = [f"text number {i} with {'more ' * (i % 5)}words" for i in range(12)]
LABELS = [i % 3 for i in range(12)]


def adapters_of(base):
    """One that changes nothing, one in all blocks, and parts of it."""
    generator = torch.Generator().manual_seed(0)
    whole = Adapter(
        tuple(torch.randn(2, s.in_features, generator=generator) for s in base.specs),
        tuple(torch.randn(s.out_features, 2, generator=generator) / 4 for s in base.specs),
    )
    half = len(base.specs) // 2
    first_half = whole.truncate([2] * half + [0] * (len(base.specs) - half))
    second_half = whole.truncate([0] * half + [2] * (len(base.specs) - half))
    last = whole.truncate([2] * (len(base.specs) - 1) + [1])
    return [whole, Adapter.zero(base.specs), last, second_half, first_half, whole]


@pytest.mark.parametrize(
    ("family", "task", "num_classes"),
    [("bert", "classify", 0), ("bert", "classify", 3), ("gpt2", "causal", 0)],
)
def test_shared_evaluation_is_that_of_each_alone_to_the_bit(family, task, num_classes):
    config = ModelConfig(name=f"tiny:{family}", task=task, precision="fp32", device="cpu")
    base = load_base(config, seed=0, num_classes=num_classes)
    weight = torch.randn(3, base.num_features, generator=torch.Generator().manual_seed(1))
    head = Head(weight, torch.zeros(3)) if task == "classify" else None
    adapters = adapters_of(base)
    examples = Examples(tokenize(base, TEXTS), LABELS)
    alone = [evaluate(base, head, a, examples) for a in adapters]
    assert evaluate_many(base, head, adapters, examples) == alone
    assert len({m.loss for m in alone}) == 5
    # And everything is as it was.
    assert evaluate(base, head, adapters[0], examples) == alone[0]


def test_a_block_runs_once_for_all_adapters_that_agree_up_to_it():
    config = ModelConfig(name="tiny:bert", precision="fp32", device="cpu")
    base = load_base(config, seed=0)
    head = Head(torch.ones(3, base.num_features), torch.zeros(3))
    ids = [[5] * n for n in (3, 4, 5, 25, 26, 27, 28, 29)]  # in two passes
    examples = Examples(ids, [0] * len(ids))
    evaluate(base, head, Adapter.zero(base.specs), examples)  # measures its memory
    runs = Counter()
    for depth in range(2):
        # A block's attention runs when the block does.
        base.network.encoder.layer[depth].attention.register_forward_hook(
            lambda *_, depth=depth: runs.update([depth])
        )
    evaluate_many(base, head, adapters_of(base), examples)
    # In the first block two differ (nothing, and the whole); in the second one, of each, two or
    # three more.
    assert runs == {0: 2 * 2, 1: 5 * 2}


def test_no_examples_are_refused():
    base = load_base(ModelConfig(name="tiny:bert", precision="fp32", device="cpu"), seed=0)
    with pytest.raises(ValueError, match="at least one example"):
        evaluate_many(base, None, [Adapter.zero(base.specs)], Examples([], []))
