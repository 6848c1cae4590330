"""How good is text that a model wrote, given the text that should be there?

BLEU (Papineni et al. 2002) and chrF (Popović 2015) as sacreBLEU counts them, with one reference a row: both follow from
counts of n-grams, summed over rows, so that their intervals are those of `metrics.sums`. ROUGE (Lin 2004) is a mean
over rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np

from graftkit.metrics.sums import Records, Scoring

WORDS, LETTERS, BETA = 4, 6, 2  # n-grams of BLEU and of chrF, and how much more recall weighs than precision in chrF
KEPT = 2**17  # pairs of texts whose counts are kept: every interval asks for them again

FIRST = ("rows", "exact", "rouge_1", "rouge_2", "rouge_l", "loss", "tokens")
BLEU_FROM = len(FIRST)  # words written, words of the reference, n-grams that match (4), n-grams written (4)
CHRF_FROM = BLEU_FROM + 2 + 2 * WORDS  # for each n up to 6: n-grams written, of the reference, that match
HEADLINES = ("log_loss", "chrf", "bleu", "rouge_l", "rouge_1", "rouge_2", "exact_match")


def count(records: Records) -> np.ndarray:
    """What each row adds to all scores, (rows, sums) float64; records have label, prediction, loss and tokens."""
    return np.array([[*_first(record), *_pair(record["prediction"], record["label"])[3:]] for record in records], float)


def count_loss(records: Records) -> np.ndarray:
    """Loss and tokens of each row, (rows, 2) float64: all that there is to say where nothing was written."""
    return np.array([[record["loss"], record["tokens"]] for record in records], float)


def bleu(totals: np.ndarray) -> np.ndarray:
    """BLEU from 0 to 100 of totals (n, sums): (n,). Orders without a match are smoothed as mteval-v13a does ("exp")."""
    written, wanted = totals[:, BLEU_FROM], totals[:, BLEU_FROM + 1]
    right = totals[:, BLEU_FROM + 2 : BLEU_FROM + 2 + WORDS]
    every = totals[:, BLEU_FROM + 2 + WORDS : CHRF_FROM]
    halved = 2.0 ** -np.cumsum(right == 0, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(right == 0, halved, right) / every  # no n-gram so long in any row: no score
        brevity = np.exp(np.minimum(0.0, 1 - wanted / written))
        found = 100 * brevity * np.exp(np.log(precision).mean(axis=1))
    return np.where((every > 0).all(axis=1) & (right > 0).any(axis=1), found, 0.0)


def chrf(totals: np.ndarray) -> np.ndarray:
    """chrF from 0 to 100 of totals (n, sums): (n,). Precision and recall are averaged over the orders there are."""
    written, wanted, right = (totals[:, CHRF_FROM + part :: 3] for part in range(3))
    there = (written > 0) & (wanted > 0)
    orders = np.maximum(1, there.sum(axis=1))
    precision, recall = (
        np.where(there, right / np.maximum(1, side), 0.0).sum(axis=1) / orders for side in (written, wanted)
    )
    weighed = BETA**2 * precision + recall
    return 100 * (1 + BETA**2) * precision * recall / np.where(weighed > 0, weighed, 1.0)


def _mean(name: str, scale: float = 1.0) -> Any:
    place = FIRST.index(name)
    return lambda totals: scale * totals[:, place] / totals[:, 0]


SCORING = Scoring(
    sums=count,
    statistics={
        "chrf": chrf,
        "bleu": bleu,
        "rouge_1": _mean("rouge_1", 100),
        "rouge_2": _mean("rouge_2", 100),
        "rouge_l": _mean("rouge_l", 100),
        "exact_match": _mean("exact"),
        "log_loss": lambda totals: totals[:, FIRST.index("loss")] / totals[:, FIRST.index("tokens")],
    },
    lower=frozenset({"log_loss"}),
    shares=frozenset({"exact_match"}),
)
LOSS_ALONE = Scoring(count_loss, {"log_loss": lambda totals: totals[:, 0] / totals[:, 1]}, SCORING.lower)
"""The scores of records whose `prediction` is None: the model was not asked to write."""


@cache
def signatures() -> dict[str, str]:
    """What sacreBLEU calls the two scores, version and tokenizer included: those with the same one can be compared."""
    from sacrebleu.metrics import BLEU, CHRF

    found = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        metric.corpus_score(["one"], [["one"]])  # it counts the references first
        found[name] = str(metric.get_signature())
    return found


def _first(record: Any) -> tuple[float, ...]:
    exact = record["prediction"].split() == record["label"].split()
    return 1.0, float(exact), *_pair(record["prediction"], record["label"])[:3], record["loss"], record["tokens"]


@lru_cache(maxsize=KEPT)
def _pair(written: str, wanted: str) -> tuple[float, ...]:
    """ROUGE-1, -2 and -L, then the counts of BLEU and of chrF."""
    return *_rouge(written, wanted), *_word_counts(written, wanted), *_letter_counts(written, wanted)


def _word_counts(written: str, wanted: str) -> list[int]:
    scored = _bleu().sentence_score(written, [wanted])
    return [scored.sys_len, scored.ref_len, *scored.counts, *scored.totals]


@cache
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)  # of one sentence; it changes no count


def _letter_counts(written: str, wanted: str) -> list[int]:
    found = []
    one, other = ("".join(text.split()) for text in (written, wanted))
    for n in range(1, LETTERS + 1):
        ours, theirs = _grams(one, n), _grams(other, n)
        found += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return found


def _rouge(written: str, wanted: str) -> tuple[float, float, float]:
    """F1 of words, of pairs of words, and of the longest common subsequence, from 0 to 1.

    Words as the package rouge-score has them without its stemmer, but letters of every script count, not a to z alone.
    """
    ours, theirs = (re.findall(r"[^\W_]+", text.lower()) for text in (written, wanted))
    shared = [(_grams(tuple(ours), n), _grams(tuple(theirs), n)) for n in (1, 2)]
    both = [_f1((one & other).total(), one.total(), other.total()) for one, other in shared]
    return *both, _f1(_common(ours, theirs), len(ours), len(theirs))


def _grams(items: Sequence[str], n: int) -> Counter[Any]:
    return Counter(items[i : i + n] for i in range(len(items) - n + 1))


def _f1(right: int, written: int, wanted: int) -> float:
    return 2 * right / (written + wanted) if right else 0.0


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of its table held in the bits of a number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << i
    whole = row = (1 << len(one)) - 1
    for word in other:
        matches = row & places.get(word, 0)
        row = (row + matches) | (row - matches)
    return len(one) - (row & whole).bit_count()
