"""Do metrics by name say what their libraries say, and is a wrong name an error before training?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import run_recipe
from test_metrics import outputs
from test_report import chapter, make_run, report_of, tables_of

from graftkit import cli
from graftkit.errors import UserError
from graftkit.report import write_report
from graftkit.report.metric_modules import SHIPPED, check_metrics, measure_named, told

CASES = {
    "two labels": outputs(80, 2, 1),
    "five labels": outputs(200, 5, 0),
    "a label never given": outputs(100, 4, 4, given_labels=[0, 1, 2]),
    "one row": outputs(1, 3, 9),
    "one row of two labels": outputs(1, 2, 9),
}


def records_of(case: tuple, labels: list[str]) -> list[dict]:
    rows = zip(*case, strict=True)
    return [{"label": labels[t], "prediction": labels[p], "probabilities": row} for t, p, row in rows]


def names(count: int) -> list[str]:
    return [f"label {place}" for place in range(count)]


def expected_of(name: str, truth: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray) -> float | None:
    """What scikit-learn says, in its own words."""
    from sklearn import metrics

    labels, two = probabilities.shape[1], probabilities.shape[1] == 2
    likely = probabilities[:, 1] if two else probabilities
    whole = {
        "accuracy": metrics.accuracy_score,
        "balanced_accuracy": metrics.balanced_accuracy_score,
        "matthews_correlation": metrics.matthews_corrcoef,
        "cohen_kappa": metrics.cohen_kappa_score,
    }
    if name in whole:
        return whole[name](truth, predicted)
    if name in ("roc_auc", "average_precision") and len(np.unique(truth)) < labels:
        return None
    if name == "roc_auc":
        return metrics.roc_auc_score(truth, likely, multi_class="ovr")
    if name == "average_precision":
        return metrics.average_precision_score(truth if two else np.eye(labels)[truth], likely)
    if name == "brier_score":
        return metrics.brier_score_loss(truth, likely, labels=range(labels))
    score, _, average = name.partition("_")
    function = getattr(metrics, f"{score}_score")
    return function(truth, predicted, average=average or ("binary" if two else "macro"), zero_division=0)


@pytest.mark.parametrize("case", CASES)
def test_what_ships_says_what_scikit_learn_says(case, monkeypatch):
    import evaluate

    monkeypatch.delattr(evaluate, "load")  # it may ask the network
    labels = names(CASES[case][2].shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels that are given and have no row
        found, troubles = measure_named(list(SHIPPED), labels, records_of(CASES[case], labels))
        expected = {name: expected_of(name, *CASES[case]) for name in SHIPPED}
    assert troubles == []
    assert list(found) == list(SHIPPED)
    expected = {name: None if value is None or np.isnan(value) else value for name, value in expected.items()}
    assert found == pytest.approx(expected, abs=1e-12)


def test_names_that_ship_need_neither_evaluate_nor_scikit_learn_before_training():
    code = "import sys; from graftkit.report.metric_modules import SHIPPED, check_metrics; "
    code += "check_metrics(list(SHIPPED)); check_metrics(list(SHIPPED), ['a', 'b']); check_metrics(None); "
    code += "print({'evaluate', 'datasets', 'sklearn', 'torch'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


MODULE = """
import datasets
import evaluate
import numpy as np


class Own(evaluate.Metric):
    def _info(self):
        features = datasets.Features({features})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, {said}, references):
        {body}
"""


def make_module(
    folder: Path,
    body: str,
    *,
    said: str = "int64",
    truth: str = "int64",
    inside: str = "Value('{}')",
    key="predictions",
) -> str:
    """A module of evaluate in a folder of its own; returns its path."""
    features = f"{{'{key}': datasets.{inside.format(said)}, 'references': datasets.Value('{truth}')}}"
    folder.mkdir(parents=True)
    source = MODULE.replace("{features}", features).replace("{said}", key).replace("{body}", body)
    (folder / f"{folder.name}.py").write_text(source, encoding="utf-8")
    return str(folder)


RIGHT = "return {'share': float(np.mean(np.array(predictions) == np.array(references)))}"
SECOND = "return {'mean': float(np.mean(predictions)), 'none': float('nan'), 'each': [1, 2]}"
GIVEN = "return {'given': float(np.mean([row[t] for row, t in zip(prediction_scores, references)]))}"


def test_a_folder_is_asked_in_its_own_words(tmp_path):
    labels = names(2)
    truth, predicted, probabilities = CASES["two labels"]
    of_places = make_module(tmp_path / "of_places", RIGHT)
    of_names = make_module(tmp_path / "of_names", RIGHT, said="string", truth="string")
    of_second = make_module(tmp_path / "of_second", SECOND, said="float32", truth="int32")
    inside = "Sequence(datasets.Value('{}'))"
    of_all = make_module(tmp_path / "of_all", GIVEN, said="float64", inside=inside, key="prediction_scores")
    asked = [of_places, of_names, of_second, of_all]
    check_metrics(asked)
    check_metrics(asked, labels)
    found, troubles = measure_named(asked, labels, records_of(CASES["two labels"], labels))
    assert troubles == []
    right = np.mean(truth == predicted)
    given = probabilities[np.arange(len(truth)), truth].mean()
    assert found == pytest.approx(
        {
            "of_places": right,
            "of_names": right,
            "of_second_mean": probabilities[:, 1].mean(),
            "of_second_none": None,
            "of_all": given,
        },
        abs=1e-6,
    )


def test_a_folder_that_a_classifier_cannot_feed_is_refused(tmp_path):
    of_second = make_module(tmp_path / "of_second", SECOND, said="float32")
    check_metrics([of_second], names(2))
    with pytest.raises(UserError, match=r"of_second: it takes .*which a classifier of 3 labels has not") as error:
        check_metrics([of_second], names(3))
    assert "\n" not in str(error.value)
    picture = make_module(tmp_path / "of_pictures", RIGHT, inside="Image()")
    with pytest.raises(UserError, match="has not"):
        check_metrics([picture], names(2))


def test_a_module_that_fails_is_an_error_before_training_and_a_word_after_it(tmp_path):
    fails = make_module(tmp_path / "fails", "raise ValueError('only of two\\nlabels')")
    wordy = make_module(tmp_path / "wordy", "return {'words': 'none', 'yes': True}")
    broken = make_module(tmp_path / "broken", "return {")
    check_metrics([fails, wordy])
    for name, words in ((fails, r"fails on these labels \(ValueError: only of two\)"), (wordy, "no single number")):
        with pytest.raises(UserError, match=words):
            check_metrics([name], names(3))
    with pytest.raises(UserError, match="evaluate cannot load it"):
        check_metrics([broken])
    labels = names(5)
    found, troubles = measure_named([fails, "accuracy"], labels, records_of(CASES["five labels"], labels))
    assert list(found) == ["accuracy"]
    assert [trouble.split(": ")[1] for trouble in troubles] == ["it fails on these labels (ValueError"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["f1_marco"], r"--report.metrics f1_marco: no such folder here, and the Hub .*did you mean f1_macro\?"),
        (["rouge"], r"rouge: .* cannot be reached; those that come with graftkit: accuracy, "),
        (["./accuracy"], "accuracy comes with graftkit; give your own another name"),
        (["one/own", "two/own"], "one/own and two/own would both be called own"),
    ],
)
def test_a_name_that_cannot_be_had_is_one_line(asked, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        check_metrics(asked)
    assert "\n" not in str(error.value)


# --- in the report -----------------------------------------------------------


def test_the_report_shows_them_in_a_table_of_their_own(tmp_path):
    named = {"f1_macro": 0.812345, "roc_auc": None, "own|metric": 12.5}
    make_run(tmp_path, metrics={"dev": named | {"f1_macro": 0.7}, "test": named})
    report = report_of(tmp_path)
    scores = chapter(report, "Scores")
    assert "They have no interval" in scores
    assert tables_of(scores)[1] == [
        ["Asked for by name", "Test", "Dev", "Computed by"],
        ["---", "---:", "---:", "---"],
        ["f1_macro", "0.81", "0.70", "scikit-learn, `f1_score`, average macro"],
        ["roc_auc", "–", "–", "scikit-learn, `roc_auc_score`, multi_class ovr, average macro"],
        ["own&#124;metric", "12.50", "12.50", "a module of the `evaluate` library"],
    ]
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test"]["named"] == named
    assert metrics["dev"]["named"]["f1_macro"] == 0.7


def test_none_asked_for_is_no_table(tmp_path):
    metrics = write_report(make_run(tmp_path))
    assert "named" not in metrics["test"]
    assert told(metrics) == []
    assert "by name" not in (tmp_path / "report.md").read_text(encoding="utf-8")


# --- from the recipes --------------------------------------------------------


def test_a_run_and_an_evaluation_of_it_keep_what_was_asked_for(tmp_path, checkpoint, data):
    own = make_module(tmp_path / "own", RIGHT, said="string", truth="string")
    asked = f"accuracy,f1_macro,roc_auc,{own}"
    run = tmp_path / "run"
    words = ("--data.path", data, "--train.epochs", 1, "--train.batch_size", 8, "--report.metrics", asked)
    metrics = run_recipe("text_classify", "--backbone.name", checkpoint("bert"), "--run.out", run, *words)
    for split in ("dev", "test"):
        named, scores = metrics[split]["named"], metrics[split]["scores"]
        assert list(named) == ["accuracy", "f1_macro", "roc_auc", "own"]
        assert (named["accuracy"], named["own"]) == pytest.approx((scores["accuracy"],) * 2, abs=1e-12)
        assert named["f1_macro"] == pytest.approx(scores["macro_f1"], abs=1e-12)
    shutil.rmtree(own)  # the report does without
    assert write_report(run) == metrics
    again = tmp_path / "again"
    words = ("--data.path", data, "--report.metrics", "accuracy,f1_macro,roc_auc", "--run.out", again)
    assert cli.main(["evaluate", str(run), *map(str, words)]) == 0
    found = json.loads((again / "metrics.json").read_text(encoding="utf-8"))["test"]["named"]
    assert found == {name: metrics["test"]["named"][name] for name in ("accuracy", "f1_macro", "roc_auc")}


@pytest.mark.parametrize("recipe", ["text_classify", "image_classify", "evaluate"])
def test_a_name_that_cannot_be_had_is_an_error_before_anything_is_made(tmp_path, capsys, recipe):
    words = ("--data.path", "nothing", "--report.metrics", "f1_marco", "--run.out", tmp_path / "run")
    if recipe == "evaluate":
        assert cli.main(["evaluate", "nothing", *map(str, words)]) == 2
        assert "did you mean f1_macro?" in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match=r"did you mean f1_macro\?"):
            run_recipe(recipe, *words)
    assert not (tmp_path / "run").exists()


def test_a_module_that_these_labels_break_is_an_error_before_training(tmp_path, checkpoint, data):
    fails = make_module(tmp_path / "fails", "raise ValueError('no')")
    words = ("--data.path", data, "--report.metrics", fails, "--run.out", tmp_path / "run")
    with pytest.raises(UserError, match="fails on these labels"):
        run_recipe("text_classify", "--backbone.name", checkpoint("bert"), *words)
    assert not (tmp_path / "run" / "log.jsonl").exists()
