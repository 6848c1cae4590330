"""Which sentences of tagged words go where, and which are refused?"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from conftest import assets

from graftkit.data import TaggedDataConfig, load_tagged
from graftkit.errors import UserError

WORDS = [["Ada", "Lovelace", "met", "Babbage"], ["in", "London", "."], ["Nobody", "came"], ["Paris", "is", "far"]]
TAGS = [["B-per", "I-per", "O", "B-per"], ["O", "B-loc", "O"], ["O", "O"], ["B-loc", "O", "O"]]


def jsonl(path: Path, words=WORDS, tags=TAGS, **columns) -> Path:
    """A file of tokens and ner_tags."""
    every = {"tokens": words, "ner_tags": tags, **columns}
    rows = [dict(zip(every, values, strict=True)) for values in zip(*every.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def folder(place: Path, **splits) -> Path:
    """Train, dev and test of the same four sentences, or what is given of them: pairs of words and tags."""
    for split in ("train", "dev", "test"):
        jsonl(place / f"{split}.jsonl", *splits.get(split, (WORDS, TAGS)))
    return place


def load(**settings):
    return load_tagged(TaggedDataConfig(**{name: str(value) for name, value in settings.items()}), 0)


def refused(**settings) -> str:
    with pytest.raises(UserError) as error:
        load(**settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_lists_are_read_and_labels_begin_with_o(tmp_path):
    splits = load(path=folder(tmp_path))
    assert splits.train.column_names == ["id", "words", "tags"]
    assert splits.train[0] == {"id": "train-1", "words": WORDS[0], "tags": TAGS[0]}
    assert splits.labels == ["O", "B-loc", "B-per", "I-per"]
    facts = splits.facts
    assert facts["columns"] == {"words": "tokens", "tags": "ner_tags"}
    assert facts["scheme"] == "BIO"
    described = facts["splits"]["train"]
    assert described["rows"] == 4
    assert described["words"] == 12
    assert described["classes"] == {"O": 7, "B-loc": 2, "B-per": 2, "I-per": 1}
    assert described["entities"] == {"loc": 2, "per": 2}
    assert described["malformed"] == 0
    assert facts["overlaps"] == {"test in train": 4, "dev in train": 4, "test in dev": 4}
    assert "tags are BIO, of 2 types" in splits.notes
    assert json.loads(json.dumps(facts)) == facts


def as_parquet(place: Path, tags_as: str) -> Path:
    """Train and test as parquet, of ClassLabel sequences where asked."""
    from datasets import ClassLabel, Dataset, Features, List, Value

    names = ["B-per", "O", "I-per", "B-loc", "I-loc"]
    tags = [[names.index(tag) for tag in row] for row in TAGS] if tags_as != "str" else TAGS
    kind = {"str": Value("string"), "int": Value("int64"), "ClassLabel": ClassLabel(names=names)}[tags_as]
    features = Features({"tokens": List(Value("string")), "pos": List(kind)})
    rows = Dataset.from_dict({"tokens": WORDS, "pos": tags}, features=features)
    for split in ("train", "dev", "test"):
        rows.to_parquet(place / f"{split}.parquet")
    return place


def test_numbers_without_names_are_plain_tags(tmp_path):
    splits = load(path=as_parquet(tmp_path, "int"))
    assert splits.labels == ["0", "1", "2", "3"]
    assert splits.facts["scheme"] == "plain"
    assert any(warning.startswith("tags are numbers without names") for warning in splits.warnings)


def test_parquet_of_strings_is_read(tmp_path):
    assert load(path=as_parquet(tmp_path, "str")).train["tags"][:] == TAGS


def test_class_labels_of_the_hub_are_named_and_keep_their_order(tmp_path, monkeypatch):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

    names = ["B-per", "O", "I-per", "B-loc", "I-loc"]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    rows = Dataset.from_dict({"tokens": WORDS, "ner_tags": [[names.index(t) for t in r] for r in TAGS]}, features)
    splits = DatasetDict(train=rows, validation=rows, test=rows)
    monkeypatch.setattr("graftkit.data.sources._load_from_hub", lambda path, subset: splits)
    found = load(path="someone/ner")
    assert found.labels == ["O", "B-per", "I-per", "B-loc", "I-loc"]
    assert found.train["tags"][:] == TAGS
    withheld = Dataset.from_dict({"tokens": WORDS, "ner_tags": [[-1] * len(row) for row in WORDS]}, features)
    monkeypatch.setattr(
        "graftkit.data.sources._load_from_hub", lambda path, subset: DatasetDict(train=rows, test=withheld)
    )
    assert "(test): a tag that is missing or no text in rows 1, 2, 3, 4" in refused(path="someone/ner")


@pytest.mark.parametrize("how", ["json", "python", "blanks"])
def test_csv_holds_lists_or_words_between_blanks(tmp_path, how):
    import csv

    write = {"json": json.dumps, "python": str, "blanks": " ".join}[how]
    for split in ("train", "dev", "test"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            pairs = zip(WORDS, TAGS, strict=True)
            csv.writer(file).writerows([("words", "tags"), *((write(w), write(t)) for w, t in pairs)])
    splits = load(path=tmp_path)
    assert splits.train["words"][:] == WORDS
    assert splits.train["tags"][:] == TAGS


@pytest.mark.parametrize("bad", ['["\\ud800"]', "[{[1]: 2}]", "[" * 10_000 + "]"], ids=["half", "no key", "deep"])
def test_lists_that_cannot_be_read_are_bad_rows(tmp_path, bad):
    words = [json.dumps(row) for row in WORDS]
    path = folder(tmp_path, train=([words[0], bad, *words[1:]], [TAGS[0], ["O"], *TAGS[1:]]))
    assert "train.jsonl: a word that is missing or no text in row 2." in refused(path=path)
    assert load(path=path, bad_rows="drop").train["words"][:] == WORDS


# CoNLL files


CONLL = """\
-DOCSTART- -X- O O

Ada NNP B-NP B-per
Lovelace NNP I-NP I-per
met VBD B-VP O
Babbage NNP B-NP B-per

in IN O O
London NNP O B-loc
. . O O
"""


def conll(place: Path, text: str = CONLL, suffix: str = ".txt") -> Path:
    for split in ("train", "valid", "test"):
        (place / f"{split}{suffix}").write_text(text, encoding="utf-8")
    return place


@pytest.mark.parametrize("between", [" ", "\t", "  "])
@pytest.mark.parametrize("suffix", [".txt", ".conll", ".bio"])
def test_conll_files_are_read(tmp_path, between, suffix):
    splits = load(path=conll(tmp_path, CONLL.replace(" ", between), suffix))
    assert splits.train["words"][:] == WORDS[:2]
    assert splits.train["tags"][:] == TAGS[:2]
    assert "words are column 1 of 4, tags column 4" in splits.notes
    assert splits.facts["sources"]["dev"].endswith(f"valid{suffix}")


def test_the_columns_of_a_conll_file_are_chosen_by_number(tmp_path):
    splits = load(path=conll(tmp_path), tags="2")
    assert splits.labels == [".", "IN", "NNP", "VBD"]
    assert splits.facts["scheme"] == "plain"
    assert "no column '7'" in refused(path=tmp_path, tags=7)
    assert "found '1', '2', '3', '4'. Set --data.tags" in refused(path=tmp_path, tags=7)


def test_a_file_of_any_name_is_conll_where_that_is_said(tmp_path):
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.tags").write_text(CONLL)
    names = {split: tmp_path / f"{split}.tags" for split in ("train", "dev", "test")}
    assert load(format="conll", **names).train["tags"][:] == TAGS[:2]
    assert load(format="conll", path=tmp_path).train["tags"][:] == TAGS[:2]
    assert "Set --data.format conll" in refused(**names)


def test_conllu_and_comments(tmp_path):
    text = (
        "# newdoc id = one\n# text = # O\n1-2\tdon't\t_\t_\n1\tdo\tdo\tAUX\n2\tn't\tnot\tPART\n2.1\tx\tx\tX\n"
        "3\tNew York\tx\tPROPN\n\n1\t#\t#\tSYM\n\n# sent_id = 3\n1\tgo\tgo\tAUX\n"
    )
    splits = load(path=conll(tmp_path, text, ".conllu"))
    assert splits.train["words"][:] == [["do", "n't", "New York"], ["#"], ["go"]]
    assert splits.train["tags"][:] == [["AUX", "PART", "PROPN"], ["SYM"], ["AUX"]]


def test_a_hash_is_a_word_where_it_is_no_comment(tmp_path):
    splits = load(path=conll(tmp_path, "# O\nwin B-x\n\n#win O\n\nwin B-x\n"))
    assert splits.train["words"][:] == [["#", "win"], ["#win"], ["win"]]
    within = load(path=conll(tmp_path, "# id = 4\nwin x y B-x\n# SYM = O\n"))
    assert within.train["words"][:] == [["win", "#"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ada B-per\nLovelace\n\nin O\n", "more or fewer columns than 2 (first in line 2) in row 1"),
        ("Ada\nLovelace\n", "one column only, 'Ada'"),
        ("-DOCSTART- O\n\n \n", "is empty: it has no words"),
        ("", "is empty: it has no words"),
    ],
)
def test_what_is_no_conll_file_is_refused(tmp_path, text, message):
    assert message in refused(path=conll(tmp_path, text))


def test_bytes_that_are_not_utf_8_are_named_by_their_line(tmp_path):
    conll(tmp_path)
    (tmp_path / "train.txt").write_bytes(b"a O\nb O\n\xff B-x\n")
    assert refused(path=tmp_path).endswith("train.txt: bytes that are not UTF-8 in line 3. Save the file as UTF-8")


# bad rows


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        (["a", "b"], ["O"], "words and tags of different length (2 and 1 in the first) in row 2."),
        ([], [], "an empty sentence in row 2."),
        (None, ["O"], "an empty sentence in row 2."),
        (["a", " "], ["O", "O"], "an empty word in row 2."),
        (["a", None], ["O", "O"], "a word that is missing or no text in row 2."),
        (["a"], None, "no tags in row 2."),
        (["a", "b"], ["O", None], "a tag that is missing or no text in row 2."),
        (["a", "b"], ["O", ""], "a tag that is missing or no text in row 2."),
        (["a", "b"], ["O", "per"], "a tag that is not as in BIO ('per') in row 2."),
    ],
)
def test_bad_rows_are_named_or_dropped(tmp_path, words, tags, message):
    bad = ([WORDS[0], words, *WORDS[1:]], [TAGS[0], tags, *TAGS[1:]])
    path = folder(tmp_path, train=bad)
    assert f"train.jsonl: {message} Mend the data, or set --data.bad_rows drop" in refused(path=path)
    splits = load(path=path, bad_rows="drop")
    assert splits.train["id"][:] == ["train-1", "train-3", "train-4", "train-5"]
    (reason,) = splits.facts["dropped"]["train"]
    assert reason in message


def test_a_tag_of_test_that_train_never_had(tmp_path):
    path = folder(tmp_path, test=([*WORDS, ["Rex"]], [*TAGS, ["B-dog"]]))
    assert "test.jsonl: a tag that train never had ('B-dog') in row 5" in refused(path=path)
    assert len(load(path=path, bad_rows="drop").test) == 4


def test_a_tag_of_dev_that_train_never_had_is_a_label_and_warned_of(tmp_path):
    splits = load(path=folder(tmp_path, dev=([*WORDS, ["Rex"]], [*TAGS, ["B-dog"]])))
    assert "B-dog" in splits.labels
    assert "tags of dev that train never had, and that nothing can teach: 'B-dog'" in splits.warnings


def test_tags_that_differ_by_case_alone(tmp_path):
    path = folder(tmp_path, train=([*WORDS, ["Eve", "Eve"]], [*TAGS, ["B-Per", "B-Per"]]))
    message = refused(path=path)
    assert "'B-Per' (1 row) and 'B-per'" in message
    assert "'B-Per' is in row 5" in message


def test_one_tag_is_nothing_to_learn(tmp_path):
    path = folder(tmp_path, train=(WORDS, [["O"] * len(row) for row in WORDS]))
    assert "only one tag, 'O', and nothing to tell it from" in refused(path=path)


def test_columns_must_be_known_and_hold_lists(tmp_path):
    for split in ("train", "dev", "test"):
        jsonl(tmp_path / f"{split}.jsonl", pos_tags=TAGS, length=[4, 3, 2, 3])
    assert "'ner_tags', 'pos_tags' could each be the tags. Set --data.tags" in refused(path=tmp_path)
    assert "column 'length' holds int64, and tags are a list" in refused(path=tmp_path, tags="length")
    assert "name the same column twice" in refused(path=tmp_path, words="ner_tags", tags="ner_tags")
    assert load(path=tmp_path, tags="pos_tags").facts["columns"]["tags"] == "pos_tags"
    for split in ("train", "dev", "test"):
        path = jsonl(tmp_path / f"{split}.jsonl")
        path.write_text(path.read_text().replace("tokens", "things"))
    assert "no column is named like words; found 'things', 'ner_tags'. Set --data.words" in refused(path=tmp_path)


def test_the_demo_comes_with_graftkit(tmp_path):
    splits = load(format="conll")  # of other files
    assert [len(rows) for rows in (splits.train, splits.dev, splits.test)] == [221, 50, 120]
    assert splits.facts["scheme"] == "BIO"
    assert splits.warnings == []
    assert "is for data sets on the Hub" in refused(subset="small")


def test_malformed_tags_are_counted_and_kept(tmp_path):
    splits = load(path=folder(tmp_path, train=([*WORDS, ["a", "b", "c"]], [*TAGS, ["I-per", "O", "I-per"]])))
    assert splits.facts["splits"]["train"]["malformed"] == 2
    assert splits.facts["splits"]["train"]["entities"] == {"loc": 2, "per": 4}
    (warning,) = [warning for warning in splits.warnings if "cannot stand there" in warning]
    assert warning == (
        "2 words in 1 row of train with a tag that cannot stand there in BIO, such as I-per of word 1 of train-5; "
        "I- is then taken to begin an entity, as seqeval counts"
    )


# cuts


def many(count: int) -> tuple[list[list[str]], list[list[str]]]:
    """Sentences of which a tenth name a place and the rest a person or nobody; each stands twice."""
    words, tags = [], []
    for i in range(count // 2):
        kind = "loc" if i % 10 == 0 else "per" if i % 2 else None
        words += [[f"word{i}", "x"]] * 2
        tags += [["O" if kind is None else f"B-{kind}", "O"]] * 2
    return words, tags


def kinds(rows) -> Counter:
    return Counter(tags[0] for tags in rows["tags"][:])


def test_dev_and_test_are_cut_by_the_rarest_type(tmp_path):
    splits = load(path=jsonl(tmp_path / "all.jsonl", *many(400)))
    assert kinds(splits.dev) == kinds(splits.test) == {"B-loc": 4, "B-per": 20, "O": 16}
    assert splits.facts["overlaps"] == {"test in train": 0, "dev in train": 0, "test in dev": 0}
    assert splits.facts["repeats_in_train"] == {"repeated_rows": 160, "sentences_with_several_labels": 0}
    assert splits.facts["cut_from_train"]["dev"] == {"share": 0.1, "seed": 0}
    again = load(path=tmp_path / "all.jsonl")
    assert again.dev["id"][:] == splits.dev["id"][:]
    assert again.facts == splits.facts


def test_the_rarest_type_of_all_copies_of_a_sentence_counts(tmp_path):
    words, tags = many(400)
    first = [tag[0] == "B-loc" and i % 2 == 0 for i, tag in enumerate(tags)]
    for i, tag in enumerate(tags):
        tag_of_both = "B-per" if tag[0] == "B-loc" else "O"
        tags[i] = ["B-loc" if first[i] else "O" if tag[0] == "B-loc" else tag[0], tag_of_both]
    splits = load(path=jsonl(tmp_path / "all.jsonl", words, tags))
    assert kinds(splits.dev)["B-loc"] == kinds(splits.test)["B-loc"] == 2
    assert splits.facts["repeats_in_train"]["sentences_with_several_labels"] == 16


def test_max_rows_folds_groups_and_further_columns(tmp_path):
    words, tags = many(200)
    path = str(jsonl(tmp_path / "all.jsonl", words, tags, town=[f"t{i % 20}" for i in range(200)]))
    few = load_tagged(TaggedDataConfig(path=path, max_rows=20), 0)
    assert sum(kinds(few.train).values()) == 20
    assert len(kinds(few.train)) == 3
    grouped = load_tagged(TaggedDataConfig(path=path), 0, ["town"], "town")
    towns = [set(getattr(grouped, split)["column:town"][:]) for split in ("train", "dev", "test")]
    assert towns[0].isdisjoint(towns[1])
    assert towns[0].isdisjoint(towns[2])
    folds = [load_tagged(TaggedDataConfig(path=path, folds=4, fold=fold), 0) for fold in (1, 2, 3, 4)]
    tested = [id for splits in folds for id in splits.test["id"][:]]
    assert sorted(tested) == sorted(f"train-{i}" for i in range(1, 201))
    assert folds[0].facts["fold"]["of"]["rows"] == 200
    assert folds[0].labels == ["O", "B-loc", "B-per"]


def test_sentences_under_several_taggings_are_warned_of(tmp_path):
    splits = load(path=folder(tmp_path, train=([*WORDS, WORDS[2]], [*TAGS, ["B-per", "O"]])))
    assert "of train, 1 sentence with the same words elsewhere under other tags" in splits.warnings
    assert splits.facts["repeats_in_train"] == {"repeated_rows": 1, "sentences_with_several_labels": 1}


def test_the_fingerprint_follows_words_and_tags(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    one, same = load(path=folder(tmp_path / "one")), load(path=folder(tmp_path / "two"))
    other = load(path=folder(tmp_path / "three", train=(WORDS, [["O"] * 4, *TAGS[1:3], ["B-per", "I-per", "O"]])))
    prints = [splits.facts["splits"]["train"]["sha256"] for splits in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.real
def test_wnut17():
    splits = load(path=assets() / "data" / "wnut17")
    assert [len(getattr(splits, split)) for split in ("train", "dev", "test")] == [3394, 1009, 1287]
    assert len(splits.labels) == 13
    assert sum(splits.facts["splits"]["test"]["entities"].values()) == 1079
