"""Do temperatures, sets, limits and their intervals hold what they promise?"""

from __future__ import annotations

import numpy as np
import pytest

from graftkit.metrics import calibration, classification
from graftkit.metrics.calibration import (
    abstention_threshold,
    calibration_by_chance,
    conformal_threshold,
    coverage_by_chance,
    fit_temperature,
    log_loss_change,
    log_loss_interval,
    prediction_sets,
    risk_coverage,
    share,
    tempered,
)
from graftkit.metrics.intervals import clopper_pearson


def drawn(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A true label for each row, with exactly these probabilities."""
    return (probabilities.cumsum(axis=1) > rng.random((len(probabilities), 1))).argmax(axis=1)


def make(rows: int, labels: int = 5, *, sharpness: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, which state `sharpness` times what is true, and the truth."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(rows, labels))
    return logits * sharpness, drawn(tempered(logits, 1.0), rng)


# --- the temperature ---------------------------------------------------------


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_finds_how_much_too_sure_the_logits_are(sharpness, dtype):
    logits, truth = make(20_000, sharpness=sharpness)
    assert fit_temperature(logits.astype(dtype), truth) == pytest.approx(sharpness, rel=0.03)


def test_no_other_temperature_has_less_log_loss(monkeypatch):
    logits, truth = make(300, sharpness=2.5)
    found = fit_temperature(logits, truth)
    losses = {
        t: classification.log_loss(truth, tempered(logits, t)) for t in [found, *np.geomspace(0.01, 100, 4001).tolist()]
    }
    assert min(losses, key=losses.get) == pytest.approx(found, rel=2e-3)
    assert losses[found] <= min(losses.values()) + 1e-12
    monkeypatch.setattr(calibration, "CHUNK", 7)
    assert fit_temperature(logits, truth) == pytest.approx(found, rel=1e-9)


def test_logits_that_grow_or_move_make_the_temperature_grow_alone():
    logits, truth = make(300)
    once = fit_temperature(logits, truth)
    assert fit_temperature(8 * logits, truth) == pytest.approx(8 * once, rel=1e-8)
    assert fit_temperature(logits + np.arange(300)[:, None], truth) == pytest.approx(once, rel=1e-8)


RIGHT = np.array([[3.0, 0.0], [0.0, 3.0], [5.0, 1.0]])


@pytest.mark.parametrize(
    ("logits", "truth"),
    [
        (RIGHT, [0, 1, 0]),
        (np.ones((4, 3)), [0, 1, 2, 2]),
        (RIGHT, [1, 0, 1]),
        (np.array([[1e-9, 0], [0, 1e-3]]), [1, 1]),
        (np.empty((0, 2)), []),
    ],
    ids=["no error", "equal logits", "always wrong", "at the sharp end", "no rows"],
)
def test_where_nothing_says_how_unsure_to_be_there_is_none(logits, truth):
    assert fit_temperature(logits, np.array(truth, dtype=np.int64)) is None


def test_tempering_changes_no_answer_and_breaks_at_no_size():
    logits = np.array([[1e4, 0, -1e4], [0.2, 0.1, 0.3], [-5, -6, -7]], dtype=np.float32)
    for temperature in (0.01, 1.0, 50.0):
        probabilities = tempered(logits, temperature)
        assert np.isfinite(probabilities).all()
        assert probabilities.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-12)
        assert (probabilities.argmax(axis=1) == logits.argmax(axis=1)).all()


# --- sets --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "alpha", "reached"),
    [(9, 0.1, 9), (10, 0.1, 10), (19, 0.1, 18), (100, 0.1, 91), (9, 0.7, 3), (99, 0.05, 95), (999, 0.001, 999)],
)
def test_the_limit_is_what_enough_true_labels_reach(rows, alpha, reached):
    probabilities = np.stack([np.linspace(0.01, 0.99, rows), np.zeros(rows)], axis=1)
    limit = conformal_threshold(probabilities, np.zeros(rows, dtype=int), alpha)
    assert (probabilities[:, 0] >= limit).sum() == reached


@pytest.mark.parametrize(("rows", "alpha"), [(8, 0.1), (18, 0.05), (0, 0.5)])
def test_too_few_rows_make_no_limit_and_sets_of_all(rows, alpha):
    assert conformal_threshold(np.full((rows, 2), 0.5), np.zeros(rows, dtype=int), alpha) is None
    assert prediction_sets(np.array([[0.9, 0.1]]), None).all()


def test_a_set_has_what_is_likely_enough_and_always_the_likeliest():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.34, 0.33, 0.33], [0.9, 0.05, 0.05]], dtype=np.float32)
    assert prediction_sets(probabilities, 0.3).tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert prediction_sets(probabilities, 0.95).tolist() == [[1, 0, 0]] * 3
    assert prediction_sets(probabilities, float(probabilities[0, 1]))[0, 1], "a limit that is a probability is reached"


def test_sets_hold_the_true_label_as_often_as_they_promise_for_a_bad_model_too():
    rows, alpha, held = 60, 0.1, []
    for seed in range(400):
        logits, truth = make(rows + 200, sharpness=3.0, seed=seed)  # far too sure
        probabilities = tempered(logits, 1.0)
        limit = conformal_threshold(probabilities[:rows], truth[:rows], alpha)
        inside = probabilities[np.arange(rows, rows + 200), truth[rows:]] >= limit
        held.append(inside.mean())
    assert 1 - alpha - 0.006 < np.mean(held) < 1 - alpha + 1 / (rows + 1) + 0.006  # 0.006: 3 standard errors
    low, high = coverage_by_chance(rows, alpha)
    assert np.quantile(held, 0.025) == pytest.approx(low, abs=0.04)
    assert low < 1 - alpha < high < 1


# --- answering or not --------------------------------------------------------


def sure(stated: list[float]) -> np.ndarray:
    return np.stack([np.array(stated), 1 - np.array(stated)], axis=1)


def test_risk_and_coverage_by_hand():
    found = risk_coverage(sure([0.6, 0.9, 0.8, 0.8]), np.zeros(4, dtype=int), np.array([1, 0, 0, 1]))
    assert found.threshold.tolist() == [0.9, 0.8, 0.6]
    assert found.coverage.tolist() == [0.25, 0.75, 1.0]
    assert found.risk.tolist() == [0, 1 / 3, 0.5]
    assert found.area == pytest.approx((0 + 0.5 / 2 + 1 / 3 + 2 / 4) / 4)


def test_the_order_of_rows_changes_nothing():
    rng = np.random.default_rng(0)
    probabilities, truth = sure(rng.integers(50, 60, 200) / 60), rng.integers(0, 2, 200)
    order = rng.permutation(200)
    one = risk_coverage(probabilities, np.zeros(200, dtype=int), truth)
    other = risk_coverage(probabilities[order], np.zeros(200, dtype=int), truth[order])
    assert one.area == pytest.approx(other.area, abs=1e-12)
    assert one.risk.tolist() == other.risk.tolist()


def right_with(stated: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The truth of rows that are given label 0: right as often as stated."""
    return (rng.random(len(stated)) > stated).astype(int)


@pytest.mark.parametrize("rows", [150, 1000])
def test_the_limit_keeps_its_promise_in_95_of_100_cases(rows):
    rng, alpha, broken, found = np.random.default_rng(0), 0.1, 0, 0
    everyone = np.sort(rng.beta(4, 1, 200_000) / 2 + 0.5)
    risk_from = (1 - everyone)[::-1].cumsum()[::-1] / np.arange(200_000, 0, -1)
    for _ in range(600):
        stated = rng.beta(4, 1, rows) / 2 + 0.5
        limit = abstention_threshold(sure(stated), np.zeros(rows, dtype=int), right_with(stated, rng), alpha)
        if limit is not None:
            found += 1
            broken += risk_from[min(np.searchsorted(everyone, limit), 199_999)] > alpha
    assert broken / 600 <= 0.05 + 0.018, "0.018: 2 standard errors"
    assert found / 600 > 0.5


def test_all_may_be_answered_where_hardly_any_is_wrong():
    rows = 300
    truth = (np.arange(rows) % 50 == 0).astype(int)  # 2%
    found = abstention_threshold(sure(np.linspace(0.5, 1, rows)), np.zeros(rows, dtype=int), truth, 0.1)
    assert found == 0.0


def test_the_search_stops_at_the_first_failure():
    """Below a stretch of errors the share of errors is small again, but that was not found by a test that may go on."""
    stated = np.concatenate([np.full(200, 0.95), np.full(60, 0.85), np.full(4000, 0.75)])
    truth = np.concatenate([np.zeros(200), np.ones(60), np.zeros(4000)]).astype(int)
    assert truth.mean() < 0.02
    assert abstention_threshold(sure(stated), np.zeros(4260, dtype=int), truth, 0.1) == 0.86


@pytest.mark.parametrize(
    ("rows", "wrong", "expected"), [(28, 0, None), (29, 0, 0.0), (29, 1, None), (1000, 1, None)], ids=str
)
def test_few_rows_or_many_errors_make_no_limit(rows, wrong, expected):
    truth = np.zeros(rows, dtype=int)
    truth[: wrong if rows < 1000 else 1000] = 1
    assert abstention_threshold(sure([0.7] * rows), np.zeros(rows, dtype=int), truth, 0.1) == expected


# --- intervals ---------------------------------------------------------------


def given(rows: int, sharpness: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits, truth = make(rows, sharpness=sharpness, seed=seed)
    return truth, logits.argmax(axis=1), tempered(logits, 1.0)


def test_the_value_is_the_score():
    truth, _, probabilities = given(400)
    found = log_loss_interval(truth, probabilities)
    assert found.value == pytest.approx(classification.log_loss(truth, probabilities), abs=1e-12)
    assert found.low < found.value < found.high
    assert found == log_loss_interval(truth, probabilities)


def test_intervals_hold_the_truth():
    def found(rows: int, seed: int, resamples: int):
        truth, _, probabilities = given(rows, seed=seed)
        return log_loss_interval(truth, probabilities, resamples=resamples)

    true, ones = found(200_000, 0, 2).value, [found(300, seed, 400) for seed in range(1, 201)]
    assert 0.9 < np.mean([one.low <= true <= one.high for one in ones]) <= 0.99


def test_rows_of_a_group_count_as_one():
    truth, _, probabilities = given(300)
    alone = log_loss_interval(truth, probabilities)
    assert log_loss_interval(truth, probabilities, np.arange(300)) == alone
    twice = [np.repeat(part, 4, axis=0) for part in (truth, probabilities)]
    grouped = log_loss_interval(*twice, np.repeat(np.arange(300), 4))
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), abs=1e-9)
    naive = log_loss_interval(*twice)
    assert naive.high - naive.low < 0.6 * (alone.high - alone.low)


@pytest.mark.parametrize("groups", [None, np.arange(6000)])
def test_blocks_of_rows_give_the_same_interval(monkeypatch, groups):
    truth, _, probabilities = given(6000)
    blocks = log_loss_interval(truth, probabilities, groups)
    monkeypatch.setattr(calibration, "BLOCKS", 10**9)
    every = log_loss_interval(truth, probabilities, groups)
    width = every.high - every.low
    assert blocks.value == pytest.approx(every.value, abs=1e-12)
    assert (blocks.low, blocks.high) == pytest.approx((every.low, every.high), abs=0.12 * width)


def test_changes_are_told_by_the_same_rows():
    truth, _, before = given(500, sharpness=3.0)
    after = given(500, sharpness=1.0)[2]
    found = log_loss_change(truth, before, after)
    loss = classification.log_loss(truth, after) - classification.log_loss(truth, before)
    assert found.value == pytest.approx(loss, abs=1e-12)
    assert found.high < 0
    apart = [log_loss_interval(truth, one) for one in (before, after)]
    assert found.high - found.low < sum(one.high - one.low for one in apart)
    assert log_loss_change(truth, before, before).method == "constant"


def test_losses_that_are_equal_but_for_their_last_digit_have_no_interval():
    probabilities = np.tile([0.0033333, 0.99, 0.0066667], (100, 1))
    assert log_loss_interval(np.zeros(100, dtype=int), probabilities).method == "constant"


def test_probabilities_that_are_exactly_right_have_this_much_error_by_chance():
    rng = np.random.default_rng(0)
    stated = rng.beta(3, 1, 800) / 2 + 0.5
    probabilities, predicted = sure(stated), np.zeros(800, dtype=int)
    errors = [classification.calibration_error(right_with(stated, rng), predicted, probabilities) for _ in range(2000)]
    mean, most = calibration_by_chance(probabilities, predicted)
    assert mean == pytest.approx(np.mean(errors), rel=0.03)
    assert most == pytest.approx(np.quantile(errors, 0.95), rel=0.04)


def test_a_share_of_rows_is_exact_and_of_groups_a_bootstrap():
    hits = np.arange(100) % 5 > 0
    by_row = share(hits)
    assert (by_row.value, by_row.low, by_row.high) == (0.8, *clopper_pearson(80, 100))
    by_group = share(np.repeat(hits, 10), np.repeat(np.arange(100), 10))
    assert by_group.method == "bca"
    assert by_group.high - by_group.low == pytest.approx(by_row.high - by_row.low, rel=0.15)
    for all_or_none in (True, False):
        found = share(np.full(100, all_or_none), np.arange(100) // 5)
        right = 20 if all_or_none else 0
        assert (found.value, found.low, found.high) == (float(all_or_none), *clopper_pearson(right, 20))
