"""The recipe, end to end, on tiny checkpoints."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import transformers
from conftest import run_recipe

from graftkit.text import position_limit

LONG = "the old red file is here again " * 12


def tables(run):
    frame = pq.read_table(run / "predictions-test.parquet").to_pylist()
    texts = pq.read_table(run / "rows-test.parquet").column("text").to_pylist()
    return texts, frame


@pytest.mark.parametrize(
    ("config", "limit"), [("XLNetConfig", 10**9), ("T5Config", 10**9), ("BertConfig", 512), ("RobertaConfig", 510)]
)
def test_a_checkpoint_without_places_of_its_own_has_no_limit(config, limit):
    assert position_limit(getattr(transformers, config)()) == limit


def run_snippet(folder, run, texts):
    """What the printed snippet says of these texts, in a process that cannot import graftkit."""
    snippet = json.loads((run / "run.json").read_text())["snippet"]
    script = folder / "snippet.py"
    script.write_text(snippet.replace('["a text"]', json.dumps(texts)))
    no_graftkit = "import sys; sys.modules['graftkit'] = None; import runpy; runpy.run_path(sys.argv[1])"
    command = [sys.executable, "-c", no_graftkit, str(script)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return [ast.literal_eval(line) for line in printed.splitlines()]


def train(tmp_path, checkpoint, data, *words):
    out = tmp_path / "run"
    metrics = run_recipe(
        "text_classify", "--backbone.name", checkpoint, "--data.path", data, "--run.out", out, "--train.epochs", 2,
        "--train.batch_size", 8, "--train.lr", 2e-3, "--run.precision", "fp32", *words,
    )  # fmt: skip
    return out, metrics


@pytest.fixture
def long_data(data, tmp_path):
    """The data, with a test row that is longer than the model reads."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "dev", "test"):
        text = (data / f"{split}.csv").read_text()
        (folder / f"{split}.csv").write_text(text + (f"{LONG},tool\n" if split == "test" else ""))
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("bert", ()),
        ("gpt2", ("--adapt.strategy", "last", "--adapt.blocks", "1")),
        ("llama", ("--adapt.strategy", "head", "--adapt.solver", "sgd")),
        ("roberta", ("--adapt.strategy", "lora", "--adapt.merge", "true")),
    ],
)
def test_a_saved_model_is_plain_transformers(tmp_path, checkpoint, long_data, kind, words):
    out, _ = train(tmp_path, checkpoint(kind), long_data, *words)
    from transformers import AutoTokenizer, pipeline

    texts, rows = tables(out)
    classify = pipeline("text-classification", str(out / "model"), dtype="float32")
    answers = classify(texts, truncation=True, top_k=None, batch_size=4)
    for row, answer in zip(rows, answers, strict=True):
        assert answer[0]["label"] == row["prediction"]
        for entry in answer:
            assert entry["score"] == pytest.approx(row[f"probability:{entry['label']}"], abs=1e-4)
    assert len(AutoTokenizer.from_pretrained(out / "model")(texts[-1])["input_ids"]) > 40
    config = json.loads((out / "model" / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    assert config["pad_token_id"] is not None
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]


@pytest.mark.parametrize("kind", ["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_an_adapter_is_plain_peft_by_the_printed_snippet(tmp_path, checkpoint, data, kind):
    out, _ = train(tmp_path, checkpoint(kind), data, "--adapt.strategy", "lora")
    assert not (out / "model" / "config.json").exists()
    snippet = json.loads((out / "run.json").read_text())["snippet"]
    assert snippet in (out / "report.md").read_text()
    texts, rows = tables(out)
    answers = run_snippet(tmp_path, out, texts[:5])
    assert len(answers) == 5
    for row, answer in zip(rows, answers, strict=False):
        assert answer == pytest.approx({label: row[f"probability:{label}"] for label in answer}, abs=1e-4)


def test_the_run_folder_holds_what_it_says(tmp_path, checkpoint, data):
    out, metrics = train(tmp_path, checkpoint("bert"), data)
    assert {path.name for path in out.iterdir()} == {
        "config.yaml", "run.json", "log.jsonl", "timing.jsonl", "model", "predictions-test.parquet", "metrics.json",
        "baselines-test.parquet", "measures-test.parquet", "measures-dev.parquet",
        "predictions-dev.parquet", "rows-test.parquet", "rows-dev.parquet", "report.html", "report.md", "checkpoints",
    }  # fmt: skip
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if "loss" in event]
    assert len(losses) == 12
    assert sum(losses[-6:]) < sum(losses[:6])
    record = json.loads((out / "run.json").read_text())
    assert record["training"]["updates"] == 12
    assert record["adapt"]["trained_parameters"] == record["adapt"]["total_parameters"]
    assert metrics["test"]["rows"] == 19
    assert metrics == json.loads((out / "metrics.json").read_text())
    _, rows = tables(out)
    right = np.mean([row["label"] == row["prediction"] for row in rows])
    assert metrics["test"]["scores"]["accuracy"] == pytest.approx(right)
    headline = metrics["test"]["headline"]
    assert headline["low"] <= headline["value"] <= headline["high"]


def test_the_saved_config_gives_the_same_run(tmp_path, checkpoint, data):
    out, metrics = train(tmp_path, checkpoint("bert", dropout=0.1), data)
    again = run_recipe("text_classify", "--config", out / "config.yaml", "--run.out", tmp_path / "again")
    assert again == metrics
    assert (tmp_path / "again" / "log.jsonl").read_bytes() == (out / "log.jsonl").read_bytes()
    weights = "model/model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (out / weights).read_bytes()


def test_texts_can_stay_out_of_the_folder(tmp_path, checkpoint, data):
    out, _ = train(tmp_path, checkpoint("bert"), data, "--run.keep_rows", "false")
    assert pq.read_table(out / "rows-test.parquet").column_names == ["id", "sha256"]
    secret = (data / "test.csv").read_text().splitlines()[1].split(",")[0]
    assert all(secret.encode() not in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_a_new_padding_token_is_saved_with_an_adapter(tmp_path, checkpoint, data):
    """A tokenizer with neither padding nor end-of-text token, and an embedding without a row to spare."""
    import shutil

    import transformers as t

    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("llama"), folder)
    tokenizer = t.AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    config = t.AutoConfig.from_pretrained(folder)
    config.vocab_size = len(tokenizer)
    t.AutoModel.from_config(config).save_pretrained(folder)

    out, _ = train(tmp_path, folder, data, "--adapt.strategy", "lora")
    from safetensors.torch import load_file

    saved = load_file(out / "model" / "adapter_model.safetensors")
    rows = [value for name, value in saved.items() if "trainable_tokens" in name]
    assert [value.shape[0] for value in rows] == [1]
    texts, table = tables(out)
    answers = run_snippet(tmp_path, out, texts[:5])
    for row, answer in zip(table, answers, strict=False):
        assert answer == pytest.approx({label: row[f"probability:{label}"] for label in answer}, abs=1e-4)


def test_the_weights_with_the_best_score_are_kept(tmp_path, checkpoint, data, monkeypatch):
    """Scores that rise and fall: the model is that of the second of four epochs."""
    from graftkit.tasks.text_classification import TextClassification

    scores, weights = iter([0.1, 0.9, 0.5, 0.2]), []
    monkeypatch.setattr(TextClassification, "score", lambda self, records: {"macro_f1": next(scores)})
    predict = TextClassification.predict

    def remember(self, model, batch):
        weights.append(model.classifier.weight.detach().clone())
        return predict(self, model, batch)

    monkeypatch.setattr(TextClassification, "predict", remember)
    out, _ = train(tmp_path, checkpoint("bert"), data, "--train.epochs", 4, "--report.calibrate", "false")
    from safetensors.torch import load_file

    kept = load_file(out / "model" / "model.safetensors")["classifier.weight"]
    assert [bool((kept == w).all()) for w in weights[:4]] == [False, True, False, False]
    assert json.loads((out / "run.json").read_text())["training"]["best"] == {"update": 12, "score": 0.9}


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 6)])
def test_early_stopping_waits_for_so_many_epochs_without_gain(
    tmp_path, checkpoint, data, monkeypatch, patience, epochs
):
    from graftkit.tasks.text_classification import TextClassification

    scores = iter([0.1, 0.5, 0.4, 0.6, 0.6, 0.5, 0.9, 0.9])
    monkeypatch.setattr(TextClassification, "score", lambda self, records: {"macro_f1": next(scores)})
    out, _ = train(tmp_path, checkpoint("bert"), data, "--train.epochs", 8, "--train.patience", patience)
    record = json.loads((out / "run.json").read_text())["training"]
    assert (record["stopped"], record["updates"]) == ("early", epochs * 6)
    assert record["best"] == {1: {"update": 12, "score": 0.5}, 2: {"update": 24, "score": 0.6}}[patience]


def test_pairs_of_texts_train_and_agree_with_a_pipeline(tmp_path, checkpoint):
    """Only the second text tells."""
    from conftest import write_csv
    from transformers import pipeline

    pairs = [("saw", "saw", "tool"), ("saw", "pear", "fruit"), ("pear", "pear", "fruit"), ("pear", "saw", "tool")]
    rows = [(f"my {a} {'is old ' * (i % 5)}", f"a {b}", label) for i in range(30) for a, b, label in pairs]
    path = write_csv(tmp_path / "pairs.csv", rows, ("first", "second", "label"))
    columns = ("--data.text", "first", "--data.text_pair", "second")
    out, metrics = train(tmp_path, checkpoint("bert"), path, *columns, "--train.epochs", 4, "--train.head_lr", 2e-3)
    frame = pq.read_table(out / "predictions-test.parquet").to_pylist()
    kept = pq.read_table(out / "rows-test.parquet").to_pylist()
    assert {row["text_pair"] for row in kept} == {"a saw", "a pear"}
    classify = pipeline("text-classification", str(out / "model"), dtype="float32")
    answers = classify([{"text": row["text"], "text_pair": row["text_pair"]} for row in kept], top_k=None)
    for row, answer in zip(frame, answers, strict=True):
        for entry in answer:
            assert entry["score"] == pytest.approx(row[f"probability:{entry['label']}"], abs=1e-4)
    assert metrics["test"]["scores"]["accuracy"] == 1.0


def test_tensorboard_gets_the_numbers(tmp_path, checkpoint, data):
    out, _ = train(tmp_path, checkpoint("bert"), data, "--run.trackers", "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = list(out.rglob("events.out.tfevents*"))
    found = {}
    for file in files:
        events = EventAccumulator(str(file)).Reload()
        found |= {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert found["loss"] == pytest.approx([event["loss"] for event in logged if "loss" in event])
    assert "dev/macro_f1" in found


def test_a_dry_run_says_what_it_would_take_and_keeps_nothing(tmp_path, checkpoint, data, capsys):
    out = tmp_path / "run"
    words = ["--backbone.name", checkpoint("bert"), "--data.path", data, "--run.out", out]
    estimate = run_recipe("text_classify", *words, "--run.dry_run", "--train.batch_size", 8)
    assert not out.exists()
    assert estimate["updates"] == 3 * 6
    assert estimate["seconds"] > 0
    assert "dry run: 18 updates of 8 rows" in capsys.readouterr().out
