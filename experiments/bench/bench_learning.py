"""Environment steps to a given reward: PPO with DDIM, what could stand in its place, and without.

python -m experiments.bench.bench_learning OUT [--config learn] [--set KEY=VALUE] [--jobs 2]

The scenarios are recorded and their references measured once; then every variant learns from the
same ones, as `airllm learn` does, into a folder of its own under OUT (the first is exactly what
`airllm learn` gives). Prints the held-out curves; what is there already is not learned again.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from cloud.environment.env import RankEnvironment
from experiments.config.schema import ExperimentConfig, load_experiment
from experiments.learning.learn import Learner, make_environments

VARIANTS: dict[str, list[str]] = {
    "ppo-ddim": [],
    "ppo": ["policy.refiner=none"],
    "ddim": ["policy.proposer=none"],
    "ppo-mlp": ["policy.refiner=mlp"],
    "direct-ppo": ["policy.proposer=direct", "policy.refiner=none"],
    "unguided": ["policy.ddim.guidance=0"],
    "myopic": ["policy.ppo.gamma=0"],
    "no-complexity": ['policy.hide=["complexity"]'],
    "no-link": ['policy.hide=["link"]'],
}
"""by name: what is set beside the configuration"""

_shared: tuple[RankEnvironment, RankEnvironment]


def learn(config: ExperimentConfig, name: str, out: Path) -> None:
    """One variant, in environments that a forked process has to itself."""
    training, held_out = _shared
    # A process may learn several, one after the other.
    training.seed(config.seed)
    training.num_steps = 0
    Learner(config, training, held_out).run(
        out / name, lambda what, done, total: print(f"{name}: {what} {done}/{total}", flush=True)
    )


def main() -> None:
    global _shared
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", default="learn")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    configs = {
        name: load_experiment(arguments.config, arguments.sets + VARIANTS[name])
        for name in arguments.variants
    }  # fmt: skip
    # Recorded is what does not depend on what learns.
    _shared = make_environments(
        next(iter(configs.values())),
        lambda what, done, total: print(f"{what} {done}/{total}", flush=True),
    )
    # Forked, so that the base model and all that was recorded are there once.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
        for task in [pool.submit(learn, c, name, arguments.out) for name, c in configs.items()]:
            task.result()
    curves = {name: curve(arguments.out / name) for name in arguments.variants}
    print("held-out nats below the reference rule, by environment steps")
    print(f"| steps | {' | '.join(curves)} |\n|{'---|' * (1 + len(curves))}")
    for steps in sorted({s for c in curves.values() for s in c}):
        cells = [f"{c[steps]:.4f}" if steps in c else "" for c in curves.values()]
        print(f"| {steps} | {' | '.join(cells)} |")


def curve(folder: Path) -> dict[int, float]:
    """Held-out score by environment steps."""
    with open(folder / "learning_curve.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["held_out"]]
    return {int(row["steps"]): float(row["held_out"]) for row in rows}


if __name__ == "__main__":
    main()
