"""Scores that follow from sums over rows, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from graftkit.metrics.sums import Scoring, intervals, lead, score


def ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean rank of each value among rows that stand so often: (n, rows)."""
    below = (values[None] < values[:, None]).astype(float)
    same = (values[None] == values[:, None]).astype(float)
    return weights @ below.T + (weights @ same.T + 1) / 2


def rank_correlation(records):
    """Spearman's, of rows that stand so often."""
    truth, given = (np.array([record[name] for record in records]) for name in ("label", "prediction"))

    def statistic(weights):
        one, other = ranks(weights, truth), ranks(weights, given)
        total = weights.sum(axis=1, keepdims=True)
        one, other = (side - (weights * side).sum(axis=1, keepdims=True) / total for side in (one, other))
        spread = (weights * one**2).sum(axis=1) * (weights * other**2).sum(axis=1)
        return (weights * one * other).sum(axis=1) / np.sqrt(np.where(spread, spread, 1))

    return statistic


SCORING = Scoring(
    sums=lambda records: np.array(
        [[1.0, abs(r["label"] - r["prediction"]), r["label"] == r["prediction"]] for r in records]
    ),
    statistics={"error": lambda t: t[:, 1] / t[:, 0], "exact": lambda t: t[:, 2] / t[:, 0]},
    lower=frozenset({"error"}),
    shares=frozenset({"exact"}),
    weighed={"spearman": rank_correlation},
)


def rows(count, noise, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 10, count)
    given = truth + rng.integers(-noise, noise + 1, count)
    return [
        {"id": str(i), "label": float(t), "prediction": float(g)}
        for i, (t, g) in enumerate(zip(truth, given, strict=True))
    ]


def test_scores_are_those_of_all_rows():
    records = rows(200, 3)
    truth, given = (np.array([r[name] for r in records]) for name in ("label", "prediction"))
    found = score(SCORING, records)
    assert found["error"] == pytest.approx(np.abs(truth - given).mean())
    assert found["exact"] == (truth == given).mean()
    assert found["spearman"] == pytest.approx(spearmanr(truth, given).statistic)


def test_intervals_hold_the_score_and_shrink_with_rows():
    few, many = (intervals(SCORING, rows(count, 3)) for count in (50, 800))
    for name, interval in many.items():
        assert interval.low < interval.value < interval.high
        assert interval.high - interval.low < (few[name].high - few[name].low) / 2


def test_whole_groups_are_drawn():
    records = rows(40, 3)
    doubled = [record for record in records for _ in range(4)]
    alone = intervals(SCORING, records)
    together = intervals(SCORING, doubled, np.repeat(np.arange(40), 4))
    taken_apart = intervals(SCORING, doubled)
    for name in ("error", "exact", "spearman"):
        width = alone[name].high - alone[name].low
        assert together[name].high - together[name].low == pytest.approx(width, rel=0.15)
        assert taken_apart[name].high - taken_apart[name].low < 0.7 * width


def test_a_share_of_all_rows_has_the_exact_interval():
    found = intervals(SCORING, rows(100, 0))["exact"]
    assert (found.value, found.high, found.method) == (1.0, 1.0, "clopper-pearson")
    assert found.low == pytest.approx(0.9638, abs=1e-4)
    assert intervals(SCORING, rows(100, 0), np.repeat(np.arange(10), 10))["exact"].low < 0.75
    assert intervals(SCORING, rows(100, 0))["error"].method == "constant"


@pytest.mark.parametrize("name", ["error", "exact", "spearman"])
def test_a_lead_is_above_0_for_the_better_side(name):
    good, bad = rows(300, 1), rows(300, 4)
    ahead, behind = lead(SCORING, good, bad, name), lead(SCORING, bad, good, name)
    assert 0 < ahead.low < ahead.value < ahead.high
    assert behind.value == pytest.approx(-ahead.value)
    found = abs(score(SCORING, good)[name] - score(SCORING, bad)[name])
    assert ahead.value == pytest.approx(found)
    assert lead(SCORING, good, good, name).method == "constant"


def test_a_lead_on_the_same_rows_is_surer_than_two_scores_apart():
    good = rows(300, 2)
    bad = [{**r, "prediction": r["prediction"] + 1.0} for r in good]
    ahead, alone = lead(SCORING, good, bad, "error"), intervals(SCORING, bad)["error"]
    assert ahead.high - ahead.low < 1.2 * (alone.high - alone.low)
    grouped = lead(SCORING, good, bad, "error", np.repeat(np.arange(30), 10))
    assert grouped.value == ahead.value
    assert (grouped.low, grouped.high) != (ahead.low, ahead.high)


def test_many_rows_cost_no_more_than_they_must():
    scoring = Scoring(
        lambda records: np.zeros((len(records), 1)), {}, weighed={"mean": lambda records: mean_of(records)}
    )
    records = rows(3000, 3)
    calls.clear()
    wide = intervals(scoring, records)["mean"]
    assert sum(calls) < 3000  # resamples, and the parts that are left out
    plain = Scoring(lambda r: np.array([[1.0, one["prediction"]] for one in r]), {"mean": lambda t: t[:, 1] / t[:, 0]})
    exact = intervals(plain, records)["mean"]
    assert wide.value == pytest.approx(exact.value)
    assert wide.low == pytest.approx(exact.low, abs=0.03)
    assert wide.high == pytest.approx(exact.high, abs=0.03)


calls: list[int] = []


def mean_of(records):
    """Of the predictions; counts how often it is asked."""
    values = np.array([record["prediction"] for record in records])

    def statistic(weights):
        calls.append(len(weights))
        return weights @ values / weights.sum(axis=1)

    return statistic


def test_of_one_group_there_is_no_interval_and_no_warning(recwarn):
    records, one = rows(30, 3), np.zeros(30, int)
    found = intervals(SCORING, records, one)
    assert {interval.method for interval in found.values()} == {"constant"}
    assert found["error"].value == score(SCORING, records)["error"]
    assert lead(SCORING, records, rows(30, 5), "error", one).method == "constant"
    assert not recwarn
