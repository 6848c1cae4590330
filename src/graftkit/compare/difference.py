"""How far apart are two arms, and could it be chance?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graftkit.compare.arms import Arm, Rows
from graftkit.metrics import classification, comparison
from graftkit.metrics.comparison import ALPHA, POWER
from graftkit.metrics.intervals import LEVEL, Interval
from graftkit.metrics.slices import alike, worth


@dataclass(frozen=True)
class Difference:
    """An arm's score minus that of the reference."""

    interval: Interval
    most: float  # the difference lies below, with 95% confidence, one-sided and over all comparisons (Bonferroni)
    least: float  # the difference lies above, likewise
    p: float  # two-sided; of several arms, raised by `raise_for_several`
    smallest: float | None  # the true difference that 4 of 5 such tests find; for a pair, of accuracy
    freedom: float | None = None  # degrees of freedom, over seeds

    @property
    def shown(self) -> bool:
        """Whether it is called a difference."""
        return self.p <= ALPHA


def measure(reference: Arm, others: Sequence[Arm], rows: Rows, scores: Sequence[str]) -> list[dict[str, Difference]]:
    """Each of these scores of each arm against the reference; p-values are raised for the number of arms."""
    of_one = between_models if len(reference.runs) == 1 else between_seeds
    return raise_for_several([of_one(reference, arm, rows, scores, len(others)) for arm in others])


def between_models(
    reference: Arm, arm: Arm, rows: Rows, scores: Sequence[str], comparisons: int
) -> dict[str, Difference]:
    """Two models: paired bootstrap, and exact McNemar for accuracy; 10,000 swaps for another score, and for groups."""
    one, other, labels = reference.said[0], arm.said[0], len(rows.labels)
    lost, gained, _ = flips(one, other, rows.truth)
    p = {} if rows.groups is not None else {"accuracy": float(comparison.mcnemar(lost.sum(), gained.sum()))}
    if set(scores) != set(p):
        p = comparison.swap_test(rows.truth, one, other, labels, rows.groups) | p
    smallest = smallest_difference(lost, gained, rows.groups, ALPHA / comparisons)
    both, sided = (
        comparison.differences(rows.truth, reference.said, arm.said, labels, rows.groups, level=level)
        for level in (LEVEL, 1 - 2 * ALPHA / comparisons)
    )
    return {name: Difference(both[name], sided[name].high, sided[name].low, p[name], smallest) for name in scores}


def smallest_difference(
    lost: np.ndarray, gained: np.ndarray, groups: np.ndarray | None, alpha: float = ALPHA
) -> float | None:
    """The true difference of accuracy that is found 4 times in 5; None where these rows, or groups, can show nothing.

    Rows of groups count as as many as they are worth by how alike their groups are in what is lost and gained (wholly,
    where nothing is). That the test then has groups, not rows, to judge their spread by costs what Student's t does
    against the normal distribution (Bloom 1995). Too few groups, and no fall of the coins is rare enough.
    """
    from scipy.special import ndtri, stdtrit

    change = gained.astype(np.float64) - lost
    share, rows = float(abs(change).mean()), len(change)
    if groups is None:
        return comparison.smallest_difference(rows, share * rows, alpha)
    count = int(groups.max()) + 1
    if 2 * 0.5**count > alpha / 2:
        return None
    rows = int(worth(groups, alike(change, groups) if share else 1.0))
    found = comparison.smallest_difference(rows, share * rows, alpha) if rows else None
    ends = 1 - alpha / 2, POWER
    dearer = sum(stdtrit(count - 1, end) for end in ends) / sum(ndtri(end) for end in ends)
    return float(found * dearer) if found and found * dearer < 1 else None


def between_seeds(
    reference: Arm, arm: Arm, rows: Rows, scores: Sequence[str], comparisons: int
) -> dict[str, Difference]:
    """Two recipes by several models each: Welch's t over seeds, and what other test rows would change besides."""
    from scipy.special import ndtri

    bootstrap = comparison.differences(rows.truth, reference.said, arm.said, len(rows.labels), rows.groups)
    found = {}
    for name in scores:
        values = [model_scores(one, rows)[name] for one in (reference, arm)]
        rows_sd = (bootstrap[name].high - bootstrap[name].low) / (2 * float(ndtri((1 + LEVEL) / 2)))
        both, sided = (
            comparison.over_seeds(*values, rows.units, rows_sd, level=level, alpha=ALPHA / comparisons)
            for level in (LEVEL, 1 - 2 * ALPHA / comparisons)
        )
        ends = sided.interval.high, sided.interval.low
        found[name] = Difference(both.interval, *ends, both.p, both.smallest, both.freedom)
        if rows.units == 1:  # of which nothing shows what others would change
            value = both.interval.value
            nothing = Interval(value, value, value, LEVEL, "constant")
            found[name] = Difference(nothing, value, value, 1.0, None, both.freedom)
    return found


def raise_for_several(found: Sequence[Mapping[str, Difference]]) -> list[dict[str, Difference]]:
    """The same with the p-values of each score raised for the number of arms (Holm)."""
    raised = {name: comparison.holm([each[name].p for each in found]).tolist() for name in found[0]}
    return [
        {name: replace(difference, p=raised[name][place]) for name, difference in each.items()}
        for place, each in enumerate(found)
    ]


def flips(one: np.ndarray, other: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows the second model loses, which it gains, and where both are wrong in two ways: (rows,) bool each."""
    right, now = one == truth, other == truth
    return right & ~now, ~right & now, ~right & ~now & (one != other)


def model_scores(arm: Arm, rows: Rows) -> dict[str, np.ndarray]:
    """Each headline score of each model of an arm: (models,)."""
    tables = [classification.confusion(rows.truth, said, len(rows.labels)) for said in arm.said]
    counts = [classification.Counts.of(table) for table in tables]
    return {name: np.array([float(score(c)) for c in counts]) for name, score in classification.HEADLINES.items()}
