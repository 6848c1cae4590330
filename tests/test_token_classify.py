"""The recipe, end to end, on tiny checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import run_recipe
from test_token_classification import sentence, sentences

from graftkit import cli
from graftkit.errors import UserError
from graftkit.report.reading import read_folder
from graftkit.report.tables import read_baselines, read_predictions, write_predictions

LABELS = ["O", *(f"{mark}-{group}" for group in ("bird", "fruit", "tool") for mark in "BI")]


def write_rows(path, rows):
    keys = ("words", "tags")
    path.write_text("".join(json.dumps({key: row[key] for key in keys}) + "\n" for row in rows))


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """A folder with 60, 15 and 21 sentences, of which one of test is read in several windows."""
    folder = tmp_path_factory.mktemp("tagged")
    for split, count, seed in (("train", 60, 1), ("dev", 15, 2), ("test", 20, 3)):
        rows = sentences(count, seed)
        if split == "test":
            rows.append(sentence("long", [word for row in sentences(20, 4) for word in row["words"]]))
        write_rows(folder / f"{split}.jsonl", rows)
    return folder


def train(out, checkpoint, data, *words):
    metrics = run_recipe(
        "token_classify", "--backbone.name", checkpoint, "--data.path", data, "--run.out", out, "--train.epochs", 2,
        "--train.batch_size", 8, "--train.lr", 2e-3, "--run.precision", "fp32", *words,
    )  # fmt: skip
    return out, metrics


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint, tagged):
    """One run, for all tests that only read it."""
    return train(tmp_path_factory.mktemp("made") / "run", checkpoint("bert", dropout=0.1), tagged)


def test_the_run_folder_holds_what_it_says(made):
    out, metrics = made
    assert {path.name for path in out.iterdir()} == {
        "config.yaml", "run.json", "log.jsonl", "timing.jsonl", "model", "predictions-test.parquet", "metrics.json",
        "baselines-test.parquet", "measures-test.parquet", "measures-dev.parquet",
        "predictions-dev.parquet", "rows-test.parquet", "rows-dev.parquet", "report.html", "report.md", "checkpoints",
    }  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    assert record["task"] == "token-classification"
    assert record["headline"] == "entity_f1"
    assert record["labels"] == LABELS
    assert record["calibration"]["temperature"] is None
    assert "each word" in record["calibration"]["reason"]
    assert record["lengths"]["truncated_rows"] == 0
    assert record["saved"]["overlong"]["joined_rows"] > 1
    assert "calibration" not in json.loads((out / "model" / "config.json").read_text())
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["test"]["rows"] == 21


def test_tables_hold_each_word_and_read_back(made):
    out, metrics = made
    labels, records = read_predictions(out, "test")
    assert labels == LABELS
    rows = pq.read_table(out / "rows-test.parquet").to_pylist()
    for row, record in zip(rows, records, strict=True):
        words = json.loads(row["words"])
        assert len(words) == len(record["label"]) == len(record["prediction"])
        assert record["logits"].shape == record["probabilities"].shape == (len(words), len(LABELS))
        assert [LABELS[i] for i in record["logits"].argmax(axis=1)] == record["prediction"]
        np.testing.assert_allclose(record["probabilities"].sum(axis=1), 1, rtol=1e-5)
    right = [a == b for record in records for a, b in zip(record["label"], record["prediction"], strict=True)]
    assert metrics["test"]["scores"]["accuracy"] == pytest.approx(np.mean(right))
    ids, given = read_baselines(out)
    assert ids == [record["id"] for record in records]
    assert [len(tags) for tags in given["word_tags"]] == [len(record["label"]) for record in records]


def test_tables_are_the_same_bytes_and_refuse_what_cannot_be(made, tmp_path):
    out, _ = made
    (tmp_path / "run.json").write_text((out / "run.json").read_text())
    _, records = read_predictions(out, "test")
    path = write_predictions(tmp_path, "test", records, LABELS)
    assert path.read_bytes() == (out / path.name).read_bytes()
    nan = np.full_like(records[1]["logits"], np.nan)
    for change, words in (
        ({"logits": nan}, "a logit that is no finite number"),
        ({"prediction": ["B-sky"] * len(records[1]["label"])}, "a label without a column"),
        ({"prediction": records[1]["prediction"][1:]}, "a prediction that is not of each word"),
    ):
        write_predictions(tmp_path, "test", [records[0], records[1] | change, *records[2:]], LABELS)
        with pytest.raises(UserError, match=words) as refused:
            read_predictions(tmp_path, "test")
        assert records[1]["id"] in str(refused.value)


def test_the_report_tells_of_entities(made):
    out, metrics = made
    text = (out / "report.md").read_text()
    summary = text.split("\n\n")[1]
    assert "finds entities with an entity F1 of **" in summary
    assert "**Watch out:**" in summary
    assert "most often in train" in summary or "does not beat" in summary
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    at = [headings.index(name) for name in ("Scores", "Entity types", "Confusions", "Worst sentences")]
    assert at == sorted(at)
    assert {line["type"] for line in metrics["test"]["per_type"]} <= {"fruit", "tool", "bird"}
    assert ", true: " in text
    page = (out / "report.html").read_text()
    assert "How it learnt" in page
    assert 'class="meter' in page


def test_the_report_can_be_made_again(made, capsys):
    out, _ = made
    before = {name: (out / name).read_bytes() for name in ("report.md", "report.html", "metrics.json")}
    assert cli.main(["report", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    assert "entity F1" in capsys.readouterr().out
    assert read_folder(out, ("dev", "test")).labels == LABELS
