"""Where a round of `airllm run quick` goes, and how far that is from the matrix products alone.

python -m experiments.bench.bench_round [--config quick] [--set KEY=VALUE ...]

One run in one thread, watched from outside: a stage has what it does itself, without the stages
inside it; seconds are the process's, over the number of rounds. The master is trained once before
round 1 and serves a whole sweep; here its steps are counted into the rounds that they belong to.

Two floors. The products of the base as they were run, padding included, each timed by itself at its
own shape (forward, and the gradient of its input), with the factors' and attention's products left
out. And the operations that true tokens alone need (the base's, the factors', attention's), over
the rate of a product as large as the model's largest. Both rates are measured after the run.

The last table is PyTorch's profile of some of the master's steps, by operator.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import airllm.lora.adapter
import airllm.lora.evaluation
import airllm.lora.sensitivity
import airllm.models.batches
import airllm.models.head
import airllm.models.microbatches
import airllm.models.sources
import cloud.training.lora
import experiments.assembly.workbench
from airllm.lora.flat_factors import FlatFactors
from airllm.lora.multi_lora import MultiLora
from airllm.models.base import BaseModel
from airllm.models.microbatches import Microbatch
from airllm.policies.airllm import AirLlmPolicy
from cloud.training.lora import TrainingConfig
from experiments.assembly.workbench import Workbench, workbench_for
from experiments.bench.bench_multi_lora import matrix_rate
from experiments.bench.stages import Stages, watch_transport
from experiments.config.schema import load_experiment
from experiments.run.recorder import Recorder
from experiments.runtimes.local import run_simulation

_SETUP = ("load data", "load model", "tokenise", "train head", "make policy")
_PROFILED_STEPS = 4


class Passes:
    """What goes through a model, by stage, and what that costs at least."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.shapes: Counter[tuple[str, int, bool]] = Counter()  # (stage, tokens, has a backward)
        self.flops: defaultdict[str, float] = defaultdict(float)
        self.true = self.padded = 0
        self._low = 0  # numbers in the factors that are loaded
        hidden, applied_to = BaseModel.hidden, MultiLora.applied_to

        def counted(base: BaseModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            with stages.stage("forward", is_detail=True):
                result = hidden(base, input_ids, attention_mask)
            self._count(base, attention_mask, result.requires_grad)
            return result

        @contextmanager
        def loaded(lora: MultiLora, batch: Microbatch) -> Iterator[None]:
            runs = zip(lora._runs, lora.base.specs, strict=True)
            self._low = sum(f.down.shape[-2] * s.params_per_rank for own, s in runs for f in own)
            with applied_to(lora, batch):
                yield
            self._low = 0

        BaseModel.hidden = counted  # type: ignore[method-assign, assignment]
        MultiLora.applied_to = loaded  # type: ignore[method-assign, assignment]

    def _count(self, base: BaseModel, mask: Tensor, has_backward: bool) -> None:
        lengths = mask.sum(dim=1).double()
        tokens = int(lengths.sum())
        self.true, self.padded = self.true + tokens, self.padded + mask.numel()
        self.shapes[self.stages.within, mask.numel(), has_backward] += 1
        dense = sum(s.in_features * s.out_features for s in base.specs)
        # Into the first block's q, k and v no gradient goes.
        behind = dense - sum(s.in_features * s.out_features for s in base.specs[:3])
        blocks = len({s.depth for s in base.specs})
        attention = 4.0 * blocks * base.num_features * float(lengths.square().sum())
        flops = 2.0 * tokens * (dense + self._low) + attention
        if has_backward:
            is_trained = self.stages.within == "train master"
            flops += 2.0 * tokens * (behind + self._low * (1 + is_trained)) + 2.0 * attention
        self.flops[self.stages.within] += flops


def products(base: BaseModel, passes: Passes) -> dict[str, float]:
    """Seconds of the base's products at the shapes that were run, by stage."""
    shapes = Counter((s.in_features, s.out_features) for s in base.specs)
    first = Counter((s.in_features, s.out_features) for s in base.specs[:3])
    known: dict[tuple[int, int, int], float] = {}
    found: defaultdict[str, float] = defaultdict(float)

    def seconds(tokens: int, n_in: int, n_out: int, weight: Tensor) -> float:
        if (tokens, n_in, n_out) not in known:
            x = torch.randn(tokens, n_in)
            known[tokens, n_in, n_out] = quickest(lambda: F.linear(x, weight))
        return known[tokens, n_in, n_out]

    with torch.no_grad():
        for (stage, tokens, has_backward), times in passes.shapes.items():
            for (n_in, n_out), count in shapes.items():
                weight = torch.randn(n_out, n_in)
                once = count * seconds(tokens, n_in, n_out, weight)
                if has_backward:
                    back = count - first[n_in, n_out]
                    once += back * seconds(tokens, n_out, n_in, weight.T)
                found[stage] += times * once
    return found


def quickest(work: Callable[[], Any]) -> float:
    """Seconds of the best of some calls."""
    best = np.inf
    for _ in range(7):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return float(best)


def watched() -> tuple[Stages, Passes]:
    """All that a run of remote mode does, by stage."""
    stages = Stages()
    passes = Passes(stages)
    stages.watch(experiments.assembly.workbench, "load_splits", "load data")
    stages.watch(airllm.models.sources, "load_base", "load model")
    stages.watch(airllm.models.batches, "tokenize", "tokenise")
    stages.watch(airllm.models.head, "train_head", "train head")
    stages.watch(cloud.training.lora, "train_lora", "train master")
    stages.watch(airllm.lora.sensitivity, "measure_sensitivity", "probe gains")
    stages.watch(airllm.lora.evaluation, "evaluate_together", "measure on devices")
    stages.watch(Workbench, "whole", "measure the whole master")
    stages.watch(airllm.lora.adapter, "svd_form", "decompose (QR, SVD)")
    stages.watch(airllm.lora.adapter, "accumulate", "add up what is held")
    stages.watch(Workbench, "policy", "make policy")  # and import diffusers
    stages.watch(AirLlmPolicy, "decide", "policy")
    stages.watch(Recorder, "record", "record")
    watch_transport(stages)
    stages.watch(Tensor, "backward", "backward", is_detail=True)
    stages.watch(torch.optim.AdamW, "step", "optimiser", is_detail=True)
    stages.watch(airllm.models.microbatches, "microbatches", "collate", is_detail=True)
    stages.watch(FlatFactors, "__init__", "load factors", is_detail=True)
    return stages, passes


def operators(workbench: Workbench, config: TrainingConfig) -> None:
    """Print PyTorch's profile of some of the master's steps."""
    from dataclasses import replace

    from torch.profiler import ProfilerActivity, profile

    part = replace(config, steps_per_round=_PROFILED_STEPS)
    arguments = (workbench.base, workbench.head, workbench.training_set, part)
    cloud.training.lora.train_lora(*arguments, num_rounds=1, seed=1)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        cloud.training.lora.train_lora(*arguments, num_rounds=1, seed=1)
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    print(f"{'operator, of a step of the master':38s} {'calls':>6s} {'ms':>7s} {'share':>6s}")
    for row in rows[:14]:
        print(f"{row.key[:38]:38s} {row.count / _PROFILED_STEPS:6.0f} "
              f"{row.self_cpu_time_total / 1e3 / _PROFILED_STEPS:7.2f} "
              f"{row.self_cpu_time_total / total:6.1%}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="quick")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    sets = ["runtime.threads=1", "model.precision=fp32", "model.device=cpu", *arguments.sets]
    config = load_experiment(arguments.config, sets)
    torch.set_num_threads(1)
    stages, passes = watched()
    run_simulation(config)
    stages.settle()
    seconds, calls = dict(stages.seconds), Counter(stages.calls)
    workbench = workbench_for(config)
    base, rate = workbench.base, matrix_rate(workbench.base)
    alone = products(base, passes)
    print(
        f"{arguments.config}: {config.num_devices} devices, {config.rounds} rounds, "
        f"{config.model.name}, fp32, {platform.machine()}, one thread, torch "
        f"{torch.__version__}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    setup = {k: v for k, v in seconds.items() if k.partition(":")[0] in _SETUP}
    print("before round 1: " + ", ".join(
        f"{name} {sum(v for k, v in setup.items() if k.partition(':')[0] == name):.1f} s"
        for name in _SETUP))  # fmt: skip
    rounds = {k: v / config.rounds for k, v in seconds.items() if k not in setup}
    total = sum(rounds.values())
    print(
        f"{'of a round':38s} {'calls':>6s} {'s':>8s} {'share':>6s} {'products':>9s} {'floor':>7s}"
    )
    own: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for name, value in rounds.items():
        own[name.partition(":")[0]][name] = value
    for stage, parts in sorted(own.items(), key=lambda row: -sum(row[1].values())):
        spent = sum(parts.values())
        least = f"{'':9s} {'':7s}"
        if stage in alone:
            floor = passes.flops[stage] / rate
            least = f"{alone[stage] / config.rounds:9.3f} {floor / config.rounds:7.3f}"
        print(f"{stage:38s} {calls[stage] / config.rounds:6.1f} {spent:8.3f} "
              f"{spent / total:6.1%} {least}")  # fmt: skip
        for name, value in sorted(parts.items(), key=lambda row: -row[1]):
            if name != stage and value >= 0.002 * total:
                print(f"{'    ' + name.partition(': ')[2]:38s} "
                      f"{calls[name] / config.rounds:6.1f} {value:8.3f}")  # fmt: skip
    in_rounds = [stage for stage in alone if stage not in _SETUP]
    shapes = sum(alone[stage] for stage in in_rounds) / config.rounds
    floor = sum(passes.flops[stage] for stage in in_rounds) / rate / config.rounds
    print(f"{'total':38s} {'':6s} {total:8.3f} {'':6s} {shapes:9.3f} {floor:7.3f}")
    print(
        f"products are {shapes / total:.0%} of the total; the floor, at {rate / 1e9:.0f} GFLOP/s, "
        f"{floor / total:.0%}; padding: {passes.padded / passes.true - 1:.0%} more tokens"
    )
    operators(workbench, config.training)


if __name__ == "__main__":
    main()
