"""The recipe, end to end, on tiny checkpoints; and what comes out of it as the backbone of others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import finish, launch_script, run_recipe, texts, write_csv
from test_recipe_contract import TABLES, same_files, stop_after

from graftkit import cli
from graftkit.backbone import BackboneConfig, load_model
from graftkit.errors import Stopped, UserError
from graftkit.optim import leave_waiting, make_optimizer, set_lr, wait_for_head
from graftkit.report import filled_gaps, masked_language
from graftkit.report.reading import read_folder
from graftkit.report.tables import read_baselines, read_predictions


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A folder with 41, 11 and 15 texts, of which one of train and of test is read in several windows."""
    folder = tmp_path_factory.mktemp("documents")
    for split, count, seed in (("train", 40, 1), ("dev", 11, 2), ("test", 14, 3)):
        rows = [text for text, _ in texts(count, seed)]
        if split != "dev":
            rows.append(" ".join(text for text, _ in texts(20, seed + 3)))
        write_csv(folder / f"{split}.csv", [(row,) for row in rows], ["text"])
    return folder


def train(out, checkpoint, data, *words):
    metrics = run_recipe(
        "pretrain", "--backbone.name", checkpoint, "--data.path", data, "--run.out", out, "--train.epochs", 2,
        "--train.batch_size", 8, "--train.lr", 2e-3, "--run.precision", "fp32", *words,
    )  # fmt: skip
    return out, metrics


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint, documents):
    """One run, for all tests that only read it: of a checkpoint with a pooler and without a head that fills gaps."""
    return train(tmp_path_factory.mktemp("made") / "run", checkpoint("bert", dropout=0.1), documents)


def loaded(auto_class, folder):
    """A model as transformers loads it, and the names of what it drew by chance."""
    import transformers

    model, info = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)
    return model.eval(), set(info["missing_keys"])


# what it leaves


def test_the_run_folder_holds_what_it_says(made):
    out, metrics = made
    assert {path.name for path in out.iterdir()} == {
        "config.yaml", "run.json", "log.jsonl", "timing.jsonl", "model", "predictions-test.parquet", "metrics.json",
        "baselines-test.parquet", "measures-test.parquet", "measures-dev.parquet",
        "predictions-dev.parquet", "rows-test.parquet", "rows-dev.parquet", "report.html", "report.md", "checkpoints",
    }  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    assert record["task"] == "fill-mask"
    assert record["headline"] == "perplexity"
    assert record["labels"] == []
    assert record["filled_before"] is None
    assert set(record["baselines"]) == {"frequent_tokens"}
    assert record["lengths"]["windowed_rows"] == 1
    notes = " ".join(record["notes"])
    assert "it has no masked-language head, so a new one is trained" in notes
    assert "the head is new: in the first 1 updates it trains alone" in notes
    assert "each window of a long document of train is a row of its own: 4" in notes
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["test"]["rows"] == 15
    assert metrics["test"]["headline"]["lower_is_better"] is True
    assert metrics["baselines"]["answers"][0]["headline"]["value"] > 1


def test_tables_hold_what_was_hidden_and_what_was_filled_in(made):
    out, metrics = made
    _, records = read_predictions(out, "test")
    rows = pq.read_table(out / "rows-test.parquet").to_pylist()
    for row, record in zip(rows, records, strict=True):
        spans = json.loads(row["hidden"])
        assert [row["text"][start:end] for start, end in spans] == record["words"]
        assert sum(record["losses"]) == pytest.approx(record["loss"])
    tokens, right = (sum(record[name] for record in records) for name in ("tokens", "right"))
    assert metrics["test"]["scores"]["token_accuracy"] == pytest.approx(right / tokens)
    ids, given = read_baselines(out)
    assert ids == [record["id"] for record in records]
    assert all(loss > 0 for loss in given["frequent_tokens"])


def test_the_report_tells_of_words(made, capsys):
    out, _ = made
    text = (out / "report.md").read_text()
    summary = text.split("\n\n")[1]
    assert "fills in hidden words with a perplexity of **" in summary
    assert "had no head that fills gaps" in summary
    assert "1 longer one was read in windows;" in text or "1 longer one was read in windows\n" in text
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    told = ("Scores", "Against simple answers", "Filled gaps", "Words that it fills in badly", "Worst documents")
    assert [name for name in headings if name in told] == list(told)
    assert "nothing is known of before: its head was new" in text
    assert "How it learnt" in (out / "report.html").read_text()
    before = {name: (out / name).read_bytes() for name in ("report.md", "report.html", "metrics.json")}
    assert cli.main(["report", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    assert "perplexity" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [{"folds": [{"name": "fold-1"}, {"name": "fold-2"}]}, {"recipe": "evaluate"}])
def test_of_folds_and_of_a_model_from_elsewhere_nothing_is_said_of_before(made, kind):
    out, metrics = made
    trained = read_folder(out, ("test",))
    told = {}
    for name, more in (("trained", {}), ("other", kind)):
        reading = replace(trained, run=trained.run | more)
        chapter = filled_gaps.chapter(metrics["filled_gaps"], reading)
        told[name] = masked_language.summary(metrics, reading.run), chapter.partition("\n")[0]
    assert "had no head that fills gaps" in told["trained"][0]
    assert "after each stands what the model says (nothing is known of before" in told["trained"][1]
    assert "had no head" not in told["other"][0]
    assert "after each stands what the model says. All hidden" in told["other"][1]


# what comes out is a backbone


def test_the_folder_is_whole_with_the_head_and_without_it(made, checkpoint):
    folder = made[0] / "model"
    source, _ = loaded("AutoModel", checkpoint("bert", dropout=0.1))
    bare, missing = loaded("AutoModel", folder)
    assert missing == set()
    for name, value in source.pooler.state_dict().items():
        assert torch.equal(bare.pooler.state_dict()[name], value), name
    masked, missing = loaded("AutoModelForMaskedLM", folder)
    assert missing == set()
    trained = masked.base_model.state_dict()
    assert all(torch.equal(value, bare.state_dict()[name]) for name, value in trained.items())
    assert not torch.equal(trained["encoder.layer.0.output.dense.weight"], source.encoder.layer[0].output.dense.weight)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 40


def test_the_pipeline_fills_in_the_same(made):
    from transformers import pipeline

    out, _ = made
    fill = pipeline("fill-mask", str(out / "model"), dtype="float32", top_k=1)
    rows = pq.read_table(out / "rows-test.parquet").to_pylist()
    for row, record in list(zip(rows, read_predictions(out, "test")[1], strict=True))[:-1]:  # the last is read in parts
        text = row["text"]
        for start, end in reversed(json.loads(row["hidden"])):
            text = text[:start] + fill.tokenizer.mask_token + text[end:]  # these words are a piece each
        found = fill(text)
        found = [one[0] for one in found] if isinstance(found[0], list) else found
        assert [one["token_str"] for one in found] == record["filled"]


@pytest.mark.parametrize("auto_class", ["AutoModelForSequenceClassification", "AutoModelForTokenClassification"])
def test_only_the_head_of_the_next_task_is_new(made, auto_class):
    _, new = load_model(BackboneConfig(name=str(made[0] / "model")), auto_class, num_labels=3)
    assert new == {"classifier.weight", "classifier.bias"}


def test_a_classifier_is_trained_on_it(made, tmp_path, data):
    out = tmp_path / "run"
    metrics = run_recipe(
        "text_classify", "--backbone.name", made[0] / "model", "--data.path", data, "--run.out", out,
        "--train.epochs", 1, "--run.precision", "fp32", "--report.calibrate", "false",
    )  # fmt: skip
    assert metrics["test"]["rows"] == 19
    assert json.loads((out / "run.json").read_text())["lengths"]["max_length"] == 40


@pytest.fixture(scope="module")
def again(tmp_path_factory, made, documents):
    """A run that goes on from the first one, whose head is there: by LoRA, with no words kept."""
    words = ("--adapt.strategy", "lora", "--run.keep_rows", "false", "--train.epochs", 1)
    return train(tmp_path_factory.mktemp("again") / "run", made[0] / "model", documents, *words)


def test_a_head_that_is_there_is_kept_and_held_against_what_it_said(again, made):
    out, metrics = again
    record = json.loads((out / "run.json").read_text())
    assert set(record["baselines"]) == {"frequent_tokens", "before"}
    assert not any("head is new" in note or "no masked-language head" in note for note in record["notes"])
    before = {answer["name"]: answer["headline"] for answer in metrics["baselines"]["answers"]}["before"]
    assert before["value"] == made[1]["test"]["headline"]["value"]  # the same words are hidden in every run
    with pytest.raises(UserError, match="brings its head with it"):
        train(out.parent / "head", made[0] / "model", out, "--adapt.strategy", "head", "--data.path", "demo")


def test_lora_ends_in_a_plain_backbone_with_its_pooler(again, made):
    out, _ = again
    assert (out / "adapter" / "adapter_config.json").exists()
    assert not (out / "model" / "adapter_config.json").exists()
    bare, missing = loaded("AutoModel", out / "model")
    assert missing == set()
    first, _ = loaded("AutoModel", made[0] / "model")
    assert torch.equal(bare.pooler.dense.weight, first.pooler.dense.weight)
    assert not torch.equal(
        bare.encoder.layer[0].attention.self.query.weight, first.encoder.layer[0].attention.self.query.weight
    )


def test_without_keep_rows_no_word_is_kept(again):
    out, _ = again
    assert set(pq.read_table(out / "rows-test.parquet").column_names) == {"id", "sha256"}
    records = read_predictions(out, "test")[1]
    assert all(record["words"] is None and record["filled"] is None for record in records)
    text = (out / "report.md").read_text()
    assert "Not kept" in text
    assert "*not kept*" in text
    assert json.loads((out / "run.json").read_text())["filled_before"] is None


# the head first


def names_in(path):
    """What a file of safetensors holds, by name."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


def test_the_head_trains_alone_at_first(tmp_path, checkpoint, documents):
    out, _ = train(
        tmp_path / "run", checkpoint("distilbert"), documents, "--train.head_first", 1.0, "--train.max_steps", 4,
        "--train.save_every", 2, "--train.weight_decay", 0.5, "--train.head_lr", 1e-2,
    )  # fmt: skip
    source, _ = loaded("AutoModel", checkpoint("distilbert"))
    model, missing = loaded("AutoModelForMaskedLM", out / "model")
    assert missing == set()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.base_model.state_dict().items())
    assert 1e-2 < model.vocab_projector.bias.abs().max() < 2.6e-2  # at its own rate times 1, 3/4, 1/2 and 1/4
    moments = names_in(max(out.glob("checkpoints/*/optimizer.safetensors")))  # of the rest nothing was learnt
    assert moments
    assert all("vocab_" in name for name in moments)
    assert [event["lr"] for event in map(json.loads, (out / "log.jsonl").open()) if "lr" in event] == [0.0] * 4
    assert not any("pooler" in name for name in names_in(out / "model" / "model.safetensors"))  # this kind has none


def test_the_rest_begins_with_a_warm_up_of_its_own():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    optimizer = make_optimizer(model, {"1.weight", "1.bias"}, 1e-2, 1e-1, 0.1)
    wait_for_head(optimizer, 4)
    start = model[0].weight.detach().clone()
    rates = []
    for update in range(10):
        factor = set_lr(optimizer, update, 10, 0.2)
        rates.append({group["in_head"]: group["lr"] for group in optimizer.param_groups})
        model(torch.ones(2, 3)).square().sum().backward()
        leave_waiting(optimizer, update)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(model[0].weight, start) == (update < 4)
        assert factor * 1e-2 == pytest.approx(rates[-1][False])
        assert bool(optimizer.state[model[0].weight]) == (update >= 4)
    wait_for_head(optimizer, 0)
    plain = [set_lr(optimizer, update, 10, 0.2) for update in range(10)]
    assert [rate[True] for rate in rates] == pytest.approx([0.1 * factor for factor in plain])
    rest = [set_lr(optimizer, update, 6, 0.2) for update in range(6)]
    assert [rate[False] for rate in rates] == pytest.approx([0.0] * 4 + [1e-2 * factor for factor in rest])


@pytest.mark.parametrize("stopped", [2, 5])
def test_a_run_that_was_stopped_before_or_after_the_rest_began_goes_on_to_the_same_end(
    tmp_path, checkpoint, documents, monkeypatch, stopped
):
    words = ("--train.head_first", 0.3, "--train.epochs", 1)  # the head is alone in 2 of the 6 updates
    source = checkpoint("bert", dropout=0.1)
    whole, metrics = train(tmp_path / "whole", source, documents, *words)
    with monkeypatch.context() as patched:
        stop_after(stopped, patched)
        with pytest.raises(Stopped, match=f"after update {stopped}, which is saved"):
            train(tmp_path / "parts", source, documents, *words)
    parts, same = train(tmp_path / "parts", source, documents, *words, "--run.resume")
    assert same == metrics
    same_files(whole, parts, ["model/model.safetensors", *TABLES, "log.jsonl", "metrics.json"])


@pytest.mark.slow
def test_two_processes_write_the_bytes_that_one_writes(tmp_path, checkpoint, documents):
    script, source = Path(__file__).parent / "untrained.py", checkpoint("bert", dropout=0.1)
    words = ("--backbone.name", source, "--data.path", documents, "--run.precision", "fp32")
    for processes in (1, 2):
        out = ("--run.out", tmp_path / str(processes))
        finish(launch_script(script, "pretrain", *words, *out, processes=processes))
    same_files(tmp_path / "1", tmp_path / "2", [*TABLES, "baselines-test.parquet", "metrics.json"])


# what is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--run.headline", "accuracy"), "perplexity, log_loss"),
        (("--mask.hide", "0.95"), "--mask.hide 0.95"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(tmp_path, checkpoint, documents, words, said):
    with pytest.raises(UserError) as refused:
        train(tmp_path / "run", checkpoint("bert"), documents, *words)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gpt_style_checkpoints_are_sent_to_their_own_recipe(tmp_path, checkpoint, documents, kind):
    with pytest.raises(UserError, match=r"recipes/generate\.py"):
        train(tmp_path / "run", checkpoint(kind), documents)


@pytest.mark.parametrize(("rows", "said"), [(["a saw", "  ", "a pear"], "an empty document"), (["a saw"], "too few")])
def test_documents_that_cannot_be_are_refused(tmp_path, checkpoint, rows, said):
    path = write_csv(tmp_path / "rows.csv", [(row,) for row in rows], ["text"])
    with pytest.raises(UserError) as refused:
        train(tmp_path / "run", checkpoint("bert"), path)
    assert said in str(refused.value)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_documents_of_one_word_are_enough(tmp_path, checkpoint):
    words = ["apple", "saw", "robin", "pear", "drill", "crow", "plum", "hammer", "heron", "fig", "file", "finch"]
    path = write_csv(tmp_path / "rows.csv", [(word,) for word in words], ["text"])
    _, metrics = train(tmp_path / "run", checkpoint("bert"), path, "--train.max_steps", 1)
    assert metrics["test"]["tokens"] == metrics["test"]["rows"]
