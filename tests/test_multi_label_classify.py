"""The recipe with any number of labels per text, end to end, on tiny checkpoints."""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import FILLER, WORDS, run_recipe

from graftkit import cli
from graftkit.calibrate import THRESHOLDS, write_note
from graftkit.errors import UserError
from graftkit.metrics.multi_label import choose_thresholds, multi_hot, stated
from graftkit.report.tables import read_baselines, read_predictions

LABELS = ["bird", "fruit", "tool"]
TASK = "multi-label-classification"


def messages(count: int, seed: int = 0, longest: int = 14) -> list[dict]:
    """Short texts that name none to three kinds of things, and which: learnable, not trivial."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        labels = [label for label in LABELS if rng.random() < 0.4]
        words = [*rng.choice(FILLER, rng.integers(1, longest)), *(rng.choice(WORDS[label]) for label in labels)]
        rows.append({"text": f"{' '.join(rng.permutation(words))} {i}", "labels": labels})
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder with 60, 70 and 31 texts, of which one of test is longer than the model reads."""
    folder = tmp_path_factory.mktemp("sets")
    for split, count, seed in (("train", 60, 1), ("dev", 70, 2), ("test", 30, 3)):
        rows = messages(count, seed)
        if split == "test":
            rows.append({"text": " ".join(row["text"] for row in rows[:9]), "labels": ["bird"]})
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def train(out, checkpoint, data, *words):
    metrics = run_recipe(
        "text_classify", "--data.task", "multi", "--backbone.name", checkpoint, "--data.path", data, "--run.out", out,
        "--train.epochs", 2, "--train.batch_size", 8, "--train.lr", 2e-3, "--run.precision", "fp32", *words,
    )  # fmt: skip
    return out, metrics


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint, sets):
    """One run, for all tests that only read it."""
    return train(tmp_path_factory.mktemp("made") / "run", checkpoint("bert", dropout=0.1), sets)


def test_the_run_says_what_was_chosen_and_the_tables_follow_it(made):
    out, metrics = made
    record = json.loads((out / "run.json").read_text())
    assert record["task"] == TASK
    assert record["headline"] == "micro_f1"
    assert record["labels"] == LABELS
    config = json.loads((out / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["thresholds"] == record["decision"]["thresholds"]
    _, dev = read_predictions(out, "dev")
    limits, own = choose_thresholds(stated(dev), multi_hot([one["label"] for one in dev], LABELS))
    assert list(config["thresholds"].values()) == limits.tolist()
    assert record["decision"]["shared"] == [label for label, one in zip(LABELS, own, strict=True) if not one] == []
    labels, records = read_predictions(out, "test")
    assert labels == LABELS
    assert len(records) == 31
    truth = {row["id"]: row for row in pq.read_table(out / "rows-test.parquet").to_pylist()}
    for one in records:
        assert one["prediction"] == [labels[i] for i in np.flatnonzero(one["probabilities"] >= limits)]
        np.testing.assert_allclose(one["probabilities"], 1 / (1 + np.exp(-one["logits"])), rtol=1e-5)
        has = np.isin(LABELS, one["label"])
        expected = -np.log(np.where(has, one["probabilities"], 1 - one["probabilities"])).sum()
        assert one["loss"] == pytest.approx(expected, rel=1e-4)
        assert one["id"] in truth
    assert metrics["test"]["scores"]["log_loss"] == pytest.approx(np.mean([one["loss"] for one in records]) / 3)
    _, given = read_baselines(out)
    assert set(given) == {"usual_labels", "tf_idf"}
    assert any(len(row) != 1 for row in given["tf_idf"])


def test_the_report_tells_of_labels(made):
    out, metrics = made
    text = (out / "report.md").read_text()
    summary = text.split("\n\n")[1]
    assert "gives labels with a micro F1 of **" in summary
    assert "get exactly their labels" in summary
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    wanted = ("Scores", "Labels", "Labels that are confused", "Against simple answers", "Worst texts")
    at = [headings.index(name) for name in wanted]
    assert at == sorted(at)
    assert {line["label"] for line in metrics["test"]["per_label"]} == set(LABELS)
    assert "| Threshold |" in text
    right = sum(line["recall"] * line["support"] for line in metrics["test"]["per_label"])
    assert f"It finds {round(right)} of the" in summary
    page = (out / "report.html").read_text()
    assert "How it learnt" in page
    assert 'class="meter' in page
    before = {name: (out / name).read_bytes() for name in ("report.md", "report.html", "metrics.json")}
    assert cli.main(["report", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before


def test_the_report_escapes_labels_and_says_where_thresholds_are_shared(made, tmp_path):
    from graftkit.report import multi_label

    _, metrics = made
    line = metrics["test"]["per_label"][0]
    test = metrics["test"] | {"per_label": [line | {"label": "<b>|x"}]}
    run = {"labels": ["<b>|x"], "decision": {"thresholds": {"<b>|x": 0.25}, "shared": ["<b>|x"], "enough": 20}}
    chapter = multi_label._labels(test, run)
    assert "&lt;b&gt;&#124;x" in chapter
    assert "| 0.25\\* |" in chapter
    assert "\\* fewer than 20 rows of dev with the label" in chapter
    assert "every label has too few rows in dev" in multi_label.summary({"test": test}, run | {"task": TASK})


def plain_answers(out, texts):
    """The labels of each text, by plain transformers (or PEFT) as the printed snippet has it."""
    snippet = json.loads((out / "run.json").read_text())["snippet"]
    asked = '[{"text": "a text", "text_pair": "its pair"}]' if isinstance(texts[0], dict) else '["a text"]'
    assert asked in snippet
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet.replace(asked, repr(texts)), {})
    return [ast.literal_eval(line) for line in printed.getvalue().splitlines()]


def check_snippet(out):
    rows = pq.read_table(out / "rows-test.parquet").to_pylist()
    texts = [{n: row[n] for n in ("text", "text_pair")} if "text_pair" in row else row["text"] for row in rows]
    _, records = read_predictions(out, "test")
    assert [sorted(one) for one in plain_answers(out, texts)] == [sorted(one["prediction"]) for one in records]
    assert len({tuple(one["prediction"]) for one in records}) > 1


def test_plain_transformers_gives_the_answers_of_the_tables(made):
    check_snippet(made[0])


def test_an_adapter_carries_its_thresholds(tmp_path, checkpoint, sets):
    out, _ = train(tmp_path / "run", checkpoint("gpt2"), sets, "--adapt.strategy", "lora", "--train.lr", 1e-2)
    saved = json.loads((out / "model" / "labels.json").read_text())
    assert saved["thresholds"] == json.loads((out / "run.json").read_text())["decision"]["thresholds"]
    check_snippet(out)


def test_pairs_in_columns_of_0_and_1_and_groups(tmp_path, checkpoint):
    for split, count, seed in (("train", 40, 1), ("dev", 20, 2), ("test", 20, 3)):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            rows = [
                (*row["text"].split(maxsplit=1), f"{split}-{i // 2}", *(int(one in row["labels"]) for one in LABELS))
                for i, row in enumerate(messages(count, seed))
            ]
            csv.writer(file).writerows([("text", "reply", "author", *LABELS), *rows])
    words = ("--data.labels", "tool,bird", "--data.text_pair", "reply", "--report.group", "author")
    out, metrics = train(
        tmp_path / "run", checkpoint("distilbert"), tmp_path, *words, "--train.epochs", 8, "--run.headline",
        "macro_f1",
    )  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    assert record["labels"] == ["tool", "bird"]
    assert list(record["decision"]["thresholds"]) == ["tool", "bird"]
    assert metrics["test"]["headline"]["name"] == "macro_f1"
    assert metrics["test"]["groups"] == {"column": "author", "count": 10}
    check_snippet(out)


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
        ("--hub.push_to", "someone/name"),
        ("--run.headline", "log_loss"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(tmp_path, checkpoint, sets, words):
    with pytest.raises(UserError) as refused:
        train(tmp_path / "run", checkpoint("bert"), sets, *words)
    assert words[0] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_what_an_earlier_training_chose_goes(tmp_path):
    settings = {"id2label": {"0": "a"}, "calibration": {"temperature": 2.0}, "thresholds": {"a": 0.1}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    write_note(tmp_path, {"a": 0.3}, THRESHOLDS)
    assert json.loads((tmp_path / "config.json").read_text()) == {"id2label": {"0": "a"}, "thresholds": {"a": 0.3}}
    write_note(tmp_path, {"temperature": 1.5})
    assert THRESHOLDS not in json.loads((tmp_path / "config.json").read_text())
