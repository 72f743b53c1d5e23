"""Evaluation, head, and the order of batches."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import evaluate, evaluate_together
from airllm.models.base import ModelConfig
from airllm.models.batches import BatchSampler, Examples, tokenize
from airllm.models.head import Head, train_head
from airllm.models.microbatches import whole
from airllm.models.sources import load_base

TEXTS = [f"text number {i} with {'more ' * (i % 5)}words" for i in range(12)]
LABELS = [i % 3 for i in range(12)]


@pytest.fixture(scope="module")
def base():
    return load_base(ModelConfig(name="tiny:bert", precision="fp32", device="cpu"), seed=0)


@pytest.fixture(scope="module")
def head(base):
    generator = torch.Generator().manual_seed(0)
    return Head(torch.randn(3, base.num_features, generator=generator), torch.zeros(3))


def adapter_of(base, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        tuple(torch.randn(rank, s.in_features, generator=generator) / 4 for s in base.specs),
        tuple(torch.randn(s.out_features, rank, generator=generator) / 4 for s in base.specs),
    )


@pytest.mark.parametrize("name", ["bert", "bert with its head", "gpt2", "opt"])
def test_each_device_has_the_metrics_of_its_twin(name, merged_logits, float64):
    """Devices of unequal numbers of texts, in the same passes and alone."""
    family, is_causal = name.split()[0], name in ("gpt2", "opt")
    task = "causal" if is_causal else "classify"
    config = ModelConfig(name=f"tiny:{family}", task=task, precision="fp32", device="cpu")
    base = load_base(config, seed=0, num_classes=3 if "head" in name else 0)
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(3, base.num_features, generator=generator), torch.zeros(3))
    head = None if is_causal else head
    ids = tokenize(base, TEXTS)
    examples = [Examples(ids[:7], LABELS[:7]), Examples(ids[7:], LABELS[7:])]
    adapters = [adapter_of(base, 2, seed=4), Adapter.zero(base.specs)]
    together = evaluate_together(base, head, adapters, examples)
    for adapter, own, found in zip(adapters, examples, together, strict=True):
        logits, target = merged_logits(base, head, adapter.down, adapter.up, own)
        assert found.count == len(target)
        assert found.loss == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-12)
        assert found.accuracy == (logits.argmax(dim=1) == target).double().mean()
        alone = evaluate(base, head, adapter, own)
        assert (alone.accuracy, alone.count) == (found.accuracy, found.count)
        assert alone.loss == pytest.approx(found.loss, rel=1e-12)


def test_a_device_with_nothing_to_evaluate_is_refused(base, head):
    own, none = Examples(tokenize(base, TEXTS), LABELS), Examples([], [])
    with pytest.raises(ValueError, match="at least one example"):
        evaluate_together(base, head, [Adapter.zero(base.specs)] * 2, [own, none])


def test_a_causal_models_loss_is_that_of_transformers():
    base = load_base(
        ModelConfig(name="tiny:gpt2", task="causal", precision="fp32", device="cpu"), seed=0
    )
    examples = Examples(tokenize(base, TEXTS), LABELS)
    ours, batch = evaluate(base, None, Adapter.zero(base.specs), examples), whole(base, examples)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    with torch.no_grad():
        theirs = base.network(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels
        ).loss
    assert ours.loss == pytest.approx(theirs.item(), rel=1e-5)
    assert ours.count == int(batch.attention_mask[:, 1:].sum())


def test_a_head_learns_what_the_features_tell(base):
    texts = ["aaaa", "zzzz", "0000"] * 8
    labels = [0, 1, 2] * 8
    ids = tokenize(base, texts)
    head = train_head(
        base, ids, labels, num_classes=3, steps=100, learning_rate=1e-2, weight_decay=0.0,
        batch_size=12, seed=0,
    )  # fmt: skip
    assert evaluate(base, head, Adapter.zero(base.specs), Examples(ids, labels)).accuracy == 1


def test_a_pass_over_the_data_meets_every_example_once():
    sampler = BatchSampler(num_examples=20, batch_size=5, seed=3, stream=1)
    seen = np.concatenate([sampler.indices(step) for step in range(4)])
    assert sorted(seen) == list(range(20))
    assert list(sampler.indices(4)) != list(sampler.indices(0))
    other = BatchSampler(num_examples=20, batch_size=5, seed=4, stream=1)
    assert list(sampler.indices(0)) != list(other.indices(0))


def test_batches_of_like_length_still_take_every_example_once_a_pass():
    lengths = tuple(np.random.default_rng(0).integers(5, 33, 160).tolist())
    plain, sorted_ = (
        BatchSampler(num_examples=160, batch_size=8, seed=3, stream=1, lengths=known)
        for known in ((), lengths)
    )

    def passes(sampler):
        return [sampler.indices(step) for step in range(20)]

    assert sorted(np.concatenate(passes(sorted_))) == list(range(160))
    # The same few examples as without lengths, eight batches at a time.
    for window in (slice(0, 8), slice(8, 16), slice(16, 20)):
        ours, theirs = (set(np.concatenate(passes(s)[window]).tolist()) for s in (sorted_, plain))
        assert ours == theirs
    width = {s: np.mean([max(lengths[i] for i in b) for b in passes(s)]) for s in (plain, sorted_)}
    assert width[sorted_] < 0.75 * width[plain]
    # Short ones do not always come first.
    assert np.argmin([np.mean([lengths[i] for i in b]) for b in passes(sorted_)[:8]]) != 0
