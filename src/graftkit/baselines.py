"""What can be had without a pretrained network?

Answers to the test rows from what learns in seconds on a CPU. A model that does not beat them is not worth its cost.
They do not depend on the run's seed, so that all seeds of a recipe are held against the same answers.
"""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.data.cuts import cut_rows
from graftkit.images import read
from graftkit.metrics import classification
from graftkit.task import Baseline

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image
    from scipy.sparse import csr_matrix

TEXTS, LETTERS = 20_000, 4_000_000  # of train, at most, that are learned from
TEXT_LETTERS = 2_000  # of one text that are read
WEIGHTS = 400_000  # features times labels: what a step of the solver costs
FEWEST, MOST = 2_000, 20_000  # features
STEPS = 30  # of the solver; banking77 gains nothing from more
STRENGTHS = (1.0, 10.0, 100.0)  # scikit-learn's C: the larger, the closer it follows train
PICTURES, DEV_PICTURES = 2_000, 500
LEVELS = 8  # of each colour in a histogram
PICTURE_SIDE = 128  # pixels of the short side, from which colours are counted
NEIGHBOURS = (1, 3, 5, 9, 15)

UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff"  # Thai, Lao, Japanese, Chinese: no blanks between words
WORD = rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]"
"""A letter of a script without blanks, a word, or a single sign such as an emoji."""


def text_baselines(labels: Sequence[str], train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
    """The most frequent class, and a logistic regression on the TF-IDF of words and pairs of neighbouring words.

    The two texts of a pair are features of their own. C is the one of the best macro F1 on dev. From texts without any
    word or sign nothing can be learned, and the second is left out.
    """
    found = {"majority": majority(labels, train, test)}
    started = time.perf_counter()
    columns = [name for name in ("text", "text_pair") if name in train.column_names]
    letters = sum(np.mean([min(len(text), TEXT_LETTERS) for text in train[name]]) for name in columns)
    sampled = sample(train, min(TEXTS, int(LETTERS / max(1.0, letters))))
    features = _word_features(columns, [sampled, dev, test], len(labels))
    if features is not None and len(set(sampled["label"])) > 1:
        strength, given = _regression(labels, features, sampled["label"], dev["label"])
        found["tf_idf"] = Baseline(given, _facts(started, sampled, train, C=strength))
    return found


def picture_baselines(labels: Sequence[str], train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
    """The most frequent class, and a vote of the training pictures of the most similar colours.

    Similar is what lies near by the Hellinger distance of colour histograms. The number of neighbours is the one of the
    best macro F1 on dev.
    """
    found = {"majority": majority(labels, train, test)}
    started = time.perf_counter()
    sampled, chosen_on = sample(train, PICTURES), sample(dev, DEV_PICTURES)
    colours = [np.stack([colour_histogram(read(row)) for row in rows]) for rows in (sampled, chosen_on, test)]
    neighbours, given = _vote(labels, colours, sampled["label"], chosen_on["label"])
    found["colours"] = Baseline(given, _facts(started, sampled, train, neighbours=neighbours))
    return found


def tag_baselines(labels: Sequence[str], train: Dataset, test: Dataset) -> dict[str, Baseline]:
    """The most frequent tag of each word, as it is written; for a word that train does not have, that of all words.

    Of several tags that are as frequent, the first in `labels`.
    """
    started = time.perf_counter()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in zip(train["words"], train["tags"], strict=True):
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    every = sum(counts.values(), Counter())
    usual = {word: max(labels, key=found.__getitem__) for word, found in counts.items()}
    most = max(labels, key=every.__getitem__)
    given = [[usual.get(word, most) for word in words] for words in test["words"]]
    return {"word_tags": Baseline(given, _facts(started, train, train))}


def majority(labels: Sequence[str], train: Dataset, test: Dataset) -> Baseline:
    """The most frequent class of train for every row; of several, the first in `labels`."""
    started = time.perf_counter()
    counts = Counter(train["label"])
    most = max(labels, key=counts.__getitem__)
    return Baseline([most] * len(test), _facts(started, train, train))


def sample(rows: Dataset, most: int) -> Dataset:
    """At most so many rows, every class in its share, and of each class at least one."""
    classes = np.unique(rows["label"], return_inverse=True)[1]
    most = max(most, int(classes.max()) + 1)
    return rows if len(rows) <= most else rows.select(np.flatnonzero(cut_rows(classes, most, seed=0)))


def colour_histogram(picture: Image) -> np.ndarray:
    """The square root of the share of pixels in each of 8 x 8 x 8 colours, (512,) float32.

    Between such roots the Euclidean distance is the Hellinger distance of the shares, but for a constant factor.
    """
    small = picture.reduce(max(1, min(picture.size) // PICTURE_SIDE)).convert("RGB")
    levels = np.asarray(small, np.int64).reshape(-1, 3) * LEVELS // 256
    places = levels @ np.array([LEVELS**2, LEVELS, 1])
    return np.sqrt(np.bincount(places, minlength=LEVELS**3) / len(places)).astype(np.float32)


def _facts(started: float, used: Dataset, train: Dataset, **chosen: float) -> dict[str, Any]:
    return {"rows": len(used), "of": len(train), "seconds": round(time.perf_counter() - started, 2), **chosen}


def _word_features(columns: Sequence[str], splits: Sequence[Dataset], labels: int) -> list[csr_matrix] | None:
    """TF-IDF of each split, (rows, features) float32, after the words of the first; None where it has no word."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    blocks: list[list[csr_matrix]] = [[] for _ in splits]
    for name in columns:
        texts = [[text[:TEXT_LETTERS] for text in rows[name]] for rows in splits]
        if not any(re.search(WORD, text) for text in texts[0]):
            continue
        most = min(MOST, max(FEWEST, WEIGHTS // labels)) // len(columns)
        vectorizer = TfidfVectorizer(
            token_pattern=WORD, ngram_range=(1, 2), sublinear_tf=True, max_features=most, dtype=np.float32
        ).fit(texts[0])
        for block, part in zip(blocks, texts, strict=True):
            block.append(vectorizer.transform(part))
    return [hstack(block, format="csr") for block in blocks] if blocks[0] else None


def _regression(
    labels: Sequence[str], features: Sequence[csr_matrix], truth: Sequence[str], dev: Sequence[str]
) -> tuple[float, list[str]]:
    """The best C, and what it gives the last features; each C goes on from the weights of the one before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    best = (-1.0, 0.0, [""])
    model = LogisticRegression(max_iter=STEPS, tol=1e-3, warm_start=True)
    for strength in STRENGTHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # so near the end is near enough
            model.set_params(C=strength).fit(features[0], list(truth))
        score = _macro_f1(labels, dev, model.predict(features[1]))
        if score > best[0]:
            best = (score, strength, model.predict(features[2]).tolist())
    return best[1:]


def _vote(
    labels: Sequence[str], colours: Sequence[np.ndarray], truth: Sequence[str], dev: Sequence[str]
) -> tuple[int, list[str]]:
    """The best number of neighbours, and what they give the last pictures; near ones count more."""
    from sklearn.neighbors import KNeighborsClassifier

    scores, models = {}, {}
    for neighbours in (count for count in NEIGHBOURS if count <= len(truth)):
        models[neighbours] = KNeighborsClassifier(neighbours, weights="distance", algorithm="brute")
        models[neighbours].fit(colours[0], list(truth))
        scores[neighbours] = _macro_f1(labels, dev, models[neighbours].predict(colours[1]))
    best = max(scores, key=scores.__getitem__)
    return best, models[best].predict(colours[2]).tolist()


def _macro_f1(labels: Sequence[str], truth: Sequence[str], given: Sequence[str]) -> float:
    place = {label: i for i, label in enumerate(labels)}
    places = [np.array([place[label] for label in column], dtype=np.int64) for column in (truth, given)]
    counts = classification.Counts.of(classification.confusion(*places, len(labels)))
    return float(classification.macro_f1(counts))
