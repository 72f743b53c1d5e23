"""First-order gains against finite differences, and what components are worth together."""

import numpy as np
import pytest
import torch
from transformers import AlbertConfig, AlbertModel

from airllm.lora.adapter import Adapter
from airllm.lora.evaluation import evaluate
from airllm.lora.sensitivity import (
    Sensitivity,
    _fisher_root,
    measure_sensitivity,
    second_order_utility,
)
from airllm.models.base import BaseModel, ModelConfig
from airllm.models.batches import Examples, tokenize
from airllm.models.head import Head
from airllm.models.sources import load_base

TEXTS = [f"text number {i} with {'more ' * (i % 5)}words" for i in range(12)]
LABELS = [i % 3 for i in range(12)]


@pytest.fixture(autouse=True)
def _(float64):
    """All in float64: what two orders of the same sums differ by is far below what is compared."""


@pytest.fixture
def base(float64):
    return load_base(ModelConfig(name="tiny:bert", precision="fp32", device="cpu"), seed=0)


@pytest.fixture
def head(base):
    generator = torch.Generator().manual_seed(0)
    return Head(torch.randn(3, base.num_features, generator=generator), torch.zeros(3))


def adapter_of(base, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        tuple(torch.randn(rank, s.in_features, generator=generator) / 4 for s in base.specs),
        tuple(torch.randn(s.out_features, rank, generator=generator) / 4 for s in base.specs),
    )


def albert(base):
    """A model whose layers are one layer, passed three times."""
    config = AlbertConfig(
        vocab_size=base.vocab_size, embedding_size=16, hidden_size=32, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return BaseModel(base.config, AlbertModel(config), base.tokenizer)


@pytest.mark.parametrize("name", ["bert", "bert with its head", "albert"])
def test_the_gains_of_two_devices_are_finite_differences_of_the_loss(base, head, name):
    if name == "bert with its head":
        base = load_base(base.config, seed=0, num_classes=3)
    elif name == "albert":
        base = albert(base)
    device_adapters = [Adapter.zero(base.specs), adapter_of(base, 2, seed=1)]
    residuals = [adapter_of(base, 2, seed=2), adapter_of(base, 3, seed=3)]
    examples = Examples(tokenize(base, TEXTS), LABELS)
    found = measure_sensitivity(base, head, device_adapters, residuals, [examples], width=3)
    assert not found.gain[0, :, 2].any()
    step = 1e-4
    for i, (have, residual) in enumerate(zip(device_adapters, residuals, strict=True)):
        for p in (0, 4, 5, len(base.specs) - 1):
            for component in range(int(residual.ranks[p])):
                change = []
                for sign in (1, -1):
                    one = Adapter(
                        tuple(
                            d[component : component + 1] if q == p else d[:0]
                            for q, d in enumerate(residual.down)
                        ),
                        tuple(
                            sign * step * u[:, component : component + 1] if q == p else u[:, :0]
                            for q, u in enumerate(residual.up)
                        ),
                    )
                    change.append(evaluate(base, head, have.plus(one), examples).loss)
                expected = -(change[0] - change[1]) / (2 * step)
                assert found.gain[i, p, component] == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", ["opt", "gpt2"])  # flattened inputs; weights [in, out]
def test_the_gains_of_a_causal_model_are_those_of_autograd(name, merged_loss):
    config = ModelConfig(name=f"tiny:{name}", task="causal", precision="fp32", device="cpu")
    base = load_base(config, seed=0)
    have, residual = adapter_of(base, 2, seed=1), adapter_of(base, 3, seed=3)
    examples = Examples(tokenize(base, TEXTS), LABELS)
    found = measure_sensitivity(base, None, [have], [residual], [examples], width=3).gain[0]
    scales = torch.zeros(len(base.specs), 3, requires_grad=True)
    both = have.plus(residual)
    up = [torch.cat([u[:, :2], u[:, 2:] * s], dim=1) for u, s in zip(both.up, scales, strict=True)]
    merged_loss(base, None, both.down, up, examples).backward()
    np.testing.assert_allclose(found, -scales.grad, rtol=1e-6, atol=1e-9)


def test_the_batches_of_a_probe_do_not_matter(base, head):
    device_adapters, residuals = [adapter_of(base, 1, seed=1)], [adapter_of(base, 2, seed=2)]
    ids = tokenize(base, TEXTS)
    one = measure_sensitivity(
        base, head, device_adapters, residuals, Examples(ids, LABELS).by_length(12), width=2
    )
    many = measure_sensitivity(
        base, head, device_adapters, residuals, Examples(ids, LABELS).by_length(5), width=2
    )
    np.testing.assert_allclose(one.gain, many.gain, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(one.fisher, many.fisher, rtol=1e-6, atol=1e-9)


def test_the_fisher_information_is_the_mean_square_of_each_texts_gain(base, head):
    device_adapters, residuals = [Adapter.zero(base.specs)], [adapter_of(base, 2, seed=2)]
    ids = tokenize(base, TEXTS)
    each = np.stack(
        [
            measure_sensitivity(
                base, head, device_adapters, residuals, [Examples([i], [y])], width=2
            ).gain
            for i, y in zip(ids, LABELS, strict=True)
        ]
    )
    found = measure_sensitivity(
        base, head, device_adapters, residuals, [Examples(ids, LABELS)], width=2
    )
    np.testing.assert_allclose(found.gain, each.mean(axis=0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.fisher, (each**2).mean(axis=0), rtol=1e-6, atol=1e-9)


def test_each_device_is_probed_on_texts_of_its_own(base, head):
    device_adapters = [adapter_of(base, 1, seed=1), adapter_of(base, 1, seed=2)]
    residuals = [adapter_of(base, 2, seed=3), adapter_of(base, 2, seed=4)]
    ids = tokenize(base, TEXTS)
    parts = [Examples(ids[i::4], LABELS[i::4]) for i in range(4)]
    both = measure_sensitivity(
        base, head, device_adapters, residuals, parts, width=2, with_curvature=True
    )
    # Of many, with the dense gradients of weights.
    many = measure_sensitivity(
        base, head, device_adapters * 20, residuals * 20, parts, width=2, with_curvature=True
    )
    for i in range(2):
        alone = measure_sensitivity(
            base, head, device_adapters[i : i + 1], residuals[i : i + 1], parts[i::2],
            width=2, with_curvature=True,
        )  # fmt: skip
        np.testing.assert_allclose(both.gain[i], alone.gain[0], rtol=1e-6)
        np.testing.assert_allclose(both.curvature[i], alone.curvature[0], rtol=1e-6, atol=1e-9)
        one = measure_sensitivity(
            base, head, device_adapters[i : i + 1], residuals[i : i + 1], parts[i : i + 1],
            width=2, with_curvature=True,
        )  # fmt: skip
        np.testing.assert_allclose(many.curvature[i], one.curvature[0], rtol=1e-6, atol=1e-9)
    # With fewer parts than devices, a part serves several.
    one = measure_sensitivity(base, head, device_adapters, residuals, parts[:1], width=2)
    np.testing.assert_allclose(
        one.gain[1],
        measure_sensitivity(
            base, head, device_adapters[1:], residuals[1:], parts[:1], width=2
        ).gain[0],
        rtol=1e-6,
    )


@pytest.mark.parametrize("copies", [1, 20])  # of each device: by components, by weights
def test_a_pooled_gain_is_the_mean_over_all_devices_texts_at_their_weights(base, head, copies):
    device_adapters = [Adapter.zero(base.specs), adapter_of(base, 2, seed=1)]
    residuals = [adapter_of(base, 2, seed=2), adapter_of(base, 3, seed=3)]
    ids = tokenize(base, TEXTS)
    parts = [Examples(ids[:4], LABELS[:4]), Examples(ids[4:], LABELS[4:])]
    found = measure_sensitivity(
        base, head, device_adapters * copies, residuals * copies, parts, width=3
    ).pooled_gain
    expected = sum(
        len(part.labels)
        / len(TEXTS)
        * measure_sensitivity(base, head, [have] * 2, residuals, [part], width=3).gain
        for have, part in zip(device_adapters, parts, strict=True)
    )
    np.testing.assert_allclose(found, np.tile(expected, (copies, 1, 1)), rtol=1e-6, atol=1e-9)
    # Where it is not asked for, and by itself, a device's pooled gain is its gain.
    apart = measure_sensitivity(
        base, head, device_adapters, residuals, parts, width=3, is_pooled=False
    )
    np.testing.assert_array_equal(apart.pooled_gain, apart.gain)
    alone = measure_sensitivity(base, head, device_adapters[:1], residuals[:1], parts, width=3)
    np.testing.assert_array_equal(alone.pooled_gain, alone.gain)


@pytest.mark.parametrize("ranks", [(0,), (0, 0), (0, 2)])
@pytest.mark.parametrize("is_pooled", [True, False])
def test_where_there_is_nothing_to_send_nothing_is_worth_anything(base, head, ranks, is_pooled):
    residuals = [adapter_of(base, rank, seed=2) for rank in ranks]
    examples = Examples(tokenize(base, TEXTS), LABELS)
    found = measure_sensitivity(
        base, head, residuals, residuals, [examples],
        width=2, is_pooled=is_pooled, with_curvature=True,
    )  # fmt: skip
    utility = second_order_utility(found, np.ones(len(base.specs)))
    assert utility.shape == (len(ranks), len(base.specs), 2)
    for rank, own in zip(ranks, utility, strict=True):
        assert own.any() == (rank > 0)


def probe_of(table):
    """Of one device, whose texts' gains [texts, projections, 1] are as large as their curvature."""
    return Sensitivity([table], table.mean(axis=0, dtype=float)[None], [table])


def test_components_that_pull_a_text_the_same_way_are_worth_less_together():
    # Two that do the same, and one that lowers the loss of other texts.
    table = np.zeros((4, 3, 1), dtype=np.float32)
    table[:2, 0] = table[:2, 1] = 0.8
    table[2:, 2] = 0.7
    found = probe_of(table)
    utility = second_order_utility(found, np.ones(3))[0, :, 0]
    first = 0.4 - 0.5 * 0.5 * 0.64
    assert utility[0] == pytest.approx(first)
    assert utility[2] == pytest.approx(0.35 - 0.5 * 0.5 * 0.49)
    assert utility[1] == 0.0  # 0.24 less the 0.32 that they have in common
    # Small steps do not get into each other's way.
    small = probe_of(table * 1e-4)
    np.testing.assert_allclose(
        second_order_utility(small, np.ones(3)), small.pooled_gain, rtol=2e-4
    )


def test_what_brings_more_for_its_cost_comes_first():
    table = np.full((2, 2, 1), 0.5, dtype=np.float32)
    found = probe_of(table)
    utility = second_order_utility(found, np.array([10.0, 1.0]))[0, :, 0]
    assert utility[1] == pytest.approx(0.375)
    assert utility[0] == pytest.approx(0.125)


def test_worth_falls_along_the_order_of_selection(base, head):
    residuals = [adapter_of(base, 3, seed=2)]
    examples = Examples(tokenize(base, TEXTS), LABELS)
    device_adapters = [Adapter.zero(base.specs)]
    found = measure_sensitivity(
        base, head, device_adapters, residuals, [examples], width=3, with_curvature=True
    )
    utility = second_order_utility(found, np.ones(len(base.specs)))[0]
    assert 0.0 < utility.sum() < np.maximum(found.gain, 0.0).sum()
    # The model of the loss at all that has any worth is the sum of it, up to the running minimum.
    chosen = utility > 0.0
    pull = found.curvature[0][:, chosen].sum(axis=1)
    assert utility.sum() <= found.pooled_gain[0][chosen].sum() - 0.5 * np.mean(pull**2) + 1e-6


def test_the_signs_of_a_prediction_have_the_hessian_of_the_cross_entropy_on_average():
    logits = torch.tensor([0.3, -1.2, 1.9])
    roots = _fisher_root(logits.expand(4000, 3), torch.Generator().manual_seed(1))
    p = logits.softmax(dim=0)
    hessian = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(roots.T @ roots / 4000, hessian, rtol=0, atol=0.01)
    torch.testing.assert_close(roots.sum(dim=1), torch.zeros(4000))
    one = _fisher_root(logits[None, :2], torch.Generator().manual_seed(1))
    p = logits[:2].softmax(dim=0)
    torch.testing.assert_close(one.T @ one, torch.diag(p) - torch.outer(p, p))


@pytest.mark.parametrize("name", ["tiny:bert", "tiny:bert with its head", "albert", "tiny:opt"])
def test_the_curvature_is_the_fisher_information_of_the_components(
    head, name, monkeypatch, merged_logits
):
    is_causal = name == "tiny:opt"
    config = ModelConfig(
        name="tiny:opt" if is_causal else "tiny:bert",
        task="causal" if is_causal else "classify", precision="fp32", device="cpu",
    )  # fmt: skip
    base = load_base(config, seed=0, num_classes=2 * ("head" in name))
    base = albert(base) if name == "albert" else base
    head = None if is_causal else Head(head.weight[:2], head.bias[:2])
    have, residual = adapter_of(base, 1, seed=1), adapter_of(base, 1, seed=2)
    parts = [
        Examples(tokenize(base, TEXTS[:5]), [0] * 5),
        Examples(tokenize(base, TEXTS[5:]), [0] * 7),
    ]
    # What the logits do by the first two components, to first order.
    slopes, weights = [], []
    for part in parts:
        logits = []
        for component, step in ((0, 0.0), (0, 1e-4), (0, -1e-4), (1, 1e-4), (1, -1e-4)):
            change = Adapter(
                tuple(step * d if q == component else d[:0] for q, d in enumerate(residual.down)),
                tuple(u if q == component else u[:, :0] for q, u in enumerate(residual.up)),
            )
            total = have.plus(change)
            with torch.no_grad():
                logits.append(merged_logits(base, head, total.down, total.up, part)[0])
        slopes.append((torch.stack(logits[1::2]) - torch.stack(logits[2::2])) / 2e-4)
        weights.append(logits[0].softmax(dim=-1))
    slope, p = torch.cat(slopes, dim=1), torch.cat(weights)  # [2, predictions, classes]
    slope = slope - (p * slope).sum(dim=-1, keepdim=True)
    expected = torch.einsum("ink,jnk,nk->ij", slope, slope, p) / len(p)

    def fisher(seed):
        monkeypatch.setattr(
            "airllm.lora.sensitivity.generator_for", lambda *_, **__: generator.manual_seed(seed)
        )
        table = measure_sensitivity(
            base, head, [have], [residual], parts, width=1, with_curvature=True
        ).curvature[0][:, :2, 0]
        return table.T @ table / len(table)

    generator = torch.Generator()
    if is_causal:  # on average, where every token has many classes
        found = np.mean([np.diag(fisher(seed)) for seed in range(40)], axis=0)
        np.testing.assert_allclose(found, np.diag(expected), rtol=0.3)
    else:  # exact for two
        np.testing.assert_allclose(fisher(0), expected, rtol=1e-4, atol=1e-8)
