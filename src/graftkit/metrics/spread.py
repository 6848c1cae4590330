"""How far apart are several models of one recipe?"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from graftkit.metrics.intervals import LEVEL, Interval


def student(values: Sequence[float], least: float = -inf, most: float = inf, level: float = LEVEL) -> Interval:
    """The mean of the scores of several seeds, at least two, and where the mean over all seeds may lie.

    Student's t (1908) with one degree of freedom less than there are scores; ends are cut to the score's own range.
    It says nothing of other test rows. Where all scores are the same, the method is "constant".
    """
    from scipy.special import stdtrit

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)
    if error < 1e-12:
        return Interval(mean, mean, mean, level, "constant")
    reach = error * float(stdtrit(len(values) - 1, (1 + level) / 2))
    return Interval(mean, max(least, mean - reach), min(most, mean + reach), level, "student")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (n - 1), lowest and highest of at least two scores."""
    return {
        "mean": float(np.mean(values)),
        "sd": float(np.std(values, ddof=1)),
        "lowest": float(np.min(values)),
        "highest": float(np.max(values)),
    }


def divided(truth: np.ndarray, said: np.ndarray) -> np.ndarray:
    """The rows, as places, that models do not all give the same label, the most divided first.

    `truth` is (rows,) and `said` (models, rows), as places in the labels. Most divided is the row whose most frequent
    answer has the fewest models; among equals the one that fewer have right, then the first.
    """
    agree = np.array([np.bincount(answers).max() for answers in said.T])
    right = (said == truth).sum(axis=0)
    order = np.lexsort((right, agree))
    return order[agree[order] < len(said)]
