"""Can the model's probabilities be believed, and what may be decided by them?

How often it is right when it says 80%, before and after calibration; sets of likely classes that hold the true one as
often as was asked; and from which probability on its answers may go out without a person looking at them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from graftkit.metrics import calibration
from graftkit.metrics.classification import BINS, bin_of_row
from graftkit.metrics.intervals import LEVEL, clopper_pearson
from graftkit.metrics.thresholds import thinned
from graftkit.report import charts
from graftkit.report.html import Addition
from graftkit.report.markdown import decimals, escape, in_brackets, limit, number, percent, plural, table
from graftkit.report.reading import Reading
from graftkit.report.sections import is_evaluation, is_folds

NAME = "probabilities"
ALPHA = 0.1  # of runs that were made before it could be set
POINTS = 150  # of the risk-coverage curve
FEW = 20  # rows, below which a share says little
SIZES = 8  # sizes of sets, above which they are told in ranges
SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.25)  # of rows answered, in the table


def measure(reading: Reading) -> dict[str, Any]:
    """Scores of the test probabilities, bins of the reliability diagram, sets, abstention, and the risk of answering.

    `sets` and `abstention` are chosen on dev, so an evaluation has none.
    """
    truth, predicted, probabilities = reading.arrays["test"]
    alpha = float(reading.settings.get("alpha", ALPHA))
    return {
        "rows": len(truth),
        "alpha": alpha,
        **_scores(reading),
        "bins": [asdict(one) for one in bins(truth, predicted, probabilities, BINS)],
        "risk": _risk(calibration.risk_coverage(probabilities, predicted, truth), len(truth)),
        "sets": _sets(reading, alpha) if "dev" in reading.arrays else None,
        "abstention": _abstention(reading, alpha) if "dev" in reading.arrays else None,
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


def _scores(reading: Reading) -> dict[str, Any]:
    """Log loss and calibration error on test, now and before calibration, and how they changed."""
    truth, predicted, probabilities = reading.arrays["test"]
    groups = reading.groups("test")
    temperature = (reading.run.get("calibration") or {}).get("temperature")
    now = calibration.intervals(truth, predicted, probabilities, groups)
    by_chance, at_most = calibration.calibration_by_chance(probabilities, predicted)
    stated = probabilities[np.arange(len(predicted)), predicted].astype(np.float64)
    found: dict[str, Any] = {
        "scores": {name: asdict(interval) for name, interval in now.items()},
        "by_chance": {"mean": by_chance, "most": at_most, "level": LEVEL},
        "stated": float(stated.mean()),
        "right": float(np.mean(predicted == truth)),
        "temperature": temperature,
        "before": None,
        "change": None,
    }
    if temperature is not None:  # the table's logits were divided by it
        before = calibration.tempered(reading.logits("test"), 1 / temperature)
        was = calibration.intervals(truth, predicted, before, groups)
        change = calibration.changes(truth, predicted, before, probabilities, groups)
        found["before"] = {name: asdict(interval) for name, interval in was.items()}
        found["change"] = {name: asdict(interval) for name, interval in change.items()}
    return found


def _risk(curve: calibration.RiskCoverage, rows: int) -> dict[str, Any]:
    """The curve, thinned, from where at least `FEW` rows are answered: shares answered, wrong, and probabilities."""
    enough = curve.coverage * rows > min(FEW, rows) - 0.5
    coverage, risk, threshold = curve.coverage[enough], curve.risk[enough], curve.threshold[enough]
    kept = thinned(coverage, risk, POINTS)
    return {"area": curve.area, "points": np.stack([coverage, risk, threshold], axis=1)[kept].tolist()}


def _sets(reading: Reading, alpha: float) -> dict[str, Any]:
    """Sets of likely classes: the threshold from dev, and how often and how large they are on test."""
    (dev_truth, _, dev_probabilities), (truth, _, probabilities) = (reading.arrays[name] for name in ("dev", "test"))
    threshold = calibration.conformal_threshold(dev_probabilities, dev_truth, alpha)
    found: dict[str, Any] = {"rows": len(dev_truth), "threshold": threshold}
    if threshold is None:
        return found
    sets = calibration.prediction_sets(probabilities, threshold)
    held, sizes = sets[np.arange(len(truth)), truth], sets.sum(axis=1)
    rows_by_size, held_by_size = np.bincount(sizes), np.bincount(sizes, weights=held)
    return found | {
        "covered": asdict(calibration.share(held, reading.groups("test"))),
        "expected": list(calibration.coverage_by_chance(len(dev_truth), alpha)),
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


def _abstention(reading: Reading, alpha: float) -> dict[str, Any]:
    """The stated probability from which on to answer, by dev, and what answering so gives on test."""
    (dev_truth, dev_predicted, dev_probabilities) = reading.arrays["dev"]
    threshold = calibration.abstention_threshold(dev_probabilities, dev_predicted, dev_truth, alpha)
    found: dict[str, Any] = {"rows": len(dev_truth), "threshold": threshold}
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
        _verdict(found),
        "### How often it is right, by how sure it is",
        table(_RELIABILITY, _reliability_lines(found["bins"]), numbers=[1, 2, 3]),
        "### Sets of likely classes",
        _sets_words(found),
        "### When not to answer",
        _abstention_words(found, reading.groups("test") is not None),
        "If only the rows that it is surest of are answered:",
        table(_RISK, _risk_lines(found), numbers=[0, 1, 2]),
        f"On average over all shares, {_errors(found['risk']['area'], found['rows'])} of the answers are wrong (AURC, "
        "the area below this curve).",
    ]
    return "\n\n".join(parts)


def _calibrated(found: Mapping[str, Any], reading: Reading) -> str:
    """What was done so that the probabilities fit."""
    record = reading.run.get("calibration")
    if found["temperature"] is not None:
        warmer = found["temperature"] > 1
        return (
            f"**Calibrated** on {plural(record['rows'], 'dev row')}: what the last layer gives is divided by "
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
        "this run, fits one number on the dev rows and writes a new run whose probabilities fit better."
    )


_SCORE_NAMES = {
    "calibration_error": ("Calibration error (ECE)", "how far stated probabilities are off on average: 0 is perfect"),
    "log_loss": ("Log loss", "price of being wrong and sure of it: 0 is perfect"),
}


def _scores_table(found: Mapping[str, Any]) -> str:
    lines = []
    for name, (words, meaning) in _SCORE_NAMES.items():
        earlier = [in_brackets(found[part][name]) for part in ("before", "change")] if found["before"] else []
        lines.append((words, in_brackets(found["scores"][name]), *earlier, meaning))
    interval = f"({LEVEL:.0%} interval)"
    earlier = [f"Before calibration {interval}", f"Change {interval}"] if found["before"] else []
    return table(("Score", f"Test {interval}", *earlier, "What it says"), lines)


def _verdict(found: Mapping[str, Any]) -> str:
    """Whether the probabilities are further off than chance alone would have it, and on which side."""
    error, chance = found["scores"]["calibration_error"]["value"], found["by_chance"]
    places = decimals(chance["most"] - chance["mean"])
    sure = "surer than it is right" if found["stated"] > found["right"] else "less sure than it is right"
    words = (
        f"On average it states {percent(found['stated'])} and is right in {percent(found['right'])} of the rows. "
        f"Chance alone makes some error: probabilities that were exactly right would show about "
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


_NO_DEV = "Not made: it is chosen on dev rows, and an evaluation has none. The report of a training run has it."


def _sets_words(found: Mapping[str, Any]) -> str:
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
        f"{limit(sets['threshold'])}, and always the likeliest. The limit was chosen on "
        f"{plural(sets['rows'], 'dev row')} so that the set holds the true class in {wanted} of rows (split conformal "
        "prediction; --report.alpha sets the share)."
    )
    low, high = sets["expected"]
    measured = (
        f"On test the sets hold it in **{_share_cell(sets['covered'])}** of rows, and have "
        f"{number(sets['mean_size'], 2)} classes on average; {percent(sets['single'])} are a single class. By so many "
        f"dev rows, {percent(low)} to {percent(high)} is what to expect."
    )
    if sets["covered"]["low"] > 1 - found["alpha"] and sets["single"] > 0.99:
        measured += " The single answer is right more often than was asked for, so sets have little to add."
    elif sets["covered"]["high"] < min(low, 1 - found["alpha"]):
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


def _abstention_words(found: Mapping[str, Any], grouped: bool) -> str:
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
        measured += ". **That is more than was asked for**: the test rows are not like the dev rows"
    alike = " The limit was chosen as if rows of a group were independent, so it promises too much." if grouped else ""
    return f"{rule} {measured}. Here too dev flatters the model a little: believe what was measured on test.{alike}"


_RISK = ("Rows answered", "Stated probability, at least", "Wrong answers among them")


def _risk_lines(found: Mapping[str, Any], points: Sequence[Sequence[float]] | None = None) -> list[tuple[str, ...]]:
    """Lines of the curve: all of `points`, or those nearest to `SHARES`."""
    every = found["risk"]["points"]
    if points is None:
        nearest = [min(every, key=lambda point, share=share: abs(point[0] - share)) for share in SHARES]
        points = [point for place, point in enumerate(nearest) if point not in nearest[:place]]
    rows = found["rows"]
    return [
        (_share_words(share), limit(threshold), _errors(risk, round(share * rows))) for share, risk, threshold in points
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
    half = max(2 * (share * (1 - share) / rows) ** 0.5, 1 / rows)
    return f"{100 * share:.{max(0, decimals(half) - 2)}f}%"


def _share_words(value: float) -> str:
    """A share in percent of three digits at most: 8.33%, 90%."""
    return "over 99.9%" if 0.9995 <= value < 1 else f"{100 * value:.3g}%"


# --- on the page ---------------------------------------------------------------------------------


def addition(found: Mapping[str, Any], reading: Reading) -> Addition:
    """The reliability diagram and the risk-coverage curve."""
    return Addition(f'<div class="charts">{_reliability(found)}{_risk_curve(found)}</div>')


def _reliability(found: Mapping[str, Any]) -> str:
    lines, ones = _reliability_lines(found["bins"]), [charts.Bin(**one) for one in found["bins"]]
    numbers = charts.table("Reliability", _RELIABILITY, lines, [1, 2, 3])
    caption = (
        "<b>When it says 80%, is it right in 80%?</b> Test rows by the probability that the model gave its answer: "
        "below the dashed line it is too sure, above it not sure enough. Bars: 95% intervals (Clopper-Pearson)."
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
    ring = " The ring is the limit chosen on dev." if marked else ""
    caption = (
        "<b>How many answers are wrong if only the surest are given?</b> Test rows, the surest first; the lower, the "
        f"better.{ring}"
    )
    numbers = charts.table("Risk and coverage", _RISK, _risk_lines(found, found["risk"]["points"]), [0, 1, 2])
    return charts.figure("risk", caption, drawing, numbers)
