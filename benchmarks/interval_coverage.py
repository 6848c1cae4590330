"""How often do the intervals of a report hold the truth?

    python benchmarks/interval_coverage.py

Data sets are simulated from models whose true scores are known, and the intervals that a report would give are asked
whether they hold them. 95% should. Cases: balanced and imbalanced classes, down to 50 rows; each class' precision,
recall and F1, by how many rows the class has; rows in groups that are alike, drawn by group and (wrongly) by row.
Prints the tables of docs/intervals.md. --splits sets how many data sets are drawn for each line.
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np

from graftkit.metrics.classification import CLASS_SCORES, HEADLINES, Counts, all_intervals, confusion, group_counts
from graftkit.report.markdown import table

SIZES = ("1 to 4", "5 to 9", "10 to 19", "20 to 49", "50 to 99", "100 and more")
STARTS = (1, 5, 10, 20, 50, 100)


def model(shares: np.ndarray, low: float, high: float) -> np.ndarray:
    """The cells of a model of classes with these shares: recalls from `high` down to `low`, errors that clump."""
    labels, rng = len(shares), np.random.default_rng(8)
    recall = np.linspace(high, low, labels)
    cells = np.diag(recall)
    for place in range(labels):
        cells[place, np.arange(labels) != place] = (1 - recall[place]) * rng.dirichlet(np.ones(labels - 1))
    return cells * shares[:, None]


EVEN, SKEWED = np.full(8, 1 / 8), 0.5 ** np.arange(8) / (0.5 ** np.arange(8)).sum()  # the rarest has 0.4% of rows
MODELS = {
    "8 classes, balanced, 0.70 to 0.95 right": model(EVEN, 0.70, 0.95),
    "8 classes, balanced, 0.95 to 0.99 right": model(EVEN, 0.95, 0.99),
    "8 classes, each half as frequent as the last, 0.70 to 0.95 right": model(SKEWED, 0.70, 0.95),
    "2 classes, 9 to 1, 0.70 and 0.95 right": model(np.array([0.9, 0.1]), 0.70, 0.95),
}


def held(interval, truth: float) -> bool:
    """Whether an interval says something, and what it says is so; one that says nothing is not counted as right."""
    return interval.method != "constant" and interval.low <= truth <= interval.high


def of_rows(splits: int) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """How often the intervals of the headlines hold, by model and rows, and those of classes, by rows of the class."""
    lines, by_class = [], []
    for name, cells in MODELS.items():
        counts = Counts.of(cells)
        truth = {score: float(of(counts)) for score, of in HEADLINES.items()}
        of_class = {score: of(counts) for score, of in CLASS_SCORES.items()}
        classes: dict[tuple[str, int], list[bool]] = defaultdict(list)
        for rows in (50, 200, 500, 2000):
            rng, found = np.random.default_rng(rows), dict.fromkeys(HEADLINES, 0)
            for _ in range(splits):
                drawn = rng.multinomial(rows, cells.ravel()).reshape(cells.shape)
                intervals = all_intervals(drawn)
                for score, interval in intervals.scores.items():
                    found[score] += held(interval, truth[score])
                for place, (line, support) in enumerate(zip(intervals.classes, drawn.sum(axis=1), strict=True)):
                    size = int(np.searchsorted(STARTS, support, side="right"))
                    for score, interval in line.items():
                        classes[score, size].append(held(interval, of_class[score][place]))
            lines.append((name, f"{rows:,}", *(f"{found[score] / splits:.1%}" for score in HEADLINES)))
        for place, size in enumerate(SIZES, start=1):
            seen = [classes[score, place] for score in CLASS_SCORES]
            if len(seen[1]) >= splits / 4:
                by_class.append((name, size, *(f"{np.mean(one):.1%}" for one in seen), f"{len(seen[1]):,}"))
    return lines, by_class


def of_groups(splits: int) -> list[tuple[str, ...]]:
    """How often the interval of accuracy holds where rows of a group are alike, drawn by group and by row."""
    lines = []
    for groups in (5, 10, 20, 50, 200):
        for each in ("10 rows each", "1 to 50 rows each"):
            rng, found = np.random.default_rng(groups), {"group": 0, "row": 0}
            for _ in range(splits):
                sizes = np.full(groups, 10) if each == "10 rows each" else _uneven(groups, rng)
                right = np.repeat(rng.beta(4, 1, groups), sizes)  # 0.8 on average, 0.16 apart
                truth = rng.integers(0, 2, sizes.sum())
                predicted = np.where(rng.random(len(truth)) < right, truth, 1 - truth)
                counts, of_row = confusion(truth, predicted, 2), np.repeat(np.arange(groups), sizes)
                ways = {"group": group_counts(truth, predicted, of_row, 2), "row": None}
                for way, drawn in ways.items():
                    found[way] += held(all_intervals(counts, drawn).scores["accuracy"], 0.8)
            lines.append((f"{groups}", each, *(f"{found[way] / splits:.1%}" for way in found)))
    return lines


def _uneven(groups: int, rng: np.random.Generator) -> np.ndarray:
    return np.exp(rng.uniform(0, np.log(50), groups)).round().astype(int)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=1000, help="data sets for each line (1,000)")
    splits = parser.parse_args().splits
    lines, by_class = of_rows(splits)
    print(table(("Model", "Rows", *HEADLINES), lines, numbers=range(1, 7)), flush=True)
    head = ("Model", "Rows of the class", *CLASS_SCORES, "Classes")
    print("\n" + table(head, by_class, numbers=range(2, 6)), flush=True)
    head = ("Groups", "Of", "Accuracy, drawn by group", "Accuracy, drawn by row")
    print("\n" + table(head, of_groups(splits), numbers=[0, 2, 3]))


if __name__ == "__main__":
    main()
