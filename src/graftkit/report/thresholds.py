"""Where should the line between a label and the others be drawn?

The model answers with the likeliest class. Who minds one kind of mistake more than the other draws the line elsewhere:
precision-recall and ROC curves on test show what that gives, and dev chooses a line for each class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape as escape_html
from typing import Any

import numpy as np

from graftkit.metrics import thresholds
from graftkit.report import charts
from graftkit.report.classification import FEW_GROUPS
from graftkit.report.html import Addition
from graftkit.report.markdown import decimals, escape, in_brackets, limit, number, percent, plural, shorten, table
from graftkit.report.reading import Reading
from graftkit.report.sections import look

NAME = "thresholds"
SHOWN = 40  # classes in the table
LINES = 6  # in a chart
POINTS = 150  # of a line that stands alone
POINTS_EACH = 40  # of one of several lines
LETTERS = 48  # of a class name below a chart


def measure(reading: Reading) -> dict[str, Any]:
    """Average precision and AUROC of each class against the rest, and what its threshold, chosen on dev, gives on test.

    Of two classes, only the rarer is looked at: the other is its mirror image. `classes` are in the order of the
    labels; where all test rows have a class, or none, its areas are None, and its threshold by the same rule of dev.
    """
    places, rarer_in, alike = _asked(reading)
    truth, predicted, _ = reading.arrays["test"]
    groups = reading.groups("test")
    columns = {split: np.ascontiguousarray(found[2].T) for split, found in reading.arrays.items()}  # (labels, rows)
    classes = []
    for place in places:
        having, stated = truth == place, columns["test"][place]
        curve = thresholds.curve(stated, having)
        areas = thresholds.intervals(curve, stated, having, groups) if curve else {}
        threshold = None
        if "dev" in columns:
            dev_curve = thresholds.curve(columns["dev"][place], reading.arrays["dev"][0] == place)
            threshold = thresholds.best_threshold(dev_curve) if dev_curve else None
        at = thresholds.at(stated >= threshold, having)._asdict() if curve and threshold is not None else None
        classes.append(
            {
                "label": reading.labels[place],
                "rows": int(having.sum()),
                **{name: asdict(areas[name]) if areas else None for name in thresholds.AREAS},
                "threshold": threshold,
                "at_threshold": at,
                "as_it_answers": thresholds.at(predicted == place, having)._asdict() if curve else None,
            }
        )
    return {
        "rows": len(truth),
        "groups": None if groups is None else len(np.unique(groups)),
        "rarer_in": rarer_in,
        "equally_frequent": alike,
        "classes": classes,
    }


def _asked(reading: Reading) -> tuple[Sequence[int], str | None, bool]:
    """The places of the labels that are looked at; of two, the rarer, the split in which it is, and if both are so."""
    if len(reading.labels) != 2:
        return range(len(reading.labels)), None, False
    recorded = look(reading.run, "data", "splits", "train", "classes") or {}
    if set(reading.labels) <= set(recorded):
        counts, split = [recorded[label] for label in reading.labels], "train"
    else:
        split = "dev" if "dev" in reading.arrays else "test"
        counts = np.bincount(reading.arrays[split][0], minlength=2).tolist()
    return [0 if counts[0] <= counts[1] else 1], split, counts[0] == counts[1]


# --- in words ------------------------------------------------------------------------------------


def chapter(found: Mapping[str, Any], reading: Reading) -> str:
    """The chapter in Markdown."""
    words = _of_many(found, "dev" in reading.arrays) if found["rarer_in"] is None else _of_two(found, reading)
    if found["groups"] is not None and found["groups"] < FEW_GROUPS and _weakest_first(found):
        words += (
            f"\n\n**Fewer than {FEW_GROUPS} groups are too few** ({found['groups']:,} here): the intervals in brackets "
            "may be narrower than they should be. Rows of other groups would help."
        )
    return words


_AREAS = (
    "Average precision is the mean precision over the rows that have the class, taken from the surest downwards; "
    "guessing gives the share of rows that have it. AUROC is how often a row with the class is given a higher "
    "probability than one without it; guessing gives 0.5."
)
_CHOSEN = (
    "The threshold is the one with the highest F1 on dev, which treats both kinds of mistake as equally bad; where few "
    "dev rows have the class, it is rough. Dev rows also chose which weights to keep; the scores are those of test, "
    "which chose nothing."
)
_NO_DEV = "No threshold is chosen: that takes dev rows, and an evaluation has none."


def _of_two(found: Mapping[str, Any], reading: Reading) -> str:
    (one,) = found["classes"]
    split, name = found["rarer_in"], escape(one["label"])
    other = escape(next(label for label in reading.labels if label != one["label"]))
    which = "the first of two equally frequent classes" if found["equally_frequent"] else "the rarer class"
    intro = (
        f"These are the scores of “{name}”, {which} in {split} ({one['rows']:,} of "
        f"{plural(found['rows'], 'test row')}); “{other}” is what is left. The model answers “{name}” where it is the "
        "likelier of the two. Where one kind of mistake costs more, answer it from another probability on."
    )
    if one["auroc"] is None:
        return f"{intro}\n\n{_untold(found['rows'], one['rows'])}"
    words = {"average_precision": "Average precision", "auroc": "AUROC"}
    areas = table(("Score", "Test (95% interval)"), [(words[key], in_brackets(one[key])) for key in words])
    parts = [intro, areas, _AREAS]
    if one["threshold"] is None:
        return "\n\n".join([*parts, _NO_DEV if "dev" not in reading.arrays else _NO_ROWS])
    without = found["rows"] - one["rows"]
    lines = [
        (words, *_shares(at, one["rows"]), number(at["f1"], 2), _of(at["given"] - at["right"], without))
        for words, at in (
            (f"at least {limit(one['threshold'])} (chosen on dev)", one["at_threshold"]),
            ("the likelier of the two (as the model answers)", one["as_it_answers"]),
        )
    ]
    header = (f"“{name}” is answered where its probability is", "Precision", "Recall", "F1", "False alarms")
    meaning = (
        f"Precision: of the rows called “{name}”, the share that is. Recall: of those that are, the share that is "
        f"called so. False alarms: of the rows that are “{other}”, the share that is called “{name}”."
    )
    return "\n\n".join([*parts, table(header, lines, numbers=range(1, 5)), meaning, _CHOSEN])


_NO_ROWS = "No threshold is chosen: that takes dev rows with the class and without it."


def _untold(rows: int, having: int) -> str:
    return f"{'All' if having == rows else 'None'} of the test rows have it, so no threshold can tell rows apart."


def _shares(at: Mapping[str, Any], having: int) -> tuple[str, str]:
    """Precision and recall as counts, so that few rows are seen to be few."""
    return _of(at["right"], at["given"]), _of(at["right"], having)


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({percent(part, whole)})" if whole else "no row"


def _of_many(found: Mapping[str, Any], has_dev: bool) -> str:
    told = _weakest_first(found)
    if not told:
        return "Of each class, all test rows have it, or none, so no threshold can tell rows apart."
    lines = []
    for one in told[:SHOWN]:
        at = one["at_threshold"]
        chosen = (limit(one["threshold"]), *_shares(at, one["rows"])) if at else ("–",) * 3
        areas = (in_brackets(one["average_precision"]), in_brackets(one["auroc"]))
        lines.append((escape(one["label"]), *areas, f"{one['rows']:,}", *(chosen if has_dev else ())))
    intro = (
        "How well do the probabilities of each class tell its rows from all others? Weakest first. To find a class "
        "more often, or to be surer of it, answer it from another probability on than where it is the likeliest."
    )
    header = ("Class", "Average precision (95% interval)", "AUROC (95% interval)", "Test rows")
    header += ("Threshold", "Precision at it", "Recall at it") if has_dev else ()
    parts = [intro, table(header, lines, numbers=range(3, len(header))), _AREAS, _CHOSEN if has_dev else _NO_DEV]
    if len(told) > SHOWN:
        parts.append(f"The {SHOWN} weakest of {len(told):,} classes are shown; metrics.json has all.")
    untold = len(found["classes"]) - len(told)
    if untold:
        left = plural(untold, "class is", "classes are")
        parts.append(f"{left} left out: all test rows have it, or none, so no threshold can tell rows apart.")
    return "\n\n".join(parts)


def _weakest_first(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    told = [one for one in found["classes"] if one["average_precision"] is not None]
    return sorted(told, key=lambda one: one["average_precision"]["value"])


# --- on the page ---------------------------------------------------------------------------------


def addition(found: Mapping[str, Any], reading: Reading) -> Addition | None:
    """The precision-recall and ROC curves on test: of the rarer of two classes, or of the weakest of many."""
    told = _weakest_first(found)[:LINES]
    if not told:
        return None
    truth, _, probabilities = reading.arrays["test"]
    curves = {}
    for one in told:
        place = reading.labels.index(one["label"])
        curve = thresholds.curve(probabilities[:, place], truth == place)
        if curve is not None:
            curves[one["label"]] = curve
    return Addition(f'<div class="charts">{"".join(_chart(kind, curves, told) for kind in _CHARTS)}</div>')


@dataclass(frozen=True)
class _Chart:
    id: str
    title: str
    across: str  # of `thresholds.Curve` and `thresholds.At`
    up: str
    meaning: str
    start: tuple[tuple[float, float], ...] = ()  # where lines begin, above all thresholds


_CHARTS = (
    _Chart(
        "precision-recall",
        "Precision and recall",
        "recall",
        "precision",
        "further right finds more of the rows that have it, further up is more often right",
    ),
    _Chart(
        "roc",
        "ROC curve",
        "false_alarms",
        "recall",
        "further up finds more of the rows that have it, further right raises more false alarms",
        start=((0.0, 0.0),),
    ),
)


def _chart(kind: _Chart, curves: Mapping[str, thresholds.Curve], told: Sequence[Mapping[str, Any]]) -> str:
    """One line for each class, with the numbers behind it; where there is one, the threshold of dev is ringed."""
    series, lines = [], []
    for (name, curve), dashes in zip(curves.items(), charts.KINDS, strict=False):
        across, up = getattr(curve, kind.across), getattr(curve, kind.up)
        kept = thresholds.thinned(across, up, POINTS if len(curves) == 1 else POINTS_EACH)
        points = [*kind.start, *zip(across[kept].tolist(), up[kept].tolist(), strict=True)]
        series.append(charts.Series(shorten(name, LETTERS), points, dashes, dots=len(points) == 1))
        cells = (
            _digits(getattr(curve, score)[kept], _rows_behind(curve, score)[kept]) for score in (kind.across, kind.up)
        )
        lines += zip([name] * len(kept), map(limit, curve.threshold[kept].tolist()), *cells, strict=True)
    marked, ring = None, ""
    if len(told) == 1 and told[0]["at_threshold"]:
        at = told[0]["at_threshold"]
        marked = (at[kind.across], at[kind.up], f"from {limit(told[0]['threshold'])}")
        ring = " The ring is the threshold chosen on dev."
    names = [name.replace("_", " ") for name in (kind.across, kind.up)]
    which = f"“{escape_html(told[0]['label'])}”" if len(told) == 1 else f"the {len(told)} weakest classes"
    caption = f"<b>{kind.title}</b> of {which} at every threshold, on test: {kind.meaning}.{ring}"
    words = "; ".join(f"{one.name}: {len(one.points)} points" for one in series)
    axes = charts.Axes((0.0, 1.0), (0.0, 1.0))
    drawing = charts.curves(
        kind.id, kind.title, series, axes, (names[0], names[1]), marked=marked, percents=True, describe=words
    )
    header = ("Class", "Threshold", *(name.capitalize() for name in names))
    return charts.figure(kind.id, caption, drawing, charts.table(kind.title, header, lines, [1, 2, 3]))


def _rows_behind(curve: thresholds.Curve, score: str) -> np.ndarray:
    """The rows that a score is a share of, at each point of the curve: (points,)."""
    given = curve.right + curve.wrong
    whole = {"precision": given, "recall": curve.right[-1], "false_alarms": curve.wrong[-1]}
    return np.broadcast_to(whole[score], given.shape)


def _digits(shares: np.ndarray, rows: np.ndarray) -> list[str]:
    """Shares of so many rows, (points,) each, with as many digits as these support."""
    halves = np.maximum(2 * np.sqrt(shares * (1 - shares) / rows), 1 / rows)
    return [number(share, decimals(half)) for share, half in zip(shares.tolist(), halves.tolist(), strict=True)]
