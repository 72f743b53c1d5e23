"""A fleet against its members one by one, and against PEFT."""

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
from airllm.lora.evaluation import losses
from airllm.lora.microbatches import make_passes, row_losses
from airllm.lora.multi_lora import Fleet, Member
from airllm.lora.stacked_linear import Factors
from airllm.models.base import ModelConfig
from airllm.models.batches import Examples, collate, tokenize
from airllm.models.head import Head
from airllm.models.sources import load_base

TEXTS = [f"{'more ' * (i % 4)}words {i}" for i in range(20)]
RATES = [1e-2, 1e-2, 3e-3, 1e-2]
SCALES = [2.0, 2.0, 2.0, 0.5]


def load(family="bert", task="classify", precision="fp32", num_classes=0):
    config = ModelConfig(name=f"tiny:{family}", task=task, precision=precision, device="cpu")
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


def members_of(base, frozen=True):
    """Unequal ranks: some 0, runs of equal ones, and a device with nothing in the first block."""
    rng = np.random.default_rng(1)
    ranks = rng.integers(0, 5, (4, len(base.specs)))
    ranks[1] = ranks[0]
    ranks[2, : len(base.specs) // 2] = 0
    return [
        Member(
            adapter_of(base, ranks[d], d),
            RATES[d],
            SCALES[d],
            adapter_of(base, ranks[::-1][d], 9) if frozen and d in (1, 3) else None,
        )
        for d in range(4)
    ]


def examples_of(base, sizes=(4, 4, 3, 5)):
    ids, at, found = tokenize(base, TEXTS), 0, []
    for n in sizes:
        found.append(Examples(ids[at : at + n], [(at + i) % 3 for i in range(n)]))
        at += n
    return found


def train_alone(base, head, member, own, steps):
    """What a fleet replaces: one device, one padded batch, autograd and plain AdamW."""
    down = [d[None].clone().requires_grad_() for d in member.adapter.down]
    up = [u[None].clone().requires_grad_() for u in member.adapter.up]
    frozen = member.frozen or Adapter.zero(base.specs)
    optimiser = torch.optim.AdamW([*down, *up], lr=member.learning_rate, weight_decay=0.1)
    found = []
    for _ in range(steps):
        base.bank.load(
            [torch.cat([d, k[None]], dim=1) for d, k in zip(down, frozen.down, strict=True)],
            [
                torch.cat([u * member.scale, k[None]], dim=2)
                for u, k in zip(up, frozen.up, strict=True)
            ],
        )
        loss = losses(base, head, collate(base, own.ids, own.labels))[0].mean()
        base.bank.clear()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found, Adapter(tuple(d[0].detach() for d in down), tuple(u[0].detach() for u in up))


def assert_equal(one, other, **tolerance):
    assert one.ranks.tolist() == other.ranks.tolist()
    for a, b in zip([*one.down, *one.up], [*other.down, *other.up], strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize(
    ("family", "task", "num_classes"),
    [("bert", "classify", 0), ("bert", "classify", 3), ("gpt2", "causal", 0), ("opt", "causal", 0)],
)
def test_a_fleet_does_what_its_members_do_one_by_one(family, task, num_classes, float64):
    base = load(family, task, num_classes=num_classes)  # with classes, the head is a projection
    head, members, examples = head_of(base), members_of(base), examples_of(base)
    with Fleet(base, head, members, weight_decay=0.1) as fleet:
        together = torch.stack([fleet.step(examples) for _ in range(4)])  # [steps, members]
        adapters = [fleet.adapter(d) for d in range(4)]
    for d, (member, own) in enumerate(zip(members, examples, strict=True)):
        alone, adapter = train_alone(base, head, member, own, 4)
        np.testing.assert_allclose(together[:, d].numpy(), alone, rtol=1e-7)
        assert_equal(adapters[d], adapter, rtol=1e-6, atol=1e-7)


def test_one_member_does_what_peft_does(float64):
    from peft import LoraConfig, get_peft_model

    base = load()
    head, own = head_of(base), examples_of(base)[0]
    member = members_of(base, frozen=False)[0]
    ranks = member.adapter.ranks
    with Fleet(base, head, [member]) as fleet:
        ours = [fleet.step([own]).item() for _ in range(4)]
        adapter = fleet.adapter(0)

    network = load().network
    pattern = {s.name: int(r) for s, r in zip(base.specs, ranks, strict=True) if r}
    model = get_peft_model(
        network,
        LoraConfig(
            target_modules=list(pattern),
            rank_pattern=pattern,
            alpha_pattern={name: member.scale * r for name, r in pattern.items()},
        ),
    )
    layers = {s.name: network.get_submodule(s.name) for s in base.specs}
    for spec, d, u in zip(base.specs, member.adapter.down, member.adapter.up, strict=True):
        if len(d):
            layers[spec.name].lora_A["default"].weight.data.copy_(d)
            layers[spec.name].lora_B["default"].weight.data.copy_(u)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=member.learning_rate, weight_decay=0.0)
    batch = collate(base, own.ids, own.labels)
    theirs = []
    for _ in range(4):
        hidden = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)[0]
        mask = batch.attention_mask[:, :, None].double()
        features = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        loss = F.cross_entropy(F.linear(features, head.weight, head.bias), batch.labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        theirs.append(loss.item())
    np.testing.assert_allclose(ours, theirs, rtol=1e-7)
    for spec, d, u in zip(base.specs, adapter.down, adapter.up, strict=True):
        if len(d):
            weights = [getattr(layers[spec.name], f"lora_{x}")["default"].weight for x in "AB"]
            torch.testing.assert_close(d, weights[0].detach(), rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(u, weights[1].detach(), rtol=1e-6, atol=1e-7)


def test_the_order_of_devices_does_not_matter(float64):
    base = load()
    head, members, examples = head_of(base), members_of(base), examples_of(base)
    found = {}
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        with Fleet(base, head, [members[d] for d in order]) as fleet:
            for _ in range(3):
                loss = fleet.step([examples[d] for d in order])
            for place, d in enumerate(order):
                found.setdefault(d, []).append((loss[place].item(), fleet.adapter(place)))
    for (loss, adapter), (other_loss, other) in found.values():
        assert loss == pytest.approx(other_loss, rel=1e-7)
        assert_equal(adapter, other, rtol=1e-6, atol=1e-7)


def test_memory_bounds_the_rows_of_a_pass_and_changes_no_loss(float64):
    base = load()
    head, members, examples = head_of(base), members_of(base), examples_of(base)
    with Fleet(base, head, members, multiple=32) as fleet:
        (whole,) = fleet.passes(examples)
        per_row = fleet.row_bytes(32)
        expected, right = fleet.evaluate(examples)
    assert len(whole.input_ids) == 16
    with Fleet(base, head, members, multiple=32, memory_bytes=5 * per_row + 1) as fleet:
        passes = fleet.passes(examples)
        assert [len(p.input_ids) for p in passes] == [5, 5, 5, 1]
        assert sum(np.array(p.counts) for p in passes).tolist() == [4, 4, 3, 5]
        assert sorted(torch.cat([p.place for p in passes]).tolist()) == list(range(16))
        loss, also_right = fleet.evaluate(examples)
    # The order of a row's sums may depend on the rows beside it.
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0.0)
    assert also_right.tolist() == right.tolist()


def test_what_a_row_keeps_is_what_autograd_keeps():
    """The stated bytes of many rows, against those that autograd saves in a pass of so many."""
    base = load()
    head, members, examples = head_of(base), members_of(base), examples_of(base)
    kept = {}
    known = {p.untyped_storage().data_ptr() for p in base.network.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with Fleet(base, head, members, multiple=32) as fleet:
        stated = 16 * fleet.row_bytes(32)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            fleet.step(examples)
    activations = sum(n for pointer, (n, _) in kept.items() if pointer not in known)
    assert activations == pytest.approx(stated, rel=0.15)


@pytest.mark.parametrize("is_training", [False, True])
def test_nothing_is_left_of_a_fleet(is_training):
    """It once was: the graph on which its bytes were measured kept its own outputs, for ever."""
    base = load()

    def alive():
        gc.collect()
        return sum(type(o) is Factors for o in gc.get_objects())

    before = alive()
    fleet = Fleet(base, head_of(base), members_of(base))
    with fleet:
        (fleet.step if is_training else fleet.evaluate)(examples_of(base))
    assert alive() > before
    del fleet
    assert alive() == before


def test_padding_is_that_of_the_own_length():
    base = load()
    with Fleet(base, head_of(base), members_of(base)) as fleet:
        for batch in fleet.passes(examples_of(base)):
            lengths = batch.attention_mask.sum(dim=1)
            width = batch.input_ids.shape[1]
            assert width == 32 or ((lengths <= width) & (lengths > width - 8)).all()


def test_evaluation_leaves_everything_as_it_was():
    base = load()
    head, members, examples = head_of(base), members_of(base), examples_of(base)
    with Fleet(base, head, members) as fleet:
        fleet.evaluate(examples)
        for d, member in enumerate(members):
            assert_equal(fleet.adapter(d), member.adapter, rtol=0, atol=0)
        first = fleet.step(examples)
        assert (fleet.step(examples) < first).sum() >= 3  # it learns
    assert all("forward" not in vars(m) for m in base.modules)
    bare = losses(base, head, collate(base, examples[0].ids, examples[0].labels))[0]
    again = losses(load(), head, collate(base, examples[0].ids, examples[0].labels))[0]
    assert torch.equal(bare, again)


def test_frozen_down_factors_stay():
    base = load()
    members = members_of(base)
    with Fleet(base, head_of(base), members, trains_down=False) as fleet:
        fleet.step(examples_of(base))
        for d, member in enumerate(members):
            for p, down in enumerate(member.adapter.down):
                assert torch.equal(fleet.adapter(d).down[p], down)
            assert not torch.equal(
                torch.cat([u.flatten() for u in fleet.adapter(d).up]),
                torch.cat([u.flatten() for u in member.adapter.up]),
            )


def test_bf16_is_fp32_but_for_rounding():
    """Factors and their gradients stay in fp32; the products are in the base's precision."""
    found = {}
    for precision in ("fp32", "bf16"):
        base = load(precision=precision)
        with Fleet(base, head_of(base), members_of(base)) as fleet:
            found[precision] = [fleet.step(examples_of(base)) for _ in range(2)]
            assert all(f.dtype == torch.float32 for f in fleet.adapter(0).down)
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
    with Fleet(base, head_of(base), members_of(base)) as fleet:
        fleet.step(examples_of(base))  # measures its memory
        with Synchronisations() as seen:
            loss = fleet.step(examples_of(base))
        assert seen.found == []
        with seen:
            loss[0].item()
        assert seen.found == ["aten._local_scalar_dense.default"]


def test_an_evaluation_before_the_first_step_measures_the_memory_as_well():
    """It records nothing by itself, and the bound would be none."""
    base = load()
    with Fleet(base, head_of(base), members_of(base), memory_bytes=1 << 16) as fleet:
        fleet.evaluate(examples_of(base))
        after = len(fleet.passes(examples_of(base)))
    with Fleet(base, head_of(base), members_of(base), memory_bytes=1 << 16) as fleet:
        fleet.step(examples_of(base))
        assert len(fleet.passes(examples_of(base))) == after > 1


def test_with_one_width_all_devices_have_as_many_tokens(float64):
    """As on CUDA, where otherwise each device would need products of its own."""
    base = load()
    examples = [Examples(own.ids[:2], own.labels[:2]) for own in examples_of(base)]
    apart = make_passes(base, examples, rows_of=lambda width: 100, multiple=1)
    (one,) = make_passes(base, examples, rows_of=lambda width: 100, multiple=1, is_one_width=True)
    assert len(apart) > 1
    assert one.counts == (2, 2, 2, 2)
    assert one.place.tolist() == list(range(8))
    assert one.input_ids.shape[1] == max(p.input_ids.shape[1] for p in apart)
    losses_of = {
        int(place): float(loss)
        for p in apart
        for place, loss in zip(p.place, row_losses(base, head_of(base), p)[0], strict=True)
    }
    found = row_losses(base, head_of(base), one)[0]
    torch.testing.assert_close(
        found, torch.tensor([losses_of[i] for i in range(8)]), rtol=1e-12, atol=0
    )


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def steps_of(device, count):
    """Losses of a few steps, and of an evaluation after them, of tiny OPT in full precision."""
    config = ModelConfig(name="tiny:opt", task="causal", precision="fp32", device=device)
    base = load_base(config, seed=0)
    with Fleet(base, None, members_of(base)) as fleet:
        found = [fleet.step(examples_of(base)).cpu() for _ in range(count)]
        return torch.stack([*found, fleet.evaluate(examples_of(base))[0].cpu()])


@pytest.mark.gpu
@needs_cuda
def test_a_fleet_on_cuda_does_what_it_does_on_a_cpu(float64):
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
    with pytest.raises(ValueError, match="members must not be empty"):
        Fleet(base, None, [])
    members = members_of(base)
    with pytest.raises(ValueError, match="memory_bytes must be >= 1, got 0"):
        Fleet(base, None, members, memory_bytes=0)
    with (
        Fleet(base, head_of(base), members) as fleet,
        pytest.raises(ValueError, match="examples must be those of 4 members, got 1"),
    ):
        fleet.step(examples_of(base)[:1])
