"""Threads, processes and determinism: what is set for this machine, here alone."""

from __future__ import annotations

import os


def num_cores() -> int:
    """Those this process may use, which not every system can tell."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(wanted: int) -> None:
    """Let PyTorch compute with so many threads, but never with more than there are cores."""
    import torch

    torch.set_num_threads(min(wanted, num_cores()))


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
        torch.utils.deterministic.fill_uninitialized_memory = False


def num_processes(wanted: int, threads: int) -> int:
    """How many processes of so many threads there is room for; one at least.

    The processes give way and not the threads, whose number the order of sums depends on: a run
    gives the same numbers in one process as in several.
    """
    return max(1, min(wanted, num_cores() // threads))
