"""Does it count entities as seqeval does, and are its intervals right?"""

from __future__ import annotations

import numpy as np
import pytest

from graftkit.metrics import classification, tagging
from graftkit.metrics.tagging import Span, scheme_of, spans

TYPES = ("person", "place", "art-work")


def draw(rng: np.random.Generator, marks: str, sentences: int) -> list[list[str]]:
    """Random tags, most sentences malformed, some long entities among them."""
    labels = ["O"] * 3 + [f"{mark}-{type}" for mark in marks for type in TYPES]
    return [[labels[i] for i in rng.integers(0, len(labels), rng.integers(1, 12))] for _ in range(sentences)]


def pairs(marks: str, sentences: int = 300, seed: int = 0) -> tuple[list[list[str]], list[list[str]]]:
    """True tags, and predictions that agree with them in three words of four."""
    rng = np.random.default_rng(seed)
    truth = draw(rng, marks, sentences)
    given = []
    for tags in truth:
        other = draw(rng, marks, 1)[0]
        given.append([other[i % len(other)] if rng.random() < 0.25 else tag for i, tag in enumerate(tags)])
    return truth, given


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (["O", "B-x", "I-x"], "BIO"),
        (["B-x", "O"], "BIO"),
        (["O", "B", "I"], "BIO"),
        (["O", "B-x", "I-x", "E-x", "S-x"], "BIOES"),
        (["O", "B-x", "I-x", "L-x", "U-x"], "BILOU"),
        (["NN", "VB", "."], "plain"),
        (["O"], "plain"),
        (["O", "X", "B-x"], "plain"),
        (["B_x", "I_x", "O"], "plain"),
    ],
)
def test_the_scheme_is_known_by_its_labels(labels, scheme):
    assert scheme_of(labels) == scheme


@pytest.mark.parametrize(
    ("tags", "scheme", "found"),
    [
        ("O B-x I-x O", "BIO", [("x", 1, 2)]),
        ("I-x I-x O", "BIO", [("x", 0, 1)]),
        ("B-x I-y I-y", "BIO", [("x", 0, 0), ("y", 1, 2)]),
        ("B-x B-x I-x", "BIO", [("x", 0, 0), ("x", 1, 2)]),
        ("B I O I", "BIO", [("_", 0, 1), ("_", 3, 3)]),
        ("B-x I-x E-x S-y", "BIOES", [("x", 0, 2), ("y", 3, 3)]),
        ("B-x I-x O E-x", "BIOES", []),
        ("B-x I-y E-x S-x E-x", "BIOES", [("x", 3, 3)]),
        ("B-x B-x E-x", "BIOES", [("x", 1, 2)]),
        ("B-x L-x U-y I-y", "BILOU", [("x", 0, 1), ("y", 2, 2)]),
        ("NN VB", "plain", []),
    ],
)
def test_tags_make_entities(tags, scheme, found):
    assert spans(tags.split(), scheme) == [Span(*span) for span in found]


@pytest.mark.parametrize(
    ("tags", "scheme", "places"),
    [
        ("O B-x I-x O", "BIO", []),
        ("I-x I-x", "BIO", [0]),
        ("B-x I-y O I-x", "BIO", [1, 3]),
        ("B-x E-x S-x O", "BIOES", []),
        ("B-x O E-x", "BIOES", [0, 2]),
        ("B-x I-x", "BIOES", [1]),
        ("S-x I-x E-x", "BIOES", [1]),
        ("B-x L-x U-x B-x", "BILOU", [3]),
        ("NN VB", "plain", []),
    ],
)
def test_tags_that_cannot_stand_there_are_found(tags, scheme, places):
    assert tagging.malformed(tags.split(), scheme) == places


def test_malformed_words_and_sentences_are_counted():
    sentences = [["I-x", "O", "I-x"], ["B-x"], ["O", "I-x"]]
    assert tagging.count_malformed(sentences, "BIO") == {"words": 3, "sentences": 2}


@pytest.mark.parametrize("marks", ["BI", "BIES"])
@pytest.mark.parametrize("seed", range(3))
def test_the_scores_are_those_of_seqeval(marks, seed):
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOBES

    truth, given = pairs(marks, seed=seed)
    strict = {"mode": "strict", "scheme": IOBES} if marks == "BIES" else {}
    theirs = classification_report(truth, given, output_dict=True, zero_division=0, **strict)
    labels = sorted({tag for tags in truth + given for tag in tags})
    ours = tagging.scores(truth, given, labels)
    assert 0.05 < ours["entity_f1"] < 0.95
    assert ours["entity_precision"] == pytest.approx(theirs["micro avg"]["precision"])
    assert ours["entity_recall"] == pytest.approx(theirs["micro avg"]["recall"])
    assert ours["entity_f1"] == pytest.approx(theirs["micro avg"]["f1-score"])
    assert ours["entity_macro_f1"] == pytest.approx(theirs["macro avg"]["f1-score"])
    lines = tagging.per_type(tagging.tally(truth, given, scheme_of(labels)))
    assert [line["type"] for line in lines] == sorted(TYPES)
    for line in lines:
        expected = theirs[line["type"]]
        assert line["precision"] == pytest.approx(expected["precision"])
        assert line["recall"] == pytest.approx(expected["recall"])
        assert line["f1"] == pytest.approx(expected["f1-score"])
        assert line["support"] == expected["support"]
    right = sum(a == b for one, other in zip(truth, given, strict=True) for a, b in zip(one, other, strict=True))
    assert ours["accuracy"] == pytest.approx(right / sum(map(len, truth)))


def test_bilou_is_bioes_by_other_letters():
    truth, given = pairs("BIES")
    other = [[[t.replace("E-", "L-").replace("S-", "U-") for t in s] for s in side] for side in (truth, given)]
    labels = sorted({tag for tags in truth + given for tag in tags})
    renamed = sorted({tag for tags in other[0] + other[1] for tag in tags})
    assert tagging.scores(*other, renamed) == pytest.approx(tagging.scores(truth, given, labels))


def test_plain_tags_are_scored_by_word():
    from sklearn.metrics import accuracy_score, f1_score

    rng = np.random.default_rng(3)
    truth = [[f"T{i}" for i in rng.integers(0, 5, n)] for n in rng.integers(1, 9, 60)]
    given = [[tag if rng.random() < 0.7 else "T0" for tag in tags] for tags in truth]
    labels = [f"T{i}" for i in range(5)]
    found = tagging.scores(truth, given, labels)
    flat = [[tag for tags in side for tag in tags] for side in (truth, given)]
    assert found["accuracy"] == pytest.approx(accuracy_score(*flat))
    assert found["macro_f1"] == pytest.approx(f1_score(*flat, average="macro"))
    assert "entity_f1" not in found
    assert tagging.headlines(labels) == ("accuracy", *(n for n in classification.HEADLINES if n != "accuracy"))
    intervals = tagging.intervals(truth, given, labels, resamples=300)
    assert intervals.scores["accuracy"].low < found["accuracy"] < intervals.scores["accuracy"].high
    assert len(intervals.classes) == 5


def test_records_give_the_mean_loss_of_a_word():
    records = [
        {"label": ["B-x", "O", "O"], "prediction": ["B-x", "O", "O"], "loss": 1.5},
        {"label": ["O"], "prediction": ["O"], "loss": 0.5},
    ]
    found = tagging.score_records(records, ["O", "B-x"])
    assert found["log_loss"] == 0.5
    assert found["entity_f1"] == found["accuracy"] == 1.0


def test_a_split_without_entities_scores_nothing_and_is_sure_of_nothing():
    found = tagging.scores([["O", "O"]], [["O", "O"]], ["O", "B-x"])
    assert found == {**dict.fromkeys(tagging.ENTITY_SCORES, 0.0), "accuracy": 1.0}
    interval = tagging.intervals([["O", "O"]], [["O", "O"]], ["O", "B-x"]).scores["entity_f1"]
    assert (interval.low, interval.high) == (0.0, 1.0)


# intervals


LABELS = ["O", *(f"{mark}-{type}" for mark in "BI" for type in TYPES)]


def test_sentences_are_drawn_and_not_entities():
    truth, given = pairs("BI", 120)
    found = tagging.intervals(truth, given, LABELS).scores["entity_f1"]
    rng, drawn = np.random.default_rng(5), []
    for _ in range(200):
        rows = rng.integers(0, len(truth), len(truth))
        drawn.append(tagging.scores([truth[i] for i in rows], [given[i] for i in rows], LABELS)["entity_f1"])
    assert found.value == pytest.approx(tagging.scores(truth, given, LABELS)["entity_f1"])
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.25)
    assert (found.low + found.high) / 2 == pytest.approx(np.mean(drawn), abs=0.01)
    assert found.method == "bca"


def test_groups_are_drawn_whole():
    truth, given = pairs("BI", 60)
    thrice = [side * 3 for side in (truth, given)]
    alone = tagging.intervals(truth, given, LABELS).scores["entity_f1"]
    grouped = tagging.intervals(*thrice, LABELS, groups=list(range(60)) * 3).scores["entity_f1"]
    apart = tagging.intervals(*thrice, LABELS).scores["entity_f1"]
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert apart.high - apart.low < 0.7 * (grouped.high - grouped.low)


def test_each_type_has_intervals_where_something_tells_it():
    truth, given = pairs("BI", 80)
    truth += [["B-place", "O"]]
    given += [["B-place", "O"]]
    entities = tagging.tally(truth, given, "BIO")
    found = tagging.intervals(truth, given, LABELS)
    for line, intervals in zip(tagging.per_type(entities), found.classes, strict=True):
        for name, interval in intervals.items():
            assert interval.value == pytest.approx(line[name])
            assert interval.low <= interval.value <= interval.high
    missed = tagging.intervals([["B-x", "O"], ["O", "B-y"]], [["O", "O"], ["O", "B-y"]], ["O", "B-x", "B-y"])
    assert set(missed.classes[0]) == {"recall", "f1"}  # nothing was called x
    assert missed.classes[1]["precision"].method == "clopper-pearson"


@pytest.mark.parametrize("right", [True, False])
def test_without_an_error_or_a_hit_the_interval_is_exact(right):
    truth = [["B-x", "O", "B-x"]] * 20 + [["O"]] * 30
    given = truth if right else [["O"] * len(tags) for tags in truth]
    found = tagging.intervals(truth, given, ["O", "B-x"]).scores
    low = 0.8315665  # of 20 of 20, by Clopper and Pearson
    if right:
        assert (found["entity_recall"].low, found["entity_recall"].high) == (pytest.approx(low), 1.0)
        assert found["entity_f1"].low == pytest.approx(2 * low / (1 + low))
        assert found["entity_macro_f1"].low == found["entity_f1"].low
    else:
        assert (found["entity_recall"].low, found["entity_recall"].high) == (0.0, pytest.approx(1 - low))
        assert (found["entity_precision"].low, found["entity_precision"].high) == (0.0, 1.0)  # no sentence tells it


@pytest.mark.parametrize(
    ("marks", "headline"),
    [("BI", name) for name in (*tagging.ENTITY_SCORES, "accuracy")]
    + [("BIES", "entity_f1"), *((None, name) for name in classification.HEADLINES)],
)
def test_the_lead_is_the_difference_of_the_scores_on_the_same_sentences(marks, headline):
    truth, given = pairs(marks or "BI", 80)
    other = pairs(marks or "BI", 80, seed=1)[0]
    other = [[tags[i % len(tags)] for i in range(len(true))] for tags, true in zip(other, truth, strict=True)]
    if marks is None:  # plain tags
        truth, given, other = (
            [[tag.replace("-", "_") for tag in tags] for tags in side] for side in (truth, given, other)
        )
    labels = sorted({tag for side in (truth, given, other) for tags in side for tag in tags})
    lead = tagging.lead(truth, given, other, labels, headline, resamples=300)
    ours, theirs = (tagging.scores(truth, side, labels)[headline] for side in (given, other))
    assert lead.value == pytest.approx(ours - theirs)
    assert 0 < lead.low < lead.value < lead.high
    none = tagging.lead(truth, given, given, labels, headline, resamples=300)
    assert none.value == 0
    assert none.low <= 0 <= none.high
    in_one = tagging.lead(truth, given, other, labels, headline, [0] * 80, resamples=300)
    assert in_one.value == pytest.approx(lead.value)


def test_the_lead_draws_whole_sentences():
    """Copies of a sentence's words within it tell nothing new."""
    truth, given = pairs("BI", 60)
    other = [["O"] * len(tags) for tags in truth]
    labels = sorted({tag for side in (truth, given) for tags in side for tag in tags})
    once, often = (
        tagging.lead(*([tags * n for tags in side] for side in (truth, given, other)), labels, "accuracy")
        for n in (1, 5)
    )
    assert once.high - once.low == pytest.approx(often.high - often.low, rel=0.05)
