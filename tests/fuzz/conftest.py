"""Damaged inputs for every decoder: thousands by default, 10^5 each in the slow tier.

A plain driver rather than hypothesis, which takes a millisecond for an input that a decoder has
done with in twenty microseconds. Inputs follow from the test's name: each failure repeats.
"""

from __future__ import annotations

import resource
import signal
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

FULL = 100_000
_HANG_S = 10.0  # for one input; the slowest decoder takes milliseconds
# Bytes above what the process has, of addresses (Arrow reserves some) and of memory really used: a
# length field must not ask for more.
_ADDRESSES, _MEMORY = 8 << 30, 512 << 20

Check = Callable[[bytes], None]


@pytest.fixture(params=["quick", pytest.param("full", marks=pytest.mark.slow)])
def fuzz(request) -> Callable[..., None]:
    """``fuzz(check, originals, quick=...)`` puts damaged copies of the originals through a check.

    ``check`` gets bytes and raises for anything but the outcome that is promised. ``words`` are
    pieces of the format that are strewn in; ``repair`` makes a checksum right again, so that what
    lies behind it is reached.
    """

    def run(
        check: Check,
        originals: Sequence[bytes],
        *,
        quick: int,
        words: Sequence[bytes] = (),
        repair: Callable[[bytes], bytes] = lambda data: data,
    ) -> None:
        count = quick if request.param == "quick" else FULL
        rng = np.random.default_rng(zlib.crc32(request.node.originalname.encode()))
        with _limits():
            for number in range(count):
                data = repair(_damaged(rng, originals, words))
                signal.setitimer(signal.ITIMER_REAL, _HANG_S)
                try:
                    check(data)
                except BaseException as error:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    shown = data if len(data) < 200 else data[:200] + b"..."
                    raise AssertionError(
                        f"input {number} ({len(data)} bytes) {shown!r}: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)

    return run


@pytest.fixture
def in_memory(tmp_path) -> Iterator[Path]:
    """A folder in memory where there is one: 10^5 files a test would wear out a disk."""
    import shutil
    import tempfile

    shm = Path("/dev/shm")
    if not shm.is_dir():
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=shm))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def _limits() -> Iterator[None]:
    def hung(signum: int, frame: object) -> None:
        raise TimeoutError(f"a decoder took more than {_HANG_S:g} s")

    before = signal.signal(signal.SIGALRM, hung)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESSES, hard))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
        assert grown < _MEMORY, f"memory grew by {grown} bytes"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def _damaged(rng: np.random.Generator, originals: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    if rng.random() < 0.03:
        return rng.bytes(int(rng.integers(200)))
    data = bytearray(originals[rng.integers(len(originals))])
    for _ in range(int(rng.integers(1, 5))):
        _DAMAGES[rng.integers(len(_DAMAGES))](rng, data, originals, words)
    return bytes(data)


def _flip(rng, data, originals, words) -> None:
    for _ in range(int(rng.integers(1, 9))):
        if data:
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))


def _overwrite(rng, data, originals, words) -> None:
    if data:
        at = int(rng.integers(len(data)))
        data[at] = int(rng.choice([0, 1, 9, 10, 13, 32, 34, 44, 0x7F, 0x80, 0xFF]))


def _stretch(rng, data, originals, words) -> None:
    """Something that may be a length becomes another one."""
    size = int(rng.choice([1, 2, 4, 8]))
    if len(data) >= size:
        at = int(rng.integers(len(data) - size + 1))
        value = int(rng.choice([0, 1, 127, 255, 65_535, 2**31 - 1, 2**32 - 1, 2**62]))
        data[at : at + size] = (value % 256**size).to_bytes(size, "little")


def _cut(rng, data, originals, words) -> None:
    del data[int(rng.integers(len(data) + 1)) :]


def _delete(rng, data, originals, words) -> None:
    a, b = sorted(rng.integers(len(data) + 1, size=2).tolist())
    del data[a : min(b, a + 40)]


def _repeat(rng, data, originals, words) -> None:
    a, b = sorted(rng.integers(len(data) + 1, size=2).tolist())
    piece = bytes(data[a : min(b, a + 64)])
    data[a:a] = piece * int(rng.choice([1, 2, 30]))


def _insert(rng, data, originals, words) -> None:
    at = int(rng.integers(len(data) + 1))
    word = words[rng.integers(len(words))] if len(words) else rng.bytes(int(rng.integers(1, 9)))
    data[at:at] = word


def _replace(rng, data, originals, words) -> None:
    """A word takes the place of what stands between two separators."""
    if not len(words):
        return _overwrite(rng, data, originals, words)
    ends = [i for i, c in enumerate(data) if c in b' ,;:=\t\n\r"[]{}']
    if len(ends) >= 2:
        i = int(rng.integers(len(ends) - 1))
        data[ends[i] + 1 : ends[i + 1]] = words[rng.integers(len(words))]


def _splice(rng, data, originals, words) -> None:
    other = originals[rng.integers(len(originals))]
    at, start = int(rng.integers(len(data) + 1)), int(rng.integers(len(other) + 1))
    data[at:] = other[start:]


_DAMAGES = (_flip, _overwrite, _stretch, _cut, _delete, _repeat, _insert, _replace, _splice)
