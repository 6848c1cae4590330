"""Are sets of labels scored as scikit-learn scores them, and turned into answers by the rule that is stated?"""

from __future__ import annotations

import numpy as np
import pytest

from graftkit.metrics import multi_label, sums
from graftkit.metrics.multi_label import ENOUGH, average_precisions, choose_thresholds, given, multi_hot, scores

LABELS = ["a", "b", "c", "d"]


def make(rows: int, seed: int = 0, labels=LABELS, share: float = 0.3) -> list[dict]:
    """Records of a model that knows something, with ties among its probabilities."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, len(labels))) < share
    probabilities = np.round((rng.random(truth.shape) + 0.6 * truth) / 1.6, 2).astype(np.float32)
    predicted = probabilities >= 0.5
    losses = -np.log(np.clip(np.where(truth, probabilities, 1 - probabilities), 1e-6, 1)).sum(axis=1)
    return [
        {
            "id": f"row-{i}",
            "label": [labels[j] for j in np.flatnonzero(truth[i])],
            "prediction": [labels[j] for j in np.flatnonzero(predicted[i])],
            "probabilities": probabilities[i],
            "loss": float(losses[i]),
        }
        for i in range(rows)
    ]


def arrays(records):
    truth, predicted = (multi_hot([record[name] for record in records], LABELS) for name in ("label", "prediction"))
    return truth, predicted, multi_label.stated(records)


def test_scores_are_those_of_scikit_learn():
    from sklearn import metrics

    records = make(150)
    truth, predicted, probabilities = arrays(records)
    found = scores(records, LABELS)
    expected = {
        "micro_f1": metrics.f1_score(truth, predicted, average="micro"),
        "macro_f1": metrics.f1_score(truth, predicted, average="macro"),
        "micro_precision": metrics.precision_score(truth, predicted, average="micro"),
        "micro_recall": metrics.recall_score(truth, predicted, average="micro"),
        "subset_accuracy": metrics.accuracy_score(truth, predicted),
        "label_accuracy": 1 - metrics.hamming_loss(truth, predicted),
        "log_loss": np.mean([record["loss"] for record in records]) / len(LABELS),
        "average_precision": metrics.average_precision_score(truth, probabilities, average="macro"),
        "micro_average_precision": metrics.average_precision_score(truth, probabilities, average="micro"),
    }
    assert found == pytest.approx(expected, rel=1e-6)
    lines = multi_label.per_label(records, LABELS)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(truth, predicted)
    for i, line in enumerate(lines):
        assert (line["label"], line["support"]) == (LABELS[i], support[i])
        assert (line["precision"], line["recall"], line["f1"]) == pytest.approx((precision[i], recall[i], f1[i]))
        assert line["average_precision"] == pytest.approx(
            metrics.average_precision_score(truth[:, i], probabilities[:, i]), rel=1e-6
        )
        assert line["intervals"]["f1"].low < line["f1"] < line["intervals"]["f1"].high


def test_labels_that_no_row_has_say_nothing_of_average_precision():
    records = [record | {"label": [one for one in record["label"] if one != "d"]} for record in make(80)]
    *others, last = multi_label.per_label(records, LABELS)
    assert last["average_precision"] is None
    assert "average_precision" not in last["intervals"]
    found = average_precisions(records, LABELS)["average_precision"].value
    assert found == pytest.approx(np.mean([line["average_precision"] for line in others]))
    nothing = [record | {"label": []} for record in records]
    assert scores(nothing, LABELS)["average_precision"] == 0
    everything = [record | {"label": LABELS} for record in records]
    assert scores(everything, LABELS)["micro_average_precision"] == 1


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_of_average_precision_are_near_those_of_a_bootstrap(grouped):
    from sklearn.metrics import average_precision_score

    records = make(400, seed=2)
    truth, _, probabilities = arrays(records)
    groups = np.arange(400) // 4 if grouped else None
    found = average_precisions(records, LABELS, groups)
    rng = np.random.default_rng(0)
    units = np.arange(400).reshape(-1, 4) if grouped else np.arange(400)[:, None]
    for name, average in (("average_precision", "macro"), ("micro_average_precision", "micro")):
        drawn = []
        for _ in range(200):
            rows = units[rng.integers(0, len(units), len(units))].ravel()
            drawn.append(average_precision_score(truth[rows], probabilities[rows], average=average))
        width = 2 * 1.96 * np.std(drawn)
        interval = found[name]
        assert interval.high - interval.low == pytest.approx(width, rel=0.25)
        assert interval.low < interval.value < interval.high


def test_intervals_tell_of_answers_that_are_all_right():
    records = [record | {"prediction": record["label"]} for record in make(60)]
    found = multi_label.whole_intervals(records, LABELS)
    assert found["micro_f1"].value == 1
    assert 0.9 < found["micro_f1"].low < 1
    shares = sums.intervals(multi_label.scoring(LABELS), records)
    for name in ("subset_accuracy", "label_accuracy"):
        assert (shares[name].method, shares[name].high) == ("clopper-pearson", 1)
        assert 0.9 < shares[name].low < 1
    assert set(found) <= set(multi_label.scoring(LABELS).statistics)


def test_groups_widen_intervals_where_their_rows_are_alike():
    records = [record | {"id": f"{record['id']}-{copy}"} for record in make(60) for copy in range(4)]
    alone = multi_label.whole_intervals(records, LABELS)["micro_f1"]
    together = multi_label.whole_intervals(records, LABELS, np.repeat(np.arange(60), 4))["micro_f1"]
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_the_lead_over_the_same_answers_is_0():
    records = make(50)
    lead = sums.lead(multi_label.scoring(LABELS), records, records, "micro_f1")
    assert lead.value == 0
    worse = [record | {"prediction": []} for record in records]
    assert sums.lead(multi_label.scoring(LABELS), records, worse, "micro_f1").low > 0


# thresholds


def best_by_search(probabilities: np.ndarray, truth: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return max(f1_score(truth, probabilities >= limit) for limit in [*np.unique(probabilities), 2])


def test_a_threshold_is_the_one_of_the_best_f1_and_no_row_stands_on_it():
    from sklearn.metrics import f1_score

    truth, _, probabilities = arrays(make(300, seed=4))
    limits, own = choose_thresholds(probabilities, truth)
    assert own.all()
    for label in range(len(LABELS)):
        given_rows = probabilities[:, label] >= limits[label]
        best = best_by_search(probabilities[:, label], truth[:, label])
        assert f1_score(truth[:, label], given_rows) == pytest.approx(best)
        assert np.abs(probabilities[:, label] - limits[label]).min() > 1e-3


@pytest.mark.parametrize(("having", "own"), [(ENOUGH, True), (ENOUGH - 1, False), (200 - ENOUGH + 1, False)])
def test_labels_of_few_rows_share_a_threshold(having, own):
    rng = np.random.default_rng(0)
    truth = np.stack([np.arange(200) < 60, np.arange(200) < having, np.arange(200) < 3], axis=1)
    probabilities = np.clip(rng.normal(0.3 + 0.2 * truth, 0.15), 0, 1)
    limits, chosen = choose_thresholds(probabilities, truth)
    assert chosen.tolist() == [True, own, False]
    shared = multi_label._best_threshold(probabilities.ravel(), truth.ravel())
    assert limits[2] == shared
    assert (limits[1] == shared) == (not own)


def test_without_a_label_in_dev_the_threshold_stays():
    limits, own = choose_thresholds(np.full((5, 2), 0.3), np.zeros((5, 2), bool))
    assert limits.tolist() == [0.5, 0.5]
    assert not own.any()


def test_a_row_is_given_what_reaches_its_threshold():
    probabilities = np.array([[0.2, 0.6], [0.9, 0.1]], np.float32)
    assert given(probabilities, np.array([0.1, 0.6000001]), ["x", "y"]) == [["x"], ["x"]]
    assert given(probabilities, np.array([0.95, 0.0]), ["x", "y"]) == [["y"], ["y"]]
    assert given(np.array([[0.5, 0.25]]), np.array([0.5, 0.5]), ["x", "y"]) == [["x"]]


def test_before_thresholds_are_chosen_scores_are_those_at_the_ones_that_would_be():
    from types import SimpleNamespace

    from graftkit.tasks.multi_label_classification import MultiLabelClassification

    records = [record | {"probabilities": record["probabilities"] / 3} for record in make(200)]
    unsure = [record | {"prediction": []} for record in records]  # none reaches 0.5
    task = MultiLabelClassification(SimpleNamespace(), LABELS)
    before = task.score(unsure)["micro_f1"]
    assert scores(unsure, LABELS)["micro_f1"] == 0
    assert before > 0.5
    decided = task.decide(unsure)
    assert max(decided["thresholds"].values()) < 0.34
    assert task.score(unsure)["micro_f1"] == 0  # records say by themselves what was given
    again = [r | {"prediction": given(r["probabilities"][None], task.thresholds, LABELS)[0]} for r in unsure]
    assert task.score(again)["micro_f1"] == before


# simple answers


def test_baselines_know_common_labels_and_words():
    from datasets import Dataset

    from graftkit.baselines import label_set_baselines

    def rows(count: int, seed: int) -> Dataset:
        rng = np.random.default_rng(seed)
        has = rng.random((count, 2)) < (0.7, 0.4)
        words = [["zero"] + ["apple"] * fruit + ["saw"] * tool for fruit, tool in has.tolist()]
        sets = [["fruit"] * fruit + ["tool"] * tool for fruit, tool in has.tolist()]
        return Dataset.from_dict({"text": [" ".join(one) for one in words], "labels": sets})

    train, dev, test = rows(80, 1), rows(60, 2), rows(30, 3)
    found = label_set_baselines(["fruit", "tool"], train, dev, test)
    assert found["usual_labels"].given == [["fruit"]] * 30
    assert found["tf_idf"].given == test["labels"][:]
    assert found["tf_idf"].facts["C"] in (1.0, 10.0, 100.0)
    rare = train.map(lambda row: {"labels": ["tool"] if row["labels"] == ["fruit", "tool"] else []})
    assert label_set_baselines(["fruit", "tool"], rare, rare, test)["usual_labels"].given[0] == ["tool"]
