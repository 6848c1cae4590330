"""What is told of the arms?"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from graftkit.bakeoff.halving import Halving, Standing
from graftkit.compare.arms import Arm, Rows
from graftkit.compare.difference import Difference, between_models, between_seeds, raise_for_several
from graftkit.errors import UserError
from graftkit.metrics.classification import HEADLINES
from graftkit.metrics.scales import scale
from graftkit.metrics.spread import student
from graftkit.report.markdown import amount, duration, escape, in_brackets, plural, shorten, table, title
from graftkit.report.reading import CLASSIFIERS, read_folder

WIDTH = 100  # columns where there is no terminal
LETTERS = 18  # of an arm's name in a table there
SPARED = ("saved", "trained", "round", "seeds", "seconds")  # columns that a narrow terminal does without, in turn
SOONER = 1.5  # times, from which it is worth a word
MOSTLY = 0.5  # share of a run's seconds that are training, from which these say something
HEADER = ("arm", "round", "seeds", "dev", "seconds", "trained", "saved", "state")


def rows_of(halving: Halving) -> list[dict[str, Any]]:
    """What is told of each arm, as plain JSON, the best one first."""
    scored = [each for each in halving.standings if each.runs]
    scored.sort(key=lambda each: (each.state != "won", -each.round, -each.rank))
    return [_row(each) for each in [*scored, *(each for each in halving.standings if not each.runs)]]


def _row(each: Standing) -> dict[str, Any]:
    row = {"arm": each.arm.name, "state": each.state, "why": each.why}
    if not each.runs:
        return row
    outcomes = [outcome for _, outcome in each.runs]
    facts, values = outcomes[0].facts, [outcome.facts["headline"]["value"] for outcome in outcomes]
    name = facts["headline"]["name"]
    over_seeds = len(values) > 1
    headline = {"name": name, **asdict(student(values, *scale(name)))} if over_seeds else facts["headline"]
    return row | {
        "round": each.round,
        "whole": each.whole,
        "seeds": len(outcomes),
        "headline": headline,
        "rows": facts["rows"],
        "seconds": round(mean(outcome.seconds for outcome in outcomes), 1),
        "parameters": facts["parameters"],
        "bytes": facts["bytes"],
        "updates": facts["updates"],
        "training": round(mean(outcome.facts["training"] for outcome in outcomes), 1),
        "runs": [trial.name for trial, _ in each.runs],
        "any_seed": facts.get("any_seed", False),  # none in what an earlier version kept
    }


def compare(rows: Sequence[Mapping[str, Any]], folder: Path, task: str) -> dict[str, Difference]:
    """By arm, how far each is behind the first one on dev, and whether that could be chance; none where no test is.

    Two finalists are compared over their seeds; else two models, those of the first seed.
    """
    first, *others = [row for row in rows if "headline" in row]
    name = first["headline"]["name"]
    if not others or task not in CLASSIFIERS or name not in HEADLINES:
        return {}
    read = {row["arm"]: _read(row, folder) for row in (first, *others)}
    ids, labels, truth, groups = read[first["arm"]][0]
    if any(found[0][0] != ids for found in read.values()):
        raise UserError(f"{folder}: the runs did not answer the same dev rows; remove it and begin anew")
    on = Rows(ids, labels, truth, groups)
    found = []
    for row in others:
        seeds = min((each["seeds"] for each in (first, row) if not each["any_seed"]), default=1)
        one, other = (_arm(each, read[each["arm"]][1], seeds) for each in (first, row))
        of = between_seeds if seeds > 1 else between_models
        found.append(of(one, other, on, [name], len(others)))
    return {row["arm"]: each[name] for row, each in zip(others, raise_for_several(found), strict=True)}


def _arm(row: Mapping[str, Any], said: np.ndarray, seeds: int) -> Arm:
    """An arm with so many models; a head that is computed is mostly the same with each seed."""
    said = np.repeat(said, seeds, axis=0) if row["any_seed"] else said[:seeds]
    return Arm("", row["arm"], [], said)


def _read(row: Mapping[str, Any], folder: Path) -> tuple[tuple[Any, ...], np.ndarray]:
    """The dev rows of an arm, and what its models said of them: (models, rows), as places in the labels."""
    readings = [read_folder(folder / name / "run", ("dev",)) for name in row["runs"]]
    first = readings[0]
    truth = first.arrays["dev"][0]
    ids = [record["id"] for record in first.records["dev"]]
    return (ids, first.labels, truth, first.groups("dev")), np.stack([each.arrays["dev"][1] for each in readings])


def recommend(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Difference], lower: bool) -> str:
    """The recommendation in plain words: which arm, why, and what to take where time matters more."""
    scored = [row for row in rows if "headline" in row]
    best, others = scored[0], scored[1:]
    missing = [row for row in rows if "headline" not in row]
    over = f", the mean of {best['seeds']} seeds" if best["seeds"] > 1 else ""
    place = "best on dev" if others else "the only arm that could be scored"
    said = [
        f"{best['arm']} is {place}: {title(best['headline']['name'])} {in_brackets(best['headline'])}{over}, in "
        f"{duration(best['seconds'])} a run."
    ]
    worse, alike = [], []
    for row in others:
        shown = found[row["arm"]].shown if found else _apart(best["headline"], row["headline"], lower=lower)
        (worse if shown else alike).append(row)
    apart = "" if found else " (no test is made of this score: the intervals lie apart)"
    if whole := [row for row in worse if row["whole"]]:
        said.append(f"It is better than {_names(whole)} by more than chance explains{apart}.")
    if part := [row for row in worse if not row["whole"]]:
        verb, whose = ("is", "its") if len(part) == 1 else ("are", "their")
        said.append(
            f"{_names(part)} {verb} behind after a part of {whose} training{'' if whole else apart}: what the rest "
            "would bring, this does not say."
        )
    if alike:
        each = ", ".join(in_brackets(row["headline"]) for row in alike)
        verb = "is" if len(alike) == 1 else "are"
        said.append(f"{'But ' if worse else ''}{_names(alike)} {verb} within what chance alone can do: {each}.")
    said += _sooner(best, alike)
    if alike and not worse:
        said.append(
            f"So nothing here can be told apart on {plural(best['rows'], 'dev row')}: more of them, more seeds or a "
            "larger budget could."
        )
    if missing:
        said.append(f"Of {_names(missing)} this says nothing: without a score, for the reason below the table.")
    if best["seeds"] == 1 and not best["any_seed"] and others:
        said.append("It ran with one seed: with another one the order may be another.")
    return " ".join(said)


def _sooner(best: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to take of those that cannot be told from the best, where time matters."""
    quick = min(alike, key=lambda row: row["training"], default=None)
    if quick is None or best["training"] < max(quick["training"] * SOONER, MOSTLY * best["seconds"]):
        return []
    name, (short, long) = quick["arm"], (duration(row["training"]) for row in (quick, best))
    return [f"{name} trains in {short}, and {best['arm']} in {long}: take {name} if time matters."]


def _apart(best: Mapping[str, Any], other: Mapping[str, Any], *, lower: bool) -> bool:
    """Whether two intervals do not meet."""
    return best["high"] < other["low"] if lower else best["low"] > other["high"]


def _names(rows: Sequence[Mapping[str, Any]]) -> str:
    *some, last = [row["arm"] for row in rows]
    return f"{', '.join(some)} and {last}" if some else last


def cells(row: Mapping[str, Any], rounds: int) -> tuple[str, ...]:
    """What the table says of an arm."""
    if "headline" not in row:
        return (row["arm"], "–", "–", "–", "–", "–", "–", row["state"])
    return (
        row["arm"],
        f"{row['round']}/{rounds}",
        "any" if row["any_seed"] else str(row["seeds"]),
        in_brackets(row["headline"]),
        f"{row['seconds']:.0f}",
        amount(row["parameters"]).replace(" million", "M").replace(" billion", "B"),
        f"{row['bytes'] / 1e6:.3g} MB",
        row["state"],
    )


def columns() -> int:
    """How wide the terminal is."""
    return shutil.get_terminal_size((WIDTH, 24)).columns


def wrapped(said: str, width: int) -> str:
    """A text in lines of a terminal; paths and names stay whole."""
    return textwrap.fill(said, width, break_long_words=False, break_on_hyphens=False)


def text(rows: Sequence[Mapping[str, Any]], rounds: int, width: int) -> str:
    """The table for a terminal of so many columns; below it the names that are too long for it, and what went wrong.

    Columns that say less are left out until it fits.
    """
    long = [row["arm"] for row in rows if len(row["arm"]) > LETTERS]
    short = {name: f"{shorten(name, LETTERS - 4)} ({number})" for number, name in enumerate(long, start=1)}
    lines = [HEADER, *((short.get(name, name), *more) for name, *more in (cells(row, rounds) for row in rows))]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEADER))]
    shown = list(range(len(HEADER)))
    for name in SPARED:
        if sum(widths[place] + 2 for place in shown) - 2 > width:
            shown.remove(HEADER.index(name))
    drawn = ["  ".join(line[place].ljust(widths[place]) for place in shown).rstrip() for line in lines]
    below = [f"({number}) {name}" for number, name in enumerate(long, start=1)]
    below += [f"{row['arm']}: {row['why']}" for row in rows if row["why"]]
    return "\n".join([*drawn, *(wrapped(line, width) for line in below)])


def markdown(rows: Sequence[Mapping[str, Any]], rounds: int, said: Sequence[str], facts: Mapping[str, str]) -> str:
    """The page of a bakeoff."""
    lines = [[escape(cell) for cell in cells(row, rounds)] for row in rows]
    why = [f"- {escape(row['arm'])}: {escape(row['why'])}" for row in rows if row["why"]]
    how = (
        "A run's seconds are those of its whole process here; a run that finds in the cache what an earlier one "
        "computed is quicker. Intervals are of 95%: of other dev rows where an arm has one seed, else of other seeds. "
        "Arms that were out early were trained for less time. Test was asked of the recommended arm alone."
    )
    made = [f"- {name}: {escape(value)}" for name, value in facts.items()]
    header = [name.capitalize() for name in HEADER]
    parts = ["# Which way of adapting?", *map(escape, said), table(header, lines, numbers=[4]), "\n".join(why), how]
    return "\n\n".join(part for part in [*parts, "\n".join(made)] if part) + "\n"
