"""Threads, processes and determinism: what is set for this machine, here alone."""

from __future__ import annotations

import logging
import os
from functools import lru_cache

import psutil

from experiments.assembly.cgroups import cpu_quota, memory_limit

logger = logging.getLogger(__name__)

_DEFAULT_THREADS = 2
_PROCESS_BYTES = 2.0**31
"""set aside for a process of a sweep; a run of quick.toml has 0.93 GiB at its peak"""


def num_cores() -> int:
    """Those this process may use: of its affinity, and whole ones of its CPU quota; one at least.

    Not every system can tell.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, int(min(cores, cpu_quota())))


def num_threads(wanted: int, jobs: int = 1) -> int:
    """PyTorch's threads in each of so many processes, of which 0 leaves the number to the machine.

    Then it is one where there are several processes, and else two. In any case it is at most the
    process's share of the cores, and OMP_NUM_THREADS; one line of the log says where a number that
    was wanted is above.
    """
    cores = num_cores()
    bound, by = max(1, cores // jobs), f"usable cores are {cores}"
    if jobs > 1:
        by += f" for {jobs} jobs"
    if (given := _omp_threads()) and given < bound:
        bound, by = given, f"OMP_NUM_THREADS is {given}"
    if wanted > bound:
        _warn_once("runtime.threads is %d, but %s; taking %d", wanted, by, bound)
    return min(wanted or (1 if jobs > 1 else _DEFAULT_THREADS), bound)


def use_threads(wanted: int) -> None:
    """Let PyTorch compute with `num_threads`."""
    import torch

    torch.set_num_threads(num_threads(wanted))


def use_determinism(wanted: bool = True) -> None:
    """Let CUDA compute by algorithms alone that give the same bits every time, or by any.

    To be called before anything is on the GPU; a CPU has no others.
    """
    import torch

    # cuBLAS reads it once in a process, at its first product, and refuses later what was not said
    # then: its workspaces would make sums depend on what ran before.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(wanted)
        # Nothing reads memory before it is written; filling it would take a kernel each time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def num_processes(wanted: int, threads: int) -> int:
    """How many processes of so many threads there is room for; one at least.

    The processes give way and not the threads, whose number the order of sums depends on: a run
    gives the same numbers in one process as in several.
    """
    return max(1, min(wanted, num_cores() // threads))


def num_in_memory() -> int:
    """How many processes of a sweep the memory that is free now has room for; one at least."""
    free = min(psutil.virtual_memory().available, memory_limit())
    return max(1, int(free / _PROCESS_BYTES))


def _omp_threads() -> int:
    """OMP_NUM_THREADS, of a list for nested regions the first; 0 where it is none or no number."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


@lru_cache
def _warn_once(text: str, *values: object) -> None:
    logger.warning(text, *values)
