"""Where does a model fail more often?

A slice is rows that have something in common: texts of 40 to 112 tokens, pictures whose column `camera` is "phone".
Looked at long enough, some slice always looks bad: each test is corrected for all slices that were looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from graftkit.metrics.comparison import ALPHA, holm, mcnemar
from graftkit.metrics.intervals import clopper_pearson

PARTS = 5  # that numbers are cut into
FEWEST = 10  # rows of a slice, and of the others
VALUES = 50  # of a column, the most that are a slice each
FEW_NUMBERS = 10  # different numbers, or dates, of a column, up to which each is a slice

NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[-+]\d\d:?\d\d)?)?")


@dataclass(frozen=True)
class Slice:
    """Rows that have something in common."""

    by: str  # the measure, or the column of the data
    named: bool  # whether it is a column of the data
    kind: str  # "range": from one value to another, both included; "value"; "others": rarer values; "missing"
    values: tuple[Any, ...]  # the two of a range, the one of a value: numbers of a measure, words of a column
    inside: np.ndarray  # (rows,) bool


class Column(NamedTuple):
    """How a column of the data was cut."""

    slices: list[Slice]
    values: int  # different ones
    alone: int | None  # how many of them are a slice each; None where they are numbers or dates, cut into ranges


def cut_measure(name: str, values: np.ndarray) -> list[Slice]:
    """Rows by a number: about fifths of them from the least to the greatest, and those without it (NaN).

    Equal numbers stay together. Where half or more are 0, as counts of something rare are, it is none or some.
    """
    known = np.isfinite(values)
    return [*_ranges(name, values, known, None), *_without(name, False, ~known)]


def cut_column(name: str, values: Sequence[str | None]) -> Column:
    """Rows by the words of a column: each value that enough rows have, the rarer ones together, and those without one.

    Numbers and dates of which there are more than `FEW_NUMBERS` are cut into ranges, as `cut_measure` does.
    """
    words = np.array(["" if value is None else value.strip() for value in values], dtype=object)
    known = words != ""
    different, places, counts = np.unique(words[known], return_inverse=True, return_counts=True)
    without = _without(name, True, ~known)
    keys = _in_order(different.tolist()) if len(different) > FEW_NUMBERS else None
    if keys is not None:
        ordered = np.full(len(words), np.nan)
        ordered[known] = keys[places]
        return Column([*_ranges(name, ordered, known, words), *without], len(different), None)
    frequent = [place for place in np.argsort(-counts, kind="stable")[:VALUES].tolist() if counts[place] >= FEWEST]
    slices = [Slice(name, True, "value", (different[place],), words == different[place]) for place in frequent]
    rarer = known & ~np.isin(words, different[frequent])
    others = [Slice(name, True, "others", (), rarer)] if len(frequent) < len(different) else []
    return Column([one for one in [*slices, *others] if _enough(one.inside)] + without, len(different), len(frequent))


def find(slices: Sequence[Slice], right: np.ndarray, groups: np.ndarray | None = None) -> list[dict[str, Any]]:
    """One line per slice, in order: its rows, the share that is right of them and of the others, interval and p.

    `right` is (rows,) bool. The p-value `p` is that of Fisher's exact test, two-sided, raised for the number of slices
    (Holm 1979); two slices that are each other's rest are one test. The interval of each share is that of Clopper and
    Pearson at the level at which all slices' intervals hold together (Bonferroni). With `groups` (rows,), whose rows
    are not independent, both count as many rows as these are worth.
    """
    tests: dict[bytes, int] = {}
    places = [tests.setdefault(np.packbits(one.inside ^ one.inside[0]).tobytes(), len(tests)) for one in slices]
    likeness = 0.0 if groups is None else alike(right, groups)
    lines, alone = [], np.ones(len(tests))
    for one, test in zip(slices, places, strict=True):
        parts = []  # right, rows: of the slice and of the others
        for rows in (one.inside, ~one.inside):
            counted = float(rows.sum()) if groups is None else worth(groups[rows], likeness)
            parts.append((float(right[rows].mean()) * counted, counted))
        (inside_right, inside), (others_right, others) = parts
        level = 1 - ALPHA / len(slices)
        low, high = clopper_pearson(inside_right, inside, level)
        whole = [round(number) for number in (inside_right, inside, inside_right + others_right, inside + others)]
        alone[test] = fisher(whole[0], whole[1], max(whole[0], whole[2]), max(whole[1], whole[3]))
        lines.append(
            {"by": one.by, "named": one.named, "kind": one.kind, "values": list(one.values)}
            | {"rows": int(one.inside.sum()), "right": inside_right / inside, "low": low, "high": high}
            | {"level": level, "others": others_right / others}
        )
    raised = holm(alone)
    return [
        line | {"p_alone": float(alone[test]), "p": float(raised[test])}
        for line, test in zip(lines, places, strict=True)
    ]


def matters(line: dict[str, Any]) -> bool:
    """Whether a slice is wrong more often than the others, by more than chance."""
    return line["p"] < ALPHA and line["right"] < line["others"]


def fisher(right_inside: int, inside: int, right: int, rows: int) -> float:
    """Fisher's exact test, two-sided (1935): how likely is a split as uneven, if what is right fell on any rows alike?

    Of `rows`, `right` are right and `inside` lie in the slice; `right_inside` are both. All splits that are no likelier
    than this one are counted, as R and SciPy do.
    """
    from scipy.special import betaln

    def ways(of: int, taken: np.ndarray) -> np.ndarray:
        return -betaln(taken + 1, of - taken + 1) - np.log(of + 1)  # the logarithm of the binomial coefficient

    right_inside, inside, right, rows = int(right_inside), int(inside), int(right), int(rows)
    taken = np.arange(max(0, inside + right - rows), min(inside, right) + 1)
    logs = ways(right, taken) + ways(rows - right, inside - taken)
    chances = np.exp(logs - logs.max())
    this = chances[right_inside - taken[0]]
    return float(min(1.0, chances[chances <= this * (1 + 1e-7)].sum() / chances.sum()))


def alike(right: np.ndarray, groups: np.ndarray) -> float:
    """How alike the rows of a group are in being right: the intraclass correlation, from 0 to 1.

    The estimator from an analysis of variance, for groups of any sizes (Ridout, Demetrio and Firth 1999, "Estimating
    intraclass correlation for binary data"). 0 where every row is a group of its own.
    """
    _, places, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    rows, count = len(right), len(sizes)
    if count in (1, rows):
        return float(count == 1)  # of a single group nothing shows how alike its rows are
    means = np.bincount(places, right) / sizes
    between = np.sum(sizes * (means - right.mean()) ** 2) / (count - 1)
    within = np.sum((right - means[places]) ** 2) / (rows - count)
    usual = (rows - np.sum(sizes**2) / rows) / (count - 1)
    spread = between + (usual - 1) * within
    return float(np.clip((between - within) / spread, 0, 1)) if spread > 0 else 0.0


def worth(groups: np.ndarray, likeness: float) -> float:
    """How many independent rows tell as much as these rows do, whose groups are so much alike.

    The rows over their design effect, 1 + (m - 1) x likeness, where m is the size of the group in which the mean row is
    (Donner and Klar 2000; Rao and Scott 1992, "A simple method for the analysis of clustered binary data").
    """
    _, sizes = np.unique(groups, return_counts=True)
    return float(len(groups) / (1 + (np.sum(sizes**2) / len(groups) - 1) * likeness))


def slice_changes(
    slices: Sequence[Slice], truth: np.ndarray, first: np.ndarray, second: np.ndarray
) -> list[dict[str, Any]]:
    """One line per slice, the largest change first: the mean share that is right by the first models and by the second.

    Of a pair also the rows of the slice that are lost and gained, and the p-value of that (exact McNemar, raised by
    Holm for the number of slices). `first` and `second` are (models, rows).
    """
    right, now = first == truth, second == truth
    lines = []
    for one in slices:
        shares = tuple(float(models[:, one.inside].mean()) for models in (right, now))
        line = {"by": one.by, "named": one.named, "kind": one.kind, "values": list(one.values)}
        lines.append(line | {"rows": int(one.inside.sum()), "right": shares})
    if len(first) == len(second) == 1 and slices:
        lost = [int((right[0] & ~now[0])[one.inside].sum()) for one in slices]
        gained = [int((~right[0] & now[0])[one.inside].sum()) for one in slices]
        raised = holm(mcnemar(np.array(lost), np.array(gained))).tolist()
        for line, *facts in zip(lines, lost, gained, raised, strict=True):
            line |= dict(zip(("lost", "gained", "p"), facts, strict=True))
    return sorted(lines, key=lambda line: -abs(line["right"][1] - line["right"][0]))


def _enough(inside: np.ndarray) -> bool:
    """Whether a slice and the others both have rows enough."""
    return FEWEST <= inside.sum() <= len(inside) - FEWEST


def _without(by: str, named: bool, inside: np.ndarray) -> list[Slice]:
    return [Slice(by, named, "missing", (), inside)] if _enough(inside) else []


def _ranges(by: str, values: np.ndarray, known: np.ndarray, words: np.ndarray | None) -> list[Slice]:
    """Rows by about equal parts of their values (rows,), as far as these are known; named by their `words`, if any."""
    levels, places, counts = np.unique(values[known], return_inverse=True, return_counts=True)
    parts = min(PARTS, int(known.sum()) // (2 * FEWEST))
    ends = _ends(levels, counts, parts)
    if len(ends) < 2:
        return []
    part = np.full(len(values), -1)
    part[known] = np.searchsorted(ends, places)
    slices = []
    for number in range(len(ends)):
        rows = np.flatnonzero(part == number)
        least, most = rows[values[rows].argmin()], rows[values[rows].argmax()]
        named = words is not None
        of = (words[least], words[most]) if named else (float(values[least]), float(values[most]))
        slices.append(Slice(by, named, "range", of, part == number))
    return [one for one in slices if _enough(one.inside)]


def _ends(levels: np.ndarray, counts: np.ndarray, parts: int) -> list[int]:
    """The place of the last level of each part: about equal counts, each at least `FEWEST`; fewer parts for ties."""
    upto, ends, done = np.cumsum(counts), [], 0
    whole = int(upto[-1]) if len(upto) else 0
    if parts < 2:
        return []
    if levels[0] == 0 and 2 * counts[0] >= whole:
        parts, done, ends = 2, int(upto[0]), [0]
    while done < whole:
        wanted = done + max(FEWEST, (whole - done) / max(1, parts - len(ends)))
        ends.append(min(int(np.searchsorted(upto, wanted - 1e-9)), len(upto) - 1))
        if whole - done < FEWEST and len(ends) > 1:
            del ends[-2]
        done = int(upto[ends[-1]])
    return ends


def _in_order(words: Sequence[str]) -> np.ndarray | None:
    """A number for each of these words, in their order where all are numbers, or all dates; None for other words."""
    if all(NUMBER.fullmatch(word) for word in words):
        return np.array([float(word) for word in words])
    if all(DATE.fullmatch(word) for word in words):  # written so, they are in the order of their letters
        return np.argsort(np.argsort(words)).astype(np.float64)
    return None
