"""What does the report of a model that answers questions say?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from graftkit.metrics import answers, sums
from graftkit.metrics.intervals import LEVEL
from graftkit.report import curves, rows
from graftkit.report.html import Addition
from graftkit.report.markdown import bold, escape, in_brackets, number, percent, plural, shorten, table
from graftkit.report.reading import Reading
from graftkit.report.rows import opening, scores
from graftkit.report.sections import is_folds, look

WORST = 20
KINDS = 8  # first words that have a line of their own
AROUND = 60  # letters that are shown on each side of an answer
LETTERS = 160  # of a question or an answer
LENGTHS = ((1, 1), (2, 2), (3, 5), (6, 10), (11, None))  # words of the true answer, from and to
FEW = 30  # rows of a part, below which its scores are rough
MEANINGS = {
    "f1": "how much of its words the answer shares with the nearest true one, from 0 to 1, on average",
    "exact_match": "share of answers that are a true one, but for case, punctuation and articles",
    "f1_with_answer": "the same F1, of the questions that have an answer alone",
    "exact_match_with_answer": "exact match, of the questions that have an answer alone",
    "right_without_answer": "of the questions without an answer, the share that it gives none to",
    "log_loss": "price of being wrong and sure of it, per start or end of an answer: 0 is perfect, lower is better",
}


def measure(reading: Reading, split: str) -> dict[str, Any]:
    """All that metrics.json says of a split. UserError for an unknown headline."""
    records, groups = reading.records[split], reading.groups(split)
    found = rows.measure(reading, split, answers.scoring_of(*reading.records.values()), answers.HEADLINES)
    asked = Counter(record["asks"] for record in records)
    usual = [word for word, _ in sorted(asked.items(), key=lambda pair: (-pair[1], pair[0]))[:KINDS]]
    by_word = [(word, lambda record, word=word: record["asks"] == word) for word in usual]
    by_word += [("other words", lambda record: record["asks"] not in usual)] if len(asked) > KINDS else []
    by_length = [(_range(*ends), lambda record, ends=ends: _is_within(record, *ends)) for ends in LENGTHS]
    label, given = ([bool(record[name]) for record in records] for name in ("label", "prediction"))
    counts = Counter(zip(label, given, strict=True))
    exact = [answers.exact(record["prediction"], record["label"]) for record in records]
    return found | {
        "exact": int(sum(exact)),
        "answered": {
            "answer_given": counts[True, True],
            "answer_none": counts[True, False],
            "none_given": counts[False, True],
            "none_none": counts[False, False],
        },
        "windowed": sum(record["windows"] > 1 for record in records),
        "by_first_word": _parts(records, groups, by_word),
        "by_answer_words": _parts(records, groups, by_length),
    }


def summary(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Three sentences: how good and against what, how many answers are right, and what to watch out for."""
    test = metrics["test"]
    name = test["headline"]["name"]
    perfect = "where 1 is perfect" if name == "f1" else "which would be 1 if all were right"
    sentences = [opening(metrics, run, "answers questions", perfect=perfect), _how_many(test)]
    if cautions := _cautions(test, run):
        sentences.append(f"**Watch out:** {'; '.join(cautions)}.")
    return " ".join(sentences)


def worst(records: Sequence[Mapping[str, Any]], most: int = WORST) -> list[Mapping[str, Any]]:
    """The records of the wrong answers: the lowest F1 first, and of these the highest loss."""
    wrong = [record for record in records if not answers.exact(record["prediction"], record["label"])]
    return sorted(wrong, key=lambda record: (answers.f1(record["prediction"], record["label"]), -record["loss"]))[:most]


def chapters(
    metrics: Mapping[str, Any],
    run: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """The report's chapters on answers, by heading; `shown` are the worst records, and `rows` their rows by id."""
    test = metrics["test"]
    told = {"Scores": f"{scores(metrics, run, MEANINGS)}\n\n{_how_counted(test)}"}
    if look(run, "decision") is not None or test["answered"]["none_given"] + test["answered"]["none_none"]:
        told["Questions without an answer"] = _without_answer(test, run)
    told["Kinds of question"] = _kinds(test)
    told["Lengths of answers"] = _lengths(test)
    return told | {"Worst answers": _worst_answers(test, shown, rows)}


def additions(
    metrics: Mapping[str, Any],
    reading: Reading,
    rows: Mapping[str, Mapping[str, Any]],
    log: Sequence[Mapping[str, Any]],
) -> dict[str, Addition]:
    """What the page shows besides: curves of training."""
    return curves.additions(metrics, reading.run, log)


# what is measured


def _parts(
    records: Sequence[Mapping[str, Any]],
    groups: np.ndarray | None,
    parts: Sequence[tuple[str, Callable[[Mapping[str, Any]], bool]]],
) -> list[dict[str, Any]]:
    """F1 and exact match, with their intervals, of the records of each part; parts without any are left out."""
    found = []
    for name, belongs in parts:
        places = [place for place, record in enumerate(records) if belongs(record)]
        if places:
            own = None if groups is None else groups[places]
            scored = sums.intervals(answers.SCORING, [records[place] for place in places], own)
            told = {score: asdict(scored[score]) for score in answers.HEADLINES}
            found.append({"name": name, "rows": len(places), "intervals": told})
    return found


def _range(fewest: int, most: int | None) -> str:
    return f"{fewest} and more" if most is None else str(fewest) if fewest == most else f"{fewest} to {most}"


def _is_within(record: Mapping[str, Any], fewest: int, most: int | None) -> bool:
    """Whether the first true answer has so many words."""
    words = len(record["label"][0].split()) if record["label"] else 0
    return fewest <= words and (most is None or words <= most)


# what it says


def _how_many(test: Mapping[str, Any]) -> str:
    """How many are right, word for word."""
    right = f"{test['exact']:,} of the {plural(test['rows'], 'answer')} ({percent(test['exact'], test['rows'])})"
    return f"{right} are right word for word, but for case, punctuation and articles."


def _cautions(test: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What a reader should know before trusting the score, as phrases."""
    cautions = []
    counts = test["answered"]
    without = counts["none_given"] + counts["none_none"]
    if counts["none_given"]:
        share = percent(counts["none_given"], without)
        cautions.append(f"it answers {counts['none_given']:,} of the {without:,} questions without one ({share})")
    if counts["answer_none"]:
        given = counts["answer_none"] + counts["answer_given"]
        cautions.append(f"it gives none to {counts['answer_none']:,} of the {given:,} that have one")
    units = look(test, "groups", "count") or test["rows"]
    if units < FEW:
        things = f"{units} contexts or groups" if test.get("groups") else f"{units} questions"
        cautions.append(f"test has only {things}, so the interval itself is rough")
    if run.get("warnings"):
        cautions.append(f"the run gave {plural(len(run['warnings']), 'warning')} (below)")
    return cautions


def _how_counted(test: Mapping[str, Any]) -> str:
    grouped = " Questions on one text are not independent, so whole texts are drawn." if _by_context(test) else ""
    return (
        "An answer is held against each accepted one, and the nearest counts, as in SQuAD's official scripts: case, "
        f"punctuation, blanks and the English articles a, an and the do not matter.{grouped}"
    )


def _by_context(test: Mapping[str, Any]) -> bool:
    return look(test, "groups", "column") == "context"


def _without_answer(test: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """How often it answers, and should; and the threshold."""
    counts = test["answered"]
    lines = [
        (name, *(f"{counts[f'{key}_{given}']:,}" for given in ("given", "none")))
        for key, name in (("answer", "The question has an answer"), ("none", "It has none"))
    ]
    parts = [table(("", "An answer was given", "None was given"), lines, numbers=[1, 2])]
    decided = look(run, "decision")
    if is_folds(run):
        return parts[0]  # each fold has a threshold of its own, or none
    if decided is None:
        parts.append("Every question that it learnt from has an answer, so it always gives one.")
        return "\n\n".join(parts)
    parts.append(
        f"None is given where “no answer” is ahead of the best words by more than {decided['threshold']:.3g}. That "
        f"threshold is the one of the best F1 on dev ({number(decided['dev_f1'], 2)} there; "
        f"{number(decided['dev_f1_at_0'], 2)} with 0). Whoever fears wrong answers more than missing ones takes a "
        "lower one: the column null_gap of predictions-test.parquet says how far “no answer” is ahead in each row."
    )
    return "\n\n".join(parts)


def _kinds(test: Mapping[str, Any]) -> str:
    """F1 and exact match by the question's first word."""
    intro = (
        "By the first word of the question, the most frequent first. Where two intervals overlap much, the two kinds "
        "may be equally hard; “–”: too few to tell."
    )
    return f"{intro}\n\n{_table('First word', test['by_first_word'])}"


def _lengths(test: Mapping[str, Any]) -> str:
    """F1 and exact match by the words of the true answer."""
    windowed = f"{plural(test['windowed'], 'test question')} had a text that was read in several windows."
    intro = f"By how many words the first true answer has, where there is one. {windowed}"
    return f"{intro}\n\n{_table('Words of the answer', test['by_answer_words'])}"


def _table(head: str, parts: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for part in parts:
        cells = [in_brackets(part["intervals"][name]) for name in ("f1", "exact_match")]
        lines.append((escape(part["name"]) or "–", f"{part['rows']:,}", *cells))
    interval = f"{LEVEL:.0%} interval"
    return table((head, "Questions", f"F1 ({interval})", f"Exact match ({interval})"), lines, numbers=[1])


def _worst_answers(
    test: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], kept: Mapping[str, Mapping[str, Any]]
) -> str:
    if not shown:
        return "None: all answers of test are right."
    wrong = test["rows"] - test["exact"]
    which = f"these {WORST} are the furthest off" if wrong > len(shown) else "the furthest off come first"
    intro = (
        f"{plural(wrong, 'answer of test is', 'answers of test are')} not right word for word; {which}. In the "
        "text, what was given (or would have been) is bold. Where an answer looks right, look whether the true one in "
        "the data is, and whether more than one should be accepted."
    )
    lines = [_line(record, kept.get(record["id"], {})) for record in shown]
    return f"{intro}\n\n{table(('Question', 'Given', 'True', 'In the text', 'Row'), lines)}"


def _line(record: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, ...]:
    """Question, answers, and what stands around the one that was given."""
    question = row.get("question")
    given = escape(shorten(record["prediction"], LETTERS)) or "*none*"
    accepted = "; ".join(escape(shorten(text, LETTERS)) for text in dict.fromkeys(record["label"])) or "*none*"
    asked = "*not kept*" if question is None else escape(shorten(question, LETTERS))
    return asked, given, accepted, _excerpt(record, row.get("context")), escape(record["id"])


def _excerpt(record: Mapping[str, Any], context: str | None) -> str:
    """What stands around the best span, which is bold."""
    if context is None or record["start"] is None or not record["best"]:
        return "–"
    start, end = record["start"], record["start"] + len(record["best"])
    before, after = context[max(0, start - AROUND) : start], context[end : end + AROUND]
    before = before.partition(" ")[2] if start > AROUND and " " in before else before
    after = after.rpartition(" ")[0] if end + AROUND < len(context) and " " in after else after
    cut = ("… " if start > AROUND else "", " …" if end + AROUND < len(context) else "")
    blanks = tuple(" " if letter.isspace() else "" for letter in (before[-1:], after[:1]))
    answer = escape(shorten(record["best"], LETTERS))
    return bold(answer, before=cut[0] + escape(before) + blanks[0], after=blanks[1] + escape(after) + cut[1])
