"""What is learnt of a pair of texts, and what does the model write?"""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import texts

from graftkit.backbone import BackboneConfig
from graftkit.errors import UserError
from graftkit.tasks import sequence_to_sequence
from graftkit.tasks.sequence_to_sequence import (
    GenerateConfig,
    SequenceToSequence,
    TargetConfig,
    load_reader,
    load_writer,
    measure_pairs,
    say_what_is_new,
)

KINDS = {"fruit": "red", "tool": "new", "bird": "old"}  # words that the tiny tokenizers have as one piece


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Sentences that name a thing; to be written are a word for its kind and, one to four times, the first word."""
    rng, rows = random.Random(seed), []
    for text, label in texts(count, seed):
        rows.append({"source": text, "target": " ".join([KINDS[label], *[text.split()[0]] * rng.randint(1, 4)])})
    return rows


def writer(
    checkpoint: Path, prefix: str = "", max_length=None, target=None, smoothing=0.0, **how
) -> SequenceToSequence:
    """The task for a checkpoint."""
    targets = TargetConfig(max_length=target, smoothing=smoothing)
    generate = GenerateConfig(**how)
    tokenizer = load_reader(BackboneConfig(name=str(checkpoint), max_length=max_length), targets, generate)
    return SequenceToSequence(tokenizer, prefix, targets, generate)


def rows_of(count: int, seed: int = 0) -> list[dict[str, str]]:
    return [{"id": f"row-{i}", **row} for i, row in enumerate(pairs(count, seed))]


def dataset(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


def batch_of(task, rows):
    return task.collate([task.encode(row, None) for row in rows])


def model_of(checkpoint: Path):
    """A writer whose weights are larger than when new, so that it writes something of its own for each row."""
    model = load_writer(BackboneConfig(name=str(checkpoint)), 0).model.eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_padding_changes_no_text(checkpoint, kind, beams):
    task, model, rows = writer(checkpoint(kind), beams=beams, max_new_tokens=9), model_of(checkpoint(kind)), rows_of(12)
    together = task.predict(model, batch_of(task, rows))
    alone = [task.predict(model, batch_of(task, [row]))[0] for row in rows]
    assert [record["prediction"] for record in together] == [record["prediction"] for record in alone]
    assert [record["ended"] for record in together] == [record["ended"] for record in alone]
    np.testing.assert_allclose([r["loss"] for r in together], [r["loss"] for r in alone], rtol=1e-4)
    assert len({record["prediction"] for record in together}) > 3


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_loss_is_the_models_own_over_target_tokens(checkpoint, kind):
    task, model = writer(checkpoint(kind), max_new_tokens=5), model_of(checkpoint(kind))
    batch = batch_of(task, rows_of(5))
    labels = batch.inputs["labels"]
    assert (labels == -100).any()
    assert task.count(batch) == (labels != -100).sum()
    with torch.no_grad():
        mean = task.loss(model, batch) / task.count(batch)
        assert mean.item() == pytest.approx(model(**batch.inputs).loss.item(), rel=1e-5)
        started = model.prepare_decoder_input_ids_from_labels(labels=labels)
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        shifted = model(**inputs, decoder_input_ids=started).logits
    found = torch.nn.functional.cross_entropy(shifted.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert mean.item() == pytest.approx(found.item(), rel=1e-5)


def test_smoothing_is_of_training_alone(checkpoint):
    model, rows = model_of(checkpoint("t5")), rows_of(5)
    plain, smooth = (writer(checkpoint("t5"), smoothing=share, max_new_tokens=3) for share in (0.0, 0.2))
    batch = batch_of(plain, rows)
    with torch.no_grad():
        one, other = (task.loss(model, batch).item() for task in (plain, smooth))
        logits = model(**batch.inputs).logits.log_softmax(-1)[batch.inputs["labels"] != -100]
    assert other == pytest.approx(0.8 * one - 0.2 * logits.mean(dim=1).sum().item(), rel=1e-4)
    losses = [[record["loss"] for record in task.predict(model, batch)] for task in (plain, smooth)]
    assert losses[0] == losses[1]
    assert sum(losses[0]) == pytest.approx(one, rel=1e-5)


def test_texts_are_bounded_and_say_how_they_ended(checkpoint):
    task, model, rows = writer(checkpoint("t5"), beams=1, max_new_tokens=4), model_of(checkpoint("t5")), rows_of(12)
    records = task.predict(model, batch_of(task, rows))
    for record in records:
        assert len(record["prediction"].split()) <= 4  # a blank between all tokens here
        assert record["ended"] in ("end", "length")
    assert {record["ended"] for record in records} >= {"length"}
    late = writer(checkpoint("t5"), beams=2, max_new_tokens=30, max_seconds=1e-9)
    assert {record["ended"] for record in late.predict(model, batch_of(late, rows))} == {"time"}


def test_the_checkpoints_own_settings_stay_but_for_those_of_the_run(checkpoint, tmp_path):
    task, model = writer(checkpoint("bart"), beams=2, max_new_tokens=7, max_seconds=60), model_of(checkpoint("bart"))
    model.generation_config.min_new_tokens, model.generation_config.no_repeat_ngram_size = 30, 3
    model.generation_config.length_penalty, model.generation_config.early_stopping = 2.0, True
    model.generation_config.do_sample, model.generation_config.temperature = True, 0.5
    found = task.settings(model)
    assert (found.num_beams, found.max_new_tokens, found.no_repeat_ngram_size, found.do_sample) == (2, 7, 3, False)
    assert (found.length_penalty, found.early_stopping) == (2.0, True)
    assert found.temperature is found.min_new_tokens is None  # the one draws, the other is of other rows
    assert found.max_time == 60
    assert model.generation_config.do_sample  # what it came with is as it was
    assert found.forced_eos_token_id == 3
    alone = writer(checkpoint("bart"), beams=1, max_new_tokens=7).settings(model)
    assert alone.length_penalty is alone.early_stopping is None
    alone.save_pretrained(tmp_path)  # transformers refuses settings that contradict each other


def test_the_prefix_stands_before_each_source(checkpoint):
    plain, with_prefix = (writer(checkpoint("t5"), prefix) for prefix in ("", "my old "))
    row = rows_of(1)[0]
    one, other = plain.encode(row, None), with_prefix.encode({**row}, None)
    expected = plain.tokenizer("my old " + row["source"])["input_ids"]
    assert other["input_ids"] == expected != one["input_ids"]
    assert other["wanted"] == one["wanted"]
    assert (with_prefix.lengths(dataset([row])) - plain.lengths(dataset([row]))).tolist() == [2]


def test_what_is_cut_is_counted_and_said(checkpoint):
    rows = {split: rows_of(30, seed) for seed, split in enumerate(("train", "dev", "test"))}
    rows["test"][0]["target"] = "very " * 20
    rows["train"][1]["source"] = "very " * 60
    splits = SimpleNamespace(**{split: dataset(each) for split, each in rows.items()})
    task, said = writer(checkpoint("t5"), target=8), []
    run = SimpleNamespace(record={}, say=lambda text, warning=False: said.append((text, warning)))
    lengths = measure_pairs(run, task, splits)
    assert run.record["lengths"]["cut"]["test"] == {"sources": 0, "targets": 1, "rows": 30}
    assert run.record["lengths"]["cut"]["train"] == {"sources": 1, "targets": 0, "rows": 30}
    assert run.record["lengths"]["truncated_rows"] == 1
    assert run.record["generation"] == {
        "beams": 4, "max_new_tokens": 8, "max_seconds": None, "longer_references": 1,
    }  # fmt: skip
    warnings = [text for text, warning in said if warning]
    assert warnings == [
        "1 of 30 targets of test (3.3%) are longer than 8 tokens, and their ends are not learnt or measured by the "
        "loss. Set --target.max_length"
    ]
    assert lengths["train"].tolist() == task.lengths(splits.train).tolist()
    assert lengths["train"][1] == 40 + len(task.encode(rows["train"][1], None)["wanted"])


def test_the_bound_follows_from_the_training_targets(checkpoint):
    task = writer(checkpoint("t5"))
    task.bound(np.array([4] * 99 + [30]))
    assert task.most == 6
    few = writer(checkpoint("t5"), target=5)
    few.bound(np.array([4] * 100))
    assert few.most == 5
    asked = writer(checkpoint("t5"), max_new_tokens=3)
    asked.bound(np.array([4] * 100))
    assert asked.most == 3


def test_texts_are_written_only_where_they_are_asked_for(checkpoint):
    task, model = writer(checkpoint("t5"), max_new_tokens=3), model_of(checkpoint("t5"))
    batch = batch_of(task, rows_of(3))
    task.writes = False
    records = task.predict(model, batch)
    assert [record["prediction"] for record in records] == [None] * 3
    assert list(task.score(records)) == ["log_loss"]
    task.writes = True
    assert all(isinstance(record["prediction"], str) for record in task.predict(model, batch))


def test_simple_answers_copy_and_look_up(checkpoint):
    train = dataset([{"source": "a red apple", "target": "one"}, {"source": "an old hammer", "target": "two"}])
    test = dataset([{"source": "my hammer", "target": "x"}, {"source": "red", "target": "y"}])
    found = writer(checkpoint("t5")).baselines(train, test, test)
    assert found["copy"].given == ["my hammer", "red"]
    assert found["nearest"].given == ["two", "one"]
    signs = dataset([{"source": " ", "target": "one"}])
    assert list(writer(checkpoint("t5")).baselines(signs, test, test)) == ["copy"]


def test_a_text_without_an_end_of_its_own_is_known_as_cut(checkpoint):
    """BART puts an end on every text of the greatest length: that is none of its own."""
    task, model = writer(checkpoint("bart"), max_new_tokens=5, beams=1), model_of(checkpoint("bart"))
    model.generation_config.forced_eos_token_id = model.config.eos_token_id
    with torch.no_grad():
        model.final_logits_bias[0, model.config.eos_token_id] = -1e4
    assert {record["ended"] for record in task.predict(model, batch_of(task, rows_of(4)))} == {"length"}


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("gpt2", {}, "gpt2 has no encoder, and goes on with a text rather than read one and write another: that is "),
        ("llama", {}, "recipes/generate.py"),
        ("bert", {}, "bert reads texts and writes none; take one with an encoder and a decoder"),
        ("bart", {"target": 60}, "--target.max_length 60: this checkpoint writes at most 48 tokens"),
        ("bart", {"max_new_tokens": 60}, "--generate.max_new_tokens 60: this checkpoint writes at most 48 tokens"),
        ("t5", {"target": 2}, "--target.max_length 2: 2 are special tokens, which leaves none for text"),
        ("t5", {"prefix": "very " * 50}, "it takes 52 tokens, and the model reads 40; shorten it"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(checkpoint, kind, settings, words):
    with pytest.raises(UserError) as refused:
        writer(checkpoint(kind), **settings)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_of_language_codes_is_refused(checkpoint, monkeypatch):
    tokenizer = SimpleNamespace(src_lang="en_XX", tgt_lang=None)
    monkeypatch.setattr(sequence_to_sequence, "load_tokenizer", lambda config, fast: tokenizer)
    with pytest.raises(UserError, match="wants a code for each language"):
        load_reader(BackboneConfig(name=str(checkpoint("bart"))), TargetConfig(), GenerateConfig())


def test_what_nobody_trained_is_said_and_a_rate_for_it_is_warned_of():
    said = []
    run = SimpleNamespace(say=lambda text, warning=False: said.append((text, warning)))
    say_what_is_new(run, BackboneConfig(name="demo-t5"), "full", 1e-3)
    say_what_is_new(run, BackboneConfig(name="t5-small"), "full", 1e-3)
    say_what_is_new(run, BackboneConfig(name="t5-small"), "full", 1e-4)
    say_what_is_new(run, BackboneConfig(name="t5-small"), "lora", 1e-3)
    assert [warning for _, warning in said] == [False, True]
    assert "nobody has trained" in said[0][0]
    assert "--train.lr 0.001 is for a network that starts from nothing" in said[1][0]
