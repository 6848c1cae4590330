"""Where does it fail more often than elsewhere?

Test rows by what was measured of them (length, brightness ...) and by the columns that --report.slice names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graftkit.metrics import slices
from graftkit.metrics.comparison import ALPHA
from graftkit.metrics.slices import Slice, matters
from graftkit.report import charts
from graftkit.report.html import Addition
from graftkit.report.markdown import bullets, decimals, escape, percent, plural, shorten, table
from graftkit.report.reading import Reading
from graftkit.report.sections import NOUNS

NAME = "slices"
SPLIT = "test"
SHOWN = 20  # slices that matter, the most that are shown
FEW = 12  # slices of a named column, the most that the errors can be filtered by, whether they matter or not
LETTERS = 40  # of a column's name or value

MEASURES = {
    "tokens": ("number of tokens", "of {} token{s}"),
    "unknown_tokens": ("number of unknown tokens", "with {} unknown token{s}"),
    "short_side": ("short side", "whose short side has {} pixel{s}"),
    "aspect_ratio": ("aspect ratio", "{} times as wide as high"),
    "brightness": ("brightness", "of brightness {} (0 is black, 1 white)"),
    "contrast": ("contrast", "of contrast {} (0 is plain)"),
    "sharpness": ("sharpness", "of sharpness {} (low is blurred)"),
}
"""What a measure is called, and how rows are said to have it; one that stands not here is called by its name."""


def cut(reading: Reading) -> tuple[list[Slice], list[dict[str, Any]]]:
    """All slices of the test rows, and how each named column was cut."""
    found = [one for name, values in reading.measures(SPLIT).items() for one in slices.cut_measure(name, values)]
    columns = []
    for name, values in reading.columns(SPLIT).items():
        column = slices.cut_column(name, values)
        found += column.slices
        columns.append({"name": name, "values": column.values, "alone": column.alone, "slices": len(column.slices)})
    return found, columns


def measure(reading: Reading) -> dict[str, Any] | None:
    """Every slice with its share of right answers; None where the run has no table of measures."""
    if not reading.measures(SPLIT) and not reading.columns(SPLIT):
        return None
    found, columns = cut(reading)
    truth, predicted, _ = reading.arrays[SPLIT]
    named = reading.settings.get("slice") or []
    return {
        "rows": len(truth),
        "grouped": reading.groups(SPLIT) is not None,
        "columns": columns,
        "missing": [name for name in named if name not in reading.columns(SPLIT)],
        "slices": slices.find(found, truth == predicted, reading.groups(SPLIT)),
    }


def filters(found: Mapping[str, Any] | None, reading: Reading) -> dict[str, np.ndarray]:
    """What errors can be filtered by, in words, and which test rows fit, (rows,) bool.

    The slices that matter, the worst first; then the values of each named column that has few.
    """
    if found is None:
        return {}
    pairs = list(zip(found["slices"], cut(reading)[0], strict=True))
    few = {column["name"] for column in found["columns"] if column["slices"] <= FEW}
    wrong = [pair for pair in pairs if matters(pair[0])]
    chosen = sorted(wrong, key=lambda pair: pair[0]["right"])[:SHOWN]
    chosen += [pair for pair in pairs if pair[0]["named"] and pair[0]["by"] in few]
    return {words(line, NOUNS[reading.run["task"]]): one.inside for line, one in chosen}


def words(line: Mapping[str, Any], noun: str) -> str:
    """A slice in plain words, neither Markdown nor HTML: "texts of 40 to 112 tokens"."""
    by = f"“{shorten(line['by'], LETTERS)}”"
    if line["kind"] == "missing":
        return f"{noun}s without {by}" if line["named"] else f"{noun}s whose {name_of(line)} is not known"
    if line["kind"] == "others":
        return f"{noun}s with a rarer {by}"
    if line["kind"] == "value":
        return f"{noun}s whose {by} is “{shorten(line['values'][0], LETTERS)}”"
    if line["named"]:
        return f"{noun}s whose {by} is {between(line['values'])}"
    said = MEASURES.get(line["by"], ("", f"whose {name_of(line)} is {{}}"))[1]
    amount = "no" if said.startswith("with") and line["values"][1] == 0 else between(line["values"])
    return f"{noun}s {said.format(amount, s='' if amount == '1' else 's')}"


def name_of(line: Mapping[str, Any]) -> str:
    """What a measure is called."""
    return MEASURES.get(line["by"], (line["by"].replace("_", " "),))[0]


def between(values: Sequence[Any]) -> str:
    """Both ends of a range, or the one value that it is; words of a column as they stand there."""
    low, high = (shorten(value, LETTERS) if isinstance(value, str) else _number(value) for value in values)
    return low if low == high else f"{low} to {high}"


def chapter(found: Mapping[str, Any] | None, reading: Reading) -> str:
    """How many slices were looked at, and those that are wrong more often than the others, the worst first."""
    if found is None:
        return (
            "Not looked at: there are no measures of its rows (measures-test.parquet), which runs of an earlier "
            "version did not keep. Make the run again, or score its model with `graft evaluate`."
        )
    noun = NOUNS[reading.run["task"]]
    bad = sorted(filter(matters, found["slices"]), key=lambda line: line["right"])
    parts = [_introduction(found, bad, noun)]
    if bad:
        parts.append(bullets(_sentence(line, noun) for line in bad[:SHOWN]))
        header = ("Slice", "Rows", "Right", "Interval", "Others right", "p")
        parts.append(table(header, [_cells(line, noun, escape) for line in bad[:SHOWN]], numbers=[1, 2, 4, 5]))
    return "\n\n".join([*parts, _reading(found), *_notes(found, reading)])


def addition(found: Mapping[str, Any], reading: Reading) -> Addition | None:
    """The shares of the slices that matter as a chart, and all slices that were looked at in a folded table."""
    if not found["slices"]:
        return None
    noun = NOUNS[reading.run["task"]]
    header = ("Slice", "Rows", "Right", "Interval", "Others right", "p")
    name = f"All slices that were looked at ({len(found['slices'])})"
    everything = charts.table(name, header, [_cells(line, noun, str) for line in found["slices"]], [1, 2, 4, 5])
    bad = sorted(filter(matters, found["slices"]), key=lambda line: line["right"])[:SHOWN]
    if not bad:
        return Addition(charts.tag("details", charts.tag("summary", name) + everything))
    caption = "<b>Share that is right</b> in each slice that matters (dot, with its interval) and of the others (ring)."
    figure = charts.figure("slices-chart", caption, _drawing(bad, noun), everything, fold=name)
    return Addition(charts.tag("div", figure, class_="charts"))


def _introduction(found: Mapping[str, Any], bad: Sequence[Mapping[str, Any]], noun: str) -> str:
    looked = len(found["slices"])
    if not looked:
        count = plural(found["rows"], "test row is", "test rows are")
        return f"{count} too few, or too much alike, to be cut into slices."
    opening = f"The test rows were cut into {plural(looked, 'slice')} by what they have in common."
    if not bad:
        return (
            f"{opening} **None of them is wrong more often than chance explains.** That is no proof that all are "
            "alike: in a slice of few rows only a large difference would show."
        )
    shown = f" The {SHOWN} worst:" if len(bad) > SHOWN else ""
    return (
        f"{opening} **{len(bad)} of them {'is' if len(bad) == 1 else 'are'} wrong more often than chance explains.** "
        f"Read their errors below, and look whether the training data hold enough {noun}s like them.{shown}"
    )


def _sentence(line: Mapping[str, Any], noun: str) -> str:
    said = words(line, noun)
    share, low, high, others = _shares(line)
    return f"{escape(said[0].upper() + said[1:])}: **{share} right** ({low} to {high}), against {others} of the others."


def _cells(line: Mapping[str, Any], noun: str, plain: Any) -> tuple[str, ...]:
    share, low, high, others = _shares(line)
    said = words(line, noun)
    return plain(said[0].upper() + said[1:]), f"{line['rows']:,}", share, f"{low} to {high}", others, _chance(line["p"])


def _shares(line: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """The share that is right, the ends of its interval, and that of the others, in percent that this supports."""
    places = decimals((line["high"] - line["low"]) / 2) - 2
    values = (line["right"], line["low"], line["high"], line["others"])
    share, low, high, others = (f"{value:.{places}%}" if places else percent(value) for value in values)
    return share, low, high, others


def _chance(p: float) -> str:
    return "under 0.001" if p < 0.001 else f"{p:.2f}" if p >= 0.095 else f"{p:.3f}"


def _reading(found: Mapping[str, Any]) -> str:
    """What was done, for who wants to know."""
    if not found["slices"]:
        return f"A slice needs at least {slices.FEWEST} rows, and so do the others."
    grouped = (
        " Rows of one group are not independent: they count as as many rows as they are worth by how alike their "
        "groups are (design effect)."
        if found["grouped"]
        else " Each row counts by itself: where several come from one source, such as one person, name that column "
        "with `--report.group`."
    )
    return (
        f"A slice counts as worse where p is below {ALPHA:g}: Fisher's exact test of its rows against the others, "
        f"raised for all slices that were looked at (Holm), so that with no real difference at all at most 1 report in "
        f"{round(1 / ALPHA)} shows any. The intervals hold together with {1 - ALPHA:.0%} confidence "
        f"(Clopper-Pearson).{grouped} All slices stand in metrics.json."
    )


def _notes(found: Mapping[str, Any], reading: Reading) -> list[str]:
    """What is said of columns that were not looked at, or not value by value."""
    lines = []
    for column in found["columns"]:
        name, values, alone = escape(shorten(column["name"], LETTERS)), column["values"], column["alone"]
        if alone is None:
            lines.append(f"“{name}” has {values:,} different numbers or dates, which were cut into ranges.")
        elif not column["slices"]:
            lines.append(
                f"“{name}” was not looked at: of {plural(values, 'value')}, none is that of at least "
                f"{slices.FEWEST} rows and not of nearly all."
            )
        elif alone < values:
            lines.append(f"“{name}” has {plural(values, 'value')}; {values - alone:,} rarer ones were taken together.")
    where = "not in this copy of the run" if reading.run.get("rows_left_out") else "not in its table of measures"
    for name in found["missing"]:
        lines.append(f"“{escape(shorten(name, LETTERS))}”, which --report.slice names, is {where}: not looked at.")
    return [bullets(lines)] if lines else []


def _number(value: float) -> str:
    """A measure in three digits, more where it is whole."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"


def _drawing(lines: Sequence[Mapping[str, Any]], noun: str) -> str:
    """A line for each slice: its words, below them its share and interval, and the share of the others."""
    step, top, floor = 36, 14, 14 + 36 * len(lines)
    least = min(line["low"] for line in lines)
    axis = charts.Axes((np.floor(10 * least) / 10 if least < 0.95 else 0.9, 1.0), (0, 1))
    drawn = ""
    for value in charts.ticks(*axis.x)[0]:
        across = axis.across(value)
        drawn += charts.tag("path", d=f"M{across:.1f},{top}V{floor}", class_="grid")
        drawn += charts.text(f"{value:.0%}", across, floor + 16, "end quiet" if value == 1 else "middle quiet")
    described = []
    for place, line in enumerate(lines):
        down = top + step * place + 26
        share, low, high = (axis.across(line[name]) for name in ("right", "low", "high"))
        ends = f"M{low:.1f},{down}H{high:.1f}M{low:.1f},{down - 3}v6M{high:.1f},{down - 3}v6"
        drawn += charts.text(shorten(words(line, noun), 60), charts.LEFT, down - 11)
        drawn += charts.tag("path", d=ends, class_="first")
        drawn += charts.tag("circle", cx=share, cy=float(down), r=3.5, class_="first")
        drawn += charts.tag("circle", cx=axis.across(line["others"]), cy=float(down), r=4.5, class_="ring")
        described.append(f"{words(line, noun)}: {_shares(line)[0]}, others {_shares(line)[3]}")
    drawn += charts.tag("path", d=f"M{charts.LEFT},{floor}H{charts.WIDTH - charts.RIGHT}", class_="axis")
    title = "Share that is right, by slice"
    return charts.svg("slices", title, drawn, height=floor + 22, describe="; ".join(described))
