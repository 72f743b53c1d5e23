"""Text files of users: every one is read, or refused in a sentence that names it."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airllm.data.files import read_table
from channel.traces import FORMATS, read_trace

CSV = [
    b'text,label\n"a, b",1\nc,0\n', "text,label\r\nüber,ja\r\nx,nein\r\n".encode(),
    b'label,text\n1,"two\nlines"\n', "text,label\na,b\n".encode("utf-16"),
]  # fmt: skip
TSV = [b'text\tlabel\na "b\t1\nc\t0\n', b"label\ttext\n1\tx\n"]
JSONL = [b'{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n', b'{"text": "\\u00e4"}\n']
TREC = [b"DESC:manner How did it ?\nENTY:cremat What films ?\n"]
WORDS = [
    b'"', b'""', b",", b"\t", b"\n", b"\r", b"\0", b"text", b"label", b"null", b"NaN", b"Infinity",
    b"[" * 2000, b"{", b"}", b"1" * 5000, b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x0c",
    b"x" * 140_000, b"\\ud800",
]  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "originals", "quick"),
    [("csv", CSV, 2000), ("tsv", TSV, 2000), ("jsonl", JSONL, 2000), ("label", TREC, 1000)],
)
def test_a_text_file_is_read_or_refused(suffix, originals, quick, fuzz, in_memory):
    path = in_memory / f"data.{suffix}"

    def check(data):
        path.write_bytes(data)
        try:
            texts, labels = read_table(path, "text", "label")
        except ValueError as error:
            assert path.name in str(error)
        else:
            assert len(texts) == len(labels) > 0
            assert all(isinstance(t, str) and t for t in [*texts, *labels])

    fuzz(check, originals, quick=quick, words=WORDS)


def test_a_parquet_file_is_read_or_refused(fuzz, in_memory):
    path = in_memory / "data.parquet"
    originals = []
    tables = [
        pa.table({"text": ["a", "b", "c"], "label": [0, 1, 0]}),
        pa.table({"text": ["a"] * 50, "label": ["x", "y"] * 25}),
        pa.table({"text": ["a", None], "label": [0.5, float("nan")]}),
    ]
    for table, compression in zip(tables, ("none", "snappy", "zstd"), strict=True):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression=compression)
        originals.append(buffer.getvalue())

    def check(data):
        path.write_bytes(data)
        try:
            texts, labels = read_table(path, "text", "label")
        except ValueError as error:
            assert path.name in str(error)
        else:
            assert len(texts) == len(labels) > 0

    fuzz(check, originals, quick=800)


TRACES = {
    "plain": [b"time_s,snr_db\n0,1.5\n1,2\n2,-3\n"],
    "ucc-5g": [b"Timestamp,SNR\n2020.01.02_03.04.05,10\n2020.01.02_03.04.06,-\n"
               b"2020.01.02_03.04.07,12\n2020.01.02_03.05.07,9\n"],
    "ucc-5g-cqi": [b"Timestamp,CQI\n2020.01.02_03.04.05,10\n2020.01.02_03.04.06,15\n"],
    "cicv5g": [b"t\tsinr(db)\n0\t3\n0\t4.5\n0\tnan\n"],
    "nyu-mets": [b"12.5 ,Mbits/sec\n3\n0.5,kbit/s\n"],
}  # fmt: skip
TRACE_WORDS = [
    b"-", b"nan", b"inf", b"1e308", b"-1e308", b"1e-320", b"99999999999999999999", b"-5", b"0",
    b"Gbit/s", b"9999.12.31_23.59.59", b"0001.01.01_00.00.00", b'"', b"\0", b"\n", b",", b"\t",
    b"x" * 140_000, b"1_0", b"\xd9\xa3",
]  # fmt: skip


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_is_read_as_a_sane_link_or_refused(name, fuzz, in_memory):
    path = in_memory / "trace.csv"

    def check(data):
        path.write_bytes(data)
        try:
            trace = read_trace(path, FORMATS[name])
        except ValueError as error:
            assert path.name in str(error)
            return
        assert 0 < trace.duration_s < np.inf
        assert (np.diff(trace.times_s) > 0).all()
        try:
            snr_db = trace.snr_db(np.linspace(0.0, 3 * trace.duration_s, 20), 1e6)
        except ValueError as error:
            assert "does not fit a band" in str(error)
            return
        # -inf stands for a link that carries nothing.
        assert not np.isnan(snr_db).any()
        assert (snr_db < np.inf).all()

    fuzz(check, TRACES[name], quick=1000, words=TRACE_WORDS)
