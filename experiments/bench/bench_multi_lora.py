"""Many devices' adapters in the same passes, against a loop over their PeftModels.

python -m experiments.bench.bench_multi_lora [--pairs 7] [--model opt-1.3b] [--precision bf16]
                                              [--loop-precision fp32] [--deterministic]

Both do the same work: a step of AdamW, or an evaluation, of each device on a batch of its own, with
ranks drawn from 0..16 for every device and projection. The loop is what PEFT's users write: one
PeftModel a device (here all on one base's weights), batches padded to their longest text, attention
by PyTorch's fused kernel. On a CPU one thread computes, and time is the process's; on CUDA time is
the clock's. Runs alternate; ratios are of neighbours.

`--model opt-1.3b` has that model's shape and random weights, on which speed does not depend, and
texts of 16 to 128 random tokens.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from airllm.lora.adapter import Adapter
from airllm.lora.multi_lora import MultiLora
from airllm.models.base import BaseModel, ModelConfig, Precision
from airllm.models.batches import Examples, tokenize
from airllm.models.head import Head
from airllm.models.sources import load_base
from airllm.models.tiny import byte_tokenizer
from experiments.assembly.threads import use_determinism

# A rate at which losses on random weights do not fall to zero, where nothing can be compared.
_DEVICES, _BATCH, _MAX_RANK, _CLASSES, _RATE = 16, 4, 16, 6, 1e-4


def texts_of(model: str, rng: np.random.Generator) -> list[list[int]]:
    """Tokens: of sentences of the embedded data, or drawn at random."""
    count = _DEVICES * _BATCH
    if model == "opt-1.3b":
        return [rng.integers(4, 50000, n).tolist() for n in rng.integers(16, 129, count)]
    from airllm.data.datasets import DataConfig, load_splits

    texts = load_splits(DataConfig(), seed=0).train.texts
    pick = rng.permutation(len(texts))[:count]
    return tokenize(load(model, "fp32"), [texts[i] for i in pick])


def load(model: str, precision: Precision) -> BaseModel:
    """The default model, or one of OPT-1.3B's shape; the same weights every time."""
    if model == "minilm":
        return load_base(ModelConfig(name="minilm", precision=precision))
    from transformers import OPTConfig, OPTModel

    shape: Any = OPTConfig(
        hidden_size=2048, ffn_dim=8192, num_hidden_layers=24, num_attention_heads=32,
        word_embed_proj_dim=2048, vocab_size=50272,
    )  # fmt: skip
    config = ModelConfig(name="opt-1.3b", pooling="last", max_length=128, precision=precision)
    torch.manual_seed(0)
    return BaseModel(config, OPTModel(shape), byte_tokenizer())


class Peft:
    """One device of the loop."""

    def __init__(self, base: BaseModel, head: Head, ranks: np.ndarray, own: Examples) -> None:
        from peft import LoraConfig, get_peft_model

        shared: dict[int, Any] = {id(p): p for p in base.network.parameters()}
        network: Any = copy.deepcopy(base.network, shared)
        network.set_attn_implementation("sdpa")
        pattern = {s.name: int(r) for s, r in zip(base.specs, ranks, strict=True) if r}
        config = LoraConfig(
            target_modules=list(pattern), rank_pattern=pattern, alpha_pattern=dict(pattern)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # In eval mode: the base's own dropout would make it other work.
            self.model: Any = get_peft_model(network, config).eval()
        self.base, self.head, self.own = base, head, own
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=_RATE, weight_decay=0.0)

    def adapter(self) -> Adapter:
        """As it is now; B is zero at first."""
        down, up = [], []
        for spec in self.base.specs:
            layer = self.model.base_model.model.get_submodule(spec.name)
            if hasattr(layer, "lora_A"):
                down.append(layer.lora_A["default"].weight.detach().float().cpu().clone())
                up.append(layer.lora_B["default"].weight.detach().float().cpu().clone())
            else:
                down.append(torch.zeros(0, spec.in_features))
                up.append(torch.zeros(spec.out_features, 0))
        return Adapter(tuple(down), tuple(up))

    def loss(self) -> Tensor:
        ids, device = self.own.ids, self.base.device
        width = max(map(len, ids))
        input_ids = torch.full((len(ids), width), self.base.pad_id)
        mask = torch.zeros(len(ids), width, dtype=torch.long)
        for i, row in enumerate(ids):
            input_ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        input_ids, mask = input_ids.to(device), mask.to(device)
        target = torch.tensor(self.own.labels, device=device)
        with self.base.arithmetic():
            hidden = self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state.float()
        if self.base.config.pooling == "last":
            features = hidden[torch.arange(len(ids), device=device), mask.sum(dim=1) - 1]
        else:
            features = (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return F.cross_entropy(F.linear(features, self.head.weight, self.head.bias), target)

    def step(self) -> float:
        loss = self.loss()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(self) -> float:
        return self.loss().item()


def timed(work: Callable[[], Any], is_cuda: bool) -> float:
    """Seconds of one call."""
    clock = time.perf_counter if is_cuda else time.process_time
    if is_cuda:
        torch.cuda.synchronize()
    started = clock()
    work()
    if is_cuda:
        torch.cuda.synchronize()
    return clock() - started


def matrix_rate(base: BaseModel) -> float:
    """FLOP/s of the best of a few products as large as a pass's largest."""
    wide = max(base.specs, key=lambda s: s.params_per_rank)
    weight = torch.randn(wide.out_features, wide.in_features, device=base.device)
    rows = 8192 if base.device.type == "cuda" else 1024
    x = torch.randn(rows, wide.in_features, device=base.device)
    if base.precision == "bf16":
        weight, x = weight.bfloat16(), x.bfloat16()
    F.linear(x, weight)
    best = min(timed(lambda: F.linear(x, weight), base.device.type == "cuda") for _ in range(20))
    return 2.0 * len(x) * weight.numel() / best


def step_flops(base: BaseModel, ranks: np.ndarray, tokens: np.ndarray) -> float:
    """Least of a step: forward, and backward to the inputs, through base and updates, tokens only.

    Attention's own products, 2 % at these lengths, are left out.
    """
    dense = sum(s.in_features * s.out_features for s in base.specs)
    first = sum(s.in_features * s.out_features for s in base.specs[:3])  # no gradient below
    low = ranks @ np.array([s.params_per_rank for s in base.specs])  # [devices]
    return float((tokens * (4.0 * dense - 2.0 * first + 6.0 * low)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7, help="runs of each, in turns")
    parser.add_argument("--model", choices=("minilm", "opt-1.3b"), default="minilm")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument(
        "--loop-precision", choices=("fp32", "bf16"), help="default: ours; fp32 on a CPU"
    )
    parser.add_argument("--deterministic", action="store_true", help="CUDA: the same bits always")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.deterministic:
        use_determinism()
    rng = np.random.default_rng(0)
    ids = texts_of(arguments.model, rng)
    base = load(arguments.model, arguments.precision)
    is_cuda = base.device.type == "cuda"
    precision: Any = arguments.loop_precision or (base.precision if is_cuda else "fp32")
    loop_base = base if precision == base.precision else load(arguments.model, precision)
    labels = rng.integers(0, _CLASSES, len(ids)).tolist()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(_CLASSES, base.num_features, generator=generator) / 10
    head = Head(weight, torch.zeros(_CLASSES)).to(base.device)
    ranks = rng.integers(0, _MAX_RANK + 1, (_DEVICES, len(base.specs)))
    examples = [
        Examples(ids[i : i + _BATCH], labels[i : i + _BATCH]) for i in range(0, len(ids), _BATCH)
    ]
    loop = [Peft(loop_base, head, r, own) for r, own in zip(ranks, examples, strict=True)]
    lora = MultiLora(base, head, trained=[peft.adapter() for peft in loop])
    optimiser = torch.optim.AdamW([lora.values], lr=_RATE, weight_decay=0.0, fused=True)

    def step() -> Tensor:
        loss = lora.backward(lora.microbatches(examples))
        optimiser.step()
        return loss

    where = torch.cuda.get_device_name() if is_cuda else f"{platform.machine()}, one thread"
    how = ", deterministic" if arguments.deterministic else ""
    print(
        f"{arguments.model}, together {base.precision}{how}, loop {precision}, {where}, torch "
        f"{torch.__version__}; {_DEVICES} devices x {_BATCH} texts, ranks 0..{_MAX_RANK}; medians "
        f"of {arguments.pairs}"
    )
    work: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "evaluation": (
            lambda: np.array([peft.evaluate() for peft in loop]),
            lambda: lora.evaluate(lora.microbatches(examples))[0].cpu().numpy(),
        ),
        "training step": (
            lambda: np.array([peft.step() for peft in loop]),
            lambda: step().cpu().numpy(),
        ),
    }
    tokens = {"true": sum(map(len, ids))}
    tokens["loop"] = sum(len(e.ids) * max(map(len, e.ids)) for e in examples)
    tokens["together"] = sum(b.input_ids.numel() for b in lora.microbatches(examples))
    own = np.array([sum(map(len, e.ids)) for e in examples])
    print(
        f"tokens: {tokens['true']}, padded {tokens['loop']} (loop), {tokens['together']} (together)"
    )
    print(f"{'':14s} {'loop, s':>9s} {'together, s':>11s} {'ratio':>6s} {'(least, most)':>14s} "
          f"{'losses differ by':>17s} {'share of matrix rate':>21s}")  # fmt: skip
    for name, (theirs, ours) in work.items():
        # The first run of both warms up, and shows that they do the same.
        slow_loss, fast_loss = theirs(), ours()
        gap = float(np.max(np.abs(slow_loss - fast_loss)) / np.max(np.abs(slow_loss)))
        pairs = []
        for _ in range(arguments.pairs):
            pairs.append((timed(theirs, is_cuda), timed(ours, is_cuda), matrix_rate(base)))
        slow, fast, rate = np.array(pairs).T
        share = ""
        if name == "training step":
            share = f"{np.median(step_flops(base, ranks, own) / (fast * rate)):.0%}"
        ratio = slow / fast
        print(f"{name:14s} {np.median(slow):9.3f} {np.median(fast):11.3f} "
              f"{np.median(ratio):6.2f} {f'({ratio.min():.2f}, {ratio.max():.2f})':>14s} "
              f"{gap:17.1e} {share:>21s}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
