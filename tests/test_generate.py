"""The recipe, end to end, on tiny checkpoints."""

from __future__ import annotations

import contextlib
import io
import json

import pyarrow.parquet as pq
import pytest
from conftest import run_recipe, save_tokenizer, texts, write_csv
from test_causal_language_modelling import make_model
from test_chats import PLAIN, say, write_chats

from graftkit import cli
from graftkit.adapt import AdaptConfig, adapt
from graftkit.backbone import BackboneConfig
from graftkit.errors import UserError
from graftkit.heads import load_headless
from graftkit.report.tables import read_baselines, read_predictions
from graftkit.scratch import MAKERS


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """Makes a tiny checkpoint that brings its head, with or without a chat template."""

    def make(kind, template=None):
        from transformers import AutoTokenizer

        folder = tmp_path_factory.mktemp(kind)
        save_tokenizer(folder, "gpt2")
        if template is not None:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer.chat_template = template
            tokenizer.save_pretrained(folder)
        make_model(kind).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A folder of text files with 41, 12 and 15 documents, of which one of test is read in windows."""
    folder = tmp_path_factory.mktemp("documents")
    for split, count, seed in (("train", 41, 1), ("dev", 12, 2), ("test", 14, 3)):
        rows = [text for text, _ in texts(count, seed)]
        if split == "test":
            rows.append(" ".join(rows))
        (folder / f"{split}.txt").write_text("\n\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("prompts") / "rows.csv", texts(60), ("prompt", "completion"))


def train(out, checkpoint, data, *words):
    metrics = run_recipe(
        "generate", "--backbone.name", checkpoint, "--data.path", data, "--run.out", out, "--train.epochs", 2,
        "--train.batch_size", 8, "--train.lr", 5e-3, "--run.precision", "fp32", "--generate.max_new_tokens", 8, *words,
    )  # fmt: skip
    return out, metrics


@pytest.fixture(scope="module")
def made(tmp_path_factory, writer, documents):
    """One run on documents, for all tests that only read it."""
    return train(tmp_path_factory.mktemp("made") / "run", writer("llama"), documents)


def record_of(out):
    return json.loads((out / "run.json").read_text())


def printed(snippet):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(snippet, {})
    return said.getvalue()


def test_the_run_says_what_it_learnt(made):
    out, metrics = made
    record = record_of(out)
    assert record["task"] == "text-generation"
    assert record["headline"] == metrics["test"]["headline"]["name"] == "perplexity"
    assert record["labels"] == []
    assert record["lengths"]["truncated_rows"] == 0
    assert "every token is learnt" in " ".join(record["notes"])
    _, records = read_predictions(out, "test")
    assert records[0].keys() == {"id", "loss", "tokens", "right", "bytes"}
    assert metrics["test"]["tokens"] == sum(one["tokens"] for one in records)
    assert metrics["test"]["scores"].keys() == {
        "perplexity", "log_loss", "token_accuracy", "bits_per_byte", "perplexity_per_byte",
    }  # fmt: skip
    measures = pq.read_table(out / "measures-test.parquet").to_pylist()
    assert [row["measure:windows"] for row in measures] == [1.0] * 14 + [float(measures[-1]["measure:windows"])]
    assert measures[-1]["measure:windows"] > 2
    rows = pq.read_table(out / "rows-test.parquet").to_pylist()
    assert sum(len(row["text"].encode()) for row in rows) == metrics["test"]["bytes"]


def test_what_it_is_held_against(made):
    out, metrics = made
    _, given = read_baselines(out)
    assert given.keys() == {"unigram", "before"}
    answers = {one["name"]: one for one in metrics["baselines"]["answers"]}
    assert answers["before"]["beaten"] == "yes"
    assert answers["before"]["headline"]["value"] > 150  # of 180 tokens, before it was trained
    assert answers["unigram"]["headline"]["value"] < 100


def test_samples_stand_in_the_record_and_the_report(made):
    out, _ = made
    samples = record_of(out)["samples"]
    assert samples["settings"] == {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 8}
    assert [sample["id"] for sample in samples["rows"]] == ["test-1", "test-5", "test-10", "test-15"]
    text, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    for sample in samples["rows"]:
        assert sample.keys() == {"id", "begins", "before", "after"}
        assert sample["before"] != sample["after"]
        assert f"```\n{sample['after'].rstrip()}\n```" in text
    assert "<caption" in page
    assert page.count('style="white-space: pre-wrap') == 12


def test_the_report_is_in_plain_words(made, capsys):
    out, _ = made
    before = {name: (out / name).read_bytes() for name in ("report.md", "report.html", "metrics.json")}
    assert cli.main(["report", str(out)]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    text = before["report.md"].decode()
    assert "foresees text with a perplexity of **" in text
    assert "equally likely ones" in text
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    at = [headings.index(name) for name in ("Scores", "How it writes, before and after", "Hardest to foresee")]
    assert at == sorted(at)
    assert "perplexity" in capsys.readouterr().out


def test_plain_libraries_load_the_folder_and_write(made):
    from transformers import AutoModelForCausalLM, GenerationConfig, pipeline

    out, _ = made
    folder = str(out / "model")
    saved = GenerationConfig.from_pretrained(folder)
    assert (saved.max_new_tokens, saved.temperature, saved.eos_token_id, saved.pad_token_id) == (8, 0.8, 4, 4)
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.max_new_tokens == 8
    write = pipeline("text-generation", folder, dtype="float32")
    (found,) = write("<eos>apple", do_sample=False, return_full_text=False)
    assert found["generated_text"].strip()
    assert printed(record_of(out)["snippet"]).strip()


@pytest.mark.parametrize(
    ("kind", "rows", "words"),
    [
        ("gpt2", "prompts", ("--adapt.strategy", "lora")),
        ("llama", "chats", ("--adapt.strategy", "lora", "--adapt.merge", "true", "--run.keep_rows", "false")),
        ("bloom", "prompts", ("--adapt.strategy", "last", "--adapt.blocks", 1, "--generate.temperature", 0)),
    ],
)
def test_each_way_to_adapt_ends_in_a_folder_that_plain_libraries_read(tmp_path, writer, prompts, kind, rows, words):
    from peft import AutoPeftModelForCausalLM

    data = prompts
    if rows == "chats":
        data = write_chats(tmp_path / "rows.jsonl", [say(text, label) for text, label in texts(60)])
    out, metrics = train(tmp_path / "run", writer(kind, PLAIN if rows == "chats" else None), data, *words)
    record, folder = record_of(out), out / "model"
    assert (
        metrics["test"]["scores"]["perplexity"]
        < {one["name"]: one["headline"]["value"] for one in metrics["baselines"]["answers"]}["before"]
    )
    assert isinstance(printed(record["snippet"]), str)
    assert json.loads((folder / "generation_config.json").read_text())["max_new_tokens"] == 8
    adapter = "lora" in words and "--adapt.merge" not in words
    assert (folder / "adapter_config.json").exists() == adapter
    if adapter:
        assert "AutoPeftModelForCausalLM" in record["snippet"]
        AutoPeftModelForCausalLM.from_pretrained(folder)
    assert (out / "adapter").exists() == ("--adapt.merge" in words)
    assert bool(record["samples"]["rows"]) == ("--run.keep_rows" not in words)
    assert any("does not keep packed documents apart" in note for note in record["notes"]) == (kind == "bloom")
    if rows == "chats":
        assert "apply_chat_template" in record["snippet"]
        assert "How it writes" not in (out / "report.md").read_text()


# what is refused


def test_a_head_that_is_not_new_is_not_trained_alone(writer):
    for kind in ("gpt2", "llama"):  # shared with the embeddings, and brought by the checkpoint
        headed = load_headless(BackboneConfig(name=str(writer(kind))), "AutoModelForCausalLM", "CAUSAL_LM", 0)
        with pytest.raises(UserError, match=r"--adapt\.strategy head: .* brings its head with it, or shares it"):
            adapt(headed, AdaptConfig(strategy="head"))


@pytest.mark.parametrize(
    "words",
    [
        ("--report.audit", "true"),
        ("--run.headline", "token_accuracy"),
        ("--backbone.quantize", "4bit"),
        ("--backbone.quantize", "4bit", "--adapt.strategy", "lora"),
        ("--backbone.quantize", "4bit", "--adapt.strategy", "lora", "--adapt.merge", "true"),
        ("--backbone.quantize", "4bit", "--adapt.strategy", "lora", "--adapt.dora", "true"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, writer, prompts, words, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as refused:
        train(tmp_path / "run", writer("gpt2"), prompts, *words)
    assert words[0] in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "RUN", "--data.path", "a.csv"),
        ("calibrate", "RUN", "--out", "OUT"),
        ("push", "RUN", "someone/name"),
    ],
)
def test_commands_that_cannot_say_so_in_one_line(made, tmp_path, capsys, words):
    (tmp_path / "a.csv").write_text("text\nwords\n")
    places = {"RUN": made[0], "OUT": tmp_path / "out", "a.csv": tmp_path / "a.csv"}
    assert cli.main([str(places.get(word, word)) for word in words]) != 0
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_more_tokens_than_the_checkpoint_has_positions_for_are_refused_at_the_start(tmp_path, writer, documents):
    with pytest.raises(UserError, match=r"--generate\.max_new_tokens 60: this checkpoint has positions for 48 tokens"):
        train(tmp_path / "run", writer("gpt2"), documents, "--generate.max_new_tokens", 60)


# the demo


def test_the_demo_network_is_the_same_each_time(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        MAKERS["demo-gpt"](tmp_path / name)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 3e6
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert len(tokenizer) == model.config.vocab_size == 1536
    assert tokenizer.decode(tokenizer("Où est ma commande 🙂 ?")["input_ids"]) == "Où est ma commande 🙂 ?"


@pytest.mark.parametrize(
    ("words", "learns", "updates"),
    [
        ((), "in 8 epochs at a rate of 0.003", 336),
        (("--train.epochs", 3, "--train.lr", 1e-4), "in 3 epochs at a rate of 0.0001", 126),  # the usual, but asked for
        (("--train.batch_size", 32), "in 8 epochs at a rate of 0.003", 168),
    ],
)
def test_the_demo_says_that_nobody_trained_it_and_how_it_learns(words, learns, updates, capsys):
    run_recipe("generate", "--run.dry_run", *words)
    said = " ".join(capsys.readouterr().out.split())
    assert "nobody has trained" in said
    assert learns in said
    assert f"dry run: {updates} updates" in said


def test_a_checkpoint_that_was_trained_learns_as_usual(tmp_path, writer, documents, capsys):
    run_recipe("generate", "--run.dry_run", "--backbone.name", writer("llama"), "--data.path", documents,
               "--run.out", tmp_path / "run", "--generate.max_new_tokens", 8)  # fmt: skip
    assert "dry run: 9 updates of 16 rows" in capsys.readouterr().out
