"""Recorded links: cleaned as reported, and read from three public sets as they are."""

from pathlib import Path

import numpy as np
import pytest

from channel import Cell, ChannelConfig
from channel.traces import FORMATS, TraceFormat, read_trace

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "traces"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is not beside the repo")
PLAIN = FORMATS["plain"]


def write(folder, text, name="t.csv"):
    path = folder / name
    path.write_text(text)
    return path


def test_missing_repeated_backward_and_gaps_are_handled_and_counted(tmp_path):
    text = "time_s,snr_db\n0,1\n1,-\n1,2\n1,4\n0.5,9\n2,5\n100,6\n101,7\n"
    trace = read_trace(write(tmp_path, text), PLAIN)
    report = trace.report
    assert (report.rows, report.missing, report.repeated, report.backward, report.gaps) == (
        8, 1, 1, 1, 1,
    )  # fmt: skip
    assert trace.times_s.tolist() == [0, 1, 2, 3, 4]
    assert trace.values.tolist() == [1, 3, 5, 6, 7]
    assert trace.duration_s == 5.0
    assert trace.at([0.0, 0.99, 4.5, 5.0, 6.2]).tolist() == [1, 1, 7, 1, 3]


def test_a_throughput_is_the_snr_that_carries_it(tmp_path):
    path = write(tmp_path, "2.0,Mbits/sec\n1000,kbit/s\n0,Mbits/sec\n")
    trace = read_trace(path, FORMATS["nyu-mets"])
    assert trace.values.tolist() == [2e6, 1e6, 0.0]
    snr_db = trace.snr_db(np.array([0.0, 1.0, 2.0]), 1e6)
    np.testing.assert_allclose(snr_db[:2], [10 * np.log10(3), 0.0])
    assert snr_db[2] == -np.inf


def test_a_cqi_is_its_threshold(tmp_path):
    form = TraceFormat("cqi", "cqi", "t")
    trace = read_trace(write(tmp_path, "t,cqi\n0,0\n1,1\n2,15\n"), form)
    assert trace.snr_db(np.array([0.0, 1.0, 2.0]), 1e6).tolist() == [-np.inf, -6.7, 22.7]


def test_a_trace_drives_the_cell(tmp_path):
    rows = "".join(f"{t},{10 if t % 2 else 0}\n" for t in range(20))
    path = write(tmp_path, "time_s,snr_db\n" + rows)
    config = ChannelConfig.from_preset(f"trace:{path}", csi_error_db=0.0)
    cell, seen = Cell(config, 6, seed=0), []
    for round_index in range(4):
        cell.begin_round(round_index)
        seen.append(cell.true_links().snr_db)
    assert set(np.unique(seen)) == {0.0, 10.0}
    assert (np.diff(seen, axis=0) != 0).all()  # every second another value


def test_a_file_of_ones_own_needs_only_its_columns_named(tmp_path):
    path = write(tmp_path, "when,down\n0,2\n1,1\n2,2\n")
    config = ChannelConfig.from_preset(
        f"trace:{path}", trace_value_column="down", trace_time_column="when",
        trace_kind="throughput", trace_unit="Mbit/s", csi_error_db=0.0,
    )  # fmt: skip
    cell = Cell(config, 3, seed=0)
    cell.begin_round(0)
    np.testing.assert_allclose(np.isin(np.round(cell.true_links().rate_bps), [1e6, 2e6]), True)
    with pytest.raises(ValueError, match=r"trace_kind\n.*snr_db"):
        ChannelConfig(trace_kind="rsrp")


@pytest.mark.parametrize(("rate", "unit", "warns"), [(80, "", 1), (80, "bit/s", 0), (8e4, "", 0)])
def test_a_throughput_in_the_wrong_unit_is_warned_about(rate, unit, warns, tmp_path, caplog):
    path = write(tmp_path, f"time_s,rate\n0,{rate}\n1,{rate}\n")
    config = ChannelConfig.from_preset(
        f"trace:{path}", trace_value_column="rate", trace_kind="throughput", trace_unit=unit
    )
    Cell(config, 1, seed=0)
    assert (
        caplog.text.count("80 bit/s; if its numbers are in another unit, set channel.tr") == warns
    )


@needs_shared
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("ucc_5g", "ucc-5g"),
        ("ucc_5g", "ucc-5g-cqi"),
        ("cicv5g", "cicv5g"),
        ("nyu_mets", "nyu-mets"),
    ],
)
def test_every_file_of_the_public_sets_is_read(folder, name):
    files = [p for p in sorted((SHARED / folder).iterdir()) if p.suffix in (".csv", ".txt")]
    assert files
    for file in files:
        trace = read_trace(file, FORMATS[name])
        assert len(trace.times_s) > 50
        assert (np.diff(trace.times_s) > 0).all()
        assert np.isfinite(trace.values).all()
        if folder == "ucc_5g":
            assert 0.02 < trace.report.repeated / trace.report.rows < 0.2
        assert np.isfinite(trace.snr_db(trace.times_s, 20e6)).mean() > 0.5


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ("time_s,snr_db\n", PLAIN, "t.csv has no rows"),
        ("time,snr_db\n0,1\n1,2\n", PLAIN, "no column 'time_s' .it has time, snr_db.; name that"),
        ("time,snr_db\n0,1\n1,2\n", PLAIN, "that of the time with channel.trace_time_column"),
        ("time_s,db\n0,1\n1,2\n", PLAIN, "name that of the value with channel.trace_value_column"),
        ("time_s,snr_db\n0,x\n", PLAIN, "row 1: 'x' in column 'snr_db' is no number"),
        ("time_s,snr_db\nnoon,1\n", PLAIN, "row 1: 'noon' is no time of the format 'seconds'"),
        ("time_s,snr_db\n0,1\n0,2\n", PLAIN, "fewer than two times with a value"),
        ("time_s,snr_db\n0,inf\n", PLAIN, "row 1: the value must be finite"),
        # Found by the fuzzer: tracebacks, clocks that stand still, links that are not a number.
        ("snr_db,time_s\n1,0\n2\n", PLAIN, "row 2: '' is no time of the format 'seconds'"),
        ("time_s,snr_db\n0," + 140_000 * "1", PLAIN, "t.csv is no table of cells: field larger"),
        ("time_s,snr_db\nnan,1\n", PLAIN, "row 1: 'nan' is no time"),
        ("time_s,snr_db\n0,1\n1e300,1\n", PLAIN, "row 2: '1e300' is no time"),
        ("time_s,snr_db\n0,1e308\n", PLAIN, "row 1: no link has an SNR of 1e308 dB"),
        ("1\n-2\n", FORMATS["nyu-mets"], "row 2: the throughput must be >= 0, got -2"),
    ],
)
def test_a_bad_file_is_named(text, form, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_trace(write(tmp_path, text), form)


def test_a_throughput_that_no_band_carries_is_named(tmp_path):
    trace = read_trace(write(tmp_path, "1\n1e300\n"), FORMATS["nyu-mets"])
    with pytest.raises(ValueError, match=r"1e\+300 bit/s does not fit a band of 1e\+06 Hz; make"):
        trace.snr_db(0.0, 1e6)


def test_a_cqi_off_the_table_is_the_nearest_on_it(tmp_path):
    trace = read_trace(
        write(tmp_path, "Timestamp,CQI\n2020.01.02_03.04.05,1e308\n2020.01.02_03.04.06,-3\n"),
        FORMATS["ucc-5g-cqi"],
    )
    np.testing.assert_array_equal(trace.snr_db(np.array([0.0, 1.0]), 1e6), [22.7, -np.inf])


def test_absent_files_and_bad_formats_are_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.csv does not exist"):
        read_trace(tmp_path / "nothing.csv", PLAIN)
    with pytest.raises(ValueError, match="snr_db.*throughput.*rsrp"):
        TraceFormat("x", "rsrp")
    with pytest.raises(ValueError, match="unit must be one of"):
        TraceFormat("x", "throughput", unit="baud")


@pytest.mark.parametrize(
    ("time_format", "stamps"),
    [
        ("seconds", ["0", "0.1", "0.3"]),
        ("milliseconds", ["0", "100", "300"]),
        ("milliseconds", ["1575536552000", "1575536552100", "1575536552300"]),
        ("microseconds", ["7e5", "8e5", "1e6"]),
        ("iso", ["2019-12-05 09:02:32", "2019-12-05 09:02:32.1", "2019-12-05T09:02:32.300Z"]),
        ("iso", ["2019-12-05T10:02:32+01:00", "2019-12-05T09:02:32.1Z", "20191205T090232.3"]),
        ("%d.%m.%Y %H:%M:%S.%f%z", ["05.12.2019 10:00:00.0+0100", "05.12.2019 09:00:00.1+0000",
                                    "05.12.2019 11:00:00.3+0200"]),
    ],
)  # fmt: skip
def test_times_are_of_the_format_that_is_named(time_format, stamps, tmp_path, caplog):
    rows = "".join(f"{stamp},{i}\n" for i, stamp in enumerate(stamps))
    path = write(tmp_path, " time_s, snr_db \n" + rows)
    trace = read_trace(path, TraceFormat("snr_db", "snr_db", "time_s", time_format))
    np.testing.assert_allclose(trace.times_s, [0.0, 0.1, 0.3], atol=1e-6)
    assert trace.values.tolist() == [0, 1, 2]
    Cell(ChannelConfig.from_preset(f"trace:{path}", trace_time_format=time_format), 1, seed=0)
    assert "apart" not in caplog.text


@pytest.mark.parametrize(
    ("step", "said", "warns"),
    [(100, "", 1), (5, "", 1), (5, "seconds", 0), (1, "", 0), (0.1, "", 0)],
)
def test_times_in_the_wrong_unit_are_warned_about(step, said, warns, tmp_path, caplog):
    path = write(tmp_path, "time_s,snr_db\n" + "".join(f"{i * step:g},{i}\n" for i in range(9)))
    Cell(ChannelConfig.from_preset(f"trace:{path}", trace_time_format=said), 1, seed=0)
    hint = f"samples are {step:g} s apart; if its times are in another unit, set channel.trace_time"
    assert caplog.text.count(hint) == warns


def test_a_time_of_another_format_names_the_key(tmp_path):
    path = write(tmp_path, "time_s,snr_db\n2019-12-05 09:02:32,1\n")
    with pytest.raises(ValueError, match=r"row 1: .* set channel.trace_time_format .*iso"):
        read_trace(path, PLAIN)
    with pytest.raises(ValueError, match="channel.trace_time_format must be one of seconds"):
        ChannelConfig(trace_time_format="ms")
