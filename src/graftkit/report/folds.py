"""How far do folds lie apart?

The folder of a run with `--data.folds` holds a run for each fold, and their tables of test as one: each row was
predicted by the one model that had not seen it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftkit.errors import UserError
from graftkit.metrics.spread import spread
from graftkit.report.html import Addition
from graftkit.report.markdown import decimals, number, percent, table, title
from graftkit.report.reading import Reading
from graftkit.report.sections import has_no_model, is_folds
from graftkit.report.seeds import links

NAME = "folds"


@dataclass(frozen=True)
class Folds:
    """The part of the report on folds (see `page.PARTS`) for a task whose records `score` gives all scores of."""

    score: Callable[[Sequence[Mapping[str, Any]], Sequence[str]], Mapping[str, float]]  # of records and labels
    NAME: str = NAME

    def measure(self, reading: Reading) -> dict[str, Any] | None:
        """The scores of each fold, and their spread; None where there are no folds."""
        return _measure(reading, self.score) if is_folds(reading.run) else None

    def chapter(self, found: Mapping[str, Any] | None, reading: Reading) -> str:
        """As `chapter`."""
        return chapter(found, reading)

    def addition(self, found: Mapping[str, Any], reading: Reading) -> Addition:
        """Links to the reports of the folds."""
        return links(found["runs"])


def _measure(reading: Reading, score: Callable[..., Mapping[str, float]]) -> dict[str, Any]:
    folds, records = reading.run["folds"], reading.records["test"]
    ends = np.cumsum([fold["test"] for fold in folds]).tolist()
    if ends[-1] != len(records):
        raise UserError(f"{reading.folder}: run.json names {ends[-1]} rows in folds, and the table has {len(records)}")
    scored = [score(records[end - fold["test"] : end], reading.labels) for fold, end in zip(folds, ends, strict=True)]
    return {
        "headline": reading.run.get("headline") or next(iter(scored[0])),
        "scores": {name: spread([scores[name] for scores in scored]) for name in scored[0]},
        "runs": [fold | {"scores": scores} for fold, scores in zip(folds, scored, strict=True)],
    }


def text(found: Mapping[str, Any]) -> str:
    """The line that a terminal shows."""
    name = found["headline"]
    places = decimals(found["scores"][name]["sd"])
    each = ", ".join(number(one["scores"][name], places) for one in found["runs"])
    mean, sd = (number(found["scores"][name][part], places) for part in ("mean", "sd"))
    return f"      {title(name)} of the {len(found['runs'])} folds: {each} (mean {mean}, standard deviation {sd})"


def chapter(found: Mapping[str, Any] | None, reading: Reading) -> str:
    """Each fold, and their mean and spread. Without folds, how to get them; empty where nothing was trained."""
    if found is None:
        if has_no_model(reading.run):
            return ""
        return (
            "Not measured: one set of test rows was held back. --data.folds 5 trains five models, so that each row of "
            "train is tested once: worth it where there are few rows."
        )
    return "\n\n".join([_intro(found), _each(found), _reading_of(found)])


def _intro(found: Mapping[str, Any]) -> str:
    count = len(found["runs"])
    return (
        f"The rows were cut into {count} folds. For each, a model of its own was trained on the others, and answered "
        "the rows of the fold, which it had not seen. All answers together are what this report is about."
    )


def _each(found: Mapping[str, Any]) -> str:
    """One line per fold, then mean and standard deviation."""
    names = [name for name in dict.fromkeys([found["headline"], "accuracy"]) if name in found["scores"]]
    places = {name: decimals(found["scores"][name]["sd"]) for name in names}
    lines = [
        (
            f"`{one['name']}/report.html`",
            f"{one['train']:,}",
            f"{one['test']:,}",
            *(number(one["scores"][name], places[name]) for name in names),
        )
        for one in found["runs"]
    ]
    for part, words in (("mean", "**mean**"), ("sd", "standard deviation")):
        lines.append((words, "", "", *(number(found["scores"][name][part], places[name]) for name in names)))
    header = ("Fold", "Trained on", "Tested on", *(title(name) for name in names))
    return table(header, lines, numbers=range(1, len(header)))


def _reading_of(found: Mapping[str, Any]) -> str:
    count = len(found["runs"])
    return (
        "The spread over folds says how much the score depends on which rows are learnt from and tested. It gives no "
        f"interval: any two of these models share most of their training rows, so their scores are not {count} "
        "independent ones, and no interval from them alone is right in general (Bengio and Grandvalet 2004). The "
        "intervals under Scores are those of all rows together. The mean over folds may differ from the score "
        f"of all rows together: F1 is no mean of rows. Each model learnt from about {percent(count - 1, count)} of the "
        "rows, less those of dev; one that learns from all is likely a little better. What is not told here, such as "
        "how each model learnt, stands in the report of the fold."
    )
