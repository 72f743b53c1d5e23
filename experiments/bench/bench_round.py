"""Where the time of a run goes, and how far that is from the matrix products alone.

python -m experiments.bench.bench_round [--config quick] [--set KEY=VALUE ...]

One run in one thread under Python's profiler; seconds are the process's. The floor is the floating
point operations of the base's projections on true tokens (2 for each weight and token forward, 2 of
them backward), over the rate of a product as large as the largest one, measured before and after.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import platform
import pstats
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from airllm.models import BaseModel
from experiments.bench.bench_fleet import matrix_rate
from experiments.build import workbench_for
from experiments.config import PRESETS, ExperimentConfig
from experiments.config_loader import load_config
from experiments.paths import find_config
from experiments.run import run_simulation

# By file and function; what one of them calls for another one counts as its own.
STAGES = {
    "load the base model": ("models.py", "load_base"),
    "train the head": ("tuning.py", "train_head"),
    "train the master": ("trainer.py", "train_lora"),
    "train on devices": ("local.py", "train_local"),
    "probe updates": ("probe.py", "probe"),
    "evaluate": ("tuning.py", "evaluate"),
    "decompose adapters": ("lora.py", "svd_form"),
}

CALLERS = (("local.py", "_split"),)  # of stages, inside stages


class Tokens:
    """Counts what goes through a model, with and without a backward pass."""

    def __init__(self, base: BaseModel) -> None:
        self.true, self.padded = np.zeros(2), np.zeros(2)
        hidden = base.hidden

        def counted(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            result = hidden(input_ids, attention_mask)
            self.true[int(result.requires_grad)] += int(attention_mask.sum())
            self.padded[int(result.requires_grad)] += input_ids.numel()
            return result

        base.hidden = counted  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="quick")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    sets = ["runtime.threads=1", *arguments.sets]
    config = load_config(ExperimentConfig, find_config(arguments.config), sets, presets=PRESETS)
    profile = cProfile.Profile()
    started = time.process_time()
    profile.enable()
    base = workbench_for(config).base
    tokens = Tokens(base)
    before = matrix_rate(base)
    run_simulation(config)
    profile.disable()
    total = time.process_time() - started
    rate = (before + matrix_rate(base)) / 2
    found = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    dense = sum(s.in_features * s.out_features for s in base.specs)
    floor = dense * (2.0 * tokens.true[0] + 4.0 * tokens.true[1]) / rate
    print(f"{arguments.config} {' '.join(arguments.sets)}: {config.num_devices} devices, "
          f"{config.rounds} rounds, {config.model.name}, {base.precision}, "
          f"{platform.machine()}, one thread, torch {torch.__version__}")  # fmt: skip
    print(f"{'stage':22s} {'calls':>6s} {'s':>8s} {'share':>6s}")
    rest, wall = total, sum(row[2] for row in found.values())
    for name, (file, function) in STAGES.items():
        rows = [row for (path, _, who), row in found.items()
                if who == function and path.endswith("/" + file)]  # fmt: skip
        # The profiler's clock is the wall's: its shares are of what the process had.
        inside = sum(call[3] for row in rows for (path, _, who), call in row[4].items()
                     if any(path.endswith("/" + f) and who == g for f, g in CALLERS))  # fmt: skip
        seconds = (sum(row[3] for row in rows) - inside) / wall * total
        rest -= seconds
        if rows:
            calls = sum(row[1] for row in rows)
            print(f"{name:22s} {calls:6d} {seconds:8.2f} {seconds / total:6.1%}")
    print(f"{'all else':22s} {'':6s} {rest:8.2f} {rest / total:6.1%}")
    print(f"{'total':22s} {'':6s} {total:8.2f}")
    print(f"floor {floor:.1f} s at {rate / 1e9:.0f} GFLOP/s: {floor / total:.0%} of the total; "
          f"padding: {tokens.padded.sum() / tokens.true.sum() - 1:.0%} more tokens")  # fmt: skip


if __name__ == "__main__":
    main()
