"""What does the page of a classifier show that its Markdown cannot?

Shaded tables, the matrix of many classes, the errors to browse, and learning curves: all from the same records and
metrics as report.md, put into the chapters that `classification.chapters` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graftkit.report import charts, curves, slices
from graftkit.report.classification import MATRIX_CLASSES
from graftkit.report.error_browser import browser, errors_of
from graftkit.report.html import Addition, Cells
from graftkit.report.markdown import percent, plural, shorten
from graftkit.report.reading import Reading

PAIRS = 1000  # of confused classes that are listed below the matrix
LETTERS = 34  # of a class name beside the matrix


def additions(
    metrics: Mapping[str, Any],
    reading: Reading,
    rows: Mapping[str, Mapping[str, Any]],
    log: Sequence[Mapping[str, Any]],
) -> dict[str, Addition]:
    """What is added to the chapters, by heading: `rows` are those that were kept of `worst`, by id, `log` the events of
    training.
    """
    errors = errors_of(reading.records["test"], slices.filters(metrics.get(slices.NAME), reading))
    added = {"Classes": Addition(cells=bar), "Confusions": _confusions(metrics["test"])}
    added |= curves.additions(metrics, reading.run, log)
    if errors:
        added["Worst errors"] = Addition(browser(errors, rows, reading.labels, reading.run), instead=True)
    return added


def bar(row: int, column: int, words: str) -> dict[str, str]:
    """A bar behind the F1 of a class."""
    return {"class": "meter", "style": f"--share:{words}"} if column == 3 and words != "–" else {}


def _confusions(test: Mapping[str, Any]) -> Addition:
    """The matrix' table with its cells shaded, or, of many classes, a drawing and the list of what is in it."""
    counts, names = np.array(test["confusion"]["counts"]), test["confusion"]["labels"]
    if len(names) > MATRIX_CLASSES:
        return Addition(_matrix(counts, names))
    return Addition(cells=shade(counts))


def shade(counts: np.ndarray) -> Cells:
    """Cells of a matrix, (labels, labels), the darker the larger the share of the line."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    def looks(row: int, column: int, words: str) -> dict[str, str]:
        kind = "right" if row == column - 1 else "wrong"
        return {"class": f"{kind}{charts.level(float(shares[row, column - 1]))}"} if column else {}

    return looks


def _matrix(counts: np.ndarray, names: Sequence[str]) -> str:
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    pairs = [(int(truth), int(given)) for truth, given in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    lines = [
        (
            f"{truth + 1} {names[truth]}",
            f"{given + 1} {names[given]}",
            f"{wrong[truth, given]:,}",
            percent(wrong[truth, given], counts[truth].sum()),
        )
        for truth, given in pairs[:PAIRS]
    ]
    short = [shorten(name, LETTERS) for name in names]
    words = f"{len(names)} classes; {plural(len(pairs), 'pair')} of classes confused."
    drawing = charts.matrix(
        "matrix", "Confusion matrix", counts, short, describe=f"{words} The list below has the pairs."
    )
    caption = (
        "<b>Confusion matrix.</b> Each line is a true class, each column the class that its test rows were given, in "
        "the same order. The diagonal is what went right, squares off it what went wrong; the darker, the larger the "
        "share of the true class."
    )
    fold = f"The confused pairs ({len(pairs):,})"
    left = f", the {PAIRS:,} most frequent of {len(pairs):,}" if len(pairs) > PAIRS else ""
    name = f"Confused classes{left}"
    listed = charts.table(name, ("True class", "Taken for", "Rows", "Share of the class"), lines, [2, 3])
    numbers = f"<p>{name}:</p>{listed}" if lines else "<p>No test row was given a wrong class.</p>"
    return charts.figure(
        "matrix", caption, charts.scroller("Confusion matrix", drawing), numbers, fold=fold, class_="wide"
    )
