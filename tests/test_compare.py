"""Does a comparison call luck luck, and a difference a difference, and does it refuse what cannot be compared?"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from test_report import make_records, make_run

from graftkit import cli
from graftkit.compare.page import _cells
from graftkit.metrics import comparison
from graftkit.metrics.classification import HEADLINES, Counts, confusion
from graftkit.metrics.intervals import Interval
from graftkit.report import metrics_text, write_report
from graftkit.report.markdown import probability
from graftkit.report.tables import read_predictions, read_rows, write_predictions, write_rows

PAIRS = 2000

HEADLINE_OF_LOSS = '{"task": "text-classification", "headline": "log_loss"}'


def by_chance(pairs=PAIRS):
    """What 99 of 100 simulations of an event of 5% stay below: 0.061 of 2,000 pairs."""
    return 0.05 + 2.33 * math.sqrt(0.05 * 0.95 / pairs)


def draw_pair(rng, rows=200, labels=4, apart=0.2, accuracy=0.85):
    """Truth and the answers of two models that are right equally often, and part on some rows."""
    truth = rng.integers(0, labels, rows)
    common = rng.random(rows) < accuracy

    def answers():
        right = np.where(rng.random(rows) < apart, rng.random(rows) < accuracy, common)
        return np.where(right, truth, (truth + rng.integers(1, labels, rows)) % labels)

    return truth, answers(), answers()


# --- metrics -----------------------------------------------------------------


@pytest.mark.parametrize("lost", [0, 1, 5, 40, 700])
@pytest.mark.parametrize("gained", [0, 1, 6, 55, 640])
def test_mcnemar_is_that_of_statsmodels_and_scipy(lost, gained):
    from scipy.stats import binomtest
    from statsmodels.stats.contingency_tables import mcnemar

    p = float(comparison.mcnemar(lost, gained))
    assert p == pytest.approx(mcnemar([[9, lost], [gained, 9]], exact=True).pvalue, abs=1e-10)
    assert p == pytest.approx(binomtest(lost, lost + gained).pvalue if lost + gained else 1.0, abs=1e-10)


@pytest.mark.parametrize("rows", [60, 256, 1600])
@pytest.mark.parametrize("apart", [0.03, 0.1, 0.3])
def test_equal_accuracy_is_a_false_alarm_at_most_5_times_in_100(rows, apart):
    rng = np.random.default_rng(rows)
    lost, gained, _ = rng.multinomial(rows, [apart / 2, apart / 2, 1 - apart], size=PAIRS).T
    assert np.mean(comparison.mcnemar(lost, gained) <= 0.05) <= by_chance()
    lost, gained, _ = rng.multinomial(rows, [0.02, 0.3, 0.68], size=PAIRS).T
    assert np.mean(comparison.mcnemar(lost, gained) <= 0.05) > 0.9  # it does see what is there


@pytest.mark.parametrize("pairs", [300, pytest.param(PAIRS, marks=pytest.mark.slow)])
def test_swaps_of_equal_models_are_a_false_alarm_at_most_5_times_in_100(pairs):
    rng = np.random.default_rng(0)
    drawn = [draw_pair(rng, rows=100) for _ in range(pairs)]
    found = [comparison.swap_test(*pair, 4, swaps=200, seed=i) for i, pair in enumerate(drawn)]
    for name in HEADLINES:
        assert 0.01 < np.mean([p[name] <= 0.05 for p in found]) <= by_chance(pairs), name


@pytest.mark.slow
def test_the_interval_of_a_difference_of_equal_models_holds_0_in_95_of_100():
    rng = np.random.default_rng(1)
    pairs = (draw_pair(rng, rows=256) for _ in range(PAIRS))
    found = [
        comparison.differences(truth, one[None], other[None], 4, resamples=1000, seed=i)
        for i, (truth, one, other) in enumerate(pairs)
    ]
    for name in HEADLINES:
        assert 0.93 <= np.mean([i[name].low <= 0 <= i[name].high for i in found]) <= 0.965, name


def test_swaps_of_accuracy_are_mcnemar():
    truth, one, other = draw_pair(np.random.default_rng(3))
    lost, gained = np.sum((one == truth) & (other != truth)), np.sum((one != truth) & (other == truth))
    assert lost != gained
    p = comparison.swap_test(truth, one, other, 4, swaps=40_000)["accuracy"]
    assert p == pytest.approx(float(comparison.mcnemar(lost, gained)), abs=0.01)  # by chance +- 0.0025


def test_swaps_are_those_of_rows_one_by_one():
    truth, one, other = draw_pair(np.random.default_rng(4), rows=40, apart=0.6)
    one[truth == 0] = 0  # so that they do differ
    rng = np.random.default_rng(0)

    def difference(a, b, score):
        return float(score(Counts.of(confusion(truth, b, 4)))) - float(score(Counts.of(confusion(truth, a, 4))))

    ours = comparison.swap_test(truth, one, other, 4)
    tosses = rng.random((2000, len(truth))) < 0.5
    for name, score in HEADLINES.items():
        seen = abs(difference(one, other, score))
        drawn = [abs(difference(np.where(t, other, one), np.where(t, one, other), score)) for t in tosses]
        assert ours[name] == pytest.approx(np.mean(np.array(drawn) >= seen - 1e-12), abs=0.04), name


def test_holm_by_hand():
    # sorted: 0.005 x 4 = 0.02; 0.01 x 3 = 0.03; 0.03 x 2 = 0.06; 0.04 x 1 = 0.04, but never less than the one before
    assert comparison.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparison.holm([0.6, 0.5]).tolist() == [1.0, 1.0]
    assert comparison.holm([0.2]).tolist() == [0.2]


def test_holm_is_that_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(30) ** 3
    assert comparison.holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)


def test_the_difference_is_that_of_the_scores_and_its_interval_that_of_scipy():
    from scipy.stats import bootstrap

    truth, one, other = draw_pair(np.random.default_rng(5), rows=150)
    ours = comparison.differences(truth, one[None], other[None], 4, resamples=20_000)
    for name, score in HEADLINES.items():
        expected = float(score(Counts.of(confusion(truth, other, 4)))) - float(
            score(Counts.of(confusion(truth, one, 4)))
        )
        assert ours[name].value == pytest.approx(expected, abs=1e-12)
    gains = (other == truth).astype(float) - (one == truth)
    theirs = bootstrap((gains,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    assert (ours["accuracy"].low, ours["accuracy"].high) == pytest.approx((theirs.low, theirs.high), abs=0.008)


def test_a_pair_is_surer_than_its_two_scores():
    truth, one, other = draw_pair(np.random.default_rng(6), rows=400, apart=0.1)
    pair = comparison.differences(truth, one[None], other[None], 4)["macro_f1"]
    alone = comparison.differences(truth, one[None], np.stack([truth]), 4)["macro_f1"]
    assert pair.high - pair.low < 0.8 * (alone.high - alone.low)


def test_models_that_say_the_same_may_yet_part_on_other_rows():
    truth, one, _ = draw_pair(np.random.default_rng(7))
    found = comparison.differences(truth, one[None], one[None], 4)
    assert (found["accuracy"].low, found["accuracy"].high) == pytest.approx((-0.0183, 0.0183), abs=1e-4)
    assert found["macro_f1"].method == "constant"
    assert set(comparison.swap_test(truth, one, one, 4).values()) == {1.0}


@pytest.mark.parametrize(
    ("rows", "discordant", "difference"), [(256, 0.12, 0.06), (1600, 0.05, 0.02), (30, 0.4, 0.4), (200, 0.1, 0.0)]
)
def test_power_is_how_often_it_is_found(rows, discordant, difference):
    shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
    lost, gained, _ = np.random.default_rng(0).multinomial(rows, shares, size=40_000).T
    found = np.mean(comparison.mcnemar(lost, gained) <= 0.05)
    assert comparison.power(rows, discordant, difference) == pytest.approx(found, abs=0.008)


@pytest.mark.parametrize(("rows", "discordant"), [(256, 30), (1600, 80), (20_000, 1800)])
def test_the_smallest_difference_is_near_the_formula_of_connor(rows, discordant):
    smallest, share = comparison.smallest_difference(rows, discordant), discordant / rows
    # Connor 1987, Biometrics 43, 207: rows = (1.96 sqrt(share) + 0.84 sqrt(share - d^2))^2 / d^2, for the inexact test
    needed = (1.95996 * share**0.5 + 0.84162 * (share - smallest**2) ** 0.5) ** 2 / smallest**2
    assert needed <= rows
    assert needed == pytest.approx(rows, rel=0.12)
    assert comparison.power(rows, share, smallest) == pytest.approx(0.8, abs=1e-3)
    assert comparison.smallest_difference(rows, discordant, alpha=0.01) > smallest


def test_five_rows_can_show_nothing():
    assert comparison.smallest_difference(5, 1) is None
    assert 0.9 < comparison.smallest_difference(6, 0) < 1


def test_over_seeds_is_welch_where_the_rows_are_certain():
    from scipy.stats import ttest_ind

    first, second = np.array([0.91, 0.92, 0.90]), np.array([0.93, 0.96, 0.95, 0.94])
    found = comparison.over_seeds(first, second, 1000, 0.0)
    theirs = ttest_ind(second, first, equal_var=False)
    assert (found.p, found.freedom) == pytest.approx((theirs.pvalue, theirs.df))
    interval = theirs.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))
    assert comparison.over_seeds(first, second, 1000, 0.01).p > found.p


def test_over_seeds_knows_how_large_a_difference_it_finds():
    rng, seeds, rows_sd = np.random.default_rng(0), 5, 0.01
    smallest = comparison.over_seeds(
        np.array([0.9, 0.91, 0.92, 0.93, 0.94]), np.array([0.9] * 5), 500, rows_sd
    ).smallest
    spread = np.std([0.9, 0.91, 0.92, 0.93, 0.94], ddof=1)
    found = []
    for _ in range(PAIRS):
        first, second = rng.normal(0, spread, seeds), rng.normal(0, 1e-6, seeds)
        shift = smallest + rng.normal(0, rows_sd)
        found.append(comparison.over_seeds(first, second + shift, 500, rows_sd).p <= 0.05)
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_recipes_are_a_false_alarm_at_most_5_times_in_100(seeds):
    rng, rows = np.random.default_rng(seeds), 200
    alarms = 0
    for _ in range(PAIRS):
        hard = rng.normal(size=rows)  # rows are hard or easy for all models alike
        skill = 1.0 + 0.1 * rng.normal(size=(2 * seeds, 1))
        right = 0.8 * hard + 0.6 * rng.normal(size=(2 * seeds, rows)) < skill
        gap = right[seeds:].mean(axis=0) - right[:seeds].mean(axis=0)
        scores = right.mean(axis=1)
        sd = gap.std() / math.sqrt(rows)
        alarms += comparison.over_seeds(scores[:seeds], scores[seeds:], rows, sd).p <= 0.05
    assert alarms / PAIRS <= by_chance()


def test_classes_are_compared_on_their_own_rows():
    truth = np.array([0] * 10 + [1] * 10 + [2] * 4)
    one, other = truth.copy(), truth.copy()
    one[:8] = 1  # the second model gains these
    other[20:22] = 0  # and loses these
    first, second, last = comparison.class_changes(truth, one[None], other[None], ["a", "b", "c"])
    assert (first["label"], first["support"], first["lost"], first["gained"]) == ("a", 10, 0, 8)
    assert (first["recall"], first["p"]) == ((0.2, 1.0), pytest.approx(3 * 2 * 0.5**8))
    assert first["f1"] == pytest.approx((2 * 2 / 12, 2 * 10 / 22))
    assert (second["label"], second["lost"], second["gained"], second["p"]) == ("c", 2, 0, 1.0)
    assert (last["label"], last["lost"], last["gained"], last["p"]) == ("b", 0, 0, 1.0)
    several = comparison.class_changes(truth, np.stack([one, truth]), np.stack([truth, truth]), ["a", "b", "c"])
    assert several[0]["recall"] == (0.6, 1.0)
    assert "p" not in several[0]


# --- the command -------------------------------------------------------------


def alter(folder, seed, noise=0.0, spoil=0):
    """Let the model of a run be another: noise on its logits; `spoil` of its right answers become wrong."""
    labels, records = read_predictions(folder, "test")
    rng = np.random.default_rng(seed)
    for record in records:
        logits = record["logits"] + noise * rng.normal(size=len(labels)).astype(np.float32)
        if record["label"] == labels[int(logits.argmax())] and spoil > 0:
            logits[labels.index(record["label"])] = logits.min() - 1
            spoil -= 1
        record |= {"logits": logits, "prediction": labels[int(logits.argmax())]}
    write_predictions(folder, "test", records, labels)
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Six runs on the same rows: a; b is nearly a, c is much worse; and a seed more of each."""
    monkeypatch.chdir(tmp_path)
    for seed, (name, noise, spoil) in enumerate(
        [("a", 0, 0), ("b", 0.2, 0), ("c", 0.1, 60), ("a2", 0.2, 0), ("b2", 0.2, 0), ("c2", 0.1, 58)]
    ):
        alter(make_run(tmp_path / name, rows=256, labels=["w", "x", "y", "z"], lead=3.0), seed, noise, spoil)
    return tmp_path


@pytest.fixture
def graft(capsys):
    """Runs `graft` in this process: exit code, what it printed, and its errors."""

    def call(*words):
        code = cli.main([*map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_pair_that_cannot_be_told_apart(runs, graft):
    code, text, _ = graft("compare", "a", "b")
    assert code == 0
    assert text.startswith("# Comparison on 256 test rows\n")
    assert "**No difference in macro F1 that 256 rows could show**" in text
    assert "The smallest difference in accuracy that they reliably show is about 0.0" in text
    assert "A pair compares two models, not two recipes" in text
    assert "All of these runs answered the same rows, by id, content and label." in text


def test_a_pair_that_differs(runs, graft):
    code, text, _ = graft("compare", "a", "c")
    assert code == 0
    assert "**B is worse than A**: macro F1 -0.2" in text
    assert "p under 0.001" in text
    truth, one, other = (
        [record[name] for record in read_predictions(runs / run, "test")[1]]
        for run, name in (("a", "label"), ("a", "prediction"), ("c", "prediction"))
    )
    lost = sum(t == a != b for t, a, b in zip(truth, one, other, strict=True))
    gained = sum(t == b != a for t, a, b in zip(truth, one, other, strict=True))
    assert f"A alone is right on {lost} rows, B alone on {gained}; on " in text
    assert f"Right in A, wrong in B, the 5 worst of {lost}:" in text
    assert "**B is better than A**" in graft("compare", "c", "a")[1]


def test_flipped_rows_show_what_they_hold_where_anyone_kept_it(runs, graft):
    rows = [{"id": row["id"], "sha256": row["sha256"]} for row in read_rows(runs / "a", "test")]
    write_rows(runs / "a", "test", rows)
    assert "two lines" in graft("compare", "a", "c")[1]
    write_rows(runs / "c", "test", rows)
    text = graft("compare", "a", "c")[1]
    assert "two lines" not in text
    assert "*not kept* (SHA-256 " in text


def test_a_run_that_was_shared_without_its_rows_is_matched_by_id_and_label_and_says_so(runs, graft):
    (runs / "b/rows-test.parquet").unlink()
    record = json.loads((runs / "b/run.json").read_text())
    (runs / "b/run.json").write_text(json.dumps(record | {"rows_left_out": True}))
    code, text, _ = graft("compare", "a", "b")
    assert code == 0
    assert "Rows were matched by id and label alone for b:" in text


def test_several_are_corrected_and_the_order_of_labels_and_rows_does_not_matter(runs, graft):
    labels, records = read_predictions(runs / "c", "test")
    before = graft("compare", "a", "b", "c")[1]
    order = [3, 0, 2, 1]
    for record in records:
        record |= {name: record[name][order] for name in ("logits", "probabilities")}
    write_predictions(runs / "c", "test", records[::-1], [labels[i] for i in order])
    after = graft("compare", "a", "b", "c")[1]
    assert after == before
    assert "| Score | Difference | 95% interval | p, raised for 2 comparisons |" in after
    assert "for McNemar's test, at level 0.025" in after
    p = float(_row(after.split("## B against A")[1], "accuracy")[-1])
    alone = float(_row(graft("compare", "a", "b")[1].split("## B against A")[1], "accuracy")[-1])
    assert p == pytest.approx(alone)  # of two, the larger p is raised by 1, the smaller by 2


def _row(text, name):
    return next(line for line in text.splitlines() if line.startswith(f"| {name} |")).strip("| ").split(" | ")


def test_the_headline_is_that_of_the_reference(tmp_path, graft):
    for name, headline in (("a", "accuracy"), ("b", "matthews")):
        make_run(tmp_path / name, lead=3.0 if name == "a" else 1.0, headline=headline)
    alter(tmp_path / "b", 0, noise=2.0)
    text = graft("compare", tmp_path / "a", tmp_path / "b")[1]
    assert "worse than A**: accuracy" in text
    assert "macro" not in text
    assert "Matthews" not in text
    assert "worse than A" not in graft("compare", tmp_path / "b", tmp_path / "a")[1].split("## How")[0]
    assert "**B is better than A**: Matthews correlation" in graft("compare", tmp_path / "b", tmp_path / "a")[1]


def test_the_same_answers_are_said_to_be_the_same(tmp_path, graft):
    for name in ("a", "b"):
        make_run(tmp_path / name)
    code, text, _ = graft("compare", tmp_path / "a", tmp_path / "b", "--fail-if-worse-than", "0")
    assert code == 0
    assert "**The two give every row the same class.** 120 rows cannot rule out that they part on up to 3%" in text
    assert "No class has another F1." in text


@pytest.mark.parametrize(
    ("names", "limit", "code", "said"),
    [
        (["a", "b"], 0.01, 0, "B **passes**: it is not shown to be worse by more than that, though it may be"),
        (["a", "c"], 0.01, 1, "B **fails**: it is worse by at least 0."),
        (["a", "c"], 0.5, 0, "B **passes**: it is not shown to be worse by more than that, and is not"),
        (["c", "a"], 0, 0, "B **passes**: it is not shown to be worse by more than that, and is not"),
        (["a", "b", "c"], 0.01, 1, "C **fails**"),
        (["a,a2", "c,c2"], 0.01, 1, "B **fails**"),
        (["a,a2", "b,b2"], 0.01, 0, "B **passes**"),
    ],
)
def test_the_gate_of_ci(runs, graft, names, limit, code, said):
    found, text, _ = graft("compare", *names, "--fail-if-worse-than", limit)
    assert (found, said in text) == (code, True), text
    assert graft("compare", *names)[0] == 0


def test_a_loss_that_could_be_luck_passes_the_gate(tmp_path, graft):
    for name, spoil in (("a", 0), ("b", 5)):  # 5 rows lost of 120, and none gained: p is 0.06
        alter(make_run(tmp_path / name, lead=6.0, headline="accuracy"), 0, spoil=spoil)
    code, text, _ = graft("compare", tmp_path / "a", tmp_path / "b", "--fail-if-worse-than", "0")
    assert (code, "**No difference in accuracy" in text, "p 0.062" in text) == (0, True, True)
    assert "it may be worse by up to 0.0" in text


def test_arms_of_several_seeds_compare_means(runs, graft):
    code, text, _ = graft("compare", "a,a2", "c,c2")
    assert code == 0
    assert "| A | a,a2 (the reference) |" in text
    assert "**B is worse than A, over seeds**: mean macro F1 -0.2" in text
    assert "So few seeds hardly show how much seeds matter" in text
    assert "two models, not two recipes" not in text
    assert "Welch's t" in text
    assert "Rows that flipped" not in text
    assert (
        "**No difference in mean macro F1 that 2 and 2 seeds on 256 rows could show**"
        in graft("compare", "a,a2", "b,b2")[1]
    )


def test_the_same_runs_make_the_same_bytes_on_screen_and_in_the_file(runs, graft):
    for names in (["a", "b", "c"], ["a,a2", "b,b2"]):
        first = graft("compare", *names, "--output", "one.md")[1]
        again = graft("compare", *names, "--output", "two.md")[1]
        assert first == again == (runs / "one.md").read_text() == (runs / "two.md").read_text()
        assert str(runs) not in first
    assert not list(runs.glob("*.writing"))


def _write_labels(folder, labels):
    write_predictions(folder, "test", make_records(256, labels, 1, 3.0), labels)


def _change(folder, change, write=write_predictions):
    if write is write_rows:
        return write_rows(folder, "test", change(read_rows(folder, "test")))
    labels, records = read_predictions(folder, "test")
    return write_predictions(folder, "test", change(records), labels)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda b: (b / "run.json").unlink(), "no run.json in b"),
        (lambda b: (b / "predictions-test.parquet").unlink(), "no predictions-test.parquet in b"),
        (lambda b: (b / "rows-test.parquet").unlink(), "no rows-test.parquet in b"),
        (lambda b: (b / "rows-test.parquet").write_text("rows"), "rows-test.parquet is no parquet file"),
        (lambda b: (b / "run.json").write_text(HEADLINE_OF_LOSS), "b: its headline 'log_loss' is no score"),
        (lambda b: _write_labels(b, ["w", "x", "y"]), "b has no label 'z', which a has (3 and 4 labels)"),
        (lambda b: _write_labels(b, ["w", "x", "y", "z", "u"]), "a has no label 'u', which b has (4 and 5 labels)"),
        (lambda b: _change(b, lambda records: records[:-2]), "b lacks row test-254, test-255 of a; compare runs on"),
        (
            lambda b: _change(b, lambda records: [*records, records[0] | {"id": "new"}]),
            "rows-test.parquet lacks row new of predictions-test.parquet",
        ),
        (lambda b: _change(b, lambda records: [*records, records[0]]), "b: an id stands twice"),
        (
            lambda b: _change(b, lambda rows: [row | {"sha256": row["id"]} for row in rows], write_rows),
            "row test-0, test-1, test-2 and 253 more of b is another than that of a; compare runs on the same",
        ),
        (
            lambda b: _change(
                b, lambda all: [{**all[0], "label": "wxyz"["wxyz".index(all[0]["label"]) - 1]}, *all[1:]]
            ),
            "row test-0 has another label in b than in a",
        ),
        (
            lambda b: _change(b, lambda all: [{**all[0], "probabilities": np.full(4, np.nan)}, *all[1:]]),
            "a probability that is no finite number in row test-0",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_line(runs, graft, break_it, message):
    break_it(runs / "b")
    code, out, error = graft("compare", "a", "b")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert message in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "name two runs or more"),
        (["a", "a"], "a is given twice"),
        (["a,b", "c,./b"], "b is given twice"),
        (["a,a2", "b"], "b is one run against an arm of several seeds"),
        (["a", "missing"], "no run.json in missing"),
        (["a", "b", "--fail-if-worse-than", "nan"], "'nan' is no number from 0 up to 1"),
        (["a", "b", "--fail-if-worse-than", "-0.1"], "--fail-if-worse-than"),
        (["a", "b", "--fail-if-worse-than", "a lot"], "'a lot' is no number from 0 up to 1"),
        (["a", "b", "--output", "no/such.md"], "--output no/such.md cannot be written"),
        (["a", "b", "--output", "c"], "--output c cannot be written"),
        (["a", "b", "--level", "0.9"], "unrecognized arguments: --level"),
    ],
)
def test_a_mistake_is_one_line(runs, graft, words, message):
    code, out, error = graft("compare", *words)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert message in error


@pytest.mark.parametrize(
    ("interval", "cells"),
    [
        (Interval(0.0123, -0.0101, 0.034, 0.95, "bca"), ("+0.01", "-0.01 to +0.03")),
        (Interval(-0.00001, -0.0031, 0.003, 0.95, "bca"), ("+0.000", "-0.003 to +0.003")),
        (Interval(0.0, 0.0, 0.0, 0.95, "constant"), ("+0.00", "–")),
    ],
)
def test_a_difference_has_the_digits_that_its_interval_supports(interval, cells):
    assert _cells(interval, sign="+") == cells


@pytest.mark.parametrize(
    ("p", "words"), [(0.0009, "under 0.001"), (0.0494, "0.049"), (0.0501, "0.050"), (0.31, "0.31")]
)
def test_p_values_read_as_what_they_mean(p, words):
    assert probability(p) == words


# --- graft report ------------------------------------------------------------


def test_a_report_is_made_again_from_the_tables(tmp_path, graft):
    folder = make_run(tmp_path / "run")
    metrics = write_report(folder)
    before = {name: (folder / name).read_bytes() for name in ("metrics.json", "report.md")}
    for name in before:
        (folder / name).unlink()
    code, text, _ = graft("report", folder)
    assert code == 0
    assert text == f"{metrics_text(metrics)}\n\nreport: {folder / 'report.md'}\n"
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_the_report_of_a_run_that_was_pulled_without_its_rows_is_made_again(tmp_path, graft):
    folder = make_run(tmp_path / "run", rows_left_out=True)
    for path in folder.glob("rows-*.parquet"):
        path.unlink()
    assert graft("report", folder)[0] == 0
    assert "*not kept*" in (folder / "report.md").read_text(encoding="utf-8")


def test_the_report_of_an_evaluation_is_made_again(tmp_path, graft):
    folder = make_run(tmp_path / "run", recipe="evaluate")
    (folder / "predictions-dev.parquet").unlink()
    code, text, _ = graft("report", folder)
    assert (code, "dev " in text) == (0, False)
    found = json.loads((folder / "metrics.json").read_text())
    assert "test" in found
    assert "dev" not in found


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "run.json").unlink(), "no run.json in"),
        (lambda run: (run / "predictions-test.parquet").unlink(), "no predictions-test.parquet in"),
        (lambda run: (run / "report.md").mkdir(), "the report cannot be written"),
    ],
)
def test_a_report_that_cannot_be_made_is_one_line(tmp_path, graft, break_it, message):
    break_it(make_run(tmp_path / "run"))
    code, out, error = graft("report", tmp_path / "run")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert message in error
