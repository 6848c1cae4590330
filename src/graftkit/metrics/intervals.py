"""How sure can we be of a score?

A bootstrap by row: draw as many rows as there are, with replacement, score them, 2,000 times over, and read the
interval off the spread. It says how far the score would move on other rows of the same kind. It says nothing of another
seed or of rows of another kind, and it cannot show what no row shows: with no error among the rows, every resample is
without error too. `bca` then returns the method "constant", and `clopper_pearson` is what still holds.

Rows that belong together, such as several of one patient, are drawn together: what is drawn is then a group, with all
its rows (the cluster bootstrap; Davison and Hinkley 1997, section 3.8). "A row" below is whatever is drawn.

What the intervals hold, measured: docs/intervals.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Statistic = Callable[[np.ndarray], np.ndarray]
"""A score, or several, as a function of sums over rows: totals (n, sums) -> (n,) or (n, scores).

NaN where the totals hold nothing to tell the score from: such a resample is left out.
"""

LEVEL = 0.95
RESAMPLES = 2000
CHUNK = 1_000_000  # numbers held at once: 8 MB
COMMON = 8  # from here on, drawing the count of a kind is quicker than drawing its rows one by one


@dataclass(frozen=True)
class Interval:
    """A score, and the range that `level` of such ranges hold the true score in."""

    value: float
    low: float
    high: float
    level: float
    method: str  # "bca"; "constant": nearly all resamples gave the same, so low and high say nothing


def bca(
    statistics: Mapping[str, Statistic],
    sums: csr_array,  # (kinds, sums): what one row of each kind adds to each sum
    sizes: np.ndarray,  # (kinds,): how many rows there are of each kind
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
    left_out: csr_array | None = None,
) -> dict[str, Any]:
    """Bias-corrected and accelerated bootstrap intervals (Efron 1987, "Better bootstrap confidence intervals").

    An `Interval` for a statistic that is one score, a list of them for one that is several. Rows that add the same are
    one kind, so 100,000 rows with 2,000 kinds cost as much as 2,000 rows would. All statistics are read from the same
    resamples. `left_out` (parts, sums) is what is left out in turn to see how the score bends: by default each row.
    """
    everything = np.asarray(sizes, dtype=np.float64)[None] @ sums  # (1, sums)
    values = {name: statistic(everything)[0] for name, statistic in statistics.items()}
    parts = (sums, sizes) if left_out is None else (left_out, np.ones(left_out.shape[0], dtype=np.int64))
    bends = _accelerations(statistics, values, everything, *parts)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in statistics}
    for totals in _totals(sums, sizes, resamples, np.random.default_rng(seed)):
        for name, statistic in statistics.items():
            drawn[name].append(statistic(totals))
    found: dict[str, Any] = {}
    for name, value in values.items():
        scores = np.concatenate(drawn[name])
        if np.ndim(value) == 0:
            found[name] = _interval(float(value), scores, float(bends[name]), level)
        else:
            columns = zip(value.tolist(), scores.T, bends[name].tolist(), strict=True)
            found[name] = [_interval(*column, level) for column in columns]
    return found


def clopper_pearson(right: int, rows: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934): low and high, given `right` of `rows`.

    It holds where the bootstrap cannot: 100 of 100 gives (0.964, 1), close to the rule of three, 1 - 3/rows.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = 0.0 if right == 0 else float(betaincinv(right, rows - right + 1, tail))
    high = 1.0 if right == rows else float(betaincinv(right + 1, rows - right, 1 - tail))
    return low, high


def _interval(value: float, drawn: np.ndarray, acceleration: float, level: float) -> Interval:
    """The interval of a score, from those of the resamples, (resamples,); NaN at both ends where there is no score."""
    from scipy.special import ndtr, ndtri

    drawn = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not len(drawn):
        return Interval(value, np.nan, np.nan, level, "constant")
    below = np.mean(drawn < value) / 2 + np.mean(drawn <= value) / 2
    half = 0.5 / len(drawn)  # where no resample lies on one side, the bias is large, not infinite
    bias = ndtri(np.clip(below, half, 1 - half))
    shifted = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    scale = np.maximum(1 - acceleration * shifted, 1e-9)  # below zero the formula would come back from the other end
    low, high = np.quantile(drawn, ndtr(bias + shifted / scale)).tolist()
    varies = high - low > 1e-9 * max(1.0, abs(value))  # not by rounding alone
    return Interval(value, low, high, level, "bca" if varies else "constant")


def _accelerations(
    statistics: Mapping[str, Statistic],
    values: Mapping[str, np.ndarray],
    everything: np.ndarray,
    sums: csr_array,
    sizes: np.ndarray,
) -> dict[str, np.ndarray]:
    """How the spread of each score changes with the score: its skewness over leaving out each row in turn, by six.

    Only powers of the changes are kept, not the changes, of which there are as many as kinds times scores. A row
    without which nothing tells the score counts as one that changes nothing.
    """
    powers = {name: np.zeros((3, *np.shape(value))) for name, value in values.items()}
    for block, counts in _blocks(sums, sizes):
        totals = everything - block.toarray()
        for name, statistic in statistics.items():
            change = np.nan_to_num(statistic(totals) - values[name], nan=0.0)  # (kinds, ...)
            weighted = change
            for power in range(3):
                powers[name][power] += counts @ weighted
                weighted = weighted * change
    rows = np.sum(sizes)
    return {name: _skewness(*sums_of_powers, rows) / 6 for name, sums_of_powers in powers.items()}


def _skewness(first: np.ndarray, second: np.ndarray, third: np.ndarray, rows: int) -> np.ndarray:
    """Of mean - x, as the sum of its cubes over that of its squares to the 1.5, from sums of powers of x.

    0 where x does not vary but for rounding.
    """
    mean = first / rows
    squares = second - rows * mean**2
    cubes = 3 * mean * second - 2 * rows * mean**3 - third
    varies = squares > 1e-9 * second
    return np.where(varies, cubes / np.where(varies, squares, 1) ** 1.5, 0.0)


def _totals(sums: csr_array, sizes: np.ndarray, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields the sums of resamples, (some, sums), as many together as are held at once, until there are `resamples`."""
    parts: list[np.ndarray] = []
    for counts in _resample(sizes, resamples, rng):
        parts.append(counts @ sums)
        if sum(map(len, parts)) * sums.shape[1] >= CHUNK:
            yield np.concatenate(parts)
            parts = []
    if parts:
        yield np.concatenate(parts)


def _resample(sizes: np.ndarray, resamples: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields how often each kind is drawn, (some resamples, kinds), until there are `resamples` of them.

    Common kinds are drawn by count (multinomial); the rows of rare kinds, of which there may be thousands, one by one.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    rows = int(sizes.sum())
    common = np.flatnonzero(sizes >= COMMON)
    rare = np.flatnonzero(sizes < COMMON)
    kind_of_row = np.repeat(np.arange(len(rare)), sizes[rare])
    shares = np.append(sizes[common], len(kind_of_row)) / rows
    step = max(1, CHUNK // (len(sizes) + len(kind_of_row)))
    for start in range(0, resamples, step):
        counts = rng.multinomial(rows, shares, size=min(step, resamples - start))  # (resamples, common kinds + 1)
        weights = np.empty((len(counts), len(sizes)))
        weights[:, common] = counts[:, :-1]
        if len(kind_of_row):
            drawn = kind_of_row[rng.integers(0, len(kind_of_row), counts[:, -1].sum())]
            places = np.repeat(np.arange(len(counts)) * len(rare), counts[:, -1]) + drawn
            weights[:, rare] = np.bincount(places, minlength=len(counts) * len(rare)).reshape(len(counts), len(rare))
        yield weights


def _blocks(sums: csr_array, sizes: np.ndarray) -> Iterator[tuple[csr_array, np.ndarray]]:
    """Yields the rows of `sums`, and their sizes, in blocks that fit in memory when dense."""
    step = max(1, CHUNK // sums.shape[1])
    for start in range(0, sums.shape[0], step):
        yield sums[start : start + step], sizes[start : start + step]
