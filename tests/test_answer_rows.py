"""Which questions go where, and which are refused?"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from conftest import assets

from graftkit.data.answer_rows import AnswersDataConfig, has_none, load_answers
from graftkit.errors import UserError

CONTEXT = "Ada Lovelace wrote it in 1843. Charles Babbage built the engine in London."
PAIRS = [("Who wrote it?", "Ada Lovelace"), ("When?", "1843"), ("Who built it?", "Charles Babbage"), ("How?", None)]


def row(question: str, answer: str | None, context: str = CONTEXT, **columns) -> dict:
    """A row as the Hub has it."""
    there = [] if answer is None else [answer]
    return {
        "id": f"q-{question}",
        "context": context,
        "question": question,
        "answers": {"text": there, "answer_start": [context.index(text) for text in there]},
        **columns,
    }


ROWS = [row(*pair) for pair in PAIRS]


def jsonl(path: Path, rows=ROWS) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def folder(place: Path, **splits) -> Path:
    """Train, dev and test of the same four rows, or what is given of them."""
    place.mkdir(exist_ok=True)
    for split in ("train", "dev", "test"):
        jsonl(place / f"{split}.jsonl", splits.get(split, ROWS))
    return place


def load(extra=(), group=None, **settings):
    return load_answers(AnswersDataConfig(**settings), 0, extra, group)


def refused(**settings) -> str:
    with pytest.raises(UserError) as error:
        load(**settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_rows_of_the_hub_are_read(tmp_path):
    splits = load(path=str(folder(tmp_path)))
    assert splits.train[0] == {
        "id": "train-1",
        "context": CONTEXT,
        "question": "Who wrote it?",
        "answers": ["Ada Lovelace"],
        "starts": [0],
        "question_id": "q-Who wrote it?",
        "column:context": splits.train[1]["column:context"],
    }
    assert (splits.train[3]["answers"], splits.train[3]["starts"]) == ([], [])
    assert splits.labels == []
    assert has_none(splits.facts)
    assert {key: splits.facts["splits"]["train"][key] for key in ("rows", "contexts", "without_answer")} == {
        "rows": 4,
        "contexts": 1,
        "without_answer": 1,
    }
    assert splits.facts["overlaps"] == {"test in train": 4, "dev in train": 4, "test in dev": 4}
    assert json.loads(json.dumps(splits.facts)) == splits.facts
    assert any("also stand in train, which flatters" in warning for warning in splits.warnings)


def nested(rows=ROWS, version="v2.0") -> dict:
    """The same rows as SQuAD's files have them."""
    questions = []
    for one in rows:
        pairs = zip(one["answers"]["text"], one["answers"]["answer_start"], strict=True)
        question = {"id": one["id"], "question": one["question"]}
        question["answers"] = [{"text": text, "answer_start": start} for text, start in pairs]
        if version != "1.1":
            question["is_impossible"] = not question["answers"]
        questions.append(question)
    half = len(questions) // 2
    paragraphs = [{"context": CONTEXT, "qas": part} for part in (questions[:half], questions[half:])]
    return {
        "version": version,
        "data": [{"title": "Engines", "paragraphs": paragraphs[:1]}, {"title": "More", "paragraphs": paragraphs[1:]}],
    }


@pytest.mark.parametrize("version", ["1.1", "v2.0"])
def test_files_of_squad_are_read_alike(tmp_path, version):
    flat = load(path=str(folder(tmp_path / "flat")))
    (tmp_path / "squad").mkdir()
    for name in (f"train-{'v' * (version[0] != 'v')}{version}", "dev-v2.0", "test"):
        (tmp_path / "squad" / f"{name}.json").write_text(json.dumps(nested(version=version)), encoding="utf-8")
    splits = load(("title",), path=str(tmp_path / "squad"))
    assert splits.train["answers"][:] == flat.train["answers"][:]
    assert splits.train["question_id"][:] == flat.train["question_id"][:]
    assert splits.train["column:title"][:] == ["Engines", "Engines", "More", "More"]
    assert splits.facts["splits"]["test"]["sha256"] == flat.facts["splits"]["test"]["sha256"]


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("how", ["json", "python", "pandas", "single", "parquet", "list of objects"])
def test_every_way_to_write_answers(tmp_path, how):
    flat = load(path=str(folder(tmp_path / "flat")))
    place = tmp_path / "rows"
    place.mkdir()
    for split in ("train", "dev", "test"):
        if how == "parquet":
            import pyarrow as pa
            from pyarrow import parquet

            parquet.write_table(pa.Table.from_pylist(ROWS), place / f"{split}.parquet")
            continue
        rows = []
        for one in ROWS:
            text, start = one["answers"]["text"], one["answers"]["answer_start"]
            changed = {"context": one["context"], "question": one["question"], "id": one["id"]}
            if how == "single":
                changed |= {"answer": (text or [""])[0], "answer_start": (start or [-1])[0]}
            elif how == "pandas":
                written = f"{{'text': array({text}, dtype=object), 'answer_start': array({start}, dtype=int32)}}"
                changed["answers"] = written
            elif how == "list of objects":
                changed["answers"] = [
                    dict(zip(("text", "answer_start"), p, strict=True)) for p in zip(text, start, strict=True)
                ]
            else:
                changed["answers"] = (json.dumps if how == "json" else str)(one["answers"])
            rows.append(changed)
        jsonl(place / f"{split}.jsonl", rows) if how == "list of objects" else write_csv(place / f"{split}.csv", rows)
    splits = load(path=str(place))
    for name in ("answers", "starts", "question_id"):
        assert splits.train[name][:] == flat.train[name][:]


def at(start, text="Ada Lovelace", **columns):
    return row("Who?", None) | {"answers": {"text": [text], "answer_start": [start]}} | columns


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            at(1),
            "an answer that does not stand at its offset (in the first, 'Ada Lovelace' should be at 1; there stands "
            "'da Lovelace ', and it stands at 0) in row 2 (id q-Who?)",
        ),
        (
            at(20, "1844"),
            "an answer that does not stand at its offset (in the first, '1844' should be at 20; there stands 't in', "
            "and it stands nowhere in its context)",
        ),
        (at(70), "an answer outside of its context (in the first, 'Ada Lovelace' should be at 70; there stands 'don.'"),
        (
            at(700),
            "an answer outside of its context (in the first, 'Ada Lovelace' should be at 700; its context has 74 c",
        ),
        (at(-1), "an answer outside of its context"),
        (at(0, " "), "an empty answer in row 2 (id q-Who?)"),
        (row("Who?", "1843") | {"question": " "}, "empty or missing question in row 2."),
        (row("Who?", "1843") | {"context": ""}, "empty or missing context in row 2."),
        (row("Who?", "1843") | {"context": None}, "empty or missing context in row 2."),
        (
            at(0) | {"answers": {"text": ["Ada", "1843"], "answer_start": [0]}},
            "answers and offsets of different length in row 2",
        ),
        (at(None), "answers that are no texts with offsets in row 2"),
        (at(0, is_impossible=True), "an answer to a question that is_impossible marks as without in row 2"),
        (
            row("Who?", None, is_impossible=False),
            "no answer to a question that is_impossible marks as with one in row 2",
        ),
    ],
)
def test_bad_rows_are_named_or_dropped(tmp_path, bad, message):
    path = str(folder(tmp_path, train=[ROWS[0], bad, *ROWS[1:]]))
    assert f"train.jsonl: {message}" in refused(path=path)
    assert refused(path=path).endswith("Mend the data, or set --data.bad_rows drop")
    splits = load(path=path, bad_rows="drop")
    assert splits.train["id"][:] == ["train-1", "train-3", "train-4", "train-5"]
    (reason,) = splits.facts["dropped"]["train"]
    assert splits.facts["dropped"]["train"][reason] == 1
    assert message.startswith(reason)


UNEQUAL = "answers and offsets of different length in row 2"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{[1]: 2}", UNEQUAL),
        ("[" * 10_000, UNEQUAL),
        ('{"text": ["\\ud800"], "answer_start": [0]}', UNEQUAL),
        (f'{{"text": ["Ada"], "answer_start": [1{"0" * 400}]}}', "an answer outside of its context"),
    ],
    ids=["no key", "deep", "half of a character", "far"],
)
def test_answers_that_cannot_be_read_are_bad_rows(tmp_path, written, message):
    rows = [one | {"answers": json.dumps(one["answers"])} for one in ROWS]
    bad = row("Who?", None) | {"answers": written}
    path = str(folder(tmp_path, train=[rows[0], bad, *rows[1:]]))
    assert f"train.jsonl: {message}" in refused(path=path)
    assert "in row 2" in refused(path=path)
    assert load(path=path, bad_rows="drop").train["id"][:] == ["train-1", "train-3", "train-4", "train-5"]


def test_train_without_any_answer_is_nothing_to_learn(tmp_path):
    path = str(folder(tmp_path, train=[row(question, None) for question, _ in PAIRS]))
    assert "no question of train has an answer, so there is nothing to learn" in refused(path=path)


def test_columns_must_be_known(tmp_path):
    renamed = [{"passage": one["context"], "ask": one["question"], "answer": "Ada", "place": 0} for one in ROWS]
    path = str(folder(tmp_path, train=renamed, dev=renamed, test=renamed))
    assert (
        "no column is named like a question; found 'passage', 'ask', 'answer', 'place'. Set --data.question"
        in refused(path=path)
    )
    named = {"path": path, "question": "ask"}
    assert "no column says where they begin in the context. Set --data.answer_start" in refused(**named)
    assert load(**named, answer_start="place").train["answers"][0] == ["Ada"]
    assert "no column 'nope'" in refused(path=path, question="nope")
    assert "name the same column twice" in refused(path=path, question="ask", context="ask")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "train.json").write_text('{"data": [{"title": "x", "paragraphs": [{"context": "x"}]}]}')
    assert "paragraph 1 of article 1 has no list of questions (qas)" in refused(path=str(tmp_path / "train.json"))
    (tmp_path / "train.json").write_text('{"data": [{"title": "x", "paragraphs": []}, {"title": "y"}]}')
    assert "article 2 has no list of paragraphs" in refused(path=str(tmp_path / "train.json"))
    (tmp_path / "train.json").write_text('{"data": [{"title": "x", "paragraphs": []}]}')
    assert "is empty: it has no questions" in refused(path=str(tmp_path / "train.json"))
    (tmp_path / "train.json").write_text('{"data": [')
    assert "not valid JSON" in refused(path=str(tmp_path / "train.json"))
    (tmp_path / "train.txt").write_text("x")
    assert "cannot read this kind of file" in refused(train=str(tmp_path / "train.txt"))


def many(contexts: int, each: int = 4, **columns) -> list[dict]:
    """Questions on so many contexts."""
    names = [f"name{i}" for i in range(contexts)]
    return [
        row(f"Who {k}?", name, f"It was {name} who came.", **{key: make(i) for key, make in columns.items()})
        for i, name in enumerate(names)
        for k in range(each)
    ]


def test_dev_and_test_are_cut_by_whole_contexts(tmp_path):
    path = str(jsonl(tmp_path / "all.jsonl", many(40)))
    splits = load(path=path)
    held = [set(getattr(splits, split)["context"][:]) for split in ("train", "dev", "test")]
    assert [len(one) for one in held] == [32, 4, 4]
    assert len(splits.dev) == len(splits.test) == 16
    assert not held[0] & held[1]
    assert not held[0] & held[2]
    assert "what is cut from train is cut by whole contexts: questions on one text stay together" in splits.notes
    assert "every question has an answer" in splits.notes
    assert not has_none(splits.facts)
    assert load(path=path).facts == splits.facts
    fold = load(path=path, folds=4, fold=2)
    assert len(set(fold.test["context"][:])) == 10
    assert not set(fold.test["context"][:]) & set(fold.train["context"][:])


def test_contexts_of_one_group_stay_together_too(tmp_path):
    path = str(jsonl(tmp_path / "all.jsonl", many(60, town=lambda i: f"t{i // 3}")))
    splits = load(("town",), "town", path=path)
    towns = [set(getattr(splits, split)["column:town"][:]) for split in ("train", "dev", "test")]
    assert not towns[0] & towns[1]
    assert not towns[0] & towns[2]
    assert [len(one) for one in towns] == [16, 2, 2]


def test_too_few_contexts_to_cut(tmp_path):
    path = str(jsonl(tmp_path / "all.jsonl", ROWS))
    assert "are too few to cut dev and test from" in refused(path=path)


def test_the_same_question_twice_is_warned_of(tmp_path):
    splits = load(path=str(folder(tmp_path, train=[*ROWS, ROWS[0]])))
    assert splits.facts["repeats_in_train"] == {"repeated_rows": 1}
    assert "1 of 5 rows of train repeat the question and context of an earlier one" in splits.warnings


def test_a_kind_that_train_lacks_is_warned_of(tmp_path):
    splits = load(path=str(folder(tmp_path, train=ROWS[:3], dev=ROWS[:3])))
    assert any("1 of 4 questions of test have no answer, and none of train and dev" in line for line in splits.warnings)
    splits = load(path=str(folder(tmp_path, dev=ROWS[:3])))
    assert "every question of dev has an answer, so nothing there says when to give none" in splits.warnings


def test_the_demo_is_what_its_card_says():
    splits = load()
    sizes = [
        [splits.facts["splits"][s][key] for key in ("contexts", "rows", "without_answer")]
        for s in ("train", "dev", "test")
    ]
    assert sizes == [[30, 206, 44], [6, 38, 8], [12, 89, 18]]
    assert splits.warnings == []
    ids = [id for split in (splits.train, splits.dev, splits.test) for id in split["question_id"][:]]
    assert len(set(ids)) == len(ids)
    contexts = [set(split["context"][:]) for split in (splits.train, splits.dev, splits.test)]
    assert sum(map(len, contexts)) == len(set.union(*contexts)) == 48
    for split in (splits.train, splits.dev, splits.test):
        for one in split:
            assert 60 <= len(one["context"].split()) <= 120
            for text, start in zip(one["answers"], one["starts"], strict=True):
                assert one["context"][start : start + len(text)] == text
                around = one["context"][max(0, start - 1) : start], one["context"][start + len(text)]
                assert not any(letter.isalnum() for letter in around), one["question"]  # whole words
                assert one["context"].count(text) == 1


@pytest.mark.real
def test_xquad():
    splits = load(path=str(assets() / "data" / "xquad_en"))
    assert sum(len(getattr(splits, split)) for split in ("train", "dev", "test")) == 954 + 236
    assert len(splits.test) == 236
    assert not has_none(splits.facts)
    assert not set(splits.train["context"][:]) & set(splits.dev["context"][:])
