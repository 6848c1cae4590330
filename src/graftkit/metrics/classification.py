"""How good is a classifier?

All scores but two follow from three counts per label (`Counts`), so that one definition serves a whole split, one
resample of it and ten thousand resamples at once. They equal scikit-learn's of the same name (`tests/test_metrics.py`).

A label that no row has and no row is given says nothing about the model, and is left out of macro F1, as scikit-learn
does when it is not told the labels. (Told them, it counts such a label as 0, and a model without an error gets less
than 1.) A label that no row has is left out of balanced accuracy. A share of nothing is 0 in `per_class`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from graftkit.metrics.intervals import LEVEL, RESAMPLES, Interval, Statistic, bca, clopper_pearson

BINS = 15  # of the calibration error, as in Guo et al. 2017


class Counts(NamedTuple):
    """Rows per label: labelled right, having the label, given the label. Each (..., labels)."""

    right: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, confusion: np.ndarray) -> Counts:
        """The counts of a confusion matrix (labels, labels) whose rows are the truth."""
        return cls(np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0))


def accuracy(counts: Counts) -> np.ndarray:
    """The share of rows labelled right."""
    return _share(counts.right.sum(axis=-1), counts.truth.sum(axis=-1))


def balanced_accuracy(counts: Counts) -> np.ndarray:
    """The mean recall of the labels that at least one row has."""
    recall = _share(counts.right, counts.truth)
    return _share(recall.sum(axis=-1), (counts.truth > 0).sum(axis=-1))


def macro_f1(counts: Counts) -> np.ndarray:
    """The mean F1 of the labels that at least one row has or is given."""
    return _share(_f1(counts).sum(axis=-1), (counts.truth + counts.predicted > 0).sum(axis=-1))


def weighted_f1(counts: Counts) -> np.ndarray:
    """The mean F1 of the labels, each weighted by the rows that have it."""
    return _share((_f1(counts) * counts.truth).sum(axis=-1), counts.truth.sum(axis=-1))


def matthews(counts: Counts) -> np.ndarray:
    """How truth and prediction correlate, -1 to 1, for any number of labels (Gorodkin 2004); 0 if one never varies."""
    rows = counts.truth.sum(axis=-1).astype(np.float64)
    together = counts.right.sum(axis=-1) * rows - (counts.truth * counts.predicted).sum(axis=-1)
    truth_alone = rows**2 - (counts.truth**2).sum(axis=-1)
    predicted_alone = rows**2 - (counts.predicted**2).sum(axis=-1)
    return _share(together, np.sqrt(truth_alone * predicted_alone))


HEADLINES = {
    "macro_f1": macro_f1,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "weighted_f1": weighted_f1,
    "matthews": matthews,
}
"""The scores that may lead a report and pick the best checkpoint: higher is better, and an interval can be given."""


def log_loss(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean of -ln(probability of the true label); a probability of 0 counts as 2.2e-16, as in scikit-learn."""
    given = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return float(-np.log(np.clip(given, np.finfo(np.float64).eps, 1)).mean())


def calibration_error(truth: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """How far confidence and accuracy lie apart on average, 0 to 1 (expected calibration error, Guo et al. 2017).

    Rows are put in `bins` equal bins, (0, 1/15] to (14/15, 1], by the probability of the predicted label.
    """
    confidence = probabilities[np.arange(len(predicted)), predicted].astype(np.float64)
    edges = np.arange(1, bins) / bins
    bin_of_row = np.searchsorted(edges, confidence, side="left")
    surplus = np.bincount(bin_of_row, weights=confidence - (predicted == truth), minlength=bins)
    return float(np.abs(surplus).sum() / len(truth))


def arrays(records: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth (rows,) and prediction (rows,) as places in `labels`, and probabilities (rows, labels), of records."""
    place = {label: i for i, label in enumerate(labels)}
    truth = np.array([place[record["label"]] for record in records], dtype=np.int64)
    predicted = np.array([place[record["prediction"]] for record in records], dtype=np.int64)
    probabilities = np.array([record["probabilities"] for record in records]).reshape(len(records), len(labels))
    return truth, predicted, probabilities


def confusion(truth: np.ndarray, predicted: np.ndarray, labels: int) -> np.ndarray:
    """How many rows with label i were given label j: (labels, labels) int64."""
    return np.bincount(truth * labels + predicted, minlength=labels * labels).reshape(labels, labels)


def scores(truth: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Every score of a split of at least one row: (rows,) int, (rows,) int, (rows, labels)."""
    counts = Counts.of(confusion(truth, predicted, probabilities.shape[1]))
    return {name: float(score(counts)) for name, score in HEADLINES.items()} | {
        "log_loss": log_loss(truth, probabilities),
        "calibration_error": calibration_error(truth, predicted, probabilities),
    }


def score_records(records: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, float]:
    """Every score of a split, from its records: at least one."""
    return scores(*arrays(records, labels))


def per_class(confusion: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """One line per label: precision, recall and F1, the rows that have it (support) and those that are given it."""
    counts = Counts.of(confusion)
    columns = {
        "label": list(labels),
        "precision": _share(counts.right, counts.predicted).tolist(),
        "recall": _share(counts.right, counts.truth).tolist(),
        "f1": _f1(counts).tolist(),
        "support": counts.truth.tolist(),
        "predicted": counts.predicted.tolist(),
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def intervals(
    confusion: np.ndarray, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """The interval of each of `HEADLINES`, by bootstrap; where all rows are right or none is, see `_at_the_edge`."""
    from scipy.sparse import csr_array

    if np.trace(confusion) in (0, confusion.sum()):
        return {name: _at_the_edge(confusion, score, level) for name, score in HEADLINES.items()}
    labels = len(confusion)
    truth, predicted = np.nonzero(confusion)
    cells = np.arange(len(truth))
    right = cells[truth == predicted]
    kinds = np.concatenate([right, cells, cells])
    places = np.concatenate([truth[right], labels + truth, 2 * labels + predicted])
    sums = csr_array((np.ones(len(kinds)), (kinds, places)), shape=(len(cells), 3 * labels))

    def of_totals(score: Callable[[Counts], np.ndarray]) -> Statistic:
        return lambda totals: score(Counts(*np.split(totals, 3, axis=-1)))

    statistics = {name: of_totals(score) for name, score in HEADLINES.items()}
    return bca(statistics, sums, confusion[truth, predicted], level=level, resamples=resamples, seed=seed)


def _at_the_edge(confusion: np.ndarray, score: Callable[[Counts], np.ndarray], level: float) -> Interval:
    """The interval where all rows are right, or none, and every resample is like the last.

    The share of right rows has an exact interval (Clopper and Pearson). Its far end, say 0.964 of 100 rows, is put into
    words of this score: what it would be if that share of each label were right, and the rest were given the other
    labels in proportion to their rows (as they were given, where none is right).
    """
    counts = Counts.of(confusion)
    right = int(counts.right.sum())
    low, high = clopper_pearson(right, int(counts.truth.sum()), level)
    share, wrong = (low, _spread(counts.truth)) if right else (high, confusion)
    supposed = np.diag(share * counts.truth) + (1 - share) * wrong
    ends = sorted((float(score(counts)), float(score(Counts.of(supposed)))))
    return Interval(float(score(counts)), *ends, level, "clopper-pearson")


def _spread(truth: np.ndarray) -> np.ndarray:
    """The rows of each label given the other labels, in proportion to their rows; evenly where no other has any."""
    other = 1 - np.eye(len(truth))
    shares = other * truth
    shares = np.where(shares.sum(axis=1, keepdims=True) > 0, shares, other)
    return _share(shares, shares.sum(axis=1, keepdims=True)) * truth[:, None]


def _f1(counts: Counts) -> np.ndarray:
    return _share(2 * counts.right, counts.truth + counts.predicted)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 0 where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.zeros(np.broadcast_shapes(part.shape, whole.shape)), where=whole != 0)
