"""Many devices in one process: is memory flat, and does a round cost the same each time?

    python -m experiments.bench.bench_load [DEVICES] [ROUNDS]

A tiny random BERT, a text a device, residual coding, a checkpoint after every fifth round. Printed
is, for every round, the wall-clock time it took and the resident memory after it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from experiments.config import PRESETS, ExperimentConfig
from experiments.config_loader import load_config
from experiments.run import run_simulation


def resident_mib() -> float:
    """Of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    devices, rounds = (int(a) for a in (sys.argv[1:] + ["2000", "20"][len(sys.argv) - 1 :])[:2])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "data.csv"
        rows = [
            f"{a} {b} number {i},{int(a == b)}" for i in range(devices) for a in "ab" for b in "ab"
        ]
        source.write_text("text,label\n" + "\n".join(rows) + "\n")
        config = load_config(
            ExperimentConfig,
            sets=(
                "model.name=tiny:bert", "model.precision=fp32", "model.device=cpu",
                f"data.source={source}", "data.eval_fraction=0.5", f"num_devices={devices}",
                f"rounds={rounds}", "examples_per_device=1", "training.r_max=2",
                "training.steps_per_round=2", "training.batch_size=8", "training.head_examples=16",
                "training.head_steps=5", "payload.hold_rank=4", "policy.name=greedy:energy",
                "channel.preset=wide-band", "channel.sharing=orthogonal", "runtime.threads=1",
                "runtime.checkpoint_s=60",
            ),
            presets=PRESETS,
        )  # fmt: skip
        last = time.perf_counter()
        print(f"{devices} devices, {rounds} rounds\nround  seconds  resident MiB", flush=True)

        def on_round(done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            print(f"{done:5d}  {now - last:7.1f}  {resident_mib():12.0f}", flush=True)
            last = now

        summary = run_simulation(config, Path(folder) / "run", on_round=on_round)
        print(f"delivered {summary['delivered_rate']:.3f} of the updates")


if __name__ == "__main__":
    main()
