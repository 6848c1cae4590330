"""Are BLEU, chrF and ROUGE those of the libraries that the field compares by?"""

from __future__ import annotations

import random

import numpy as np
import pytest

from graftkit.metrics import generation, sums
from graftkit.metrics.generation import LOSS_ALONE, SCORING

WORDS = ["the", "a", "cat", "sat", "on", "mat,", "and", "Hund", "läuft", "über", "3.5", "%", "(no)", "it's", "."]


def record(written: str, wanted: str, loss: float = 1.0, tokens: int = 2) -> dict:
    return {"id": wanted, "label": wanted, "prediction": written, "loss": loss, "tokens": tokens}


def pairs(seed: int, count: int = 40) -> list[dict]:
    """References, and copies of them with words that were dropped, swapped or made up."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        wanted = rng.choices(WORDS, k=rng.randint(1, 14))
        written = [rng.choice(WORDS) if rng.random() < 0.2 else word for word in wanted if rng.random() < 0.9]
        found.append(record(" ".join(written), " ".join(wanted), rng.random(), len(wanted)))
    return found


ODD = {
    "nothing written": [record("", "a cat sat")],
    "nothing right": [record("dog", "a cat sat")],
    "a word": [record("cat", "cat")],
    "three words": [record("the cat sat", "the cat sat")],
    "too long": [record("the cat sat on the mat and sat", "the cat sat on the")],
    "no pair right": [record("mat the on sat", "the cat sat on a mat")],
    "other letters": [record("мама мыла раму", "мама мыла рамы")],
    "wanted is shorter than n": [record("abcdefgh", "ab"), record("the cat sat on", "the cat sat in")],
}


@pytest.mark.parametrize("records", [*ODD.values(), pairs(0), pairs(1), pairs(2, 3)], ids=[*ODD, "0", "1", "2"])
def test_bleu_and_chrf_are_those_of_sacrebleu(records):
    from sacrebleu.metrics import BLEU, CHRF

    written, wanted = [r["prediction"] for r in records], [[r["label"] for r in records]]
    scores = sums.score(SCORING, records)
    assert scores["bleu"] == pytest.approx(BLEU().corpus_score(written, wanted).score, abs=1e-9)
    assert scores["chrf"] == pytest.approx(CHRF().corpus_score(written, wanted).score, abs=1e-9)


@pytest.mark.parametrize("records", [pairs(3), pairs(4), ODD["nothing written"], ODD["no pair right"]])
def test_rouge_is_that_of_rouge_score(records):
    from rouge_score.rouge_scorer import RougeScorer

    plain = str.maketrans("äöü", "aou")  # it drops what is not a to z
    records = [r | {name: r[name].translate(plain) for name in ("label", "prediction")} for r in records]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    found = [scorer.score(r["label"], r["prediction"]) for r in records]
    scores = sums.score(SCORING, records)
    for ours, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        assert scores[ours] == pytest.approx(100 * np.mean([one[theirs].fmeasure for one in found]), abs=1e-9)


def test_rouge_counts_words_of_every_script():
    assert sums.score(SCORING, ODD["other letters"])["rouge_1"] == pytest.approx(100 * 2 / 3)


def test_exact_match_and_log_loss():
    records = [record("a  cat ", "a cat", 2.0, 4), record("a dog", "a cat", 1.0, 2)]
    scores = sums.score(SCORING, records)
    assert scores["exact_match"] == 0.5
    assert scores["log_loss"] == 0.5  # of all tokens together, not the mean over rows
    unasked = [one | {"prediction": None} for one in records]
    assert sums.score(LOSS_ALONE, unasked) == {"log_loss": 0.5}
    assert set(generation.HEADLINES) == set(SCORING.statistics)


def test_intervals_hold_the_score_and_a_lead_is_seen():
    records = pairs(5, 60)
    found = sums.intervals(SCORING, records)
    for name, interval in found.items():
        assert interval.low < interval.value < interval.high, name
    worse = [one | {"prediction": one["prediction"][: len(one["prediction"]) // 2]} for one in records]
    assert sums.lead(SCORING, records, worse, "bleu").low > 0
    whole = [one | {"prediction": one["label"]} for one in records]
    assert sums.score(SCORING, whole)["chrf"] == pytest.approx(100)
    assert sums.intervals(SCORING, whole)["exact_match"].low == pytest.approx(0.025 ** (1 / 60))


def test_the_signatures_are_sacrebleus_own():
    found = generation.signatures()
    assert found["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
