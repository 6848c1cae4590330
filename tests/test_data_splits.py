"""Which rows go where, and what does the record say of them?"""

from __future__ import annotations

import hashlib
import json
import socket
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import assets

from graftkit.config import to_dict
from graftkit.data import DataConfig, Splits, load_splits
from graftkit.data.cuts import cut_rows, cut_tenths, stratified_order
from graftkit.errors import UserError

SHARES = {"a": 70, "b": 20, "c": 10}


def write_rows(path: Path, rows: list[tuple[str, ...]], header: str = "text,label") -> str:
    path.write_text(header + "\n" + "".join(",".join(row) + "\n" for row in rows))
    return str(path)


def hundred() -> list[tuple[str, str]]:
    """100 rows of three classes in a shuffled order."""
    labels = np.random.default_rng(1).permutation([label for label, rows in SHARES.items() for _ in range(rows)])
    return [(f"text {number}", str(label)) for number, label in enumerate(labels, 1)]


def counts(rows: datasets.Dataset) -> dict[str, int]:
    return dict(sorted(Counter(rows["label"][:]).items()))


def ids(splits: Splits) -> dict[str, list[str]]:
    return {split: getattr(splits, split)["id"][:] for split in ("train", "dev", "test")}


def test_the_demo_is_there_without_a_network(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    splits = load_splits(DataConfig(), seed=0)
    assert sum(len(rows) for rows in (splits.train, splits.dev, splits.test)) >= 960
    assert len(splits.labels) == 8
    assert splits.warnings == []
    assert splits.facts["sources"] == {split: f"demo/{split}.csv" for split in ("train", "dev", "test")}
    assert splits.train.column_names == ["id", "text", "label"]


# cutting dev and test from train


def test_dev_and_test_are_stratified_tenths_of_train(tmp_path):
    rows = hundred()
    splits = load_splits(DataConfig(path=write_rows(tmp_path / "all.csv", rows)), seed=3)
    assert counts(splits.dev) == {"a": 7, "b": 2, "c": 1}
    assert counts(splits.test) == {"a": 7, "b": 2, "c": 1}
    assert counts(splits.train) == {"a": 56, "b": 16, "c": 8}
    every = [row for split in (splits.train, splits.dev, splits.test) for row in split]
    assert sorted((int(row["id"].removeprefix("train-")), row["text"], row["label"]) for row in every) == [
        (number, *row) for number, row in enumerate(rows, 1)
    ]
    for split in ids(splits).values():
        assert split == sorted(split, key=lambda name: int(name.removeprefix("train-")))  # in the order of the file
    assert splits.notes[-2:] == [
        "no dev split: a stratified tenth of train, seed 3 (10 rows)",
        "no test split: a stratified tenth of train, seed 3 (10 rows)",
    ]
    assert splits.facts["cut_from_train"] == {
        "dev": {"share": 0.1, "seed": 3},
        "test": {"share": 0.1, "seed": 3},
    }


def test_a_cut_follows_from_the_seed(tmp_path):
    path = write_rows(tmp_path / "all.csv", hundred())
    first, again, other = (ids(load_splits(DataConfig(path=path), seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert first["dev"] != other["dev"]
    assert first["test"] != other["test"]


def test_what_is_cut_does_not_depend_on_what_else_is(tmp_path):
    path = write_rows(tmp_path / "all.csv", hundred())
    extra = write_rows(tmp_path / "extra.csv", [("more", "a"), ("of it", "b")])
    both = ids(load_splits(DataConfig(path=path), seed=0))
    assert ids(load_splits(DataConfig(path=path, test=extra), seed=0))["dev"] == both["dev"]
    assert ids(load_splits(DataConfig(path=path, dev=extra), seed=0))["test"] == both["test"]
    fewer = ids(load_splits(DataConfig(path=path, max_rows=20), seed=0))
    assert (fewer["dev"], fewer["test"]) == (both["dev"], both["test"])


def test_small_classes_stay_in_train(tmp_path):
    rows = [(f"text {number}", f"class {number // 2}") for number in range(80)]
    splits = load_splits(DataConfig(path=write_rows(tmp_path / "all.csv", rows)), seed=0)
    assert len(splits.dev) == len(splits.test) == 8
    assert len(counts(splits.train)) == 40
    assert len(splits.labels) == 40


def test_rows_of_one_text_are_cut_together(tmp_path):
    rows = [(f"text {number % 50}", "ab"[number % 2]) for number in range(200)]
    splits = load_splits(DataConfig(path=write_rows(tmp_path / "all.csv", rows)), seed=0)
    assert len(splits.dev) == len(splits.test) == 20
    assert splits.facts["overlaps"] == {"test in train": 0, "dev in train": 0, "test in dev": 0}
    assert counts(splits.dev) in ({"a": 8, "b": 12}, {"a": 12, "b": 8})


@pytest.mark.parametrize("named", [{}, {"dev": "extra.csv"}])
def test_too_few_rows_to_cut_from(tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    write_rows(Path("all.csv"), [("yes", "a"), ("no", "b"), ("yes", "a"), ("no", "b")])
    write_rows(Path("extra.csv"), [("yes", "a"), ("no", "b")])
    with pytest.raises(UserError) as error:
        load_splits(DataConfig(path="all.csv", **named), seed=0)
    missing, cure = ("test", "--data.test") if named else ("dev and test", "--data.dev and --data.test")
    few = "all.csv: 4 rows, of which only 2 differ, are too few to cut"
    assert str(error.value) == f"{few} {missing} from. Add rows, or set {cure}"


def test_max_rows_are_stratified_seeded_and_nested(tmp_path):
    for split in ("train", "dev", "test"):
        write_rows(tmp_path / f"{split}.csv", hundred())
    path = str(tmp_path)
    sampled = {rows: load_splits(DataConfig(path=path, max_rows=rows), seed=0) for rows in (3, 10, 50, 99, 100, 200)}
    assert {rows: len(splits.train) for rows, splits in sampled.items()} == {
        3: 3,
        10: 10,
        50: 50,
        99: 99,
        100: 100,
        200: 100,
    }
    assert counts(sampled[3].train) == {"a": 1, "b": 1, "c": 1}
    assert counts(sampled[10].train) == {"a": 7, "b": 2, "c": 1}
    assert counts(sampled[50].train) == {"a": 35, "b": 10, "c": 5}
    assert set(sampled[10].train["id"]) < set(sampled[50].train["id"]) < set(sampled[99].train["id"])
    assert sampled[50].notes[-1] == "train: a stratified 50 of 100 rows, seed 0"
    assert sampled[100].notes == sampled[200].notes == load_splits(DataConfig(path=path), seed=0).notes
    assert ids(load_splits(DataConfig(path=path, max_rows=50), seed=1)) != ids(sampled[50])
    assert len(sampled[10].dev) == len(sampled[10].test) == 100
    with pytest.raises(UserError, match=r"^--data\.max_rows 2 is less than one row for each of 3 labels$"):
        load_splits(DataConfig(path=path, max_rows=2), seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_every_stretch_of_the_order_is_stratified(seed):
    classes = np.random.default_rng(seed).permutation(np.repeat([0, 1, 2, 3], [1000, 300, 30, 2]))
    order, free = stratified_order(classes, np.arange(len(classes)), seed)
    assert sorted(order) == list(range(len(classes)))
    assert sorted(classes[order[free:]]) == [0, 1, 2, 3]
    for start in (0, 133, 400, 1100):
        found = np.bincount(classes[order[start : start + 133]], minlength=4)
        assert (abs(found - np.array([1000, 300, 30, 2]) / 1332 * 133) <= 2).all()


@pytest.mark.parametrize("seed", range(20))
def test_no_class_is_lost_to_a_cut(seed):
    rng = np.random.default_rng(seed)
    groups = np.unique(rng.integers(0, 30, 60), return_inverse=True)[1]
    classes = np.unique(rng.integers(0, 12, 60), return_inverse=True)[1]
    tenths = cut_tenths(classes, groups, seed)
    left = ~(tenths["dev"] | tenths["test"])
    assert set(classes[left]) == set(classes)
    assert not set(groups[tenths["dev"]]) & set(groups[~tenths["dev"]])
    assert set(classes[cut_rows(classes, classes.max() + 1, seed)]) == set(classes)


# what the record, the notes and the warnings say


def test_facts_are_plain_json(tmp_path, monkeypatch):
    monkeypatch.setattr("graftkit.data.columns.HASHED_ROWS", 3)  # the hash is made in pieces, and they do not show
    pairs = [("yes", "why", "x"), ("no", "why", "y"), ("yes", "how", "x"), ("no", "how", "y")]
    for split in ("train", "dev", "test"):
        write_rows(tmp_path / f"{split}.csv", pairs, "Sentence,context,intent")
    config = DataConfig(path=str(tmp_path), text_pair="context")
    splits = load_splits(config, seed=0)
    said = json.dumps([["yes", "why", "x"], ["no", "why", "y"], ["yes", "how", "x"], ["no", "how", "y"]])
    fingerprint = {"rows": 4, "sha256": hashlib.sha256(said.encode()).hexdigest(), "classes": {"x": 2, "y": 2}}
    assert json.loads(json.dumps(splits.facts)) == {
        "path": str(tmp_path),
        "subset": None,
        "sources": {split: str(tmp_path / f"{split}.csv") for split in ("train", "dev", "test")},
        "columns": {"text": "Sentence", "text_pair": "context", "label": "intent"},
        "splits": dict.fromkeys(["train", "dev", "test"], fingerprint),
        "cut_from_train": {},
        "max_rows": None,
        "bad_rows": "error",
        "dropped": {},
        "repeats_in_train": {"repeated_rows": 0, "texts_with_several_labels": 0},
        "overlaps": {"test in train": 4, "dev in train": 4, "test in dev": 4},
    }
    assert splits.train.to_list()[1] == {"id": "train-2", "text": "no", "text_pair": "why", "label": "y"}
    assert splits.test["id"][:] == ["test-1", "test-2", "test-3", "test-4"]
    assert splits.notes == [
        "; ".join(f"{split}: {tmp_path / split}.csv" for split in ("train", "dev", "test")),
        "text column: 'Sentence' (the only one named like a text)",
        "label column: 'intent' (the only one named like a label)",
    ]


def test_columns_that_the_user_named_need_no_note(tmp_path):
    for split in ("train", "dev", "test"):
        write_rows(tmp_path / f"{split}.csv", hundred(), "v2,v1")
    splits = load_splits(DataConfig(path=str(tmp_path), text="v2", label="v1"), seed=0)
    assert len(splits.notes) == 1
    assert splits.train[0]["text"] == "text 1"


def test_own_files_are_not_said_to_be_the_demo(tmp_path):
    train = write_rows(tmp_path / "a.csv", hundred())
    facts = load_splits(DataConfig(train=train), seed=0).facts
    assert facts["path"] is None
    assert facts["sources"] == {"train": train, "dev": train, "test": train}


def test_the_content_hash_knows_what_a_row_says_and_not_its_format(tmp_path):
    rows = [(f"tëxt {number}", str(number % 2 + 1)) for number in range(20)]
    table = datasets.Dataset.from_dict({"label": [int(label) for _, label in rows], "text": [text for text, _ in rows]})
    write_rows(tmp_path / "a.csv", rows)
    write_rows(tmp_path / "b.csv", [*rows[1:], rows[0]])
    write_rows(tmp_path / "c.csv", [*rows[:-1], (rows[-1][0], "1")])
    (tmp_path / "a.tsv").write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for text, label in rows))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    (tmp_path / "a.json").write_text(json.dumps([{**row, "label": row["label"] * 1.0} for row in table]))
    table.to_parquet(tmp_path / "a.parquet")

    def print_of(name: str) -> str:
        file = str(tmp_path / name)
        config = DataConfig(train=file, dev=file, test=file)
        return load_splits(config, seed=0).facts["splits"]["train"]["sha256"]

    hashes = {name: print_of(name) for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet")}
    assert len(set(hashes.values())) == 1, hashes
    assert len({hashes["a.csv"], print_of("b.csv"), print_of("c.csv")}) == 3


def test_repeats_and_overlaps_are_counted(tmp_path):
    train = [("yes", "a"), ("no", "b"), ("yes", "a"), ("yes", "b"), ("no", "b"), ("perhaps", "a"), ("Yes", "a")]
    write_rows(tmp_path / "train.csv", train)
    write_rows(tmp_path / "dev.csv", [("perhaps", "a"), ("never", "b")])
    write_rows(tmp_path / "test.csv", [("yes", "a"), ("yes", "b"), ("never", "b"), ("new", "a")])
    splits = load_splits(DataConfig(path=str(tmp_path)), seed=0)
    assert splits.facts["repeats_in_train"] == {"repeated_rows": 3, "texts_with_several_labels": 1}
    assert splits.facts["overlaps"] == {"test in train": 2, "dev in train": 1, "test in dev": 1}
    assert splits.warnings == [
        "3 of 7 rows of train repeat the text of an earlier one",
        "1 texts of train stand under more than one label",
        "2 of 4 rows of test also stand in train, which flatters the scores on test",
        "1 of 2 rows of dev also stand in train, which flatters the scores on dev",
        "1 of 4 rows of test also stand in dev",
    ]


def test_pairs_repeat_only_where_both_texts_do(tmp_path):
    pairs = [("yes", "why", "a"), ("yes", "how", "b"), ("no", "why", "a"), ("yes", "why", "a"), ("no", "how", "b")]
    for split, rows in {"train": pairs, "dev": pairs[:1], "test": [("no", "who", "a"), ("no", "how", "a")]}.items():
        write_rows(tmp_path / f"{split}.csv", rows, "text,context,label")
    splits = load_splits(DataConfig(path=str(tmp_path), text_pair="context"), seed=0)
    assert splits.facts["repeats_in_train"] == {"repeated_rows": 1, "texts_with_several_labels": 0}
    assert splits.facts["overlaps"] == {"test in train": 1, "dev in train": 1, "test in dev": 0}


def test_the_config_has_the_names_that_recipes_show():
    assert to_dict(DataConfig()) == {
        **dict.fromkeys(["subset", "train", "dev", "test", "text", "text_pair", "label", "labels", "max_rows"]),
        **dict.fromkeys(["seed", "folds", "fold"]),
        "path": "demo",
        "bad_rows": "error",
        "task": "single",
    }


@pytest.mark.real
def test_repeats_of_sms_spam():
    root = assets() / "data" / "sms_spam"
    test = str(root / "test.csv")
    splits = load_splits(DataConfig(path=str(root), dev=test), seed=0)
    assert splits.facts["repeats_in_train"]["repeated_rows"] == 290
    assert splits.facts["overlaps"]["test in train"] == 108
