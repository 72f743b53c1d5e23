"""What a control group leaves this process: processor time and memory, by cgroup v1 and v2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def cpu_quota(root: Path = Path("/")) -> float:
    """Processor time a second, in cores; infinite without a quota.

    A group is bounded by those above it, as far as they can be seen from here. ``root`` is where
    /proc and /sys are. Source: the kernel's admin-guide/cgroup-v2 and scheduler/sched-bwc.
    """
    quotas = [float("inf")]
    for folder in _groups("cpu", root):
        for words in (
            _words(folder / "cpu.max"),
            _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us"),
        ):
            # "max" (v2) and -1 (v1) are no quota.
            with suppress(ValueError, ZeroDivisionError):
                quota, period = map(int, words)
                if quota > 0:
                    quotas.append(quota / period)
    return min(quotas)


def memory_limit(root: Path = Path("/")) -> float:
    """Bytes that the processes of the group may have together; infinite without a limit."""
    limits = [float("inf")]
    for folder in _groups("memory", root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(ValueError):
                limits += map(int, _words(folder / name))
    return min(limits)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's group and of those above it, in either hierarchy."""
    mount = root / "sys" / "fs" / "cgroup"
    with suppress(OSError):
        for line in (root / "proc" / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                mounts = [mount, mount / "unified"]
            elif controller in controllers.split(","):
                mounts = [mount / controllers, mount / controller]
            else:
                continue
            own = Path(path.lstrip("/"))
            # In a container the path may be the host's, of which only the top is there.
            for above in (own, *own.parents):
                yield from (where / above for where in mounts)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except (OSError, ValueError):
        return []
