"""Does a question get the best words of its text, however long, and the same from plain libraries?"""

from __future__ import annotations

import contextlib
import io
import math
import re

import numpy as np
import pytest
import torch
from conftest import FILLER, KINDS, WORDS

from graftkit.adapt import AdaptConfig, adapt
from graftkit.backbone import BackboneConfig
from graftkit.baselines import answer_baselines
from graftkit.batches import MOST_TOKENS
from graftkit.errors import UserError
from graftkit.heads import load_answerer
from graftkit.optim import make_optimizer
from graftkit.spans import best_spans, cut_out, first_answer, pieces_of
from graftkit.tasks.question_answering import QuestionAnswering
from graftkit.text import load_tokenizer


def question(id: str, context: str, kind: str) -> dict:
    """Which word of a kind stands in the text? The first one, or none."""
    found = re.search("|".join(rf"\b{word}\b" for word in WORDS[kind]), context)
    return {
        "id": id,
        "question": f"which {kind} is here?",
        "context": context,
        "answers": [found[0]] if found else [],
        "starts": [found.start()] if found else [],
        "question_id": None,
    }


def questions(count: int, seed: int = 0, longest: int = 14) -> list[dict]:
    """Texts of some words, of which most name a thing of the kind that is asked for."""
    rng = np.random.default_rng(seed)
    kinds = list(WORDS)
    rows = []
    for i in range(count):
        kind = kinds[i % 3]
        words = rng.choice(FILLER, rng.integers(3, longest)).tolist()
        thing = kinds[(i + (i % 5 == 4)) % 3]  # each fifth of another kind
        words.insert(int(rng.integers(0, len(words) + 1)), str(rng.choice(WORDS[thing])))
        rows.append(question(f"row-{i}", " ".join(words), kind))
    return rows


def make(checkpoint, kind: str, **settings) -> tuple[QuestionAnswering, torch.nn.Module]:
    config = BackboneConfig(name=str(checkpoint(kind)))
    tokenizer = load_tokenizer(config)
    return QuestionAnswering(tokenizer, **({"no_answer": True} | settings)), load_answerer(config, tokenizer, 0)


def shake(model: torch.nn.Module) -> torch.nn.Module:
    """Weights so large that answers differ."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.6 if "qa_outputs" in name else 0.15)
    return model.eval()


def batch_of(task: QuestionAnswering, rows: list[dict]):
    return task.collate([task.encode(row, None) for row in rows])


def ask(task: QuestionAnswering, model: torch.nn.Module, rows: list[dict]) -> list[dict]:
    with torch.no_grad():
        return task.predict(model, batch_of(task, rows))


LONG = [*questions(2, seed=1, longest=160), question("strange", "the \u3000 Désk,  APPLE (pear). " * 20, "fruit")]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_neighbours_change_no_answer_and_the_first_loss_knows_nothing(checkpoint, kind):
    task, headed = make(checkpoint, kind)
    rows = [*questions(8), *LONG]
    model = headed.model.eval()
    assert headed.peft_task == "QUESTION_ANS"
    assert {name.partition(".")[0] for name in headed.head} == {"qa_outputs"}
    together = ask(task, model, rows)
    for row, record in zip(rows, together, strict=True):
        (alone,) = ask(task, model, [row])
        for name in ("score", "null_gap", "loss"):
            assert record[name] == pytest.approx(alone[name], rel=1e-5, abs=2e-6)
        assert (record["id"], record["label"]) == (row["id"], row["answers"])
        assert record["best"] == row["context"][record["start"] :][: len(record["best"])]
        assert record["prediction"] == ("" if record["null_gap"] > 0 else record["best"])
    batch = batch_of(task, rows)
    loss, windows = task.loss(model, batch).item(), sum(record["windows"] for record in together)
    assert windows == len(batch.inputs["input_ids"]) > len(rows)
    assert task.count(batch).item() == 2 * windows
    may = batch.targets["context"].sum(dim=1) + 1
    assert loss / (2 * windows) == pytest.approx(np.mean([math.log(n) for n in may.tolist()]), rel=0.1)
    assert sum(record["loss"] for record in together) == pytest.approx(loss, rel=1e-5)
    lengths = batch.inputs["attention_mask"].sum(dim=1).tolist()
    assert task.lengths(rows).sum() == sum(lengths)
    assert max(lengths) <= task.tokenizer.model_max_length


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_it_overfits_eight_rows_some_of_several_windows(checkpoint, kind):
    task, headed = make(checkpoint, kind)
    adapted = adapt(headed, AdaptConfig())
    optimizer = make_optimizer(adapted.model, adapted.head, 5e-3, 5e-3, 0.0)
    rows = [*questions(6), *LONG[:2]]
    assert [] in [row["answers"] for row in rows]
    batch = batch_of(task, rows)
    adapted.model.train()
    for _ in range(160):
        loss = task.loss(adapted.model, batch) / task.count(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    scores = task.score(ask(task, adapted.model.eval(), rows))
    assert scores["f1"] == scores["exact_match"] == scores["right_without_answer"] == 1.0
    assert scores["log_loss"] == pytest.approx(loss.item(), abs=0.05)


# windows


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_book_is_asked_some_windows_at_a_time(checkpoint, kind):
    task, headed = make(checkpoint, kind)
    model, sizes = shake(headed.model), []
    model.register_forward_pre_hook(lambda _, args, given: sizes.append(given["input_ids"].numel()), with_kwargs=True)
    rows = [question("book", "on my desk is here " * 1500 + "apple", "fruit"), *questions(2)]
    batch = batch_of(task, rows)
    records = task.predict(model, batch)
    assert sum(sizes) == batch.inputs["input_ids"].numel() > 3 * MOST_TOKENS
    assert len(sizes) > 3
    assert max(sizes) <= MOST_TOKENS
    with torch.no_grad():
        together = task.loss(model, batch).item()
    assert sum(record["loss"] for record in records) == pytest.approx(together, rel=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_each_window_of_a_long_text_is_a_row_to_train_on(checkpoint, kind):
    task, headed = make(checkpoint, kind)
    rows = [*questions(3), *LONG[:2], question("x", "the apple", "fruit")]
    parts, lengths = task.in_windows(rows, task.lengths(rows))
    whole, apart = batch_of(task, rows), batch_of(task, parts)
    assert len(parts) == len(lengths) == len(whole.inputs["input_ids"]) > len(rows)
    assert lengths.tolist() == whole.inputs["attention_mask"].sum(dim=1).tolist()
    assert max(lengths) <= task.tokenizer.model_max_length
    assert all(len(task.encode(part, None)["windows"]) == 1 for part in parts)
    assert len({part["id"] for part in parts}) == len(parts)
    assert [parts[i] for i in (0, 1, 2, -1)] == [rows[i] for i in (0, 1, 2, -1)]
    for name in whole.inputs:
        assert torch.equal(whole.inputs[name], apart.inputs[name])
    assert torch.equal(whole.targets["truth"], apart.targets["truth"])
    model = shake(headed.model)
    assert task.count(apart) == task.count(whole)
    assert task.loss(model, apart).item() == task.loss(model, whole).item()


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_stand_where_their_letters_do(checkpoint, kind):
    task, _ = make(checkpoint, kind)
    row = question("x", "the old desk " * 12 + "apple is here " + "again very fine " * 12, "fruit")
    example = task.encode(row, None)
    assert len(example["windows"]) > 2
    held = 0
    for inputs, (first, end, none), letters, truth in zip(
        *(example[name] for name in ("windows", "pieces", "letters", "truth")), strict=True
    ):
        ids = inputs["input_ids"]
        assert len(ids) <= task.tokenizer.model_max_length
        assert ids[none] == (task.tokenizer.eos_token_id if kind in ("gpt2", "llama") else task.tokenizer.cls_token_id)
        assert end - first == len(letters)
        for place, (begin, stop) in enumerate(letters.tolist(), first):
            assert task.tokenizer.decode(ids[place]).strip("# ") == row["context"][begin:stop].strip()
        if truth != (none, none):
            held += 1
            assert row["context"][letters[truth[0] - first][0] : letters[truth[1] - first][1]] == "apple"
    assert held >= 1
    assert example["letters"][0][0][0] == 0
    assert example["letters"][-1][-1][1] >= len(row["context"].rstrip())
    for one, other in zip(example["letters"], example["letters"][1:], strict=False):
        shared = len({tuple(pair) for pair in one.tolist()} & {tuple(pair) for pair in other.tolist()})
        assert shared == task.overlap


@pytest.mark.parametrize(
    ("answer", "pieces"),
    [
        ((10, 13), (0, 0)),
        ((10, 18), (0, 1)),
        ((15, 17), (1, 1)),  # within a piece
        ((12, 25), (0, 2)),
        ((9, 13), None),  # it begins before the window
        ((19, 26), None),  # it ends after it
        ((13, 14), None),  # a blank, which no piece holds
        (None, None),
    ],
)
def test_an_answer_is_learnt_where_all_of_it_stands(answer, pieces):
    assert pieces_of(np.array([[10, 13], [14, 18], [19, 25]]), answer) == pieces
    assert pieces_of(np.zeros((0, 2), int), answer) is None


def test_the_first_answer_is_learnt_without_the_blanks_around_it():
    assert first_answer({"answers": ["  apple ", "pear"], "starts": [4, 20]}) == (6, 11)
    assert first_answer({"answers": [], "starts": []}) is None


def test_an_answer_is_cut_out_without_the_blanks_that_pieces_have():
    letters = np.array([[0, 3], [3, 7], [7, 13]])  # tokens 5, 6 and 7 of a window
    assert cut_out("had Ada Byron ", letters, 5, 6, 7) == ("Ada Byron", 4)
    assert cut_out("had Ada Byron ", letters, 5, 6, 6) == ("Ada", 4)
    assert cut_out("had Ada Byron ", letters[:0], 0, 0, 0) == ("", None)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_best_span_is_that_of_all_spans(checkpoint, kind):
    for most in (1, 4, 30):
        task, headed = make(checkpoint, kind, max_tokens=most)
        model = shake(headed.model)
        for row in [*questions(4, seed=3), *LONG]:
            batch = batch_of(task, [row])
            with torch.no_grad():
                given = model(**batch.inputs)
            best, nulls = (-math.inf, None), []
            (held,) = batch.targets["rows"]
            for i, ((first, end, none), letters) in enumerate(zip(held["pieces"], held["letters"], strict=True)):
                starts, ends = given.start_logits[i].tolist(), given.end_logits[i].tolist()
                nulls.append(starts[none] + ends[none])
                for a in range(first, end):
                    for b in range(a, min(a + most, end)):
                        span = row["context"][letters[a - first][0] : letters[b - first][1]].strip()
                        best = max(best, (starts[a] + ends[b], span))
            (record,) = ask(task, model, [row])
            assert record["score"] == pytest.approx(best[0], rel=1e-6)
            assert record["best"] == best[1]
            assert record["null_gap"] == pytest.approx(min(nulls) - best[0], rel=1e-5, abs=1e-5)


def test_of_spans_that_are_as_good_the_shortest_and_the_first():
    logits = torch.tensor([[[9.0, 2, 2, 1, 2]], [[9.0, 0, 3, 3, 3]]])  # start and end of one window
    context = torch.tensor([[False, True, True, True, True]])
    assert [value.item() for value in best_spans(logits, context, 3)] == [5.0, 2, 2]
    logits[0, 0, 1] = 4
    assert [value.item() for value in best_spans(logits, context, 3)] == [7.0, 1, 2]
    assert [value.item() for value in best_spans(logits, context, 1)] == [5.0, 2, 2]
    assert best_spans(logits, torch.zeros_like(context), 3)[0].item() == -math.inf


def test_where_all_have_an_answer_one_is_always_given(checkpoint):
    task, headed = make(checkpoint, "bert", no_answer=False)
    model = shake(headed.model)
    assert not task.decides
    for record in ask(task, model, [*questions(8), *LONG]):
        assert record["prediction"] == record["best"] != ""
        assert record["null_gap"] is None
    task, _ = make(checkpoint, "bert", threshold=-1e9)
    assert {record["prediction"] for record in ask(task, model, questions(4))} == {""}


def test_the_threshold_that_is_chosen_on_dev_is_used(checkpoint):
    task, headed = make(checkpoint, "bert")
    model = shake(headed.model)
    rows = [*questions(30), *LONG]
    before = ask(task, model, rows)
    decision = task.decide(before)
    assert decision["threshold"] == task.threshold != 0
    after = ask(task, model, rows)
    assert task.score(after)["f1"] == pytest.approx(decision["dev_f1"])
    assert decision["dev_f1"] >= decision["dev_f1_at_0"]
    assert task.score(before)["f1"] == pytest.approx(decision["dev_f1_at_0"])
    assert [record["best"] for record in after] == [record["best"] for record in before]


def test_texts_that_are_hard_to_read(checkpoint):
    task, headed = make(checkpoint, "bert")
    model = shake(headed.model)
    endless = question("x", "the old apple", "fruit") | {"question": "why " * 200}
    nothing = question("x", " \n", "fruit")
    blanks = question("x", "  apple \n", "fruit") | {"answers": ["  apple "], "starts": [0]}
    records = ask(task, model, [endless, nothing, blanks])
    assert records[0]["best"] in endless["context"]
    assert (records[1]["prediction"], records[1]["start"], records[1]["null_gap"]) == ("", None, 0.0)
    assert (records[2]["best"], records[2]["start"]) == ("apple", 2)
    assert all(np.isfinite(record["loss"]) for record in records)
    row = task.overlong(questions(2))
    assert len(task.encode(row, None)["windows"]) > 2
    assert row["joined"] > 2


def test_too_small_a_window_is_refused(checkpoint):
    config = BackboneConfig(name=str(checkpoint("bert")), max_length=10)
    with pytest.raises(UserError, match=r"--backbone\.max_length 10: leaves 7 tokens for question and text"):
        QuestionAnswering(load_tokenizer(config), no_answer=True)


def test_what_is_kept_of_a_row(checkpoint):
    task, _ = make(checkpoint, "bert")
    row = question("x", "the apple 日", "fruit") | {"question_id": "q7"}
    kept = task.kept(row)
    assert kept.content == {"question": "which fruit is here?", "context": "the apple 日", "question_id": "q7"}
    assert kept.measures == {"question_words": 4, "tokens": 3, "unknown_tokens": 1, "windows": 1}
    assert task.digest(row) != task.digest(row | {"context": "the apple"})


def test_what_the_nearest_sentence_adds():
    from datasets import Dataset

    text = "Ada wrote it in London. The engine was built by Charles Babbage in 1843. Nobody came."
    rows = Dataset.from_list(
        [
            {"question": "Who built the engine?", "context": text, "answers": ["Charles Babbage"]},
            {"question": "Where did Ada live?", "context": text, "answers": []},
        ]
    )
    found = answer_baselines(rows, rows, rows, no_answer=True)
    assert found["no_answer"].given == ["", ""]
    assert found["sentence"].given == ["by Charles Babbage", "wrote it in"]
    assert found["sentence"].facts["words"] == 3
    assert set(answer_baselines(rows, rows, rows, no_answer=False)) == {"sentence"}


# plain libraries


def plain_answers(snippet: str, rows: list[dict]) -> list[str]:
    """The answer to each question, by the lines that a run prints."""
    lines = snippet.splitlines()
    (place,) = (i for i, line in enumerate(lines) if line.startswith("question, context = "))
    found = []
    for row in rows:
        lines[place] = f"question, context = {row['question']!r}, {row['context']!r}"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec("\n".join(lines), {})
        found.append(printed.getvalue().removesuffix("\n"))
    return found


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("no_answer", [True, False])
def test_the_snippet_gives_the_same_answers(tmp_path, checkpoint, kind, no_answer):
    task, headed = make(checkpoint, kind, no_answer=no_answer, max_tokens=5)
    model = shake(headed.model)
    rows = [*questions(5), *LONG, question("x", "the apple", "fruit") | {"question": "why " * 200}]
    if no_answer:
        task.threshold = float(np.median([record["null_gap"] for record in ask(task, model, rows)])) + 1e-4
    task.save(tmp_path, model)
    told = ask(task, task.load(tmp_path), rows)
    assert ("" in [record["prediction"] for record in told]) == no_answer
    assert plain_answers(task.snippet(tmp_path), rows) == [record["prediction"] for record in told]
    assert "NAMESPACE/NAME" in task.snippet(tmp_path, "NAMESPACE/NAME")
