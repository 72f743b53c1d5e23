"""Peak memory and time of merging a hundred devices' updates of one large projection.

python -m experiments.bench.bench_aggregate [--devices 100] [--rank 8] [--features 4096]

Each way of merging runs in a process of its own, whose peak of resident memory is read before and
after. The peer is the dense sum and its SVD in the same precision.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import time

import torch

from airllm.lora.adapter import Adapter
from cloud.aggregation.aggregate import AGGREGATORS

WAYS = ("exact", "rank-partition", "stacking", "dense")


def updates_of(devices: int, rank: int, features: int) -> list[Adapter]:
    """Random updates, the same for every way."""
    generator = torch.Generator().manual_seed(0)
    return [
        Adapter(
            (torch.randn(rank, features, generator=generator),),
            (torch.randn(features, rank, generator=generator),),
        )
        for _ in range(devices)
    ]


def merge(way: str, updates: list[Adapter], rank: int) -> Adapter:
    if way != "dense":
        return AGGREGATORS[way](updates, [1.0] * len(updates), rank)
    features = updates[0].down[0].shape[1]
    total = torch.zeros(features, features, dtype=torch.float64)
    for update in updates:
        total += update.up[0].double() @ update.down[0].double() / len(updates)
    x, sigma, y = torch.linalg.svd(total, full_matrices=False)
    root = sigma[:rank].sqrt()
    return Adapter(((y[:rank] * root[:, None]).float(),), ((x[:, :rank] * root).float(),))


def measure(way: str, devices: int, rank: int, features: int) -> None:
    """Print the seconds and the MiB above what the updates themselves take."""
    torch.set_num_threads(1)
    # The libraries' own workspaces are there before anything is measured.
    merge(way, updates_of(2, 2, 32), 2)
    updates = updates_of(devices, rank, features)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    merge(way, updates, rank)
    seconds = time.perf_counter() - started
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{seconds:.2f} {(peak_kib - before_kib) / 1024:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--way", choices=WAYS, help="measure this one in this process")
    arguments = parser.parse_args()
    size = (arguments.devices, arguments.rank, arguments.features)
    if arguments.way:
        measure(arguments.way, *size)
        return
    n = arguments.features
    print(
        f"{platform.machine()}, one thread, torch {torch.__version__}; {size[0]} devices, rank "
        f"{size[1]}, one projection of {n} x {n}; its dense matrix in float64: "
        f"{n * n * 8 / 2**20:.0f} MiB\n\n| way | seconds | peak above the updates, MiB |"
    )
    print("|---|---|---|")
    command = [sys.executable, "-m", "experiments.bench.bench_aggregate"]
    command += [f"--devices={size[0]}", f"--rank={size[1]}", f"--features={size[2]}"]
    for way in WAYS:
        done = subprocess.run(
            [*command, "--way", way], capture_output=True, text=True, check=True
        )  # fmt: skip
        seconds, mib = done.stdout.split()
        print(f"| {way} | {seconds} | {mib} |", flush=True)


if __name__ == "__main__":
    main()
