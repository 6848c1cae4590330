"""Does the report say of probabilities and thresholds what the tables hold, whatever they hold?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_report import LABELS, chapter, make_run, report_of, tables_of
from test_report_html import MANY, make_evaluation, page_of, table_in

from graftkit.metrics import calibration, classification, thresholds
from graftkit.report import probabilities as part
from graftkit.report import thresholds as lines_part
from graftkit.report.markdown import in_brackets, limit, signed, with_interval
from graftkit.report.reading import Reading, read_folder
from graftkit.report.tables import write_measures

BELIEVED, THRESHOLDS = "Can its probabilities be believed?", "Thresholds"
FITTED = {"temperature": 1.4, "rows": 120, "reason": None}
TWO = ["spam|*x*", "<b>ham</b>"]


def reading_of(folder: Path, *splits: str) -> Reading:
    return read_folder(folder, splits or ("dev", "test"))


def measured(folder: Path, *splits: str) -> dict:
    found = part.measure(reading_of(folder, *splits))
    return json.loads(json.dumps(found, allow_nan=False))


def make_groups(folder: Path, rows: int, size: int = 4) -> Path:
    for split in ("dev", "test"):
        write_measures(folder, split, [{"id": f"test-{i}", "group": i // size} for i in range(rows)])
    return folder


# --- calibration -------------------------------------------------------------


def test_before_is_the_table_times_the_temperature(tmp_path):
    make_run(tmp_path, calibration=FITTED)
    found, reading = measured(tmp_path), reading_of(tmp_path)
    truth, predicted, now = reading.arrays["test"]
    before = calibration.tempered(1.4 * reading.logits("test"), 1.0)
    assert found["scores"]["log_loss"]["value"] == pytest.approx(classification.log_loss(truth, now), abs=1e-9)
    assert found["before"]["log_loss"]["value"] == pytest.approx(classification.log_loss(truth, before), abs=1e-6)
    error = classification.calibration_error(truth, predicted, before)
    assert found["before"]["calibration_error"]["value"] == pytest.approx(error, abs=1e-6)
    change = found["scores"]["log_loss"]["value"] - found["before"]["log_loss"]["value"]
    assert found["change"]["log_loss"]["value"] == pytest.approx(change, abs=1e-9)
    scores = tables_of(chapter(report_of(tmp_path), BELIEVED))[0]
    assert scores[0][:4] == ["Score", "Test", "Before calibration", "Change by calibration"]
    cells = [in_brackets(found[name]["log_loss"]) for name in ("scores", "before")]
    assert scores[3][1:4] == [*cells, signed(found["change"]["log_loss"])]
    moved = found["scores"]["calibration_error"]["value"] - error
    assert float(scores[2][3]) == pytest.approx(moved, abs=0.006)
    assert scores[2][3][0] in "+-"


def test_the_calibration_error_has_no_interval_but_what_chance_makes_of_it(tmp_path):
    make_run(tmp_path)
    found, reading = measured(tmp_path), reading_of(tmp_path)
    _, predicted, probabilities = reading.arrays["test"]
    error = found["scores"]["calibration_error"]
    assert error.keys() == {"value", "by_chance"}
    assert error["by_chance"]["most"] == calibration.calibration_by_chance(probabilities, predicted)[1]
    cell = tables_of(part.chapter(found, reading))[0][2][1]
    assert cell == f"{error['value']:.2f} (by chance alone: up to {error['by_chance']['most']:.2f})"


@pytest.mark.parametrize(
    ("low", "high", "method", "words", "cell"),
    [
        (-0.3, -0.1, "bca", "calibration made the probabilities better", "-0.2 (-0.3 to -0.1)"),
        (-0.1, 0.3, "bca", "show no difference", "+0.1 (-0.1 to +0.3)"),
        (0.1, 0.3, "bca", "made the probabilities worse", "+0.2 (+0.1 to +0.3)"),
        (0.1, 0.1, "constant", "show no difference", "+0.1"),
        (0.001, 0.003, "bca", "changed next to nothing", "+0.002 (+0.001 to +0.003)"),
    ],
)
def test_whether_calibration_helped_is_one_sentence(tmp_path, low, high, method, words, cell):
    make_run(tmp_path, calibration=FITTED)
    found = measured(tmp_path)
    found["change"]["log_loss"] = {
        "value": (low + high) / 2,
        "low": low,
        "high": high,
        "level": 0.95,
        "method": method,
    }
    text = part.chapter(found, reading_of(tmp_path))
    assert words in text
    assert text.count("By the log loss") == 1
    assert tables_of(text)[0][3][3] == cell.replace(".1", ".10").replace(".2", ".20").replace(".3", ".30")


@pytest.mark.parametrize(
    ("temperature", "words"), [(1.4, "divided by 1.4"), (1.4, "less sure"), (0.5, "more sure"), (0.5, "120 dev rows")]
)
def test_a_temperature_is_told(tmp_path, temperature, words):
    make_run(tmp_path, calibration=FITTED | {"temperature": temperature})
    assert words in chapter(report_of(tmp_path), BELIEVED)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "“graft calibrate RUN”"),
        ({}, "whose probabilities should fit better"),
        ({"calibration": None}, "“graft calibrate RUN”"),
        (
            {"calibration": {"temperature": None, "rows": 9, "reason": "no *dev* row"}},
            r"**Not calibrated**: no \*dev\*",
        ),
        ({"calibration": {"temperature": None, "rows": 9, "reason": None}}, "no reason was recorded"),
        ({"recipe": "evaluate"}, "nothing was calibrated here"),
    ],
)
def test_what_was_not_calibrated_says_so(tmp_path, change, words):
    text = chapter(report_of(make_run(tmp_path, **change)), BELIEVED)
    assert words in text
    assert "By the log loss" not in text
    assert "Before calibration" not in text


@pytest.mark.parametrize(("lead", "words"), [(0.0, "surer than it is right"), (4.0, "less sure than it is right")])
def test_it_says_on_which_side_the_probabilities_are_off(tmp_path, lead, words):
    make_run(tmp_path, rows=400, lead=lead)
    found = measured(tmp_path)
    error = found["scores"]["calibration_error"]
    assert error["value"] > error["by_chance"]["most"]
    assert words in part.chapter(found, reading_of(tmp_path))


def test_what_chance_alone_gives_is_no_fault(tmp_path):
    make_run(tmp_path)
    found = measured(tmp_path)
    error = found["scores"]["calibration_error"]
    error["value"] = error["by_chance"]["most"]
    assert "no more than that: these rows show nothing wrong" in part.chapter(found, reading_of(tmp_path))


# --- sets --------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.4])
def test_sets_are_chosen_on_dev_and_measured_on_test(tmp_path, alpha):
    make_run(tmp_path, rows=300, lead=1.0, report={"alpha": alpha})
    found, reading = measured(tmp_path), reading_of(tmp_path)
    sets = found["sets"]
    (dev_truth, _, dev), (truth, _, test) = reading.arrays["dev"], reading.arrays["test"]
    least = calibration.conformal_threshold(dev, dev_truth, alpha)
    inside = calibration.prediction_sets(test, least)
    assert (found["alpha"], sets["threshold"], sets["rows"]) == (alpha, least, 300)
    assert sets["covered"]["value"] == pytest.approx(inside[np.arange(300), truth].mean())
    assert sets["mean_size"] == pytest.approx(inside.sum(axis=1).mean())
    assert sum(one["rows"] for one in sets["sizes"]) == 300
    assert sum(one["labels"] * one["rows"] for one in sets["sizes"]) == inside.sum()
    assert sum(one["held"] for one in sets["sizes"]) == inside[np.arange(300), truth].sum()
    text = part.chapter(found, reading)
    assert f"probability of at least {limit(least)}" in text
    assert f"the true class in {100 * (1 - alpha):g}% of rows" in text
    assert "single classes may be covered less often" in text


def test_many_sizes_are_told_in_ranges(tmp_path):
    make_run(tmp_path, labels=MANY, rows=400, lead=0.0)
    found = measured(tmp_path)
    text = part.chapter(found, reading_of(tmp_path))
    lines = next(lines for lines in tables_of(text) if lines[0][0] == "Classes in the set")[2:]
    assert len(found["sets"]["sizes"]) > part.SIZES >= len(lines)
    assert any(" to " in line[0] for line in lines)
    assert sum(int(line[1]) for line in lines) == 400


@pytest.mark.parametrize(("rows", "words"), [(8, "8 dev rows cannot make sets"), (1, "1 dev row cannot make sets")])
def test_too_few_dev_rows_make_no_sets(tmp_path, rows, words):
    text = chapter(report_of(make_run(tmp_path, rows=rows)), BELIEVED)
    assert words in text
    assert "No limit makes sure" in text


def test_a_test_split_unlike_dev_is_told(tmp_path):
    make_run(tmp_path, rows=400, lead=1.0)
    found = measured(tmp_path)
    found["sets"]["covered"] |= {"value": 0.7, "low": 0.65, "high": 0.75}
    found["abstention"] |= {"threshold": 0.5, "answered": found["sets"]["covered"]}
    found["abstention"]["wrong"] = found["sets"]["covered"] | {"value": 0.3, "low": 0.25, "high": 0.35}
    text = part.chapter(found, reading_of(tmp_path))
    assert "**It is less than was asked for**" in text
    assert "**That is more than was asked for**" in text


@pytest.mark.parametrize(
    ("low", "single", "told"), [(0.91, 0.995, True), (0.89, 0.995, False), (0.91, 0.98, False), (0.89, 0.98, False)]
)
def test_sets_have_little_to_add_where_one_answer_is_right_more_often_than_asked(tmp_path, low, single, told):
    make_run(tmp_path, rows=400, lead=1.0)
    found = measured(tmp_path)
    found["sets"]["covered"] |= {"value": 0.95, "low": low, "high": 0.97}
    found["sets"]["single"] = single
    assert ("sets have little to add" in part.chapter(found, reading_of(tmp_path))) == told


# --- abstention --------------------------------------------------------------


def test_the_limit_is_chosen_on_dev_and_measured_on_test(tmp_path):
    make_run(tmp_path, rows=600, lead=2.0)
    found, reading = measured(tmp_path), reading_of(tmp_path)
    dev_truth, dev_predicted, dev = reading.arrays["dev"]
    truth, predicted, test = reading.arrays["test"]
    least = calibration.abstention_threshold(dev, dev_predicted, dev_truth, 0.1)
    answered = test[np.arange(600), predicted] >= least
    assert 0 < least == found["abstention"]["threshold"]
    assert found["abstention"]["answered"]["value"] == pytest.approx(answered.mean())
    assert found["abstention"]["wrong"]["value"] == pytest.approx((predicted != truth)[answered].mean())
    text = part.chapter(found, reading)
    assert f"Answer where the stated probability is at least **{least:g}**" in text
    page = page_of(tmp_path)
    assert f"from {least:g}" in [e[2] for e in page.all("text")]


def test_a_model_that_is_always_right_may_always_answer(tmp_path):
    found = measured(make_run(tmp_path, lead=30.0))
    assert found["abstention"]["threshold"] == 0
    text = part.chapter(found, reading_of(tmp_path))
    assert "All rows may be answered" in text
    assert "The single answer is right more often than was asked for" in text


def test_an_evaluation_has_no_dev_to_choose_by(tmp_path):
    make_evaluation(tmp_path)
    found = measured(tmp_path, "test")
    assert found["sets"] is found["abstention"] is None
    text = report_of(tmp_path)
    assert chapter(text, BELIEVED).count("Not made: it is chosen on dev rows") == 2
    assert "No threshold is chosen" in chapter(text, THRESHOLDS)
    assert len(page_of(tmp_path).all("figure", id="risk")) == 1


NOTED = {"temperature": 1.4, "reason": None, "rows": 300, "alpha": 0.2, "set_threshold": 0.25, "abstain_below": 0.75}


def test_an_evaluation_measures_what_the_models_settings_promise(tmp_path):
    make_evaluation(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"calibration": NOTED}))
    found, reading = measured(tmp_path, "test"), reading_of(tmp_path, "test")
    truth, predicted, probabilities = reading.arrays["test"]
    sets = calibration.prediction_sets(probabilities, 0.25)
    answered = probabilities[np.arange(120), predicted] >= 0.75
    assert (found["alpha"], found["sets"]["source"], found["sets"]["rows"]) == (0.2, "settings", 300)
    assert found["sets"]["covered"]["value"] == pytest.approx(sets[np.arange(120), truth].mean())
    assert found["abstention"]["answered"]["value"] == pytest.approx(answered.mean())
    assert found["abstention"]["wrong"]["value"] == pytest.approx((predicted != truth)[answered].mean())
    text = chapter(report_of(tmp_path), BELIEVED)
    assert text.count("The limit comes from the model's settings") == 2
    assert "the true class in 80% of rows" in text
    assert "**Calibrated** when it was made, by its settings, on 300 dev rows" in text
    assert "Not made" not in text


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        (NOTED | {"set_threshold": None, "abstain_below": None}, "300 dev rows cannot make sets"),
        (NOTED | {"set_threshold": None, "abstain_below": None}, "No limit makes sure that at most 20%"),
        ({"temperature": None, "reason": "x", "rows": 300}, "Not made: it is chosen on dev rows"),
    ],
)
def test_settings_that_name_no_limit_are_told(tmp_path, noted, said):
    make_evaluation(tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"calibration": noted}))
    assert said in chapter(report_of(tmp_path), BELIEVED)


def test_with_groups_there_is_no_verdict_by_row(tmp_path):
    """400 rows that are 20 groups of one answer each say far less than 400 rows."""
    make_groups(make_run(tmp_path, rows=400, lead=0.0, report={"group": "pa|<t>"}), rows=400, size=20)
    found = measured(tmp_path)
    assert found["scores"]["calibration_error"]["by_chance"] is None
    assert found["sets"]["expected"] is None
    found["sets"]["covered"] |= {"value": 0.7, "low": 0.65, "high": 0.75}
    text = part.chapter(found, reading_of(tmp_path))
    alike = "taken row by row, so too strict: rows of one “pa&#124;&lt;t&gt;” belong together"
    assert text.count(alike) == 3
    for verdict in (
        "the probabilities are off",
        "nothing wrong",
        "what to expect",
        "less than was asked",
        "by chance alone",
    ):
        assert verdict not in text
    page_of(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("rows of one “pa|&lt;t&gt;” belong together") >= 4, "three in the text, one below the diagram"


def test_groups_widen_the_intervals(tmp_path):
    make_run(tmp_path, rows=600, report={"group": "patient"})
    alone = measured(tmp_path)
    make_groups(tmp_path, rows=600)
    grouped = measured(tmp_path)
    assert grouped["scores"]["log_loss"]["value"] == pytest.approx(alone["scores"]["log_loss"]["value"], abs=1e-12)
    assert grouped["scores"]["log_loss"]["low"] != alone["scores"]["log_loss"]["low"]
    assert grouped["sets"]["covered"]["method"] == "bca"
    told = "as if rows of a group were independent"
    assert told in part.chapter(grouped, reading_of(tmp_path))
    assert told not in report_of(make_run(tmp_path / "alone", rows=600))


# --- the page ----------------------------------------------------------------


@pytest.mark.parametrize("labels", [LABELS, TWO, MANY[:12]], ids=["four", "two", "twelve"])
def test_every_chart_has_its_numbers_and_every_number_is_in_the_markdown_or_a_table(tmp_path, labels):
    make_run(tmp_path, labels=labels, rows=300, lead=1.5, calibration=FITTED)
    page = page_of(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {part.NAME, lines_part.NAME} <= metrics.keys()
    risk = table_in(page, "risk")
    assert risk[0] == ["Rows answered", "Stated probability, at least", "Wrong answers among them"]
    assert len(risk) == len(metrics[part.NAME]["risk"]["points"]) + 1 <= part.POINTS + 1
    lines = 1 if len(labels) == 2 else min(len(labels), lines_part.LINES)
    for id in ("precision-recall", "roc"):
        table = table_in(page, id)
        assert table[0][:2] == ["Class", "Threshold"]
        assert len({line[0] for line in table[1:]}) == lines
        assert len(table) <= lines * (lines_part.POINTS if lines == 1 else lines_part.POINTS_EACH) + 1
    assert len({e[1]["class"] for e in page.all("polyline")}) == lines, "lines differ by more than colour"


@pytest.mark.parametrize(
    "change",
    [{"rows": 1}, {"lead": 30.0}, {"rows": 30, "labels": MANY}, {"labels": ["only"]}, {"rows": 2, "labels": TWO}],
)
def test_strange_runs_have_their_chapters(tmp_path, change):
    text = report_of(make_run(tmp_path, **change))
    assert chapter(text, BELIEVED)
    assert chapter(text, THRESHOLDS)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.01234, "0.0123"),
        (0.5, "0.5"),
        (0.9876543, "0.988"),
        (0.99, "0.99"),
        (0.99987, "0.99987"),
        (0.9999999, "0.9999999"),
        (0.99999994, "0.99999994"),
        (1 - 1e-12, "0.999999999999"),
        (1.0, "1"),
    ],
)
def test_a_limit_reads_as_1_only_where_it_is_1(value, shown):
    assert limit(value) == shown


def test_a_score_without_an_interval_claims_nothing_of_why():
    score = {"value": 0.88, "low": 0.88, "high": 0.88, "level": 0.95, "method": "constant"}
    assert with_interval(score) == "0.88 (no interval: too little to tell how far it would move)"


def test_the_shares_of_a_table_have_the_same_digits(tmp_path):
    found = {
        "rows": 1000,
        "risk": {"points": [[0.245, 0.0, 0.9], [0.5, 0.012, 0.8], [0.75, 0.04, 0.7], [1.0, 0.245, 0.5]]},
    }
    lines = part._risk_lines(found)
    assert [line[0] for line in lines] == ["100.0%", "75.0%", "50.0%", "24.5%"]
    assert [line[2] for line in lines] == ["24%", "4%", "1%", "0%"]
    assert part._risk_lines(found, every=True)[::-1] == lines


# --- thresholds --------------------------------------------------------------


def test_of_two_labels_the_rarer_in_train_is_looked_at(tmp_path):
    splits = {"train": {"rows": 100, "classes": {TWO[0]: 80, TWO[1]: 20}}}
    make_run(tmp_path, labels=TWO, rows=300, lead=1.0, data={"splits": splits})
    reading = reading_of(tmp_path)
    found = lines_part.measure(reading)
    (one,) = found["classes"]
    assert (one["label"], found["rarer_in"]) == (TWO[1], "train")
    truth, predicted, test = reading.arrays["test"]
    dev_truth, _, dev = reading.arrays["dev"]
    curve = thresholds.curve(test[:, 1], truth == 1)
    assert one["auroc"]["value"] == thresholds.auroc(curve)
    assert one["threshold"] == thresholds.best_threshold(thresholds.curve(dev[:, 1], dev_truth == 1))
    assert one["at_threshold"] == thresholds.at(test[:, 1] >= one["threshold"], truth == 1)._asdict()
    assert one["as_it_answers"] == thresholds.at(predicted == 1, truth == 1)._asdict()
    text = lines_part.chapter(found, reading)
    assert "&lt;b&gt;ham&lt;/b&gt;”, the rarer class in train" in text
    assert f"at least {limit(one['threshold'])} (chosen on dev)" in text
    page = page_of(tmp_path)
    assert [e[2] for e in page.all("text")].count(f"from {limit(one['threshold'])}") == 2
    at, (_, _, line, _) = one["at_threshold"], tables_of(text)[1]
    counts = [(at["right"], at["given"]), (at["right"], one["rows"])]
    assert [cell.split(" (")[0] for cell in line[1:3]] == [f"{part} of {whole}" for part, whole in counts]
    assert line[4].startswith(f"{at['given'] - at['right']} of {300 - one['rows']} (")


def test_of_two_equally_frequent_labels_the_first_is_looked_at(tmp_path):
    make_run(tmp_path, labels=TWO)
    reading = reading_of(tmp_path)
    found = lines_part.measure(reading)
    assert found["classes"][0]["label"] == TWO[0]
    text = lines_part.chapter(found, reading)
    assert "the first of two equally frequent classes in train" in text
    assert "rarer" not in text


@pytest.mark.parametrize(("size", "told"), [(6, False), (20, True), (120, True)])
def test_few_groups_are_warned_of(tmp_path, size, told):
    make_groups(make_run(tmp_path), rows=120, size=size)
    assert ("**Fewer than 20 groups are too few**" in chapter(report_of(tmp_path), THRESHOLDS)) == told


def test_where_no_class_can_be_told_there_is_no_table(tmp_path):
    make_run(tmp_path, labels=["only"])
    text = lines_part.chapter(lines_part.measure(reading_of(tmp_path)), reading_of(tmp_path))
    assert "no threshold can tell rows apart" in text
    assert not tables_of(text)


@pytest.mark.parametrize(("rows", "places"), [(60, 2), (100_000, 3)])
def test_the_numbers_of_a_line_have_as_many_digits_as_rows_support(rows, places):
    (cell,) = lines_part._digits(np.array([0.123456]), np.array([rows]))
    assert cell == f"{0.123456:.{places}f}"


@pytest.mark.parametrize(("splits", "expected"), [(("dev", "test"), "dev"), (("test",), "test")])
def test_without_a_record_of_train_the_rarer_is_counted(tmp_path, splits, expected):
    make_run(tmp_path, labels=TWO, rows=101, data={})
    reading = reading_of(tmp_path, *splits)
    found = lines_part.measure(reading)
    counts = np.bincount(reading.arrays[expected][0], minlength=2)
    assert found["rarer_in"] == expected
    assert found["classes"][0]["label"] == TWO[counts.argmin()]


def test_of_many_labels_the_weakest_come_first_and_metrics_have_all(tmp_path):
    make_run(tmp_path, labels=MANY, rows=800, lead=1.5)
    reading = reading_of(tmp_path)
    found = lines_part.measure(reading)
    assert [one["label"] for one in found["classes"]] == MANY
    text = lines_part.chapter(found, reading)
    (lines,) = tables_of(text)
    assert len(lines) == 2 + lines_part.SHOWN
    averages = [float(line[1].split()[0]) for line in lines[2:]]
    assert averages == sorted(averages)
    assert "The 40 weakest of 77 classes are shown; metrics.json has all" in text


def test_a_class_without_test_rows_is_named_and_one_without_dev_rows_has_no_threshold(tmp_path):
    make_run(tmp_path, rows=40)
    reading = reading_of(tmp_path)
    for split, place in (("test", 1), ("dev", 2)):
        truth = reading.arrays[split][0]
        truth[truth == place] = 0
    found = lines_part.measure(reading)
    assert found["classes"][1]["auroc"] is found["classes"][1]["at_threshold"] is None
    assert found["classes"][2]["threshold"] is None
    text = lines_part.chapter(found, reading)
    assert "1 class is left out" in text
    (lines,) = tables_of(text)
    assert len(lines) == 2 + 3
    assert sum(line[4:] == ["–"] * 3 for line in lines) == 1
