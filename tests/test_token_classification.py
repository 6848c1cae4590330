"""Does each word get one tag, whatever the length of its sentence, and the same from plain libraries?"""

from __future__ import annotations

import ast
import contextlib
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FILLER, KINDS, WORDS

from graftkit.adapt import AdaptConfig, adapt
from graftkit.backbone import BackboneConfig
from graftkit.batches import MOST_TOKENS
from graftkit.heads import load_token_classifier
from graftkit.metrics import tagging
from graftkit.optim import make_optimizer
from graftkit.tasks.token_classification import TokenClassification
from graftkit.text import load_tokenizer

GROUP = {word: group for group, words in WORDS.items() for word in words}
LABELS = ["O", *(f"{mark}-{group}" for group in WORDS for mark in "BI")]


def sentence(id: str, words: list[str]) -> dict:
    """A row: things are entities, and neighbours of one kind are one."""
    tags = ["O" if word not in GROUP else f"B-{GROUP[word]}" for word in words]
    for i in range(1, len(words)):
        if tags[i] != "O" and tags[i][1:] == tags[i - 1][1:]:
            tags[i] = f"I-{GROUP[words[i]]}"
    return {"id": id, "words": words, "tags": tags}


def sentences(count: int, seed: int = 0, longest: int = 14) -> list[dict]:
    rng = np.random.default_rng(seed)
    pool = [*FILLER, *GROUP]
    sizes = rng.integers(3, longest, count)
    return [sentence(f"row-{i}", [pool[k] for k in rng.integers(0, len(pool), n)]) for i, n in enumerate(sizes)]


def make(checkpoint, kind: str, labels: list[str] = LABELS) -> tuple[TokenClassification, torch.nn.Module]:
    """A task, and a model whose answers vary from word to word."""
    config = BackboneConfig(name=str(checkpoint(kind)))
    tokenizer = load_tokenizer(config)
    headed = load_token_classifier(config, labels, tokenizer, 0)
    return TokenClassification(tokenizer, labels), headed


def shake(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that train so large that tags differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and parameter.requires_grad:
                parameter.normal_(std=0.6 if "classifier" in name or "score" in name else 0.15)
    return model.eval()


def batch_of(task: TokenClassification, rows: list[dict]):
    return task.collate([task.encode(row, None) for row in rows])


def ask(task: TokenClassification, model: torch.nn.Module, rows: list[dict]) -> list[dict]:
    with torch.no_grad():
        return task.predict(model, batch_of(task, rows))


# what every task must hold to


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_neighbours_change_no_answer_and_the_first_loss_knows_nothing(checkpoint, kind):
    task, headed = make(checkpoint, kind)
    rows = [*sentences(8), *sentences(2, seed=1, longest=120)]
    model = headed.model.eval()
    assert headed.peft_task == "TOKEN_CLS"
    together = ask(task, model, rows)
    assert len(set(task.lengths(rows).tolist())) > 4
    for row, record in zip(rows, together, strict=True):
        (alone,) = ask(task, model, [row])
        np.testing.assert_allclose(record["logits"], alone["logits"], atol=2e-6)
        assert (record["id"], record["label"]) == (row["id"], row["tags"])
        assert record["prediction"] == [LABELS[i] for i in record["logits"].argmax(axis=1)]
        assert record["logits"].shape == record["probabilities"].shape == (len(row["words"]), len(LABELS))
        assert record["logits"].dtype == record["probabilities"].dtype == np.float32
        np.testing.assert_allclose(record["probabilities"].sum(axis=1), 1, atol=1e-6)
    batch = batch_of(task, rows)
    loss = task.loss(model, batch).item()
    words = sum(len(row["words"]) for row in rows)
    assert task.count(batch).item() == words
    assert loss / words == pytest.approx(math.log(len(LABELS)), rel=0.15)
    assert sum(record["loss"] for record in together) == pytest.approx(loss, rel=1e-5)
    parts = [task.loss(model, batch_of(task, part)).item() for part in (rows[:3], rows[3:])]
    assert sum(parts) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_it_overfits_eight_rows_some_of_several_windows(checkpoint, kind):
    task, headed = make(checkpoint, kind)
    adapted = adapt(headed, AdaptConfig())
    optimizer = make_optimizer(adapted.model, adapted.head, 5e-3, 5e-3, 0.0)
    rows = [*sentences(6), *sentences(2, seed=1, longest=90)]
    batch = batch_of(task, rows)
    assert len(batch.inputs["input_ids"]) > len(rows)
    adapted.model.train()
    for _ in range(60):
        loss = task.loss(adapted.model, batch) / task.count(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    scores = task.score(ask(task, adapted.model.eval(), rows))
    assert scores[task.headline] == scores["accuracy"] == 1.0
    assert scores["log_loss"] == pytest.approx(loss.item(), abs=0.05)


def test_the_headline_goes_by_the_tags(checkpoint):
    tokenizer = load_tokenizer(BackboneConfig(name=str(checkpoint("bert"))))
    assert TokenClassification(tokenizer, LABELS).headline == "entity_f1"
    plain = TokenClassification(tokenizer, ["NN", "VB"])
    assert plain.headline == "accuracy"
    assert "macro_f1" in plain.headlines


# windows


def pieces_alone(task: TokenClassification, word: str) -> list[int]:
    return task.tokenizer(word, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_each_word_is_told_once_by_its_first_piece_far_from_the_ends(checkpoint, kind):
    task, _ = make(checkpoint, kind)
    rng = np.random.default_rng(4)
    words = ["".join(rng.choice(list("abcxyz"), rng.integers(1, 9))) for _ in range(120)]
    words[60] = "y" * 90  # more pieces than a window has tokens
    words[7] = "\u3000"  # no piece
    example = task.encode({"id": "long", "words": words, "tags": ["O"] * 120}, None)
    windows = [window["input_ids"] for window in example["windows"]]
    assert len(windows) > 5
    assert all(len(ids) <= task.tokenizer.model_max_length for ids in windows)
    assert len(example["at"]) == len(set(example["at"])) == len(words)
    for i, (word, (window, place)) in enumerate(zip(words, example["at"], strict=True)):
        first = task.tokenizer.unk_token_id if i == 7 else pieces_alone(task, word)[0]
        assert windows[window][place] == first
        begin = 0 if kind == "gpt2" else 1  # after [CLS]
        end = len(windows[window]) - 1 - begin
        if window > 0:
            assert place - begin >= task.overlap // 2
        if window < len(windows) - 1:
            assert end - place >= (task.overlap - 1) // 2
    total = sum(map(len, windows))
    assert task.lengths([{"words": words}]).tolist() == [total]


def test_a_book_is_asked_some_windows_at_a_time(checkpoint):
    task, headed = make(checkpoint, "bert")
    model, sizes = shake(headed.model), []
    model.register_forward_pre_hook(lambda _, args, given: sizes.append(given["input_ids"].numel()), with_kwargs=True)
    batch = batch_of(task, [sentence("book", ["desk", "here", "London"] * 3000), *sentences(2)])
    records = task.predict(model, batch)
    assert sum(sizes) == batch.inputs["input_ids"].numel() > 3 * MOST_TOKENS
    assert len(sizes) > 3
    assert max(sizes) <= MOST_TOKENS
    with torch.no_grad():
        together = task.loss(model, batch).item()
    assert sum(record["loss"] for record in records) == pytest.approx(together, rel=1e-5)


def test_a_word_that_ends_in_the_next_window_is_told_where_it_begins(checkpoint):
    task, _ = make(checkpoint, "bert")  # 38 pieces in a window, which shares 9 with the next
    words = ["a"] * 37 + ["xyz" * 8] + ["a"] * 10
    at = task.encode({"id": "x", "words": words, "tags": ["O"] * 48}, None)["at"]
    assert at[37] == (1, 1 + 37 - 29)
    giant = ["a"] * 30 + ["x" * 90, "a"]
    assert task.encode({"id": "x", "words": giant, "tags": ["O"] * 32}, None)["at"][30] == (0, 31)


def test_a_word_counts_once_in_the_loss(checkpoint):
    task, headed = make(checkpoint, "bert")
    (row,) = sentences(1, seed=3, longest=4)
    row = sentence("long", (row["words"] * 40)[:100])
    batch = batch_of(task, [row])
    logits = headed.model.eval()(**batch.inputs).logits
    by_hand = 0.0
    at = (batch.targets[name].tolist() for name in ("windows", "places"))
    for tag, window, place in zip(row["tags"], *at, strict=True):
        by_hand -= logits[window, place].log_softmax(-1)[LABELS.index(tag)].item()
    assert task.loss(headed.model, batch).item() == pytest.approx(by_hand, rel=1e-5)
    assert task.count(batch).item() == 100


def test_a_row_too_long_for_the_model_is_made(checkpoint):
    task, headed = make(checkpoint, "distilbert")
    row = task.overlong(sentences(2))
    assert len(task.encode(row, None)["windows"]) > 1
    assert len(ask(task, headed.model.eval(), [row])[0]["prediction"]) == len(row["words"])


def test_what_is_kept_of_a_row(checkpoint):
    task, _ = make(checkpoint, "bert")
    row = {"id": "x", "words": ["the", "apple", "xyz", "日"], "tags": ["O"] * 4}
    kept = task.kept(row)
    assert kept.content == {"words": '["the", "apple", "xyz", "日"]'}
    assert kept.measures == {"words": 4, "tokens": 6, "unknown_tokens": 1, "windows": 1}
    assert task.digest(row) != task.digest(row | {"words": ["theapple", "xyz", "日"]})


# tokenizers of bytes


def byte_tokenizer(folder: Path, split_first: bool, prefix: bool = False):
    """A tokenizer of bytes, as GPT-2's, or as Llama 3's, which splits words off before."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not split_first)
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?[^\s\p{L}]+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, level]) if split_first else level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([" ".join(row["words"]) for row in sentences(60)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", model_max_length=40).save_pretrained(folder)


@pytest.mark.parametrize(("split_first", "prefix"), [(False, False), (True, False), (False, True)])
def test_words_give_the_pieces_of_running_text(checkpoint, tmp_path, split_first, prefix):
    import shutil

    folder = shutil.copytree(checkpoint("gpt2"), tmp_path / "byte")
    byte_tokenizer(folder, split_first, prefix)
    tokenizer = load_tokenizer(BackboneConfig(name=str(folder)))
    task = TokenClassification(tokenizer, LABELS)
    assert task.spaced != prefix
    words = ["the", "apple", "don't", "on", "日"]
    example = task.encode({"id": "x", "words": words, "tags": ["O"] * 5}, None)
    running = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert example["windows"][0]["input_ids"] == running
    assert len(example["at"]) == 5
    no_words = {"id": "x", "words": ["\u200d", " "], "tags": ["O"] * 2}
    assert task.encode(no_words, None)["at"] == [(0, 0), (0, 3 + prefix)]  # bytes, which are pieces
    assert ("words[1:]" in task.snippet(folder)) != prefix


# plain libraries


def run_snippet(snippet: str, words: list[str]) -> list[str]:
    """The tags that a snippet gives these words."""
    lines = [f"words = {words!r}" if line.startswith("words = ") else line for line in snippet.splitlines()]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec("\n".join(lines), {})
    pairs = ast.literal_eval(said.getvalue())
    assert [word for word, _ in pairs] == words
    return [tag for _, tag in pairs]


ODD = ["the", "don't", "\u3000", "x" * 70, "U.S.", "日", "apple"]


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "byte"])
def test_the_snippet_agrees_with_the_task(checkpoint, tmp_path, kind):
    import shutil

    source = shutil.copytree(checkpoint("gpt2" if kind == "byte" else kind), tmp_path / "source")
    if kind == "byte":
        byte_tokenizer(source, split_first=True)
    config = BackboneConfig(name=str(source))
    tokenizer = load_tokenizer(config)
    if kind == "byte":
        headed = load_token_classifier(config, LABELS, tokenizer, 0)
        task = TokenClassification(tokenizer, LABELS)
    else:
        task, headed = make(checkpoint, kind)
    model = shake(headed.model)
    task.save(tmp_path / "model", model)
    long = ODD + sentences(1, 5, 200)[0]["words"] * 2
    rows = [sentence("odd", ODD), sentence("one", ["apple"]), sentence("long", long)]
    for record, row in zip(ask(task, task.load(tmp_path / "model"), rows), rows, strict=True):
        assert run_snippet(task.snippet(tmp_path / "model"), row["words"]) == record["prediction"]
    assert len(set(record["prediction"])) > 2
    assert "'NAME/SPACE'" in task.snippet(tmp_path / "model", "NAME/SPACE")


def test_the_snippet_of_an_adapter_agrees_with_the_task(checkpoint, tmp_path):
    task, headed = make(checkpoint, "bert")
    model = adapt(headed, AdaptConfig(strategy="lora")).model
    shake(model)
    task.save(tmp_path / "model", model)
    row = sentence("long", ODD + sentences(1, 5, 100)[0]["words"])
    (record,) = ask(task, task.load(tmp_path / "model"), [row])
    np.testing.assert_allclose(record["logits"], ask(task, model, [row])[0]["logits"], atol=1e-5)
    assert run_snippet(task.snippet(tmp_path / "model"), row["words"]) == record["prediction"]
    assert "snapshot_download('NAME/SPACE')" in task.snippet(tmp_path / "model", "NAME/SPACE")


@pytest.mark.parametrize("kind", ["bert", "byte"])
@pytest.mark.parametrize("strategy", ["first", "simple"])
def test_a_pipeline_gives_the_same_entities_where_no_word_is_split_at_punctuation(checkpoint, tmp_path, kind, strategy):
    import shutil

    from transformers import pipeline

    source = shutil.copytree(checkpoint("gpt2" if kind == "byte" else kind), tmp_path / "source")
    if kind == "byte":
        byte_tokenizer(source, split_first=False)
    config = BackboneConfig(name=str(source))
    tokenizer = load_tokenizer(config)
    task = TokenClassification(tokenizer, LABELS)
    task.save(tmp_path / "model", shake(load_token_classifier(config, LABELS, tokenizer, 0).model))
    tag = pipeline("token-classification", str(tmp_path / "model"), aggregation_strategy=strategy, dtype="float32")
    model, special = task.load(tmp_path / "model"), tokenizer.num_special_tokens_to_add()
    rows, whole = sentences(30, seed=2, longest=9), 0
    if strategy == "first" and kind == "bert":  # of bytes, transformers guesses where words begin, from blanks
        rows += [sentence("pieces", ["the", "xyzzy", "apple", "abcabc", "saw"])]
    for row in rows:
        pieces = len(task.encode(row, None)["windows"][0]["input_ids"]) - special
        if strategy == "simple" and pieces > len(row["words"]):
            continue  # a word of several pieces: this strategy asks each of them
        whole += 1
        starts = np.cumsum([0, *(len(word) + 1 for word in row["words"])]).tolist()
        ends = [start + len(word) for start, word in zip(starts, row["words"], strict=False)]
        spans = tagging.spans(ask(task, model, [row])[0]["prediction"], "BIO")
        ours = [(span.type, starts[span.first], ends[span.last]) for span in spans]
        text = " ".join(row["words"])
        theirs = [(e["entity_group"], e["start"] + (text[e["start"]] == " "), e["end"]) for e in tag(text)]
        assert theirs == ours
    assert whole > 5
