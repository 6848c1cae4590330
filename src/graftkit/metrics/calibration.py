"""Can its stated probabilities be believed, and what may be done with them?

A temperature makes probabilities match how often the model is right; a threshold on them makes sets that hold the true
label as often as was asked; another says when the model had better not answer. Each is chosen on rows that the model
did not learn from, and measured on others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from graftkit.metrics.classification import BINS, bin_of_row
from graftkit.metrics.intervals import LEVEL, RESAMPLES, Interval, bca, clopper_pearson

if TYPE_CHECKING:
    from scipy.sparse import csr_array

HOTTEST = 100.0  # a temperature is sought between 1 / HOTTEST and HOTTEST
CHUNK = 1_000_000  # numbers held at once: 8 MB
BLOCKS = 5_000  # with more rows than this, the bootstrap draws blocks of rows
GRID = np.array([0.999, 0.995, *np.arange(99, -1, -1) / 100])  # thresholds that are tried, the surest first
SIMULATIONS = 10_000


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float | None:
    """The T > 0 for which softmax(logits / T) has the least log loss (Guo et al. 2017): (rows, labels), (rows,).

    The loss is convex in 1/T, so the T where its slope is 0 is the only one; it is sought over ln T, in float64. None
    where nothing says how unsure to be: no row is wrong, each row has the same logit for all labels, or T lies at an
    end of the search (1/100 to 100).
    """
    from scipy.optimize import brentq

    def slope(log_temperature: float) -> float:
        """Of the summed loss by 1/T: the mean logit under softmax minus that of the true label."""
        return sum(_surplus(part, math.exp(-log_temperature)) for part in _shifted(logits, truth))

    end = math.log(HOTTEST)
    if not slope(-end) > 0 > slope(end):
        return None
    return math.exp(brentq(slope, -end, end, xtol=1e-10))


def tempered(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature), (rows, labels) float64; the likeliest label of each row stays the same."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled


def conformal_threshold(probabilities: np.ndarray, truth: np.ndarray, alpha: float) -> float | None:
    """The least probability of a label in a set that misses the true label in at most a share `alpha` of new rows.

    Split conformal prediction (Vovk et al. 2005; these sets: Sadinle et al. 2019, "Least ambiguous set-valued
    classifiers"): of the probabilities given to the n true labels, that which ceil((n + 1)(1 - alpha)) of them reach.
    It holds on average over sets of n rows, for all rows together and not for each label, whatever the model, where new
    rows are like these and these chose nothing before. None where n is too small for this alpha: only the set of all
    labels is sure enough.
    """
    rows = len(truth)
    reached = _reached(rows, alpha)
    if reached > rows:
        return None
    given = np.sort(probabilities[np.arange(rows), truth])
    return float(given[rows - reached])


def prediction_sets(probabilities: np.ndarray, threshold: float | None) -> np.ndarray:
    """The labels that may be the true one, (rows, labels) bool: those as likely as `threshold`; all of them for None.

    The likeliest label is always in, so no set is empty. That can only raise the share of sets that hold the true one.
    """
    if threshold is None:
        return np.ones(probabilities.shape, dtype=bool)
    sets = probabilities >= threshold
    sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
    return sets


def coverage_by_chance(rows: int, alpha: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Between which shares the sets of a `conformal_threshold` from so many rows hold the true label of new rows.

    The rows happened to be these: the share over new rows has a Beta distribution (Vovk 2012, "Conditional validity of
    inductive conformal predictors"). `rows` are enough for alpha.
    """
    from scipy.special import betaincinv

    reached = _reached(rows, alpha)
    ends = betaincinv(reached, rows + 1 - reached, [(1 - level) / 2, (1 + level) / 2])
    return float(ends[0]), float(ends[1])


@dataclass(frozen=True)
class RiskCoverage:
    """What answering only the surest rows would cost: at each threshold, from the surest row to all of them."""

    threshold: np.ndarray  # (points,) stated probabilities, falling
    coverage: np.ndarray  # (points,) the share of rows whose stated probability reaches the threshold
    risk: np.ndarray  # (points,) the share of these that is wrong
    area: float  # the mean risk over all coverages (AURC): 0 is perfect


def risk_coverage(probabilities: np.ndarray, predicted: np.ndarray, truth: np.ndarray) -> RiskCoverage:
    """Errors among the rows answered, as fewer and surer rows are answered (El-Yaniv and Wiener 2010).

    Rows of one stated probability are answered together; to the area (Geifman et al. 2019, "Bias-reduced uncertainty
    estimation") each adds the mean error of them all, so that their order does not matter.
    """
    stated = _stated(probabilities, predicted)
    order = np.argsort(-stated, kind="stable")
    stated, wrong = stated[order], (predicted != truth)[order].astype(np.float64)
    last = np.flatnonzero(np.append(np.diff(stated) != 0, True))  # of the rows of each stated probability
    errors, rows = np.cumsum(wrong)[last], last + 1
    alike = np.diff(rows, prepend=0)
    each = np.repeat(np.diff(errors, prepend=0) / alike, alike)
    area = float(np.mean(np.cumsum(each) / np.arange(1, len(wrong) + 1)))
    return RiskCoverage(stated[last], rows / len(wrong), errors / rows, area)


def abstention_threshold(
    probabilities: np.ndarray, predicted: np.ndarray, truth: np.ndarray, alpha: float, *, level: float = LEVEL
) -> float | None:
    """The lowest stated probability from which on answers are, with confidence `level`, wrong in at most `alpha`.

    Selection with guaranteed risk (Geifman and El-Yaniv 2017), its thresholds tested in a fixed order (fixed-sequence
    testing, Angelopoulos et al. 2021, "Learn then test"): down `GRID`, the surest first, as long as the upper bound of
    Clopper and Pearson on the share of errors is at most `alpha`. The first threshold that fails ends the search, so
    that many thresholds cost no confidence. Thresholds that few rows reach are passed over: how few follows from
    `alpha` and the number of rows alone, and this keeps the confidence where surer rows are no more often wrong.

    0.0 where all rows may be answered; None where no threshold passes, as with fewer rows than ln(0.05)/ln(1 - alpha).
    """
    stated, wrong = _stated(probabilities, predicted), predicted != truth
    needed = math.ceil(math.log(1 - level) / math.log(1 - alpha))  # rows without an error that would do
    start = max(needed, min(4 * needed, len(truth) // 2))  # with 4 times as many, nearly alpha / 2 may be wrong
    found = None
    for threshold in GRID.tolist():
        answered = stated >= threshold
        rows = int(answered.sum())
        if rows < start:
            continue
        if clopper_pearson(int(wrong[answered].sum()), rows, 2 * level - 1)[1] > alpha:  # one-sided
            break
        found = threshold
    return found


def log_loss_interval(
    truth: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The log loss with its BCa bootstrap interval: by row, or by group where `groups` (rows,) is.

    More than 5,000 rows (or groups) are put at random into 5,000 blocks, and blocks are drawn: rows are as alike in a
    block as anywhere, so the interval is the same but for chance, and its cost no longer grows with the rows.

    The calibration error has no such interval: resamples add chance to chance, and where the true error is small the
    interval lies above it (docs/intervals.md). What chance makes of it is told by `calibration_by_chance`.
    """
    return _mean_interval(_losses(truth, probabilities), groups, level, resamples, seed)


def log_loss_change(
    truth: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The log loss of the probabilities `after` minus that of those `before`, of the same rows; its interval as above.

    Both are scored on the same resamples, so what tells is how far each row's loss moved.
    """
    moved = _losses(truth, after) - _losses(truth, before)
    return _mean_interval(moved, groups, level, resamples, seed)


def calibration_by_chance(
    probabilities: np.ndarray, predicted: np.ndarray, *, level: float = LEVEL, seed: int = 0
) -> tuple[float, float]:
    """The calibration error of probabilities that are exactly right: on average, and at most in `level` of cases.

    For rows that stand for themselves: where rows belong together, chance makes more of it than this.

    Each row is drawn right with its own stated probability (consistency resampling: Broecker and Smith 2007); what that
    makes of the surplus in each bin is drawn from the normal distribution of the same variance.
    """
    stated = _stated(probabilities, predicted)
    place = bin_of_row(stated, BINS)
    spread = np.sqrt(np.bincount(place, weights=stated * (1 - stated), minlength=BINS))
    drawn = np.abs(np.random.default_rng(seed).standard_normal((SIMULATIONS, BINS))) @ spread / len(stated)
    return float(drawn.mean()), float(np.quantile(drawn, level))


def share(hits: np.ndarray, groups: np.ndarray | None = None, *, level: float = LEVEL) -> Interval:
    """The share of rows, (rows,) bool, at least one, with its interval: exact (Clopper and Pearson) by row.

    By group it is a BCa bootstrap; where all rows hit or none does, exact for that many groups.
    """
    rows, right = len(hits), int(hits.sum())
    if groups is not None:
        if right not in (0, rows):
            return _mean_interval(hits, groups, level, RESAMPLES, seed=0)
        rows = len(np.unique(groups))
        right = rows * (right > 0)
    low, high = clopper_pearson(right, rows, level)
    return Interval(float(np.mean(hits)), low, high, level, "clopper-pearson")


def _mean_interval(of_row: np.ndarray, groups: np.ndarray | None, level: float, resamples: int, seed: int) -> Interval:
    """The mean over rows, (rows,), with its interval."""
    sums = _summed(np.stack([np.ones(len(of_row)), of_row], axis=1), groups, seed)
    return bca({"mean": _mean}, sums, np.ones(sums.shape[0]), level=level, resamples=resamples, seed=seed)["mean"]


def _mean(totals: np.ndarray) -> np.ndarray:
    """By row, of what each row adds to the second sum; to the first it adds 1."""
    return totals[:, 1] / _rows(totals)


def _rows(totals: np.ndarray) -> np.ndarray:
    """How many rows there are; NaN for none, as when the only one is left out."""
    return np.where(totals[:, 0] > 0, totals[:, 0], np.nan)


def _reached(rows: int, alpha: float) -> int:
    """How many of `rows` true labels must be in their sets."""
    return math.ceil((rows + 1) * (1 - alpha) - 1e-9)  # 10 x (1 - 0.7) is 3, not 3 and a rounding error


def _losses(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The log loss of each row, (rows,)."""
    given = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    return -np.log(np.clip(given, np.finfo(np.float64).eps, 1))


def _summed(sums: np.ndarray, groups: np.ndarray | None, seed: int) -> csr_array:
    """The sums (rows, n) of each row, or of each group, or of each of `BLOCKS` blocks of them."""
    from scipy.sparse import csr_array

    if groups is not None:
        sums = _by(sums, np.unique(groups, return_inverse=True)[1])
    if len(sums) > BLOCKS:
        sums = _by(sums, np.random.default_rng(seed).permutation(len(sums)) % BLOCKS)
    return csr_array(sums)


def _by(sums: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The sums of the rows of each place, numbered from 0."""
    return np.stack([np.bincount(places, weights=column) for column in sums.T], axis=1)


def _stated(probabilities: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The probability of the label that each row was given: how sure the model says it is."""
    return probabilities[np.arange(len(predicted)), predicted].astype(np.float64)


def _shifted(logits: np.ndarray, truth: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the logits minus the largest of their row, (some rows, labels) float64, and that of the true label."""
    step = max(1, CHUNK // logits.shape[1])
    for start in range(0, len(logits), step):
        part = logits[start : start + step].astype(np.float64)
        part -= part.max(axis=1, keepdims=True)
        yield part, part[np.arange(len(part)), truth[start : start + step]]


def _surplus(part: tuple[np.ndarray, np.ndarray], sharpness: float) -> float:
    """How much larger the mean logit under softmax(sharpness x logits) is than that of the true label, summed."""
    shifted, true = part
    weights = np.exp(shifted * sharpness)
    mean = np.einsum("ij,ij->i", weights, shifted) / weights.sum(axis=1)
    return float((mean - true).sum())
