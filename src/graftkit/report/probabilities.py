"""Can the model's probabilities be believed, and what may be decided by them?

How often it is right when it says 80%, before and after calibration; sets of likely classes that hold the true one as
often as was asked; and from which probability on its answers may go out without a person looking at them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape as escape_html
from typing import Any

import numpy as np

from graftkit.metrics import calibration
from graftkit.metrics.classification import BINS, bin_of_row, calibration_error
from graftkit.metrics.intervals import LEVEL, clopper_pearson
from graftkit.metrics.thresholds import thinned
from graftkit.report import charts
from graftkit.report.html import Addition
from graftkit.report.markdown import (
    decimals,
    escape,
    in_brackets,
    limit,
    number,
    percent,
    plural,
    signed,
    table,
    with_sign,
)
from graftkit.report.reading import Reading
from graftkit.report.sections import is_evaluation, is_folds

NAME = "probabilities"
ALPHA = 0.1  # of runs that were made before it could be set
POINTS = 150  # of the risk-coverage curve
HARDLY = 0.01  # of log loss: a change of every probability by 1% of itself
FEW = 20  # rows, below which a share says little
SIZES = 8  # sizes of sets, above which they are told in ranges
SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.25)  # of rows answered, in the table


def measure(reading: Reading) -> dict[str, Any]:
    """Scores of the test probabilities, bins of the reliability diagram, sets, abstention, and the risk of answering.

    `sets` and `abstention` are chosen on dev; an evaluation has none, or those that the model's settings state.
    """
    truth, predicted, probabilities = reading.arrays["test"]
    chosen = _chosen(reading)
    alpha = chosen["alpha"] if chosen else float(reading.settings.get("alpha", ALPHA))
    return {
        "rows": len(truth),
        "alpha": alpha,
        **_scores(reading),
        "bins": [asdict(one) for one in bins(truth, predicted, probabilities, BINS)],
        "risk": _risk(calibration.risk_coverage(probabilities, predicted, truth), len(truth)),
        "sets": _sets(reading, chosen) if chosen and "set_threshold" in chosen else None,
        "abstention": _abstention(reading, chosen) if chosen and "abstain_below" in chosen else None,
    }


def bins(truth: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, count: int) -> list[charts.Bin]:
    """The rows in `count` equal bins by the probability of the predicted label, as the calibration error has them.

    Empty bins are left out.
    """
    stated = probabilities[np.arange(len(predicted)), predicted].astype(np.float64)
    place = bin_of_row(stated, count)
    found = []
    for one in np.unique(place).tolist():
        inside = place == one
        rows, right = int(inside.sum()), int((predicted == truth)[inside].sum())
        mean = float(stated[inside].mean())
        interval = clopper_pearson(right, rows)
        found.append(charts.Bin(one / count, (one + 1) / count, rows, mean, right / rows, *interval))
    return found


def _chosen(reading: Reading) -> dict[str, Any] | None:
    """The limits of sets and abstention: chosen on dev, or, in an evaluation, by the model's settings; None for none.

    The settings name them as `calibrate.describe` does. `source` is where they are from.
    """
    if "dev" in reading.arrays:
        truth, predicted, probabilities = reading.arrays["dev"]
        alpha = float(reading.settings.get("alpha", ALPHA))
        return {
            "source": "dev",
            "rows": len(truth),
            "alpha": alpha,
            "set_threshold": calibration.conformal_threshold(probabilities, truth, alpha),
            "abstain_below": calibration.abstention_threshold(probabilities, predicted, truth, alpha),
        }
    noted = reading.run.get("calibration") or {}
    if is_folds(reading.run) or not {"rows", "alpha"} <= noted.keys():
        return None
    names = ("rows", "alpha", "set_threshold", "abstain_below")
    return {"source": "settings"} | {name: noted[name] for name in names if name in noted}


def _scores(reading: Reading) -> dict[str, Any]:
    """Log loss and calibration error on test, now and before calibration, and how they changed."""
    truth, predicted, probabilities = reading.arrays["test"]
    temperature = (reading.run.get("calibration") or {}).get("temperature")
    stated = probabilities[np.arange(len(predicted)), predicted].astype(np.float64)
    found: dict[str, Any] = {
        "scores": _scored(reading, probabilities),
        "stated": float(stated.mean()),
        "right": float(np.mean(predicted == truth)),
        "temperature": temperature,
        "before": None,
        "change": None,
    }
    if temperature is not None:  # the table's logits were divided by it
        before = calibration.tempered(reading.logits("test"), 1 / temperature)
        change = calibration.log_loss_change(truth, before, probabilities, reading.groups("test"))
        found["before"] = _scored(reading, before)
        moved = found["scores"]["calibration_error"]["value"] - found["before"]["calibration_error"]["value"]
        found["change"] = {"log_loss": asdict(change), "calibration_error": {"value": moved}}
    return found


def _scored(reading: Reading, probabilities: np.ndarray) -> dict[str, Any]:
    """Scores of probabilities of the test rows; what chance makes of the calibration error where rows stand alone."""
    truth, predicted, _ = reading.arrays["test"]
    groups, by_chance = reading.groups("test"), None
    if groups is None:
        mean, most = calibration.calibration_by_chance(probabilities, predicted)
        by_chance = {"mean": mean, "most": most, "level": LEVEL}
    error = calibration_error(truth, predicted, probabilities)
    return {
        "log_loss": asdict(calibration.log_loss_interval(truth, probabilities, groups)),
        "calibration_error": {"value": error, "by_chance": by_chance},
    }


def _risk(curve: calibration.RiskCoverage, rows: int) -> dict[str, Any]:
    """The curve, thinned, from where at least `FEW` rows are answered: shares answered, wrong, and probabilities."""
    enough = curve.coverage * rows > min(FEW, rows) - 0.5
    coverage, risk, threshold = curve.coverage[enough], curve.risk[enough], curve.threshold[enough]
    kept = thinned(coverage, risk, POINTS)
    return {"area": curve.area, "points": np.stack([coverage, risk, threshold], axis=1)[kept].tolist()}


def _sets(reading: Reading, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Sets of likely classes: the threshold that was chosen, and how often and how large they are on test."""
    truth, _, probabilities = reading.arrays["test"]
    groups, threshold = reading.groups("test"), chosen["set_threshold"]
    found: dict[str, Any] = {"rows": chosen["rows"], "threshold": threshold, "source": chosen["source"]}
    if threshold is None:
        return found
    sets = calibration.prediction_sets(probabilities, threshold)
    held, sizes = sets[np.arange(len(truth)), truth], sets.sum(axis=1)
    rows_by_size, held_by_size = np.bincount(sizes), np.bincount(sizes, weights=held)
    return found | {
        "covered": asdict(calibration.share(held, groups)),
        "expected": list(calibration.coverage_by_chance(chosen["rows"], chosen["alpha"])) if groups is None else None,
        "mean_size": float(sizes.mean()),
        "single": float(np.mean(sizes == 1)),
        "sizes": [
            {"labels": int(size), "rows": int(rows_by_size[size]), "held": int(held_by_size[size])}
            for size in np.flatnonzero(rows_by_size)
        ],
        "weakest": _weakest(truth, held, reading.labels),
    }


def _weakest(truth: np.ndarray, held: np.ndarray, labels: Sequence[str]) -> dict[str, Any] | None:
    """Of the classes with at least `FEW` rows, that whose sets hold it least often; None where there is none."""
    rows = np.bincount(truth, minlength=len(labels))
    hits = np.bincount(truth, weights=held, minlength=len(labels))
    places = np.flatnonzero(rows >= FEW)
    if not len(places):
        return None
    place = places[(hits[places] / rows[places]).argmin()]
    return {"label": labels[place], "rows": int(rows[place]), "held": int(hits[place])}


def _abstention(reading: Reading, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The stated probability from which on to answer, as it was chosen, and what answering so gives on test."""
    threshold = chosen["abstain_below"]
    found: dict[str, Any] = {"rows": chosen["rows"], "threshold": threshold, "source": chosen["source"]}
    if threshold is None:
        return found
    truth, predicted, probabilities = reading.arrays["test"]
    groups = reading.groups("test")
    answered = probabilities[np.arange(len(predicted)), predicted] >= threshold
    of_answered = None if groups is None else groups[answered]
    wrong = calibration.share((predicted != truth)[answered], of_answered) if answered.any() else None
    return found | {
        "answered": asdict(calibration.share(answered, groups)),
        "wrong": asdict(wrong) if wrong else None,
    }


# --- in words ------------------------------------------------------------------------------------


def chapter(found: Mapping[str, Any], reading: Reading) -> str:
    """The chapter in Markdown."""
    parts = [
        "Where a model that says 80% is right in 80% of such rows, a probability can be used as it stands: to sort, to "
        "set a limit, to decide which rows a person should see.",
        _calibrated(found, reading),
        _scores_table(found),
        *([_change(found["change"]["log_loss"])] if found["change"] else []),
        _verdict(found, _alike(reading)),
        "### How often it is right, by how sure it is",
        table(_RELIABILITY, _reliability_lines(found["bins"]), numbers=[1, 2, 3]),
        *([f"The intervals are {_alike(reading)}."] if _alike(reading) else []),
        "### Sets of likely classes",
        _sets_words(found, _alike(reading)),
        "### When not to answer",
        _abstention_words(found, _alike(reading)),
        "If only the rows that it is surest of are answered:",
        table(_RISK, _risk_lines(found), numbers=[0, 1, 2]),
        f"On average over all shares, {_errors(found['risk']['area'], found['rows'])} of the answers are wrong (AURC, "
        "the area below this curve).",
    ]
    return "\n\n".join(parts)


def _alike(reading: Reading, escaped: Callable[[str], str] = escape) -> str | None:
    """What to say of a range that takes each row for itself where rows belong together; None where they do not."""
    if reading.groups("test") is None:
        return None
    column = reading.settings.get("group")
    one = "one group" if column is None else f"one “{escaped(column)}”"
    return f"taken row by row, so too strict: rows of {one} belong together"


def _calibrated(found: Mapping[str, Any], reading: Reading) -> str:
    """What was done so that the probabilities fit."""
    record = reading.run.get("calibration")
    if found["temperature"] is not None:
        warmer = found["temperature"] > 1
        when = " when it was made, by its settings," if is_evaluation(reading.run) else ""
        return (
            f"**Calibrated**{when} on {plural(record['rows'], 'dev row')}: what the last layer gives is divided by "
            f"{found['temperature']:.3g} (the temperature; Guo et al. 2017), which makes the model "
            f"{'less' if warmer else 'more'} sure of itself. It is part of the saved model. It changes no answer."
        )
    if is_folds(reading.run):
        return "Each fold's model was calibrated by itself, on its own dev rows, or was not: its report says so."
    if is_evaluation(reading.run):
        return "The model was scored as it came: nothing was calibrated here."
    if record is not None:
        return f"**Not calibrated**: {escape(str(record.get('reason') or 'no reason was recorded'))}."
    return (
        "**Not calibrated**: its probabilities are as training left them. “graft calibrate RUN”, with the folder of "
        "this run, fits one number on the dev rows and writes a new run whose probabilities should fit better."
    )


_SCORE_NAMES = {
    "calibration_error": ("Calibration error (ECE)", "how far stated probabilities are off on average: 0 is perfect"),
    "log_loss": ("Log loss", "price of being wrong and sure of it: 0 is perfect"),
}


def _scores_table(found: Mapping[str, Any]) -> str:
    lines = []
    for name, (words, meaning) in _SCORE_NAMES.items():
        cell, change = (_error_cell, _error_change) if name == "calibration_error" else (in_brackets, signed)
        earlier = [cell(found["before"][name]), change(found["change"][name])] if found["before"] else []
        lines.append((words, cell(found["scores"][name]), *earlier, meaning))
    earlier = ["Before calibration", "Change by calibration"] if found["before"] else []
    words = f"In brackets: {LEVEL:.0%} intervals"
    if found["scores"]["calibration_error"]["by_chance"]:
        words += "; for the calibration error, what chance alone may make of it"
    return table(("Score", "Test", *earlier, "What it says"), lines) + "\n\n" + words + "."


def _error_cell(error: Mapping[str, Any]) -> str:
    """A calibration error, beside what chance alone may make of it."""
    chance = error["by_chance"]
    if chance is None:
        return number(error["value"], 2)
    places = decimals(chance["most"] - chance["mean"])
    return f"{number(error['value'], places)} (by chance alone: up to {number(chance['most'], places)})"


def _error_change(change: Mapping[str, Any]) -> str:
    return with_sign(change["value"], 2 if abs(change["value"]) >= 0.01 else 3)


def _change(log_loss: Mapping[str, Any]) -> str:
    """Whether calibration made the probabilities better."""
    if log_loss["method"] == "constant" or log_loss["low"] <= 0 <= log_loss["high"]:
        return "By the log loss, these rows show no difference between the probabilities before and after calibration."
    if max(abs(log_loss["low"]), abs(log_loss["high"])) < HARDLY:
        return "By the log loss, calibration changed next to nothing here."
    if log_loss["high"] < 0:
        return "By the log loss, calibration made the probabilities better on these rows."
    return (
        "**By the log loss, calibration made the probabilities worse on these rows.** They may be unlike the dev rows."
    )


def _verdict(found: Mapping[str, Any], alike: str | None) -> str:
    """Whether the probabilities are further off than chance alone would have it, and on which side."""
    error, chance = (found["scores"]["calibration_error"][name] for name in ("value", "by_chance"))
    words = f"On average it states {percent(found['stated'])} and is right in {percent(found['right'])} of the rows."
    if chance is None:
        return f"{words} A verdict on whether that is more than chance makes would be {alike}. So none is given."
    places = decimals(chance["most"] - chance["mean"])
    sure = "surer than it is right" if found["stated"] > found["right"] else "less sure than it is right"
    words += (
        f" Chance alone makes some error: probabilities that were exactly right would show about "
        f"{number(chance['mean'], places)} on {plural(found['rows'], 'row')}, and up to "
        f"{number(chance['most'], places)} in 19 of 20 cases. The {number(error, places)} measured here is "
    )
    if error <= chance["most"]:
        return words + "no more than that: these rows show nothing wrong with the probabilities."
    return words + f"more than that: the probabilities are off, and on the whole the model is {sure}."


_RELIABILITY = ("Stated probability", "Rows", "On average", "Were right", "95% interval")


def _reliability_lines(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            f"{percent(one['low'])} to {percent(one['high'])}",
            f"{one['rows']:,}",
            percent(one["stated"]),
            percent(one["right"]),
            f"{percent(one['least'])} to {percent(one['most'])}",
        )
        for one in found
    ]


_NO_DEV = (
    "Not made: it is chosen on dev rows. An evaluation has none, and the model's settings name no limit. The report of "
    "a training run has it."
)


def _sets_words(found: Mapping[str, Any], alike: str | None) -> str:
    sets, wanted = found["sets"], _share_words(1 - found["alpha"])
    if sets is None:
        return _NO_DEV
    if sets["threshold"] is None:
        return (
            f"Not made: {plural(sets['rows'], 'dev row')} cannot make sets that hold the true class in {wanted} of "
            "rows. More dev rows, or a larger --report.alpha, would do."
        )
    intro = (
        f"Instead of one class, name every class that may be the true one: all with a probability of at least "
        f"{limit(sets['threshold'])}, and always the likeliest. {_source(sets)} "
        f"{plural(sets['rows'], 'dev row')} so that the set holds the true class in {wanted} of rows (split conformal "
        "prediction; --report.alpha sets the share)."
    )
    measured = (
        f"On test the sets hold it in **{_share_cell(sets['covered'])}** of rows, and have "
        f"{number(sets['mean_size'], 2)} classes on average; {percent(sets['single'])} are a single class."
    )
    if alike:
        measured += f" A range for what chance makes of it would be {alike}. So none is given."
    else:
        low, high = sets["expected"]
        measured += f" By so many dev rows, {percent(low)} to {percent(high)} is what to expect."
    if sets["covered"]["low"] > 1 - found["alpha"] and sets["single"] > 0.99:
        measured += " The single answer is right more often than was asked for, so sets have little to add."
    elif not alike and sets["covered"]["high"] < min(low, 1 - found["alpha"]):
        measured += " **It is less than was asked for**: the test rows are not like the dev rows."
    weakest = sets["weakest"]
    class_ = (
        f" (here the least covered class with {FEW} rows or more is “{escape(weakest['label'])}”: {weakest['held']:,} "
        f"of {weakest['rows']:,})"
        if weakest
        else ""
    )
    caveat = (
        "Dev rows also chose which weights to keep, and the temperature where there is one, so dev flatters the model "
        "a little: believe what was measured on test. It holds for rows of the same kind, over all rows together: "
        f"single classes may be covered less often{class_}."
    )
    header = ("Classes in the set", "Test rows", "Share of rows", "Hold the true class")
    lines = [
        (name, f"{rows:,}", percent(rows, found["rows"]), percent(held, rows)) for name, rows, held in _sizes(sets)
    ]
    return "\n\n".join([intro, measured, table(header, lines, numbers=[1, 2, 3]), caveat])


def _source(found: Mapping[str, Any]) -> str:
    """Where a limit is from, up to the number of dev rows."""
    if found["source"] == "settings":
        return "The limit comes from the model's settings: it was chosen, when the model was made, on"
    return "The limit was chosen on"


def _sizes(sets: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Rows and rows that hold the true class by size of the set; large ones in ranges where there are many sizes."""
    sizes = [(one["labels"], one["rows"], one["held"]) for one in sets["sizes"]]
    if len(sizes) <= SIZES:
        return [(f"{size:,}", rows, held) for size, rows, held in sizes]
    ends = [1, 2, 3, 4, 5, 10, 20, 50, 100, 1000, max(size for size, _, _ in sizes)]
    found = []
    for low, high in zip([0, *ends], ends, strict=False):
        inside = [(rows, held) for size, rows, held in sizes if low < size <= high]
        if inside:
            name = f"{high:,}" if high == low + 1 else f"{low + 1:,} to {high:,}"
            found.append((name, sum(rows for rows, _ in inside), sum(held for _, held in inside)))
    return found


def _abstention_words(found: Mapping[str, Any], alike: str | None) -> str:
    abstention, allowed = found["abstention"], _share_words(found["alpha"])
    if abstention is None:
        return _NO_DEV
    rows = plural(abstention["rows"], "dev row")
    if abstention["threshold"] is None:
        return (
            f"No limit makes sure that at most {allowed} of the answers are wrong: {rows} cannot show it, or even the "
            "surest answers are wrong too often. A person should look at all of them, or --report.alpha "
            "should allow more."
        )
    least, everything = limit(abstention["threshold"]), abstention["threshold"] == 0
    rule = (
        f"All rows may be answered: by {rows}, at most {allowed} of the answers are wrong"
        if everything
        else f"Answer where the stated probability is at least **{least}**, and give the other rows to a person: by "
        f"{rows}, at most {allowed} of the answers are then wrong"
    )
    rule += " (with 95% confidence; the lowest limit that holds, sought from the surest rows downwards)."
    if abstention["source"] == "settings":
        rule += " The limit comes from the model's settings."
    if abstention["wrong"] is None:
        return f"{rule} No test row is that sure, so nothing was measured."
    measured = (
        f"On test this answers **{_share_cell(abstention['answered'])}** of the rows, and "
        f"**{_share_cell(abstention['wrong'])}** of these answers are wrong"
        if not everything
        else f"On test **{_share_cell(abstention['wrong'])}** of the answers are wrong"
    )
    if not everything:
        measured += f"; answering all, {_errors(1 - found['right'], found['rows'])} would be"
    if abstention["wrong"]["low"] > found["alpha"]:
        why = "" if alike else ": the test rows are not like the dev rows"
        measured += f". **That is more than was asked for**{why}"
    words = f"{rule} {measured}. Here too dev flatters the model a little: believe what was measured on test."
    if alike:
        words += " The limit was chosen as if rows of a group were independent, so it promises too much."
    return words


_RISK = ("Rows answered", "Stated probability, at least", "Wrong answers among them")


def _risk_lines(found: Mapping[str, Any], every: bool = False) -> list[tuple[str, ...]]:
    """Lines of the curve: `every` point of it, or those nearest to `SHARES`, which decide how many digits are shown."""
    points, rows = found["risk"]["points"], found["rows"]
    nearest = [min(points, key=lambda point, share=share: abs(point[0] - share)) for share in SHARES]
    places = min(_places(risk, round(share * rows)) for share, risk, _ in nearest)
    shown = points if every else [point for place, point in enumerate(nearest) if point not in nearest[:place]]
    return [
        (f"{100 * share:.1f}%", limit(threshold), f"{100 * risk:.{places}f}%" if places else percent(risk))
        for share, risk, threshold in shown
    ]


def _share_cell(score: Mapping[str, Any]) -> str:
    """A share in percent with its interval, and as many digits as that supports."""
    if score["method"] == "constant":
        return _share_words(score["value"])
    places = max(0, decimals((score["high"] - score["low"]) / 2) - 2)
    value, low, high = (f"{100 * score[name]:.{places}f}%" for name in ("value", "low", "high"))
    return f"{value} ({score['level']:.0%} interval {low} to {high})"


def _errors(share: float, rows: int) -> str:
    """A share of wrong answers in percent, in as many digits as so many rows support: 8%, 0.7%."""
    return f"{100 * share:.{_places(share, rows)}f}%"


def _places(share: float, rows: int) -> int:
    """The digits after the point of a share in percent that so many rows support."""
    half = max(2 * (share * (1 - share) / rows) ** 0.5, 1 / rows)
    return max(0, decimals(half) - 2)


def _share_words(value: float) -> str:
    """A share in percent of three digits at most: 8.33%, 90%."""
    return "over 99.9%" if 0.9995 <= value < 1 else f"{100 * value:.3g}%"


# --- on the page ---------------------------------------------------------------------------------


def addition(found: Mapping[str, Any], reading: Reading) -> Addition:
    """The reliability diagram and the risk-coverage curve."""
    return Addition(
        f'<div class="charts">{_reliability(found, _alike(reading, escape_html))}{_risk_curve(found)}</div>'
    )


def _reliability(found: Mapping[str, Any], alike: str | None) -> str:
    lines, ones = _reliability_lines(found["bins"]), [charts.Bin(**one) for one in found["bins"]]
    numbers = charts.table("Reliability", _RELIABILITY, lines, [1, 2, 3])
    caption = (
        "<b>When it says 80%, is it right in 80%?</b> Test rows by the probability that the model gave its answer: "
        "below the dashed line it is too sure, above it not sure enough. Bars: 95% intervals (Clopper-Pearson)"
        f"{', ' + alike if alike else ''}."
    )
    words = "; ".join(
        f"stated {line[2]}, right {line[3]} of {plural(one.rows, 'row')}" for line, one in zip(lines, ones, strict=True)
    )
    drawing = charts.reliability("reliability", "Reliability diagram", ones, describe=words)
    return charts.figure("reliability", caption, drawing, numbers)


def _risk_curve(found: Mapping[str, Any]) -> str:
    points = [(share, risk) for share, risk, _ in found["risk"]["points"]]
    top = charts.around([0.0, max(risk for _, risk in points)], most=1.0)[1]
    abstention, marked = found["abstention"] or {}, None
    if abstention.get("wrong") and abstention["threshold"] > 0:
        share, risk = abstention["answered"]["value"], abstention["wrong"]["value"]
        if risk <= top:
            marked = (share, risk, f"from {limit(abstention['threshold'])}")
    start, end = points[0], points[-1]
    words = (
        f"Of the surest {_share_words(start[0])} of the rows {_errors(start[1], round(start[0] * found['rows']))} are "
        f"wrong; of {_share_words(end[0])}, {_errors(end[1], found['rows'])}."
    )
    series = [charts.Series("test", points, "first", dots=len(points) == 1)]
    axes = charts.Axes((0.0, 1.0), (0.0, top))
    names = ("rows answered", "wrong among them")
    drawing = charts.curves(
        "risk", "Risk and coverage", series, axes, names, marked=marked, percents=True, describe=words
    )
    ring = " The ring is the limit above." if marked else ""
    caption = (
        "<b>How many answers are wrong if only the surest are given?</b> Test rows, the surest first; the lower, the "
        f"better.{ring}"
    )
    numbers = charts.table("Risk and coverage", _RISK, _risk_lines(found, every=True), [0, 1, 2])
    return charts.figure("risk", caption, drawing, numbers)
