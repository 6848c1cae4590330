"""Scores of numbers, held against SciPy and scikit-learn."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from graftkit.metrics import regression
from graftkit.metrics.sums import intervals, lead, score


def records(truth, given, sd=2.0):
    return [
        {"id": str(i), "label": float(y), "prediction": float(p), "loss": ((p - y) / sd) ** 2}
        for i, (y, p) in enumerate(zip(truth, given, strict=True))
    ]


@pytest.fixture(params=["decimals", "stars", "years"])
def pair(request):
    """Truth and answers: far apart, with many ties, and far from 0."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=83)
    given = truth + rng.normal(size=83)
    if request.param == "stars":
        return np.round(2 * truth), np.round(2 * given)
    return (truth, given) if request.param == "decimals" else (2000 + truth, 2001 + given)


def test_scores_are_those_of_scipy_and_scikit_learn(pair):
    truth, given = pair
    found = score(regression.SCORING, records(truth, given))
    assert found == pytest.approx(
        {
            "pearson": stats.pearsonr(truth, given).statistic,
            "spearman": stats.spearmanr(truth, given).statistic,
            "rmse": sk.root_mean_squared_error(truth, given),
            "mae": sk.mean_absolute_error(truth, given),
            "r2": sk.r2_score(truth, given),
            "loss": np.mean(((truth - given) / 2) ** 2),
        },
        rel=1e-9,
    )
    assert set(found) == {*regression.HEADLINES, "loss"}


def test_a_row_that_is_drawn_twice_is_two_rows(pair):
    truth, given = pair
    drawn = np.random.default_rng(1).multinomial(len(truth), np.full(len(truth), 1 / len(truth)), size=5)
    ours = regression.spearman(records(truth, given))(drawn.astype(float))
    theirs = [stats.spearmanr(np.repeat(truth, times), np.repeat(given, times)).statistic for times in drawn]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize(
    ("truth", "given", "r2"),
    [([1, 2, 3, 4], [2.5] * 4, 0.0), ([1, 2, 3, 4], [7.0] * 4, -16.2), ([3.0] * 4, [1, 2, 3, 4], 0.0), ([3], [3], 1.0)],
)
def test_where_nothing_can_be_told_no_score_is_missing(truth, given, r2):
    many = 10 if len(truth) > 1 else 1
    found = score(regression.SCORING, records(truth * many, given * many))
    assert found["pearson"] == found["spearman"] == 0
    assert found["r2"] == pytest.approx(r2) == (sk.r2_score(truth, given) if len(truth) > 1 else r2)
    for one in intervals(regression.SCORING, records(truth * many, given * many), resamples=50).values():
        assert np.isfinite([one.value, one.low, one.high]).all()


def test_intervals_hold_the_score_and_a_lead_over_a_constant_is_told():
    rng = np.random.default_rng(3)
    truth = rng.normal(size=200)
    ours, mean = records(truth, truth + rng.normal(size=200) / 2), records(truth, np.full(200, 0.01))
    found = intervals(regression.SCORING, ours, resamples=500)
    assert all(one.low < one.value < one.high for one in found.values())
    assert intervals(regression.SCORING, mean, resamples=500)["pearson"].method == "constant"
    for name in regression.HEADLINES:
        ahead = lead(regression.SCORING, ours, mean, name, resamples=500)
        assert 0 < ahead.low < ahead.value < ahead.high


def test_parts_hold_each_row_once_and_equal_numbers_together():
    truth = np.array([1.0] * 30 + [2.0] * 3 + list(np.linspace(3, 4, 27)))
    parts = regression.by_truth(records(truth, truth + 0.5))
    assert sum(part.rows for part in parts) == 60
    assert (parts[0].low, parts[0].high, parts[0].rows) == (1, 1, 30)
    assert all(one.high < other.low for one, other in pairwise(parts))
    assert all(part.error == pytest.approx(0.5) == part.median_error for part in parts)
    assert regression.within(records([0, 0, 0, 0], [1, -2, 3, 9]), 0.5) == 2
