"""Many devices, or nodes that die: is memory flat, does a round cost the same, is anything left?

    python -m experiments.bench.bench_load [--runtime local] [--devices 2000] [--rounds 20]
    python -m experiments.bench.bench_load --runtime simulation    (200 devices, 5 rounds)
    python -m experiments.bench.bench_load --runtime deployment    (8 SuperNodes, 30 rounds)

A tiny random BERT, a text a device, residual coding. Printed are, for every round, the wall-clock
time it took and the memory of all processes of the run after it, shared pages counted once. In the
deployment a SuperNode, each in its turn, is killed after every third round and started again after
the next one: the round ends without it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil

from experiments.config.schema import ExperimentConfig, load_experiment
from experiments.results.folder import read_rounds
from experiments.runtimes.federation import Federation, running
from experiments.runtimes.local import run_simulation

_SIZES = {"local": (2000, 20), "simulation": (200, 5), "deployment": (8, 30)}
_KILL_EVERY = 3
_PROCESSES = ("flower", "flwr", "raylet", "ray::")  # in the command lines of a runtime's own
_TIMEOUT_S = 120.0  # for a node's answer: eight processes that import torch on two cores


def memory_mib(processes: list[psutil.Process]) -> float:
    """Proportional set size of some processes, summed: what they share counts once."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**20


def config_for(folder: Path, runtime: str, devices: int, rounds: int) -> ExperimentConfig:
    source = folder / "data.csv"
    rows = [f"{a} {b} number {i},{int(a == b)}" for i in range(devices) for a in "ab" for b in "ab"]
    source.write_text("text,label\n" + "\n".join(rows) + "\n")
    sets = [
        "model.name=tiny:bert", "model.precision=fp32", "model.device=cpu",
        f"data.source={source}", "data.eval_fraction=0.5", f"num_devices={devices}",
        f"rounds={rounds}", "examples_per_device=1", "training.r_max=2",
        "training.steps_per_round=2", "training.batch_size=8", "training.head_examples=16",
        "training.head_steps=5", "payload.adapter_rank=4", "policy.name=greedy:energy",
        "channel.preset=wide-band", "channel.sharing=orthogonal", "runtime.threads=1",
        "runtime.checkpoint_s=60",
    ]  # fmt: skip
    if runtime == "deployment":
        sets += [f"runtime.reply_timeout_s={_TIMEOUT_S}", "runtime.connect_timeout_s=300"]
    return load_experiment(sets=sets)


class Killer:
    """Kills a SuperNode after every third round, and starts it again after the next one."""

    def __init__(self, federation: Federation, devices: int) -> None:
        self.federation, self.devices = federation, devices
        self.killed: list[tuple[int, int]] = []
        """(after which round, device)"""
        self._absent: int | None = None

    def after(self, done: int, total: int) -> str:
        """What was done after a round, in a word."""
        if self._absent is not None:
            device, self._absent = self._absent, None
            self.federation.start_device(device)
            return f"device {device} started again"
        if done % _KILL_EVERY or done + _KILL_EVERY > total:
            return ""
        device = len(self.killed) % self.devices
        for process in running(self.federation.folder):
            if any(word.startswith(f"partition-id={device} ") for word in _words(process)):
                process.kill()
        self.federation.ended()
        self.killed.append((done, device))
        self._absent = device
        return f"device {device} killed"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runtime", choices=tuple(_SIZES), default="local")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--rounds", type=int)
    arguments = parser.parse_args()
    runtime = arguments.runtime
    devices = arguments.devices or _SIZES[runtime][0]
    rounds = arguments.rounds or _SIZES[runtime][1]
    own, killer = psutil.Process(), None
    before = {p.pid for p in psutil.process_iter()}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = config_for(folder, runtime, devices, rounds)
        print(f"{runtime} runtime, {devices} devices, {rounds} rounds, tiny BERT\n"
              f"round  seconds  MiB", flush=True)  # fmt: skip
        if runtime == "deployment":
            federation = Federation(folder / "federation")
            stack.callback(federation.down)
            federation.up(devices)
            killer = Killer(federation, devices)
        said, last = 0, time.perf_counter()

        def on_round(done: int, total: int) -> None:
            nonlocal said, last
            if done == said:
                return
            now, said = time.perf_counter(), done
            processes = [own, *own.children(recursive=True)]
            if killer:
                processes += running(killer.federation.folder)
            mib = memory_mib(list({p.pid: p for p in processes}.values()))
            what = killer.after(done, total) if killer else ""
            print(f"{done:5d}  {now - last:7.1f}  {mib:6.0f}  {what}".rstrip(), flush=True)
            last = now

        out = folder / "run"
        if runtime == "local":
            run_simulation(config, out, on_round=on_round)
        elif runtime == "simulation":
            from experiments.runtimes.simulation import run_ray_simulation

            run_ray_simulation(config, out, on_round=on_round)
        else:
            from experiments.runtimes.deployment import run_deployment

            run_deployment(config, out, superlink=str(folder / "federation"), on_round=on_round)
        rows = read_rounds(out)
    answered = rows["answered"].astype(bool)
    print(
        f"{rows['round'].nunique()} rounds of {rounds}, {len(rows)} rows of {rounds * devices}; "
        f"{answered.mean():.3f} answered, {rows.loc[answered, 'delivered'].mean():.3f} of these "
        "got their update"
    )
    if killer:
        missed = rows[~answered].groupby("device")["round"].apply(list).to_dict()
        print(f"killed (after round, device): {killer.killed}\nunanswered rounds: {missed}")
    left = [p for p in psutil.process_iter() if p.pid not in before | {own.pid}]
    left = [p for p in left if any(w in " ".join(_words(p)) for w in _PROCESSES)]
    print(f"processes left behind: {len(left)}")


def _words(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


if __name__ == "__main__":
    main()
