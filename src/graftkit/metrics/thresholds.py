"""What would another threshold give?

A label is one question: does the row have it? The model's probability of the label ranks the rows, and each threshold
on it cuts the ranking in two. With more than two labels each stands against all others together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from graftkit.metrics.intervals import LEVEL, Interval


@dataclass(frozen=True)
class Curve:
    """The rows that each threshold would give the label, from the surest row to all of them: (points,) each."""

    threshold: np.ndarray  # stated probabilities, falling; rows of one probability are one point
    right: np.ndarray  # int: rows that reach it and have the label
    wrong: np.ndarray  # int: rows that reach it and do not

    @property
    def precision(self) -> np.ndarray:
        return self.right / (self.right + self.wrong)

    @property
    def recall(self) -> np.ndarray:
        return self.right / self.right[-1]

    @property
    def false_alarms(self) -> np.ndarray:
        """The share of the rows without the label that are given it (false positive rate)."""
        return self.wrong / self.wrong[-1]

    @property
    def f1(self) -> np.ndarray:
        return 2 * self.right / (self.right + self.wrong + self.right[-1])


def curve(probabilities: np.ndarray, having: np.ndarray) -> Curve | None:
    """The curve of a label: its probability (rows,), and whether rows have it (rows,) bool.

    None where no row has it or all do: there is nothing to tell apart.
    """
    if having.all() or not having.any():
        return None
    order = np.argsort(probabilities)[::-1]
    stated = probabilities[order]
    last = np.flatnonzero(np.append(np.diff(stated) != 0, True))
    right = np.cumsum(having[order])[last]
    return Curve(stated[last], right, last + 1 - right)


def average_precision(found: Curve) -> float:
    """The mean precision over the rows that have the label, each at its own probability; that share of rows by chance.

    It is the area below the steps of the precision-recall curve, and equals scikit-learn's average_precision_score.
    """
    return float(np.sum(np.diff(found.recall, prepend=0) * found.precision))


def auroc(found: Curve) -> float:
    """How often a row with the label is given a higher probability than one without it; 0.5 by chance.

    It is the area below the ROC curve, where equal probabilities count half, and equals scikit-learn's roc_auc_score.
    """
    recall = np.concatenate([[0.0], found.recall])
    return float(np.sum(np.diff(found.false_alarms, prepend=0) * (recall[1:] + recall[:-1]) / 2))


ROUNDING = 1e-20  # a variance below it is that of numbers that are equal but for their last digit
AREAS = {"average_precision": average_precision, "auroc": auroc}


def intervals(
    found: Curve,
    probabilities: np.ndarray,
    having: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """The intervals of `AREAS`: by row, or by group where `groups` (rows,) is; `probabilities` made the curve.

    From how much each row, had it more weight, would move the area (the infinitesimal jackknife: Jaeckel 1972, Efron
    1981; for AUROC nearly that of DeLong et al. 1988), on the scale of ln(area / (1 - area)), with Student's t for few
    rows (or groups) with the label. An area of 1, or a single row (or group) with or without the label, has no interval
    (method "constant").
    """
    kinds = (having, ~having)
    fewest = min(int(kind.sum()) if groups is None else len(np.unique(groups[kind])) for kind in kinds)
    point = None if groups is None else np.searchsorted(-found.threshold, -probabilities)
    intervals = {}
    for name, (have, lack) in _influences(found).items():
        if groups is None:
            having_rows, other_rows = np.diff(found.right, prepend=0), np.diff(found.wrong, prepend=0)
            variance = float(having_rows @ have**2 + other_rows @ lack**2)
        else:
            variance = _variance(np.where(having, have[point], lack[point]), groups)
        intervals[name] = _of_variance(AREAS[name](found), variance, fewest, level)
    return intervals


def mean_average_precision(
    probabilities: np.ndarray, having: np.ndarray, groups: np.ndarray, *, level: float = LEVEL
) -> Interval:
    """Average precision as a mean over the labels that a row has: (rows, labels) each; 0 where there is none.

    The interval is that of `intervals`, by group (rows,): a row moves the mean by what it moves each label's.
    """
    values, moved = [], np.zeros(len(having))
    for stated, has in zip(probabilities.T, having.T, strict=True):
        found = curve(stated, has)
        if found is not None:
            values.append(average_precision(found))
            have, lack = _influences(found)["average_precision"]
            point = np.searchsorted(-found.threshold, -stated)
            moved += np.where(has, have[point], lack[point])
        elif has.any():  # all rows have it
            values.append(1.0)
    fewest = len(np.unique(groups[having.any(axis=1)]))
    count = max(1, len(values))
    return _of_variance(sum(values) / count, _variance(moved / count, groups), fewest, level)


def _variance(moved: np.ndarray, groups: np.ndarray) -> float:
    """Of an area, from how much each row moves it, (rows,), where whole groups (rows,) are drawn."""
    return float(np.sum(np.bincount(np.unique(groups, return_inverse=True)[1], weights=moved) ** 2))


def _of_variance(value: float, variance: float, fewest: int, level: float) -> Interval:
    """The interval of an area, on the scale of its logit, where the rarer kind has `fewest` rows (or groups)."""
    from scipy.special import expit, logit, stdtrit

    if fewest < 2 or not 0 < value < 1 or variance < ROUNDING:
        return Interval(value, value, value, level, "constant")
    spread = np.sqrt(variance * fewest / (fewest - 1)) / (value * (1 - value))
    reach = float(stdtrit(fewest - 1, (1 + level) / 2)) * spread
    return Interval(value, float(expit(logit(value) - reach)), float(expit(logit(value) + reach)), level, "jackknife")


class At(NamedTuple):
    """What a threshold gives on some rows."""

    precision: float  # 0 where no row reaches it
    recall: float
    f1: float
    false_alarms: float
    right: int  # rows that reach it and have the label
    given: int  # rows that reach it


def best_threshold(found: Curve) -> float:
    """The probability from which on a row is given the label so that F1 is highest; the highest such."""
    return float(found.threshold[found.f1.argmax()])


def at(given: np.ndarray, having: np.ndarray) -> At:
    """The scores where these rows are given a label and those have it: (rows,) bool each, some and not all have it."""
    right, rows, true = int((given & having).sum()), int(given.sum()), int(having.sum())
    precision = right / rows if rows else 0.0
    false_alarms = (rows - right) / (len(having) - true)
    return At(precision, right / true, 2 * right / (rows + true), false_alarms, right, rows)


def thinned(across: np.ndarray, up: np.ndarray, most: int) -> np.ndarray:
    """The places of at most `most` points, first and last among them, evenly along a line (points,), (points,)."""
    if len(across) <= most:
        return np.arange(len(across))
    way = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(across)) + np.abs(np.diff(up)))])
    places = np.searchsorted(way, np.linspace(0, way[-1], most - 1))
    return np.unique(np.append(places, len(across) - 1))


def _influences(found: Curve) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By area, how much it moves with the weight of a row with the label, and without: (points,) each."""
    have, lack = found.right[-1], found.wrong[-1]
    here, precision = np.diff(found.right, prepend=0), found.precision
    rows = found.right + found.wrong
    lower = np.cumsum((here / rows)[::-1])[::-1]  # over rows with the label that are as sure or less so
    lost = np.cumsum((here * precision / rows)[::-1])[::-1]
    average, area = average_precision(found), auroc(found)
    beaten = 1 - (found.false_alarms + np.concatenate([[0.0], found.false_alarms[:-1]])) / 2
    above = (found.recall + np.concatenate([[0.0], found.recall[:-1]])) / 2
    return {
        "average_precision": ((precision - average + lower - lost) / have, -lost / have),
        "auroc": ((beaten - area) / have, (above - area) / lack),
    }
