"""What can be had without a pretrained network, and does a model that is no better say so?"""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import run_recipe, texts
from test_report import LABELS, chapter, make_run, report_of, tables_of

from graftkit import baselines
from graftkit.baselines import (
    colour_histogram,
    draw,
    number_baselines,
    picture_baselines,
    sample,
    target_baselines,
    text_baselines,
)
from graftkit.errors import UserError
from graftkit.metrics import classification, comparison
from graftkit.report import baselines as report_baselines
from graftkit.report import metrics_text, write_report
from graftkit.report.reading import Reading
from graftkit.report.tables import read_baselines, read_predictions, table_hashes, write_baselines, write_measures


def rows_of(columns: dict[str, list]):
    from datasets import Dataset

    ids = [f"row-{place}" for place in range(len(columns["label"]))]
    return Dataset.from_dict({"id": ids, **columns})


def of_texts(train: dict, test: dict) -> dict[str, list[str]]:
    """What the baselines give test; dev is train."""
    labels = sorted({*train["label"], *test["label"]})
    found = text_baselines(labels, rows_of(train), rows_of(train), rows_of(test))
    return {name: baseline.given for name, baseline in found.items()}


def fruit(count: int, seed: int) -> dict[str, list[str]]:
    return dict(zip(("text", "label"), map(list, zip(*texts(count, seed), strict=True)), strict=True))


# --- texts -------------------------------------------------------------------


def test_words_tell_the_class():
    train, test = fruit(90, 0), fruit(30, 1)
    labels = sorted(set(train["label"]))
    found = text_baselines(labels, rows_of(train), rows_of(fruit(30, 2)), rows_of(test))
    assert list(found) == ["majority", "tf_idf"]
    right = np.mean(np.array(found["tf_idf"].given) == test["label"])
    assert right > 0.8
    facts = found["tf_idf"].facts
    assert (facts["rows"], facts["of"]) == (90, 90)
    assert facts["C"] in baselines.STRENGTHS
    assert 0 < facts["seconds"] < 60


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a b", "a c"], ["d b", "d c"]),  # words of one letter
        (["😀", "😀 😀"], ["😡", "😡 😀😡"]),
        (["我很高兴", "他很高兴"], ["我很生气", "他很生气"]),  # no blanks between words
        (["_x_", "_x_"], ["**", "*"]),
        (["not bad at all", "all not bad"], ["bad not at all", "all bad not"]),  # the same words, other neighbours
    ],
)
def test_any_script_has_words(one, other):
    train = {"text": one * 6 + other * 6, "label": ["<b>"] * 12 + ["a|b"] * 12}
    assert of_texts(train, train)["tf_idf"] == train["label"]


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_without_any_word_only_the_most_frequent_class_is_left(blank):
    given = of_texts({"text": [blank] * 5, "label": list("abbab")}, {"text": ["words", blank], "label": ["a", "b"]})
    assert given == {"majority": ["b", "b"]}


def test_a_text_without_a_known_word_gets_some_class():
    train = fruit(30, 0)
    assert of_texts(train, {"text": ["", "zzz"], "label": train["label"][:2]})["tf_idf"][0] in train["label"]


def test_of_one_class_alone_nothing_is_learned():
    train = {"text": ["one", "two"], "label": ["a", "a"]}
    assert of_texts(train, {"text": ["x"], "label": ["b"]}) == {"majority": ["a"]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["yes", "no"], ["no", "yes"]),  # the same words, each in the other text
        (["same", "same"], ["yes", "no"]),  # the second text alone tells
        (["yes", "no"], ["", ""]),  # a text without words
    ],
)
def test_the_texts_of_a_pair_are_told_apart(one, other):
    train = {"text": one * 6, "text_pair": other * 6, "label": ["first", "second"] * 6}
    assert of_texts(train, train)["tf_idf"] == train["label"]


def test_the_most_frequent_class_of_train_and_of_equals_the_first_label():
    given = of_texts({"text": ["x"] * 4, "label": list("bbaa")}, {"text": ["x"], "label": ["c"]})
    assert given["majority"] == ["a"]
    assert of_texts({"text": ["x"] * 3, "label": list("bba")}, {"text": ["x"], "label": ["a"]})["majority"] == ["b"]


def test_a_solver_that_is_stopped_early_warns_of_nothing(monkeypatch):
    monkeypatch.setattr(baselines, "STEPS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_texts(fruit(60, 0), fruit(9, 1))


def test_long_texts_and_many_rows_are_cut(monkeypatch):
    train = fruit(90, 0)
    seen = []
    monkeypatch.setattr(
        baselines, "_regression", lambda labels, features, truth, dev: (seen.append(features), 1.0, [])[1:]
    )
    monkeypatch.setattr(baselines, "TEXT_LETTERS", 5)
    monkeypatch.setattr(baselines, "LETTERS", 200)
    labels = sorted(set(train["label"]))
    found = text_baselines(labels, rows_of(train), rows_of(train), rows_of(train))
    assert (found["tf_idf"].facts["rows"], found["tf_idf"].facts["of"]) == (40, 90)
    assert [len(part.toarray()) for part in seen[0]] == [40, 90, 90]
    assert seen[0][0].sum(axis=1).max() < 3  # at most two words of five letters, and their pair


def test_the_answers_are_the_same_each_time():
    assert of_texts(fruit(60, 0), fruit(30, 1)) == of_texts(fruit(60, 0), fruit(30, 1))


def test_a_sample_is_stratified_and_loses_no_class():
    rows = rows_of({"label": ["a"] * 900 + ["b"] * 90 + ["c"]})
    taken = sample(rows, 100)
    counts = {label: taken["label"][:].count(label) for label in "abc"}
    assert counts == {"a": pytest.approx(90, abs=1), "b": pytest.approx(9, abs=1), "c": 1}
    assert taken["id"][:] == sample(rows, 100)["id"][:]
    assert len(sample(rows, 991)) == len(rows)
    assert set(sample(rows, 1)["label"]) == set("abc")


# --- pictures ----------------------------------------------------------------


def picture_rows(colours: list, labels: list[str], mode: str = "RGB"):
    from PIL import Image

    rng, files = np.random.default_rng(0), []
    for colour in colours:
        file, noise = io.BytesIO(), rng.integers(-20, 20, (40, 50, 3))
        Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).convert(mode).save(file, "PNG")
        files.append(file.getvalue())
    return rows_of({"path": [None] * len(files), "bytes": files, "label": labels})


@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
def test_colours_tell_the_class(mode):
    dark, bright = (40, 30, 60), (200, 240, 210)
    train = picture_rows([dark] * 5 + [bright] * 4, ["night"] * 5 + ["day"] * 4, mode)
    test = picture_rows([bright, dark, bright], ["day", "night", "day"], mode)
    found = picture_baselines(["day", "night"], train, train, test)
    assert found["colours"].given == ["day", "night", "day"]
    assert found["majority"].given == ["night"] * 3
    assert found["colours"].facts["neighbours"] in (1, 3, 5, 9)
    assert found["colours"].facts["rows"] == 9


def test_the_number_of_neighbours_is_chosen_on_dev():
    """One picture of the wrong label lies nearest: more neighbours outvote it."""
    train = picture_rows([(60, 60, 60)] * 7 + [(200, 200, 200)] * 7, ["b", *"aaaaaa", *"bbbbbbb"])
    dev = train.select([0, 10]).remove_columns("label").add_column("label", ["a", "b"])
    found = picture_baselines(["a", "b"], train, dev, dev)
    assert found["colours"].given == ["b", "b"]  # its own copy counts for all
    noise = picture_rows([(61, 60, 60), (201, 200, 200)], ["a", "b"])
    assert picture_baselines(["a", "b"], train, noise, noise)["colours"].given == ["a", "b"]


def test_histograms_lie_as_far_apart_as_hellinger_says():
    from PIL import Image

    def plain(*colours):
        return colour_histogram(Image.fromarray(np.array([colours] * 2, np.uint8)))

    black, white, half = plain((0, 0, 0)), plain((255, 255, 255)), plain((0, 0, 0), (255, 255, 255))
    assert black.shape == (512,)
    assert np.linalg.norm(black - white) == pytest.approx(2**0.5)
    assert np.linalg.norm(black - half) == pytest.approx((2 - 2 * 0.5**0.5) ** 0.5)  # sqrt(2 - 2 sum sqrt(p q))
    wide = colour_histogram(Image.new("RGB", (900, 300), (9, 200, 30)))
    assert np.array_equal(wide, plain((9, 200, 30)))


# --- what is told of them ----------------------------------------------------


def told_run(folder: Path, right: float, *, rows: int = 120, name: str = "tf_idf", lead: float = 2.0, **change) -> Path:
    """A run with a baseline that is right where the model is, on this share of those rows, and else on none."""
    make_run(folder, rows=rows, lead=lead, **change)
    _, records = read_predictions(folder, "test")
    good = [place for place, record in enumerate(records) if record["label"] == record["prediction"]]
    kept = set(good[: round(right * len(good))])
    wrong = dict(zip(LABELS, [*LABELS[1:], LABELS[0]], strict=True))
    given = [r["label"] if place in kept else wrong[r["label"]] for place, r in enumerate(records)]
    if right > 1:
        given = [record["label"] for record in records]
    ids = [record["id"] for record in records]
    write_baselines(folder, ids, {"majority": ["a|b"] * rows, name: given})
    return folder


def opening(report: str) -> str:
    return report.split("\n\n")[1]


CASES = [
    (2.0, "no", "**This model does not beat logistic regression on word counts (TF-IDF)**: on 120 test rows"),
    (1.0, "no", "**This model does not beat logistic regression on word counts (TF-IDF)**: on 120 test rows"),
    (0.97, "not shown", "**This model is not shown to beat logistic regression on word counts (TF-IDF)**: on 120"),
    (0.5, "yes", "On 120 test rows that it was not trained on, this model sorts"),
]


@pytest.mark.parametrize("headline", ["accuracy", "macro_f1"])
@pytest.mark.parametrize(("right", "beaten", "words"), CASES)
def test_the_first_sentence_says_what_the_model_does_not_beat(tmp_path, right, beaten, words, headline):
    metrics = write_report(told_run(tmp_path, right, headline=headline))
    answer = metrics["baselines"]["answers"][1]
    assert answer["beaten"] == beaten
    first = opening((tmp_path / "report.md").read_text(encoding="utf-8"))
    assert first.startswith(words)
    assert first.count("**Watch out:**") == 1
    name = "logistic regression on word counts (TF-IDF)" if beaten == "yes" else "the simple answer"
    assert f"where 1 is perfect; {name} reaches {answer['headline']['value']:.2f} (" in first
    said = metrics_text(metrics).splitlines()[-1]
    assert said.startswith("This model") == (beaten != "yes")
    assert beaten == "yes" or words.replace("**", "").partition(":")[0] in said
    assert "<strong>This model" in (tmp_path / "report.html").read_text(encoding="utf-8") or beaten == "yes"


def test_a_model_that_is_no_better_than_one_class_for_all_says_so(tmp_path):
    metrics = write_report(told_run(tmp_path, 0.0, lead=-9.0, headline="accuracy"))
    assert metrics["test"]["scores"]["accuracy"] < 0.05
    first = opening((tmp_path / "report.md").read_text(encoding="utf-8"))
    assert first.startswith("**This model does not beat giving every row the most frequent class**: on")


def test_the_summary_counts_the_most_frequent_class_of_train(tmp_path):
    _, records = read_predictions(told_run(tmp_path, 0.5), "test")
    count = sum(record["label"] == "a|b" for record in records)
    first = opening(report_of(tmp_path))
    assert f"always answering “a&#124;b”, the most frequent class of train, would be right for {count} (" in first


@pytest.mark.parametrize("headline", ["accuracy", "macro_f1"])
def test_the_comparison_is_that_of_the_metrics(tmp_path, headline):
    metrics = write_report(told_run(tmp_path, 0.9, headline=headline))
    labels, records = read_predictions(tmp_path, "test")
    truth, predicted, _ = classification.arrays(records, labels)
    given = np.array([labels.index(label) for label in read_baselines(tmp_path)[1]["tf_idf"]])
    answer = metrics["baselines"]["answers"][1]
    lead = comparison.differences(truth, given[None], predicted[None], 4)[headline]
    assert (answer["lead"]["value"], answer["lead"]["low"]) == (lead.value, lead.low)
    assert answer["lead"]["value"] == pytest.approx(metrics["test"]["scores"][headline] - answer["headline"]["value"])
    lost, gained = np.sum((given == truth) & (predicted != truth)), np.sum((given != truth) & (predicted == truth))
    if headline == "accuracy":
        assert answer["p"] == comparison.mcnemar(lost, gained)
        assert answer["right"] == answer["headline"]["value"] * 120
    else:
        assert answer["p"] == comparison.swap_test(truth, given, predicted, 4, swaps=2000)[headline]


def test_very_many_rows_take_fewer_draws(tmp_path, monkeypatch):
    monkeypatch.setattr("graftkit.report.baselines.DRAWN_ROWS", 120 * 300)
    assert write_report(told_run(tmp_path, 0.9))["baselines"]["draws"] == 300
    assert "300 resamples" in chapter((tmp_path / "report.md").read_text(encoding="utf-8"), "Against simple answers")


def test_the_chapter_says_what_was_learned_and_how_far_the_model_is_ahead(tmp_path):
    facts = {"tf_idf": {"rows": 20, "of": 90, "seconds": 1.23, "C": 10.0}}
    body = chapter(report_of(told_run(tmp_path, 0.5, baselines=facts)), "Against simple answers")
    [found] = tables_of(body)
    assert [line[0] for line in found[2:]] == [
        "Giving every row the most frequent class",
        "Logistic regression on word counts (TF-IDF)",
    ]
    assert found[3][3].startswith("+0.")
    assert found[3][5] == "under 0.001"
    assert "- This model beats logistic regression on word counts (TF-IDF)." in body
    assert "learned from 20 of 90 rows of train, every class in its share; C 10, chosen on dev; 1.2 s in all" in body
    assert "2,000 times" in body
    scores = tables_of(chapter((tmp_path / "report.md").read_text(encoding="utf-8"), "Scores"))[0]
    assert scores[-1][0] == "macro F1 of logistic regression on word counts (TF-IDF)"
    assert len({len(line) for line in scores}) == 1


def test_groups_are_drawn_and_traded_whole(tmp_path):
    told_run(tmp_path, 0.5, report={"group": "pat|ient"})
    alone = write_report(tmp_path)["baselines"]["answers"][1]
    plain = alone["headline"]
    _, records = read_predictions(tmp_path, "test")
    for split in ("dev", "test"):
        write_measures(tmp_path, split, [{"id": r["id"], "group": place // 6} for place, r in enumerate(records)])
    together = write_report(tmp_path)["baselines"]["answers"][1]
    grouped = together["headline"]
    assert (together["p"] != alone["p"], together["lead"]["low"] != alone["lead"]["low"]) == (True, True)
    assert (grouped["value"], grouped["low"] == plain["low"]) == (plain["value"], False)
    body = chapter((tmp_path / "report.md").read_text(encoding="utf-8"), "Against simple answers")
    assert "trade places on each group of “pat&#124;ient” by chance" in body
    assert "bootstrap by group of “pat&#124;ient”" in body


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "there is no baselines-test.parquet in this run. Make the run again"),
        ({"recipe": "evaluate"}, "an evaluation has no training rows"),
    ],
)
def test_what_is_missing_is_named(tmp_path, change, words):
    report = report_of(make_run(tmp_path, **change))
    assert words in chapter(report, "Against simple answers")
    assert "simple answer" not in opening(report)
    assert "baselines" not in json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("several", ["folds", "seeds"])
def test_of_several_models_each_has_its_own(several):
    reading = Reading(Path("run"), {several: [{}, {}]}, LABELS, {})
    assert "the report of each of these models" in report_baselines.chapter(None, reading)


@pytest.mark.parametrize(
    ("ids", "given", "message"),
    [
        (slice(1, None), {"tf_idf": "refund"}, "do not hold the same rows in the same order; make the run again"),
        (slice(None, None, -1), {"tf_idf": "refund"}, "do not hold the same rows"),
        (slice(None), {"tf_idf": "other"}, "the label 'other' is unknown"),
        (slice(None), {"forest": "refund"}, "the baseline 'forest' is unknown"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(tmp_path, ids, given, message):
    make_run(tmp_path)
    known = [f"test-{place}" for place in range(120)][ids]
    write_baselines(tmp_path, known, {name: [label] * len(known) for name, label in given.items()})
    with pytest.raises(UserError, match=message) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)


# --- in a run ----------------------------------------------------------------


def test_a_run_asks_them_and_a_pushed_copy_keeps_them(tmp_path, checkpoint, data, capsys):
    from graftkit.hub.cargo import pack_model, pack_run

    words = ("--backbone.name", checkpoint("bert"), "--data.path", data, "--train.epochs", 1, "--run.precision", "fp32")
    metrics = run_recipe("text_classify", *words, "--run.out", tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    ids, given = read_baselines(tmp_path / "run")
    _, records = read_predictions(tmp_path / "run", "test")
    assert ids == [record["id"] for record in records]
    assert list(given) == list(run["baselines"]) == ["majority", "tf_idf"]
    assert run["baselines"]["tf_idf"]["of"] == 47
    assert run["seconds"]["baselines"] > 0
    assert run["tables"] == table_hashes(tmp_path / "run")
    assert "baselines-test.parquet" in run["tables"]
    assert metrics_text(metrics) in capsys.readouterr().out
    (tmp_path / "copy").mkdir()
    pack_model(tmp_path / "run" / "model", tmp_path / "copy")
    packed = pack_run(tmp_path / "run", tmp_path / "copy", run, with_rows=False)
    assert "baselines-test.parquet" in packed["tables"]
    assert read_baselines(tmp_path / "copy" / "run") == (ids, given)
    copied = json.loads((tmp_path / "copy" / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert copied["baselines"] == metrics["baselines"]


def test_of_a_table_that_is_sorted_rows_are_drawn_from_all_of_it(monkeypatch):
    monkeypatch.setattr(baselines, "TEXTS", 20)
    train = rows_of({"text": ["a dull film"] * 50 + ["a fine film"] * 50, "label": [1.0] * 50 + [5.0] * 50})
    asked = rows_of({"text": ["a dull film", "a fine film"], "label": [1.0, 5.0]})
    dull, fine = number_baselines(train, asked, asked)["ridge"].given
    assert dull < 2 < 4 < fine
    places = [int(name.removeprefix("row-")) for name in draw(train, 20)["id"]]
    assert places == sorted(set(places))
    assert len(places) == 20
    assert draw(train, 100) is train
    pairs = {"source": ["a dull film"] * 50 + ["a fine film"] * 50, "target": ["dull"] * 50 + ["fine"] * 50}
    rows = rows_of({**pairs, "label": [0] * 100})
    assert target_baselines(rows, rows.select([0, 99]))["nearest"].given == ["dull", "fine"]
