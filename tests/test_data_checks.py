"""Is bad data refused with a line that helps, and dropped where the user says so?"""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graftkit.data import DataConfig, Splits, load_splits
from graftkit.errors import UserError

GOOD = [("yes", "a"), ("no", "b"), ("oh yes", "a"), ("oh no", "b")]


def as_csv(rows: list[tuple[str, ...]]) -> str:
    return "text,label\n" + "".join(",".join(row) + "\n" for row in rows)


def load(folder: Path, bad_rows: str = "error", *, train=GOOD, dev=GOOD, test=GOOD, **columns: str) -> Splits:
    """Splits of csv files with these rows, or with this very content."""
    for split, rows in {"train": train, "dev": dev, "test": test}.items():
        (folder / f"{split}.csv").write_text(rows if isinstance(rows, str) else as_csv(rows))
    return load_splits(DataConfig(path=str(folder), bad_rows=bad_rows, **columns), seed=0)


BAD_ROWS = [
    # the bad split, what is wrong, the rows it is wrong in, the reason under which they are counted
    ({"train": [*GOOD, ("", "a"), ("  ", "b")]}, "empty or missing text in rows 5, 6", "empty or missing text"),
    ({"test": [*GOOD, ("ok", ""), ("ok", " ")]}, "empty or missing label in rows 5, 6", "empty or missing label"),
    ({"dev": [("x",), *GOOD]}, "too few fields in row 1", "too few fields"),
    ({"train": [*GOOD, ("x", "y", "a")]}, "too many fields in row 5", "too many fields"),
    ({"train": as_csv(GOOD) + '"open,a\n'}, "an open or stray quote in row 5", "an open or stray quote"),
    (
        {"train": [*GOOD, ("one", "c"), ("two", "d")]},
        "a class with one row ('c', 'd') in rows 5, 6",
        "a class with one row",
    ),
    (
        {"test": [("one", "c"), *GOOD, ("two", "c")]},
        "a label that train never had ('c') in rows 1, 6",
        "a label that train never had",
    ),
    (
        {"train": [("", "a")] * 7 + GOOD},
        "empty or missing text in rows 1, 2, 3, 4, 5 and 2 more",
        "empty or missing text",
    ),
]


@pytest.mark.parametrize(("bad", "wrong", "reason"), BAD_ROWS)
def test_bad_rows_are_named(tmp_path, bad, wrong, reason):
    [split] = bad
    with pytest.raises(UserError) as error:
        load(tmp_path, **bad)
    cure = "Mend the data, or set --data.bad_rows drop"
    assert str(error.value) == f"{tmp_path / split}.csv: {wrong}. {cure}"


@pytest.mark.parametrize(("bad", "wrong", "reason"), BAD_ROWS)
def test_bad_rows_are_dropped_and_counted(tmp_path, bad, wrong, reason):
    [split] = bad
    splits = load(tmp_path, "drop", **bad)
    assert [(row["text"], row["label"]) for row in getattr(splits, split)] == GOOD
    rows = bad[split].splitlines()[1:] if isinstance(bad[split], str) else bad[split]
    dropped = len(rows) - len(GOOD)
    assert splits.facts["dropped"] == {split: {reason: dropped}}
    assert f"dropped from {split}: {dropped} x {reason}" in splits.notes


def test_ids_stay_when_other_rows_are_dropped(tmp_path):
    splits = load(tmp_path, "drop", train=[("x",), ("yes", "a"), ("", "a"), *GOOD[1:], ("lone", "c")])
    assert splits.train["id"][:] == ["train-2", "train-4", "train-5", "train-6"]
    assert splits.dev["id"][:] == ["dev-1", "dev-2", "dev-3", "dev-4"]


def test_dropping_a_class_from_train_drops_its_rows_in_test(tmp_path):
    splits = load(tmp_path, "drop", train=[*GOOD, ("lone", "c")], test=[*GOOD, ("lost", "c")])
    assert splits.facts["dropped"] == {
        "train": {"a class with one row": 1},
        "test": {"a label that train never had": 1},
    }
    assert splits.labels == ["a", "b"]


def test_clean_data_drops_nothing(tmp_path):
    splits = load(tmp_path, "drop")
    assert splits.facts["dropped"] == {}
    assert not any("dropped" in note for note in splits.notes)


@pytest.mark.parametrize("bad_rows", ["error", "drop"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"train": [*GOOD, ("buy", "Spam "), ("sell", "spam"), ("rent", "spam")]},
            "{}/train.csv: labels that differ only by case or blanks: 'Spam ' (1 row) and 'spam' (2 rows); "
            "'Spam ' is in row 5. Spell them alike",
        ),
        (
            {"test": [*GOOD, ("x", "A"), ("y", " b"), ("z", "A")]},
            "{}/test.csv: labels that differ only by case or blanks: ' b' (1 row) and 'b' (6 rows); "
            "'A' (2 rows) and 'a' (6 rows); ' b' is in row 6. Spell them alike",
        ),
        (
            {"train": [("yes", "a"), ("no", "a")]},
            "{}/train.csv: only one class, 'a', and nothing to tell it from. Set --data.label or add rows",
        ),
        ({"test": "text,label\n"}, "{}/test.csv is empty: it has no rows"),
        ({"test": ""}, "{}/test.csv is empty"),
        ({"dev": "text,intent\na,b\n"}, "no column 'label' in {}/dev.csv; found 'text', 'intent'. Set --data.label"),
        ({"text": "body"}, "no column 'body' in {}/train.csv; found 'text', 'label'. Set --data.text"),
        ({"text_pair": "context"}, "no column 'context' in {}/train.csv; found 'text', 'label'. Set --data.text_pair"),
        ({"text_pair": "text"}, "--data.text, .text_pair and .label name the same column twice: text, text, label"),
        (
            {"train": "title,stars\na,b\n"},
            "{}/train.csv: no column is named like a text; found 'title', 'stars'. Set --data.text",
        ),
        ({"train": "text,Body,label\na,b,c\n"}, "{}/train.csv: 'text', 'Body' could each be the text. Set --data.text"),
        ({"train": "text\na\n"}, "{}/train.csv: no column is named like a label; found 'text'. Set --data.label"),
    ],
)
def test_what_no_dropping_can_mend(tmp_path, bad_rows, bad, message):
    with pytest.raises(UserError) as error:
        load(tmp_path, bad_rows, **bad)
    assert str(error.value) == message.replace("{}", str(tmp_path))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"test": [("", "a")]},
            "{}/test.csv: no row with a text and a label is left. Set --data.test, .text or .label",
        ),
        (
            {"test": [("x", "z")]},
            "{}/test.csv: none of its labels stands in {}/train.csv. Set --data.test or --data.label",
        ),
        ({"dev": [("x",)]}, "{}/dev.csv: no row could be parsed. Set --data.dev to another file"),
        (
            {"train": [("x", "y"), ("yes", "a"), ("no", "a")]},
            "{}/train.csv: fewer than two classes have two rows or more. Add rows, or set --data.label",
        ),
    ],
)
def test_too_little_is_left(tmp_path, bad, message):
    with pytest.raises(UserError) as error:
        load(tmp_path, "drop", **bad)
    assert str(error.value) == message.replace("{}", str(tmp_path))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("text", "column 'text' holds list<item: string>, and a text is one string. Set --data.text"),
        ("label", "column 'label' holds list<item: string>, and a label is one string. Set --data.label"),
    ],
)
def test_lists_are_no_text_and_no_label(tmp_path, column, message):
    rows = [{"text": text, "label": label} for text, label in GOOD]
    (tmp_path / "train.json").write_text(json.dumps([{**row, column: ["x", "y"]} for row in rows]))
    with pytest.raises(UserError) as error:
        load_splits(DataConfig(path=str(tmp_path)), seed=0)
    assert str(error.value) == f"{tmp_path / 'train.json'}: {message}"


def test_pairs_are_checked_too(tmp_path):
    content = "text,context,label\n" + "".join(
        f"{text},{'' if text == 'no' else 'why'},{label}\n" for text, label in GOOD
    )
    with pytest.raises(UserError, match=r"train\.csv: empty or missing text_pair in row 2\. Mend"):
        load(tmp_path, train=content, dev=content, test=content, text_pair="context")


# labels


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1, 10, 2, 2, 10, 1], ["1", "2", "10"]),
        ([-1, 0, -1, 0], ["-1", "0"]),
        ([1.0, 2.0, 1.0, 2.0], ["1", "2"]),
        ([1.5, 2.0, 1.5, 2.0], ["1.5", "2"]),
        ([True, False, True, False], ["false", "true"]),
        (["10", "9", "a", "9", "a", "10"], ["10", "9", "a"]),
        (["1", 1, 2, "2"], ["1", "2"]),
        (["01", "1", "01", "1"], ["01", "1"]),
        (["None", "NA", "None", "NA"], ["NA", "None"]),
    ],
)
def test_labels_become_strings_in_order(tmp_path, values, labels):
    rows = [{"text": f"row {number}", "label": value} for number, value in enumerate(values)]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    splits = load_splits(DataConfig(path=str(tmp_path)), seed=0)
    assert splits.labels == labels
    assert splits.train.features["label"].dtype == "string"
    if all(isinstance(value, str) for value in values):
        assert splits.train["label"][:] == values


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int8])
def test_labels_of_parquet(tmp_path, kind):
    label = np.array([1, 2, 1, 2], kind) if kind is np.int8 else np.array([0.1, 2, 0.1, 2], kind)
    table = pa.table({"text": ["a", "b", "c", "d"], "label": label})
    for split in ("train", "dev", "test"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    assert load_splits(DataConfig(path=str(tmp_path)), seed=0).labels == ["1" if kind is np.int8 else "0.1", "2"]


def test_a_float_label_that_is_no_number_is_missing(tmp_path):
    table = pa.table({"text": ["a", "b", "c", "d", "e", "f"], "label": [1.0, 2.0, float("nan"), 1.0, 2.0, None]})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"train\.parquet: empty or missing label in rows 3, 6\. Mend"):
        load_splits(DataConfig(path=str(tmp_path)), seed=0)


def class_label_rows(labels: list[int], names: list[str]) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = {"text": [f"row {number}" for number in range(len(labels))], "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


def test_the_names_of_a_class_label_keep_their_order(tmp_path):
    names = ["world", "sports", "business", "none of these"]
    for split in ("train", "dev", "test"):
        class_label_rows([2, 0, 1, 1, 0, 2], names).to_parquet(tmp_path / f"{split}.parquet")
    splits = load_splits(DataConfig(path=str(tmp_path)), seed=0)
    assert splits.labels == names
    assert splits.train["label"][:] == ["business", "world", "sports", "sports", "world", "business"]
    assert splits.facts["splits"]["train"]["classes"]["none of these"] == 0


def test_a_class_label_that_is_withheld_is_missing(monkeypatch):
    rows = class_label_rows([0, 1, 0, 1], ["a", "b"])
    splits = datasets.DatasetDict(train=rows, validation=rows, test=class_label_rows([-1, -1], ["a", "b"]))
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset: splits)
    with pytest.raises(UserError, match=r"owner/name \(test\): empty or missing label in rows 1, 2\. Mend"):
        load_splits(DataConfig(path="owner/name"), seed=0)
    assert load_splits(DataConfig(path="owner/name", test="validation"), seed=0).test["label"][:] == ["a", "b"] * 2


def test_labels_are_those_of_train_and_dev(tmp_path):
    splits = load(tmp_path, dev=[*GOOD, ("late", "aa")])
    assert splits.labels == ["a", "aa", "b"]
    assert splits.warnings[-1] == "labels of dev that train never had, and that nothing can teach: 'aa'"
