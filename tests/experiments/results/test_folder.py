"""Run folders: nothing finished is lost before its successor starts; damage is named."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.results.folder import (
    KEY_COLUMNS,
    RESULT_COLUMNS,
    ROUND_COLUMNS,
    RoundsWriter,
    check_writable,
    load,
    number,
    prepare_out,
    prepare_sweep,
    read_ranks,
    read_results,
    read_rounds,
    read_summary,
    write_results,
    write_summary,
    write_text,
)
from experiments.sweep.sweep import load_sweep

ROOT = Path(__file__).parents[3]
KEYS = {"trial": "a", "label": "uniform", "policy.name": "uniform", "channel.snr_db": 5, "seed": 0}
RESULT = {**KEYS, **dict.fromkeys(RESULT_COLUMNS, 0.5)}
COLUMNS = ",".join((*KEY_COLUMNS, *RESULT_COLUMNS)).encode()
ROUND = dict.fromkeys(ROUND_COLUMNS, 0.25)


@given(st.floats(allow_nan=False) | st.integers(-(2**53), 2**53) | st.booleans())
def test_a_written_number_reads_back_the_same(value):
    assert float(str(number(value))) == value
    assert str(number(np.float64(value))) == str(number(float(value)))


def test_rows_are_on_disk_at_the_end_of_each_round(tmp_path):
    with RoundsWriter(tmp_path / "rounds.csv") as writer:
        writer.write([ROUND, ROUND])
        assert len(read_rounds(tmp_path)) == 2


def test_a_finished_run_is_replaced_only_on_demand_and_not_before_it_starts(tmp_path):
    write_summary(tmp_path / "summary.json", RESULT)
    with pytest.raises(ValueError, match="holds a finished run; .* --overwrite"):
        prepare_out(tmp_path)
    prepare_out(tmp_path, overwrite=True)
    assert (tmp_path / "summary.json").exists()
    RoundsWriter(tmp_path / "rounds.csv").__exit__()
    assert not (tmp_path / "summary.json").exists()


def test_runs_and_sweeps_do_not_share_a_folder(tmp_path):
    write_summary(tmp_path / "summary.json", RESULT)
    with pytest.raises(ValueError, match="holds a single run"):
        prepare_sweep(tmp_path)
    assert (tmp_path / "summary.json").exists()
    (tmp_path / "results.csv").touch()
    with pytest.raises(ValueError, match="holds a sweep"):
        prepare_out(tmp_path, overwrite=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--out .*file.below cannot be written"):
        check_writable(tmp_path / "file" / "below")


def test_a_full_disk_is_named_with_its_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    write_results(path, [RESULT])
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experiments.results.folder.os.replace", full)
    with pytest.raises(OSError, match=r"No space left on device: .*results.csv"):
        write_text(path, "new")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_not_a_number_survives_the_summary(tmp_path):
    write_summary(tmp_path / "summary.json", {**RESULT, "loss": np.float32("nan")})
    assert json.loads((tmp_path / "summary.json").read_text())["loss"] is None
    assert np.isnan(read_summary(tmp_path)["loss"])


@pytest.mark.parametrize("content", ["", "{", "3", "[1]", "null", "{}", "[" * 100_000])
def test_a_damaged_summary_is_named(content, tmp_path):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(ValueError, match=r"summary.json is damaged: .*; run it again"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"\xf0\x28\x8c", "is damaged"),
        (b"policy\nuniform\n", "lacks the columns trial, label, policy.name"),
        (COLUMNS + b"\n", "no run of the sweep has finished yet"),
        (COLUMNS + b"\nc,u,u,0,0,abc" + b",1" * 13 + b"\n", "accuracy is not all num"),
        (
            COLUMNS + 2 * (b"\nc,u,u,0,0" + b",1" * 19) + b"\n",
            "names no run, or one twice; give the",
        ),
        (COLUMNS + b"\nc,u,u,0,0" + b",1" * 19, "its last row is cut off; give the same `airllm s"),
    ],
)
def test_damaged_results_are_named(content, message, tmp_path):
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path)


def test_damaged_rounds_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no rounds.csv"):
        read_rounds(tmp_path)
    (tmp_path / "rounds.csv").write_text("round\n1\n")
    with pytest.raises(ValueError, match="lacks the columns device"):
        read_rounds(tmp_path)
    RoundsWriter(tmp_path / "rounds.csv").__exit__()
    with pytest.raises(ValueError, match="no round of the run has finished yet"):
        read_rounds(tmp_path)


def test_damaged_ranks_are_named(tmp_path):
    path = tmp_path / "ranks.npz"
    with pytest.raises(ValueError, match="holds no ranks.npz"):
        read_ranks(tmp_path)
    for content in (b"", b"junk", b"PK\x03\x04junk"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="ranks.npz is damaged"):
            read_ranks(tmp_path)
    np.savez(path, ranks=np.zeros((2, 3), int), projections=np.array(["a"]))
    with pytest.raises(ValueError, match="is damaged: ranks of shape"):
        read_ranks(tmp_path)
    np.savez(path, ranks=np.ones((2, 3, 1)), projections=np.array(["a"]))
    with pytest.raises(ValueError, match="is damaged: .* type float64"):
        read_ranks(tmp_path)
    # Found by the fuzzer: an unknown compression, and a header that asks for all memory.
    np.savez(path, ranks=np.ones((4, 3, 2), int), projections=np.array(["a", "b"]))
    whole = path.read_bytes()
    for part, other in (
        (b"\0\0\0\0\0\0!", b"\0\0c\0\0\0!"),
        (b"(4, 3, 2), }", b"(9999999999)}"),
        (b"NUMPY", b"numpy"),
    ):
        path.write_bytes(whole.replace(part, other))
        with pytest.raises(ValueError, match="ranks.npz is damaged"):
            read_ranks(tmp_path)
    np.savez(path, ranks=np.ones((4, 3, 2), int), projections=np.array(["a", "b"]))
    ranks, names = read_ranks(str(tmp_path))
    assert ranks.shape == (4, 3, 2)
    assert names == ["a", "b"]


def test_results_are_written_in_full_precision(tmp_path):
    write_results(tmp_path / "results.csv", [{**RESULT, "loss": 0.1 + 0.2}])
    assert pd.read_csv(tmp_path / "results.csv")["loss"][0] == 0.1 + 0.2


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "docs" / "data").glob("*/sweep.toml")), ids=lambda p: p.parent.name
)
def test_packed_data_have_the_rows_that_their_sweep_says(folder):
    runs = {(c.label, c.config.seed, c.config.channel.snr_db) for c in load_sweep(folder).trials}
    rows = load(folder.parent)[0][["label", "seed", "channel.snr_db"]]
    assert len(rows) == len(runs)
    assert set(rows.itertuples(index=False, name=None)) == runs
