"""How near is a text that was given to those that were asked for?

Exact match and F1 over words, after the normalisation of SQuAD's official scripts (Rajpurkar et al. 2016, "SQuAD:
100,000+ Questions for Machine Comprehension of Text"; Rajpurkar et al. 2018, "Know What You Don't Know", for questions
without an answer): lower case, no ASCII punctuation, none of the articles a, an and the, single blanks. The articles
are English; those of another language count as words, as in the official scripts. Where no blanks part words, as in
Chinese, F1 sees one word.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graftkit.metrics.intervals import Statistic
from graftkit.metrics.sums import Scoring

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
HEADLINES = ("f1", "exact_match")

Records = Sequence[Mapping[str, Any]]


def normalise(text: str) -> str:
    """The words of an answer that count: punctuation goes before articles, so that "a." is one."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def exact(given: str, answers: Sequence[str]) -> float:
    """1 where a text is one of the accepted ones, else 0; no accepted answer means that none must be given."""
    return float(normalise(given) in _accepted(answers))


def f1(given: str, answers: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of words, each as often as it stands, with the nearest answer.

    Where either has no words, 1 if the other has none either, else 0.
    """
    words = normalise(given).split()
    return max(_f1(words, accepted.split()) for accepted in _accepted(answers))


def _accepted(answers: Sequence[str]) -> list[str]:
    """The accepted answers, normalised; one of articles and punctuation alone is none, as in SQuAD 2.0's script."""
    return [text for text in map(normalise, answers) if text] or [""]


def _f1(given: Sequence[str], accepted: Sequence[str]) -> float:
    if not given or not accepted:
        return float(given == accepted)
    same = (Counter(given) & Counter(accepted)).total()
    return 2 * same / (len(given) + len(accepted))


# scores of many


def sums(records: Records) -> np.ndarray:
    """(rows, 8): exact match and F1 of rows with an answer and of those without, how many, loss and targets."""
    found = np.zeros((len(records), 8))
    for row, record in zip(found, records, strict=True):
        place = 0 if record["label"] else 3
        row[place : place + 3] = (
            exact(record["prediction"], record["label"]),
            f1(record["prediction"], record["label"]),
            1,
        )
        row[6:] = record["loss"], 2 * record["windows"]
    return found


def _share(top: Sequence[int], bottom: Sequence[int]) -> Statistic:
    """The sum of some totals by that of others; NaN where the latter is 0."""

    def share(totals: np.ndarray) -> np.ndarray:
        above, below = (totals[:, list(columns)].sum(axis=1) for columns in (top, bottom))
        return np.divide(above, below, out=np.full(len(totals), np.nan), where=below > 0)

    return share


ALL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "f1": _share((1, 4), (2, 5)),
    "exact_match": _share((0, 3), (2, 5)),
    "log_loss": _share((6,), (7,)),
}
BY_KIND = {
    "f1_with_answer": _share((1,), (2,)),
    "exact_match_with_answer": _share((0,), (2,)),
    "right_without_answer": _share((3,), (5,)),
}

SCORING = Scoring(sums, ALL, frozenset({"log_loss"}), frozenset({"f1", "exact_match"}))
"""Of questions that all have an answer: F1, exact match, and the loss per start or end of a window."""

SCORING_BY_KIND = Scoring(sums, ALL | BY_KIND, SCORING.lower, SCORING.shares)
"""Of questions of which some have no answer: both kinds by themselves, too."""


def scoring_of(*splits: Records) -> Scoring:
    """The scores that can be told of each of these splits."""
    both = all(len({bool(record["label"]) for record in records}) == 2 for records in splits)
    return SCORING_BY_KIND if both else SCORING


def best_threshold(gaps: Sequence[float], answers: Sequence[Sequence[str]], spans: Sequence[str]) -> float:
    """The largest gap up to which an answer is given, for the best F1 of all rows (SQuAD 2.0's `find_best_thresh`).

    `gaps`, (rows,): the score of no answer less that of the best span; `spans`: those spans; `answers`: the accepted
    ones of each row. It lies half way between two gaps, below all of them where it is best never to answer, and is the
    highest gap where it is best always to answer. Of several, that which is nearest to 0.
    """
    order = np.argsort(gaps, kind="stable")
    gap = np.asarray(gaps, np.float64)[order]
    gain = np.array([f1(spans[i], answers[i]) - f1("", answers[i]) for i in order])
    total = np.concatenate([[0.0], np.cumsum(gain)])  # of the first 0, 1, ... rows in order being answered
    cuts = np.concatenate([[gap[0] - 1], (gap[:-1] + gap[1:]) / 2, [gap[-1]]])
    apart = np.concatenate([[True], gap[:-1] < gap[1:], [True]])  # rows of the same gap are answered together
    best = np.flatnonzero(apart & (total > total[apart].max() - 1e-9))
    return float(cuts[best[np.argmin(np.abs(cuts[best]))]])
