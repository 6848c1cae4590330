"""Which words are hidden, and what is asked of the model."""

from __future__ import annotations

import json
import re
from html import unescape
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import texts

from graftkit.adapt import AdaptConfig, adapt
from graftkit.backbone import BackboneConfig
from graftkit.data.splits import Splits
from graftkit.errors import UserError
from graftkit.heads import load_masked_language_model, logits_at, say_whose_head
from graftkit.masking import MaskConfig, Word, cut_documents, cut_windows, words_of
from graftkit.report import hard_words
from graftkit.report.answers import _excerpt
from graftkit.report.filled_gaps import marked
from graftkit.report.html import page
from graftkit.report.markdown import bold, escape
from graftkit.report.tagging import _marked
from graftkit.tasks.masked_language_modelling import MaskedLanguageModelling
from graftkit.text import load_tokenizer

LONG = " ".join(text for text, _ in texts(30, seed=9))


def task_of(checkpoint, kind="bert", **mask):
    return MaskedLanguageModelling(
        load_tokenizer(BackboneConfig(name=str(checkpoint(kind)))), MaskConfig(**mask), keep_words=True
    )


def row(text, id="row"):
    return {"id": id, "text": text}


def whole(task, text):
    """The pieces of a text as nobody hid them."""
    return task.tokenizer(text, add_special_tokens=False)["input_ids"]


# words and windows


@pytest.mark.parametrize(
    ("ids", "most", "words"),
    [
        ([0, 0, 1], 8, [(0, 2), (2, 3)]),
        ([0, 1, 1, 1, 2], 2, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]),
        ([None, None, 0], 8, [(0, 1), (1, 2), (2, 3)]),
        ([3], 8, [(0, 1)]),
    ],
)
def test_pieces_of_a_word_belong_together(ids, most, words):
    assert words_of(ids, most) == [Word(*word) for word in words]


@pytest.mark.parametrize("room", [3, 8, 38, 1000])
def test_windows_hold_each_word_once_and_are_alike(room):
    rng = np.random.default_rng(room)
    ends = np.cumsum(rng.integers(1, min(3, room) + 1, 200)).tolist()
    words = [Word(first, end) for first, end in zip([0, *ends[:-1]], ends, strict=True)]
    windows = cut_windows(words, room)
    assert [word for window in windows for word in window] == words
    sizes = [window[-1].end - window[0].first for window in windows]
    assert max(sizes) <= room
    assert max(sizes) - min(sizes) <= 6
    assert len(windows) <= 1.5 * -(-ends[-1] // room) + 1


# what is hidden


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_words_are_hidden_whole_and_nothing_else_changes(checkpoint, kind):
    task = task_of(checkpoint, kind, share=0.4)
    text = "the zebra is here again , on my desk with q7x and very old apple"  # zebra, with and q7x have many pieces
    example = task.encode(row(text), None)
    ids = whole(task, text)
    (window,) = example["windows"]
    seen = window["input_ids"]
    assert len(seen) == len(ids) + 2
    assert (seen[0], seen[-1]) == (task.tokenizer.cls_token_id, task.tokenizer.sep_token_id)
    hidden = {place - 1 for _, place in example["at"]}
    assert example["truth"] == [ids[place] for place in sorted(hidden)]
    for place, piece in enumerate(ids):
        assert seen[place + 1] == (task.tokenizer.mask_token_id if place in hidden else piece)
    word_ids = task.tokenizer(text, add_special_tokens=False).word_ids()
    for word in set(word_ids):
        pieces = {place for place, one in enumerate(word_ids) if one == word}
        assert pieces <= hidden or not pieces & hidden
    assert sum(example["words"]) == len(hidden)
    assert len(example["words"]) == round(0.4 * len(set(word_ids)))


def test_evaluation_hides_by_content_alone_and_training_by_chance(checkpoint):
    task = task_of(checkpoint)
    same = [task.encode(row(LONG, id), None) | {"id": ""} for id in ("a", "b")]
    assert same[0] == same[1]

    def trained(*chance):
        return task.encode(row(LONG), np.random.default_rng(chance))

    assert trained(0, 0, 5) == trained(0, 0, 5)
    others = [trained(*chance)["at"] for chance in ((0, 0, 5), (0, 1, 5), (1, 0, 5), (0, 0, 6))]
    assert len({str(at) for at in others}) == 4
    assert task.encode(row(LONG), None)["at"] != task.encode(row(LONG + " here"), None)["at"]


def test_shares_are_those_that_were_asked_for(checkpoint):
    task = task_of(checkpoint, share=0.25, hide=0.6, swap=0.3)
    fates, asked, words = {"hidden": 0, "kept": 0, "swapped": 0}, 0, 0
    for epoch in range(60):
        example = task.encode(row(LONG), np.random.default_rng(epoch))
        asked, words = asked + len(example["words"]), words + len(LONG.split())
        for (window, place), truth in zip(example["at"], example["truth"], strict=True):
            seen = example["windows"][window]["input_ids"][place]
            fate = {task.tokenizer.mask_token_id: "hidden", truth: "kept"}.get(seen, "swapped")
            fates[fate] += 1
            assert fate == "hidden" or seen not in task.masking.special
    shares = {fate: count / sum(fates.values()) for fate, count in fates.items()}
    assert shares == pytest.approx({"hidden": 0.6, "kept": 0.1, "swapped": 0.3}, abs=0.03)
    assert asked / words == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("rng", [None, 0])
def test_special_and_unknown_tokens_are_not_asked_for(checkpoint, rng):
    task = task_of(checkpoint, share=0.99)
    for text, truth in (
        ("the [MASK] is [SEP] here", ["the", "is", "here"]),
        ("the 木 is", ["the", "is"]),  # a letter that the tokenizer lacks
        ("apple", ["apple"]),
        ("木", ["[UNK]"]),  # where there is nothing else
    ):
        found = task.encode(row(text), rng if rng is None else np.random.default_rng(rng))
        assert task.tokenizer.convert_ids_to_tokens(found["truth"]) == truth


def test_a_long_document_is_read_in_windows_each_with_a_hidden_word(checkpoint):
    task = task_of(checkpoint)
    example = task.encode(row(LONG), None)
    ids = whole(task, LONG)
    assert len(example["windows"]) == -(-len(ids) // task.masking.room)
    assert all(len(window["input_ids"]) <= 40 for window in example["windows"])
    assert sum(len(window["input_ids"]) - 2 for window in example["windows"]) == len(ids)
    assert {window for window, _ in example["at"]} == set(range(len(example["windows"])))
    assert task.lengths([row(LONG)]).tolist() == [len(ids) + 2 * len(example["windows"])]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_long_document_of_train_becomes_rows_that_lose_nothing(checkpoint, kind):
    from datasets import Dataset

    task, lines = task_of(checkpoint, kind), []
    rows = Dataset.from_list([row("the old saw", "train-1"), row(LONG, "train-2"), row("a pear", "train-3")])
    splits = Splits(rows, rows, rows, [], {}, [], [])
    lengths = {name: task.lengths(rows) for name in ("train", "dev", "test")}
    cut, counted = cut_documents(SimpleNamespace(say=lines.append), task.masking, splits, lengths)
    parts = [one["text"] for one in cut.train if one["id"].startswith("train-2/")]
    assert "".join(parts) == LONG
    assert [one for part in parts for one in whole(task, part)] == whole(task, LONG)
    assert max(counted["train"]) <= 40
    assert len(set(cut.train["id"])) == len(cut.train) == len(parts) + 2
    assert cut.test is rows
    assert lines == [f"each window of a long document of train is a row of its own: {len(cut.train)} rows"]
    short = Splits(rows.select([0]), rows, rows, [], {}, [], [])
    assert cut_documents(SimpleNamespace(), task.masking, short, {"train": lengths["train"][:1]})[0] is short


def test_words_of_byte_level_tokenizers_are_words():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def made(pre):
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        if pre is not None:
            tokenizer.pre_tokenizer = pre
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<mask>", "<pad>"], show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
        tokenizer.train_from_iterator([LONG], trainer)
        names = {"unk_token": "<unk>", "mask_token": "<mask>", "pad_token": "<pad>"}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **names)

    text = "the hammer, on my desk"
    for pre in (pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Metaspace()):
        task = MaskedLanguageModelling(made(pre), MaskConfig(share=0.99))
        hidden = [text[start:end] for start, end in json.loads(task.kept(row(text)).content["hidden"])]
        assert hidden in (["the", "hammer", ",", "on", "my", "desk"], ["the", "hammer,", "on", "my", "desk"])
    with pytest.raises(UserError, match="does not tell where words begin"):
        MaskedLanguageModelling(made(None), MaskConfig())


# what is refused


def test_what_cannot_be_is_refused_in_one_line(checkpoint):
    with pytest.raises(UserError, match=r"recipes/generate\.py"):
        task_of(checkpoint, "gpt2")
    with pytest.raises(UserError, match=r"gpt2 fills no gaps.*recipes/generate\.py"):
        load_masked_language_model(BackboneConfig(name=str(checkpoint("gpt2"))), 0)
    with pytest.raises(UserError, match=r"--mask\.hide 0\.8 and --mask\.swap 0\.3"):
        MaskConfig(hide=0.8, swap=0.3)
    task = task_of(checkpoint)
    with pytest.raises(UserError, match="row test-3: its tokenizer finds no word"):
        task.lengths([row("the saw"), row(" \n", "test-3")])


# the model


def test_records_say_what_was_filled_in(checkpoint):
    task = task_of(checkpoint, share=0.3)
    headed, _ = load_masked_language_model(BackboneConfig(name=str(checkpoint("bert"))), 0)
    rows = [row("the old apple is here again on my desk", "a"), row(LONG, "b"), row("pear", "c")]
    batch = task.collate([task.encode(one, None) for one in rows])
    with torch.no_grad():
        records = task.predict(headed.model.eval(), batch)
        total = task.loss(headed.model, batch).item()
    assert [record["id"] for record in records] == ["a", "b", "c"]
    assert sum(record["tokens"] for record in records) == task.count(batch).item()
    assert sum(record["loss"] for record in records) == pytest.approx(total, rel=1e-5)
    for one, record in zip(rows, records, strict=True):
        spans = json.loads(task.kept(one).content["hidden"])
        assert [one["text"][start:end] for start, end in spans] == record["words"]
        assert len(record["filled"]) == len(record["losses"]) == len(spans)
        assert sum(record["losses"]) == pytest.approx(record["loss"])
    quiet = MaskedLanguageModelling(task.tokenizer, task.masking.config, keep_words=False)
    with torch.no_grad():
        said = quiet.predict(headed.model, batch)
    assert all(record["words"] is None and record["filled"] is None for record in said)
    assert [record["losses"] for record in said] == [record["losses"] for record in records]


def test_a_model_that_is_broken_has_a_score_that_is_a_number(checkpoint):
    records = [{"loss": 5000.0, "tokens": 2, "right": 1}]
    assert task_of(checkpoint).score(records) == {
        "perplexity": pytest.approx(np.exp(700)), "log_loss": 2500.0, "token_accuracy": 0.5,
    }  # fmt: skip


def test_evaluation_takes_some_windows_at_a_time_and_says_the_same(checkpoint, monkeypatch):
    from graftkit.tasks import masked_language_modelling as module

    task = task_of(checkpoint)
    model = load_masked_language_model(BackboneConfig(name=str(checkpoint("bert"))), 0)[0].model.eval()
    batch = task.collate([task.encode(row(LONG, "b"), None), task.encode(row("a pear", "a"), None)])
    sizes = []
    model.register_forward_hook(lambda _, given, output: sizes.append(output.logits.shape))
    with torch.no_grad():
        (before, _), count = task.predict(model, batch), len(sizes)
        monkeypatch.setattr(module, "TOKENS", 80)
        (after, _) = task.predict(model, batch)
    assert count == 1
    assert len(sizes) > 4
    np.testing.assert_allclose(after["losses"], before["losses"], rtol=1e-5)
    assert after["filled"] == before["filled"]


def test_the_head_is_what_is_new_and_not_the_embeddings(checkpoint):
    headed, pooler = load_masked_language_model(BackboneConfig(name=str(checkpoint("bert"))), 0)
    assert set(pooler) == {"pooler.dense.weight", "pooler.dense.bias"}
    adapted = adapt(headed, AdaptConfig(strategy="head"))
    trained = {name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad}
    parts = ("bias", "transform.dense.weight", "transform.dense.bias", "transform.LayerNorm.weight")
    assert trained == {f"cls.predictions.{part}" for part in (*parts, "transform.LayerNorm.bias")}
    assert not headed.model.get_output_embeddings().weight.requires_grad
    lines = []
    say_whose_head(SimpleNamespace(say=lines.append), headed)
    assert "so a new one is trained, but for its last matrix, which is that of the embeddings" in lines[0]


# what is shown of it


def test_gaps_are_shown_with_what_was_said_before_and_now():
    row = {"text": "the old  <saw>, here", "hidden": "[[4, 7], [10, 13]]"}
    record = {"words": ["old", "saw"], "filled": ["old", "a*b"]}
    assert marked(row, record) == "the **old** (right) &lt;**saw** (“a\\*b”)&gt;, here"
    said = marked(row, record, ["new", "saw"])
    assert said == "the **old** (before “new”, now right) &lt;**saw** (before right, now “a\\*b”)&gt;, here"
    long = {"text": "ab " * 200 + "pear" + " cd" * 200, "hidden": "[[600, 604]]"}
    part = marked(long, {"words": ["pear"], "filled": ["fig"]})
    assert "**pear** (“fig”)" in part
    assert part.startswith("… ab")
    assert part.endswith(("cd …", "c …"))
    assert len(part) < 350


def rendered(*lines):
    """Lines as the report's page shows them, with what is bold in angle quotes."""
    found = (
        page("A run", "Fine.", {"Chapter": "\n\n".join(lines)}, {}).partition("<section")[2].partition("</section>")[0]
    )
    shown = [unescape(line.replace("<wbr>", "")) for line in re.findall("<p>(.*?)</p>", found, re.DOTALL)]
    return [line.replace("<strong>", "«").replace("</strong>", "»") for line in shown]


def test_signs_beside_letters_are_bold_too():
    row = {"text": "my order? (木€木) 'its_2' ", "hidden": "[[8, 9], [12, 13], [20, 21]]"}
    record = {"words": ["?", "€", "_"], "filled": ["?", "a", "_"]}
    assert rendered(marked(row, record)) == ["my order«?» (right) (木«€» (“a”)木) 'its«_» (right)2'"]
    context = "It costs US$12m today"
    for best, shown in (("$", "US«$»12m"), ("$12", "US«$12»m"), ("12", "US$«12»m"), ("12m today", "US$«12m today»")):
        assert rendered(_excerpt({"start": context.index(best), "best": best}, context))[0].startswith(
            f"It costs {shown}"
        )
    assert rendered(_marked({"prediction": ["O"], "label": ["B-X"]}, {"words": '["\\u200b"]'})) == [
        "«–» (O, true: B-X)"
    ]


def test_bold_is_right_beside_anything():
    rng = np.random.default_rng(0)
    letters = list("ab1_*`\\&<>[]!?.-~$|'\"#é木€²٣😀")
    lines, wanted = [], []
    for _ in range(2000):
        before, text, after = ("".join(rng.choice(letters, size)) for size in rng.integers((0, 1, 0), (4, 4, 4)))
        lines.append("." + bold(escape(text), "a" + escape(before), escape(after) + "a"))
        wanted.append(f".a{before}«{text}»{after}a")
    pairs = [f"{line} {other}" for line, other in pairwise(lines)]
    assert rendered(*pairs) == [f"{line} {other}" for line, other in pairwise(wanted)]


def test_words_are_hard_by_their_mean_loss():
    records = [
        {"words": ["the", "saw"], "filled": ["the", "pear"], "losses": [0.5, 4.0]},
        {"words": ["the", "saw", "fig"], "filled": ["a", "pear", "the"], "losses": [1.5, 5.0, 9.0]},
        {"words": ["the", "saw"], "filled": ["the", "saw"], "losses": [1.0, 0.0]},
    ]
    found = hard_words.measure(SimpleNamespace(records={"test": records}))
    assert found["at_least"] == 3
    assert found["words"] == [
        {"word": "saw", "hidden": 3, "right": 1, "mean_loss": 3.0, "taken_for": "pear"},
        {"word": "the", "hidden": 3, "right": 2, "mean_loss": 1.0, "taken_for": "a"},
    ]
    few = hard_words.measure(SimpleNamespace(records={"test": records[:1]}))
    assert [line["word"] for line in few["words"]] == ["saw", "the"]


ARCHITECTURES = {
    "bert": {}, "roberta": {"pad_token_id": 0}, "electra": {"embedding_size": 16}, "albert": {"embedding_size": 16},
    "mpnet": {}, "deberta-v2": {"pos_att_type": ["p2c", "c2p"], "relative_attention": True}, "modernbert": {},
    "camembert": {"pad_token_id": 0}, "xlm-roberta": {"pad_token_id": 0},
    "big_bird": {"attention_type": "original_full"},
    "distilbert": {"n_layers": 2, "n_heads": 2, "dim": 32, "hidden_dim": 64},
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_head_at_some_places_says_what_it_says_everywhere(kind):
    from transformers import AutoConfig, AutoModelForMaskedLM

    size = {"vocab_size": 90, "max_position_embeddings": 40}
    if kind != "distilbert":
        size |= {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    if kind != "modernbert":
        special = {}
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(kind, **size, **special, **ARCHITECTURES[kind])
    ).eval()
    inputs = {"input_ids": torch.randint(3, 90, (3, 12)), "attention_mask": torch.ones(3, 12, dtype=torch.long)}
    windows, places = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 5, 0, 11])
    with torch.no_grad():
        everywhere = model(**inputs).logits[windows, places]
        torch.testing.assert_close(logits_at(model, inputs, windows, places), everywhere, atol=1e-5, rtol=1e-5)
        assert model(**inputs).logits.shape == (3, 12, 90)  # the hook is gone
