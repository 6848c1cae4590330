"""How near is each number?

A row adds a few sums, of which every score but the rank correlation follows. Spearman's is Pearson's correlation of
ranks, where equal numbers share the mean of their ranks, as in SciPy; a row that a resample draws twice is two equal
numbers. A correlation says nothing where all numbers of one side are the same: it is 0 then, and no gap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftkit.metrics.intervals import Statistic
from graftkit.metrics.sums import Scoring

HEADLINES = ("r2", "pearson", "spearman", "rmse", "mae")
"""R² first: a correlation does not see that all answers are too large, and would call the mean of train beaten."""
LOWER = frozenset({"rmse", "mae", "loss"})
DECILES = 10
ROUNDING = 1e-12  # of a variance, as a share of the mean square
COLUMNS = ("rows", "truth", "given", "truth_squared", "given_squared", "product", "error", "squared_error", "loss")
"""What a row adds to; truth and given are counted from the mean truth of all rows, for the sake of rounding."""

Records = Sequence[Mapping[str, Any]]


def numbers(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of each record, each (rows,) float64."""
    truth, given = (np.array([record[name] for record in records], float) for name in ("label", "prediction"))
    return truth, given


def sums(records: Records) -> np.ndarray:
    """What each row adds to `COLUMNS`, (rows, sums) float64."""
    truth, given = numbers(records)
    center, error = truth.mean(), given - truth
    truth, given = truth - center, given - center
    losses = np.array([record["loss"] for record in records], float)
    ones = np.ones(len(records))
    return np.stack(
        [ones, truth, given, truth**2, given**2, truth * given, np.abs(error), error**2, losses], axis=1
    )  # fmt: skip


def _means(totals: np.ndarray) -> np.ndarray:
    """Totals over their rows, (n, sums) both ways; 0 where no row was drawn."""
    return totals / np.maximum(totals[:, :1], 1)


def _pearson(totals: np.ndarray) -> np.ndarray:
    """(n, sums) -> (n,)."""
    _, truth, given, truth_squared, given_squared, product = _means(totals).T[:6]
    return correlation(
        product - truth * given, _variance(truth, truth_squared), _variance(given, given_squared)
    )  # fmt: skip


def _r2(totals: np.ndarray) -> np.ndarray:
    """1 - squared errors / squared distances of the truth from its mean; of a truth that is the same throughout, 1
    where all is right and else 0, as scikit-learn has it."""
    truth, truth_squared, wrong = _means(totals).T[[1, 3, 7]]
    spread = _variance(truth, truth_squared)
    return np.where(spread > 0, 1 - wrong / np.where(spread > 0, spread, 1), (wrong == 0).astype(float))


def _variance(mean: np.ndarray, mean_square: np.ndarray) -> np.ndarray:
    """0 where numbers differ by rounding alone."""
    variance = mean_square - mean**2
    return np.where(variance > ROUNDING * mean_square, variance, 0.0)


def correlation(covariance: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """From a covariance and two variances; 0 where a variance is."""
    product = one * other
    return np.where(product > 0, np.clip(covariance / np.sqrt(np.where(product > 0, product, 1)), -1, 1), 0.0)


def spearman(records: Records) -> Statistic:
    """The rank correlation, of how often each row was drawn, (n, rows), to (n,)."""
    ranks_of = [_ranks(values) for values in numbers(records)]

    def statistic(drawn: np.ndarray) -> np.ndarray:
        rows = np.maximum(drawn.sum(axis=1, keepdims=True), 1)
        one, other = (ranks(drawn) - (rows + 1) / 2 for ranks in ranks_of)  # their mean is (rows + 1) / 2
        products = (one * other, one**2, other**2)
        covariance, *variances = (np.einsum("nr,nr->n", drawn, product) / rows[:, 0] for product in products)
        return correlation(covariance, *variances)

    return statistic


def _ranks(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """From how often each row was drawn, (n, rows), to the rank of each row among those, (n, rows)."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)  # of each run of equal values
    group = np.empty(len(values), np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(values)]))

    def ranks(drawn: np.ndarray) -> np.ndarray:
        held = np.add.reduceat(drawn[:, order], starts, axis=1)  # (n, groups)
        return (np.cumsum(held, axis=1) - (held - 1) / 2)[:, group]

    return ranks


SCORING = Scoring(
    sums=sums,
    statistics={
        "pearson": _pearson,
        "rmse": lambda totals: np.sqrt(_means(totals)[:, 7]),
        "mae": lambda totals: _means(totals)[:, 6],
        "r2": _r2,
        "loss": lambda totals: _means(totals)[:, 8],
    },
    lower=LOWER,
    weighed={"spearman": spearman},
)


@dataclass(frozen=True)
class Part:
    """The rows whose truth lies in one range."""

    low: float
    high: float
    rows: int
    truth: float  # means
    given: float
    error: float  # of given - truth: above 0, the model says too much
    median_error: float  # of the size of the error


def by_truth(records: Records, parts: int = DECILES) -> list[Part]:
    """The rows by tenths of the truth, the smallest first; equal numbers stay together, so there may be fewer."""
    truth, given = numbers(records)
    edges = np.unique(np.quantile(truth, np.arange(1, parts) / parts, method="inverted_cdf"))
    places = np.searchsorted(edges, truth)  # an edge belongs to the part below it
    return [_part(truth[places == place], given[places == place]) for place in np.unique(places)]


def _part(truth: np.ndarray, given: np.ndarray) -> Part:
    error = given - truth
    means = (float(values.mean()) for values in (truth, given, error))
    return Part(float(truth.min()), float(truth.max()), len(truth), *means, float(np.median(np.abs(error))))


def within(records: Records, share: float) -> float:
    """The distance from the truth within which this share of the answers lies."""
    truth, given = numbers(records)
    return float(np.quantile(np.abs(given - truth), share, method="inverted_cdf"))
