"""Are files found, and read as they are written?"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graftkit.data.checks import BadRows, check_parsed
from graftkit.data.files import read_file
from graftkit.data.sources import find_sources, load_tables
from graftkit.errors import UserError

ROWS = [{"text": "good", "label": "1"}, {"text": "bad", "label": "0"}]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def sources(path: str, **named: str) -> dict[str, str]:
    found, _ = find_sources(path, None, {"train": None, "dev": None, "test": None, **named})
    return {split: source.where for split, source in found.items()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\ngood,1\nbad,0\n"),
        ("bom.csv", b"\xef\xbb\xbftext,label\r\ngood,1\r\nbad,0\r\n"),
        ("blank_lines.csv", "\n text , label\n\ngood,1\n\n\nbad,0"),
        ("unnamed.csv", ",text,label,,\n0,good,1,,\n1,bad,0,,\n"),
        ("a.tsv", "text\tlabel\ngood\t1\nbad\t0\n"),
        ("UPPER.CSV", "text,label\ngood,1\nbad,0\n"),
        ("a.jsonl", '{"text": "good", "label": "1"}\n\n{"text": "bad", "label": "0"}\n'),
        ("bom.jsonl", b'\xef\xbb\xbf{"text": "good", "label": "1"}\n{"text": "bad", "label": "0"}\n'),
        ("a.json", json.dumps(ROWS)),
        ("data.json", json.dumps({"version": 1, "data": ROWS})),
        ("lines.json", "\n".join(map(json.dumps, ROWS))),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content):
    table = read_file(write(tmp_path / name, content))
    assert table.rows.to_list() == ROWS
    assert table.numbers.tolist() == [1, 2]
    assert table.malformed == {}
    assert table.notes == []


def test_parquet(tmp_path):
    columns = {"text": ["good", "bad"], "label": pa.array(["1", "0"]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read_file(tmp_path / "a.parquet").rows.to_list() == ROWS


def test_csv_takes_nothing_but_the_empty_field_for_missing(tmp_path):
    written = ["01", "NA", "None", "null", "nan", " ", "1.0", "TRUE", "1e5", "-", "#N/A"]
    path = write(tmp_path / "a.csv", "text,label\n" + "".join(f"{text},\n" for text in written))
    table = read_file(path)
    assert table.rows["text"][:] == written
    assert table.rows["label"][:] == [None] * len(written)


def test_quoted_fields_may_hold_delimiters_quotes_newlines_and_much_text(tmp_path):
    long = "word " * 40_000
    path = write(tmp_path / "a.csv", f'text,label\n"one, ""two""\nthree",x\r\n{long},y\n5" disk,z\n')
    table = read_file(path)
    assert table.rows["text"][:] == ['one, "two"\nthree', long, '5" disk']
    assert table.numbers.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "mark", "word"), [("a.csv", ";", "semicolons"), ("a.csv", "\t", "tabs"), ("a.tsv", ",", "commas")]
)
def test_the_header_says_what_parts_the_fields(tmp_path, name, mark, word):
    table = read_file(write(tmp_path / name, f"text{mark}label\ngood{mark}1\nbad{mark}0\n"))
    assert table.rows.to_list() == ROWS
    assert table.notes == [f"{tmp_path / name}: read with {word} between fields, as its header has them"]


def test_json_columns_of_mixed_types_become_text(tmp_path):
    values = [1, "one", True, None, float("nan"), 2.5, ["é"], 2**70]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps({"x": value}) for value in values))
    assert read_file(path).rows["x"][:] == ["1", "one", "true", None, None, "2.5", '["é"]', str(2**70)]


def test_a_key_that_a_json_row_lacks_is_missing(tmp_path):
    table = read_file(write(tmp_path / "a.jsonl", '{"a": 1}\n{"b": "x"}\n'))
    assert table.rows.to_list() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]


@pytest.mark.parametrize(
    ("name", "content", "malformed", "numbers"),
    [
        ("few.csv", "text,label\na,1\nb\nc,1\n\n  d\ne,1\n", {"too few fields": [2, 4]}, [1, 3, 5]),
        ("many.csv", "text,label\na,1\nb, c,1\nc,1\n", {"too many fields": [2]}, [1, 3]),
        ("stray.csv", 'text,label\na,1\n"b" c,1\nc,1\n', {"an open or stray quote": [2]}, [1, 3]),
        ("open_at_the_end.csv", 'text,label\na,1\n"b,1\n', {"an open or stray quote": [2]}, [1]),
        ("broken.jsonl", '{"text": "a"}\n{"text": "b"\n\n{"text": "c"}\n', {"not valid JSON": [2]}, [1, 3]),
        ("array.jsonl", '{"text": "a"}\n["b"]\n{"text": "c"}\n', {"not a JSON object": [2]}, [1, 3]),
        ("array.json", '[{"text": "a"}, null, {"text": "c"}]', {"not a JSON object": [2]}, [1, 3]),
        (
            "half.jsonl",
            '{"text": "a"}\n{"text": "\\ud83d"}\n{"text": "\\ud83d\\ude00"}\n',
            {"half of a character (a lone surrogate)": [2]},
            [1, 3],
        ),
        (
            "half.json",
            '[{"text": "\\uD83D"}, {"text": "\\ud83d\\ude00"}]',
            {"half of a character (a lone surrogate)": [1]},
            [2],
        ),
    ],
)
def test_rows_that_cannot_be_parsed_are_left_out_and_numbered(tmp_path, name, content, malformed, numbers):
    table = read_file(write(tmp_path / name, content))
    assert table.malformed == malformed
    assert table.numbers.tolist() == numbers
    assert len(table.rows) == len(numbers)


NOT_PARQUET = "not a parquet file that can be read: "


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "text", ": cannot read this kind of file; its name must end in .csv, .tsv, .json, .jsonl, .parquet"),
        ("a.csv", "", " is empty"),
        ("a.csv", "\n\n", " is empty: it has blank lines only"),
        ("a.csv", "text,label\n", " is empty: it has no rows"),
        ("a.tsv", "text\tlabel\n\n", " is empty: it has no rows"),
        ("a.jsonl", "\n", " is empty: it has no rows"),
        ("a.json", "[]", " is empty: it has no rows"),
        ("a.json", '{"rows": []}', ": found neither an array of rows nor an object with such an array as 'data'"),
        ("a.csv", "text,text\na,b\n", ": column 'text' stands twice. Give one of them another name"),
        (
            "a.csv",
            'text,label\na,1\n"b,1\nc,1\n"d",1\n',
            ': an open quote in row 2 (line 3). Close it; a quote within a quoted field is written twice ("")',
        ),
        ("a.csv", '"text,label\na,1\n', ": the header (its first line) has a quote that is not closed"),
        (
            "a.csv",
            "text,label\ncafé,1\nb,1\nà la carte,1\n".encode("latin-1"),
            ": bytes that are not UTF-8 in rows 1, 3. Save the file as UTF-8",
        ),
        ("a.csv", "text,label\na,1\n".encode("utf-16"), ": the header is not UTF-8. Save the file as UTF-8"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "é"}\n'.encode("latin-1"),
            ": bytes that are not UTF-8 in row 2. Save the file as UTF-8",
        ),
        (
            "a.json",
            '[{"text": "a"}, {"text": "é"}]'.encode("latin-1"),
            ": bytes that are not UTF-8 in row 2. Save the file as UTF-8",
        ),
        (
            "a.json",
            '[{"text": "a"},\n {"text": "b"}\n {"text": "c"}\n {"text": }]',
            ": not valid JSON in row 3 (line 3, column 2): Expecting ',' delimiter",
        ),
        (
            "a.json",
            '{"data": [{"text": "a"}, {"text": }]}',
            ": not valid JSON in row 2 (line 1, column 35): Expecting value",
        ),
        ("a.json", "hello", ": not valid JSON (line 1, column 1): Expecting value"),
        ("a.parquet", "text,label\na,b\n", f": {NOT_PARQUET}Parquet magic bytes not found"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        read_file(path)
    assert str(error.value).startswith(f"{path}{message}")
    assert "\n" not in str(error.value)


def test_parquet_text_that_is_not_utf8(tmp_path):
    bad = pa.array([b"a", b"caf\xe9", None], pa.binary())
    text = pa.StringArray.from_buffers(3, bad.buffers()[1], bad.buffers()[2], bad.buffers()[0])
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: bytes that are not UTF-8 in row 2\. Save"):
        read_file(tmp_path / "a.parquet")


@pytest.mark.parametrize("rows", [19_999, 20_001])
def test_numbers_run_on_from_chunk_to_chunk(tmp_path, rows):
    path = write(tmp_path / "a.csv", "text\n" + "".join(f"row {n}{',' * (n % 10_000 == 7)}\n" for n in range(1, rows)))
    table = read_file(path)
    assert table.malformed == {"too many fields": [7, 10_007]}
    assert table.rows["text"][:] == [f"row {number}" for number in table.numbers]
    assert len(table.rows) == rows - 3


# which files they are


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train.csv", "dev.csv", "test.csv"], {"train": "train.csv", "dev": "dev.csv", "test": "test.csv"}),
        (["train.jsonl", "validation.tsv"], {"train": "train.jsonl", "dev": "validation.tsv"}),
        (["Train.csv", "val.csv", "notes.txt"], {"train": "Train.csv", "dev": "val.csv"}),
        (["train.csv", "valid.csv", "extra.csv", ".test.csv"], {"train": "train.csv", "dev": "valid.csv"}),
        (["train-00000-of-00001.parquet"], {"train": "train-00000-of-00001.parquet"}),
        (["reviews.csv", "._reviews.csv"], {"train": "reviews.csv"}),
    ],
)
def test_splits_of_a_folder_are_found_by_name(tmp_path, files, expected):
    for file in files:
        write(tmp_path / file, "x")
    assert sources(str(tmp_path)) == {split: str(tmp_path / file) for split, file in expected.items()}


def test_a_single_file_becomes_train(tmp_path):
    path = str(write(tmp_path / "test.csv", "x"))
    assert sources(path) == {"train": path}


def test_splits_are_named_by_file_or_by_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("d/train.csv", "d/small.csv", "d/test.csv", "here.csv", "d/here.csv", "other.csv"):
        write(tmp_path / file, "x")
    assert sources("d", train="small.csv", dev="here.csv") == {
        "train": "d/small.csv",
        "dev": "d/here.csv",
        "test": "d/test.csv",
    }
    assert sources("d", train="small", dev="other.csv") == {
        "train": "d/small.csv",
        "dev": "other.csv",
        "test": "d/test.csv",
    }
    assert sources("d/train.csv", test="d/test.csv") == {"train": "d/train.csv", "test": "d/test.csv"}
    _, notes = find_sources("d", None, {"train": "small.csv", "dev": None, "test": None})
    assert notes == ["train: d/small.csv; test: d/test.csv", "not used of d: 'here', 'train'"]


def test_who_brings_a_train_does_not_get_the_rest_of_the_demo(tmp_path):
    train, test = (str(write(tmp_path / name, "x")) for name in ("a.csv", "b.csv"))
    assert sources("demo", train=train) == {"train": train}
    assert sources("demo", train=train, test=test) == {"train": train, "test": test}
    assert sources("demo", test=test)["train"] == "demo/train.csv"


def test_a_folder_with_two_files_of_a_split_is_settled_by_the_user(tmp_path):
    for file in ("train.csv", "train.jsonl", "dev.csv"):
        write(tmp_path / file, "x")
    with pytest.raises(
        UserError, match=r"^'train\.csv', 'train\.jsonl' of .* could each be the train split. Set --data"
    ):
        sources(str(tmp_path))
    assert sources(str(tmp_path), train="train.jsonl")["train"] == str(tmp_path / "train.jsonl")


@pytest.mark.parametrize(
    ("files", "path", "named", "message"),
    [
        ([], "no/such/folder", {}, "no such file or folder: no/such/folder. Set --data.path"),
        ([], "./reviews", {}, "no such file or folder: ./reviews. Set --data.path"),
        ([], "reviews.csv", {}, "no such file or folder: reviews.csv. Set --data.path"),
        (
            ["d/notes.txt"],
            "d",
            {},
            "no data in the folder d: no file there ends in .csv, .tsv, .json, .jsonl, .parquet",
        ),
        (["d/a.csv", "d/b.csv"], "d", {}, "no train split in d; found 'a', 'b'. Set --data.train"),
        (["d/test.csv"], "d", {}, "no train split in d; found 'test'. Set --data.train"),
        (["d/a.csv"], "d", {"dev": "b"}, "no split 'b' in d; found 'a'. Set --data.dev"),
        (
            ["d/train.csv", "d/dev.csv", "d/val.csv"],
            "d",
            {},
            "'dev', 'val' of d could each be the dev split. Set --data.dev to one",
        ),
        (
            ["d/a.csv"],
            "d",
            {"test": "b.csv"},
            "no such file: b.csv (neither in d nor here). Set --data.test to a file or to the name of a split",
        ),
        (
            ["a.csv"],
            "demo",
            {"train": "b.csv"},
            "no such file: b.csv. Set --data.train to a file or to the name of a split",
        ),
        (
            ["a.csv", "b.csv"],
            "a.csv",
            {"train": "b.csv"},
            "nothing is read of --data.path a.csv: --data.train and the others name files. Leave it out",
        ),
        (
            ["a.csv"],
            "owner/name",
            {"train": "a.csv", "dev": "a.csv", "test": "a.csv"},
            "nothing is read of --data.path owner/name: --data.train and the others name files. Leave it out",
        ),
    ],
)
def test_what_cannot_be_found_is_named(tmp_path, monkeypatch, files, path, named, message):
    monkeypatch.chdir(tmp_path)
    for file in files:
        write(tmp_path / file, "x")
    with pytest.raises(UserError) as error:
        sources(path, **named)
    assert str(error.value) == message


def test_a_subset_of_what_is_not_on_the_hub(tmp_path):
    for path in ("demo", str(tmp_path)):
        with pytest.raises(UserError, match=r"--data\.subset en is for data sets on the Hub"):
            find_sources(path, "en", {"train": None, "dev": None, "test": None})


# the Hub


def hub(monkeypatch, splits):
    import datasets

    def load_dataset(path, subset):
        if isinstance(splits, Exception):
            raise splits
        return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_splits_of_a_hub_id(monkeypatch):
    hub(monkeypatch, {"train": ROWS, "validation_matched": ROWS[:1], "test": ROWS[1:]})
    named = {"train": None, "dev": "validation_matched", "test": None}
    tables, _ = load_tables("owner/name", "en", named)
    assert {split: (table.where, table.rows.to_list()) for split, table in tables.items()} == {
        "train": ("owner/name/en (train)", ROWS),
        "dev": ("owner/name/en (validation_matched)", ROWS[:1]),
        "test": ("owner/name/en (test)", ROWS[1:]),
    }
    assert tables["train"].numbers.tolist() == [1, 2]
    named["dev"] = "train[:10%]"
    with pytest.raises(UserError, match=r"no split 'train\[:10%\]' in owner/name; found 'train', 'validation_matched'"):
        load_tables("owner/name", None, named)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ValueError("Config name is missing.\nPlease pick one among: ['en', 'de']"),
            "cannot load owner/name from the Hub: Config name is missing. Please pick one among: ['en', 'de']."
            " Set --data.subset",
        ),
        (RuntimeError("Dataset scripts are out"), "cannot load owner/name from the Hub: Dataset scripts are out"),
    ],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch, error, message):
    hub(monkeypatch, error)
    with pytest.raises(UserError) as refused:
        sources("owner/name")
    assert str(refused.value) == message


def test_a_hub_id_that_is_not_there(monkeypatch):
    from datasets.exceptions import DatasetNotFoundError

    hub(monkeypatch, DatasetNotFoundError("Dataset 'reviews' doesn't exist on the Hub or cannot be accessed."))
    with pytest.raises(UserError, match=r"^no file or folder reviews here, and no such data set on the Hub: Dataset"):
        sources("reviews")


def test_a_hub_id_without_a_network(monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^no file or folder reviews here, and the Hub cannot be asked .*reviews"):
        sources("reviews")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_thousands_of_brackets_are_one_line(tmp_path, name):
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(UserError) as refused:
        check_parsed("train", read_file(tmp_path / name, name), BadRows(drop=False))
    assert "not valid JSON" in str(refused.value)
    assert "\n" not in str(refused.value)
