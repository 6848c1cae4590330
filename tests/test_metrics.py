"""Are the scores of a classifier what scikit-learn says they are?"""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest

from graftkit.metrics import classification


def outputs(rows: int, labels: int, seed: int, *, true_labels=None, given_labels=None):
    """Random truth, prediction and probabilities, of some labels only where they are named."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(range(labels) if true_labels is None else true_labels, rows)
    logits = rng.normal(size=(rows, labels))
    logits[np.arange(rows), truth] += 1
    if given_labels is not None:
        logits[:, [label for label in range(labels) if label not in given_labels]] = -20
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, probabilities.argmax(axis=1), probabilities


CASES = {
    "balanced": outputs(200, 5, 0),
    "two labels": outputs(60, 2, 1),
    "many labels, few rows": outputs(80, 40, 2),
    "one label rare": outputs(300, 3, 3, true_labels=[0] * 9 + [1] * 9 + [2]),
    "a label never given": outputs(100, 4, 4, given_labels=[0, 1, 2]),
    "a label without a row": outputs(100, 4, 5, true_labels=[0, 1, 3]),
    "a label without either": outputs(100, 4, 6, true_labels=[0, 1, 3], given_labels=[0, 1, 3]),
    "one label only": outputs(20, 3, 7, true_labels=[1]),
    "always the same answer": outputs(50, 3, 8, given_labels=[2]),
    "one row": outputs(1, 3, 9),
}


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_scikit_learn(case):
    from sklearn import metrics

    truth, predicted, probabilities = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels that are predicted and have no row, or the other way round
        expected = {
            "accuracy": metrics.accuracy_score(truth, predicted),
            "balanced_accuracy": metrics.balanced_accuracy_score(truth, predicted),
            "macro_f1": metrics.f1_score(truth, predicted, average="macro"),
            "weighted_f1": metrics.f1_score(truth, predicted, average="weighted"),
            "matthews": metrics.matthews_corrcoef(truth, predicted),
            "log_loss": metrics.log_loss(truth, probabilities, labels=range(probabilities.shape[1])),
        }
    found = classification.scores(truth, predicted, probabilities)
    assert found.keys() == expected.keys() | {"calibration_error"}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_classes_and_confusions_are_those_of_scikit_learn(case):
    from sklearn import metrics

    truth, predicted, probabilities = CASES[case]
    places = range(probabilities.shape[1])
    confusion = classification.confusion(truth, predicted, len(places))
    assert np.array_equal(confusion, metrics.confusion_matrix(truth, predicted, labels=places))
    expected = metrics.precision_recall_fscore_support(truth, predicted, labels=places, zero_division=0)
    lines = classification.per_class(confusion, [f"label {place}" for place in places])
    assert [line["label"] for line in lines] == [f"label {place}" for place in places]
    assert [line["predicted"] for line in lines] == np.bincount(predicted, minlength=len(places)).tolist()
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [line[name] for line in lines] == pytest.approx(values.tolist(), abs=1e-12)


def test_a_label_without_row_and_prediction_is_left_out_of_macro_f1():
    from sklearn.metrics import f1_score

    right = np.array([0, 1, 1])
    assert f1_score(right, right, labels=[0, 1, 2], average="macro", zero_division=0) == pytest.approx(2 / 3)
    assert f1_score(right, right, labels=[0, 1, 2], average="macro", zero_division=np.nan) == 1
    assert classification.scores(right, right, np.eye(3)[right])["macro_f1"] == 1


@pytest.mark.parametrize("labels", [2, 3, 7])
def test_no_error_is_exactly_1(labels):
    truth = np.arange(10 * labels) % labels
    found = classification.scores(truth, truth, np.eye(labels)[truth])
    assert found == dict.fromkeys(classification.HEADLINES, 1.0) | {"log_loss": 0.0, "calibration_error": 0.0}


@pytest.mark.parametrize("name", classification.HEADLINES)
def test_many_counts_at_once_give_what_each_gives_alone(name):
    score = classification.HEADLINES[name]
    tables = np.random.default_rng(0).integers(0, 4, (20, 3, 3))
    tables[0] = 0  # no row at all
    each = [classification.Counts.of(table) for table in tables]
    together = classification.Counts(*(np.stack(part) for part in zip(*each, strict=True)))
    assert score(together).tolist() == [float(score(counts)) for counts in each]


def test_calibration_error_follows_its_definition():
    truth, predicted, probabilities = CASES["balanced"]
    confidence = probabilities.max(axis=1)
    expected = 0.0
    for low in np.arange(15) / 15:
        rows = (confidence > low) & (confidence <= low + 1 / 15)
        if rows.any():
            expected += rows.mean() * abs(confidence[rows].mean() - (truth == predicted)[rows].mean())
    assert classification.calibration_error(truth, predicted, probabilities) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_by_hand():
    # Sure by 0.9 and right in one of two rows; sure by 0.6 and right: (2 x |0.9 - 0.5| + |0.6 - 1|) / 3
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    found = classification.calibration_error(np.array([0, 1, 0]), np.array([0, 0, 0]), probabilities)
    assert found == pytest.approx((2 * 0.4 + 0.4) / 3)


def test_a_confidence_on_an_edge_belongs_below_it():
    probabilities = np.array([[0.6, 0.4], [0.55, 0.45]])  # both in (8/15, 9/15]
    found = classification.calibration_error(np.array([0, 1]), np.array([0, 0]), probabilities)
    assert found == pytest.approx(abs(0.6 - 1 + 0.55) / 2)


def test_a_probability_of_zero_costs_much_but_not_everything():
    assert classification.log_loss(np.array([1]), np.array([[1.0, 0.0]])) == pytest.approx(36.04, abs=0.01)


def test_records_are_scored_by_the_names_of_their_labels():
    truth, predicted, probabilities = CASES["balanced"]
    labels = ["e", "d", "c", "b", "a"]
    records = [
        {"label": labels[t], "prediction": labels[p], "probabilities": row.astype(np.float32)}
        for t, p, row in zip(truth, predicted, probabilities, strict=True)
    ]
    expected = classification.scores(truth, predicted, probabilities)
    assert classification.score_records(records, labels) == pytest.approx(expected, abs=1e-6)


def test_importing_is_light():
    code = "import sys, graftkit.report; print({'torch', 'sklearn', 'scipy', 'pyarrow', 'pandas'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
