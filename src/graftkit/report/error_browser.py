"""Which rows did it get wrong?

The errors as one table that anyone can read, the highest loss first, as many as fit `CONTENT` bytes; page.js adds
search and filters. Texts and names come from the data: they are escaped, on one line, without what cannot be seen.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from graftkit.report.charts import breakable, scroller, tag
from graftkit.report.markdown import percent, plural, shorten
from graftkit.report.sections import NOUNS

CONTENT = 1_500_000  # bytes of rows, pictures included
MOST = 5000  # rows
LETTERS = 1000  # of a text
SURE = {"90 to 100": "90% and more", "70 to 90": "70% to 90%", "50 to 70": "50% to 70%", "0 to 50": "under 50%"}
"""The ranges of stated probability to choose from, from the first number up to but not including the second."""


def errors_of(
    records: Sequence[Mapping[str, Any]], slices: Mapping[str, np.ndarray] | None = None
) -> list[Mapping[str, Any]]:
    """The records of all errors, the highest loss first; with `slices`, the place and name of those that hold each.

    `slices` are the records that each holds, (records,) bool, by its name.
    """
    told = [
        {**record, "slices": [(i, name) for i, (name, inside) in enumerate((slices or {}).items()) if inside[place]]}
        for place, record in enumerate(records)
        if record["label"] != record["prediction"]
    ]
    return sorted(told, key=lambda record: -record["loss"])


def browser(
    errors: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str],
    run: Mapping[str, Any],
) -> str:
    """The errors, the worst first, with what was kept of their rows, by id."""
    noun = NOUNS[run["task"]]
    contents = [content_of(rows.get(record["id"], {})) for record in errors[:MOST]]
    kept = any(content is not None for content in contents)
    pictures = any(row.get("thumbnail") for row in rows.values())
    shown, size = [], 0
    for record, content in zip(errors, contents, strict=False):
        cell = "<i>not kept</i>" if content is None and kept else content
        line = _line(record, cell, labels)
        size += len(line.encode())
        if size > CONTENT and shown:
            break
        shown.append(line)
    worst = errors[: len(shown)]
    head = [noun.capitalize()] * kept + ["True class", "Predicted", "How sure", "Gave the true class", "Row"]
    cells = "".join(f'<th scope="col">{words}</th>' for words in head)
    caption = tag("caption", "Test rows that were given a wrong class, the highest loss first", class_="unseen")
    table = caption + tag("thead", f"<tr>{cells}</tr>") + tag("tbody", "".join(shown))
    kind = "pictures" if pictures else "texts" if kept else "ids"
    return (
        _introduction(len(errors), len(shown), noun, kept, pictures, run)
        + _controls(worst, labels)
        + scroller("Errors", tag("table", table, id="errors", class_=kind))
        + '<p class="controls"><button type="button" id="more">Show more</button></p>'
    )


def _introduction(wrong: int, shown: int, noun: str, kept: bool, pictures: bool, run: Mapping[str, Any]) -> str:
    which = f"these {shown:,} have the highest loss" if shown < wrong else "the highest loss comes first"
    sentences = [
        f"{plural(wrong, 'test row was', 'test rows were')} given a wrong class; {which}.",
        "Where the model is sure of its answer, look whether the true class in the data is right.",
    ]
    if run.get("rows_left_out"):
        sentences.append(f"The {noun}s are not in this copy of the run, so their rows are named by id.")
    elif not kept:
        sentences.append(f"The run kept no {noun}s in its folder, so their rows are named by id.")
    elif noun == "picture" and not pictures:
        sentences.append("The run kept no pictures in its folder, so they are named here, not shown.")
    words = " ".join(sentences)
    paper = '<p class="paper">On paper: the first 20.</p>' if shown > 20 else ""
    return tag("p", words) + paper


def _controls(shown: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> str:
    """What page.js reads: a search, choices (of slices where there are any), a way back; hidden without scripts."""
    place = {label: str(i) for i, label in enumerate(labels)}

    def classes(name: str) -> dict[str, str]:
        found = Counter(record[name] for record in shown)
        return {place[label]: f"{_clean(shorten(label, 60))} ({found[label]:,})" for label in labels if label in found}

    search = '<label>Search <input type="search" id="search" autocomplete="off" spellcheck="false"></label>'
    choices = _choice("truth", "True class", classes("label")) + _choice("given", "Predicted", classes("prediction"))
    choices += _choice("sure", "How sure", SURE)
    slices = Counter(slice for record in shown for slice in record["slices"])
    if slices:
        listed = {str(i): f"{_clean(name)} ({count:,})" for (i, name), count in sorted(slices.items())}
        choices += _choice("slice", "Slice", listed)
    clear = '<button type="button" id="clear">Clear</button>'
    status = '<p id="found" role="status"></p>'
    inside = search + choices + clear + status
    return tag("div", inside, class_="controls", role="search", aria_label="Errors")


def _choice(id: str, name: str, options: Mapping[str, str]) -> str:
    listed = "".join(f'<option value="{value}">{escape(words)}</option>' for value, words in options.items())
    return f'<label>{name} <select id="{id}"><option value="">any</option>{listed}</select></label>'


def _line(record: Mapping[str, Any], content: str | None, labels: Sequence[str]) -> str:
    """A row of the table; page.js filters by the places of its classes and slices, and by how sure it was in percent.

    A `content` of None leaves its cell out.
    """
    truth, given = labels.index(record["label"]), labels.index(record["prediction"])
    sure, true = float(record["probabilities"][given]), float(record["probabilities"][truth])
    first = "" if content is None else f'<td dir="auto">{content}</td>'
    classes = f"<td>{breakable(_clean(record['label']))}</td><td>{breakable(_clean(record['prediction']))}</td>"
    numbers = f"<td>{percent(sure)}</td><td>{percent(true)}</td>"
    id = f'<th scope="row">{escape(_clean(record["id"]))}</th>'
    inside = " ".join(str(i) for i, _ in record["slices"])
    facts = f'data-t="{truth}" data-g="{given}" data-s="{100 * sure:.0f}" data-c="{inside}"'
    return f"<tr {facts}>{first}{classes}{numbers}{id}</tr>\n"


def content_of(row: Mapping[str, Any]) -> str | None:
    """The texts of a row, or its picture and path, as far as they were kept; None where nothing was."""
    if row.get("thumbnail"):
        source = b64encode(row["thumbnail"]).decode("ascii")
        path = f"<small>{escape(_clean(shorten(row['path'])))}</small>" if row.get("path") else ""
        return f'<img alt="Picture of row {escape(_clean(row["id"]))}" src="data:image/jpeg;base64,{source}">{path}'
    fields = [row[name] for name in ("text", "text_pair", "path") if row.get(name) is not None]
    return " <b>+</b> ".join(escape(_clean(shorten(field, LETTERS))) for field in fields) if fields else None


def _clean(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
