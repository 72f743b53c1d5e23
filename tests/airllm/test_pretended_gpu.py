"""What a GPU is to run, on tensors that say they are on CUDA: all but its numbers are checked.

A pretended card takes CUDA's place in a process of its own. Its tensors lie on the CPU, but only
`.to` and `.cpu` take one there or back: whatever mixes the two, or draws from the other one's
generator, raises, as do the operations that deterministic CUDA refuses.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

RUNS: dict[str, tuple[str, ...]] = {
    # First, as what cuBLAS is told counts for a whole process.
    "by any algorithms": ("policy.name=uniform", "runtime.deterministic=false"),
    "airllm": ("policy.name=airllm", "training.dropout=0.1"),
    "paper": ("policy.name=paper", "training.dropout=0.1", "runtime.checkpoint_s=0"),
    "adalora": ("policy.name=adalora",),
    "forward": ("policy.name=forward", "rounds=1", "training.r_max=1", "num_devices=1"),
    "causal": ("policy.name=airllm", "model.task=causal", "model.name=tiny:opt"),
    "federated": ("mode=federated",),
    "stacked": ("mode=federated", "runtime.stacked=true"),
    "stacked causal": (
        "mode=federated", "runtime.stacked=true", "model.task=causal", "model.name=tiny:llama",
    ),
}  # fmt: skip
aten = torch.ops.aten
CROSSING = (aten._to_copy.default, aten.copy_.default)
REFUSED = (aten.kthvalue.default, aten.median.dim, aten.put_.default, aten.histc.default)
WAITING = (aten._local_scalar_dense.default, aten.nonzero.default)
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real card")
waits: Counter[str] = Counter()
first_product: list[str | None] = []
is_seed_on_card: dict[int, bool] = {}


class OnCard(torch.Tensor):
    """A tensor whose device is the card and whose numbers are in ``inner``, on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnCard:
        made: OnCard = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device="cuda:0",
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, **values: Any) -> str:
        return f"OnCard({self.inner})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Card(TorchDispatchMode):
    """Inside it there is a card: what makes a tensor there comes by here."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Generator(torch._C.Generator):
    """One whose seed tells where it is said to be: operations are shown another object."""

    is_on_card: bool

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        made: Generator = super().__new__(cls, device="cpu")
        made.is_on_card = torch.device(device).type == "cuda"
        return made

    def manual_seed(self, seed: int) -> Generator:
        is_seed_on_card[seed] = self.is_on_card
        super().manual_seed(seed)
        return self


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation's result, on the card if its inputs are; raises where CUDA would."""
    leaves = tree_leaves((args, kwargs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    is_on = [isinstance(x, OnCard) for x in tensors]
    is_there = is_result_there = any(is_on)
    if func is aten.is_pinned.default:
        return False
    if func is aten._pin_memory.default:
        return args[0].clone()
    if kwargs.get("device") is not None:
        is_result_there = torch.device(kwargs["device"]).type == "cuda"
        kwargs = kwargs | {"device": torch.device("cpu")}
    elif func is aten.copy_.default:
        is_result_there = is_on[0]
    if is_there and func not in CROSSING:
        # A number alone may come from the host.
        if any(x.dim() for x, on in zip(tensors, is_on, strict=True) if not on):
            raise RuntimeError(f"{func} mixes tensors of the card and of the CPU")
        waits[str(func)] += func in WAITING
        check_determinism(func, tensors)
    for x in leaves:
        if not isinstance(x, torch._C.Generator):
            continue
        if is_seed_on_card.get(x.initial_seed(), False) != is_result_there:
            raise RuntimeError(f"{func} draws from a generator of another device")
    inner = tree_map_only(OnCard, lambda x: x.inner, (args, kwargs))
    result = func(*inner[0], **inner[1])
    if not is_result_there:
        return result
    if func is aten.copy_.default:
        return args[0]
    given = tree_map_only(torch.Tensor, OnCard, result)
    return return_and_correct_aliasing(func, args, kwargs, given) if is_there else given


def check_determinism(func: Any, tensors: list[torch.Tensor]) -> None:
    """Raise what CUDA raises when it is asked to be deterministic."""
    if func in PRODUCTS and not first_product:
        # cuBLAS is asked once in a process, at its first product.
        first_product.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
    if not torch.are_deterministic_algorithms_enabled():
        return
    is_sum = func is aten.cumsum.default and tensors[0].is_floating_point()
    if func in REFUSED or is_sum:
        raise RuntimeError(f"{func} has no deterministic implementation on CUDA")
    if func in PRODUCTS and first_product[0] not in (":4096:8", ":16:8"):
        raise RuntimeError("CUBLAS_WORKSPACE_CONFIG was not set before the first product")


def insert_card() -> None:
    """Let this process take "cuda" for the card, until it ends."""
    torch._C._rename_privateuse1_backend("Cuda")  # which torch will know as cuda
    parts = backend_registration._DummyPrivateUse1Hook(), backend_registration._DummyDeviceGuard()
    torch._C._acc.register_python_privateuseone_hook(parts[0])
    torch._C._acc.register_python_privateuseone_device_guard(parts[1])
    insert_card.parts = parts  # type: ignore[attr-defined]  # torch holds no reference
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.cuda._lazy_init = lambda: None
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(total_memory=1 << 34)
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]
    torch.Generator = Generator  # type: ignore[misc]
    make = torch.tensor

    def tensor(data: Any, *, device: Any = None, requires_grad: bool = False, **given: Any) -> Any:
        # torch.tensor() itself copies where no mode sees it.
        return make(data, **given).to(device or "cpu").requires_grad_(requires_grad)

    torch.tensor = tensor


def simulate(settings: list[str], out: Path) -> dict[str, float]:
    """A run's summary; where it leaves checkpoints, it is stopped after a round and resumed."""
    from experiments.config.schema import load_experiment
    from experiments.runtimes.local import run_simulation

    config = load_experiment(sets=settings)
    is_resuming = config.runtime.checkpoint_s == 0
    if is_resuming:

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            run_simulation(config, out, on_round=stop)
    found = run_simulation(config, out, is_resuming=is_resuming)
    return {key: found[key] for key in ("loss", "mean_loss", "accuracy", "head_loss", "full_loss")}


def waits_of_a_step() -> int:
    """How often the host waits for the card in a step of several devices after the first."""
    from airllm.lora.local_update import initial_factors
    from airllm.lora.multi_lora import MultiLora
    from airllm.models.base import ModelConfig
    from airllm.models.batches import Examples
    from airllm.models.sources import load_base

    base = load_base(ModelConfig(name="tiny:opt", task="causal", precision="fp32"), seed=0)
    lora = MultiLora(base, None, trained=[initial_factors(base.specs, 2, d) for d in range(3)])
    optimiser = torch.optim.AdamW([lora.values], fused=True)
    examples = [Examples([[5, 6, 7, 8][: 2 + d]] * 2, [0, 0]) for d in range(3)]
    for _ in range(2):
        waits.clear()
        lora.backward(lora.microbatches(examples))
        optimiser.step()
    return sum(waits.values())


def main() -> None:
    """Runs by their settings, from the input, on the CPU and on the card."""
    insert_card()
    # The card multiplies in another order: in fp32, training would make other numbers of that.
    torch.set_default_dtype(torch.float64)
    found: dict[str, Any] = {}
    for name, settings in json.load(sys.stdin).items():
        on_cpu = simulate([*settings, "model.device=cpu"], Path(f"{name} on the CPU"))
        with Card():
            found[name] = on_cpu, simulate([*settings, "model.device=cuda"], Path(name))
    with Card():
        found["waits"] = waits_of_a_step()
    print(json.dumps(found))


@pytest.fixture(scope="module")
def found(folder: Path, small: tuple[str, ...]) -> dict[str, Any]:
    shared = [
        *small, "runtime.deterministic=true", "examples_per_device=4", "federated.local_steps=2",
        "training.head_examples=16", "training.head_steps=2", "training.gain_examples=4",
        "training.batch_size=4", "policy.ddim.sampling_steps=2", "policy.ddim.hidden=8",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps({name: [*shared, *settings] for name, settings in RUNS.items()}),
        cwd=folder, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_has_all_its_tensors_where_they_belong(found: dict[str, Any], name: str) -> None:
    on_cpu, on_card = found[name]
    assert on_card == pytest.approx(on_cpu, rel=1e-6)


def test_a_step_waits_for_the_card_only_where_transformers_does(
    found: dict[str, Any],
) -> None:
    # Whether any token is masked: asked twice for a causal model.
    assert found["waits"] == 2


if __name__ == "__main__":
    main()
