"""A federation end to end: our local runtime, against Flower's simulation with a plain PEFT client.

python -m experiments.bench.bench_federation [--steps 3 --batch 8 --tokens 16] [--rounds 5]

Sixteen devices train LoRA of rank 8 on all projections of MiniLM, on the same texts in the same
batches, by AdamW in fp32, and their updates are averaged. Ours is
`experiments.runtimes.local.run_simulation` on a channel wide enough for whole updates, by the same
algorithm as the peer's (fedit: factors are averaged),
also with all devices in the same passes (runtime.stacked), and by the project's own
(airllm: changes are merged exactly). Ours does more: it
simulates the channel, and each device measures its adapter on 16 texts in each round. The peer is
`flower_peer`: as Flower's example of LoRA has it, which loads the model at each message, and with
the model kept in the worker process. All have one core: one thread, one worker.

Every contender is a process of its own, and all stand still but one: rounds are taken in turns, and
a ratio is of neighbours. Start-up is the time to the end of round 1, less the median later round.
CPU seconds are those of all processes of a contender. Memory is read every second while a
contender is at work: the sum of the resident sets of its processes, and the same with each file's
pages (those of PyTorch and Ray, mapped by several processes) counted once; peaks, start-up
included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil

from experiments.config.schema import ExperimentConfig, load_experiment

_DEVICES, _RANK, _MEASURED = 16, 8, 16
_NAMES = {
    "ours:fedit": "ours, averaging factors",
    "ours:fedit:stacked": "ours, the same, stacked",
    "ours:airllm": "ours, merging exactly",
    "peer:loads": "Flower + PEFT, loads the model",
    "peer:keeps": "Flower + PEFT, keeps the model",
}


def config_of(
    arguments: argparse.Namespace, method: str, *, is_stacked: bool = False
) -> ExperimentConfig:
    """Ours: everything that is sent arrives."""
    sets = [
        f"num_devices={_DEVICES}", f"rounds={arguments.rounds}", f"model.name={arguments.model}",
        f"model.max_length={arguments.tokens}", f"federated.local_steps={arguments.steps}",
        f"federated.local_batch_size={arguments.batch}", f"training.r_max={_RANK}",
        f"examples_per_device={_MEASURED}", "data.partition=iid", f"federated.method={method}",
        "federated.hardware=['laptop']", f"federated.ranks=[{_RANK}]",
        "channel.bandwidth_hz=1e9", "channel.snr_db=30", "channel.fading=none",
        "runtime.threads=1", "model.precision=fp32", f"runtime.stacked={str(is_stacked).lower()}",
    ]  # fmt: skip
    return load_experiment("federated", sets)


def write_work(arguments: argparse.Namespace, folder: str) -> Path:
    """The peer's share: our texts, in our batches."""
    from airllm.models.batches import BatchSampler
    from airllm.models.sources import load_base, minilm_source
    from edge.local_update import _BATCH_STREAM
    from experiments.assembly.workbench import workbench_for

    path, config = Path(folder) / "work.json", config_of(arguments, "fedit")
    bench, federated = workbench_for(config), config.federated
    if config.model.name == "minilm":
        folder = str(minilm_source())
    else:
        base = load_base(config.model)
        base.network.save_pretrained(folder)  # type: ignore[operator]
        base.tokenizer.save_pretrained(folder)
    texts, labels, batches = [], [], []
    for device, share in enumerate(bench.training_shares):
        own = bench.splits.train.take(share)
        texts.append(list(own.texts))
        labels.append([int(y) for y in own.labels])
        stream = _BATCH_STREAM + 1000 * device
        sampler = BatchSampler(len(own), federated.local_batch_size, config.seed, stream)
        places = np.arange(config.rounds * federated.local_steps)
        by_round = places.reshape(config.rounds, federated.local_steps)
        batches.append([[sampler.indices(int(n)).tolist() for n in row] for row in by_round])
    work = {
        "folder": folder, "texts": texts, "labels": labels, "batches": batches,
        "num_classes": len(bench.splits.train.label_names), "max_length": config.model.max_length,
        "rank": _RANK, "learning_rate": federated.local_learning_rate,
    }  # fmt: skip
    path.write_text(json.dumps(work), encoding="utf-8")
    return path


def contend(kind: str, arguments: argparse.Namespace, work: Path, to: Connection) -> None:
    """A contender's process: says after every round what it spent it on, and waits to go on."""
    import torch

    torch.set_num_threads(1)

    def gate(seconds: dict[str, float]) -> None:
        to.send(seconds)
        to.recv()

    who, how, *more = kind.split(":")
    if who == "peer":
        from experiments.bench.flower_peer import run

        run(work, is_cached=how == "keeps", num_workers=1, gate=gate)
        return
    from experiments.bench.stages import Stages
    from experiments.runtimes.local import run_simulation

    stages = watched(Stages())
    spent: defaultdict[str, float] = defaultdict(float)

    def on_round(done: int, total: int) -> None:
        stages.settle()
        seconds = {k: v - spent[k] for k, v in stages.seconds.items()}
        spent.update(stages.seconds)
        gate(seconds)

    run_simulation(config_of(arguments, how, is_stacked=bool(more)), on_round=on_round)


def watched(stages: Any) -> Any:
    """Ours by stages; what they are called there has nothing to do with what the peer does."""
    import airllm.lora.adapter
    import airllm.lora.evaluation
    import edge.local_update
    from cloud.planning.uplink import Uplink
    from experiments.bench.stages import watch_transport

    stages.watch(edge.local_update, "train_local", "train")
    stages.watch(airllm.lora.evaluation, "evaluate_together", "measure")
    stages.watch(airllm.lora.adapter, "svd_form", "decompose")
    stages.watch(Uplink, "merge", "merge")
    watch_transport(stages)
    return stages


class Tree:
    """A contender's process and all below it: what they have cost so far."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._cpu: dict[int, float] = {}  # by process; those that have ended stay
        self._lock = threading.Lock()
        self.resident = self.distinct = 0.0
        self.num_processes = 0

    def _processes(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_s(self) -> float:
        """Seconds of all processes."""
        with self._lock:
            for process in self._processes():
                try:
                    times = process.cpu_times()
                    self._cpu[process.pid] = times.user + times.system
                except psutil.NoSuchProcess:
                    pass
            return sum(self._cpu.values())

    def read_memory(self) -> None:
        """Take in a higher peak."""
        resident = own = 0
        files: dict[str, int] = {}
        processes = self._processes()
        for process in processes:
            try:
                maps = process.memory_maps(grouped=True)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            for at in maps:
                resident += at.rss
                written = at.rss if at.path.startswith("[") else at.private_dirty
                own += written
                files[at.path] = max(files.get(at.path, 0), at.rss - written)
        self.resident = max(self.resident, resident / 2**20)
        distinct = (own + sum(files.values())) / 2**20
        if distinct > self.distinct:
            self.distinct, self.num_processes = distinct, len(processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm", help="'tiny:bert' for a try")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of a device in a round")
    parser.add_argument("--batch", type=int, default=8, help="texts of a step")
    parser.add_argument("--tokens", type=int, default=16, help="that a text is cut to")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    wall: dict[str, list[float]] = {kind: [] for kind in _NAMES}
    cpu: dict[str, list[float]] = {kind: [] for kind in _NAMES}
    spent: dict[str, list[dict[str, float]]] = {kind: [] for kind in _NAMES}
    trees: dict[str, Tree] = {}
    pipes: dict[str, Connection] = {}
    is_over, active = threading.Event(), [""]

    def watch() -> None:
        while not is_over.wait(1.0):
            if tree := trees.get(active[0]):
                tree.cpu_s()  # of processes that will have ended by the next look
                tree.read_memory()

    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        work = write_work(arguments, folder)
        processes = []
        for kind in _NAMES:
            pipes[kind], far = context.Pipe()
            process = context.Process(
                target=contend, args=(kind, arguments, work, far), daemon=True
            )
            started = time.perf_counter()
            process.start()
            far.close()
            processes.append(process)
            trees[kind], active[0] = Tree(process.pid or 0), kind
            spent[kind].append(pipes[kind].recv())
            wall[kind].append(time.perf_counter() - started)
            cpu[kind].append(trees[kind].cpu_s())
        for number in range(1, arguments.rounds):
            turn = number % len(_NAMES)
            order = list(_NAMES)[turn:] + list(_NAMES)[:turn]
            for kind in order:
                active[0] = kind
                before, started = trees[kind].cpu_s(), time.perf_counter()
                pipes[kind].send(None)
                spent[kind].append(pipes[kind].recv())
                wall[kind].append(time.perf_counter() - started)
                cpu[kind].append(trees[kind].cpu_s() - before)
        for kind, process in zip(_NAMES, processes, strict=True):
            pipes[kind].send(None)
            process.join(120)
        is_over.set()
    show(arguments, wall, cpu, spent, trees)


def show(
    arguments: argparse.Namespace,
    wall: dict[str, list[float]],
    cpu: dict[str, list[float]],
    spent: dict[str, list[dict[str, float]]],
    trees: dict[str, Tree],
) -> None:
    """Print both tables."""
    import torch

    print(f"{arguments.model}, fp32, {platform.machine()}, one core, torch {torch.__version__}; "
          f"{_DEVICES} devices x {arguments.steps} steps x {arguments.batch} texts of at most "
          f"{arguments.tokens} tokens, rank {_RANK}, {arguments.rounds} rounds")  # fmt: skip
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(
        f"{'':31s} {'start':>6s} {'round':>6s} {'ratio':>6s} {'CPU':>6s} {'ratio':>6s} "
        f"{'(least, most)':>14s} {'processes':>9s} {'resident':>9s} {'once, MiB':>9s}"
    )
    ours = "ours:fedit"
    for kind, name in _NAMES.items():
        later, times = np.array(wall[kind][1:]), np.array(cpu[kind][1:])
        ratio, of_cpu = later / wall[ours][1:], times / cpu[ours][1:]
        print(f"{name:31s} {wall[kind][0] - np.median(later):6.1f} {np.median(later):6.2f} "
              f"{np.median(ratio):6.2f} {np.median(times):6.2f} {np.median(of_cpu):6.2f} "
              f"{f'({of_cpu.min():.2f}, {of_cpu.max():.2f})':>14s} "
              f"{trees[kind].num_processes:9d} {trees[kind].resident:9.0f} "
              f"{trees[kind].distinct:9.0f}")  # fmt: skip
    print("every later round, seconds of the clock / of CPU:")
    for kind, name in _NAMES.items():
        pairs = zip(wall[kind][1:], cpu[kind][1:], strict=True)
        print(f"  {name}: {', '.join(f'{w:.1f} / {c:.1f}' for w, c in pairs)}")
    print("CPU seconds of a round, means of the later ones:")
    for kind, name in _NAMES.items():
        keys = sorted({k for s in spent[kind][1:] for k in s} - {"all else"})
        mean = {k: float(np.mean([s.get(k, 0.0) for s in spent[kind][1:]])) for k in keys}
        rest = float(np.mean(cpu[kind][1:])) - sum(mean.values())
        parts = [f"{k} {v:.2f}" for k, v in sorted(mean.items(), key=lambda kv: -kv[1])]
        print(f"  {name}: {', '.join([*parts, f'all else {rest:.2f}'])}")


if __name__ == "__main__":
    main()
