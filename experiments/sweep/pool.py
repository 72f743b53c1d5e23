"""Runs one after another in this process, or side by side in others; what happens is told."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from experiments.config.schema import ExperimentConfig

logger = logging.getLogger(__name__)

Run = Callable[[ExperimentConfig, Path, Callable[[int, int], None]], dict[str, Any]]
Task = tuple[ExperimentConfig, Path]


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to one run."""

    kind: str
    """kept (finished before), start, round, done or failed"""
    task: int = -1
    """its place in the list of tasks"""
    rounds: tuple[int, int] = (0, 1)
    """how many are done, of how many"""
    summary: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    pid: int = 0
    """of the process that runs it"""


def run_here(tasks: Sequence[Task], run: Run | None, on_event: Callable[[Event], None]) -> None:
    """Run all of them in this process."""
    for i in range(len(tasks)):
        _run_one(i, tasks[i], run or _simulate, on_event)


def run_in_processes(
    tasks: Sequence[Task],
    groups: Sequence[Sequence[int]],
    jobs: int,
    threads: int,
    on_event: Callable[[Event], None],
) -> None:
    """Run all of them in ``jobs`` processes of ``threads`` threads.

    ``groups`` holds the indices of those tasks that share what is dear: a process takes a whole
    one. Those at the end that are fewer than processes are cut in halves, so that none has a whole
    one to do alone. A process that dies, as for want of memory, costs the run it was at; another
    one goes on with the rest.
    """
    waiting = _cut([list(group) for group in groups if group], jobs)
    # Forked from one server that has imported everything: libraries lie in memory once, and a
    # process starts at once. The server itself starts no thread that a fork would lose.
    context = multiprocessing.get_context(
        "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    )
    if hasattr(context, "set_forkserver_preload"):
        context.set_forkserver_preload(["experiments.run.rounds"])
    workers: dict[Connection, _Worker] = {}
    try:
        with _threads(threads):
            while waiting or workers:
                while waiting and len(workers) < jobs:
                    own = [(i, tasks[i]) for i in waiting.pop(0)]
                    worker = _Worker(context, own, threads)
                    workers[worker.connection] = worker
                for connection in wait(list(workers)):
                    worker = workers[connection]  # type: ignore[index]
                    if worker.listen(on_event):
                        continue
                    del workers[worker.connection]
                    if worker.left:
                        on_event(Event("failed", worker.left[0], reason=worker.epitaph()))
                        if worker.left[1:]:
                            waiting.insert(0, worker.left[1:])
    finally:
        for worker in workers.values():
            worker.end()


class _Worker:
    """One process at one group of tasks."""

    def __init__(self, context: Any, tasks: list[tuple[int, Task]], threads: int) -> None:
        self.connection, theirs = context.Pipe()
        self.left = [i for i, _ in tasks]
        self._process = context.Process(target=_work, args=(theirs, tasks, threads), daemon=True)
        self._process.start()
        theirs.close()

    def listen(self, on_event: Callable[[Event], None]) -> bool:
        """Take in one message; False when there will be no more."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            return False
        if isinstance(message, BaseException):
            raise message
        if message.kind in ("done", "failed"):
            self.left.remove(message.task)
        on_event(message)
        return True

    def epitaph(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"its process was killed ({name}); too little memory? try fewer --jobs"
        return f"its process ended with exit code {code}"

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


def _work(connection: Connection, tasks: list[tuple[int, Task]], threads: int) -> None:
    """What a process does; Ctrl-C is its parent's business."""
    # A server that an earlier sweep has started still has that one's number.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for index, task in tasks:
            _run_one(index, task, _simulate, connection.send)
    except BrokenPipeError:
        pass  # the parent is gone
    except BaseException as error:
        text = traceback.format_exc()
        try:
            error.add_note(text)
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(text)
        with contextlib.suppress(BrokenPipeError):
            connection.send(error)
    finally:
        connection.close()


def _run_one(index: int, task: Task, run: Run, on_event: Callable[[Event], None]) -> None:
    config, folder = task
    on_event(Event("start", index, (0, config.rounds), pid=os.getpid()))

    def on_round(done: int, total: int) -> None:
        on_event(Event("round", index, (done, total)))

    try:
        summary = run(config, folder, on_round)
    except (ValueError, MemoryError, RuntimeError) as error:
        # torch reports too little memory as a RuntimeError.
        logger.info("raised here", exc_info=True)
        on_event(Event("failed", index, reason=str(error) or type(error).__name__))
    else:
        on_event(Event("done", index, (config.rounds, config.rounds), summary))


def _simulate(
    config: ExperimentConfig, folder: Path, on_round: Callable[[int, int], None]
) -> dict[str, Any]:
    from experiments.config.loader import dump_config
    from experiments.run.checkpoints import OtherWorld, can_resume
    from experiments.runtimes.local import run_simulation

    is_resuming = can_resume(dump_config(config), folder)
    try:
        return run_simulation(config, folder, on_round=on_round, is_resuming=is_resuming)
    except OtherWorld as error:
        logger.warning("%s: this run begins again", error)
        return run_simulation(config, folder, on_round=on_round)


def _cut(groups: list[list[int]], jobs: int) -> list[list[int]]:
    """The same groups, of which those that would come last, too few for all jobs, are cut."""
    count = len(groups) % jobs
    whole, last = groups[: len(groups) - count], groups[len(groups) - count :]
    while 0 < len(last) < jobs and max(map(len, last)) > 1:
        longest = max(range(len(last)), key=lambda i: len(last[i]))
        group, half = last[longest], len(last[longest]) // 2
        last[longest : longest + 1] = [group[:half], group[half:]]
    return whole + last


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """What libraries read when they are loaded, for the processes that are started meanwhile."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(count)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
