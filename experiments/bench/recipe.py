"""How far the whole adapter lies above the preloaded head on the default task, over seeds.

python -m experiments.bench.recipe [--config quick] [--seeds 0 1 2] [--set KEY=VALUE] [--control]

`--control` asks what the gain owes to a head fitted to few texts: it fits a second head to all
training text (600 steps) and trains an adapter over that one too.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from airllm.lora.adapter import Adapter, svd_form
from airllm.lora.evaluation import evaluate
from airllm.models.batches import Examples, tokenize
from experiments.assembly.workbench import workbench_for
from experiments.config.schema import ExperimentConfig, load_experiment

_CONTROL_HEAD_STEPS = 600  # features are computed once, so that steps cost nothing


def measure(config: ExperimentConfig) -> dict[str, float]:
    """Held-out accuracy of the head, the whole adapter and its rank-1 cut; the master's seconds."""
    bench = workbench_for(config)
    base, head, held_out = bench.base, bench.head, bench.splits.evaluation
    examples = Examples(tokenize(base, held_out.texts), held_out.labels.tolist())
    started = time.perf_counter()
    master = bench.lora_trajectory.adapters[-1]
    seconds = time.perf_counter() - started
    adapters = {
        "head": Adapter.zero(base.specs),
        "whole": master,
        "one": svd_form(master).truncate([1] * len(base.specs)),
    }
    accuracy = {k: evaluate(base, head, a, examples).accuracy for k, a in adapters.items()}
    return {**accuracy, "examples": len(held_out), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--control", action="store_true", help="also with a head fitted to all")
    arguments = parser.parse_args()
    config = load_experiment(arguments.config, arguments.sets)
    header = ["seed", "examples", "head", "whole adapter", "gain", "cut to rank 1", "master, s"]
    if arguments.control:
        header += ["head on all text", "adapter over it", "gain", "cut to rank 1"]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for seed in arguments.seeds:
        seeded = replace(config, seed=seed)
        m = measure(seeded)
        row = [
            f"{seed}", f"{m['examples']:.0f}", f"{m['head']:.3f}", f"{m['whole']:.3f}",
            f"{100 * (m['whole'] - m['head']):.1f} points", f"{m['one']:.3f}",
            f"{m['seconds']:.0f}",
        ]  # fmt: skip
        if arguments.control:
            training = replace(seeded.training, head_examples=0, head_steps=_CONTROL_HEAD_STEPS)
            c = measure(replace(seeded, training=training))
            row += [
                f"{c['head']:.3f}", f"{c['whole']:.3f}",
                f"{100 * (c['whole'] - c['head']):.1f} points", f"{c['one']:.3f}",
            ]  # fmt: skip
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
