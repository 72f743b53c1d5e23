"""Accuracy when a fifth of the devices sends poison, with and without a defence.

python -m experiments.bench.bench_attack [--seeds 0 1 2] [--set KEY=VALUE]

Federated mode on MiniLM, five devices, of which the first is malicious. What it trained honestly
it sends turned around ("flipped"), ten times as large ("scaled"), or as random numbers of ten times
its size ("noise"), in payloads that keep every rule of the format. Beside each other: the exact
merge and the same with every update clipped to the median norm; the mean over a frozen A and its
trimmed mean.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from typing import cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from airllm.lora.adapter import Adapter
from airllm.lora.payload import decode, encode
from channel.streams import rng_for
from cloud.grids.local_grid import LocalGrid
from experiments.assembly.parts import device_profile
from experiments.assembly.workbench import workbench_for
from experiments.config.loader import dump_config
from experiments.config.schema import ExperimentConfig, load_experiment
from experiments.run.rounds import run_rounds
from experiments.runtimes.flower_apps import client_app

_MALICIOUS = 0
_STREAM = 95
AGGREGATORS = ("exact", "clipped", "frozen-a", "trimmed")


def flipped(factor: Tensor, rng: np.random.Generator) -> Tensor:
    """Away from where the others go."""
    return -factor


def scaled(factor: Tensor, rng: np.random.Generator) -> Tensor:
    """As if it were ten devices."""
    return 10.0 * factor


def noise(factor: Tensor, rng: np.random.Generator) -> Tensor:
    """Nothing of what was learned."""
    if not factor.numel():
        return factor
    size = 10.0 * float(factor.square().mean().sqrt())
    return size * torch.from_numpy(rng.standard_normal(factor.shape)).float()


Attack = Callable[[Tensor, np.random.Generator], Tensor]
ATTACKS: dict[str, Attack | None] = {
    "none": None,
    "flipped": flipped,
    "scaled": scaled,
    "noise": noise,
}


def attacked(config: ExperimentConfig, attack: Attack) -> Callable[[Message, Context], Message]:
    """The devices' app, of which one device changes what it sends."""
    bench = workbench_for(config)
    specs = bench.base.specs

    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        device = int(context.node_config["partition-id"])
        if device != _MALICIOUS or message.metadata.message_type != "train.send":
            return reply
        work = device_profile(bench, device, config).work
        shared = None if work is None else work.shared_down
        record = reply.content.config_records["update"]
        sent = decode(cast(bytes, record["payload"]), specs, shared_down=shared)
        rng = rng_for(config.seed, _STREAM, sent.number)
        # The up factors: the product is linear in them.
        adapter = Adapter(sent.adapter.down, tuple(attack(u, rng) for u in sent.adapter.up))
        record["payload"] = encode(
            adapter, number=sent.number, number_format=config.payload.number_format,
            coding=sent.coding, is_half=shared is not None,
        )  # fmt: skip
        return reply

    return app


def accuracy(config: ExperimentConfig, attack: str) -> float:
    """After the last round."""
    change = ATTACKS[attack]
    app = client_app if change is None else attacked(config, change)
    grid = LocalGrid(cast(ClientApp, app), config.num_devices, {"config": dump_config(config)})
    return float(run_rounds(grid, config, None)["accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    sets = [
        "num_devices=5", "channel.snr_db=15", "data.partition=iid", "runtime.threads=1",
        *arguments.sets,
    ]  # fmt: skip
    print("accuracy, %, mean over seeds", *arguments.seeds)
    print(f"| aggregator | {' | '.join(ATTACKS)} |\n|{'---|' * (1 + len(ATTACKS))}")
    for name in AGGREGATORS:
        # As a preset would: the aggregator decides what is sent.
        config = load_experiment("federated", [*sets, f"federated.aggregator={name}"])
        cells = []
        for attack in ATTACKS:
            found = [accuracy(replace(config, seed=seed), attack) for seed in arguments.seeds]
            cells.append(f"{100 * np.mean(found):.1f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
