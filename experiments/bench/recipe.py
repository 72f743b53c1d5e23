"""How far the whole adapter lies above the preloaded head on the default task, over seeds.

python -m experiments.bench.recipe [--config quick] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from airllm.lora import Adapter, svd_form
from airllm.tuning import bucket, evaluate, tokenize
from experiments.build import workbench_for
from experiments.config import PRESETS, ExperimentConfig
from experiments.config_loader import load_config
from experiments.paths import find_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    config = load_config(ExperimentConfig, find_config(arguments.config), presets=PRESETS)
    print("| seed | examples | head | whole adapter | gain | cut to rank 1 | master, s |")
    print("|---|---|---|---|---|---|---|")
    for seed in arguments.seeds:
        bench = workbench_for(replace(config, seed=seed))
        base, head, held_out = bench.base, bench.head, bench.splits.evaluation
        batches = bucket(base, tokenize(base, held_out.texts), held_out.labels.tolist(), 64)
        started = time.perf_counter()
        master = bench.lora_trajectory.adapters[-1]
        seconds = time.perf_counter() - started
        adapters = {
            "head": Adapter.zero(base.specs),
            "whole": master,
            "one": svd_form(master).truncate([1] * len(base.specs)),
        }
        accuracy = {k: evaluate(base, head, a, batches).accuracy for k, a in adapters.items()}
        print(
            f"| {seed} | {len(held_out)} | {accuracy['head']:.3f} | {accuracy['whole']:.3f} | "
            f"{100 * (accuracy['whole'] - accuracy['head']):.1f} points | "
            f"{accuracy['one']:.3f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
