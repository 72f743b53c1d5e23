"""Memory and time of a federated run of many devices in one process.

python -m experiments.bench.bench_devices [--devices 200] [--rounds 3] [--set KEY=VALUE]
"""

from __future__ import annotations

import argparse
import platform
import resource
import time

import torch

from experiments.config.schema import load_experiment
from experiments.runtimes.local import run_simulation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    sets = [
        f"num_devices={arguments.devices}", f"rounds={arguments.rounds}", "runtime.threads=1",
        "examples_per_device=4", "data.partition=iid", "federated.local_steps=1",
        "federated.local_batch_size=8", "federated.ranks=[8]", "channel.bandwidth_hz=1e8",
        *arguments.sets,
    ]  # fmt: skip
    config = load_experiment("federated", sets)
    print(
        f"{platform.machine()}, one thread, torch {torch.__version__}; {config.model.name}, "
        f"{config.num_devices} devices, {config.rounds} rounds, r_max {config.training.r_max}, "
        f"adapter_rank {config.payload.adapter_rank}; all devices train, send and are measured"
    )
    ends = [time.perf_counter()]

    def on_round(done: int, total: int) -> None:
        ends.append(time.perf_counter())
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"round {done}: {ends[-1] - ends[-2]:.0f} s, peak of memory {peak_gib:.2f} GiB",
              flush=True)  # fmt: skip

    summary = run_simulation(config, on_round=on_round)
    print(
        f"bits a device and round: {summary['delivered_bits']:.0f} down, "
        f"{summary['uplink_delivered_bits']:.0f} up; loss of the global adapter "
        f"{summary['full_loss']:.3f}, before {summary['head_loss']:.3f}"
    )


if __name__ == "__main__":
    main()
