"""What does the report of a backbone that was pretrained further say?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graftkit.metrics.language import MASKED, MASKED_HEADLINES
from graftkit.report import curves, rows
from graftkit.report.filled_gaps import marked
from graftkit.report.html import Addition
from graftkit.report.markdown import escape, number, percent, plural, table
from graftkit.report.reading import Reading
from graftkit.report.sections import is_evaluation

WORST = 20
FEW = 300  # hidden tokens in test, below which scores are rough
MEANINGS = {
    "perplexity": "it is as unsure of a hidden token as if it chose among so many that are equally likely: 1 is "
    "perfect, lower is better",
    "token_accuracy": "share of hidden tokens (words, or parts of rare words) filled in right at its first guess",
    "log_loss": "the logarithm of perplexity: price of being wrong and sure of it, per hidden token; 0 is perfect",
}


def measure(reading: Reading, split: str) -> dict[str, Any]:
    """All that metrics.json says of a split. UserError for an unknown headline."""
    counts = {name: sum(record[name] for record in reading.records[split]) for name in ("tokens", "right")}
    return rows.measure(reading, split, MASKED, MASKED_HEADLINES) | counts


def summary(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """How good and against what, how much of it, what it is for, and what to watch out for."""
    test = metrics["test"]
    perfect = "where 1 is perfect" if test["headline"]["name"] == "perplexity" else "where 0 is perfect"
    sentences = [
        rows.opening(metrics, run, "fills in hidden words", perfect=perfect),
        f"It fills in {test['right']:,} of the {plural(test['tokens'], 'hidden token')} "
        f"({percent(test['right'], test['tokens'])}) right at its first guess.",
        "It is a backbone for other recipes: what counts is whether a task gains from it, which only a run with "
        "`--backbone.name` set to its folder, and one with the checkpoint that it came from, can tell.",
    ]
    if cautions := _cautions(test, run):
        sentences.append(f"**Watch out:** {'; '.join(cautions)}.")
    return " ".join(sentences)


def worst(records: Sequence[Mapping[str, Any]], most: int = WORST) -> list[Mapping[str, Any]]:
    """The records of the documents with the highest loss per hidden token."""
    return sorted(records, key=lambda record: -record["loss"] / record["tokens"])[:most]


def chapters(
    metrics: Mapping[str, Any],
    run: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    kept: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """The report's chapters, by heading; `shown` are the worst records, and `kept` their rows by id."""
    how = (
        "In dev and test, the hidden words follow from the document alone, so they are the same for all models with "
        "this tokenizer; the perplexity of a model with another tokenizer cannot be compared."
    )
    return {
        "Scores": f"{rows.scores(metrics, run, MEANINGS)}\n\n{how}",
        "Worst documents": _worst(shown, kept),
    }


def additions(
    metrics: Mapping[str, Any],
    reading: Reading,
    kept: Mapping[str, Mapping[str, Any]],
    log: Sequence[Mapping[str, Any]],
) -> dict[str, Addition]:
    """Curves of training."""
    return curves.additions(metrics, reading.run, log)


def _cautions(test: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    cautions = []
    if test["tokens"] < FEW:
        cautions.append(f"test has only {plural(test['tokens'], 'hidden token')}, so scores are rough")
    if not is_evaluation(run) and "before" not in (run.get("baselines") or {}):
        cautions.append(
            "the checkpoint had no head that fills gaps, so nothing says how well it would have filled them before"
        )
    if run.get("warnings"):
        cautions.append(f"the run gave {plural(len(run['warnings']), 'warning')} (below)")
    return cautions


def _worst(shown: Sequence[Mapping[str, Any]], kept: Mapping[str, Mapping[str, Any]]) -> str:
    intro = (
        "The highest loss per hidden token comes first. Hidden words are bold, and after each stands what the model "
        "says. Look for text that does not belong here: another language, tables, remains of markup."
    )
    lines = [
        (_shown(record, kept.get(record["id"], {})), number(record["loss"] / record["tokens"], 1), escape(record["id"]))
        for record in shown
    ]
    return f"{intro}\n\n{table(('Document', 'Loss per hidden token', 'Row'), lines, numbers=[1])}"


def _shown(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    if row.get("hidden") is None or record["words"] is None:
        return f"*not kept*: {plural(record['tokens'], 'hidden token')}, {record['right']:,} right"
    return marked(row, record, around=int(np.argmax(record["losses"])))
