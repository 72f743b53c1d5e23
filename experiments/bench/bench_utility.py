"""What rules promise of a plan, and what it does: to the texts that promised it, and to others.

python -m experiments.bench.bench_utility [--config headline] [--set KEY=VALUE ...] [--share 0.39]

The first rounds of one device, which takes in every round what `second-order` plans by the texts of
all devices (128 at most). A plan has `share` of the bits of one rank everywhere; it is made by each
importance on the texts of one device, and on those of all. Losses are in nats; `promised` is by
what the utilities of the plan's components add up to lower the loss (energy and Fisher information
promise nothing).
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from airllm.lora.adapter import Adapter, accumulate
from airllm.lora.evaluation import evaluate
from airllm.lora.residuals import residuals_of
from airllm.lora.sensitivity import Importance
from airllm.models.batches import Examples, join, tokenize
from airllm.policies.knapsack import fit_budget
from experiments.assembly.workbench import workbench_for
from experiments.config.schema import load_experiment

RULES: tuple[Importance, ...] = ("energy", "fisher", "gain", "second-order")
PROMISING = ("gain", "second-order")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="headline")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--share", type=float, default=0.39, help="of one rank everywhere")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--others", type=int, default=512, help="other texts to measure on")
    arguments = parser.parse_args()
    config = load_experiment(arguments.config, arguments.sets)
    bench = workbench_for(config)
    base, head, r_max = bench.base, bench.head, config.training.r_max
    bits = np.array([s.params_per_rank for s in base.specs], dtype=float)
    other = bench.splits.evaluation
    chosen = np.random.default_rng(config.seed).permutation(len(other))[: arguments.others]
    other = other.take(chosen)
    others = Examples(tokenize(base, other.texts), other.labels.tolist())
    print(f"{config.model.name}, seed {config.seed}, {arguments.share} of a rank a round")
    print(f"{'':52}on the same texts   on {len(chosen)} others")
    print("round  texts  importance    components  promised    before   after   before   after")
    adapter = Adapter.zero(base.specs)
    for round_index, master in enumerate(bench.lora_trajectory.adapters[: arguments.rounds]):
        following = adapter
        for devices in (1, config.num_devices):
            texts = bench.probe_texts(round_index, devices, 1)
            before = [evaluate(base, head, adapter, part).loss for part in (join(texts), others)]
            for importance in RULES:
                found = residuals_of(
                    base, head, master, [adapter], importance=importance, is_residual=True,
                    r_max=r_max, texts=lambda _, texts=texts: texts,  # type: ignore[misc]
                )  # fmt: skip
                budget = np.array([arguments.share * bits.sum()])
                ranks = fit_budget(found.utility, bits[None], budget, is_joint=True)
                kept = np.arange(r_max) < ranks[0][:, None]
                plan = accumulate(
                    adapter,
                    found.adapters[0].truncate(ranks[0]),
                    config.payload.adapter_rank,
                )
                after = [evaluate(base, head, plan, part).loss for part in (join(texts), others)]
                promised = f"{found.utility[0][kept].sum():8.3f}" if importance in PROMISING else ""
                print(
                    f"{round_index + 1:5}  {len(join(texts).ids):5}  {importance:12}"
                    f"  {ranks.sum():10}  {promised:>8}  {before[0]:8.3f}{after[0]:8.3f}"
                    f" {before[1]:8.3f}{after[1]:8.3f}",
                    flush=True,
                )
                if importance == "second-order":
                    following = plan
        adapter = following


if __name__ == "__main__":
    main()
