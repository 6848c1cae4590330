"""What can be had without a pretrained network?

Answers to the test rows from what learns in seconds on a CPU. A model that does not beat them is not worth its cost.
They do not depend on the run's seed, so that all seeds of a recipe are held against the same answers.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.data.cuts import cut_rows
from graftkit.data.list_columns import rarest_values
from graftkit.images import read
from graftkit.metrics import answers, classification, multi_label
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
PENALTIES = (0.1, 1.0, 10.0, 100.0)  # of a ridge regression: the larger, the nearer it stays to the mean
PICTURES, DEV_PICTURES = 2_000, 500
LEVELS = 8  # of each colour in a histogram
PICTURE_SIDE = 128  # pixels of the short side, from which colours are counted
NEIGHBOURS = (1, 3, 5, 9, 15)
ASKED = 256  # texts that are compared with all of train at a time
ADDED = 12  # words, at most, of what a sentence adds to a question

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
    sampled = sample(train, _most_texts(columns, train))
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


def number_baselines(train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
    """The mean of train, and a ridge regression on the TF-IDF of words and pairs of neighbouring words.

    The penalty is the one of the least squared error on dev. From texts without any word or sign nothing can be
    learned, and the second is left out.
    """
    from sklearn.linear_model import Ridge

    started = time.perf_counter()
    found = {"mean": Baseline([float(np.mean(train["label"]))] * len(test), _facts(started, train, train))}
    columns = [name for name in ("text", "text_pair") if name in train.column_names]
    sampled = draw(train, _most_texts(columns, train))
    features = _word_features(columns, [sampled, dev, test], 1)
    if features is None:
        return found
    models = {}
    for penalty in PENALTIES:
        model = Ridge(alpha=penalty, solver="sparse_cg").fit(features[0], sampled["label"])
        error = float(np.mean((model.predict(features[1]) - np.array(dev["label"])) ** 2))
        models[error] = penalty, model
    penalty, model = models[min(models)]
    given = model.predict(features[2]).astype(float).tolist()
    return found | {"ridge": Baseline(given, _facts(started, sampled, train, penalty=penalty))}


def label_set_baselines(labels: Sequence[str], train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
    """The labels that most rows of train have, or else the most frequent one; and a logistic regression for each label.

    The regressions are those of `text_baselines`, with one C for all of the best micro F1 on dev, where their
    thresholds are chosen by the rule of the model itself.
    """
    started = time.perf_counter()
    counts = multi_label.multi_hot(train["labels"][:], labels).sum(axis=0)
    usual = [label for label, count in zip(labels, counts, strict=True) if 2 * count > len(train)]
    usual = usual or [labels[int(counts.argmax())]]
    found = {"usual_labels": Baseline([usual] * len(test), _facts(started, train, train))}
    started = time.perf_counter()
    columns = [name for name in ("text", "text_pair") if name in train.column_names]
    letters = sum(np.mean([min(len(text), TEXT_LETTERS) for text in train[name]]) for name in columns)
    rarest = rarest_values(np.arange(len(train)), [row or [""] for row in train["labels"][:]])
    most = max(len(set(rarest)), min(TEXTS, int(LETTERS / max(1.0, letters))))
    kept = cut_rows(np.unique(rarest, return_inverse=True)[1], most, seed=0) if len(train) > most else None
    sampled = train if kept is None else train.select(np.flatnonzero(kept))
    features = _word_features(columns, [sampled, dev, test], len(labels))
    if features is not None:
        truth, on_dev = (multi_label.multi_hot(rows["labels"][:], labels) for rows in (sampled, dev))
        strength, given = _regressions(labels, features, truth, on_dev)
        found["tf_idf"] = Baseline(given, _facts(started, sampled, train, C=strength))
    return found


def answer_baselines(train: Dataset, dev: Dataset, test: Dataset, *, no_answer: bool) -> dict[str, Baseline]:
    """What the sentence nearest to the question adds to it; with `no_answer`, none for any question, too.

    The nearest is that with most words of the question, those that few training questions have counting more; of it,
    the longest run of words that the question has not, cut to so many as give the best F1 on dev.
    """
    started = time.perf_counter()
    counts = Counter(word for question in train["question"] for word in set(_words_of(question)))
    weights = {word: math.log(len(train) / count) for word, count in counts.items()}
    spans = {
        name: [_added(row["question"], row["context"], weights, math.log(len(train) + 1)) for row in rows]
        for name, rows in (("dev", dev), ("test", test))
    }
    truth = dev["answers"][:]

    def dev_f1(words: int) -> float:
        return sum(answers.f1(_first_words(span, words), true) for span, true in zip(spans["dev"], truth, strict=True))

    words = max(range(1, ADDED + 1), key=dev_f1)
    given = [_first_words(span, words) for span in spans["test"]]
    found = {"sentence": Baseline(given, _facts(started, train, train, words=words))}
    if no_answer:
        found["no_answer"] = Baseline([""] * len(test), _facts(started, train, train))
    return found


def _words_of(text: str) -> list[str]:
    return re.findall(WORD, text.lower())


def _added(question: str, context: str, weights: Mapping[str, float], rare: float) -> str:
    """The longest run of words of the nearest sentence that the question has not; of several, the first."""
    asked = set(_words_of(question))
    sentences = re.split(r"(?<=[.!?。])\s+|\n+", context)
    nearest = max(sentences, key=lambda one: sum(weights.get(word, rare) for word in asked & set(_words_of(one))))
    runs: list[list[re.Match]] = [[]]
    for match in re.finditer(WORD, nearest):
        if match[0].lower() in asked or not match[0].isalnum():
            runs.append([])
        else:
            runs[-1].append(match)
    longest = max(runs, key=len)
    return nearest[longest[0].start() : longest[-1].end()] if longest else ""


def _first_words(text: str, most: int) -> str:
    found = list(re.finditer(WORD, text))[:most]
    return text[: found[-1].end()] if found else ""


def target_baselines(train: Dataset, test: Dataset) -> dict[str, Baseline]:
    """The source as it is; and the target of the training source whose TF-IDF of words and word pairs is most like it.

    Of several that are as like, the first in train. Where no source has a word or sign, the second is left out.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    started = time.perf_counter()
    found = {"copy": Baseline(test["source"][:], {})}
    learned = draw(train, TEXTS)
    sources, asked = ([text[:TEXT_LETTERS] for text in rows["source"]] for rows in (learned, test))
    if any(re.search(WORD, text) for text in sources):
        count = TfidfVectorizer(token_pattern=WORD, ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
        known, targets = count.fit_transform(sources).T.tocsr(), learned["target"][:]
        given = []
        for start in range(0, len(asked), ASKED):
            alike = count.transform(asked[start : start + ASKED]) @ known  # (asked, sources)
            given += [targets[place] for place in np.asarray(alike.argmax(axis=1)).ravel().tolist()]
        found["nearest"] = Baseline(given, _facts(started, learned, train))
    return found


def majority(labels: Sequence[str], train: Dataset, test: Dataset) -> Baseline:
    """The most frequent class of train for every row; of several, the first in `labels`."""
    started = time.perf_counter()
    counts = Counter(train["label"])
    most = max(labels, key=counts.__getitem__)
    return Baseline([most] * len(test), _facts(started, train, train))


def _most_texts(columns: Sequence[str], train: Dataset) -> int:
    """How many rows of train are learned from, at most."""
    letters = sum(np.mean([min(len(text), TEXT_LETTERS) for text in train[name]]) for name in columns)
    return min(TEXTS, int(LETTERS / max(1.0, letters)))


def sample(rows: Dataset, most: int) -> Dataset:
    """At most so many rows, every class in its share, and of each class at least one."""
    classes = np.unique(rows["label"], return_inverse=True)[1]
    most = max(most, int(classes.max()) + 1)
    return rows if len(rows) <= most else rows.select(np.flatnonzero(cut_rows(classes, most, seed=0)))


def draw(rows: Dataset, most: int) -> Dataset:
    """At most so many rows, in their order, by chance: a table may be sorted by what is to be learned."""
    return rows if len(rows) <= most else rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:most]))


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


def _regressions(
    labels: Sequence[str], features: Sequence[csr_matrix], truth: np.ndarray, dev: np.ndarray
) -> tuple[float, list[list[str]]]:
    """The best C, and the labels that it gives the last features; `truth` and `dev` are (rows, labels) bool."""
    best: tuple[float, float, list[list[str]]] = (-1.0, 0.0, [])
    for strength in STRENGTHS:
        on_dev, on_test = _each_probability(features, truth, strength)
        limits, _ = multi_label.choose_thresholds(on_dev, dev)
        right, given = int(((on_dev >= limits) & dev).sum()), int((on_dev >= limits).sum())
        score = 2 * right / max(1, given + int(dev.sum()))
        if score > best[0]:
            best = (score, strength, multi_label.given(on_test, limits, labels))
    return best[1:]


def _each_probability(features: Sequence[csr_matrix], truth: np.ndarray, strength: float) -> list[np.ndarray]:
    """The probability of each label for the rows of dev and test, (rows, labels) each."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    found = [np.zeros((part.shape[0], truth.shape[1])) for part in features[1:]]
    for label, has in enumerate(truth.T):
        if has.all() or not has.any():
            for part in found:
                part[:, label] = has[0]
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=strength, max_iter=STEPS, tol=1e-3).fit(features[0], has)
        for part, rows in zip(found, features[1:], strict=True):
            part[:, label] = model.predict_proba(rows)[:, 1]
    return found


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
