"""Every format loads exactly, and every mistake gets its sentence."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from airllm.data.datasets import DataConfig, load_splits
from airllm.data.files import read_table

SHARED = Path(__file__).parents[3].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="shared data is not beside the repo")

ROWS = [
    ('He said "no', "neg"),
    ("tabs, and commas", "pos"),
    ("caf\u00e9 au lait", "neg"),
    ("fine", "pos"),
]


def write(folder, suffix):
    path = folder / f"data{suffix}"
    frame = pd.DataFrame(ROWS, columns=["text", "label"])
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    elif suffix == ".tsv":
        path.write_text("text\tlabel\r\n" + "".join(f"{t}\t{y}\r\n" for t, y in ROWS), newline="")
    elif suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(suffix, tmp_path):
    texts, labels = read_table(write(tmp_path, suffix), "text", "label")
    assert list(zip(texts, labels, strict=True)) == ROWS


def test_windows_1252_is_understood(tmp_path):
    path = tmp_path / "old.label"
    path.write_bytes("DESC:def What is a caf\u00e9 ?\nNUM:date When ?\n".encode("cp1252"))
    assert read_table(path, "text", "label") == (
        ["What is a caf\u00e9 ?", "When ?"],
        ["DESC", "NUM"],
    )
    assert read_table(path, "text", "fine")[1] == ["def", "date"]


def test_only_line_ends_end_a_line_of_a_csv(tmp_path):
    path = bad(tmp_path, "a.csv", "text,label\none\u2028two,1\nform\x0cfeed,2\n".encode())
    assert read_table(path, "text", "label") == (["one\u2028two", "form\x0cfeed"], ["1", "2"])


def test_a_named_encoding_is_taken(tmp_path):
    path = bad(tmp_path, "a.csv", "text,label\ncaf\u00e9,x\n".encode("utf-16"))
    assert read_table(path, "text", "label", "utf-16") == (["caf\u00e9"], ["x"])


def test_nan_is_a_label_like_any_other_when_it_is_written_out(tmp_path):
    path = bad(tmp_path, "a.csv", b"text,label\nbest,nan\nworst,deu\n")
    assert read_table(path, "text", "label")[1] == ["nan", "deu"]


def test_a_folder_does_not_hide_a_dataset_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "sst2").mkdir()
    monkeypatch.chdir(tmp_path)
    asked = []

    def unreachable(name):
        asked.append(name)
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(ValueError, match="could not be had from the Hugging Face hub"):
        load_splits(DataConfig(source="sst2"), seed=0)
    assert asked == ["stanfordnlp/sst2"]


def test_an_evaluation_file_is_not_silently_left_out():
    with pytest.raises(ValueError, match=r"data.eval_source 'a.csv' goes with a local file"):
        load_splits(DataConfig(eval_source="a.csv"), seed=0)


def test_held_out_text_has_the_same_mix_and_is_in_no_other_part(tmp_path):
    path = tmp_path / "many.csv"
    pd.DataFrame(
        {"text": [f"text {i}" for i in range(100)], "label": ["ab"[i % 5 == 0] for i in range(100)]}
    ).to_csv(path, index=False)
    splits = load_splits(DataConfig(source=str(path)), seed=0)
    assert (len(splits.train), len(splits.evaluation)) == (80, 20)
    assert np.bincount(splits.evaluation.labels).tolist() == [16, 4]
    assert not set(splits.train.texts) & set(splits.evaluation.texts)
    again, other = (load_splits(DataConfig(source=str(path)), seed=s) for s in (0, 1))
    assert again.fingerprint == splits.fingerprint != other.fingerprint


def test_limits_draw_with_the_seed(tmp_path):
    path = write(tmp_path, ".csv")
    config = DataConfig(source=str(path), eval_source=str(path), max_train=3, max_eval=2)
    splits = load_splits(config, seed=0)
    assert (len(splits.train), len(splits.evaluation)) == (3, 2)
    assert splits.train.label_names == splits.evaluation.label_names == ("neg", "pos")


def test_text_without_labels_is_fine_for_causal_models(tmp_path):
    path = write(tmp_path, ".csv")
    splits = load_splits(
        DataConfig(source=str(path), eval_source=str(path), label_column=""), seed=0
    )
    assert splits.train.label_names == ()
    assert splits.train.texts == tuple(text for text, _ in ROWS)


@needs_shared
@pytest.mark.parametrize(
    ("source", "text", "label", "rows"),
    [
        ("sst2/train.tsv", "sentence", "label", 67349),
        ("sst2/dev.tsv", "content", "label", 872),
        ("trec/TREC.train.label", "text", "label", 5452),
        ("trec/TREC.test.label", "text", "label", 500),
    ],
)
def test_shared_files_have_the_rows_their_readme_counts(source, text, label, rows):
    texts, labels = read_table(SHARED / source, text, label)
    assert len(texts) == len(labels) == rows
    assert len(set(labels)) == (2 if "sst2" in source else 6)


def bad(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\n", "a.csv has no rows"),
        ("a.csv", b"sentence,label\nx,1\n", "has no 'text' in row 1 .its columns: sentence, label"),
        ("a.tsv", b"text\tlabel\nx\n", "has nothing in row 1, column 'label'"),
        ("a.csv", b"text,label\n ,1\n", "has nothing in row 1, column 'text'"),
        ("a.jsonl", b'{"text": "x"\n', "line 1, is no JSON"),
        ("a.jsonl", b'\n{"text": "x", "label": 1}\n\n{"text": }\n', "line 4, is no JSON"),
        ("a.jsonl", b'{"text": "x", "label": NaN}\n', "nothing in row 1, column 'label'"),
        ("a.csv", b"text,label\nx,\ny,1\n", "nothing in row 1, column 'label'; take the row out"),
        ("a.csv", b"text,label\nx,1\nI came, I saw,2\n", "row 2, has 3 cells for 2 columns; quote"),
        ("a.tsv", b"text\tlabel\nx\ty\t1\n", "row 1, has 3 cells for 2 columns; take out"),
        ("a.csv", b"text,label,label\nx,1,2\n", "names a column twice .text, label, label."),
        ("a.jsonl", b'{"text": "x", "label": [1, 2]}\n', "value of type list in row 1, column 'la"),
        ("a.csv", b'text,label\n"x,1\ny,2\n', "mend the quotation marks there"),
        (
            "a.csv",
            b"text,label\nno \x81 byte,1\n",
            "is neither UTF-8 nor Windows-1252; set data.enc",
        ),
        (
            "a.csv",
            "text,label\nx,1\n".encode("utf-16"),
            "has zero bytes, so it is UTF-16 or no text",
        ),
        ("a.jsonl", b"[1]\n", "line 1, is no JSON object"),
        ("a.jsonl", b'{"text": ' + 100_000 * b"[", "line 1, is no JSON .maximum recursion"),
        ("a.label", b"no head here\n", "line 1, does not start with COARSE:fine"),
        ("a.parquet", b"nonsense", "is no readable parquet file"),
        ("a.xlsx", b"x", "has the ending .xlsx; it must be one of .csv"),
    ],
)
def test_a_bad_file_is_named(name, content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_table(bad(tmp_path, name, content), "text", "label")


def test_a_parquet_file_whose_column_names_are_no_text_is_named(tmp_path):
    """Found by the fuzzer: pyarrow's error names no file."""
    path = tmp_path / "a.parquet"
    pd.DataFrame({"text": ["x"], "label": ["a"]}).to_parquet(path)
    path.write_bytes(path.read_bytes().replace(b"label", b"la\xffel"))
    with pytest.raises(ValueError, match=r"a\.parquet is no readable parquet file"):
        read_table(path, "text", "label")


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.csv does not exist"):
        load_splits(DataConfig(source=str(tmp_path / "nothing.csv")), seed=0)


def test_a_label_that_training_does_not_know_is_named(tmp_path):
    train = bad(tmp_path, "train.csv", b"text,label\nx,a\ny,b\n")
    test = bad(tmp_path, "test.csv", b"text,label\nx,a\ny,c\n")
    with pytest.raises(ValueError, match=r"label 'c' in row 2, which is not in the training set"):
        load_splits(DataConfig(source=str(train), eval_source=str(test)), seed=0)


def test_a_hub_id_without_a_network_gets_a_remedy(monkeypatch):
    def unreachable(name):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"'sst2' is no local file and could not be had"):
        load_splits(DataConfig(source="sst2"), seed=0)


COLA = "gj04\t1\t\tOur friends won't buy this.\ngj04\t0\t\tOne more \"and.\n"


@pytest.mark.parametrize(
    ("name", "content"), [("a.tsv", COLA), ("a.csv", "gj04,1,,Our friends won't buy this.\n"
                                            'gj04,0,,"One more ""and."\n')],
)  # fmt: skip
def test_without_a_header_columns_are_numbers(name, content, tmp_path):
    path = bad(tmp_path, name, content.encode())
    texts, labels = read_table(path, "3", "1", has_header=False)
    assert texts == ["Our friends won't buy this.", 'One more "and.']
    assert labels == ["1", "0"]
    with pytest.raises(ValueError, match=r"no '4' in row 1 .its columns: 0, 1, 2, 3"):
        read_table(path, "4", "1", has_header=False)
    with pytest.raises(ValueError, match=r"taken for a header: .* set data.header = false"):
        read_table(path, "text", "label")


@pytest.mark.parametrize("header", ["text, label", " text,label ", "\ufefftext ,\tlabel"])
@pytest.mark.parametrize("encoding", ["auto", "utf-8"])
def test_blanks_around_the_names_of_columns_are_no_part_of_them(header, encoding, tmp_path):
    path = bad(tmp_path, "a.csv", f"{header}\nx, 1\n".encode())
    assert read_table(path, "text", "label", encoding) == (["x"], ["1"])
    path = bad(tmp_path, "a.tsv", f"{header.replace(',', chr(9) + ' ')}\nx\t1\n".encode())
    if "\tlabel" not in header:
        assert read_table(path, "text", "label", encoding) == (["x"], ["1"])


@pytest.mark.parametrize("length", [131_073, 400_000])
@pytest.mark.parametrize(("name", "cut"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_cell_may_be_as_long_as_it_likes(name, cut, length, tmp_path):
    path = bad(tmp_path, name, f"text{cut}label\n{'x' * length}{cut}1\n".encode())
    assert read_table(path, "text", "label") == (["x" * length], ["1"])


def hub(monkeypatch, **splits):
    """Stand in for the hub: load_dataset gives these splits."""
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["cold", "warm"])

    def split(rows):
        whole = datasets.Dataset.from_list(rows)
        return whole if isinstance(rows[0]["label"], str) else whole.cast_column("label", names)

    made = {name: split(rows) for name, rows in splits.items()}
    monkeypatch.setattr("datasets.load_dataset", lambda name: made)


GOOD = [{"text": "snow", "label": 0}, {"text": "sun", "label": 1}]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [*GOOD, {"text": None, "label": 1}]}, "'train', has nothing in row 3, col"),
        ({"train": [*GOOD, {"text": " ", "label": 1}]}, "'train', has nothing in row 3, col"),
        ({"train": [*GOOD, {"text": "x", "label": None}]}, "nothing in row 3, column 'label'"),
        ({"train": [*GOOD, {"text": "x", "label": -1}]}, "nothing in row 3, column 'label'"),
        ({"train": [{"text": ["a", "b"], "label": 1}]}, "type list in row 1, column 'text'"),
        ({"train": GOOD, "test": [{"text": "x", "label": -1}]}, "'test', has nothing in row 1, c"),
        ({"train": GOOD, "test": [{"text": "x", "label": "?"}]}, "'test', column 'label', has the"),
    ],
)  # fmt: skip
def test_a_bad_row_of_a_hub_dataset_is_named_as_in_a_file(splits, message, monkeypatch):
    hub(monkeypatch, **splits)
    with pytest.raises(ValueError, match=f"data.source 'some/set', split .*{message}"):
        load_splits(DataConfig(source="some/set"), seed=0)


def test_of_several_configurations_one_has_to_be_named(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = "".join(f'{{"text": "t{i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(20))
    (tmp_path / "train.jsonl").write_text(rows)
    (tmp_path / "other.jsonl").write_text(rows)
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain\n  data_files: train.jsonl\n"
        "- config_name: other\n  data_files: other.jsonl\n---\n"
    )
    for given, message in (("", "has several conf"), ("odd", "has no configuration 'odd'")):
        with pytest.raises(ValueError, match=f"{message}.*data.configuration: plain, other"):
            load_splits(DataConfig(source=str(tmp_path), configuration=given), seed=0)
    splits = load_splits(DataConfig(source=str(tmp_path), configuration="other"), seed=0)
    assert len(splits.train) == 16
    with pytest.raises(ValueError, match="data.configuration 'x' goes with a Hugging Face dataset"):
        load_splits(DataConfig(configuration="x"), seed=0)
