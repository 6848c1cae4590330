"""What does the report of a writer of texts say?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from graftkit.metrics.generation import HEADLINES, SCORING, chrf, count, signatures
from graftkit.metrics.intervals import LEVEL
from graftkit.metrics.sums import intervals
from graftkit.report import curves, rows
from graftkit.report.html import Addition
from graftkit.report.markdown import escape, in_brackets, number, percent, plural, shorten, table, title
from graftkit.report.reading import Reading
from graftkit.report.sections import look
from graftkit.report.simple_rows import SimpleRows

WORST = 20
FEW = 30  # rows of a third, below which its score says little
SHOWN = 300  # letters of a text in a table
REPORTED = tuple(name for name in HEADLINES if name != "log_loss")
MEANINGS = {
    "chrf": "how far the letters agree with the true text, in runs of up to 6: 100 is the true text, 0 has none of it",
    "bleu": "how far words agree, in runs of up to 4, and whether the texts are long enough: 100 is the true text",
    "rouge_1": "words in common with the true text, in any order, from 0 to 100; an average over texts",
    "rouge_2": "pairs of neighbouring words in common, from 0 to 100",
    "rouge_l": "longest row of words in common, in their order, from 0 to 100",
    "exact_match": "share of texts that are the true text, letter for letter but for blanks",
    "log_loss": "price of being wrong and sure of it, per token of the true text: 0 is perfect, lower is better",
}
HOW = {
    "end": "the model ended it by itself",
    "length": "it was stopped at the longest that is allowed",
    "time": "it was stopped by the clock (--generate.max_seconds)",
}


def measure(reading: Reading, split: str) -> dict[str, Any]:
    """All that metrics.json says of a split. UserError for an unknown headline."""
    seen, records = _as_told(reading), reading.records[split]
    found = rows.measure(seen, split, SCORING, REPORTED)
    ended = Counter(record["ended"] for record in records)
    return found | {
        "tokens": sum(record["tokens"] for record in records),
        "exact": sum(record["prediction"].split() == record["label"].split() for record in records),
        "empty": sum(not record["prediction"].strip() for record in records),
        "ended": {how: ended[how] for how in HOW},
        "by_length": _thirds(seen, split, found["headline"]["name"]),
        "sacrebleu": signatures(),
    }


@dataclass(frozen=True)
class SimpleTexts(SimpleRows):
    """The part of the report on simple answers, which are texts and have no loss."""

    def measure(self, reading: Reading) -> dict[str, Any] | None:
        """As `SimpleRows`, by a score of texts where the run was led by the loss."""
        return super().measure(_as_told(reading))


def summary(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Three sentences: how good and against what, how many texts are right, and what to watch out for."""
    test = metrics["test"]
    name = test["headline"]["name"]
    perfect = "where 1 would be all true texts" if name == "exact_match" else "where 100 would be the true texts"
    exact = f"{test['exact']:,} of the {plural(test['rows'], 'text')} ({percent(test['exact'], test['rows'])}) are "
    sentences = [rows.opening(metrics, run, "writes texts", perfect=perfect), f"{exact}the true text to the letter."]
    if cautions := _cautions(test, run):
        sentences.append(f"**Watch out:** {'; '.join(cautions)}.")
    return " ".join(sentences)


def worst(records: Sequence[Mapping[str, Any]], most: int = WORST) -> list[Mapping[str, Any]]:
    """The records of the texts that have least in common with the true ones, by chrF, then by loss."""
    wrong = [record for record in records if record["prediction"].split() != record["label"].split()]
    if not wrong:
        return []
    scores = chrf(count(wrong)).tolist()
    ranked = sorted(zip(scores, wrong, strict=True), key=lambda pair: (pair[0], -pair[1]["loss"]))
    return [record for _, record in ranked[:most]]


def chapters(
    metrics: Mapping[str, Any],
    run: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    rows_by_id: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """The report's chapters on a writer, by heading; `shown` are the worst records, and `rows_by_id` their rows."""
    return {
        "Scores": _scores(metrics, run),
        "What was cut": _cut(metrics, run),
        "By length of the source": _lengths(metrics["test"]),
        "Worst texts": _worst_texts(metrics["test"], shown, rows_by_id),
    }


def additions(
    metrics: Mapping[str, Any],
    reading: Reading,
    rows_by_id: Mapping[str, Mapping[str, Any]],
    log: Sequence[Mapping[str, Any]],
) -> dict[str, Addition]:
    """What the page shows besides: curves of training."""
    return curves.additions(metrics, reading.run, log)


# what it says


def _as_told(reading: Reading) -> Reading:
    """The reading with a score of texts as its headline: a loss may choose the epoch, and says little to people."""
    if reading.run.get("headline") in REPORTED:
        return reading
    return replace(reading, run={**reading.run, "headline": REPORTED[0]})


def _thirds(reading: Reading, split: str, name: str) -> list[dict[str, Any]]:
    """The headline of the third of the rows with the shortest sources, the middle, and the longest ones."""
    lengths = reading.measures(split).get("source_tokens")
    if lengths is None:
        return []
    records, scoring = reading.records[split], replace(SCORING, statistics={name: SCORING.statistics[name]})
    groups, edges = reading.groups(split), np.quantile(lengths, [1 / 3, 2 / 3], method="inverted_cdf")
    place, found = np.searchsorted(edges, lengths), []
    for third in range(3):
        chosen = np.flatnonzero(place == third)
        if len(chosen):
            held = [records[i] for i in chosen]
            scored = intervals(scoring, held, None if groups is None else groups[chosen])[name]
            low, high = int(lengths[chosen].min()), int(lengths[chosen].max())
            found.append({"from": low, "to": high, "rows": len(chosen), "score": {"name": name, **asdict(scored)}})
    return found


def _cautions(test: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What a reader should know before trusting the score, as phrases."""
    cautions, count_of = [], test["ended"]
    texts = test["rows"]
    if count_of["time"]:
        cautions.append(
            f"{plural(count_of['time'], 'text')} ({percent(count_of['time'], texts)}) may have been stopped by the "
            "clock, so another machine would give other scores"
        )
    if count_of["length"]:
        cautions.append(
            f"{plural(count_of['length'], 'text')} ({percent(count_of['length'], texts)}) had not ended at the longest "
            "that is allowed"
        )
    if test["empty"]:
        cautions.append(f"{plural(test['empty'], 'text is', 'texts are')} empty")
    cut = look(run, "lengths", "cut", "test") or {}
    for name in ("sources", "targets"):
        if cut.get(name):
            cautions.append(f"{percent(cut[name], cut['rows'])} of the {name} of test are longer than the model takes")
    if run.get("warnings"):
        cautions.append(f"the run gave {plural(len(run['warnings']), 'warning')} (below)")
    return cautions


def _scores(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    names = metrics["test"]["sacrebleu"]
    parts = [
        rows.scores(metrics, run, MEANINGS),
        f"BLEU and chrF are those of sacreBLEU; only scores with the same signature can be compared: BLEU "
        f"`{names['bleu']}`, chrF `{names['chrf']}`. BLEU tells words apart at blanks and signs, so it says little of "
        "languages without blanks, such as Chinese; chrF does. ROUGE counts words as rouge-score does without its "
        "stemmer, with the letters of every script.",
    ]
    if run.get("headline") == "log_loss":
        parts.append("The weights that are kept are those of the lowest loss on dev; no text was written before.")
    return "\n\n".join(parts)


def _cut(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Which texts the model saw or learnt in part, and how those that it wrote came to their end."""
    test, parts = metrics["test"], []
    cut, limits = look(run, "lengths", "cut"), look(run, "lengths")
    if cut:
        lines = [
            (
                escape(split),
                *(f"{found[side]:,} ({percent(found[side], found['rows'])})" for side in ("sources", "targets")),
            )
            for split, found in cut.items()
        ]
        header = ("Split", "Sources cut", "Targets cut")
        parts += [
            f"The model reads at most {limits['max_length']:,} tokens (words or parts of words) of a source, and "
            f"learns at most {limits['targets']['max_length']:,} of a target. The rest of a longer one is cut off.",
            table(header, lines, numbers=[1, 2]),
        ]
    made = run.get("generation") or {}
    if made:
        beams = "the likeliest token each time" if made["beams"] == 1 else f"beam search with {made['beams']} beams"
        beyond = made["longer_references"]
        longer = "no true text of test is" if not beyond else f"{plural(beyond, 'true text')} of test are"
        parts.append(
            f"Texts are written by {beams}, of at most {plural(made['max_new_tokens'], 'token')} "
            f"(--generate.max\\_new\\_tokens); {longer} longer than that."
        )
    lines = [
        (HOW[how][0].upper() + escape(HOW[how][1:]), f"{number_of:,}", percent(number_of, test["rows"]))
        for how, number_of in test["ended"].items()
        if number_of
    ]
    parts.append(table(("How a text of test ended", "Texts", "Share"), lines, numbers=[1, 2]))
    return "\n\n".join(parts)


def _lengths(test: Mapping[str, Any]) -> str:
    """The headline by thirds of the length of the source."""
    if not test["by_length"]:
        return "Not made: the run has no table of measures."
    name = title(test["headline"]["name"])
    lines = [
        (f"{third['from']:,} to {third['to']:,}", f"{third['rows']:,}", in_brackets(third["score"]))
        for third in test["by_length"]
    ]
    header = ("Tokens of the source", "Texts", f"{name} ({LEVEL:.0%} interval)")
    intro = "The test texts in three parts, from those with the shortest sources to those with the longest."
    few = [third for third in test["by_length"] if third["rows"] < FEW]
    doubt = f"\n\nA part with fewer than {FEW} texts says little." if few else ""
    return f"{intro}\n\n{table(header, lines, numbers=[1])}{doubt}"


def _worst_texts(
    test: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], rows_by_id: Mapping[str, Mapping[str, Any]]
) -> str:
    if not shown:
        return "None: all texts are the true ones."
    wrong = test["rows"] - test["exact"]
    which = f"these {len(shown)} have" if wrong > len(shown) else "first come those that have"
    intro = (
        f"{plural(wrong, 'test text differs', 'test texts differ')} from the true one; {which} least in common with it "
        "(by chrF). Look whether the true text in the data is right: there may be several good ones."
    )
    scores = chrf(count(shown)).tolist()
    lines = []
    for record, score in zip(shown, scores, strict=True):
        source = rows_by_id.get(record["id"], {}).get("source")
        read = "*not kept*" if source is None else _cell(source)
        texts = (_cell(record["prediction"]), _cell(record["label"]))
        lines.append((read, *texts, number(score, 0), escape(record["id"])))
    header = ("Source", "What the model wrote", "True text", "chrF", "Row")
    return f"{intro}\n\n{table(header, lines, numbers=[3])}"


def _cell(text: str) -> str:
    return escape(shorten(text, SHOWN)) if text.strip() else "*empty*"
