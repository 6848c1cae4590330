"""The recipe, end to end, on tiny checkpoints."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import run_recipe
from test_token_classification import sentence, sentences

from graftkit import cli
from graftkit.errors import UserError
from graftkit.metrics.tagging import spans as bio_spans
from graftkit.report.reading import read_folder
from graftkit.report.tables import read_baselines, read_predictions, write_predictions

LABELS = ["O", *(f"{mark}-{group}" for group in ("bird", "fruit", "tool") for mark in "BI")]


def write_rows(path, rows):
    keys = ("words", "tags")
    path.write_text("".join(json.dumps({key: row[key] for key in keys}) + "\n" for row in rows))


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """A folder with 61, 15 and 21 sentences, of which one of train and of test is read in several windows."""
    folder = tmp_path_factory.mktemp("tagged")
    for split, count, seed in (("train", 60, 1), ("dev", 15, 2), ("test", 20, 3)):
        rows = sentences(count, seed)
        if split != "dev":
            rows.append(sentence("long", [word for row in sentences(20, seed + 3) for word in row["words"]]))
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
    assert "one label each" in record["calibration"]["reason"]
    assert record["lengths"]["truncated_rows"] == 0
    assert record["lengths"]["windowed_rows"] == 1
    assert record["lengths"]["percentiles"]["100"] > 4 * record["lengths"]["max_length"]
    assert "1 longer one was read in windows that overlap" in (out / "report.md").read_text()
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


# what others load


def plain_tags(out, rows):
    """The tag of each word, by plain transformers (or PEFT) as the printed snippet has it."""
    snippet = json.loads((out / "run.json").read_text())["snippet"]
    found = []
    for words in rows:
        lines = snippet.splitlines()
        (place,) = (i for i, line in enumerate(lines) if line.startswith("words = ["))
        lines[place] = f"words = {words!r}"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec("\n".join(lines), {})
        found.append([tag for _, tag in ast.literal_eval(printed.getvalue().splitlines()[-1])])
    return found


def said(out):
    words = [json.loads(text) for text in pq.read_table(out / "rows-test.parquet").column("words").to_pylist()]
    return words, [record["prediction"] for record in read_predictions(out, "test")[1]]


def test_the_pipeline_finds_the_same_entities(made):
    from transformers import pipeline

    out, _ = made
    tag = pipeline("token-classification", str(out / "model"), aggregation_strategy="first", dtype="float32")
    words, predicted = said(out)
    for sentence_words, tags in zip(words[:-1], predicted[:-1], strict=True):  # the last is longer than the model reads
        text = " ".join(sentence_words)
        starts = np.cumsum([0, *(len(word) + 1 for word in sentence_words)])
        ours = [(span.type, int(starts[span.first]), int(starts[span.last + 1]) - 1) for span in bio_spans(tags, "BIO")]
        assert [(one["entity_group"], one["start"], one["end"]) for one in tag(text)] == ours


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bert", ("--adapt.strategy", "head")),
        ("gpt2", ("--adapt.strategy", "last", "--adapt.blocks", 1)),
        ("roberta", ("--adapt.strategy", "lora", "--adapt.merge", "true")),
        ("gpt2", ("--adapt.strategy", "lora")),
    ],
)
def test_each_way_to_adapt_ends_in_a_folder_that_plain_libraries_read(tmp_path, checkpoint, tagged, kind, words):
    out, metrics = train(tmp_path / "run", checkpoint(kind), tagged, *words)
    rows, predicted = said(out)
    places = [0, 5, len(rows) - 1]
    assert plain_tags(out, [rows[i] for i in places]) == [predicted[i] for i in places]
    assert metrics["test"]["rows"] == 21
    assert (out / "adapter").exists() == ("--adapt.merge" in words)


def test_batches_go_by_all_tokens_that_are_read(checkpoint, tagged):
    from types import SimpleNamespace

    from graftkit.backbone import BackboneConfig
    from graftkit.data.tagged_rows import TaggedDataConfig, load_tagged
    from graftkit.tasks.token_classification import TokenClassification
    from graftkit.text import load_tokenizer, measure

    splits = load_tagged(TaggedDataConfig(path=str(tagged)), 0)
    task = TokenClassification(load_tokenizer(BackboneConfig(name=str(checkpoint("bert")))), splits.labels)
    lines = []
    lengths = measure(SimpleNamespace(record={}, say=lines.append), task, splits)
    for split in ("train", "dev", "test"):
        assert lengths[split].tolist() == task.lengths(getattr(splits, split)).tolist()
    assert lengths["train"].max() > task.tokenizer.model_max_length
    assert lines[0].endswith("; 1 rows are read in windows of 40")


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, checkpoint, tagged, made, monkeypatch):
    from graftkit.tasks.token_classification import TokenClassification

    out, metrics = made
    calls, loss = iter(range(1000)), TokenClassification.loss

    def stopping(self, model, batch):
        if next(calls) == 10:
            raise KeyboardInterrupt
        return loss(self, model, batch)

    words = ("--train.save_every", 4)
    with monkeypatch.context() as patch:
        patch.setattr(TokenClassification, "loss", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", checkpoint("bert", dropout=0.1), tagged, *words)
    again, same = train(tmp_path / "run", checkpoint("bert", dropout=0.1), tagged, *words, "--run.resume")
    assert same == metrics
    weights = "model/model.safetensors"
    assert (again / weights).read_bytes() == (out / weights).read_bytes()


def test_plain_tags_and_groups(tmp_path, checkpoint, tagged):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        rows = [json.loads(line) for line in (tagged / f"{split}.jsonl").read_text().splitlines()]
        for i, row in enumerate(rows):
            row["tags"] = [tag[2:] or "other" for tag in row["tags"]]
            row["author"] = f"{split}-{i // 3}"
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, metrics = train(tmp_path / "run", checkpoint("bert"), folder, "--report.group", "author")
    assert metrics["test"]["headline"]["name"] == "accuracy"
    assert metrics["test"]["groups"] == {"column": "author", "count": 7}
    text = (out / "report.md").read_text()
    assert "## Tags" in text
    assert "tags words with an accuracy of **" in text


# what is refused


@pytest.mark.parametrize(
    "words",
    [
        ("--report.audit", "true"),
        ("--report.explain", "true"),
        ("--report.metrics", "f1"),
        ("--report.slice", "author"),
        ("--report.calibrate", "false"),
        ("--report.alpha", "0.2"),
    ],
)
def test_what_is_not_there_yet_is_refused_in_one_line(tmp_path, checkpoint, tagged, words):
    with pytest.raises(UserError) as refused:
        train(tmp_path / "run", checkpoint("bert"), tagged, *words)
    assert words[0] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("calibrate", "RUN", "--out", "OUT"),
        ("compare", "RUN", "COPY"),
        ("push", "RUN", "someone/name"),
        ("report", "RUN", "--audit"),
        ("report", "RUN", "--explain"),
    ],
)
def test_commands_that_cannot_say_so_in_one_line(made, tmp_path, capsys, words):
    (tmp_path / "a.csv").write_text("text\nwords\n")
    shutil.copytree(made[0], tmp_path / "copy")
    places = {"RUN": made[0], "OUT": tmp_path / "out", "COPY": tmp_path / "copy", "a.csv": tmp_path / "a.csv"}
    assert cli.main([str(places.get(word, word)) for word in words]) != 0
    error = capsys.readouterr().err.strip()
    assert "tags words" in error or "knows classifiers" in error or "--explain knows" in error, error
    assert len(error.splitlines()) == 1
