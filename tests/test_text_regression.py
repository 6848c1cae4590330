"""Texts that have a number: the task, and the recipe end to end, on tiny checkpoints."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import KINDS, WORDS, run_recipe, texts, write_csv

from graftkit import cli
from graftkit.adapt import AdaptConfig, adapt
from graftkit.backbone import BackboneConfig
from graftkit.errors import UserError
from graftkit.export import check_saved
from graftkit.heads import load_classifier
from graftkit.report.tables import read_baselines, read_predictions
from graftkit.task import Folding
from graftkit.tasks.text_regression import TextRegression
from graftkit.text import load_tokenizer

WORTH = dict(zip(WORDS, (12_000.0, 15_500.0, 17_000.0), strict=True))


def priced(count, seed=0):
    """Sentences with a price by what they name, in a unit that no network begins with."""
    rng = np.random.default_rng(seed)
    return [(text, WORTH[label] + 40 * len(text) + rng.normal(0, 100)) for text, label in texts(count, seed)]


def load(checkpoint, kind, **how):
    """A task of prices and its model."""
    backbone = BackboneConfig(name=str(checkpoint(kind, **how)))
    tokenizer = load_tokenizer(backbone)
    task = TextRegression(tokenizer, "price", 14_000.0, 2_000.0)
    return task, load_classifier(backbone, ["price"], tokenizer, 0, task.problem_type)


def batch_of(task, count=6):
    rows = [{"id": str(i), "text": text, "label": number} for i, (text, number) in enumerate(priced(count))]
    return task.collate([task.encode(row, None) for row in rows])


# the unit


@pytest.mark.parametrize("strategy", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_folded_and_saved_says_the_same_in_plain_libraries(tmp_path, checkpoint, kind, strategy):
    task, headed = load(checkpoint, kind)
    model = adapt(headed, AdaptConfig(strategy=strategy, **({"rank": 1} if strategy == "lora" else {}))).model.eval()
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=chance) / 10)
    batch = batch_of(task)
    before = task.predict(model, batch)
    assert isinstance(task, Folding)
    task.fold(model, batch)
    after = task.predict(model, batch)
    spread = np.std([record["prediction"] for record in before])
    assert spread > 5
    for one, other in zip(before, after, strict=True):
        assert other["prediction"] == pytest.approx(one["prediction"], abs=0.02)
        assert other["loss"] == pytest.approx(((other["prediction"] - other["label"]) / 2_000) ** 2)
    task.save(tmp_path, model)
    loaded = task.load(tmp_path)
    check_saved(model, loaded)
    with torch.no_grad():
        plain = loaded(**batch.inputs).logits[:, 0].tolist()
    assert plain == [record["prediction"] for record in after]
    assert loaded.config.id2label == {0: "price"}


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_loss_is_in_standard_deviations_whatever_the_unit(checkpoint, kind):
    task, headed = load(checkpoint, kind)
    batch = batch_of(task)
    model = headed.model.eval()
    records = task.predict(model, batch)
    for record in records:
        assert record["loss"] == pytest.approx(((record["prediction"] - record["label"]) / task.sd) ** 2)
    start = np.mean([record["prediction"] for record in records])
    assert start == pytest.approx(14_000 if kind == "bert" else 0, abs=800)  # without a bias, counted from 0


def test_other_layers_with_one_output_change_nothing(checkpoint):
    task, headed = load(checkpoint, "gpt2")  # whose last layer has no bias
    batch, model = batch_of(task), headed.model.eval()
    records, loss = task.predict(model, batch), task.loss(model, batch).item()
    task.shifts = None
    model.transformer.gate = torch.nn.Linear(3, 1)  # in the backbone, seen with it
    assert task.predict(model, batch) == records
    model.gate = torch.nn.Linear(3, 1)  # beside the head, come later
    assert task.predict(model, batch) == records
    assert task.loss(model, batch).item() == loss


def test_a_model_of_several_last_layers_is_refused_and_left_alone(checkpoint):
    task, headed = load(checkpoint, "bert")
    model = headed.model.eval()
    batch, forward = batch_of(task), model.forward

    def squared(**inputs):
        said = forward(**inputs)
        said.logits = said.logits**2
        return said

    model.forward = squared
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match="the unit of 'price' cannot be put into it"):
        task.fold(model, batch)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_head_that_tells_a_number_always_starts_anew(tmp_path, checkpoint):
    task, headed = load(checkpoint, "bert")
    with torch.no_grad():
        headed.model.classifier.weight.fill_(3.0)
    task.save(tmp_path, headed.model)
    again = load_classifier(BackboneConfig(name=str(tmp_path)), ["price"], task.tokenizer, 0, task.problem_type)
    assert again.model.classifier.weight.abs().max() < 1
    assert again.head == {"classifier.weight", "classifier.bias"}


# end to end


def train(out, checkpoint, data, *words):
    metrics = run_recipe(
        "text_classify", "--data.task", "regression", "--data.path", data, "--backbone.name", checkpoint,
        "--run.out", out, "--train.epochs", 2, "--train.lr", 1e-3, "--train.head_lr", 1e-2, "--train.batch_size", 8,
        "--run.precision", "fp32", *words,
    )  # fmt: skip
    return out, metrics


@pytest.fixture(scope="module")
def prices(tmp_path_factory):
    """A csv file of 160 rows."""
    return write_csv(tmp_path_factory.mktemp("prices") / "prices.csv", priced(160, 5), ("text", "price"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint, prices):
    """One run, for all tests that only read it."""
    return train(tmp_path_factory.mktemp("made") / "run", checkpoint("bert", dropout=0.1), prices)


def asked(out, rows):
    """What the printed lines say of these texts."""
    snippet = json.loads((out / "run.json").read_text())["snippet"]
    assert '["a text"]' in snippet
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(snippet.replace('["a text"]', repr(rows)), {})
    said = eval(printed.getvalue().splitlines()[-1])
    return [one["score"] if isinstance(one, dict) else one for one in said]


def test_the_folder_holds_numbers_in_their_unit(made):
    out, metrics = made
    labels, records = read_predictions(out, "test")
    assert labels == []
    assert records[0].keys() == {"id", "label", "prediction", "loss"}
    record = json.loads((out / "run.json").read_text())
    assert record["task"] == "text-regression"
    assert record["labels"] == []
    sd = record["data"]["splits"]["train"]["sd"]
    for row in records:
        assert 11_000 < row["label"] < 21_000
        assert row["loss"] == pytest.approx(((row["prediction"] - row["label"]) / sd) ** 2)
    assert metrics["test"]["scores"]["loss"] < 1
    assert metrics["test"]["scores"]["rmse"] == pytest.approx(sd * metrics["test"]["scores"]["loss"] ** 0.5)
    settings = json.loads((out / "model" / "config.json").read_text())
    assert settings["problem_type"] == "regression"
    assert settings["id2label"] == {"0": "price"}


def test_plain_transformers_says_what_the_tables_say(made):
    out, _ = made
    rows = pq.read_table(out / "rows-test.parquet").column("text").to_pylist()
    records = read_predictions(out, "test")[1]
    np.testing.assert_allclose(asked(out, rows), [record["prediction"] for record in records], rtol=1e-4)


def test_simple_answers_are_compared_and_nothing_is_missing(made):
    out, metrics = made
    _, given = read_baselines(out)
    assert given.keys() == {"mean", "ridge"}
    assert len(set(given["mean"])) == 1
    assert len(set(given["ridge"])) > 5
    answers = {answer["name"]: answer for answer in metrics["baselines"]["answers"]}
    assert answers["mean"]["headline"]["value"] == pytest.approx(0, abs=0.2)
    assert "NaN" not in (out / "metrics.json").read_text()
    assert "nan" not in (out / "report.md").read_text().lower().replace("finance", "")


def test_the_report_speaks_of_the_number_in_its_unit(made):
    out, metrics = made
    report = (out / "report.md").read_text()
    summary = report.split("\n\n")[1]
    half = metrics["test"]["within"]["0.5"]
    assert "it tells “price” with an R² of **" in summary or "this model tells “price” with an R² of **" in summary
    assert "Half of the answers are within " in summary
    said = float(summary.partition("are within ")[2].partition(" ")[0].replace(",", ""))
    assert said == pytest.approx(half, rel=0.1)
    headings = [line[3:] for line in report.splitlines() if line.startswith("## ")]
    at = [headings.index(name) for name in ("Scores", "Small and large numbers", "Largest errors of texts")]
    assert at == sorted(at)
    page = (out / "report.html").read_text()
    assert 'class="dots"' in page
    assert "How it learnt" in page
    assert "; dev goes from " in page  # the loss on dev is drawn


def test_the_report_can_be_made_again(made):
    out, _ = made
    before = {name: (out / name).read_bytes() for name in ("report.md", "report.html", "metrics.json")}
    assert cli.main(["report", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("gpt2", ("--adapt.strategy", "lora", "--run.headline", "rmse")),
        ("roberta", ("--adapt.strategy", "head", "--adapt.solver", "sgd")),
    ],
)
def test_each_way_to_adapt_ends_in_a_folder_that_plain_libraries_read(tmp_path, checkpoint, prices, kind, words):
    out, metrics = train(tmp_path / "run", checkpoint(kind), prices, *words)
    rows = pq.read_table(out / "rows-test.parquet").column("text").to_pylist()
    records = read_predictions(out, "test")[1]
    said = [number for row in rows[:4] for number in asked(out, [row])]
    np.testing.assert_allclose(said, [record["prediction"] for record in records[:4]], rtol=1e-4)
    assert metrics["test"]["headline"]["lower_is_better"] == ("rmse" in words)


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
        ("--data.labels", "price"),
    ],
)
def test_what_is_not_there_yet_is_refused_in_one_line(tmp_path, checkpoint, prices, words):
    with pytest.raises(UserError) as refused:
        train(tmp_path / "run", checkpoint("bert"), prices, *words)
    assert words[0] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
