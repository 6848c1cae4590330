"""How good is it, where each row adds to a few sums and every score follows from their totals?

So it is with exact match, perplexity, BLEU, F1 of words, RMSE and most others: a resample of rows is then a row of
totals, and intervals cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.metrics.intervals import LEVEL, RESAMPLES, Interval, Statistic, bca, clopper_pearson

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Records = Sequence[Mapping[str, Any]]

PARTS = 200  # of the rows, of which each is left out in turn, where there are more rows
FEWEST_RESAMPLES = 200
DRAWN_ROWS = 20_000_000  # in all resamples of a score that does not follow from sums


@dataclass(frozen=True)
class Scoring:
    """The scores of a task, and how they follow from its records."""

    sums: Callable[[Records], np.ndarray]  # (rows, sums) float64: what each row adds
    statistics: Mapping[str, Statistic]  # by name, of totals (n, sums): (n,)
    lower: frozenset[str] = frozenset()  # those of which less is better
    shares: frozenset[str] = frozenset()  # those that are means over rows of something from 0 to 1
    weighed: Mapping[str, Callable[[Records], Statistic]] = field(default_factory=dict)
    """Scores that do not follow from sums, such as a rank correlation: from the records, a function of how often each
    row was drawn, (n, rows), to (n,)."""


def score(scoring: Scoring, records: Records) -> dict[str, float]:
    """All scores of these records, those of sums first."""
    totals = scoring.sums(records).sum(axis=0, keepdims=True)
    found = {name: float(statistic(totals)[0]) for name, statistic in scoring.statistics.items()}
    once = np.ones((1, len(records)))
    return found | {name: float(make(records)(once)[0]) for name, make in scoring.weighed.items()}


def intervals(
    scoring: Scoring,
    records: Records,
    groups: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    names: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """The interval of each score (of `names`, or all), by row or by `groups`, (rows,): whole groups are then drawn.

    A share that is 0 or 1 in every row has the exact interval of Clopper and Pearson.
    """
    units = len(records) if groups is None else len(np.unique(groups))
    if units == 1:
        found = {
            name: Interval(value, value, value, level, "constant") for name, value in score(scoring, records).items()
        }
        return {name: one for name, one in found.items() if names is None or name in names}
    wanted = {*scoring.statistics, *scoring.weighed} if names is None else set(names)
    found = {}
    if summed := {name: statistic for name, statistic in scoring.statistics.items() if name in wanted}:
        drawn = _kinds(_by_group(scoring.sums(records), groups))
        found = bca(summed, *drawn, level=level, resamples=resamples)
    if statistics := {name: make(records) for name, make in scoring.weighed.items() if name in wanted}:
        found |= bca(statistics, **_each_row(len(records), groups, resamples), level=level)
    return {name: _exact(name, one, scoring, units) for name, one in found.items()}


def lead(
    scoring: Scoring,
    records: Records,
    others: Records,
    name: str,
    groups: np.ndarray | None = None,
    *,
    resamples: int = RESAMPLES,
) -> Interval:
    """How far `records` are ahead of `others`, which are of the same rows in the same order, in the score `name`.

    Above 0, `records` are better, also where less of the score is better. Both are drawn together.
    """
    sign = -1.0 if name in scoring.lower else 1.0
    if len(records) == 1 or (groups is not None and len(np.unique(groups)) == 1):
        value = sign * (score(scoring, records)[name] - score(scoring, others)[name])
        return Interval(value, value, value, LEVEL, "constant")
    if name in scoring.weighed:
        ours, theirs = (scoring.weighed[name](side) for side in (records, others))
        drawn = _each_row(len(records), groups, resamples)
        return bca({name: lambda w: sign * (ours(w) - theirs(w))}, **drawn)[name]
    statistic = scoring.statistics[name]
    both = np.hstack([scoring.sums(records), scoring.sums(others)])
    half = both.shape[1] // 2

    def difference(totals: np.ndarray) -> np.ndarray:
        return sign * (statistic(totals[:, :half]) - statistic(totals[:, half:]))

    return bca({name: difference}, *_kinds(_by_group(both, groups)), resamples=resamples)[name]


def _by_group(sums: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """What each group adds, (groups, sums)."""
    if groups is None:
        return sums
    numbers = np.unique(groups, return_inverse=True)[1]
    added = np.zeros((numbers.max() + 1, sums.shape[1]))
    np.add.at(added, numbers, sums)
    return added


def _kinds(sums: np.ndarray) -> tuple[csr_array, np.ndarray]:
    """Each distinct row of sums, and how often it stands."""
    from scipy.sparse import csr_array

    kinds, sizes = np.unique(sums, axis=0, return_counts=True)
    return csr_array(kinds), sizes


def _each_row(rows: int, groups: np.ndarray | None, resamples: int) -> dict[str, Any]:
    """One kind for each row (or group), whose sums are the rows that it holds: totals say how often each was drawn.

    Of many rows whole parts, cut by chance, are left out in turn and not each row, and fewer resamples are drawn: else
    the cost would grow with the square of the rows.
    """
    from scipy.sparse import csr_array

    def held(numbers: np.ndarray) -> csr_array:
        return csr_array((np.ones(rows), (numbers, np.arange(rows))))

    numbers = np.arange(rows) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(numbers.max()) + 1
    left_out = None
    if units > PARTS:
        left_out = held(np.random.default_rng(0).permutation(np.arange(units) % PARTS)[numbers])
    fewer = min(resamples, max(FEWEST_RESAMPLES, DRAWN_ROWS // rows))
    return {"sums": held(numbers), "sizes": np.ones(units, dtype=np.int64), "left_out": left_out, "resamples": fewer}


def _exact(name: str, interval: Interval, scoring: Scoring, units: int) -> Interval:
    """The exact interval in place of one that resamples cannot tell."""
    if name not in scoring.shares or interval.method != "constant" or interval.value not in (0.0, 1.0):
        return interval
    low, high = clopper_pearson(units if interval.value else 0, units, interval.level)
    return replace(interval, low=low, high=high, method="clopper-pearson")
