"""Is one classifier better than another, or was it luck?

Both answer the same rows, so what tells is the rows on which they part. That one model is better than another says
nothing of a third, which the same recipe would give with another seed: for recipes there is `over_seeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.metrics.classification import HEADLINES, Counts, confusion, per_class
from graftkit.metrics.intervals import CHUNK, LEVEL, RESAMPLES, Interval, Statistic, bca, clopper_pearson

if TYPE_CHECKING:
    from scipy.sparse import csr_array

ALPHA = 0.05  # where there is no difference, the largest share of tests that may find one
POWER = 0.8
SWAPS = 10_000


def mcnemar(lost: np.ndarray, gained: np.ndarray) -> np.ndarray:
    """P-value: how likely so uneven a split is if both models are right equally often (exact test of McNemar 1947).

    Of the rows that one model alone has right, `lost` are the first's and `gained` the second's. Each falls to either
    side with probability 1/2; two-sided, and 1 where there is no such row.
    """
    from scipy.special import bdtr

    lost, gained = np.asarray(lost), np.asarray(gained)
    return np.minimum(1.0, 2 * bdtr(np.minimum(lost, gained), lost + gained, 0.5))


def holm(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """P-values raised so that the chance of even one false alarm among them is kept (Holm 1979); in the same order."""
    given = np.asarray(values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    raised = np.empty_like(given)
    raised[order] = np.minimum(1.0, np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)))
    return raised


def power(rows: int, discordant: float, difference: float, alpha: float = ALPHA) -> float:
    """How likely the exact test of McNemar finds a true difference of accuracy, two-sided at level `alpha`.

    `discordant` is the true share of rows that one model alone has right. The power given the number of such rows,
    averaged over that number: the exact unconditional power of Duffy 1984, Biometrics 40, 1005-1015.
    """
    from scipy.special import bdtr, betaln, xlog1py, xlogy

    middle, reach = rows * discordant, 10 + 8 * np.sqrt(rows * discordant * (1 - discordant))  # beyond: under 1e-12
    counts = np.arange(max(0, int(middle - reach)), min(rows, int(middle + reach)) + 1)
    ways = -betaln(counts + 1, rows - counts + 1) - np.log(rows + 1)  # the logarithm of the binomial coefficient
    weights = np.exp(ways + xlogy(counts, discordant) + xlog1py(rows - counts, -discordant))
    critical = _critical(counts, alpha)
    reached, critical = critical >= 0, np.maximum(critical, 0)
    to_one = (1 + difference / discordant) / 2  # the share of such rows that the better model has right
    found = bdtr(critical, counts, to_one) + bdtr(critical, counts, 1 - to_one)
    return float(np.sum(weights * np.where(reached, found, 0.0)))


def smallest_difference(rows: int, discordant: float, alpha: float = ALPHA, wanted: float = POWER) -> float | None:
    """The true difference of accuracy that the exact test of McNemar finds in 4 of 5 test sets like this one.

    One model alone is right on as large a share of rows as here (`discordant` of `rows`), or as large as the difference
    needs. None where so few rows can show nothing.
    """
    from scipy.optimize import brentq

    def surplus(difference: float) -> float:
        return power(rows, max(discordant / rows, difference), difference, alpha) - wanted

    return float(brentq(surplus, 1e-9, 1.0, xtol=1e-7)) if surplus(1.0) > 0 else None


def differences(
    truth: np.ndarray,  # (rows,), as places in the labels
    first: np.ndarray,  # (models, rows): what each of the first models says
    second: np.ndarray,  # (models, rows)
    labels: int,
    groups: np.ndarray | None = None,  # (rows,), numbered from 0
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """For each of `HEADLINES`, the mean score of the second models minus that of the first, by a paired bootstrap.

    A resample draws rows, or whole groups, and all models are scored on them; BCa. Where all models are right on the
    same rows no resample tells them apart: accuracy then has the exact interval of the share of rows (groups) that
    still could.
    """
    sums, sizes = _sums(truth, np.concatenate([first, second]), labels, groups)

    def of_totals(score: Callable[[Counts], np.ndarray]) -> Statistic:
        def difference(totals: np.ndarray) -> np.ndarray:
            scores = [score(counts) for counts in _counts(totals, labels)]
            return np.mean(scores[len(first) :], axis=0) - np.mean(scores[: len(first)], axis=0)

        return difference

    statistics = {name: of_totals(score) for name, score in HEADLINES.items()}
    found = bca(statistics, sums, sizes, level=level, resamples=resamples, seed=seed)
    if found["accuracy"].method == "constant" and found["accuracy"].value == 0:
        most = clopper_pearson(0, int(sizes.sum()), level)[1]
        found["accuracy"] = Interval(0.0, -most, most, level, "clopper-pearson")
    return found


def swap_test(
    truth: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    labels: int,
    groups: np.ndarray | None = None,
    *,
    swaps: int = SWAPS,
    seed: int = 0,
) -> dict[str, float]:
    """For each of `HEADLINES`, how likely so large a difference is if it were chance which model gave which answer.

    `one` and `other` are (rows,). On each row the two answers trade places or not, as a coin falls, 10,000 times
    (approximate randomisation: Noreen 1989; Yeh 2000, "More accurate tests for the statistical significance of result
    differences"). Counted out over all tosses, that of accuracy is the exact test of McNemar.

    With `groups` (rows,), numbered from 0, one coin falls for all rows of a group: they are no independent witnesses.
    """
    sums, sizes = _sums(truth, np.stack([one, other]), labels, groups)
    own, change = sums[:, labels : 3 * labels], sums[:, 3 * labels :] - sums[:, labels : 3 * labels]  # (kinds, ...)
    apart = np.flatnonzero(abs(change).sum(axis=1))
    truths, ones, others = sizes @ sums[:, :labels], sizes @ own, sizes @ (own + change)

    def difference(moved: np.ndarray) -> dict[str, np.ndarray]:
        before, after = (
            Counts(total[..., :labels], truths, total[..., labels:]) for total in (ones + moved, others - moved)
        )
        return {name: score(after) - score(before) for name, score in HEADLINES.items()}

    seen = difference(np.zeros((1, 2 * labels)))
    as_far = dict.fromkeys(HEADLINES, 0)
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // max(len(apart), 6 * labels))
    for start in range(0, swaps, step):
        tosses = rng.binomial(sizes[apart], 0.5, size=(min(step, swaps - start), len(apart)))
        for name, drawn in difference(tosses @ change[apart]).items():
            as_far[name] += int(np.sum(np.abs(drawn) >= np.abs(seen[name]) - 1e-12))
    return {name: (count + 1) / (swaps + 1) for name, count in as_far.items()}


@dataclass(frozen=True)
class OverSeeds:
    """A difference between two recipes, by the models that several seeds gave."""

    interval: Interval
    p: float
    freedom: float  # degrees of freedom; few of them make the interval wide
    smallest: float  # the true difference that is found in 4 of 5 cases


def over_seeds(
    first: np.ndarray, second: np.ndarray, rows: int, rows_sd: float, *, level: float = LEVEL, alpha: float = ALPHA
) -> OverSeeds:
    """The mean of the second scores minus that of the first, (seeds,) each, at least two: over other seeds and rows.

    Welch's t (1947) with one more part: seeds vary within each arm, and with other test rows the difference of the
    means would vary by `rows_sd`. What varies with both is counted twice, so that the interval is rather too wide. The
    degrees of freedom are Satterthwaite's (1946), the smallest difference Bloom's (1995, Evaluation Review 19).
    """
    from scipy.special import stdtr, stdtrit

    value = float(np.mean(second) - np.mean(first))
    parts = np.array([np.var(first, ddof=1) / len(first), np.var(second, ddof=1) / len(second), rows_sd**2])
    freedoms = np.array([len(first) - 1, len(second) - 1, max(1, rows - 1)])
    spread = float(np.sqrt(parts.sum()))
    if spread == 0:
        nothing = Interval(value, value, value, level, "constant")
        return OverSeeds(nothing, float(value == 0), float(freedoms.sum()), 0.0)
    freedom = float(parts.sum() ** 2 / np.sum(parts**2 / freedoms))
    reach = spread * float(stdtrit(freedom, (1 + level) / 2))
    smallest = spread * float(stdtrit(freedom, 1 - alpha / 2) + stdtrit(freedom, POWER))
    interval = Interval(value, value - reach, value + reach, level, "welch")
    return OverSeeds(interval, float(2 * stdtr(freedom, -abs(value) / spread)), freedom, smallest)


def class_changes(
    truth: np.ndarray, first: np.ndarray, second: np.ndarray, labels: Sequence[str]
) -> list[dict[str, Any]]:
    """One line per label, the largest change of F1 first: mean F1 and recall of the first models, and of the second.

    Of a pair also the rows of the label that are lost and gained, and the p-value of that (exact McNemar, raised by
    Holm for the number of labels). `first` and `second` are (models, rows).
    """

    def mean(models: np.ndarray) -> list[dict[str, Any]]:
        tables = [per_class(confusion(truth, said, len(labels)), labels) for said in models]
        return [
            {"support": lines[0]["support"]} | {name: float(np.mean([line[name] for line in lines])) for name in SCORES}
            for lines in zip(*tables, strict=True)
        ]

    changes = []
    for label, one, other in zip(labels, mean(first), mean(second), strict=True):
        line = {"label": label, "support": one["support"]}
        changes.append(line | {name: (one[name], other[name]) for name in SCORES})
    if len(first) == len(second) == 1:
        right, now = first[0] == truth, second[0] == truth
        lost = np.bincount(truth[right & ~now], minlength=len(labels))
        gained = np.bincount(truth[~right & now], minlength=len(labels))
        raised = holm(mcnemar(lost, gained)).tolist()
        for line, *facts in zip(changes, lost.tolist(), gained.tolist(), raised, strict=True):
            line |= dict(zip(("lost", "gained", "p"), facts, strict=True))
    return sorted(changes, key=lambda line: -abs(line["f1"][1] - line["f1"][0]))


SCORES = ("f1", "recall")


def _critical(counts: np.ndarray, alpha: float) -> np.ndarray:
    """Of so many rows, the most on the smaller side with which the test finds a difference; -1 where it cannot."""
    from scipy.special import bdtr, bdtrik

    guess = np.floor(np.nan_to_num(bdtrik(alpha / 2, counts, 0.5), nan=0.0)).astype(np.int64)
    guess = np.clip(guess + 1, 0, counts // 2)
    for _ in range(3):  # the guess is at most one or two too high
        guess = np.where((guess >= 0) & (2 * bdtr(np.maximum(guess, 0), counts, 0.5) > alpha), guess - 1, guess)
    return guess


def _sums(
    truth: np.ndarray, said: np.ndarray, labels: int, groups: np.ndarray | None = None
) -> tuple[csr_array, np.ndarray]:
    """What one row of each kind adds to the counts, (kinds, (1 + 2 x models) x labels), and the rows of each kind.

    Rows with the same label and the same answers, (models, rows), are one kind. Columns: rows that have each label;
    then of each model in turn the rows it has right, and the rows it gives each label. With `groups` (rows,) each group
    is a kind by itself, and adds what its rows do.
    """
    from scipy.sparse import csr_array

    (truth, *said), kinds, sizes = np.unique(
        np.concatenate([truth[None], said]), axis=1, return_inverse=True, return_counts=True
    )
    cells = np.arange(len(sizes))
    rows, columns = [cells], [truth]
    for place, answers in enumerate(said):
        right = np.flatnonzero(answers == truth)
        rows += [right, cells]
        columns += [(1 + 2 * place) * labels + truth[right], (2 + 2 * place) * labels + answers]
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    sums = csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(sizes), (1 + 2 * len(said)) * labels))
    if groups is None:
        return sums, sizes
    count = int(groups.max()) + 1
    held = csr_array((np.ones(len(groups)), (groups, kinds.ravel())), shape=(count, len(sizes)))
    return held @ sums, np.ones(count, dtype=np.int64)


def _counts(totals: np.ndarray, labels: int) -> Iterator[Counts]:
    """The counts of each model in turn, from totals of `_sums`."""
    truth = totals[..., :labels]
    for start in range(labels, totals.shape[-1], 2 * labels):
        yield Counts(totals[..., start : start + labels], truth, totals[..., start + labels : start + 2 * labels])
