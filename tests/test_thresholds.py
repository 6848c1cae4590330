"""Are the curves, their areas and their intervals what they are called?"""

from __future__ import annotations

import numpy as np
import pytest

from graftkit.metrics import thresholds
from graftkit.metrics.thresholds import AREAS, at, auroc, average_precision, best_threshold, curve, intervals, thinned


def make(rows: int, *, share: float = 0.2, apart: float = 1.0, places: int | None = None, seed: int = 0):
    """The probability of a label, rounded to so many places, and whether rows have it."""
    rng = np.random.default_rng(seed)
    having = rng.random(rows) < share
    stated = 1 / (1 + np.exp(-rng.normal(size=rows) - apart * having))
    return (stated if places is None else stated.round(places)), having


CASES = {
    "no ties": make(500),
    "ties": make(500, places=1),
    "all tied": (np.full(50, 0.5), np.arange(50) % 5 == 0),
    "backwards": make(200, apart=-2.0),
    "one row has it": (np.linspace(0, 1, 30), np.arange(30) == 17),
    "all but one": (np.linspace(0, 1, 30), np.arange(30) != 17),
    "told apart": (np.linspace(0, 1, 30), np.arange(30) > 20),
    "float32": (make(500)[0].astype(np.float32), make(500)[1]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_areas_are_those_of_scikit_learn(case):
    from sklearn.metrics import average_precision_score, roc_auc_score

    stated, having = CASES[case]
    found = curve(stated, having)
    assert average_precision(found) == pytest.approx(average_precision_score(having, stated), abs=1e-12)
    assert auroc(found) == pytest.approx(roc_auc_score(having, stated), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_points_are_those_of_scikit_learn(case):
    from sklearn.metrics import precision_recall_curve, roc_curve

    stated, having = CASES[case]
    found = curve(stated, having)
    precision, recall, limits = precision_recall_curve(having, stated)
    assert found.threshold.tolist() == limits[::-1].tolist()
    assert found.precision == pytest.approx(precision[-2::-1], abs=1e-12)
    assert found.recall == pytest.approx(recall[-2::-1], abs=1e-12)
    false_alarms, recall, _ = roc_curve(having, stated, drop_intermediate=False)
    assert found.false_alarms == pytest.approx(false_alarms[1:], abs=1e-12)
    assert found.recall == pytest.approx(recall[1:], abs=1e-12)


@pytest.mark.parametrize("has_it", [True, False])
def test_with_one_kind_of_row_there_is_no_curve(has_it):
    assert curve(np.linspace(0, 1, 9), np.full(9, has_it)) is None


@pytest.mark.parametrize("case", CASES)
def test_no_other_threshold_has_a_higher_f1(case):
    from sklearn.metrics import f1_score, precision_score, recall_score

    stated, having = CASES[case]
    limit = best_threshold(curve(stated, having))
    found = at(stated >= limit, having)
    assert found.f1 == max(at(stated >= other, having).f1 for other in stated)
    assert found.f1 == pytest.approx(f1_score(having, stated >= limit), abs=1e-12)
    assert found.precision == pytest.approx(precision_score(having, stated >= limit), abs=1e-12)
    assert found.recall == pytest.approx(recall_score(having, stated >= limit), abs=1e-12)
    assert found.false_alarms == pytest.approx((stated >= limit)[~having].mean(), abs=1e-12)
    assert (found.right, found.given) == (having[stated >= limit].sum(), (stated >= limit).sum())


def test_a_threshold_that_no_row_reaches_gives_nothing():
    assert at(np.zeros(4, dtype=bool), np.array([1, 0, 0, 0], dtype=bool)) == (0.0, 0.0, 0.0, 0.0, 0, 0)


@pytest.mark.parametrize("case", ["no ties", "ties"])
def test_influence_is_how_much_an_area_moves_with_the_weight_of_a_row(case):
    from sklearn.metrics import average_precision_score, roc_auc_score

    stated, having = CASES[case]
    found = curve(stated, having)
    point = np.searchsorted(-found.threshold, -stated)
    theirs = {"average_precision": average_precision_score, "auroc": roc_auc_score}
    for name, (have, lack) in thresholds._influences(found).items():
        for row in (0, int(np.flatnonzero(having)[3]), int(np.argmin(stated)), int(np.argmax(stated))):
            weights = np.ones(len(stated))
            weights[row] += 1e-5
            moved = (theirs[name](having, stated, sample_weight=weights) - theirs[name](having, stated)) / 1e-5
            expected = (have if having[row] else lack)[point[row]]
            assert moved == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(("rows", "apart"), [(150, 1.0), (150, 2.5), (600, 1.0)])
def test_intervals_hold_the_truth(rows, apart):
    true = {name: area(curve(*make(300_000, apart=apart))) for name, area in AREAS.items()}
    hits = dict.fromkeys(AREAS, 0)
    for seed in range(1, 501):
        stated, having = make(rows, apart=apart, seed=seed)
        for name, one in intervals(curve(stated, having), stated, having).items():
            hits[name] += one.low <= true[name] <= one.high
    assert all(0.915 < count / 500 < 0.985 for count in hits.values()), hits


def test_with_five_rows_that_have_it_intervals_hold_the_truth():
    """Without t for 5 rows, or their n / (n - 1), they hold it less often: 0.98 and 0.91, measured."""
    rng = np.random.default_rng(9)
    every = np.arange(305_000) % 61 == 0
    stated = rng.normal(size=len(every)) + 1.5 * every
    true = {name: area(curve(stated, every)) for name, area in AREAS.items()}
    having, hits = np.arange(305) < 5, dict.fromkeys(AREAS, 0)
    for _ in range(1000):
        stated = rng.normal(size=305) + 1.5 * having
        for name, one in intervals(curve(stated, having), stated, having).items():
            hits[name] += one.low <= true[name] <= one.high
    assert hits["average_precision"] >= 985
    assert 925 <= hits["auroc"] <= 960


def in_groups(groups: int, rng: np.random.Generator):
    """40 rows each, easy or hard together."""
    group = np.repeat(np.arange(groups), 40)
    having = rng.random(len(group)) < 0.3
    easy = 0.7 * rng.normal(size=groups)[group]
    return having + easy * np.where(having, 1, -1) + rng.normal(size=len(group)), having, group


def test_few_groups_are_few_however_many_rows_they_have():
    stated, having, _ = in_groups(5000, np.random.default_rng(9))
    true, rng = auroc(curve(stated, having)), np.random.default_rng(3)
    held = []
    for _ in range(200):
        stated, having, group = in_groups(3, rng)
        one = intervals(curve(stated, having), stated, having, group)["auroc"]
        held.append(one.low <= true <= one.high)
    assert np.mean(held) > 0.9


def test_what_counts_is_how_many_groups_have_it():
    stated, having = make(400)
    group = np.where(having, np.arange(400) % 2, 2 + np.arange(400) % 50)
    wide = intervals(curve(stated, having), stated, having, group)["auroc"]
    one = intervals(curve(stated, having), stated, having, np.where(having, 0, group))["auroc"]
    assert wide.high - wide.low > 0.2
    assert one.method == "constant"


@pytest.mark.parametrize("seed", range(5))
def test_one_group_has_no_interval(seed):
    stated, having = make(120, seed=seed)
    found = intervals(curve(stated, having), stated, having, np.zeros(120, dtype=int))
    assert {one.method for one in found.values()} == {"constant"}


def test_influences_that_cancel_but_for_rounding_have_no_interval(monkeypatch):
    stated, having = make(120)
    group = np.arange(120) % 12
    monkeypatch.setattr(thresholds, "_influences", lambda found: dict.fromkeys(AREAS, (found.recall * 1e-16,) * 2))
    found = intervals(curve(stated, having), stated, having, group)
    assert {one.method for one in found.values()} == {"constant"}


def test_rows_of_a_group_count_as_one():
    stated, having = make(400, places=2)
    alone = intervals(curve(stated, having), stated, having)
    single = intervals(curve(stated, having), stated, having, np.arange(400)[::-1])
    stated, having = np.repeat(stated, 4), np.repeat(having, 4)
    grouped = intervals(curve(stated, having), stated, having, np.repeat(np.arange(400), 4))
    naive = intervals(curve(stated, having), stated, having)
    for name, one in alone.items():
        assert single[name].low == pytest.approx(one.low, abs=1e-12)
        assert grouped[name].low == pytest.approx(one.low, abs=0.003)
        assert grouped[name].high == pytest.approx(one.high, abs=0.003)
        assert naive[name].high - naive[name].low < 0.6 * (one.high - one.low)


@pytest.mark.parametrize("case", ["told apart", "one row has it", "all but one", "all tied"])
def test_where_nothing_varies_there_is_no_interval(case):
    found = intervals(curve(*CASES[case]), *CASES[case])
    assert found["auroc"].method == "constant"
    assert found["auroc"].low == found["auroc"].value == found["auroc"].high


@pytest.mark.parametrize("points", [1, 2, 3, 149, 150, 151, 5000])
def test_a_thinned_line_keeps_its_ends_and_its_bends(points):
    across = np.linspace(0, 1, points)
    up = np.where(across < 0.5, 0.0, 1.0)
    kept = thinned(across, up, 150)
    assert 1 <= len(kept) <= 150
    assert (kept[0], kept[-1]) == (0, points - 1)
    assert (np.diff(kept) > 0).all()
    assert np.abs(np.diff(across[kept])).max(initial=0) <= max(0.03, 1 / max(1, points - 1))
