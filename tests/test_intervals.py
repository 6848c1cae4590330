"""Do the intervals hold what they promise?"""

from __future__ import annotations

import numpy as np
import pytest
from test_report import chapter, make_run, report_of, tables_of

from graftkit.metrics import classification
from graftkit.metrics.classification import HEADLINES, Counts
from graftkit.metrics.intervals import _resample, bca, clopper_pearson
from graftkit.report import write_report
from graftkit.report.tables import GROUP, read_predictions, write_measures

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


def coverage(cells: np.ndarray, rows: int, splits: int, seed: int, resamples: int = 1000) -> dict[str, float]:
    """How often the intervals of a split that is drawn from a known model hold that model's true scores."""
    rng = np.random.default_rng(seed)
    truth = {name: float(score(Counts.of(cells))) for name, score in HEADLINES.items()}
    held = dict.fromkeys(truth, 0)
    for _ in range(splits):
        confusion = rng.multinomial(rows, cells.ravel()).reshape(cells.shape)
        for name, interval in classification.intervals(confusion, resamples=resamples).items():
            held[name] += interval.low <= truth[name] <= interval.high
    return {name: count / splits for name, count in held.items()}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [60, 200, 2000])
def test_95_of_100_intervals_hold_the_true_score_at_every_size(rows):
    for name, share in coverage(FOUR_CLASSES, rows, splits=2000, seed=1).items():
        assert 0.93 <= share <= 0.965, name  # chance alone: 0.95 +- 0.005


def eight_classes() -> np.ndarray:
    """The cells of a balanced model of eight classes, whose recalls are 0.7 to 0.95 and whose errors clump."""
    recall, rng = np.linspace(0.7, 0.95, 8), np.random.default_rng(8)
    cells = np.diag(recall)
    for place in range(8):
        cells[place, np.arange(8) != place] = (1 - recall[place]) * rng.dirichlet(np.ones(7))
    return cells / 8


def test_the_intervals_of_1000_data_sets_hold_the_true_scores_in_93_to_97_percent():
    found = coverage(eight_classes(), rows=500, splits=1000, seed=0)
    assert found.keys() == HEADLINES.keys()
    for name, share in found.items():
        assert 0.93 <= share <= 0.97, name  # chance alone: 0.95 +- 0.007


# --- by class ----------------------------------------------------------------


@pytest.mark.parametrize(("name", "place"), [("precision", 0), ("recall", 1), ("f1", 1)])
def test_the_interval_of_a_class_is_the_bca_interval_of_scipy(name, place):
    from scipy.stats import bootstrap

    cells = np.repeat(np.arange(9), SKEWED.ravel())
    truth, predicted = np.divmod(cells, 3)

    def statistic(truth, predicted, axis):
        has, given = (truth == place), (predicted == place)
        right, has, given = ((has & given).sum(axis=axis), has.sum(axis=axis), given.sum(axis=axis))
        with np.errstate(invalid="ignore"):
            return {"precision": right / given, "recall": right / has, "f1": 2 * right / (has + given)}[name]

    theirs = bootstrap(
        (truth, predicted), statistic, n_resamples=20_000, method="BCa", vectorized=True, paired=True, rng=1
    ).confidence_interval
    ours = classification.all_intervals(SKEWED, resamples=20_000).classes[place][name]
    assert ours.method == "bca"
    assert ours.value == pytest.approx(classification.per_class(SKEWED, "abc")[place][name], abs=1e-15)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)  # one of 12 rows is 0.08


def test_headlines_are_the_same_with_and_without_classes():
    assert classification.all_intervals(SKEWED, seed=3).scores == classification.intervals(SKEWED, seed=3)


def test_where_all_of_a_class_is_right_or_none_its_intervals_are_exact():
    confusion = np.array([[30, 0, 0, 0], [4, 0, 0, 0], [0, 6, 9, 0], [0, 0, 0, 0]])
    first, second, third, fourth = classification.all_intervals(confusion).classes
    assert fourth == {}  # no row to tell from
    ends = {
        ("recall", 0): (first, clopper_pearson(30, 30)),
        ("recall", 1): (second, clopper_pearson(0, 4)),
        ("precision", 1): (second, clopper_pearson(0, 6)),
        ("precision", 2): (third, clopper_pearson(9, 9)),
    }
    for (name, _), (found, expected) in ends.items():
        assert (found[name].low, found[name].high) == pytest.approx(expected)
        assert found[name].method == "clopper-pearson"
        assert found[name].value == (expected[1] == 1)
    # F1 of the second is 0 of the 10 rows that have it or are given it
    high = clopper_pearson(0, 10)[1]
    assert (second["f1"].low, second["f1"].high) == pytest.approx((0, 2 * high / (1 + high)))
    assert {found[name].method for found, name in ((first, "precision"), (first, "f1"), (third, "recall"))} == {"bca"}
    low = clopper_pearson(5, 5)[0]
    perfect = classification.all_intervals(np.diag([5, 5])).classes[0]["f1"]
    assert (perfect.low, perfect.high) == pytest.approx((2 * low / (1 + low), 1))


def test_a_resample_without_a_row_of_the_class_does_not_pull_it_down():
    # One of two rows is right; 13% of resamples have neither, and are no reason to think of a recall of 0
    found = classification.all_intervals(np.array([[1, 1], [0, 98]]), resamples=20_000).classes[0]["recall"]
    assert (found.low, found.high) == (0, 1)
    in_one_group = np.zeros((40, 4))
    in_one_group[0] = [3, 2, 0, 0]
    in_one_group[1:, 3] = 2
    confusion = in_one_group.sum(axis=0).astype(int).reshape(2, 2)
    from scipy.sparse import csr_array

    found = classification.all_intervals(confusion, csr_array(in_one_group)).classes[0]["recall"]
    assert (found.low, found.high, found.method) == (0.6, 0.6, "constant")


# --- by group ----------------------------------------------------------------


def grouped(groups: int, each: int, seed: int, share: float = 0.8, alike: float = 0.2):
    """Truth, prediction and group of rows of two classes; how many are right differs from group to group."""
    rng = np.random.default_rng(seed)
    right = rng.beta(share / alike, (1 - share) / alike, groups)
    group = np.repeat(np.arange(groups), each)
    truth = rng.integers(0, 2, groups * each)
    return truth, np.where(rng.random(groups * each) < right[group], truth, 1 - truth), group


def by_group(truth: np.ndarray, predicted: np.ndarray, group: np.ndarray, labels: int = 2, **how):
    confusion = classification.confusion(truth, predicted, labels)
    return classification.all_intervals(confusion, classification.group_counts(truth, predicted, group, labels), **how)


def test_groups_of_one_row_are_rows():
    cells = np.repeat(np.arange(9), SKEWED.ravel())
    found = by_group(*np.divmod(cells, 3), np.arange(len(cells)), labels=3)
    assert found == classification.all_intervals(SKEWED)


def test_groups_are_drawn_whole():
    from scipy.stats import bootstrap

    truth, predicted, group = grouped(30, 12, seed=0)
    shares = (truth == predicted).reshape(30, 12).mean(axis=1)
    theirs = bootstrap((shares,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    ours = by_group(truth, predicted, group, resamples=20_000).scores["accuracy"]
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)
    by_row = classification.intervals(classification.confusion(truth, predicted, 2))["accuracy"]
    assert ours.high - ours.low > 1.5 * (by_row.high - by_row.low)


def test_the_order_of_rows_and_the_names_of_groups_do_not_matter():
    truth, predicted, group = grouped(12, 5, seed=1)
    order = np.random.default_rng(0).permutation(len(truth))
    assert by_group(truth[order], predicted[order], group[order]) == by_group(truth, predicted, group)


def test_groups_without_an_error_count_as_one_witness_each():
    truth, group = np.tile([0, 1], 100), np.repeat(np.arange(20), 10)
    found = by_group(truth, truth, group)
    lowest = clopper_pearson(20, 20)[0]
    assert found.scores["accuracy"].low == pytest.approx(lowest)
    assert found.classes[0]["recall"].low == pytest.approx(lowest)
    halves = np.repeat([0, 1], 50)
    alone = by_group(halves, halves, halves)  # each class in a group of its own
    assert alone.classes[1]["recall"].low == pytest.approx(clopper_pearson(1, 1)[0])


def test_one_group_says_nothing():
    found = by_group(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), np.zeros(4, dtype=int))
    assert {interval.method for interval in found.scores.values()} == {"constant"}


@pytest.mark.slow
def test_95_of_100_intervals_by_group_hold_the_true_score_and_those_by_row_do_not():
    held = {"group": 0, "row": 0}
    for seed in range(200):
        truth, predicted, group = grouped(50, 10, seed)
        counts = classification.confusion(truth, predicted, 2)
        ways = {"group": classification.group_counts(truth, predicted, group, 2), "row": None}
        for way, groups in ways.items():
            found = classification.intervals(counts, groups, resamples=500)["accuracy"]
            held[way] += found.low <= 0.8 <= found.high
    assert 0.9 <= held["group"] / 200 <= 0.99  # chance alone: 0.95 +- 0.015
    assert held["row"] / 200 < 0.85


# --- in the report -----------------------------------------------------------


def run_with_groups(folder, groups: int, **how):
    """A run of 120 rows whose rows belong to so many groups."""
    make_run(folder, report={"group": "pa|tient"}, **how)
    for split in ("dev", "test"):
        records = read_predictions(folder, split)[1]
        rows = [{"id": record["id"], GROUP: place % groups} for place, record in enumerate(records)]
        write_measures(folder, split, rows)
    return folder


def test_the_report_says_that_groups_were_drawn(tmp_path):
    scores = chapter(report_of(run_with_groups(tmp_path, 40)), "Scores")
    how = "(Bootstrap by the 40 groups of column “pa&#124;tient”, each drawn with all its rows: 2,000 resamples, BCa.)"
    assert how in scores
    assert "of the same kind, from other groups." in scores
    assert "too few" not in scores
    metrics = write_report(tmp_path)
    assert metrics["dev"]["groups"] == metrics["test"]["groups"] == {"column": "pa|tient", "count": 40}
    (tmp_path / "measures-test.parquet").unlink()
    (tmp_path / "measures-dev.parquet").unlink()
    assert write_report(tmp_path)["test"]["headline"] != metrics["test"]["headline"]  # by row


def test_the_report_warns_of_few_groups(tmp_path):
    assert "**Fewer than 20 groups are too few**" in chapter(report_of(run_with_groups(tmp_path, 19)), "Scores")


def test_the_report_warns_of_classes_with_next_to_no_rows(tmp_path):
    words = "fewer than 5 test rows: the intervals of macro F1 and balanced accuracy"
    assert words not in report_of(make_run(tmp_path, rows=200))
    assert f"4 classes have {words}" in report_of(make_run(tmp_path, rows=8))


@pytest.mark.parametrize(("lead", "words"), [(30.0, "of groups have errors"), (-30.0, "of groups have right rows")])
def test_the_report_counts_groups_where_all_rows_are_right_or_none(tmp_path, lead, words):
    scores = chapter(report_of(run_with_groups(tmp_path, 30, lead=lead)), "Scores")
    assert f"the 30 groups of column “pa&#124;tient” cannot rule out that 12% {words}" in scores


def test_each_class_has_its_intervals(tmp_path):
    table = tables_of(chapter(report_of(make_run(tmp_path, lead=1.0)), "Classes"))[0]
    metrics = write_report(tmp_path)
    lines = {line["label"]: line for line in metrics["test"]["per_class"]}
    assert table[0][3:5] == ["F1", "F1: 95% interval"]
    assert table[0][7:] == ["Precision: 95% interval", "Recall: 95% interval"]
    shown = {cells[0]: cells for cells in table[2:]}
    found, cells = lines["refund"]["intervals"], shown["refund"]
    for name, value, interval in (("precision", 1, 7), ("recall", 2, 8), ("f1", 3, 4)):
        assert found[name]["value"] == lines["refund"][name]
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
        assert cells[interval] == f"{found[name]['low']:.2f} to {found[name]['high']:.2f}"
        assert cells[value] == f"{found[name]['value']:.2f}"
