"""How good is a classifier?

All scores but two follow from three counts per label (`Counts`), so that one definition serves a whole split, one
resample of it and ten thousand resamples at once. They equal scikit-learn's of the same name (`tests/test_metrics.py`).

A label that no row has and no row is given says nothing about the model, and is left out of macro F1, as scikit-learn
does when it is not told the labels. (Told them, it counts such a label as 0, and a model without an error gets less
than 1.) A label that no row has is left out of balanced accuracy. A share of nothing is 0 in `per_class`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graftkit.metrics.intervals import LEVEL, RESAMPLES, Interval, Statistic, bca, clopper_pearson

if TYPE_CHECKING:
    from scipy.sparse import csr_array

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

CLASS_SCORES = {
    "precision": lambda counts: _share(counts.right, counts.predicted, empty=np.nan),
    "recall": lambda counts: _share(counts.right, counts.truth, empty=np.nan),
    "f1": lambda counts: _share(2 * counts.right, counts.truth + counts.predicted, empty=np.nan),
}
"""The scores of each label, (..., labels); NaN where there is no row to tell from."""


def log_loss(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """The mean of -ln(probability of the true label); a probability of 0 counts as 2.2e-16, as in scikit-learn."""
    given = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return float(-np.log(np.clip(given, np.finfo(np.float64).eps, 1)).mean())


def calibration_error(truth: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """How far confidence and accuracy lie apart on average, 0 to 1 (expected calibration error, Guo et al. 2017).

    Rows are put in `bins` equal bins, (0, 1/15] to (14/15, 1], by the probability of the predicted label.
    """
    confidence = probabilities[np.arange(len(predicted)), predicted].astype(np.float64)
    place = bin_of_row(confidence, bins)
    surplus = np.bincount(place, weights=confidence - (predicted == truth), minlength=bins)
    return float(np.abs(surplus).sum() / len(truth))


def bin_of_row(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Of `bins` equal bins, (0, 1/15] to (14/15, 1], that of each probability: (rows,) int from 0."""
    return np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")


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


class Intervals(NamedTuple):
    """How sure each score is."""

    scores: dict[str, Interval]  # of each of `HEADLINES`
    classes: list[dict[str, Interval]]  # per label: of precision, recall and F1, where a row tells it


def intervals(
    confusion: np.ndarray,
    groups: csr_array | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """The interval of each of `HEADLINES`, by bootstrap; where all rows are right or none is, see `_at_the_edge`.

    With `groups`, as `group_counts` makes them, whole groups are drawn.
    """
    sums, sizes = _kinds(confusion, groups)
    if np.trace(confusion) in (0, confusion.sum()):
        return _at_the_edge(confusion, int(sizes.sum()), level)
    return bca(_of_totals(HEADLINES), sums, sizes, level=level, resamples=resamples, seed=seed)


def all_intervals(
    confusion: np.ndarray,
    groups: csr_array | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Intervals:
    """`intervals`, and those of each label's precision, recall and F1, from the same resamples.

    Where all rows of a label are right, or none, resamples say nothing; see `_class_at_the_edge`.
    """
    sums, sizes = _kinds(confusion, groups)
    found = bca(_of_totals(HEADLINES | CLASS_SCORES), sums, sizes, level=level, resamples=resamples, seed=seed)
    if np.trace(confusion) in (0, confusion.sum()):
        found |= _at_the_edge(confusion, int(sizes.sum()), level)
    counts = Counts.of(confusion)
    of_label = {  # the rows, or groups, that a score is told from; the rows that F1 makes a share of
        "precision": (_units(sums, sizes, "predicted"), counts.predicted),
        "recall": (_units(sums, sizes, "truth"), counts.truth),
        "f1": (_units(sums, sizes, "truth", "predicted"), counts.truth + counts.predicted - counts.right),
    }
    classes: list[dict[str, Interval]] = [{} for _ in range(len(confusion))]
    for name, (units, rows) in of_label.items():
        for place in np.flatnonzero(rows):
            right = int(counts.right[place])
            if right in (0, rows[place]):
                classes[place][name] = _class_at_the_edge(name, right > 0, int(units[place]), level)
            else:
                classes[place][name] = found[name][place]
    return Intervals({name: found[name] for name in HEADLINES}, classes)


def group_counts(truth: np.ndarray, predicted: np.ndarray, groups: np.ndarray, labels: int) -> csr_array:
    """How many rows of each group stand in each cell of the confusion matrix: (groups, labels * labels).

    `groups` (rows,) are numbered from 0.
    """
    from scipy.sparse import coo_array

    shape = (int(groups.max()) + 1, labels * labels)
    counts = coo_array((np.ones(len(truth)), (groups, truth * labels + predicted)), shape=shape).tocsr()
    counts.sort_indices()
    return counts


def _kinds(confusion: np.ndarray, groups: csr_array | None) -> tuple[csr_array, np.ndarray]:
    """What a draw adds to `Counts`, side by side, (kinds, 3 * labels), and of how many draws each kind is, (kinds,).

    Rows in one cell of the confusion matrix are alike, and so are groups that hold the same.
    """
    from scipy.sparse import csr_array

    labels = len(confusion)
    cells = np.flatnonzero(confusion)
    truth, predicted = np.divmod(cells, labels)
    right = np.flatnonzero(truth == predicted)
    places = np.arange(len(cells))
    entries = (
        np.concatenate([places[right], places, places]),
        np.concatenate([truth[right], labels + truth, 2 * labels + predicted]),
    )
    sums = csr_array((np.ones(len(entries[0])), entries), shape=(len(cells), 3 * labels))
    if groups is None:
        return sums, confusion.ravel()[cells]
    alike: dict[tuple[bytes, bytes], list[int]] = {}
    for group, (start, end) in enumerate(pairwise(groups.indptr.tolist())):
        held = groups.indices[start:end].tobytes(), groups.data[start:end].tobytes()
        alike.setdefault(held, []).append(group)
    first = [kind[0] for kind in alike.values()]
    return groups[first][:, cells] @ sums, np.array([len(kind) for kind in alike.values()])


def _of_totals(scores: Mapping[str, Callable[[Counts], np.ndarray]]) -> dict[str, Statistic]:
    """The scores as functions of the sums that `_kinds` lays side by side."""

    def of_totals(score: Callable[[Counts], np.ndarray]) -> Statistic:
        return lambda totals: score(Counts(*np.split(totals, 3, axis=-1)))

    return {name: of_totals(score) for name, score in scores.items()}


def _units(sums: csr_array, sizes: np.ndarray, *names: str) -> np.ndarray:
    """Of what is drawn, rows or groups, how many count under these names of `Counts`, by label: (labels,)."""
    parts = np.split(np.arange(sums.shape[1]), 3)
    counted = sum(sums[:, parts[Counts._fields.index(name)]] for name in names)
    return sizes @ (counted > 0)


def _at_the_edge(confusion: np.ndarray, units: int, level: float) -> dict[str, Interval]:
    """The intervals where all rows are right, or none, and every resample is like the last.

    The share of right rows has an exact interval (Clopper and Pearson). Its far end, say 0.964 of 100 rows, is put into
    words of each score: what it would be if that share of each label were right, and the rest were given the other
    labels in proportion to their rows (as they were given, where none is right).

    `units` are the rows or, since rows of one group are no independent witnesses, the groups: the interval is then that
    of the share of groups without an error (where none is right: with a right row), which groups of like size share.
    """
    counts = Counts.of(confusion)
    right = int(counts.right.sum())
    low, high = clopper_pearson(units if right else 0, units, level)
    share, wrong = (low, _spread(counts.truth)) if right else (high, confusion)
    supposed = Counts.of(np.diag(share * counts.truth) + (1 - share) * wrong)
    found = {}
    for name, score in HEADLINES.items():
        value = float(score(counts))
        found[name] = Interval(value, *sorted((value, float(score(supposed)))), level, "clopper-pearson")
    return found


def _class_at_the_edge(name: str, right: bool, units: int, level: float) -> Interval:
    """The interval of a label's score where all of its `units` (rows or groups) are right, or none.

    Precision and recall are shares, with the exact interval of Clopper and Pearson. F1 is 2J / (1 + J) of such a share,
    J (Jaccard): of the rows that have the label or are given it, those that have and are given it.
    """
    ends = clopper_pearson(units if right else 0, units, level)
    low, high = (2 * end / (1 + end) for end in ends) if name == "f1" else ends
    return Interval(float(right), low, high, level, "clopper-pearson")


def _spread(truth: np.ndarray) -> np.ndarray:
    """The rows of each label given the other labels, in proportion to their rows; evenly where no other has any."""
    other = 1 - np.eye(len(truth))
    shares = other * truth
    shares = np.where(shares.sum(axis=1, keepdims=True) > 0, shares, other)
    return _share(shares, shares.sum(axis=1, keepdims=True)) * truth[:, None]


def _f1(counts: Counts) -> np.ndarray:
    return _share(2 * counts.right, counts.truth + counts.predicted)


def _share(part: np.ndarray, whole: np.ndarray, empty: float = 0.0) -> np.ndarray:
    """part / whole, and `empty` where the whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), empty), where=whole != 0)
