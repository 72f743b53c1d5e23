"""First-order gains against finite differences, their noise, and what shrinking does to them."""

import numpy as np
import pytest
import torch

from airllm.lora import Adapter
from airllm.models import ModelConfig, load_base
from airllm.probe import Probe, probe, shrunk_gain
from airllm.tuning import Head, bucket, collate, evaluate, tokenize

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


def test_the_gains_of_two_devices_are_finite_differences_of_the_loss(base, head):
    held = [Adapter.zero(base.specs), adapter_of(base, 2, seed=1)]
    candidates = [adapter_of(base, 2, seed=2), adapter_of(base, 3, seed=3)]
    batch = collate(base, tokenize(base, TEXTS), LABELS)
    found = probe(base, head, held, candidates, [batch], width=3)
    assert not found.gain[0, :, 2].any()
    step = 1e-2
    for i, (have, candidate) in enumerate(zip(held, candidates, strict=True)):
        for p in (0, 5):
            for component in range(int(candidate.ranks[p])):
                change = []
                for sign in (1, -1):
                    one = Adapter(
                        tuple(
                            d[component : component + 1] if q == p else d[:0]
                            for q, d in enumerate(candidate.down)
                        ),
                        tuple(
                            sign * step * u[:, component : component + 1] if q == p else u[:, :0]
                            for q, u in enumerate(candidate.up)
                        ),
                    )
                    change.append(evaluate(base, head, have.plus(one), [batch]).loss)
                expected = -(change[0] - change[1]) / (2 * step)
                assert found.gain[i, p, component] == pytest.approx(expected, rel=0.03, abs=2e-4)


def test_the_batches_of_a_probe_do_not_matter(base, head):
    held, candidates = [adapter_of(base, 1, seed=1)], [adapter_of(base, 2, seed=2)]
    ids = tokenize(base, TEXTS)
    one = probe(base, head, held, candidates, bucket(base, ids, LABELS, 12), width=2)
    many = probe(base, head, held, candidates, bucket(base, ids, LABELS, 5), width=2)
    np.testing.assert_allclose(one.gain, many.gain, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(one.fisher, many.fisher, rtol=1e-3, atol=1e-6)


def test_the_fisher_information_is_the_mean_square_of_each_texts_gain(base, head):
    held, candidates = [Adapter.zero(base.specs)], [adapter_of(base, 2, seed=2)]
    ids = tokenize(base, TEXTS)
    each = np.stack(
        [
            probe(base, head, held, candidates, [collate(base, [i], [y])], width=2).gain
            for i, y in zip(ids, LABELS, strict=True)
        ]
    )
    found = probe(base, head, held, candidates, [collate(base, ids, LABELS)], width=2)
    np.testing.assert_allclose(found.gain, each.mean(axis=0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.fisher, (each**2).mean(axis=0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        found.gain_variance, each.var(axis=0, ddof=1) / len(each), rtol=0.02, atol=1e-7
    )


def test_shrinking_brings_noisy_gains_nearer_to_the_truth_and_leaves_exact_ones():
    rng = np.random.default_rng(0)
    sigma = -np.sort(-rng.random((4, 6, 8)), axis=2)
    truth = sigma * (0.5 * sigma + 0.2 * rng.normal(size=sigma.shape))
    noise = 0.4
    measured = truth + sigma * noise * rng.normal(size=sigma.shape)
    num_texts = 65
    fisher = measured**2 + (sigma * noise) ** 2 * (num_texts - 1)
    shrunk = shrunk_gain(Probe(measured, fisher, num_texts), sigma**2)
    assert np.mean((shrunk - truth) ** 2) < 0.6 * np.mean((measured - truth) ** 2)
    exact = shrunk_gain(Probe(measured, measured**2, num_texts), sigma**2)
    np.testing.assert_allclose(exact, measured, rtol=1e-9)
    assert not shrunk_gain(Probe(measured, fisher, num_texts), np.zeros_like(sigma)).any()
