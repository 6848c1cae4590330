"""Two texts a row, as in natural language inference: read apart, cut fairly, told of together."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import FILLER, KINDS, WORDS, run_recipe, write_csv

from graftkit import cli
from graftkit.backbone import BackboneConfig
from graftkit.data import DataConfig, load_splits
from graftkit.errors import UserError
from graftkit.report.tables import read_predictions
from graftkit.text import encode, load_tokenizer, pad

HEADER = ("premise", "hypothesis", "label")


def pairs(count, seed=0):
    """A sentence and a claim on what it names: the same word, another of its kind, or of another kind."""
    rng = random.Random(seed)
    groups, rows = list(WORDS), []
    for i in range(count):
        kind, label = rng.choice(groups), ("entailment", "neutral", "contradiction")[i % 3]
        word = rng.choice(WORDS[kind])
        other = rng.choice(WORDS[rng.choice([group for group in groups if group != kind])])
        claimed = {"entailment": word, "neutral": rng.choice(WORDS[kind]), "contradiction": other}[label]
        filler = rng.choices(FILLER, k=rng.randint(3, 9))
        rows.append((" ".join([*filler, word]), f"the {claimed} is here", label))
    return rows


def tokenizer_of(checkpoint, kind, **settings):
    return load_tokenizer(BackboneConfig(name=str(checkpoint(kind)), **settings), pairs=True)


def bytes_of_gpt2(folder):
    """A checkpoint of GPT-2 with a tokenizer of bytes, which ends in a post-processor of its own, as the real one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import GPT2Config, PreTrainedTokenizerFast

    pieces = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>").save_pretrained(folder)
    GPT2Config(n_positions=64).save_pretrained(folder)
    return folder


# how they are read


@pytest.mark.parametrize("kind", [*KINDS, "bytes"])
def test_a_special_token_stands_between_the_texts_also_in_what_is_saved(tmp_path, checkpoint, kind):
    from transformers import AutoTokenizer

    start = bytes_of_gpt2(tmp_path / "gpt2") if kind == "bytes" else checkpoint(kind)
    tokenizer = load_tokenizer(BackboneConfig(name=str(start)), pairs=True)
    tokenizer.save_pretrained(tmp_path / "saved")
    for reader in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        read = reader("apple pear", "saw")
        owners = read.sequence_ids()
        between = owners[owners.index(0) : owners.index(1)]
        assert None in between
        place = owners.index(0) + between.index(None)
        mark = read["input_ids"][place]
        assert mark == (reader.sep_token_id if reader.sep_token_id is not None else reader.eos_token_id)
        alone = reader("apple pear")["input_ids"]
        assert alone == load_tokenizer(BackboneConfig(name=str(start)))("apple pear")["input_ids"]
        assert reader("apple", "pear saw")["input_ids"] != reader("apple pear", "saw")["input_ids"]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_longer_text_is_cut_first_and_bert_is_told_which_is_which(checkpoint, kind):
    tokenizer = tokenizer_of(checkpoint, kind, max_length=12)
    read = tokenizer("apple " * 30, "saw drill", truncation=True)
    assert len(read["input_ids"]) == 12
    assert read.sequence_ids().count(1) == 2
    both = tokenizer("apple " * 30, "saw " * 30, truncation=True).sequence_ids()
    assert abs(both.count(0) - both.count(1)) <= 1
    example = encode(tokenizer, "apple pear", "saw")
    inputs = pad(tokenizer, [example, encode(tokenizer, "apple", "saw drill file plane")])
    if kind == "bert":
        assert inputs["token_type_ids"][0].tolist()[:6] == [0, 0, 0, 0, 1, 1]
    assert inputs["attention_mask"].sum(dim=1).tolist()[0] == len(example["input_ids"])


def test_room_for_special_tokens_alone_is_refused(checkpoint):
    with pytest.raises(UserError, match="3 are special tokens, which leaves none for text"):
        tokenizer_of(checkpoint, "bert", max_length=3)


# which rows stand twice


def test_pairs_are_counted_as_pairs(tmp_path):
    rows = pairs(60)
    again = [rows[0], (rows[0][0], "the owl is here", "neutral"), ("a new one", rows[0][1], "neutral")]
    columns = {"text": "premise", "text_pair": "hypothesis"}
    for split, some in (("train", rows), ("dev", pairs(12, 1)), ("test", [*again, *pairs(12, 2)])):
        write_csv(tmp_path / f"{split}.csv", some, HEADER)
    splits = load_splits(DataConfig(path=str(tmp_path), **columns), 0)
    assert splits.pairs
    assert splits.facts["overlaps"]["test in train"] == len({row[:2] for row in rows} & {row[:2] for row in again})
    blank = [*rows[:4], (rows[4][0], " ", rows[4][2]), *rows[5:]]
    write_csv(tmp_path / "train.csv", blank, HEADER)
    with pytest.raises(UserError, match="empty or missing text_pair in row 5"):
        load_splits(DataConfig(path=str(tmp_path), **columns), 0)


# end to end


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for split, count, seed in (("train", 60, 1), ("dev", 12, 2), ("test", 18, 3)):
        write_csv(folder / f"{split}.csv", pairs(count, seed), HEADER)
    return folder


@pytest.fixture(scope="module", params=[("gpt2", "full"), ("roberta", "lora")], ids="-".join)
def made(request, tmp_path_factory, checkpoint, data):
    kind, strategy = request.param
    out = tmp_path_factory.mktemp("made") / "run"
    run_recipe(
        "text_classify", "--data.path", data, "--data.text", "premise", "--data.text_pair", "hypothesis",
        "--backbone.name", checkpoint(kind), "--run.out", out, "--train.epochs", 2, "--train.lr", 2e-3,
        "--adapt.strategy", strategy, "--run.precision", "fp32",
    )  # fmt: skip
    return out


def test_the_report_shows_both_texts(made):
    row = pq.read_table(made / "rows-test.parquet").to_pylist()[0]
    assert {"text", "text_pair"} <= row.keys()
    report = (made / "report.md").read_text()
    assert "text from “premise”, text_pair from “hypothesis”" in report
    wrong = [record["id"] for record in read_predictions(made, "test")[1] if record["label"] != record["prediction"]]
    shown = next(one for one in pq.read_table(made / "rows-test.parquet").to_pylist() if one["id"] == wrong[0])
    assert f"{shown['text']} **+** {shown['text_pair']}" in report


def test_plain_libraries_and_graft_predict_say_what_the_tables_say(made, tmp_path):
    rows = pq.read_table(made / "rows-test.parquet").to_pylist()[:4]
    labels, records = read_predictions(made, "test")
    snippet = json.loads((made / "run.json").read_text())["snippet"]
    for row, record in zip(rows, records[:4], strict=True):
        assert snippet.count("a text") == snippet.count("its pair") == 1
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(snippet.replace("a text", row["text"]).replace("its pair", row["text_pair"]), {})
        (said,) = eval(f"[{printed.getvalue().splitlines()[-1]}]")
        said = said[0] if isinstance(said, list) and isinstance(said[0], list) else said
        found = {one["label"]: one["score"] for one in said} if isinstance(said, list) else said
        np.testing.assert_allclose([found[label] for label in labels], record["probabilities"], atol=1e-5)
    write_csv(tmp_path / "new.csv", [(row["text"], row["text_pair"]) for row in rows], HEADER[:2])
    assert cli.main(["predict", str(made), str(tmp_path / "new.csv"), "--output", str(tmp_path / "said.csv")]) == 0
    with (tmp_path / "said.csv").open() as file:
        said = list(csv.DictReader(file))
    assert [one["label"] for one in said] == [record["prediction"] for record in records[:4]]
    for one, record in zip(said, records[:4], strict=True):
        told = [float(one[f"probability:{label}"]) for label in labels]
        np.testing.assert_allclose(told, record["probabilities"], atol=1e-5)
