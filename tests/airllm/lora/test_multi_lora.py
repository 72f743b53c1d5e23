"""The engine against a plain twin for each device, and against PEFT."""

import gc
import subprocess
import sys
import traceback

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from airllm.lora.adapter import Adapter
from airllm.lora.multi_lora import MultiLora, row_bytes
from airllm.lora.multi_lora_linear import Factors
from airllm.models.base import ModelConfig
from airllm.models.batches import Examples, tokenize
from airllm.models.head import Head
from airllm.models.losses import losses
from airllm.models.microbatches import whole
from airllm.models.sources import load_base

TEXTS = [f"{'more ' * (i % 4)}words {i}" for i in range(20)]
RATE, SCALE = 1e-2, 2.0


def load(family="bert", task="classify", precision="fp32", num_classes=0, device="cpu"):
    config = ModelConfig(name=f"tiny:{family}", task=task, precision=precision, device=device)
    return load_base(config, seed=0, num_classes=num_classes)


def head_of(base):
    if base.config.task == "causal":
        return None
    weight = torch.randn(3, base.num_features, generator=torch.Generator().manual_seed(0))
    return Head(weight, torch.zeros(3))


def adapter_of(base, ranks, seed):
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        tuple(
            torch.randn(int(r), s.in_features, generator=generator) / 4
            for r, s in zip(ranks, base.specs, strict=True)
        ),
        tuple(
            torch.randn(s.out_features, int(r), generator=generator) / 4
            for r, s in zip(ranks, base.specs, strict=True)
        ),
    )


def adapters_of(base):
    """(frozen, trained) of four devices; ranks are unequal: some 0, runs of equal ones, a device
    with nothing frozen, and one with nothing to train in the first block."""
    rng = np.random.default_rng(1)
    ranks = rng.integers(0, 5, (4, len(base.specs)))
    ranks[1] = ranks[0]
    ranks[2, : len(base.specs) // 2] = 0
    frozen = [adapter_of(base, ranks[::-1][d] * (d in (1, 3)), 9) for d in range(4)]
    return frozen, [adapter_of(base, ranks[d], d) for d in range(4)]


def lora_of(base, **values):
    return MultiLora(base, head_of(base), *adapters_of(base), scale=SCALE, **values)


def examples_of(base, sizes=(4, 4, 3, 5)):
    ids, at, found = tokenize(base, TEXTS), 0, []
    for n in sizes:
        found.append(Examples(ids[at : at + n], [(at + i) % 3 for i in range(n)]))
        at += n
    return found


def steps(lora, examples, count, *, rate=RATE, weight_decay=0.0):
    """Losses [steps, devices] of some steps of AdamW."""
    optimiser = torch.optim.AdamW([lora.values], lr=rate, weight_decay=weight_decay, fused=True)
    found = []
    for _ in range(count):
        found.append(lora.backward(lora.microbatches(examples)))
        optimiser.step()
    return torch.stack(found)


def train_alone(merged_loss, base, frozen, trained, own, count):
    """The same by the twin: one device, one padded batch, autograd and plain AdamW."""
    down = [d.clone().requires_grad_() for d in trained.down]
    up = [(u / SCALE).requires_grad_() for u in trained.up]
    optimiser = torch.optim.AdamW([*down, *up], lr=RATE, weight_decay=0.1)
    found = []
    for _ in range(count):
        all_down = [torch.cat([d, k]) for d, k in zip(down, frozen.down, strict=True)]
        all_up = [torch.cat([u * SCALE, k], dim=1) for u, k in zip(up, frozen.up, strict=True)]
        loss = merged_loss(base, head_of(base), all_down, all_up, own)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found, Adapter(tuple(d.detach() for d in down), tuple(u.detach() * SCALE for u in up))


def assert_equal(one, other, **tolerance):
    assert one.ranks.tolist() == other.ranks.tolist()
    for a, b in zip([*one.down, *one.up], [*other.down, *other.up], strict=True):
        torch.testing.assert_close(a, b, **tolerance)


MODELS = pytest.mark.parametrize(
    ("family", "task", "num_classes"),
    [
        ("bert", "classify", 0),
        ("bert", "classify", 3),  # the head is a projection
        ("gpt2", "causal", 0),
        ("opt", "causal", 0),
    ],
)


@MODELS
def test_devices_do_what_each_ones_twin_does(family, task, num_classes, merged_loss, float64):
    base = load(family, task, num_classes=num_classes)
    examples, (frozen, trained) = examples_of(base), adapters_of(base)
    lora = lora_of(base)
    together = steps(lora, examples, 4, weight_decay=0.1)
    adapters = lora.adapters()
    for d, own in enumerate(examples):
        alone, adapter = train_alone(merged_loss, base, frozen[d], trained[d], own, 4)
        np.testing.assert_allclose(together[:, d].numpy(), alone, rtol=1e-7)
        assert_equal(adapters[d], adapter, rtol=1e-6, atol=1e-7)


def test_one_device_does_what_peft_does(float64):
    from peft import LoraConfig, get_peft_model

    base = load()
    head, own, start = head_of(base), examples_of(base)[0], adapters_of(base)[1][0]
    lora = MultiLora(base, head, trained=[start], scale=SCALE)
    ours = steps(lora, [own], 4)[:, 0]
    (adapter,) = lora.adapters()

    network = load().network
    pattern = {s.name: int(r) for s, r in zip(base.specs, start.ranks, strict=True) if r}
    model = get_peft_model(
        network,
        LoraConfig(
            target_modules=list(pattern),
            rank_pattern=pattern,
            alpha_pattern={name: SCALE * r for name, r in pattern.items()},
        ),
    )
    layers = {s.name: network.get_submodule(s.name) for s in base.specs}
    for spec, d, u in zip(base.specs, start.down, start.up, strict=True):
        if len(d):
            layers[spec.name].lora_A["default"].weight.data.copy_(d)
            layers[spec.name].lora_B["default"].weight.data.copy_(u / SCALE)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    batch = whole(base, own)
    theirs = []
    for _ in range(4):
        hidden = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0]
        mask = batch.attention_mask[:, :, None].double()
        features = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        loss = F.cross_entropy(F.linear(features, head.weight, head.bias), batch.target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        theirs.append(loss.item())
    np.testing.assert_allclose(ours, theirs, rtol=1e-7)
    for spec, d, u in zip(base.specs, adapter.down, adapter.up, strict=True):
        if len(d):
            weights = [getattr(layers[spec.name], f"lora_{x}")["default"].weight for x in "AB"]
            torch.testing.assert_close(d, weights[0].detach(), rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(u, SCALE * weights[1].detach(), rtol=1e-6, atol=1e-7)


def test_the_order_of_devices_does_not_matter(float64):
    base = load()
    (frozen, trained), examples = adapters_of(base), examples_of(base)
    found = {}
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        lora = MultiLora(
            base, head_of(base), [frozen[d] for d in order], [trained[d] for d in order],
            scale=SCALE,
        )  # fmt: skip
        loss, adapters = steps(lora, [examples[d] for d in order], 3)[-1], lora.adapters()
        for place, d in enumerate(order):
            found.setdefault(d, []).append((loss[place].item(), adapters[place]))
    for (loss, adapter), (other_loss, other) in found.values():
        assert loss == pytest.approx(other_loss, rel=1e-7)
        assert_equal(adapter, other, rtol=1e-6, atol=1e-7)


def test_memory_bounds_the_rows_of_a_pass_and_changes_no_loss(float64):
    base = load()
    head, examples = head_of(base), examples_of(base)
    long = [Examples([(ids * 32)[:32] for ids in own.ids], own.labels) for own in examples]
    lora = lora_of(base)
    (all_rows,) = lora.microbatches(long)
    assert len(all_rows.input_ids) == 16
    expected, right = lora.evaluate([all_rows])
    lora = lora_of(base, memory_bytes=5 * row_bytes(base, head, 32) + 1)
    batches = lora.microbatches(long)
    assert [len(batch.input_ids) for batch in batches] == [5, 5, 5, 1]
    assert sum(np.array(batch.num_rows) for batch in batches).tolist() == [4, 4, 3, 5]
    assert sorted(place for batch in batches for place in batch.places) == list(range(16))
    loss, also_right = lora.evaluate(batches)
    # The order of a row's sums may depend on the rows beside it.
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0.0)
    assert also_right.tolist() == right.tolist()


def test_what_a_row_keeps_is_what_autograd_keeps():
    """The stated bytes of many rows, against those that autograd saves in a pass of so many."""
    base = load()
    examples = [Examples([(ids * 32)[:32] for ids in own.ids], own.labels)
                for own in examples_of(base)]  # fmt: skip
    stated = 16 * row_bytes(base, head_of(base), 32)
    kept = {}
    known = {p.untyped_storage().data_ptr() for p in base.network.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    lora = lora_of(base)
    batches = lora.microbatches(examples)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        lora.backward(batches)
    activations = sum(n for pointer, (n, _) in kept.items() if pointer not in known)
    # What the updates keep themselves, a number for each token and component, is not counted.
    assert activations == pytest.approx(stated, rel=0.15)


@pytest.mark.parametrize("is_training", [False, True])
def test_nothing_is_left_of_an_engine(is_training):
    """It once was: the graph on which its bytes were measured kept its own outputs, for ever."""
    base = load()

    def alive():
        gc.collect()
        return sum(type(o) is Factors for o in gc.get_objects())

    before = alive()
    lora = lora_of(base)
    batches = lora.microbatches(examples_of(base))
    (lora.backward if is_training else lora.evaluate)(batches)
    assert alive() > before
    del lora
    assert alive() == before


def test_evaluation_leaves_everything_as_it_was():
    base, examples = load(), examples_of(load())
    lora, (_, trained) = lora_of(base), adapters_of(base)
    lora.evaluate(lora.microbatches(examples))
    for adapter, start in zip(lora.adapters(), trained, strict=True):
        assert_equal(adapter, start, rtol=0, atol=0)
    first, second = steps(lora, examples, 2, rate=1e-3)
    assert (second < first).all()  # it learns
    assert all("forward" not in vars(m) for m in base.modules)
    batch = whole(base, examples[0])
    bare, again = (losses(b, head_of(base), batch)[0] for b in (base, load()))
    assert torch.equal(bare, again)


def test_a_base_is_bare_again_after_an_error():
    base = load()
    (batch,) = lora_of(base).microbatches(examples_of(base, (1, 1, 1, 1)))
    with pytest.raises(RuntimeError, match="in the middle"), lora_of(base).applied_to(batch):
        raise RuntimeError("in the middle")
    assert all("forward" not in vars(m) for m in base.modules)


def test_frozen_down_factors_stay():
    base, (_, trained) = load(), adapters_of(load())
    lora = lora_of(base, trains_down=False)
    steps(lora, examples_of(base), 1)
    for adapter, start in zip(lora.adapters(), trained, strict=True):
        for down, known in zip(adapter.down, start.down, strict=True):
            assert torch.equal(down, known)
        flat = [torch.cat([u.flatten() for u in a.up]) for a in (adapter, start)]
        assert not torch.equal(*flat)


def test_gradients_stay_where_they_are_whatever_an_optimiser_does_to_them():
    base = load()
    lora = lora_of(base)
    batches = lora.microbatches(examples_of(base))
    lora.backward(batches)
    first = lora.values.grad.clone()
    lora.values.grad = None  # as zero_grad() does
    lora.backward(batches)
    assert torch.equal(lora.values.grad, first)
    own = torch.cat([g.flatten() for g in (*lora.gradients(2).down, *lora.gradients(2).up)])
    assert own.any()


def test_bf16_is_fp32_but_for_rounding():
    """Factors and their gradients stay in fp32; the products are in the base's precision."""
    found = {}
    for precision in ("fp32", "bf16"):
        base = load(precision=precision)
        lora = lora_of(base)
        found[precision] = steps(lora, examples_of(base), 2)
        assert lora.values.dtype == torch.float32
    torch.testing.assert_close(found["bf16"][0], found["fp32"][0], rtol=3e-2, atol=0)
    torch.testing.assert_close(found["bf16"][1], found["fp32"][1], rtol=6e-2, atol=0)


class Synchronisations(TorchDispatchMode):
    """Operators for which a host would have to wait for its device.

    But for one a pass that is not ours: Transformers looks whether a padding mask is full.
    """

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "item")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_ours = not any("masking_utils" in f.filename for f in traceback.extract_stack(limit=12))
        if function.overloadpacket.__name__ in self.NAMES and is_ours:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("family", "task"), [("bert", "classify"), ("opt", "causal")])
def test_nothing_waits_for_the_device_within_a_step(family, task):
    base = load(family, task)
    lora, examples = lora_of(base), examples_of(base)
    steps(lora, examples, 1)  # measures its memory
    with Synchronisations() as seen:
        loss = steps(lora, examples, 1)[0]
    assert seen.found == []
    with seen:
        loss[0].item()
    assert seen.found == ["aten._local_scalar_dense.default"]


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def steps_of(device, count):
    """Losses of a few steps, and of an evaluation after them, of tiny OPT in full precision."""
    base = load("opt", "causal", device=device)
    lora, examples = lora_of(base), examples_of(base)
    found = steps(lora, examples, count)
    after, _ = lora.evaluate(lora.microbatches(examples))
    return torch.cat([found, after[None]]).cpu()


@pytest.mark.gpu
@needs_cuda
def test_cuda_does_what_a_cpu_does(float64):
    torch.testing.assert_close(steps_of("cpu", 3), steps_of("cuda", 3), rtol=1e-7, atol=0)


@pytest.mark.gpu
@needs_cuda
def test_cuda_is_deterministic_when_asked_to_be():
    code = (
        "from experiments.assembly.threads import use_determinism; use_determinism()\n"
        f"import runpy; print(runpy.run_path({__file__!r})['steps_of']('cuda', 4).tolist())\n"
        "import torch; assert torch.are_deterministic_algorithms_enabled()"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert first.stdout == second.stdout


def test_bad_arguments_are_named():
    base = load()
    with pytest.raises(ValueError, match="an adapter for each device.*got 0 and 0"):
        MultiLora(base, None)
    with pytest.raises(ValueError, match="an adapter for each device.*got 4 and 1"):
        MultiLora(base, None, adapters_of(base)[0], adapters_of(base)[1][:1])
    with pytest.raises(ValueError, match="memory_bytes must be >= 1, got 0"):
        lora_of(base, memory_bytes=0)
    with pytest.raises(ValueError, match="examples must be those of 4 devices, got 1"):
        lora_of(base).microbatches(examples_of(base)[:1])
