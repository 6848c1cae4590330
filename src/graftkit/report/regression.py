"""What does the report of a model that tells numbers say?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from graftkit.metrics import regression
from graftkit.report import charts, curves, rows
from graftkit.report.classification import content_of
from graftkit.report.html import Addition
from graftkit.report.markdown import escape, plural, table, with_sign
from graftkit.report.reading import Reading
from graftkit.report.sections import NOUNS, look

WORST = 20
FEW = 100  # test rows, below which a correlation says little
DRAWN = 2000  # points of the scatter, at most
TOWARDS_MEAN = 0.5  # share of the spread of the truth, below which the answers stay too near their mean
PERFECT = {
    "r2": "where 1 is perfect and 0 is what the mean of test gets",
    **dict.fromkeys(("pearson", "spearman"), "where 1 is perfect and 0 says nothing"),
}
MEANINGS = {
    "pearson": "how well the answers follow the truth along a straight line: 1 is perfect, 0 says nothing",
    "spearman": "how well they bring the rows into the right order: 1 is perfect, 0 says nothing",
    "rmse": "typical error in the unit of the number; large errors count more: 0 is perfect, lower is better",
    "mae": "mean size of the error in the unit of the number: 0 is perfect, lower is better",
    "r2": "share of the spread of the truth that the answers explain: 1 is perfect, 0 is always saying its mean",
    "loss": "what training lowers, squared error in units of train's spread: 1 is saying train's mean, 0 is perfect",
}


def measure(reading: Reading, split: str) -> dict[str, Any]:
    """All that metrics.json says of a split. UserError for an unknown headline."""
    records = reading.records[split]
    truth, given = regression.numbers(records)
    return rows.measure(reading, split, regression.SCORING, regression.HEADLINES) | {
        "within": {f"{share:g}": regression.within(records, share) for share in (0.5, 0.9)},
        "spread": {"truth": float(truth.std()), "prediction": float(given.std())},
        "by_truth": [asdict(part) for part in regression.by_truth(records)],
    }


def summary(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Three sentences: how good and against what, how far off in the number's own unit, and what to watch out for."""
    test = metrics["test"]
    perfect = PERFECT.get(test["headline"]["name"], "where 0 is perfect")
    half, most = (amount(test["within"][share], test) for share in ("0.5", "0.9"))
    sentences = [
        rows.opening(metrics, run, f"tells {_name(run)}", perfect=perfect),
        f"Half of the answers are within {half} of the truth, nine of ten within {most}.",
    ]
    if cautions := _cautions(test, run):
        sentences.append(f"**Watch out:** {'; '.join(cautions)}.")
    return " ".join(sentences)


def _name(run: Mapping[str, Any]) -> str:
    """What the number is called."""
    column = look(run, "data", "columns", "label")
    return f"“{escape(str(column))}”" if column else "a number"


def amount(value: float, test: Mapping[str, Any]) -> str:
    """A number in the unit of the label, in as many digits as its typical error leaves a meaning to."""
    places = charts.ticks(0, max(test["scores"]["rmse"], 1e-12), most=20)[1]
    return f"{round(value, places) + 0.0:,.{max(0, places)}f}"


def _cautions(test: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What makes these numbers worth less than they seem."""
    cautions = []
    if test["rows"] < FEW:
        cautions.append(f"test has only {plural(test['rows'], NOUNS[run['task']])}, so every score is rough")
    if test["scores"]["r2"] < 0:
        cautions.append("its errors are larger than those of always saying the mean")
    spread = test["spread"]
    if spread["prediction"] == 0:
        cautions.append("the model gives every row the same number")
    elif spread["prediction"] < TOWARDS_MEAN * spread["truth"]:
        share = spread["prediction"] / spread["truth"]
        cautions.append(
            f"its answers spread only {share:.0%} as far as the truth, so that small numbers come out too large and "
            "large ones too small"
        )
    if shared := look(run, "data", "overlaps", "test in train"):
        cautions.append(f"{plural(shared, 'test row also stands', 'test rows also stand')} in train")
    if cut := look(run, "lengths", "truncated_rows"):
        cautions.append(f"{plural(cut, 'text')} of train did not fit the model and lost the end")
    if run.get("warnings"):
        cautions.append(f"the run gave {plural(len(run['warnings']), 'warning')} (below)")
    return cautions


def worst(records: Sequence[Mapping[str, Any]], most: int = WORST) -> list[Mapping[str, Any]]:
    """The records of the largest errors, the largest first."""
    wrong = [record for record in records if record["loss"] > 0]
    return sorted(wrong, key=lambda record: -record["loss"])[:most]


def chapters(
    metrics: Mapping[str, Any],
    run: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    kept: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """The report's chapters on numbers, by heading; `shown` are the worst records, and `kept` their rows by id."""
    test = metrics["test"]
    return {
        "Scores": rows.scores(metrics, run, MEANINGS),
        "Small and large numbers": _by_truth(test, run),
        f"Largest errors of {NOUNS[run['task']]}s": _largest(test, run, shown, kept),
    }


def _by_truth(test: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Errors by tenths of the truth."""
    header = (f"True {_name(run)}", "Rows", "Mean truth", "Mean answer", "Mean error", "Half are within")
    intro = (
        "Test rows by their true number, the smallest first, in parts of about as many rows each. Mean error: above 0 "
        "the model says too much, below 0 too little. Often the smallest come out too large and the largest too small: "
        "where texts leave it open, a number near the mean is the safest."
    )
    return f"{intro}\n\n{table(header, _lines(test), numbers=range(1, 6))}"


def _lines(test: Mapping[str, Any]) -> list[tuple[str, ...]]:
    lines = []
    for part in test["by_truth"]:
        low, high, truth, given, half = (
            amount(part[name], test) for name in ("low", "high", "truth", "given", "median_error")
        )
        error = with_sign(part["error"], len(truth.partition(".")[2]))
        lines.append((low if low == high else f"{low} to {high}", f"{part['rows']:,}", truth, given, error, half))
    return lines


def _largest(
    test: Mapping[str, Any],
    run: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    kept: Mapping[str, Mapping[str, Any]],
) -> str:
    if not shown:
        return "None: all test rows were given the right number."
    intro = (
        "The largest error comes first. Where the answer looks better than the truth, look whether the data is right."
    )
    lines = [
        (
            content_of(kept.get(record["id"], {})),
            amount(record["label"], test),
            amount(record["prediction"], test),
            escape(record["id"]),
        )
        for record in shown
    ]
    header = (NOUNS[run["task"]].capitalize(), f"True {_name(run)}", "Answer", "Row")
    return f"{intro}\n\n{table(header, lines, numbers=[1, 2])}"


def additions(
    metrics: Mapping[str, Any],
    reading: Reading,
    kept: Mapping[str, Mapping[str, Any]],
    log: Sequence[Mapping[str, Any]],
) -> dict[str, Addition]:
    """What the page shows besides: curves of training, and each answer against its truth."""
    drawn = f'<div class="charts">{_scatter(metrics["test"], reading)}</div>'
    return curves.additions(metrics, reading.run, log) | {"Small and large numbers": Addition(drawn)}


def _scatter(test: Mapping[str, Any], reading: Reading) -> str:
    """Each answer against its truth; of many rows, every n-th."""
    truth, given = regression.numbers(reading.records["test"])
    each = -(-len(truth) // DRAWN)
    ends = charts.around([*truth.tolist(), *given.tolist()])
    points = list(zip(truth[::each].tolist(), given[::each].tolist(), strict=True))
    words = "Answers against the truth"
    describe = f"Of {plural(len(truth), 'row')}; " + "; ".join(
        f"of true {line[0]} the mean answer is {line[3]}" for line in _lines(test)
    )
    axes = charts.Axes(ends, ends, charts.HEIGHT + 60)
    drawing = charts.scatter("answers", words, points, axes, ("truth", "answer"), describe=describe)
    some = f", one of {each} rows" if each > 1 else ""
    caption = f"<b>{words}</b>{some}: on the line, both are the same; above it, the answer is too large."
    header = ("Truth", "Rows", "Mean truth", "Mean answer", "Mean error", "Half are within")
    return charts.figure("answers", caption, drawing, charts.table(words, header, _lines(test), range(1, 6)))
