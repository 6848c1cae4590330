"""Does a comparison take rows that belong together as one witness, not as many?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_report import LABELS, make_records, make_run

from graftkit import cli
from graftkit.compare.difference import smallest_difference
from graftkit.metrics import classification, comparison
from graftkit.report.tables import write_measures, write_predictions

PATIENTS = np.repeat(np.arange(10), 20)


def draw_groups(rng, sizes, wrong=0.3, gap=0.0, labels=4):
    """Truth, the answers of two models, and groups, whose rows are wholly alike in what each model has right."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    truth = rng.integers(0, labels, len(groups))
    right = [(rng.random(len(sizes)) >= share)[groups] for share in (wrong, wrong - gap)]
    return truth, *(np.where(one, truth, (truth + 1) % labels) for one in right), groups


@pytest.mark.parametrize("sizes", [[10] * 20, [1, 2, 4, 8, 20] * 5])
def test_equal_models_on_groups_are_a_false_alarm_at_most_5_times_in_100(sizes):
    rng, pairs, alarms, by_row = np.random.default_rng(0), 400, [], []
    for seed in range(pairs):
        truth, one, other, groups = draw_groups(rng, sizes)
        p = comparison.swap_test(truth, one, other, 4, groups, swaps=200, seed=seed)
        alarms.append([p[name] <= 0.05 for name in ("accuracy", "macro_f1")])
        lost, gained = np.sum((one == truth) & (other != truth)), np.sum((one != truth) & (other == truth))
        by_row.append(comparison.mcnemar(lost, gained) <= 0.05)
    assert max(np.mean(alarms, axis=0)) <= 0.05 + 2.33 * math.sqrt(0.05 * 0.95 / pairs)  # by chance, in 99 of 100
    assert np.mean(by_row) > 0.3  # what rows one by one would have said


def test_groups_of_one_row_are_rows():
    truth, one, other, groups = draw_groups(np.random.default_rng(1), [1] * 120)
    rows = comparison.swap_test(truth, one, other, 4)
    assert comparison.swap_test(truth, one, other, 4, groups) == pytest.approx(rows, abs=0.02)
    by_row, by_group = (
        comparison.differences(truth, one[None], other[None], 4, given, resamples=20_000)["macro_f1"]
        for given in (None, groups)
    )
    assert by_group.value == pytest.approx(by_row.value)
    assert (by_group.low, by_group.high) == pytest.approx((by_row.low, by_row.high), abs=0.01)


def test_the_interval_of_groups_wholly_alike_is_that_of_one_row_of_each():
    truth, one, other, groups = draw_groups(np.random.default_rng(2), [20] * 30)
    found = comparison.differences(truth, one[None], other[None], 4, groups, resamples=20_000)["accuracy"]
    alone = comparison.differences(truth[::20], one[None, ::20], other[None, ::20], 4, resamples=20_000)["accuracy"]
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high), abs=0.035)
    same = comparison.differences(truth, one[None], one[None], 4, groups)["accuracy"]
    assert same.high == pytest.approx(1 - 0.025 ** (1 / 30))  # of 30 groups, not of 600 rows


def test_the_smallest_difference_of_groups_is_found_4_times_in_5():
    rng, found, sizes, wrong = np.random.default_rng(3), [], [10] * 60, 0.35

    def parts(pair):
        truth, one, other, groups = pair
        return (one == truth) & (other != truth), (one != truth) & (other == truth), groups

    smallest = np.mean([smallest_difference(*parts(draw_groups(rng, sizes, wrong))) for _ in range(20)])
    for seed in range(200):
        truth, one, other, groups = draw_groups(rng, sizes, wrong, gap=smallest)
        found.append(comparison.swap_test(truth, one, other, 4, groups, swaps=200, seed=seed)["accuracy"] <= 0.05)
    assert np.mean(found) == pytest.approx(0.8, abs=0.1)


def test_a_smallest_difference_needs_groups_enough():
    nothing, some = np.zeros(200, dtype=bool), np.arange(200) % 10 == 0
    assert smallest_difference(some, nothing, np.repeat(np.arange(5), 40)) is None
    by_row = smallest_difference(some, nothing, None)
    assert by_row == comparison.smallest_difference(200, 20)
    assert smallest_difference(some, nothing, np.repeat(np.arange(20), 10)) > by_row
    assert smallest_difference(nothing, nothing, np.repeat(np.arange(20), 10)) > 0.3  # as 20 rows would


# --- the command -------------------------------------------------------------


def make_grouped(folder, wrong=(), groups=PATIENTS, column="patient", kept=True, order=None, **change):
    """A run that is right on all rows but those of the groups in `wrong`."""
    settings = {"report": {"group": column, "alpha": 0.1}} if column else {}
    make_run(folder, rows=len(PATIENTS), **settings, **change)
    records = make_records(len(PATIENTS), LABELS, 1, 2.0)
    for record, group in zip(records, PATIENTS, strict=True):
        shift = int(group in wrong)
        record["prediction"] = LABELS[(LABELS.index(record["label"]) + shift) % len(LABELS)]
    order = range(len(records)) if order is None else order
    write_predictions(folder, "test", [records[i] for i in order], LABELS)
    if kept:
        rows = [{"id": records[i]["id"], "measure:tokens": float(i), "group": int(groups[i])} for i in order]
        write_measures(folder, "test", rows)
    return folder


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """Compares the runs a and b, and more by their names: exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = cli.main(["compare", *(words or ("a", "b"))])
        return code, capsys.readouterr().out

    return call


@pytest.mark.parametrize("headline", ["accuracy", "macro_f1"])
def test_3_patients_of_10_are_no_proof(tmp_path, compare, headline):
    make_grouped(tmp_path / "a", wrong=(1, 2, 3), headline=headline)
    make_grouped(tmp_path / "b", headline=headline)
    text = compare()[1]
    assert "that 200 rows in 10 groups could show** (+0.3" in text
    assert "p 0.2" in text  # exactly 2 x (1/2)^3
    assert "better than A" not in text
    assert "are whole groups of column patient, 10 of them, not rows. Fewer than 20 are few" in text
    assert "bootstrap by group" in text
    assert "McNemar, two-sided" not in text
    assert "too small where a group is alike" in text


def test_the_overview_draws_the_groups_of_each_run(tmp_path, compare):
    make_grouped(tmp_path / "a", wrong=(1, 2, 3), headline="accuracy")
    make_grouped(tmp_path / "b", headline="accuracy")
    a, b = (line for line in compare()[1].splitlines() if line.startswith(("| A | a", "| B | b")))
    truth = np.zeros(200, dtype=int)
    said = np.isin(PATIENTS, (1, 2, 3)).astype(int)
    drawn = classification.group_counts(truth, said, PATIENTS, 2)
    interval = classification.intervals(classification.confusion(truth, said, 2), drawn)["accuracy"]
    assert f"| {interval.low:.2f} to {interval.high:.2f} |" in a
    assert "| 0.69 to 1.00 |" in b  # 10 of 10 groups, not 200 of 200 rows


def test_groups_are_matched_by_id_and_one_run_that_knows_them_is_enough(tmp_path, compare):
    make_grouped(tmp_path / "a", wrong=(1, 2, 3), column=None, kept=False)
    order = np.random.default_rng(0).permutation(len(PATIENTS))
    make_grouped(tmp_path / "b", order=order)
    make_grouped(tmp_path / "c", kept=False)  # of the same column, whose groups b knows
    text = compare("a", "b", "c")[1]
    assert text.count("200 rows in 10 groups could show** (+0.3") == 2
    assert "too sure" not in text


def test_rows_that_either_run_ties_are_one_group(tmp_path, compare):
    make_grouped(tmp_path / "a", wrong=(1, 2, 3))
    make_grouped(tmp_path / "b", groups=PATIENTS // 2, column="site_x")
    assert "Rows of one patient or site_x belong together: what was drawn are whole groups" in compare()[1]
    assert "200 rows in 5 groups could show**" in compare()[1]
    assert "So few groups can hardly show any difference, however large." in compare()[1]


def test_groups_that_nobody_kept_are_said_to_be_missing(tmp_path, compare):
    for name, wrong in (("a", (1, 2, 3)), ("b", ()), ("c", ())):
        make_grouped(tmp_path / name, wrong=wrong, kept=False)
    assert "taken row by row, though rows of one patient belong together: too sure." in compare()[1]
    assert "taken row by row, though rows of one patient belong together: too sure." in compare("b", "c")[1]
    make_grouped(tmp_path / "b", column="site")
    assert "taken by site alone, though rows of one patient belong together: too sure." in compare()[1]


def test_rows_that_are_a_group_each_are_compared_as_rows(tmp_path, compare):
    make_grouped(tmp_path / "a", wrong=(1, 2, 3), groups=np.arange(200))
    make_grouped(tmp_path / "b", groups=np.arange(200))
    text = compare()[1]
    assert "**B is better than A**" in text
    assert "the exact test of McNemar, two-sided" in text
    assert "belong together" not in text


def test_the_same_answers_on_groups_rule_out_no_more_than_groups_do(tmp_path, compare):
    for name in ("a", "b"):
        make_grouped(tmp_path / name, wrong=(1,))
    assert "200 rows in 10 groups cannot rule out that they part on up to 31% of other rows." in compare()[1]


def test_seeds_on_groups_draw_groups(tmp_path, compare):
    for name, wrong in (("a", (1, 2, 3)), ("a2", (1, 2, 3, 4)), ("b", ()), ("b2", (5,))):
        make_grouped(tmp_path / name, wrong=wrong)
    text = compare("a,a2", "b,b2")[1]
    assert "**No difference in mean macro F1 that 2 and 2 seeds on 200 rows in 10 groups could show**" in text
    assert "paired bootstrap by group" in text


def test_seeds_on_a_single_group_show_nothing(tmp_path, compare):
    for name, wrong in (("a", (1, 2, 3)), ("a2", (1, 2, 3)), ("b", ()), ("b2", ())):
        make_grouped(tmp_path / name, wrong=wrong, groups=np.zeros(200))
    code, text = compare("b,b2", "a,a2", "--fail-if-worse-than", "0")
    assert code == 0
    assert "**No difference in mean macro F1 that 2 and 2 seeds on 200 rows in 1 group could show**" in text


# --- the gate, and a single row ----------------------------------------------


@pytest.mark.parametrize("rows", [1, 30])
def test_the_gate_does_not_vouch_for_what_no_row_tells(tmp_path, compare, rows):
    for name in ("a", "b"):
        make_run(tmp_path / name, rows=rows)
    code, text = compare("a", "b", "--fail-if-worse-than", "0.01")
    assert code == 0
    assert "B **passes**: it is not shown to be worse by more than that; how much worse it may be on other" in text
    assert "and is not" not in text


def test_one_row_is_one_row(tmp_path, compare):
    for name in ("a", "b", "c"):
        make_run(tmp_path / name, rows=1)
    record = make_records(1, LABELS, 1, 2.0)[0]
    record["prediction"] = next(label for label in LABELS if label != record["prediction"])
    write_predictions(tmp_path / "b", "test", [record], LABELS)
    assert "1 row cannot rule out" in compare("a", "c")[1]
    assert "that 1 row could show**" in compare("a", "b")[1]
    assert "1 rows" not in compare("a", "b")[1] + compare("a", "c")[1]
