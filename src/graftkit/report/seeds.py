"""How much does the seed matter?

The folder of a run with `--run.seeds` holds a run for each; what is told here follows from their tables of test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape as html_escape
from pathlib import Path
from typing import Any

import numpy as np

from graftkit.errors import UserError
from graftkit.metrics.intervals import LEVEL
from graftkit.metrics.scales import perfect, scale
from graftkit.metrics.spread import divided, spread, student
from graftkit.report import baselines, classification
from graftkit.report.charts import tag
from graftkit.report.html import Addition
from graftkit.report.markdown import (
    bullets,
    decimals,
    escape,
    number,
    percent,
    plural,
    rounded,
    shorten,
    table,
    title,
    with_interval,
)
from graftkit.report.reading import Reading, read_folder
from graftkit.report.sections import has_no_model
from graftkit.report.tables import read_rows

NAME = "seeds"
SHOWN = 20  # rows that change with the seed
LETTERS = 200  # of a text that is shown
FEW = 5  # seeds, below which their spread is a guess
FLAG = "--run.seeds 0 1 2"


def measure(reading: Reading) -> None:
    """One model has one seed; a folder that holds several has a report of its own: see `gather`."""


def gather(reading: Reading, task: Any, against: Any | None) -> dict[str, Any]:
    """What the seeds say together. UserError where they did not answer the same rows.

    `task` is the module that measures a run of the task (`page.TASKS`), and `against` the part that holds it against
    simple answers, if there is one.
    """
    readings = [read_folder(reading.folder / one["name"], ("test",)) for one in reading.run["seeds"]]
    check_same_rows(readings)
    measured = [task.measure(each, "test") for each in readings]
    first = measured[0]["headline"]
    values = [one["headline"]["value"] for one in measured]
    over_seeds = student(values, *scale(first["name"]))
    doubts = [baselines.doubt(against.measure(each)) if against else "" for each in readings]
    runs = [
        {**one, "headline": each["headline"], "scores": each["scores"], "doubt": doubt}
        for one, each, doubt in zip(reading.run["seeds"], measured, doubts, strict=True)
    ]
    return {
        "rows": measured[0]["rows"],
        "headline": {
            "name": first["name"],
            **({"lower_is_better": True} if first.get("lower_is_better") else {}),
            **asdict(over_seeds),
        },
        "scores": {score: spread([one["scores"][score] for one in measured]) for score in measured[0]["scores"]},
        "runs": runs,
        "answers": _answers(readings),
    }


def check_same_rows(readings: Sequence[Reading]) -> None:
    """Raise UserError where two seeds did not answer the same rows in the same order."""
    first = readings[0]
    rows = [(record["id"], record.get("label")) for record in first.records["test"]]
    for each in readings[1:]:
        same = rows == [(record["id"], record.get("label")) for record in each.records["test"]]
        if not same or each.labels != first.labels:
            raise UserError(f"{each.folder} and {first.folder} did not answer the same rows; make one of them again")


def _answers(readings: Sequence[Reading]) -> dict[str, Any] | None:
    """How often the seeds agree, and the rows on which they agree least; None where rows have no answer to agree on."""
    records = readings[0].records["test"]
    if not isinstance(records[0].get("prediction"), str | list):
        return None
    known: dict[str, int] = {}
    truth = np.array([known.setdefault(_truth(record), len(known)) for record in records])
    said = np.array(
        [[known.setdefault(_given(record), len(known)) for record in each.records["test"]] for each in readings]
    )
    right, apart, names = (said == truth).sum(axis=0), divided(truth, said), list(known)
    place_of = {label: place for place, label in enumerate(readings[0].labels)}
    shown = []
    for place in apart[:SHOWN].tolist():
        given = Counter(names[answer] for answer in said[:, place].tolist())
        ordered = sorted(given, key=lambda name: (-given[name], place_of.get(name, 0)))
        answers = {name: given[name] for name in ordered}
        shown.append({"id": records[place]["id"], "label": _truth(records[place]), "given": answers})
    return {
        "right_by_all": int((right == len(said)).sum()),
        "right_by_some": int(((right > 0) & (right < len(said))).sum()),
        "right_by_none": int((right == 0).sum()),
        "not_the_same": len(apart),
        "most_divided": shown,
    }


def _truth(record: Mapping[str, Any]) -> str:
    """The true answer in words: a label; all of several; or the first of the texts that are accepted."""
    label = record["label"]
    if isinstance(label, str):
        return label
    return (" ".join(label) if isinstance(record["prediction"], list) else next(iter(label), "")) or "none"


def _given(record: Mapping[str, Any]) -> str:
    """What the model gave, in words; any of the texts that are accepted is the true one."""
    given, label = record["prediction"], record["label"]
    if isinstance(given, str) and isinstance(label, list) and (given in label or not (given or label)):
        return _truth(record)
    return (given if isinstance(given, str) else " ".join(given)) or "none"


def text(found: Mapping[str, Any]) -> str:
    """The three lines that a terminal shows."""
    headline, runs = found["headline"], found["runs"]
    places = decimals(float(np.ptp([one["headline"]["value"] for one in runs])) / 2)
    each = ", ".join(f"seed {one['seed']} {number(one['headline']['value'], places)}" for one in runs)
    return f"test  mean {title(headline['name'])} {with_interval(headline)} over {len(runs)} seeds\n      {each}" + (
        f"\n      {_changing(found)}" if found["answers"] else ""
    )


def summary(found: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """What the recipe reaches, how far seeds are apart, and what to watch out for."""
    headline, count = found["headline"], len(found["runs"])
    cautions = []
    doubtful = sum(bool(one["doubt"]) for one in found["runs"])
    start = f"Over {count} seeds"
    if doubtful:
        start = f"**{doubtful} of the {count} models are not shown to beat a simple answer (see their reports)**: over"
        start += f" {count} seeds"
    if count < FEW:
        cautions.append(f"{count} seeds hardly show how much the seed matters, which makes the interval wide")
    cautions.append("the interval speaks of other seeds on these rows, not of other rows: see each seed's own")
    if run.get("warnings"):
        cautions.append(f"the runs gave {plural(len(run['warnings']), 'warning')} (below)")
    return (
        f"{start}, this recipe reaches a mean {title(headline['name'])} of **{with_interval(headline)}** on "
        f"{plural(found['rows'], 'test row')} that no model was trained on, "
        f"where {perfect(headline['name']):g} is perfect. "
        f"{f'{_changing(found).capitalize()}. ' if found['answers'] else ''}**Watch out:** {'; '.join(cautions)}."
    )


def chapter(found: Mapping[str, Any] | None, reading: Reading) -> str:
    """Each seed, and the spread of all scores. Without several seeds, how to get them; empty where none trained."""
    if found is None:
        if has_no_model(reading.run):
            return ""
        return (
            "Not measured: this is one model. The same recipe with another seed gives another model and another score; "
            f"by how much, {FLAG} says: it trains one for each seed."
        )
    return "\n\n".join([_each(found), _spread(found), _reading_of(found)])


def addition(found: Mapping[str, Any], reading: Reading) -> Addition:
    """Links to the reports of the seeds."""
    return links(found["runs"])


def links(runs: Sequence[Mapping[str, Any]]) -> Addition:
    """A list of links to the reports of runs within the folder."""
    items = (
        tag("li", tag("a", html_escape(f"Report of {one['name']}"), href=html_escape(f"{one['name']}/report.html")))
        for one in runs
    )
    return Addition(tag("ul", "".join(items)))


def disagreements(found: Mapping[str, Any], reading: Reading) -> str:
    """The rows that get another answer from another seed, the most divided first."""
    answers, count = found["answers"], len(found["runs"])
    if answers is None:
        return "Not told: rows of this task have no answer of a few words that two models could give alike."
    facts = bullets(
        f"{which}: {plural(answers[name], 'row')} ({percent(answers[name], found['rows'])})"
        for name, which in (
            ("right_by_all", "Right with every seed"),
            ("right_by_some", "Right with some seeds only"),
            ("right_by_none", "Wrong with every seed"),
        )
    )
    shown = answers["most_divided"]
    if not shown:
        return f"{facts}\n\nNone: every row gets the same answer from all {count} seeds."
    kept = _rows_of(reading.folder / found["runs"][0]["name"], [row["id"] for row in shown])
    lines = [
        (
            _content(kept.get(row["id"], {})),
            escape(row["label"]),
            ", ".join(f"{escape(label)} {times} x" for label, times in row["given"].items()),
            escape(row["id"]),
        )
        for row in shown
    ]
    first = f"; the {len(shown)} most divided" if len(shown) < answers["not_the_same"] else ""
    intro = (
        f"{_changing(found).capitalize()}{first}. Such rows lie between two classes, or their label is wrong. Rows "
        "that are wrong with every seed are found in the report of each."
    )
    return f"{facts}\n\n{intro}\n\n{table(('What it holds', 'True answer', 'Given', 'Row'), lines)}"


def _content(row: Mapping[str, Any]) -> str:
    """What was kept of a row, in a cell."""
    texts = [value for name, value in row.items() if isinstance(value, str) and name not in ("id", "sha256")]
    pictured = not texts or row.get("thumbnail") or "text" in row
    return classification.content_of(row) if pictured else " / ".join(escape(shorten(text, LETTERS)) for text in texts)


def _rows_of(folder: Path, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in read_rows(folder, "test", ids)}


def _changing(found: Mapping[str, Any]) -> str:
    changing = found["answers"]["not_the_same"]
    verb = "gets" if changing == 1 else "get"
    return f"{changing:,} of {plural(found['rows'], 'row')} {verb} another answer from another seed"


def _each(found: Mapping[str, Any]) -> str:
    """One line per seed: its own score, and where its report lies."""
    name = found["headline"]["name"]
    lines = []
    for one in found["runs"]:
        value, low, high = rounded(one["headline"])
        interval = "–" if one["headline"]["method"] == "constant" else f"{low} to {high}"
        lines.append((str(one["seed"]), value, interval, f"`{one['name']}/report.html`"))
    mean, interval = number(found["headline"]["value"], 2), "–"
    if found["headline"]["method"] != "constant":
        mean, low, high = rounded(found["headline"])
        interval = f"{low} to {high}"
    lines.append(("**mean**", f"**{mean}**", interval, ""))
    header = ("Seed", title(name), f"{LEVEL:.0%} interval", "Report")
    return table(header, lines, numbers=[0, 1])


def _spread(found: Mapping[str, Any]) -> str:
    """Mean, standard deviation and range of every score."""
    first = found["headline"]["name"]
    lines = []
    for name in sorted(found["scores"], key=lambda name: name != first):
        one = found["scores"][name]
        places = decimals(one["sd"])
        cells = [number(one[part], places) for part in ("mean", "sd", "lowest", "highest")]
        lines.append((f"**{title(name)}**" if name == first else title(name), *cells))
    return table(("Score", "Mean", "Standard deviation", "Lowest", "Highest"), lines, numbers=range(1, 5))


def _reading_of(found: Mapping[str, Any]) -> str:
    count = len(found["runs"])
    return (
        f"The interval of the mean is Student's t over {count} seeds: where the mean over all seeds may lie, on these "
        "test rows. The interval of each seed is another one: how far that one "
        "model's score would move on other test rows. Whoever picks the seed with the best test score picks luck; take "
        "any, or the best on dev. To hold two recipes against each other, give `graft compare` both folders."
    )
