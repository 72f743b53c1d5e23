"""The published scheme's step (arXiv 2507.11515), ours against a plain re-implementation.

python -m experiments.bench.bench_published [--passes 2] [--shape opt-125m]

One step is a decision, PPO's 16 numbers refined by 50 DDIM steps of two network passes each, and a
batch of 32 trained under the ranks decided: P diag(E) Q with dropout and the orthogonality penalty,
on q, k, v, out, fc1 and fc2 of every block, by AdamW in fp32. The model has OPT-125M's shape (72
projections) and random weights, on which speed does not depend; texts are 8 to 40 random tokens.
Ours is policy `paper` and `cloud.training.masked.MaskedTrainer` with the settings of
`configs/paper.toml`.

The plain one is written here: a module around each linear layer, x Q^T at r_max times the mask
times P^T; shuffled batches padded to their longest text; transformers' default attention. All of
it starts from ours' weights: decisions must be the same ranks, and first losses the same. Base
models are in eval mode. One thread, the process's seconds; contenders take turns, ratios are of
neighbours (of a pass over the data, where batches differ).
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from airllm.models.base import BaseModel, ModelConfig
from airllm.models.batches import Examples
from airllm.models.head import Head
from airllm.models.losses import mean_loss
from airllm.models.microbatches import whole
from airllm.models.tiny import byte_tokenizer
from airllm.policies.observation import RoundObservation
from airllm.policies.paper import PaperPolicy
from airllm.policies.registry import PolicyConfig, make_policy
from cloud.training.lora import TrainingConfig
from cloud.training.masked import MaskedTrainer
from experiments.bench.bench_decide import observation
from experiments.config.schema import load_experiment

_BATCHES, _CLASSES = 4, 2  # batches of a pass over the data
_DECISIONS, _REPEATS = 10, 7
_KINDS = ["k", "v", "q", "out", "fc1", "fc2"]


class MaskedLinear(nn.Module):
    """W x + s P (mask * E * (Q x)), at the largest rank."""

    def __init__(self, inner: nn.Linear, q: Tensor, p: Tensor, e: Tensor, scale: float) -> None:
        super().__init__()
        self.inner, self.scale, self.dropout = inner, scale, nn.Dropout(0.1)
        self.q, self.p, self.e = nn.Parameter(q), nn.Parameter(p), nn.Parameter(e)
        self.register_buffer("mask", torch.ones(len(e)))

    def forward(self, x: Tensor) -> Tensor:
        kept = self.e * self.get_buffer("mask")  # [r_max]
        low = (self.dropout(x) @ self.q.T) * kept  # [batch, tokens, r_max]
        return self.inner(x) + (low @ self.p.T) * self.scale

    def penalty(self) -> Tensor:
        eye = torch.eye(len(self.e))
        return torch.linalg.matrix_norm(self.q @ self.q.T - eye) + torch.linalg.matrix_norm(
            self.p.T @ self.p - eye
        )


class PlainTrainer:
    """The scheme's training loop."""

    def __init__(
        self, network: Any, names: list[str], ours: MaskedTrainer, head: Head, data: Examples
    ) -> None:
        self.network, self.head, self.data = network, head, data
        config = self.config = ours.config
        scale, self.layers = config.lora_alpha / config.r_max, []
        factors = zip(ours.down, ours.up, ours.weight, strict=True)
        for name, own in zip(names, factors, strict=True):
            parent, _, child = name.rpartition(".")
            q, p, e = (t.detach()[0].clone() for t in own)
            layer = MaskedLinear(network.get_submodule(name), q, p, e, scale)
            layer.dropout.p = config.dropout
            setattr(network.get_submodule(parent), child, layer)
            self.layers.append(layer)
        parameters = [f for layer in self.layers for f in (layer.q, layer.p, layer.e)]
        self.optimiser = torch.optim.AdamW(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )

    def loss(self, index: np.ndarray) -> Tensor:
        ids = [self.data.ids[i] for i in index]
        width = max(map(len, ids))
        input_ids, mask = (
            torch.ones(len(ids), width, dtype=torch.long),
            torch.zeros(len(ids), width),
        )
        for i, row in enumerate(ids):
            input_ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
        hidden = self.network(input_ids=input_ids, attention_mask=mask).last_hidden_state
        features = hidden[torch.arange(len(ids)), mask.sum(dim=1).long() - 1]
        target = torch.tensor([self.data.labels[i] for i in index])
        return F.cross_entropy(F.linear(features, self.head.weight, self.head.bias), target)

    def step(self, index: np.ndarray, ranks: np.ndarray) -> None:
        for layer, rank in zip(self.layers, ranks, strict=True):
            layer.mask = (torch.arange(self.config.r_max) < int(rank)).float()
            layer.dropout.train()
        penalty = torch.stack([layer.penalty() for layer in self.layers]).sum()
        weight = self.config.orthogonality / (2 * len(self.layers))
        loss = self.loss(index) + weight * penalty
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


class PlainPolicy:
    """The scheme's decision, from the weights of ours."""

    def __init__(self, ours: PaperPolicy) -> None:
        self.ours, self.config = ours, ours.config
        self.actor = copy.deepcopy(ours.ppo.model.actor)
        self.critic = copy.deepcopy(ours.ppo.model.critic)
        self.log_std = ours.ppo.model.log_std.detach().clone()
        self.enter = copy.deepcopy(ours.denoiser.enter)
        self.blocks = copy.deepcopy(ours.denoiser.blocks)
        self.leave = copy.deepcopy(ours.denoiser.leave)
        beta = torch.linspace(1e-4**0.5, 2e-2**0.5, self.config.train_steps).square()
        self.alpha = torch.cumprod(1.0 - beta, dim=0)
        self.noise, self.generator = torch.Generator(), torch.Generator()

    def denoise(self, x: Tensor, step: int, condition: Tensor) -> Tensor:
        angle = step * 10_000.0 ** -(torch.arange(16) / 16)
        h = self.enter(torch.cat([x, condition, angle.sin()[None], angle.cos()[None]], dim=1))
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h)

    @torch.no_grad()
    def decide(self, seen: RoundObservation) -> np.ndarray:
        own = [seen.snr_db, seen.bandwidth_hz, seen.entropy, seen.oov_rate]
        state = np.concatenate([np.stack(own, axis=1), seen.previous_ranks / seen.r_max], axis=1)
        rows = torch.as_tensor(self.ours.ppo.norm(state), dtype=torch.float32)
        mean = self.actor(rows)
        noise = torch.randn(mean.shape, generator=self.generator)
        action = mean + noise * self.log_std.exp()
        self.critic(rows)
        z = (action - mean) / self.log_std.exp()
        (-0.5 * z**2 - self.log_std - 0.5 * math.log(2.0 * math.pi)).sum(dim=1)
        coarse = action.tanh()
        x = torch.randn(len(rows), seen.num_projections, generator=self.noise)
        stride = self.config.train_steps // self.config.sampling_steps
        for step in range(self.config.train_steps - 1, -1, -stride):
            blank = self.denoise(x, step, torch.zeros_like(coarse))
            epsilon = self.denoise(x, step, coarse)
            epsilon = blank + self.config.guidance * (epsilon - blank)
            a = self.alpha[step]
            before = self.alpha[step - stride] if step >= stride else torch.ones(())
            x0 = ((x - (1.0 - a).sqrt() * epsilon) / a.sqrt()).clamp(-1.0, 1.0)
            x = before.sqrt() * x0 + (1.0 - before).sqrt() * epsilon
        low, high = self.ours.r_min, seen.r_max
        return np.floor(low + (x.double().numpy() + 1.0) / 2.0 * (high - low)).astype(np.int64)


def timed(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def show(name: str, ours: np.ndarray, plain: np.ndarray, note: str = "") -> None:
    ratio = plain / ours
    print(f"{name:38s} {np.median(ours):9.4f} {np.median(plain):9.4f} {np.median(ratio):6.2f} "
          f"{f'({ratio.min():.2f}, {ratio.max():.2f})':>14s}  {note}", flush=True)  # fmt: skip


def decisions(layers: int, width: int, policy: PolicyConfig) -> None:
    """Of one device."""
    params = (2 * width,) * 4 + (5 * width,) * 2
    seen = observation(1, layers, params, has_fixed_charge=False)
    parts: dict[str, Any] = {
        "num_projections": 6 * layers, "depths": np.arange(layers).repeat(6).tolist(),
        "kinds": _KINDS * layers, "r_max": seen.r_max, "seed": 0,
    }  # fmt: skip
    ours = make_policy(policy, **parts)
    assert isinstance(ours, PaperPolicy)
    with torch.no_grad():  # fresh networks answer 0, and their decisions would show nothing
        fresh_layers: list[Any] = [ours.denoiser.leave, ours.ppo.model.actor[-1]]
        for layer in fresh_layers:
            layer.weight.normal_(std=0.05)
    plain, fresh = PlainPolicy(ours), make_policy(PolicyConfig(), **parts)
    for _ in range(3):
        plain.noise.set_state(ours._generator.get_state())
        plain.generator.set_state(ours.ppo.generator.get_state())
        np.testing.assert_array_equal(ours.decide(seen), plain.decide(seen))
    rows = []
    for _ in range(_REPEATS):
        rows.append(
            [timed(lambda p=p: [p.decide(seen) for _ in range(_DECISIONS)]) / _DECISIONS  # type: ignore
             for p in (ours, plain, fresh)]
        )  # fmt: skip
    times = np.array(rows).T
    show(
        f"decision, {6 * layers} projections: paper", times[0], times[1], "50 sampling steps, both"
    )
    show(
        f"decision, {6 * layers} projections: airllm", times[2], times[1], "10 sampling steps, ours"
    )


def training(shape: str, config: TrainingConfig, num_passes: int) -> None:
    """Steps on the same batches and on each one's own."""
    from transformers import OPTConfig, OPTModel

    rng = np.random.default_rng(0)
    # Its defaults are OPT-125M's.
    opt: Any = OPTConfig()
    if shape == "tiny":
        opt = OPTConfig(hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
                        word_embed_proj_dim=32)  # fmt: skip
    torch.manual_seed(0)
    network = OPTModel(opt)
    other = copy.deepcopy(network).eval().requires_grad_(False)
    network.set_attn_implementation("eager")  # as `load_base` has it on a CPU
    base = BaseModel(
        ModelConfig(name=shape, pooling="last", max_length=128, precision="fp32", device="cpu"),
        network,
        byte_tokenizer(),
    )
    count = _BATCHES * config.batch_size
    ids = [rng.integers(4, opt.vocab_size, n).tolist() for n in rng.integers(8, 41, count)]
    data = Examples(ids, rng.integers(0, _CLASSES, count).tolist())
    head = Head(0.1 * torch.randn(_CLASSES, base.num_features), torch.zeros(_CLASSES))
    total = num_passes * _BATCHES
    ours = MaskedTrainer(base, head, data, config, num_rounds=total + 1, seed=0)
    plain = PlainTrainer(other, [s.name for s in base.specs], ours, head, data)
    with torch.no_grad():
        index = ours._stepper.sampler.indices(0)
        mine = float(mean_loss(base, head, whole(base, data.take(index))))
        gap = abs(mine / float(plain.loss(index)) - 1.0)
    ranks = rng.integers(1, config.r_max + 1, (total, 1, len(base.specs)))
    rows = []  # of ours, plain on the same batches, plain on shuffled ones
    tokens = np.zeros((2, total))
    for n in (0, *range(total)):  # the first step warms up
        ours._stepper.step_index = n
        same = ours._stepper.sampler.indices(n)
        if n % _BATCHES == 0:
            order = rng.permutation(count).reshape(_BATCHES, -1)
        shuffled = order[n % _BATCHES]
        tokens[0, n] = whole(base, data.take(same)).input_ids.numel()
        tokens[1, n] = len(shuffled) * max(len(ids[i]) for i in shuffled)
        work = [
            lambda r=ranks[n]: ours.after(0, r),
            lambda i=same, r=ranks[n]: plain.step(i, r[0]),
            lambda i=shuffled, r=ranks[n]: plain.step(i, r[0]),
        ]
        row = np.zeros(3)
        for which in np.roll(np.arange(3), n):
            row[which] = timed(work[which])  # type: ignore[arg-type]
        rows.append(row)
        print(f"step {len(rows)} of {total + 1}: {row.round(2)}", file=sys.stderr, flush=True)
    times = np.array(rows[1:]).T
    passes = times.reshape(3, num_passes, _BATCHES).mean(axis=2)
    kept = f"of {sum(map(len, ids)) / _BATCHES:.0f}"
    show(f"training step, {len(base.specs)} projections, same batches", times[0], times[1],
         f"first losses differ by {gap:.0e}")  # fmt: skip
    show("training step, each its own batches", passes[0], passes[2],
         f"padded tokens {tokens[0].mean():.0f} (ours), {tokens[1].mean():.0f} {kept}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=2, help="over the data")
    parser.add_argument("--shape", choices=("opt-125m", "tiny"), default="opt-125m")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_experiment("paper")
    policy = replace(config.policy, is_exploring=True)
    batch, r_max = config.training.batch_size, config.training.r_max
    print(f"{arguments.shape}'s shape, fp32, {platform.machine()}, one thread, torch "
          f"{torch.__version__}; batch {batch}, r_max {r_max}; "
          f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")  # fmt: skip
    print(f"{'':38s} {'ours, s':>9s} {'plain, s':>9s} {'ratio':>6s} {'(least, most)':>14s}")
    decisions(12, 768, policy)
    decisions(24, 2048, policy)
    training(arguments.shape, config.training, arguments.passes)


if __name__ == "__main__":
    main()
