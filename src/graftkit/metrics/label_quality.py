"""Which labels are probably wrong, and which rows stand twice?

Confident learning (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels"):
a classifier that has not seen a row says how likely each label is. A class counts as confident for a row where its
probability is at least what the class gets, on average, on the rows that bear its label. Rows whose confident class
is not their label are the suspects, and their counts, scaled to the rows of each label, estimate how many are wrong.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

FOLDS = 5
STRENGTH = 0.01  # the inverse of the L2 penalty, on standardised features: see benchmarks/label_quality.py
ITERATIONS = 200
BLOCK = 1024  # rows that are compared with all others at a time


class Neighbours(NamedTuple):
    """For each row, the one that is most like it, and the rows that are nearly the same."""

    nearest: np.ndarray  # (rows,) int: the most similar other row among those asked for; -1 where there is none
    similarity: np.ndarray  # (rows,) float32: the cosine to it; -1 where there is none
    groups: np.ndarray  # (rows,) int: rows that are nearly the same, directly or through others, have one number


def out_of_fold(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    groups: np.ndarray | None = None,
    *,
    folds: int = FOLDS,
    seed: int = 0,
) -> np.ndarray:
    """What a logistic regression that was fitted without a row's fold says of the row: (rows, classes) float64.

    `features` (rows, features) are standardised first. `labels` (rows,) are places in the list of classes, and rows of
    one of the `groups` (rows,) share a fold. A row is NaN where no row of the other folds has its label: nothing can
    be said of it.
    """
    assigned = fold_numbers(labels, np.arange(len(labels)) if groups is None else groups, folds, seed)
    inputs, found = standardised(features), np.zeros((len(labels), classes))
    for fold in range(folds):
        held = assigned == fold
        present = np.unique(labels[~held])
        if held.any():
            found[np.ix_(held, present)] = _fit_and_ask(inputs[~held], labels[~held], inputs[held])
            found[held & ~np.isin(labels, present)] = np.nan
    return found


def _fit_and_ask(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Probabilities (rows asked, distinct labels)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        return np.ones((len(asked), len(np.unique(labels))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a little before the optimum rows rank the same
        model = LogisticRegression(C=STRENGTH, max_iter=ITERATIONS, tol=1e-3).fit(known, labels)
    return model.predict_proba(asked)


def fold_numbers(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold for each row, (rows,): groups stay together, and each class, by its groups' first rows, lies evenly."""
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(first))
    by_class = shuffled[np.argsort(labels[first][shuffled], kind="stable")]
    assigned = np.empty(len(first), int)
    assigned[by_class] = np.arange(len(first)) % folds
    return assigned[numbers]


def standardised(features: np.ndarray) -> np.ndarray:
    """Features of mean 0 and variance 1; one that never varies is 0. (rows, features) float32."""
    spread = features.std(axis=0)
    return ((features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)).astype(np.float32)


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class that each row confidently has, (rows,); -1 where none is confident.

    Of several, the likeliest. The threshold of a class is its mean probability on the rows that bear its label.
    """
    bears = labels[:, None] == np.arange(probabilities.shape[1])  # (rows, classes)
    rows = bears.sum(axis=0)
    thresholds = np.where(rows > 0, (probabilities * bears).sum(axis=0) / np.maximum(rows, 1), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(confident.max(axis=1) >= 0, confident.argmax(axis=1), -1)


def confident_joint(confident: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Rows by their label (first axis) and their confident class, (classes, classes) int."""
    sure = confident >= 0
    return np.bincount(labels[sure] * classes + confident[sure], minlength=classes**2).reshape(classes, classes)


def estimated_joint(counts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The estimated share of all rows for each label and true class, (classes, classes), from the confident joint.

    Each line is scaled to the rows of its label; a label without any confident row is taken to be right.
    """
    rows = counts.sum(axis=1, keepdims=True)
    shares = np.where(rows > 0, counts / np.maximum(rows, 1), np.eye(len(counts)))
    return shares * (np.bincount(labels, minlength=len(counts)) / max(1, len(labels)))[:, None]


def self_confidence(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How well each label holds, (rows,): its own probability, from 0, surely wrong, to 1, surely right.

    The lowest are the likeliest errors. (The margin to the likeliest other label finds fewer: docs/results.md.)
    """
    return probabilities[np.arange(len(labels)), labels]


def neighbours(features: np.ndarray, among: np.ndarray, threshold: float) -> Neighbours:
    """The most similar row of those where `among` (rows,) is true, and groups of rows of at least that cosine.

    Cosines of standardised features (rows, features): as they come from a network, all rows point nearly the same way.
    For each row only its nearest and its first match are joined, so that memory stays small where all rows are alike.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    units = standardised(features)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
    rows, targets = len(units), np.flatnonzero(among)
    nearest, similarity = np.full(rows, -1), np.full(rows, -1.0, np.float32)
    links: list[np.ndarray] = []
    for start in range(0, rows, BLOCK):
        here = np.arange(start, min(start + BLOCK, rows))
        cosines = units[here] @ units.T  # (block, rows)
        cosines[np.arange(len(here)), here] = -2.0
        for other in (cosines.argmax(axis=1), (cosines >= threshold).argmax(axis=1)):
            close = cosines[np.arange(len(here)), other] >= threshold
            links.append(np.stack([here[close], other[close]]))
        if len(targets):
            best = cosines[:, targets].argmax(axis=1)
            nearest[here], similarity[here] = targets[best], cosines[np.arange(len(here)), targets[best]]
    alone = similarity < -1.5  # the row itself was the only one to compare with
    nearest[alone], similarity[alone] = -1, -1.0
    one, other = np.concatenate(links, axis=1)
    joined = coo_array((np.ones(len(one), bool), (one, other)), shape=(rows, rows))
    return Neighbours(nearest, similarity, connected_components(joined, directed=False)[1])
