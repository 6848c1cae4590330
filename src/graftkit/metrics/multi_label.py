"""How good is it, where a row has any number of labels?

Each row and label is one question. Scores of the answers follow from how often a label is right, true and given
(micro: over all labels together; macro: a mean over labels); average precision follows from the probabilities alone,
before a threshold turns them into answers. They equal scikit-learn's (`tests/test_multi_label_metrics.py`); of a label
that no row has or is given, a mean over labels says nothing, as in `metrics.classification`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graftkit.metrics import classification, tagging, thresholds
from graftkit.metrics.classification import Counts
from graftkit.metrics.intervals import LEVEL, RESAMPLES, Interval, Statistic
from graftkit.metrics.sums import Records, Scoring, score
from graftkit.metrics.tagging import Tally

HALF = 0.5  # the threshold of a label as long as nothing was chosen
HOW = {"level": LEVEL, "resamples": RESAMPLES, "seed": 0}
ENOUGH = 5  # rows of dev with a label, and without it, from which on it gets a threshold of its own

HEADLINES = ("micro_f1", "macro_f1", "subset_accuracy", "label_accuracy")
"""The scores that may pick the best checkpoint, the usual one first: those that answers alone decide."""

COUNTED = {
    "micro_f1": tagging.f1,
    "macro_f1": classification.macro_f1,
    "micro_precision": tagging.precision,
    "micro_recall": tagging.recall,
}
"""The scores that follow from `Counts` of labels."""


def scoring(labels: Sequence[str]) -> Scoring:
    """The scores of answers. Sums: `Counts` side by side, then rows, rows without an error, and the loss."""

    def sums(records: Records) -> np.ndarray:
        truth, given = (multi_hot([record[name] for record in records], labels) for name in ("label", "prediction"))
        loss = np.array([record["loss"] for record in records], np.float64)
        right = (truth == given).all(axis=1)
        return np.column_stack([truth & given, truth, given, np.ones(len(records)), right, loss]).astype(np.float64)

    def counted(one: Callable[[Counts], np.ndarray]) -> Statistic:
        return lambda totals: one(_counts(totals))

    return Scoring(
        sums,
        {name: counted(one) for name, one in COUNTED.items()}
        | {
            "subset_accuracy": lambda totals: totals[:, -2] / totals[:, -3],
            "label_accuracy": lambda totals: 1 - _wrong(totals) / (totals[:, -3] * len(labels)),
            "log_loss": lambda totals: totals[:, -1] / (totals[:, -3] * len(labels)),
        },
        lower=frozenset({"log_loss"}),
        shares=frozenset({"subset_accuracy", "label_accuracy"}),
    )


def _counts(totals: np.ndarray) -> Counts:
    return Counts(*np.split(totals[:, :-3], 3, axis=-1))


def _wrong(totals: np.ndarray) -> np.ndarray:
    """Labels that are given and not true, or true and not given."""
    counts = _counts(totals)
    return (counts.truth + counts.predicted - 2 * counts.right).sum(axis=-1)


def scores(records: Records, labels: Sequence[str]) -> dict[str, float]:
    """Every score of a split of at least one row."""
    return score(scoring(labels), records) | {
        name: interval.value for name, interval in average_precisions(records, labels).items()
    }


def multi_hot(sets: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """Which row has which label, (rows, labels) bool."""
    place = {label: i for i, label in enumerate(labels)}
    has = np.zeros((len(sets), len(labels)), bool)
    has[
        np.repeat(np.arange(len(sets)), [len(row) for row in sets]),
        np.array([place[label] for row in sets for label in row], np.int64),
    ] = True
    return has


# of each label


def per_label(records: Records, labels: Sequence[str], groups: np.ndarray | None = None) -> list[dict[str, Any]]:
    """One line per label: precision, recall, F1 and average precision with `intervals`, and how many rows have it.

    A score that no row tells has no interval; without a row that has the label, average precision is None.
    """
    tally = _tally(records, labels, groups)
    lines = tagging.per_type(tally)
    found = tagging.entity_intervals(tally, HOW).classes
    truth, probabilities = multi_hot([record["label"] for record in records], labels), stated(records)
    for place, (line, intervals) in enumerate(zip(lines, found, strict=True)):
        line["label"] = line.pop("type")
        line["intervals"] = intervals
        area = _average_precision(probabilities[:, place], truth[:, place], groups)
        line["average_precision"] = None if area is None else area.value
        if area is not None:
            intervals["average_precision"] = area
    return lines


def whole_intervals(records: Records, labels: Sequence[str], groups: np.ndarray | None = None) -> dict[str, Interval]:
    """The intervals of `COUNTED`; unlike those of `sums`, they also tell of answers that are all right."""
    found = tagging.entity_intervals(_tally(records, labels, groups), HOW).scores
    return {name: found[f"entity_{name.removeprefix('micro_')}"] for name in COUNTED}


def _tally(records: Records, labels: Sequence[str], groups: np.ndarray | None) -> Tally:
    """The labels of each row (or group), counted as a tagger's types are."""
    from scipy.sparse import csr_array

    truth, given = (multi_hot([record[name] for record in records], labels) for name in ("label", "prediction"))
    each = np.hstack([truth & given, truth, given]).astype(np.float64)
    if groups is not None:
        numbers = np.unique(groups, return_inverse=True)[1]
        added = np.zeros((numbers.max() + 1, each.shape[1]))
        np.add.at(added, numbers, each)
        each = added
    kinds, sizes = np.unique(each, axis=0, return_counts=True)
    return Tally(list(labels), csr_array(kinds), sizes)


# how well probabilities rank


def stated(records: Records) -> np.ndarray:
    """The probabilities of records, (rows, labels)."""
    return np.stack([record["probabilities"] for record in records])


def average_precisions(
    records: Records, labels: Sequence[str], groups: np.ndarray | None = None
) -> dict[str, Interval]:
    """The mean over the labels that a row has, and that of all rows and labels in one ranking (micro).

    Their intervals are those of `thresholds.intervals`: from how much each row (or group) would move the score.
    """
    truth, probabilities = multi_hot([record["label"] for record in records], labels), stated(records)
    units = np.arange(len(records)) if groups is None else groups
    together = _average_precision(probabilities.ravel(), truth.ravel(), np.repeat(units, len(labels)))
    return {
        "average_precision": thresholds.mean_average_precision(probabilities, truth, units),
        "micro_average_precision": together or Interval(0.0, 0.0, 0.0, LEVEL, "constant"),
    }


def _average_precision(probabilities: np.ndarray, having: np.ndarray, groups: np.ndarray | None) -> Interval | None:
    """Of one ranking, (rows,); None where no row has the label."""
    found = thresholds.curve(probabilities, having)
    if found is None:
        return Interval(1.0, 1.0, 1.0, LEVEL, "constant") if having.any() else None
    return thresholds.intervals(found, probabilities, having, groups)["average_precision"]


# from which probability on a row is given a label


def choose_thresholds(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The threshold of each label, (labels,), and whether it is its own, (labels,) bool: (rows, labels) each, of dev.

    A label that `ENOUGH` rows have, and as many lack, gets the threshold of its best F1 (Lipton et al. 2014, "Optimal
    Thresholding of Classifiers to Maximize F1 Measure"). With fewer, the best is mostly chance, and such labels share
    the threshold of the best micro F1 of all labels; why so few are enough: docs/results.md. A threshold lies half
    way between the last probability that reaches it and the next one below, so that no row stands on the edge.
    """
    own = np.minimum(truth.sum(axis=0), (~truth).sum(axis=0)) >= ENOUGH
    shared = _best_threshold(probabilities.ravel(), truth.ravel())
    each = [
        _best_threshold(probabilities[:, label], truth[:, label]) if own[label] else shared
        for label in range(truth.shape[1])
    ]
    return np.array(each), own


def _best_threshold(probabilities: np.ndarray, having: np.ndarray) -> float:
    found = thresholds.curve(probabilities.astype(np.float64), having)
    if found is None:  # there is nothing to tell apart
        return HALF
    best = int(found.f1.argmax())
    below = found.threshold[best + 1] if best + 1 < len(found.threshold) else 0.0
    return float(found.threshold[best] + below) / 2


def given(probabilities: np.ndarray, limits: np.ndarray, labels: Sequence[str]) -> list[list[str]]:
    """The labels of each row whose probability, (rows, labels), reaches their threshold, (labels,)."""
    return [[labels[i] for i in np.flatnonzero(row)] for row in probabilities >= limits]
