"""How did it learn?

Loss and score while training, whatever the task: the lines that stand in log.jsonl.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from graftkit.report import charts
from graftkit.report.html import Addition
from graftkit.report.markdown import decimals, number, title
from graftkit.report.sections import look

POINTS = 150  # of a curve
CUT = 1.5  # times the first loss, where the curve of rising rates ends


def additions(
    metrics: Mapping[str, Any], run: Mapping[str, Any], log: Sequence[Mapping[str, Any]]
) -> dict[str, Addition]:
    """Curves for the chapter on training; nothing where `log`, the events of training, has too few."""
    drawn = _rates(run) + _loss(log) + _score(metrics, run, log)
    if not drawn:
        return {}
    return {"Model and training": Addition(f'<h3>How it learnt</h3><div class="charts">{drawn}</div>')}


def _loss(log: Sequence[Mapping[str, Any]]) -> str:
    """The loss on train by update, and on dev where it was measured."""
    steps = [(event["update"], event["loss"]) for event in log if event.get("loss") is not None]
    if len(steps) < 2:
        return ""
    each = -(-len(steps) // POINTS)  # updates a point
    train = [tuple(np.mean(steps[start : start + each], axis=0).tolist()) for start in range(0, len(steps), each)]
    dev = _thinned([(event["update"], loss) for event in log if (loss := _dev_loss(event.get("dev", {}))) is not None])
    most = max(loss for _, loss in train + dev)
    axes = charts.Axes((0, steps[-1][0]), (0, charts.around([0, most or 1.0])[1]))
    series = [charts.Series("train", train, "first")]
    series += [charts.Series("dev", dev, "second", dots=True)] if dev else []
    drawing = charts.curves("loss", "Loss while training", series, axes, ("update", "loss"), describe=_course(series))
    mean = f"; each point of train is the mean of {each} updates" if each > 1 else ""
    caption = (
        f"<b>Loss</b>, lower is better{mean}. Train is measured while the weights still change, with whatever "
        "training does to its rows; dev is not."
        if dev
        else f"<b>Loss on train</b>, lower is better{mean}."
    )
    lines = [(f"{update:,.0f}", one.name, f"{loss:.3g}") for one in series for update, loss in one.points]
    numbers = charts.table("Loss while training", ("Update", "Split", "Loss"), lines, [0, 2])
    return charts.figure("loss", caption, drawing, numbers)


def _rates(run: Mapping[str, Any]) -> str:
    """The loss at rates that rise, where the learning rate was found so; nothing where it was set."""
    found = run.get("rate_range")
    if not found:
        return ""
    tried = list(zip(found["rates"], found["smoothed"], strict=True))
    most = CUT * tried[0][1]
    shown = [(math.log10(rate), loss) for rate, loss in takewhile(lambda point: point[1] <= most, tried)]
    across = (math.floor(shown[0][0]), math.ceil(shown[-1][0]))
    axes = charts.Axes(across, charts.around([loss for _, loss in shown]))
    taken = min(shown, key=lambda point: abs(point[0] - math.log10(found["lr"])))
    drawing = charts.curves(
        "rates",
        "Loss at rising learning rates",
        [charts.Series("train", shown, "first")],
        axes,
        ("learning rate", "loss"),
        marked=(*taken, "taken"),
        powers=True,
        describe=f"the rate {found['lr']:g} is taken, before the loss is least and rises",
    )
    caption = (
        f"<b>Which learning rate?</b> {found['lr']:g}: before training, the rate rose from update to update, and "
        "then the weights were put back. The loss, a running mean here, falls once the rate is high enough, and rises "
        f"once it is too high; the rate taken lies well before. Curves beyond {CUT:g} times the first loss are cut."
    )
    lines = [
        (f"{rate:.2g}", f"{loss:.3g}", f"{mean:.3g}")
        for rate, loss, mean in zip(found["rates"], found["losses"], found["smoothed"], strict=True)
    ]
    numbers = charts.table("Loss at rising learning rates", ("Rate", "Loss", "Running mean"), lines, [0, 1, 2])
    return charts.figure("rates", caption, drawing, numbers)


def _dev_loss(scores: Mapping[str, float]) -> float | None:
    """The loss per target, under one of the names that it is scored by."""
    return next((scores[name] for name in ("log_loss", "loss") if name in scores), None)


def _score(metrics: Mapping[str, Any], run: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> str:
    """The headline on dev by epoch, with the epoch whose weights are kept."""
    name = metrics["test"]["headline"]["name"]
    found = [(event["update"], event["dev"][name]) for event in log if name in event.get("dev", {})]
    if len(found) < 2:
        return ""
    updates, epochs = look(run, "training", "updates"), look(run, "training", "epochs")
    each, unit = (updates / epochs, "epoch") if updates and epochs else (1, "update")
    kept = look(run, "training", "best", "update")
    points = [(update / each, score) for update, score in _thinned(found, keep=kept)]
    lower = metrics["test"]["headline"].get("lower_is_better", False)
    values = [score for _, score in points]
    low, high = charts.around(values, most=1.0 if max(values) <= 1 else math.inf)
    axes = charts.Axes((0, max(x for x, _ in points)), (low, high))
    word = "best" if run.get("soup") or run.get("wise_ft") else "kept"  # other weights are kept than those of an epoch
    marked = next(((x, y, word) for x, y in points if kept is not None and abs(x * each - kept) < 0.5), None)
    series = [charts.Series("dev", points, "first", dots=True)]
    words, places = f"{title(name)} on dev", decimals(metrics["dev"]["rows"] ** -0.5)
    drawing = charts.curves(
        "score", words, series, axes, (unit, title(name)), marked=marked, describe=_course(series, places)
    )
    best = "lower" if lower else "higher"
    caption = f"<b>{title(name)} on dev</b> by {unit}, {best} is better; the scale starts at {low:g}."
    lines = [
        (f"{x:,.4g}" + (f" ({word})" if marked and x == marked[0] else ""), number(score, places))
        for x, score in points
    ]
    numbers = charts.table(words, (unit.capitalize(), title(name)), lines, [1])
    return charts.figure("score", caption, drawing, numbers)


def _thinned(points: Sequence[tuple[float, float]], keep: float | None = None) -> list[tuple[float, float]]:
    """At most about `POINTS` of the points, the last and that at `keep` among them."""
    each, last = -(-len(points) // POINTS) or 1, len(points) - 1
    return [point for place, point in enumerate(points) if place % each == 0 or place == last or point[0] == keep]


def _course(series: Sequence[charts.Series], places: int = 2) -> str:
    """Where lines start and end, in words."""
    return "; ".join(
        f"{one.name} goes from {number(one.points[0][1], places)} to {number(one.points[-1][1], places)}"
        for one in series
    )
