"""Are sets of labels read as they are written, and bad ones named?"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from graftkit.data import DataConfig, load_label_sets
from graftkit.data.list_columns import rarest_values
from graftkit.errors import UserError

TEXTS = ["an apple", "a saw by the pear", "a crow", "nothing here", "an apple and a saw", "a wren on a drill"]
SETS = [["fruit"], ["fruit", "tool"], ["bird"], [], ["fruit", "tool"], ["bird", "tool"]]
LABELS = ["bird", "fruit", "tool"]


def load(path: Path | str, seed: int = 0, **settings):
    return load_label_sets(DataConfig(path=str(path), task="multi", **settings), seed)


def write(path: Path, labels, texts=TEXTS, column="labels") -> Path:
    """A csv file of texts with a column of labels."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", column), *zip(texts, labels, strict=True)])
    return path


def folder_of(tmp_path: Path, train, dev=None, test=None) -> Path:
    """A folder of splits, each with the sets of `TEXTS` as JSON lines."""
    for split, sets in (("train", train), ("dev", dev or train), ("test", test or train)):
        rows = [{"text": text, "labels": labels} for text, labels in zip(TEXTS, sets, strict=True)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def refused(path, **settings) -> str:
    with pytest.raises(UserError) as error:
        load(path, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


WAYS = {
    "bars": lambda row: "|".join(row),
    "commas": lambda row: ", ".join(row),
    "semicolons": lambda row: "; ".join(reversed(row)),
    "json": json.dumps,
    "python": str,
}


@pytest.mark.parametrize("way", WAYS)
def test_text_writes_sets_of_labels(tmp_path, way):
    for split in ("train", "dev", "test"):
        write(tmp_path / f"{split}.csv", [WAYS[way](row) for row in SETS])
    splits = load(tmp_path)
    assert splits.labels == LABELS
    assert splits.train["labels"][:] == splits.test["labels"][:] == SETS
    facts = splits.facts["splits"]["test"]
    assert facts["classes"] == {"bird": 2, "fruit": 3, "tool": 3}
    assert facts["without_label"] == 1
    assert any(note.startswith("3 labels, 1.33 a row") and "1 of 6 in dev" in note for note in splits.notes)
    assert json.loads(json.dumps(splits.facts)) == splits.facts


@pytest.mark.parametrize("yes", ["1", "1.0", "true"])
def test_columns_of_0_and_1_keep_their_order(tmp_path, yes):
    no = {"1": "0", "1.0": "0.0", "true": "false"}[yes]
    names = ["tool", "bird", "fruit"]
    for split in ("train", "dev", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            rows = [
                [text, *(yes if name in has else no for name in names)] for text, has in zip(TEXTS, SETS, strict=True)
            ]
            csv.writer(file).writerows([["text", *names], *rows])
    splits = load(tmp_path, labels=names)
    assert splits.labels == names
    assert splits.train["labels"][:] == [sorted(row, key=names.index) for row in SETS]
    assert splits.facts["columns"]["labels"] == "tool, bird, fruit"
    assert (
        splits.facts["splits"]["train"]["sha256"] != load(tmp_path, labels=names[:2]).facts["splits"]["train"]["sha256"]
    )


def test_class_labels_of_the_hub_are_named_and_keep_their_order(tmp_path, monkeypatch):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

    names = ["tool", "unused", "bird", "fruit"]
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=names))})
    rows = Dataset.from_dict({"text": TEXTS, "labels": [[names.index(one) for one in row] for row in SETS]}, features)
    splits = DatasetDict(train=rows, validation=rows, test=rows)
    monkeypatch.setattr("graftkit.data.sources._load_from_hub", lambda path, subset: splits)
    found = load("someone/topics")
    assert found.labels == ["tool", "bird", "fruit"]
    assert found.train["labels"][:] == [sorted(row, key=names.index) for row in SETS]
    assert any("left out: 'unused'" in note for note in found.notes)


def test_numbers_in_lists_are_labels_in_the_order_of_numbers(tmp_path):
    numbers = {"fruit": 10, "tool": 9, "bird": 2}
    splits = load(folder_of(tmp_path, [[numbers[name] for name in row] for row in SETS]))
    assert splits.labels == ["2", "9", "10"]
    assert splits.train["labels"][1] == ["9", "10"]


def test_texts_come_in_pairs_too(tmp_path):
    rows = [{"question": t, "other": t[::-1], "tags": s} for t, s in zip(TEXTS, SETS, strict=True)]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load(tmp_path, text_pair="other")
    assert splits.train.column_names == ["id", "text", "text_pair", "labels"]
    assert splits.train["text_pair"][2] == "worc a"


def test_a_label_twice_in_a_row_counts_once(tmp_path):
    splits = load(folder_of(tmp_path, [["fruit", "fruit"], *SETS[1:]]))
    assert splits.train["labels"][0] == ["fruit"]


def test_what_is_missing_is_cut_so_that_rare_labels_are_spread(tmp_path):
    texts = [f"text number {i}" for i in range(200)]
    sets = [["common"] if i % 10 else ["common", "rare"] for i in range(200)]
    path = write(tmp_path / "rows.csv", ["|".join(row) for row in sets], texts)
    splits = load(path)
    assert [len(getattr(splits, split)) for split in ("train", "dev", "test")] == [160, 20, 20]
    assert [splits.facts["splits"][s]["classes"]["rare"] for s in ("train", "dev", "test")] == [16, 2, 2]
    assert splits.facts["cut_from_train"]["test"]["share"] == 0.1
    again = load(path)
    assert again.test["id"][:] == splits.test["id"][:] != load(path, seed=1).test["id"][:]


def test_the_rarest_label_of_all_copies_counts():
    assert rarest_values(np.array([0, 0, 1]), [["a"], ["b"], ["a"]]) == ["b", "b", "a"]


def test_the_same_text_with_other_labels_is_warned_of(tmp_path):
    folder = folder_of(tmp_path, SETS)
    rows = [*zip(TEXTS, SETS, strict=True), (TEXTS[0], ["bird"])]
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": t, "labels": s}) + "\n" for t, s in rows))
    splits = load(folder)
    assert splits.facts["repeats_in_train"] == {"repeated_rows": 1, "texts_with_several_labels": 1}
    assert "1 texts of train stand again with other labels" in splits.warnings


def test_a_label_of_dev_alone_is_warned_of(tmp_path):
    splits = load(folder_of(tmp_path, SETS, dev=[["star"], *SETS[1:]]))
    assert splits.labels == ["bird", "fruit", "star", "tool"]
    assert any("nothing can teach: 'star'" in warning for warning in splits.warnings)


def test_the_demo_is_what_messages_mention():
    splits = load("demo")
    assert splits.labels == ["date", "order", "person", "place", "product"]
    assert [len(getattr(splits, split)) for split in ("train", "dev", "test")] == [221, 50, 120]
    assert splits.train[0] == {
        "id": "train-1",
        "text": "My kettle arrived on Tuesday but the lid is missing .",
        "labels": ["date", "product"],
    }


# what is refused


def test_bad_labels_are_named_with_their_rows_and_can_be_dropped(tmp_path):
    whole = [json.dumps(row) for row in SETS]
    for split in ("train", "dev", "test"):
        write(tmp_path / f"{split}.csv", whole)
    cases = [
        ([*whole[:1], '["fruit", "tool"', *whole[2:]], "labels that are no list in row 2"),
        ([*whole[:1], "[" * 10_000 + "]" * 10_000, *whole[2:]], "labels that are no list in row 2"),
        ([*whole[:1], '["\\ud800"]', *whole[2:]], "labels that are no list in row 2"),
        ([*whole[:1], "[{[1]: 2}]", *whole[2:]], "labels that are no list in row 2"),
        ([*whole[:2], '["bird", null]', *whole[3:]], "a label that is missing or no text in row 3"),
        ([*whole[:3], "", *whole[4:]], "missing labels in row 4"),
    ]
    for labels, words in cases:
        write(tmp_path / "train.csv", labels)
        assert words in refused(tmp_path)
        splits = load(tmp_path, bad_rows="drop")
        assert len(splits.train) == 5
        assert splits.facts["dropped"] == {"train": {words.partition(" in row")[0]: 1}}


def test_an_empty_text_is_bad(tmp_path):
    write(tmp_path / "rows.csv", ["|".join(row) for row in SETS], [*TEXTS[:4], "  ", TEXTS[5]])
    assert "empty or missing text in row 5" in refused(tmp_path / "rows.csv")


def test_a_label_of_test_that_train_never_had(tmp_path):
    folder = folder_of(tmp_path, SETS, test=[["star"], *SETS[1:]])
    assert "a label that train never had ('star') in row 1" in refused(folder)
    assert len(load(folder, bad_rows="drop").test) == 5


def test_labels_spelled_in_two_ways(tmp_path):
    message = refused(folder_of(tmp_path, [["Fruit"], *SETS[1:]]))
    assert "labels that differ only by case or blanks: 'Fruit' (3 rows) and 'fruit' (6 rows)" in message


@pytest.mark.parametrize(
    ("value", "words"),
    [("2", "('2' in the first)"), ("", "(empty in the first)"), ("-1", "('-1' in the first)")],
)
def test_what_is_neither_0_nor_1(tmp_path, value, words):
    columns = {"fruit": ["1", "1", "0", "0", "1", value], "tool": ["0", "1", "0", "0", "1", "1"]}
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", *columns), *zip(TEXTS, *columns.values(), strict=True)])
    message = refused(tmp_path / "rows.csv", labels=["fruit", "tool"])
    assert f"a value in column 'fruit' that is neither 0 nor 1 {words} in row 6" in message
    assert "no column 'birds'" in refused(tmp_path / "rows.csv", labels=["birds"])


def test_rows_that_are_neither_0_nor_1_can_be_dropped(tmp_path):
    columns = {"fruit": ["1", "1", "0", "0", "1", "2"], "tool": ["0", "1", "x", "0", "1", "x"]}
    for split in ("train", "dev", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", *columns), *zip(TEXTS, *columns.values(), strict=True)])
    splits = load(tmp_path, labels=["fruit", "tool"], bad_rows="drop")
    assert splits.train["labels"][:] == [["fruit"], ["fruit", "tool"], [], ["fruit", "tool"]]
    wrong = [f"a value in column {name!r} that is neither 0 nor 1" for name in columns]
    assert splits.facts["dropped"]["train"] == dict.fromkeys(wrong, 1)  # a row counts once


def test_a_column_that_no_row_of_train_has(tmp_path):
    path = write(tmp_path / "rows.csv", ["0"] * 6, column="fruit")
    assert "'fruit' is 1 in no row, so nothing teaches it" in refused(path, labels=["fruit"], bad_rows="drop")


def test_rows_that_are_all_alike(tmp_path):
    assert "every row is without a label" in refused(folder_of(tmp_path, [[]] * 6))
    assert "every row has the same labels, 'fruit', and" in refused(folder_of(tmp_path, [["fruit"]] * 6))


def test_a_column_of_numbers_is_no_set(tmp_path):
    rows = [{"text": text, "label": i} for i, text in enumerate(TEXTS)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert "column 'label' holds int64, and labels are lists" in refused(tmp_path / "rows.json")


def test_settings_that_do_not_go_together():
    with pytest.raises(UserError, match=r"--data\.labels: with --data\.task single"):
        DataConfig(labels=["a"])
    with pytest.raises(UserError, match=r"--data\.labels and --data\.label"):
        DataConfig(labels=["a"], label="b", task="multi")
