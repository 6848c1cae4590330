"""Texts with a number each: what is read, cut and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import texts, write_csv

from graftkit.data import DataConfig, load_numbers, load_splits
from graftkit.errors import UserError


def scored(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (text, f"{number:.3f}") for (text, _), number in zip(texts(count, seed), rng.normal(3, 1, count), strict=True)
    ]


def load(path, **settings):
    return load_numbers(DataConfig(path=str(path), task="regression", **settings), 0)


def write(folder, rows, name="rows.csv"):
    return write_csv(folder / name, rows, ("text", "score"))


def test_numbers_are_floats_named_by_their_column_and_cut_evenly(tmp_path):
    rows = scored(200)
    splits = load(write(tmp_path, rows))
    assert splits.labels == ["score"]
    assert {split: len(getattr(splits, split)) for split in ("train", "dev", "test")} == {
        "train": 160, "dev": 20, "test": 20,
    }  # fmt: skip
    assert sorted([*splits.train["label"], *splits.dev["label"], *splits.test["label"]]) == sorted(
        float(number) for _, number in rows
    )
    edges = np.quantile([float(number) for _, number in rows], np.arange(1, 10) / 10)
    for split in ("dev", "test"):
        each = np.bincount(np.searchsorted(edges, getattr(splits, split)["label"][:]), minlength=10)
        assert each.min() >= 1
        assert each.max() <= 3
    facts = splits.facts["splits"]["train"]
    assert facts.keys() == {"rows", "sha256", "distinct", "mean", "sd", "lowest", "highest"}
    assert facts["sd"] == pytest.approx(np.std(splits.train["label"][:]))
    again = load(tmp_path / "rows.csv")
    assert again.facts == splits.facts
    other = load(write(tmp_path, [*rows[:-1], (rows[-1][0], "9.5")], "other.csv"))
    assert other.facts["splits"]["train"]["sha256"] != facts["sha256"]


@pytest.mark.parametrize("kind", ["int", "float", "text", "science"])
def test_however_they_are_written(tmp_path, kind):
    write_as = {"int": int, "float": float, "text": lambda n: f" {n}", "science": lambda n: f"{n}e0"}[kind]
    rows = [{"text": text, "score": write_as(place % 7)} for place, (text, _) in enumerate(texts(40))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load(path)
    assert set(splits.train["label"][:]) <= set(map(float, range(7)))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("1,5", "a label that is no number ('1,5' is the first) in row 7"),
        ("two", "a label that is no number ('two' is the first) in row 7"),
        ("1_0", "a label that is no number ('1_0' is the first) in row 7"),
        ("nan", "a label that is NaN in row 7"),
        ("-inf", "an infinite label in row 7"),
        ("1e39", "an infinite label in row 7"),
        ("", "empty or missing label in row 7"),
        ("  ", "empty or missing label in row 7"),
    ],
)
def test_rows_without_a_number_are_named_or_dropped(tmp_path, written, words):
    rows = scored(40)
    rows[6] = (rows[6][0], written)
    path = write(tmp_path, rows)
    with pytest.raises(UserError) as refused:
        load(path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    splits = load(path, bad_rows="drop")
    assert splits.facts["dropped"] == {"train": {words.partition(" (")[0].partition(" in row")[0]: 1}}
    assert len(splits.train) + len(splits.dev) + len(splits.test) == 39


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "empty or missing label in row 3"),
        (float("nan"), "a label that is NaN in row 3"),
        (float("inf"), "an infinite label in row 3"),
    ],
)
def test_columns_of_numbers_too(tmp_path, value, words):
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = [float(i % 9) for i in range(40)]
    numbers[2] = value
    pq.write_table(pa.table({"text": [text for text, _ in texts(40)], "score": numbers}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=words):
        load(tmp_path / "rows.parquet")
    splits = load(tmp_path / "rows.parquet", bad_rows="drop")
    assert len(splits.train) + len(splits.dev) + len(splits.test) == 39


def test_what_cannot_be_learnt_is_refused_and_what_looks_wrong_is_said(tmp_path):
    with pytest.raises(UserError, match="every label of train is 2, and nothing can be learnt"):
        load(write(tmp_path, [(text, "2.0") for text, _ in texts(30)]))
    with pytest.raises(UserError, match=r"a label that is no number \('fruit' is the first\)"):
        load(write(tmp_path, texts(30)))
    path = tmp_path / "yes.jsonl"
    path.write_text("".join(json.dumps({"text": text, "score": len(text) > 30}) + "\n" for text, _ in texts(30)))
    with pytest.raises(UserError, match="holds yes and no, not numbers"):
        load(path)
    warned = load(write(tmp_path, [(text, str(int(len(text) > 30))) for text, _ in texts(60)])).warnings
    assert any("2 different numbers, which looks like classes" in warning for warning in warned)
    far = load(write(tmp_path, [(text, str(1_700_000_000 + place)) for place, (text, _) in enumerate(texts(40))]))
    assert any("subtract a constant from the column 'score'" in warning for warning in far.warnings)
    twice = load(write(tmp_path, [*scored(60), (texts(60)[3][0], "-8"), (texts(60)[4][0], "-8")]))
    assert twice.facts["repeats_in_train"] == {"repeated_rows": 2, "texts_with_several_labels": 2}
    assert "2 texts of train stand under more than one number" in twice.warnings


def test_groups_folds_and_few_rows(tmp_path):
    path = write(tmp_path, scored(90))
    parts = [load(path, folds=3, fold=fold) for fold in (1, 2, 3)]
    assert sorted(id for part in parts for id in part.test["id"]) == sorted(f"train-{i + 1}" for i in range(90))
    assert "classes" not in json.dumps(parts[0].facts)
    assert not any("part " in line for part in parts for line in [*part.notes, *part.warnings])
    few = load(path, max_rows=6)
    assert len(few.train) == 6


def test_labels_that_are_measured_numbers_are_not_taken_for_classes_without_a_word(tmp_path):
    with pytest.raises(UserError, match=r"the labels are \d+ different numbers, .* set --data\.task regression"):
        load_splits(DataConfig(path=str(write(tmp_path, scored(60))), label="score"), 0)
    tenths = [(text, f"{place % 25 / 10}") for place, (text, _) in enumerate(texts(200))]
    warned = load_splits(DataConfig(path=str(write(tmp_path, tenths)), label="score"), 0).warnings
    assert any("25 different numbers, and each is taken for a class" in warning for warning in warned)
    numbered = [(text, str(place % 25)) for place, (text, _) in enumerate(texts(200))]
    quiet = load_splits(DataConfig(path=str(write(tmp_path, numbered)), label="score"), 0).warnings
    assert not any("taken for a class" in warning for warning in quiet)
