"""Kills runs with SIGKILL at chosen moments, resumes them, and compares what is left.

A program of its own: it imports everything once and forks a child for each run. A moment is the
number of an event, and events are what a run does that can be cut short: files half written,
synchronised, renamed and removed, rounds planned, devices asked, policies taught.

    crash_driver.py CONFIG FOLDER MOMENTS...      (a moment: "12", or "12,7" to kill the resumed
                                                   run as well; none: print the events)
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import safetensors.torch

import airllm.checkpoint
import experiments.results.folder
from airllm.checkpoint import save_state, state_of
from cloud.grids.local_grid import LocalGrid
from cloud.planning.downlink import Downlink
from experiments.assembly import workbench as build
from experiments.config.loader import load_config
from experiments.config.schema import PRESETS, ExperimentConfig
from experiments.run import rounds
from experiments.runtimes.local import run_simulation

FILES = ("config.toml", "rounds.csv", "ranks.npz", "summary.json")


class Events:
    """Counts what happens and ends the process, without a word, at one of them."""

    def __init__(self, moment: int | None) -> None:
        self.moment, self.names = moment, []

    def reached(self, name: str) -> bool:
        self.names.append(name)
        return len(self.names) - 1 == self.moment

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner, attribute: str, name: str) -> None:
        """Two events: before a call and after it."""
        real = getattr(owner, attribute)

        def call(*args, **kwargs):
            if self.reached(f"before {name}"):
                self.kill()
            result = real(*args, **kwargs)
            if self.reached(f"after {name}"):
                self.kill()
            return result

        setattr(owner, attribute, call)

    def half_a_state(self) -> None:
        """A checkpoint of which half is on the disk."""
        real = safetensors.torch.save_file

        def save_file(tensors, path, **kwargs):
            real(tensors, path, **kwargs)
            if self.reached("half of a checkpoint"):
                os.truncate(path, os.path.getsize(path) // 2)
                self.kill()

        airllm.checkpoint.save_file = save_file

    def half_a_round(self) -> None:
        """Rows of which half are on the disk."""
        writer, real = (
            experiments.results.folder.RoundsWriter,
            experiments.results.folder.RoundsWriter._append,
        )

        def append(own, rows):
            size = own._file.tell()
            real(own, rows)
            if self.reached("half of the rows of a round"):
                own._file.truncate((size + own._file.tell()) // 2)
                self.kill()

        writer._append = append

    def install(self) -> None:
        self.around(os, "replace", "rename")
        self.around(os, "fsync", "fsync")
        self.around(Path, "unlink", "unlink")
        self.half_a_state()
        self.half_a_round()
        self.around(Downlink, "plan", "plan")
        self.around(Downlink, "conclude", "conclude")
        self.around(LocalGrid, "_answer", "device")  # of a run that is not stacked


def run(config, out: Path, *, moment: int | None, is_resuming: bool, report: Path | None) -> int:
    """One run in a child; how it ended, as os.waitstatus_to_exitcode says it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        build._workbench.cache_clear()
        build._base.cache_clear()
        kept = []
        planners = rounds.planners
        rounds.planners = lambda bench, c: kept.append(planners(bench, c)) or kept[0]
        events = Events(moment)
        events.install()
        run_simulation(config, out, is_resuming=is_resuming)
        events.moment, names = None, list(events.names)
        states = {str(i): state_of(part) for i, part in enumerate(kept[0]) if part is not None}
        save_state(states, out.with_suffix(".cloud"))
        if report:
            report.write_text(json.dumps(names))
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def left(out: Path) -> dict[str, bytes]:
    """All that a run leaves, and what the cloud is at its end: the policy, and the ledger."""
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    return files | {"cloud": out.with_suffix(".cloud").read_bytes()}


def main() -> None:
    warnings.simplefilter("error")
    config = load_config(ExperimentConfig, Path(sys.argv[1]), presets=PRESETS)
    folder = Path(sys.argv[2])
    report = folder / "events.json"
    code = run(config, folder / "whole", moment=None, is_resuming=False, report=report)
    assert code == 0, code
    names = json.loads(report.read_text())
    whole = left(folder / "whole")
    assert set(whole) == {*FILES, "cloud"}, set(whole)
    if len(sys.argv) == 3:
        print(json.dumps(names))
        return
    for given in sys.argv[3:]:
        out, moments = folder / f"killed-{given}", [int(m) for m in given.split(",")]
        for number, moment in enumerate(moments):
            code = run(config, out, moment=moment, is_resuming=number > 0, report=None)
            assert code == -signal.SIGKILL, f"moment {given}: ended with {code}"
        left_behind = sorted(path.name for path in out.iterdir()) if out.exists() else []
        code = run(config, out, moment=None, is_resuming=True, report=None)
        assert code == 0, f"moment {given} ({names[moments[0]]}): resumed, ended with {code}"
        found = left(out)
        differing = [key for key in sorted(whole | found) if whole.get(key) != found.get(key)]
        print(json.dumps([given, names[moments[0]], left_behind, differing]), flush=True)


main()
