"""What does the report of a tagger of words say?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from graftkit.errors import UserError
from graftkit.metrics import classification, tagging
from graftkit.metrics.intervals import LEVEL
from graftkit.metrics.tagging import PLAIN
from graftkit.report import baselines, curves, figures, rows
from graftkit.report.html import Addition
from graftkit.report.markdown import (
    bold,
    escape,
    number,
    percent,
    plural,
    rounded,
    table,
    title,
    told,
    with_interval,
)
from graftkit.report.reading import Reading
from graftkit.report.sections import apart, look

MATRIX_TAGS = 25  # a wider confusion matrix cannot be read
PAIRS = 20
WORST = 20
AROUND = 6  # words that are shown on each side of a wrong one
FEW = 20  # entities of a type in test, below which its own scores are rough
MEANINGS = {
    "entity_f1": "one number for precision and recall: an entity counts if all its words and its type are right",
    "entity_precision": "of the entities that it marks, the share that is right",
    "entity_recall": "of the entities that there are, the share that it finds",
    "entity_macro_f1": "F1, averaged over types: each type counts the same, however rare",
    "accuracy": "share of words that get the right tag",
    "balanced_accuracy": "recall, averaged over tags: each tag counts the same, however rare",
    "macro_f1": "F1, averaged over tags: each tag counts the same, however rare",
    "weighted_f1": "F1, averaged over tags by their words: frequent tags count more",
    "matthews": "agreement beyond chance: 1 is perfect, 0 is guessing",
    "log_loss": "price of being wrong and sure of it, per word: 0 is perfect, lower is better",
}


def measure(reading: Reading, split: str) -> dict[str, Any]:
    """All that metrics.json says of a split. UserError for an unknown headline."""
    labels, records = reading.labels, reading.records[split]
    known = tagging.headlines(labels)
    headline = reading.run.get("headline") or known[0]
    if headline not in known:
        raise UserError(f"no headline {headline!r} for these tags; choose one of {', '.join(known)}")
    truth, predicted = ([record[name] for record in records] for name in ("label", "prediction"))
    numbered = reading.groups(split)
    groups = None if numbered is None else numbered.tolist()
    scores, classes = tagging.intervals(truth, predicted, labels, groups)
    intervals = {name: asdict(interval) for name, interval in scores.items()}
    scheme = tagging.scheme_of(labels)
    confusion = tagging.word_confusion(truth, predicted, labels)
    if scheme == PLAIN:
        lines = [{"type": line.pop("label"), **line} for line in classification.per_class(confusion, labels)]
    else:
        lines = tagging.per_type(tagging.tally(truth, predicted, scheme))
    of_type = [{name: asdict(interval) for name, interval in found.items()} for found in classes]
    count = None if groups is None else {"column": reading.settings.get("group"), "count": len(set(groups))}
    return {
        "rows": len(records),
        "words": sum(map(len, truth)),
        "scheme": scheme,
        "headline": {"name": headline, **intervals[headline]},
        "scores": tagging.score_records(records, labels),
        "intervals": intervals,
        "per_type": [line | {"intervals": found} for line, found in zip(lines, of_type, strict=True)],
        "confusion": {"labels": list(labels), "counts": confusion.tolist()},
        "sentences_without_error": sum(one == other for one, other in zip(truth, predicted, strict=True)),
        "malformed": tagging.count_malformed(predicted, scheme),
        **({} if count is None else {"groups": count}),
    }


def summary(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Three sentences: how good and against what, how much of it, and what to watch out for."""
    test = metrics["test"]
    doubt = baselines.doubt(metrics.get("baselines"))
    start, who = (f"**{doubt}**: on", "it") if doubt else ("On", "this model")
    against = ""
    if found := metrics.get("baselines"):
        answer = baselines.nearest(found)
        name = "the simple answer" if doubt else baselines.WORDS[answer["name"]]
        value, low, high = rounded(answer["headline"])
        against = f"; {name} reaches {value} ({low} to {high})"
    does = "tags words" if test["scheme"] == PLAIN else "finds entities"
    name = title(test["headline"]["name"])
    sentences = [
        f"{start} {plural(test['rows'], 'test sentence')} ({plural(test['words'], 'word')}){apart(run)}, {who} "
        f"{does} with {'an' if name[0] in 'aeiou' else 'a'} {name} of **{with_interval(test['headline'])}**, "
        f"where 1 is perfect{against}.",
        _how_much(test),
    ]
    if cautions := _cautions(test, run):
        sentences.append(f"**Watch out:** {'; '.join(cautions)}.")
    return " ".join(sentences)


def worst(records: Sequence[Mapping[str, Any]], most: int = WORST) -> list[Mapping[str, Any]]:
    """The records of the sentences with a wrong word, those of the highest loss."""
    return rows.worst(records, most)


def chapters(
    metrics: Mapping[str, Any],
    run: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    kept: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """The report's chapters on a tagger, by heading; `shown` are the worst records, and `kept` their rows by id."""
    test = metrics["test"]
    return {
        "Scores": _scores(metrics, run),
        "Tags" if test["scheme"] == PLAIN else "Entity types": _types(test),
        "Confusions": _confusions(test),
        "Worst sentences": _worst_sentences(test, shown, kept),
    }


def additions(
    metrics: Mapping[str, Any],
    reading: Reading,
    rows: Mapping[str, Mapping[str, Any]],
    log: Sequence[Mapping[str, Any]],
) -> dict[str, Addition]:
    """What the page shows besides: curves of training, bars behind F1, and a shaded matrix."""
    counts = _counts(metrics["test"])
    added = {"Entity types": Addition(cells=figures.bar), "Tags": Addition(cells=figures.bar)}
    if len(counts) <= MATRIX_TAGS:
        added["Confusions"] = Addition(cells=figures.shade(counts))
    return added | curves.additions(metrics, reading.run, log)


# what it says


def _counts(split: Mapping[str, Any]) -> np.ndarray:
    return np.array(split["confusion"]["counts"])  # (labels, labels), rows are the truth


def _totals(test: Mapping[str, Any]) -> tuple[int, int, int]:
    """Entities (or words) that are right, that there are, and that were marked."""
    lines = test["per_type"]
    truth, given = (sum(line[name] for line in lines) for name in ("support", "predicted"))
    return round(sum(line["recall"] * line["support"] for line in lines)), truth, given


def _how_much(test: Mapping[str, Any]) -> str:
    right, truth, given = _totals(test)
    whole = test["sentences_without_error"]
    clean = f"{whole:,} of the {plural(test['rows'], 'sentence')} ({percent(whole, test['rows'])}) have no wrong word"
    if test["scheme"] == PLAIN:
        return f"{right:,} of the {plural(truth, 'word')} get the right tag ({percent(right, truth)}); {clean}."
    found = f"It finds {right:,} of the {plural(truth, 'entity', 'entities')} ({percent(right, truth)})"
    return f"{found}, and {given - right:,} of the {given:,} that it marks are wrong; {clean}."


def _cautions(test: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What a reader should know before trusting the score, as phrases."""
    cautions = []
    plain = test["scheme"] == PLAIN
    kind, things = ("tag", "words") if plain else ("type", "entities")
    known = [line for line in test["per_type"] if line["support"]]
    if not known:
        cautions.append("test has no entity, so nothing was measured")
    elif (weakest := min(known, key=lambda line: line["f1"]))["f1"] < 1:
        cautions.append(f"the weakest {kind} is “{escape(weakest['type'])}” (F1 {number(weakest['f1'], 2)})")
    few = [line["support"] for line in known if line["support"] < FEW]
    if few:
        which = plural(len(few), f"{kind} has", f"{kind}s have")
        low = f"fewer than {FEW} {things} in test (down to {min(few)})"
        cautions.append(f"{which} {low}, so scores of a single {kind} are rough")
    if wrong := test["malformed"]["words"]:
        cautions.append(f"{plural(wrong, 'word')} got a tag that cannot stand where it does")
    unknown = look(run, "data", "splits", "test", "malformed")
    if unknown:
        cautions.append(f"{plural(unknown, 'true tag')} of test cannot stand where it does")
    if run.get("warnings"):
        cautions.append(f"the run gave {plural(len(run['warnings']), 'warning')} (below)")
    return cautions


def _scores(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    scheme = metrics["test"]["scheme"]
    counted = {
        PLAIN: "Tags are plain, so each word is scored by itself.",
        "BIO": "Entities are counted as seqeval counts: an I- tag without a B- before it begins an entity.",
    }.get(scheme, f"Entities are counted as seqeval counts in its strict mode for {scheme}.")
    return f"{rows.scores(metrics, run, MEANINGS)}\n\n{counted}"


def _types(test: Mapping[str, Any]) -> str:
    """Precision, recall and F1 of each type (or plain tag) with their intervals, the weakest first."""
    lines = []
    for line in sorted(test["per_type"], key=lambda line: (line["support"] == 0, line["f1"])):
        found = line["intervals"]
        cells = [
            told(line[name], found[name]) if name in found else ("–", "–") for name in ("precision", "recall", "f1")
        ]
        (precision, of_precision), (recall, of_recall), (f1, of_f1) = cells
        counts = (f"{line['support']:,}", f"{line['predicted']:,}")
        lines.append((escape(line["type"]), precision, recall, f1, of_f1, *counts, of_precision, of_recall))
    thing, things = ("tag", "words") if test["scheme"] == PLAIN else ("type", "entities")
    interval = f"{LEVEL:.0%} interval"
    header = (thing.capitalize(), "Precision", "Recall", "F1", f"F1: {interval}", "In test", "Predicted")
    header += (f"Precision: {interval}", f"Recall: {interval}")
    intro = (
        f"Weakest first. Precision: of the {things} that were given this {thing}, the share that is right. Recall: of "
        f"the {things} of this {thing}, the share that was found. F1: one number for both. “–”: nothing to tell from. "
        f"The fewer {things}, the wider the interval: two {thing}s whose intervals overlap much may be equally good."
    )
    return f"{intro}\n\n{table(header, lines, numbers=[1, 2, 3, 5, 6])}" if lines else "Test has no entity."


def _confusions(test: Mapping[str, Any]) -> str:
    """Which tag of a word is taken for which."""
    counts, names = _counts(test), [escape(name) for name in test["confusion"]["labels"]]
    parts = []
    if len(names) <= MATRIX_TAGS:
        parts.append(
            "Each line is a true tag, each column the tag that its test words were given; right ones are bold."
        )
        lines = []
        for place, (name, row) in enumerate(zip(names, counts.tolist(), strict=True)):
            cells = [f"{count:,}" if count else "·" for count in row]
            cells[place] = f"**{row[place]:,}**"
            lines.append((name, *cells))
        parts.append(table(("", *names), lines, numbers=range(1, len(names) + 1)))
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    truth, given = np.nonzero(wrong)
    found = sorted(zip(truth.tolist(), given.tolist(), wrong[truth, given].tolist(), strict=True), key=lambda p: -p[2])
    if not found:
        return "\n\n".join([*parts, "No test word was given a wrong tag."])
    listed = [(names[i], names[j], f"{n:,}", percent(n, counts[i].sum())) for i, j, n in found[:PAIRS]]
    left = f", the {PAIRS} most frequent of {len(found):,}" if len(found) > PAIRS else ""
    header = ("True tag", "Taken for", "Words", "Share of the tag")
    return "\n\n".join([*parts, f"Which tag is taken for which{left}:", table(header, listed, numbers=[2, 3])])


def _worst_sentences(
    test: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]]
) -> str:
    if not shown:
        return "None: all words of test were given the right tag."
    wrong = test["rows"] - test["sentences_without_error"]
    which = f"these {WORST} have the highest loss" if wrong > len(shown) else "the highest loss comes first"
    intro = (
        f"{plural(wrong, 'test sentence has', 'test sentences have')} a wrong word; {which}. Wrong words are bold, "
        "with the tag that they were given, then the true one. Where a word looks right, look whether the true tag in "
        "the data is."
    )
    lines = [(_marked(record, rows.get(record["id"], {})), escape(record["id"])) for record in shown]
    return f"{intro}\n\n{table(('Sentence', 'Row'), lines)}"


def _marked(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The wrong words of a sentence with what stands near them."""
    pairs = list(zip(record["prediction"], record["label"], strict=True))
    wrong = [place for place, (given, truth) in enumerate(pairs) if given != truth]
    if row.get("words") is None:
        named = ", ".join(f"word {place + 1} ({_tags(*pairs[place])})" for place in wrong[:PAIRS])
        return f"*not kept*: {named}"
    words = json.loads(row["words"])
    near = {i for place in wrong[:PAIRS] for i in range(place - AROUND, place + AROUND + 1)}
    parts = []
    for place, word in enumerate(words):
        if place in wrong[:PAIRS]:
            parts.append(f"{bold(escape(word))} ({_tags(*pairs[place])})")
        elif place in near:
            parts.append(escape(word))
        elif not parts or parts[-1] != "…":
            parts.append("…")
    return " ".join(parts)


def _tags(given: str, truth: str) -> str:
    return f"{escape(given)}, true: {escape(truth)}"
