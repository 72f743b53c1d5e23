"""What lies in a run's folder: read, or refused with the file's name."""

import numpy as np
import pandas as pd
import pytest

from experiments.results.folder import (
    KEY_COLUMNS,
    RESULT_COLUMNS,
    ROUND_COLUMNS,
    RoundsWriter,
    read_ranks,
    read_results,
    read_rounds,
    read_summary,
    write_results,
    write_summary,
)

WORDS = [
    b"1e999", b"nan", b"-", b",", b'"', b"\n", b"\r", b"9" * 400, b"true", b"null", b"[" * 3000,
    b"round", b"\0", b"x" * 5000, b"0x10", b"{", b"}",
]  # fmt: skip


def tried(fuzz, read, path, quick, words=WORDS, originals=None):
    originals = originals or [path.read_bytes()]

    def check(data):
        path.write_bytes(data)
        try:
            found = read(path.parent)
        except ValueError as error:
            assert path.name in str(error)
        else:
            if isinstance(found, pd.DataFrame):
                assert len(found)

    fuzz(check, originals, quick=quick, words=words)


def test_rounds_are_read_or_refused(fuzz, in_memory):
    with RoundsWriter(in_memory / "rounds.csv") as writer:
        writer.write([dict.fromkeys(ROUND_COLUMNS, 0.25), dict.fromkeys(ROUND_COLUMNS, 3)])
    tried(fuzz, read_rounds, in_memory / "rounds.csv", 500)


def test_results_are_read_or_refused(fuzz, in_memory):
    row = dict.fromkeys((*KEY_COLUMNS, *RESULT_COLUMNS), 0.5) | {"label": "a, b", "seed": 0}
    write_results(in_memory / "results.csv", [row, row])
    tried(fuzz, read_results, in_memory / "results.csv", 500)


def test_a_summary_is_read_or_refused(fuzz, in_memory):
    write_summary(in_memory / "summary.json", dict.fromkeys(RESULT_COLUMNS, 0.5))
    tried(fuzz, read_summary, in_memory / "summary.json", 2000)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_ranks_are_read_or_refused(write, fuzz, in_memory):
    path = in_memory / "ranks.npz"
    write(path, ranks=np.ones((2, 3, 2), np.int64), projections=np.array(["a", "b"]))

    def read(folder):
        ranks, names = read_ranks(folder)
        assert ranks.ndim == 3
        assert ranks.shape[2] == len(names)
        assert ranks.dtype.kind in "iu"

    tried(fuzz, read, path, 1000, words=[b"<i8", b"|O", b"(9999999999,)", b"descr", b"PK\x03\x04"])
