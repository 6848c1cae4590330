"""The recipe, end to end, on tiny checkpoints."""

from __future__ import annotations

import ast
import contextlib
import io
import json

import pyarrow.parquet as pq
import pytest
from conftest import run_recipe
from test_sequence_to_sequence import pairs

from graftkit import cli
from graftkit.errors import UserError
from graftkit.report import sequence_to_sequence
from graftkit.report.tables import read_baselines, read_predictions

HOW = ("--data.prefix", "old: ", "--generate.beams", 2, "--run.headline", "chrf")
NASTY = "a | b <script>alert(1)</script> [x](y) `z`"


@pytest.fixture(scope="module")
def texts_to_write(tmp_path_factory):
    """A folder with 60, 15 and 20 pairs, of which one of test has a long source with signs in it."""
    folder = tmp_path_factory.mktemp("pairs")
    for split, count, seed in (("train", 60, 1), ("dev", 15, 2), ("test", 20, 3)):
        rows = pairs(count, seed)
        if split == "test":
            rows[4] = {"source": NASTY + " very" * 60, "target": NASTY}
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(out, checkpoint, data, *words):
    metrics = run_recipe(
        "translate", "--backbone.name", checkpoint, "--data.path", data, "--run.out", out, "--train.epochs", 2,
        "--train.batch_size", 8, "--train.lr", 5e-3, "--run.precision", "fp32", *words,
    )  # fmt: skip
    return out, metrics


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint, texts_to_write):
    """One run, for all tests that only read it."""
    out = tmp_path_factory.mktemp("made") / "run"
    return train(out, checkpoint("t5", dropout=0.1), texts_to_write, *HOW)


def test_the_run_folder_holds_what_it_says(made):
    out, metrics = made
    record = json.loads((out / "run.json").read_text())
    assert record["task"] == "text2text-generation"
    assert record["headline"] == "chrf"
    assert record["labels"] == []
    assert record["calibration"]["temperature"] is None
    assert record["lengths"]["cut"]["test"]["sources"] == 1
    assert record["lengths"]["cut"]["test"]["targets"] == 0
    assert record["data"]["prefix"] == "old: "
    assert record["generation"]["beams"] == 2
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert sum(metrics["test"]["ended"].values()) == metrics["test"]["rows"] == 20
    assert [answer["name"] for answer in metrics["baselines"]["answers"]] == ["copy", "nearest"]
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all({"chrf", "log_loss"} <= event["dev"].keys() for event in log if "dev" in event)


def test_tables_hold_texts_and_read_back(made):
    out, metrics = made
    labels, records = read_predictions(out, "test")
    assert labels == []
    assert list(records[0]) == ["id", "label", "prediction", "loss", "tokens", "ended"]
    rows = pq.read_table(out / "rows-test.parquet").to_pylist()
    assert [row["target"] for row in rows] == [record["label"] for record in records]
    loss = sum(record["loss"] for record in records) / sum(record["tokens"] for record in records)
    assert metrics["test"]["scores"]["log_loss"] == pytest.approx(loss)
    ids, given = read_baselines(out)
    assert given["copy"] == [row["source"] for row in rows]
    assert ids == [row["id"] for row in rows]


def test_the_report_tells_of_texts(made):
    out, metrics = made
    text = (out / "report.md").read_text()
    summary = text.split("\n\n")[1]
    assert "writes texts with a chrF of **" in summary
    assert "are the true text to the letter" in summary
    assert "5% of the sources of test are longer than the model takes" in summary
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    wanted = ["Scores", "What was cut", "By length of the source", "Against simple answers", "Worst texts"]
    at = [headings.index(name) for name in wanted]
    assert at == sorted(at)
    assert metrics["test"]["sacrebleu"]["chrf"] in text
    assert "giving back the source as it is" in text
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert len(metrics["test"]["by_length"]) == 3
    page = (out / "report.html").read_text()
    assert "How it learnt" in page
    assert "<script>alert" not in page


def test_what_the_clock_stopped_is_told(made):
    out, metrics = made
    run = json.loads((out / "run.json").read_text())
    test = metrics["test"] | {"ended": {"end": 17, "length": 1, "time": 2}, "empty": 1}
    words = sequence_to_sequence.summary(metrics | {"test": test}, run)
    assert "2 texts (10%) may have been stopped by the clock, so another machine would give other scores" in words
    assert "1 text (5%) had not ended at the longest that is allowed" in words
    assert "1 text is empty" in words


def test_the_report_can_be_made_again(made, capsys):
    out, _ = made
    before = {name: (out / name).read_bytes() for name in ("report.md", "report.html", "metrics.json")}
    assert cli.main(["report", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    assert "chrF" in capsys.readouterr().out


def plain_texts(out, sources):
    """What plain transformers (or PEFT) write, as the printed snippet has it."""
    snippet = json.loads((out / "run.json").read_text())["snippet"]
    lines = snippet.splitlines()
    (place,) = (i for i, line in enumerate(lines) if line.startswith("texts = ["))
    lines[place] = f"texts = {sources!r}"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec("\n".join(lines), {})
    return ast.literal_eval(printed.getvalue().splitlines()[-1])


def said(out):
    rows = pq.read_table(out / "rows-test.parquet").column("source").to_pylist()
    return rows, [record["prediction"] for record in read_predictions(out, "test")[1]]


def test_plain_transformers_write_the_same(made):
    out, _ = made
    sources, written = said(out)
    assert plain_texts(out, sources) == written
    settings = json.loads((out / "model" / "generation_config.json").read_text())
    assert settings["num_beams"] == 2
    assert settings["max_new_tokens"] == json.loads((out / "run.json").read_text())["generation"]["max_new_tokens"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bart", ("--adapt.strategy", "lora")),
        ("t5", ("--adapt.strategy", "lora", "--adapt.merge", "true")),
        pytest.param("bart", ("--adapt.strategy", "last", "--adapt.blocks", 1), marks=pytest.mark.slow),
    ],
)
def test_each_way_to_adapt_ends_in_a_folder_that_plain_libraries_read(
    tmp_path, checkpoint, texts_to_write, kind, words
):
    out, metrics = train(
        tmp_path / "run", checkpoint(kind), texts_to_write, *words, "--train.epochs", 1, "--generate.max_new_tokens", 6
    )
    sources, written = said(out)
    assert plain_texts(out, sources) == written
    assert (out / "adapter").exists() == ("--adapt.merge" in words)
    assert metrics["test"]["headline"]["name"] == "chrf"
    record = json.loads((out / "run.json").read_text())
    assert record["headline"] == "log_loss"
    assert "decision" not in record
    dev = [json.loads(line).get("dev") for line in (out / "log.jsonl").read_text().splitlines()]
    assert [list(scores) for scores in dev if scores] == [["log_loss"]]
    assert "those of the lowest loss on dev" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("--adapt.strategy", "head"),
        ("--run.keep_rows", "false"),
        ("--run.headline", "accuracy"),
        ("--generate.beams", "0"),
        ("--generate.max_seconds", "0"),
        ("--target.smoothing", "2"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, checkpoint, texts_to_write, words):
    with pytest.raises(UserError) as refused:
        train(tmp_path / "run", checkpoint("t5"), texts_to_write, *words)
    assert words[0] in str(refused.value)
    assert "\n" not in str(refused.value)
