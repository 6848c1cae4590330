"""Is an answer scored as SQuAD's official scripts score it?"""

from __future__ import annotations

import numpy as np
import pytest

from graftkit.metrics import answers, sums


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Beatles", "beatles"),
        ("  An   apple,\ta day ", "apple day"),
        ("a.", ""),
        ("U.S.", "us"),
        ("U.S.A", "usa"),
        ("the-cat", "thecat"),  # no blank is left where punctuation was
        ("state-of-the-art", "stateoftheart"),
        ("theatre", "theatre"),  # no article within a word
        ("a 'the' b", "b"),
        ("$1,000.50", "100050"),
        ("“quoted”", "“quoted”"),  # only ASCII punctuation goes
        ("5\u2013year", "5\u2013year"),
        ("naïve Café", "naïve café"),
        ("le chat", "le chat"),  # articles are English
        ("東京", "東京"),
        ("", ""),
        ("The", ""),
    ],
)
def test_what_counts_of_an_answer(text, words):
    assert answers.normalise(text) == words


@pytest.mark.parametrize(
    ("given", "accepted", "exact", "f1"),
    [
        ("the Eiffel Tower", ["Eiffel Tower"], 1, 1),
        ("eiffel tower!", ["The Eiffel Tower", "a tower"], 1, 1),
        ("Eiffel", ["Eiffel Tower"], 0, 2 / 3),
        ("tower tower", ["tower"], 0, 2 / 3),  # a word counts as often as it stands in both
        ("tower tower", ["tower tower bridge"], 0, 4 / 5),
        ("tower Eiffel", ["Eiffel tower"], 0, 1),  # F1 knows no order
        ("in Paris, France", ["Paris", "Paris France"], 0, 4 / 5),  # the nearest
        ("London", ["Paris"], 0, 0),
        ("", [], 1, 1),  # no answer, and none given
        ("London", [], 0, 0),
        ("", ["Paris"], 0, 0),
        ("the", ["Paris"], 0, 0),
        ("the", [], 1, 1),  # articles alone are no answer
        ("", ["The"], 1, 1),  # nor is such an accepted one
        ("Paris", ["The", "Paris"], 1, 1),
        ("", ["The", "Paris"], 0, 0),
    ],
)
def test_exact_match_and_f1(given, accepted, exact, f1):
    assert answers.exact(given, accepted) == exact
    assert answers.f1(given, accepted) == pytest.approx(f1)


def record(label, prediction, loss=1.0, windows=1):
    return {"label": label, "prediction": prediction, "loss": loss, "windows": windows}


def test_scores_of_many():
    both = [
        record(["x y"], "x", 3.0),
        record(["x"], "x"),
        record([], ""),
        record([], "z", 2.0, windows=3),
        record([], ""),
    ]
    scores = sums.score(answers.scoring_of(both), both)
    assert scores == pytest.approx(
        {
            "f1": (2 / 3 + 1 + 1 + 0 + 1) / 5,
            "exact_match": 3 / 5,
            "log_loss": 8 / 14,
            "f1_with_answer": 5 / 6,
            "exact_match_with_answer": 1 / 2,
            "right_without_answer": 2 / 3,
        }
    )
    assert set(sums.score(answers.scoring_of(both[:2]), both[:2])) == {"f1", "exact_match", "log_loss"}
    assert answers.scoring_of(both, both[:2]) is answers.SCORING  # what not every split can tell is not told
    found = sums.intervals(answers.SCORING_BY_KIND, both * 20)
    assert all(one.low <= one.value <= one.high for one in found.values())


@pytest.mark.parametrize(
    ("gaps", "truth", "spans", "low", "high"),
    [
        ([-2.0, -1.0, 1.0, 2.0], [["x"], ["x"], [], []], ["x", "x", "y", "y"], -1, 1),
        ([3.0, 4.0, 5.0, 6.0], [["x"], ["x"], [], []], ["x", "x", "y", "y"], 4, 5),
        ([1.0, 2.0], [["x"], ["x"]], ["x", "x"], 2, np.inf),  # answer always
        ([1.0, 2.0], [[], []], ["x", "x"], -np.inf, 1),  # never
        ([1.0, 1.0, 2.0], [["x"], [], []], ["x", "y", "y"], 0, 2),  # of the same gap: one cannot do without the other
        ([-1.0] * 3, [["x"], [], []], ["x", "y", "y"], -np.inf, -1.5),  # not where one of the same gap ends
        ([-5.0, -1.0, 3.0], [["x"], [], ["x"]], ["x", "x", "q"], -5, -1),  # a wrong span is no gain
    ],
)
def test_the_threshold_that_is_best_on_dev(gaps, truth, spans, low, high):
    found = answers.best_threshold(gaps, truth, spans)
    assert low <= found <= high

    def total(threshold):
        return sum(
            answers.f1("" if gap > threshold else span, true)
            for gap, true, span in zip(gaps, truth, spans, strict=True)
        )

    assert total(found) == max(total(threshold) for threshold in (-9, *gaps))


def test_of_thresholds_that_are_as_good_the_one_nearest_to_0():
    gaps, truth = [-3.0, -2.0, 4.0], [["x"], ["q"], []]
    assert answers.best_threshold(gaps, truth, ["x", "x", "x"]) == 1.0  # -2.5 would do as well
