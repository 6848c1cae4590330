"""The recipe, end to end, on tiny checkpoints."""

from __future__ import annotations

import json
import math

import pyarrow.parquet as pq
import pytest
from conftest import run_recipe
from test_question_answering import plain_answers, question, questions

from graftkit import cli
from graftkit.errors import UserError
from graftkit.metrics import answers
from graftkit.report.answers import _excerpt, _without_answer, worst
from graftkit.report.tables import read_baselines, read_predictions, write_predictions


def write(path, rows):
    def as_hub(row):
        return {
            "id": row["id"],
            "passage": row["context"],
            "question": row["question"],
            "answers": {"text": row["answers"], "answer_start": row["starts"]},
        }

    path.write_text("".join(json.dumps(as_hub(row)) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A folder with 61, 15 and 21 questions, some without an answer, one of train and test on texts of many windows."""
    folder = tmp_path_factory.mktemp("asked")
    for split, count, seed in (("train", 60, 1), ("dev", 15, 2), ("test", 20, 3)):
        rows = questions(count, seed)
        if split == "test":
            rows.append(question("long", "on my desk is here " * 30 + "a plum | *fine* <b>", "fruit"))
        if split == "train":
            rows.append(question("learnt", "on the desk is here " * 60 + "a pear", "fruit"))
        write(folder / f"{split}.jsonl", rows)
    return folder


def train(out, checkpoint, data, *words):
    metrics = run_recipe(
        "answer", "--backbone.name", checkpoint, "--data.path", data, "--run.out", out, "--train.epochs", 2,
        "--train.batch_size", 8, "--train.lr", 2e-3, "--run.precision", "fp32", "--data.context", "passage", *words,
    )  # fmt: skip
    return out, metrics


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint, asked):
    """One run, for all tests that only read it."""
    return train(tmp_path_factory.mktemp("made") / "run", checkpoint("bert", dropout=0.1), asked)


def said(out):
    rows = pq.read_table(out / "rows-test.parquet").to_pylist()
    return rows, [record["prediction"] for record in read_predictions(out, "test")[1]]


def test_the_run_folder_holds_what_it_says(made):
    out, metrics = made
    record = json.loads((out / "run.json").read_text())
    assert record["task"] == "question-answering"
    assert record["headline"] == "f1"
    assert record["labels"] == []
    assert record["calibration"]["temperature"] is None
    assert record["decision"]["rows"] == 15
    note = json.loads((out / "model" / "config.json").read_text())["question_answering"]
    assert note == {"threshold": record["decision"]["threshold"], "max_tokens": 30}
    assert record["lengths"]["windowed_rows"] == 1
    assert record["training"]["updates"] > 2 * math.ceil(61 / 8)  # each window of train is a row of its own
    assert record["saved"]["overlong"]["joined_rows"] > 1
    assert record["data"]["splits"]["test"]["without_answer"] == 4
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["test"]["rows"] == 21
    assert metrics["test"]["windowed"] == 1
    assert metrics["test"]["groups"] == {"column": "context", "count": 21}


def test_tables_hold_what_was_said_and_read_back(made, tmp_path):
    out, metrics = made
    labels, records = read_predictions(out, "test")
    rows, given = said(out)
    assert labels == []
    assert [row["question_id"] for row in rows] == [*(f"row-{i}" for i in range(20)), "long"]
    threshold = json.loads((out / "run.json").read_text())["decision"]["threshold"]
    for row, record in zip(rows, records, strict=True):
        assert row["context"][record["start"] :].startswith(record["best"])
        assert record["prediction"] == ("" if record["null_gap"] > threshold else record["best"])
        assert record["asks"] == "which"
    found = sum(answers.f1(text, record["label"]) for text, record in zip(given, records, strict=True)) / 21
    assert metrics["test"]["scores"]["f1"] == pytest.approx(found)
    path = write_predictions(tmp_path, "test", records, labels)
    assert path.read_bytes() == (out / path.name).read_bytes()
    ids, simple = read_baselines(out)
    assert ids == [record["id"] for record in records]
    assert simple["no_answer"] == [""] * 21


def test_the_report_tells_of_answers(made, capsys):
    out, metrics = made
    text = (out / "report.md").read_text()
    assert "answers questions with an F1 of **" in text.split("\n\n")[1]
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    wanted = [
        "Scores",
        "Questions without an answer",
        "Kinds of question",
        "Lengths of answers",
        "Against simple answers",
    ]
    at = [headings.index(name) for name in [*wanted, "Worst answers"]]
    assert at == sorted(at)
    assert sum(metrics["test"]["answered"].values()) == 21
    assert [part["name"] for part in metrics["test"]["by_first_word"]] == ["which"]
    assert sum(part["rows"] for part in metrics["test"]["by_answer_words"]) == 17
    before = {name: (out / name).read_bytes() for name in ("report.md", "report.html", "metrics.json")}
    assert cli.main(["report", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    assert "F1" in capsys.readouterr().out


def test_what_is_said_of_questions_without_an_answer():
    test = {"answered": {"answer_given": 5, "answer_none": 0, "none_given": 1, "none_none": 0}}
    chosen = {"threshold": 0.25, "dev_f1": 0.5, "dev_f1_at_0": 0.4}
    assert "so it always gives one" in _without_answer(test, {})
    assert "by more than 0.25" in _without_answer(test, {"decision": chosen})
    told = _without_answer(test, {"folds": [{}, {}]})  # each fold chose for itself
    assert told.startswith("|")
    assert "so it always" not in told


def test_the_furthest_off_come_first_with_what_stands_around():
    def record(given, label, loss):
        return {"id": given, "prediction": given, "best": given, "start": 4, "label": label, "loss": loss}

    records = [record("x", ["x"], 9.0), record("x y", ["x"], 1.0), record("z", ["x"], 2.0), record("q", ["x"], 3.0)]
    assert [one["id"] for one in worst(records)] == ["q", "z", "x y"]
    assert len(worst(records, most=1)) == 1
    assert _excerpt(record("Ada", ["x"], 0.0), "had Ada | x") == "had **Ada** &#124; x"
    assert _excerpt(record("Ada", ["x"], 0.0), None) == "–"
    assert _excerpt(record("", ["x"], 0.0), "had Ada") == "–"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bert", ("--adapt.strategy", "head", "--answer.max_tokens", 3, "--report.group", "null")),
        ("roberta", ("--adapt.strategy", "lora", "--adapt.merge", "true")),
        ("gpt2", ("--adapt.strategy", "lora")),
    ],
)
def test_each_way_to_adapt_ends_in_a_folder_that_plain_libraries_read(tmp_path, checkpoint, asked, kind, words):
    out, metrics = train(tmp_path / "run", checkpoint(kind), asked, *words)
    rows, predicted = said(out)
    assert plain_answers(json.loads((out / "run.json").read_text())["snippet"], rows) == predicted
    assert metrics["test"]["rows"] == 21
    assert ("groups" in metrics["test"]) == (kind != "bert")
    assert (out / "adapter").exists() == ("--adapt.merge" in words)
    settings = out / "model" / ("labels.json" if kind == "gpt2" else "config.json")
    assert json.loads(settings.read_text())["question_answering"]["max_tokens"] == (3 if kind == "bert" else 30)


@pytest.mark.parametrize(
    "words",
    [
        ("--answer.max_tokens", "0"),
        ("--answer.max_tokens", "-1"),
        ("--run.keep_rows", "false"),  # the tables of predictions hold words of the texts
        ("--run.keep_rows", "false", "--run.seeds", "0", "1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, checkpoint, asked, words):
    with pytest.raises(UserError) as refused:
        train(tmp_path / "run", checkpoint("bert"), asked, *words)
    assert words[0] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
