"""How sure can we be of a score?

A bootstrap by row: draw as many rows as there are, with replacement, score them, 2,000 times over, and read the
interval off the spread. It says how far the score would move on other rows of the same kind. It says nothing of another
seed or of rows of another kind, and it cannot show what no row shows: with no error among the rows, every resample is
without error too. `bca` then returns the method "constant", and `clopper_pearson` is what still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Statistic = Callable[[np.ndarray], np.ndarray]
"""A score as a function of sums over rows: totals (n, sums) -> (n,), finite also where a total is zero."""

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
) -> dict[str, Interval]:
    """Bias-corrected and accelerated bootstrap intervals (Efron 1987, "Better bootstrap confidence intervals").

    Rows that add the same are one kind, so 100,000 rows with 2,000 kinds cost as much as 2,000 rows would. All
    statistics are read from the same resamples.
    """
    everything = np.asarray(sizes, dtype=np.float64)[None] @ sums  # (1, sums)
    drawn = _in_chunks(statistics, (w @ sums for w in _resample(sizes, resamples, np.random.default_rng(seed))))
    left_out = _in_chunks(statistics, (everything - block.toarray() for block in _blocks(sums)))
    intervals = {}
    for name, statistic in statistics.items():
        value = float(statistic(everything)[0])
        low, high, method = _bca_ends(value, drawn[name], left_out[name], sizes, level)
        intervals[name] = Interval(value, low, high, level, method)
    return intervals


def clopper_pearson(right: int, rows: int, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934): low and high, given `right` of `rows`.

    It holds where the bootstrap cannot: 100 of 100 gives (0.964, 1), close to the rule of three, 1 - 3/rows.
    """
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = 0.0 if right == 0 else float(betaincinv(right, rows - right + 1, tail))
    high = 1.0 if right == rows else float(betaincinv(right + 1, rows - right, 1 - tail))
    return low, high


def _bca_ends(
    value: float, drawn: np.ndarray, left_out: np.ndarray, sizes: np.ndarray, level: float
) -> tuple[float, float, str]:
    """Low, high and method, from the scores of the resamples and those with one row of each kind left out."""
    from scipy.special import ndtr, ndtri

    below = np.mean(drawn < value) / 2 + np.mean(drawn <= value) / 2
    half = 0.5 / len(drawn)  # where no resample lies on one side, the bias is large, not infinite
    bias = ndtri(np.clip(below, half, 1 - half))
    gap = np.average(left_out, weights=sizes) - left_out
    spread = np.sum(sizes * gap**2)
    acceleration = np.sum(sizes * gap**3) / (6 * spread**1.5) if spread > 0 else 0.0
    shifted = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    scale = np.maximum(1 - acceleration * shifted, 1e-9)  # below zero the formula would come back from the other end
    low, high = np.quantile(drawn, ndtr(bias + shifted / scale))
    return float(low), float(high), "bca" if low < high else "constant"


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


def _blocks(sums: csr_array) -> Iterator[csr_array]:
    """Yields the rows of `sums` in blocks that fit in memory when dense."""
    step = max(1, CHUNK // sums.shape[1])
    for start in range(0, sums.shape[0], step):
        yield sums[start : start + step]


def _in_chunks(statistics: Mapping[str, Statistic], chunks: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Each statistic of all chunks of totals, joined."""
    parts = [{name: statistic(totals) for name, statistic in statistics.items()} for totals in chunks]
    return {name: np.concatenate([part[name] for part in parts]) for name in statistics}
