"""Local training: what is trained, what is left alone, and what it costs."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from airllm.lora.adapter import Adapter, svd_form
from airllm.lora.evaluation import evaluate
from airllm.lora.local_update import (
    LocalJob,
    LocalTraining,
    initial_factors,
    train_local,
)
from airllm.lora.multi_lora import MultiLora
from airllm.models.base import ModelConfig
from airllm.models.batches import Examples, tokenize
from airllm.models.flops import forward_flops, training_flops
from airllm.models.head import Head
from airllm.models.microbatches import whole
from airllm.models.sources import load_base

TEXTS = [f"{a} {b}" for a in ("ab", "ba") for b in ("ab", "ba")] * 4
LABELS = [int(t.split()[0] == t.split()[1]) for t in TEXTS]


@pytest.fixture(scope="module")
def world():
    config = ModelConfig(name="tiny:bert", precision="fp32", device="cpu")
    base = load_base(config, seed=0, num_classes=2)
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(2, 32, generator=generator), torch.zeros(2))
    return base, head, Examples(tokenize(base, TEXTS), LABELS)


def training(**values):
    defaults = {
        "steps": 5, "learning_rate": 1e-2, "scale": 2.0, "start": "device", "is_factored": False,
        "trains_down": True, "seed": 0,
    }  # fmt: skip
    return LocalTraining(**(defaults | values))


def some_adapter(base, rank, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return svd_form(
        Adapter(
            tuple(torch.randn(rank, s.in_features, generator=generator) / 8 for s in base.specs),
            tuple(torch.randn(s.out_features, rank, generator=generator) / 8 for s in base.specs),
        )
    )


def run(world, device_adapter, ranks, key=(0, 0), **values):
    base, head, examples = world
    ranks = np.full(len(base.specs), ranks) if np.isscalar(ranks) else np.asarray(ranks)
    job = LocalJob(device_adapter, ranks, lambda step: examples, key)
    return train_local(base, head, [job], training(**values))[0]


def test_the_head_is_a_projection_that_changes_logits(world):
    base, head, examples = world
    assert (base.specs[-1].kind, base.specs[-1].in_features) == ("head", 33)
    # Zero but for the last projection, whose last input is the constant: a bias.
    update = Adapter.zero(base.specs)
    down, up = list(update.down), list(update.up)
    down[-1], up[-1] = torch.eye(33)[-1:], torch.tensor([[100.0], [0.0]])
    found = evaluate(base, head, Adapter(tuple(down), tuple(up)), examples)
    assert found.accuracy == LABELS.count(0) / len(LABELS)


@pytest.mark.parametrize("start", ["device", "fresh"])
def test_training_lowers_the_loss_and_the_change_is_what_did_it(world, start):
    base, head, examples = world
    device_adapter = some_adapter(base, 3)
    result = run(world, device_adapter, 2, start=start, steps=15)
    before = evaluate(base, head, device_adapter, examples)
    after = evaluate(base, head, device_adapter.plus(result.change), examples)
    assert after.loss < before.loss
    assert result.change.ranks.max() <= 4


def test_a_warm_start_trains_the_strongest_components(world):
    base, device_adapter = world[0], some_adapter(world[0], 3)
    result = run(world, device_adapter, 2, steps=1)
    for p in range(len(base.specs)):
        torch.testing.assert_close(
            result.before.delta(p), device_adapter.truncate([2] * len(base.specs)).delta(p)
        )


def test_what_rounding_leaves_of_a_lower_rank_is_not_trained(world):
    """A second component of 1e-9 has no direction of its own: with it or another one, the same."""
    base, alone = world[0], some_adapter(world[0], 1)

    def noisy(seed):
        noise = some_adapter(base, 1, seed=seed)
        return alone.plus(noise.scaled(1e-9))

    results = [run(world, start, 2) for start in (alone, noisy(5), noisy(6))]
    first = results[0].before
    for other in results[1:]:
        # Where training starts: AdamW makes a step of what rounding leaves of a gradient.
        for p in range(len(base.specs)):
            torch.testing.assert_close(other.before.delta(p), first.delta(p))
            assert torch.equal(other.before.down[p][1], first.down[p][1])
            assert not other.before.up[p][:, 1].any()
    assert all(up[:, 1].any() for up in results[0].after.up)


def test_a_fresh_start_begins_where_nothing_changes(world):
    result = run(world, some_adapter(world[0], 3), 2, start="fresh")
    assert all(not up.any() for up in result.before.up)
    assert any(up.any() for up in result.after.up)


def test_rank_zero_is_left_alone(world):
    ranks = np.zeros(len(world[0].specs), dtype=int)
    ranks[3] = 1
    result = run(world, Adapter.zero(world[0].specs), ranks)
    assert result.after.ranks.tolist() == ranks.tolist()
    nothing = run(world, Adapter.zero(world[0].specs), 0)
    assert (nothing.loss, nothing.flops) == (0.0, 0.0)


def test_factors_keep_their_places_and_a_frozen_a_stays(world):
    base = world[0]
    initial = initial_factors(base.specs, 4, seed=5)
    result = run(world, initial, 3, is_factored=True, trains_down=False)
    for trained, known in zip(result.after.down, initial.down, strict=True):
        assert torch.equal(trained, known[:3])
    both = run(world, initial, 3, is_factored=True, steps=5)
    assert not torch.equal(both.after.down[0], initial.down[0][:3])


def test_the_same_key_gives_the_same_update_and_another_one_does_not(world):
    zero = Adapter.zero(world[0].specs)
    first, again = run(world, zero, 2), run(world, zero, 2)
    other = run(world, zero, 2, key=(1, 0))
    assert torch.equal(first.after.up[0], again.after.up[0])
    assert not torch.equal(first.after.up[0], other.after.up[0])


def test_divergence_is_an_error_with_a_remedy(world):
    with pytest.raises(ValueError, match="federated.local_learning_rate"):
        run(world, Adapter.zero(world[0].specs), 2, learning_rate=1e30)


def test_operations_are_those_that_torch_counts(world):
    """Against torch's own counter, which leaves out fused attention on a CPU."""
    # It does not know the product that is added in place.
    in_place = {torch.ops.aten.addmm_: lambda total, a, b, **_: 2 * a[0] * a[1] * b[1]}
    base, head, examples = world
    batch = whole(base, examples)
    ranks, shape = np.full(len(base.specs), 4), tuple(batch.input_ids.shape)
    attention = 4 * 2 * shape[0] * shape[1] ** 2 * 32  # two blocks of 32 features
    adapter = some_adapter(base, 4)
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    lora = MultiLora(base, head, [adapter])
    with counter:
        lora.evaluate([batch])
    counted = counter.get_total_flops()
    assert forward_flops(base, shape, ranks) - attention == pytest.approx(counted, rel=0.02)
    counter = FlopCounterMode(display=False, custom_mapping=in_place)
    with counter:
        result = run(world, adapter, 4, steps=1)
    assert result.flops == training_flops(base, shape, ranks)
    counted = counter.get_total_flops()
    assert result.flops - 3 * attention == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize(
    "values",
    [{}, {"start": "fresh"}, {"is_factored": True}, {"is_factored": True, "trains_down": False}],
    ids=["device", "fresh", "factored", "frozen A"],
)
@pytest.mark.parametrize("name", ["tiny:bert", "tiny:opt"])
def test_many_devices_together_come_to_what_each_comes_to_alone(name, values, float64):
    config = ModelConfig(
        name=name, precision="fp32", device="cpu",
        task="causal" if name == "tiny:opt" else "classify",
    )  # fmt: skip
    base = load_base(config, seed=0, num_classes=2 if name == "tiny:bert" else 0)
    head = None
    if name == "tiny:bert":
        generator = torch.Generator().manual_seed(0)
        head = Head(torch.randn(2, base.num_features, generator=generator), torch.zeros(2))
    how, count = training(**values), len(base.specs)
    device_adapter = [
        Adapter.zero(base.specs),
        some_adapter(base, 3),
        some_adapter(base, 1, seed=2),
    ]
    if how.is_factored:
        start = initial_factors(base.specs, 4, 0)
        device_adapter = [h.completed(start) for h in device_adapter]
    ranks = [np.full(count, 2), np.arange(count) % 4, np.zeros(count, dtype=int)]
    ids = tokenize(base, [text + " more words" * (i % 3) for i, text in enumerate(TEXTS)])

    def examples_of(device, step):
        own = range(device + step, len(ids), 3)
        return Examples([ids[i] for i in own], [LABELS[i] for i in own])

    jobs = [
        LocalJob(device_adapter[d], ranks[d], lambda step, d=d: examples_of(d, step), (d, 0))
        for d in range(3)
    ]
    together = train_local(base, head, jobs, how)
    for job, found in zip(jobs, together, strict=True):
        (alone,) = train_local(base, head, [job], how)
        assert found.flops == alone.flops
        assert found.loss == pytest.approx(alone.loss, rel=1e-7)
        for p in range(count):
            torch.testing.assert_close(found.before.delta(p), alone.before.delta(p))
            torch.testing.assert_close(
                found.after.delta(p), alone.after.delta(p), rtol=1e-6, atol=1e-7
            )
    assert together[0].loss > 0
    assert not together[2].change.ranks.any()
    if "trains_down" in values:
        for before, after in zip(together[0].before.down, together[0].after.down, strict=True):
            assert torch.equal(before, after)
    with pytest.raises(ValueError, match="lower it"):
        train_local(base, head, jobs, training(learning_rate=1e200, **values))
