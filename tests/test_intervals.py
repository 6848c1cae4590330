"""Do the intervals hold what they promise?"""

from __future__ import annotations

import numpy as np
import pytest

from graftkit.metrics import classification
from graftkit.metrics.classification import HEADLINES, Counts
from graftkit.metrics.intervals import _resample, bca, clopper_pearson

SKEWED = np.array([[40, 1, 0], [2, 9, 1], [1, 1, 3]])  # 58 rows, one label rare: bias and acceleration both matter
FOUR_CLASSES = np.array(
    [[0.32, 0.02, 0.03, 0.03], [0.02, 0.2, 0.02, 0.01], [0.02, 0.03, 0.17, 0.03], [0.01, 0.01, 0, 0.08]]
)


@pytest.mark.parametrize("name", HEADLINES)
def test_it_is_the_bca_interval_of_scipy(name):
    from scipy.stats import bootstrap

    cells = np.repeat(np.arange(9), SKEWED.ravel())  # one row of the split each

    def statistic(rows, axis):
        counts = np.stack([(rows == cell).sum(axis=axis) for cell in range(9)], axis=-1).reshape(*rows.shape[:-1], 3, 3)
        return HEADLINES[name](
            Counts(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2))
        )

    theirs = bootstrap(
        (cells,), statistic, n_resamples=20_000, method="BCa", vectorized=True, rng=1
    ).confidence_interval
    ours = classification.intervals(SKEWED, resamples=20_000)[name]
    assert ours.method == "bca"
    assert (ours.low, ours.high) == pytest.approx(
        (theirs.low, theirs.high), abs=0.012
    )  # scipy's own, over seeds: 0.012


def test_the_interval_is_a_function_of_the_counts_and_the_seed():
    first, again = classification.intervals(SKEWED), classification.intervals(SKEWED)
    assert first == again
    assert classification.intervals(SKEWED, seed=1)["macro_f1"].low != first["macro_f1"].low
    assert all(interval.low < interval.value < interval.high for interval in first.values())


def test_the_value_is_the_score():
    for name, interval in classification.intervals(SKEWED).items():
        assert interval.value == pytest.approx(float(HEADLINES[name](Counts.of(SKEWED))), abs=1e-15)


def test_a_wider_level_is_a_wider_interval():
    narrow, wide = (classification.intervals(SKEWED, level=level)["accuracy"] for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    "sizes", [[50, 3, 1, 0, 30, 7, 8], [1] * 12, [100, 200]], ids=["mixed", "all rare", "all common"]
)
def test_a_resample_draws_each_row_alike(sizes):
    drawn = np.concatenate(list(_resample(np.array(sizes), 20_000, np.random.default_rng(0))))
    shares = np.array(sizes) / sum(sizes)
    assert drawn.shape == (20_000, len(sizes))
    assert np.all(drawn.sum(axis=1) == sum(sizes))
    expected = sum(sizes) * (np.diag(shares) - np.outer(shares, shares))  # covariance of a multinomial
    assert drawn.mean(axis=0) == pytest.approx(sizes, abs=0.3)
    assert np.cov(drawn.T) == pytest.approx(expected, abs=0.03 * sum(sizes))


def test_rows_that_are_alike_may_be_counted_or_listed():
    from scipy.sparse import csr_array

    values, sizes = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 5.0]]), np.array([30, 12, 3])
    mean = {"mean": lambda totals: totals[:, 1] / totals[:, 0]}
    counted = bca(mean, csr_array(values), sizes, resamples=20_000)["mean"]
    listed = bca(mean, csr_array(np.repeat(values, sizes, axis=0)), np.ones(45, dtype=int), resamples=20_000)["mean"]
    assert counted.value == pytest.approx(listed.value)
    assert (counted.low, counted.high) == pytest.approx((listed.low, listed.high), abs=0.03)  # one step is 1/45
    assert counted.high - counted.value > 1.3 * (counted.value - counted.low)  # skewed as the rows are


def test_what_is_held_at_once_matters_by_chance_alone(monkeypatch):
    whole = classification.intervals(SKEWED, resamples=20_000)["macro_f1"]
    monkeypatch.setattr("graftkit.metrics.intervals.CHUNK", 7000)  # a hundred resamples, not quite
    parts = classification.intervals(SKEWED, resamples=20_000)["macro_f1"]
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.012)


def test_a_score_that_never_varies_says_so():
    always_first = np.array([[30, 0], [10, 0]])
    found = classification.intervals(always_first)
    assert (found["matthews"].low, found["matthews"].high, found["matthews"].method) == (0, 0, "constant")
    # But for the few resamples where no row of the second label is drawn
    assert (found["balanced_accuracy"].low, found["balanced_accuracy"].method) == (0.5, "constant")
    assert found["accuracy"].method == "bca"


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (10, 10), (1, 1), (7, 12), (999, 1000)])
def test_clopper_pearson_is_scipys(right, rows):
    from scipy.stats import binomtest

    expected = binomtest(right, rows).proportion_ci(method="exact")
    assert clopper_pearson(right, rows) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("rows", [1, 10, 100])
def test_all_right_does_not_mean_certain(rows):
    found = classification.intervals(np.diag([rows, rows]))
    assert {interval.method for interval in found.values()} == {"clopper-pearson"}
    assert {interval.value for interval in found.values()} == {interval.high for interval in found.values()} == {1.0}
    lowest = clopper_pearson(2 * rows, 2 * rows)[0]
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1"):
        assert found[name].low == pytest.approx(lowest)
    assert found["matthews"].low == pytest.approx(2 * lowest - 1)


def test_all_right_with_a_rare_label_is_less_certain():
    found = classification.intervals(np.diag([998, 2, 0]))
    assert found["accuracy"].low == pytest.approx(0.996, abs=0.001)
    # A few errors on the 998 rows would spoil the precision of the second label; the third, without a row, gets none.
    assert found["macro_f1"].low == pytest.approx(0.76, abs=0.005)


@pytest.mark.parametrize("place", [0, 1])
def test_one_row_says_next_to_nothing(place):
    one = np.zeros((2, 2), dtype=int)
    one[0, place] = 1
    found = classification.intervals(one)["accuracy"]
    assert (found.low, found.high) == pytest.approx((0.025, 1) if place == 0 else (0, 0.975))


def test_none_right_does_not_mean_hopeless():
    found = classification.intervals(np.array([[0, 5, 5], [5, 0, 5], [5, 5, 0]]))
    highest = clopper_pearson(0, 30)[1]
    assert (found["accuracy"].low, found["accuracy"].high) == pytest.approx((0, highest))
    assert (found["macro_f1"].low, found["macro_f1"].high) == pytest.approx((0, highest))


def coverage(rows: int, splits: int, seed: int) -> dict[str, float]:
    """How often the intervals of a split that is drawn from a known model hold that model's true scores."""
    rng = np.random.default_rng(seed)
    truth = {name: float(score(Counts.of(FOUR_CLASSES))) for name, score in HEADLINES.items()}
    held = dict.fromkeys(truth, 0)
    for _ in range(splits):
        confusion = rng.multinomial(rows, FOUR_CLASSES.ravel()).reshape(4, 4)
        for name, interval in classification.intervals(confusion, resamples=1000).items():
            held[name] += interval.low <= truth[name] <= interval.high
    return {name: count / splits for name, count in held.items()}


def test_95_of_100_intervals_hold_the_true_score():
    for name, share in coverage(rows=200, splits=300, seed=0).items():
        assert 0.91 <= share <= 0.985, name  # chance alone: 0.95 +- 0.013


@pytest.mark.slow
@pytest.mark.parametrize("rows", [60, 200, 2000])
def test_95_of_100_intervals_hold_the_true_score_at_every_size(rows):
    for name, share in coverage(rows, splits=2000, seed=1).items():
        assert 0.93 <= share <= 0.965, name  # chance alone: 0.95 +- 0.005
