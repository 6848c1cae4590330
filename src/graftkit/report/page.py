"""What do we tell people of a run?

`write_report` reads what the run left in its folder and nothing else, so a report can be made again at any time, and
`metrics.json` follows from the tables of predictions and the headline alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graftkit.errors import UserError
from graftkit.metrics import classification as classes
from graftkit.metrics import multi_label as label_sets
from graftkit.metrics import regression as numbers
from graftkit.metrics import tagging as tags
from graftkit.metrics.answers import SCORING as ANSWERS
from graftkit.metrics.generation import SCORING as WRITING
from graftkit.metrics.language import CAUSAL, MASKED
from graftkit.metrics.sums import Scoring, score
from graftkit.report import (
    answers,
    audit,
    baselines,
    classification,
    error_browser,
    explanations,
    figures,
    filled_gaps,
    folds,
    hard_words,
    html,
    language,
    masked_language,
    multi_label,
    pictures,
    probabilities,
    regression,
    sections,
    seeds,
    sequence_to_sequence,
    simple_tags,
    slices,
    tagging,
    thresholds,
)
from graftkit.report.markdown import decimals, plural, title, told, with_interval
from graftkit.report.reading import CLASSIFIERS, SPLITS, Reading, read_folder, read_run
from graftkit.report.simple_rows import SimpleRows
from graftkit.report.tables import read_rows, written_aside

TASKS: dict[str, Any] = {
    **dict.fromkeys(CLASSIFIERS, classification),
    "token-classification": tagging,
    "multi-label-classification": multi_label,
    "text-regression": regression,
    "question-answering": answers,
    "text-generation": language,
    "text2text-generation": sequence_to_sequence,
    "fill-mask": masked_language,
}
"""For each task, the module that says what its report says: `measure`, `summary`, `worst` and `chapters`; and
`additions`, what its page shows besides, where `FIGURES` names no other module for that."""

FIGURES = dict.fromkeys(CLASSIFIERS, figures)


def _over(score: Callable[[Sequence[Mapping[str, Any]], Sequence[str]], Mapping[str, float]]) -> dict[str, Any]:
    """The chapters on several runs, of a task whose records `score` gives all scores of: of records and labels."""
    return {"Over seeds": seeds, "Over folds": folds.Folds(score)}


def _over_sums(scoring: Scoring) -> dict[str, Any]:
    return _over(lambda records, labels: score(scoring, records))


PARTS: dict[str, dict[str, Any]] = {
    name: {
        "Against simple answers": baselines,
        "Can its probabilities be believed?": probabilities,
        "Thresholds": thresholds,
        "Where it fails more often": slices,
        "Why did it say that?": explanations,
        "Are the labels right?": audit,
        **_over(classes.score_records),
    }
    for name in CLASSIFIERS
} | {
    "token-classification": {"Against simple answers": simple_tags, **_over(tags.score_records)},
    "multi-label-classification": {
        "Against simple answers": multi_label.SimpleSets(),
        **_over(label_sets.scores),
    },
    "text-regression": {
        "Against simple answers": SimpleRows(numbers.SCORING, numbers.HEADLINES[0]),
        **_over_sums(numbers.SCORING),
    },
    "question-answering": {"Against simple answers": SimpleRows(ANSWERS, "f1"), **_over_sums(ANSWERS)},
    "text-generation": {"Against simple answers": SimpleRows(CAUSAL, "perplexity", "loss"), **_over_sums(CAUSAL)},
    "text2text-generation": {
        "Against simple answers": sequence_to_sequence.SimpleTexts(WRITING, sequence_to_sequence.REPORTED[0]),
        **_over_sums(WRITING),
    },
    "fill-mask": {
        "Against simple answers": SimpleRows(MASKED, "perplexity", "loss"),
        "Filled gaps": filled_gaps,
        "Words that it fills in badly": hard_words,
        **_over_sums(MASKED),
    },
}
"""For each task, by the heading of its chapter, the modules that measure and tell something more of a run.

Each has `NAME`, under which metrics.json holds what it measured; `measure(reading)`, which returns that as plain JSON,
or None where the run has not what it needs; `chapter(found, reading)`, its Markdown; and `addition(found, reading)`,
what the page shows besides, or None. `found` is what `measure` returned, never None for `addition`.
"""


def write_report(folder: Path) -> dict[str, Any]:
    """Write metrics.json, report.md and report.html of the run in `folder`, pictures in report/; returns the metrics.

    Raises UserError where run.json, the log or a table is missing or broken, or the task or the headline is unknown.
    """
    folder = Path(folder)
    run = read_run(folder)
    task = TASKS.get(run.get("task"))
    if task is None:
        raise UserError(f"{folder / 'run.json'}: no report for the task {run.get('task')!r}; known: {', '.join(TASKS)}")
    if "seeds" in run:
        return _write_over_seeds(Reading(folder, run, run["labels"], {}), task)
    reading = read_folder(folder, ("test",) if sections.is_evaluation(run) else SPLITS)
    metrics = {split: task.measure(reading, split) for split in reading.records}
    parts = PARTS[run["task"]]
    metrics |= {part.NAME: found for part in parts.values() if (found := part.measure(reading)) is not None}
    worst = task.worst(reading.records["test"])
    ids = [record["id"] for record in task.worst(reading.records["test"], error_browser.MOST)]
    kept = {} if run.get("rows_left_out") else {row["id"]: row for row in read_rows(folder, "test", ids)}
    rows = {record["id"]: kept[record["id"]] for record in worst if record["id"] in kept}
    scored = task.chapters(metrics, run, worst, rows)
    last = scored.popitem()  # the errors
    alone = sections.is_evaluation(run) and not sections.is_folds(run)  # a model that was there before
    chapters = {
        "Data": sections.data(run),
        "Warnings and notes": sections.remarks(run),
        "Model" if alone else "Model and training": sections.model(run),
        **scored,
        **_told(parts, metrics, reading),
        last[0]: last[1],
        "Time and memory": sections.costs(run),
        **({} if sections.is_evaluation(run) else {"Load the model": sections.loading(run)}),
        "How this was made": sections.origin(run, _read_config(folder)),
    }
    heading, summary = sections.heading(run), task.summary(metrics, run)
    page = [f"# {heading}", summary, *(f"## {name}\n\n{body}" for name, body in chapters.items())]
    log = [] if sections.is_evaluation(run) else _read_log(folder)
    added = FIGURES.get(run["task"], task).additions(metrics, reading, kept, log)
    added |= _additions(parts, metrics, reading)
    _write(folder / "metrics.json", _json(metrics))
    pictures.replace(folder, pictures.files(worst, rows))
    _write(folder / "report.md", "\n\n".join(page))
    _write(folder / "report.html", html.page(heading, summary, chapters, added))
    return metrics


def measure_split(folder: Path, split: str) -> dict[str, Any]:
    """What metrics.json says of a split of a run, whether there is another one or not."""
    return TASKS[read_run(folder)["task"]].measure(read_folder(folder, (split,)), split)


def _write_over_seeds(reading: Reading, task: Any) -> dict[str, Any]:
    """The report of a folder that holds a run for each seed."""
    folder, run = reading.folder, reading.run
    found = seeds.gather(reading, task, PARTS[run["task"]].get("Against simple answers"))
    chapters = {
        "Over seeds": seeds.chapter(found, reading),
        "Rows that change with the seed": seeds.disagreements(found, reading),
        "Data": sections.data(run),
        "Warnings and notes": sections.remarks(run),
        "Model and training": sections.model(run),
        "Time and memory": sections.costs(run),
        "How this was made": sections.origin(run, _read_config(folder)),
    }
    heading, summary = sections.heading(run), seeds.summary(found, run)
    page = [f"# {heading}", summary, *(f"## {name}\n\n{body}" for name, body in chapters.items())]
    added = {"Over seeds": seeds.addition(found, reading)}
    table = f"{run['seeds'][0]['name']}/predictions-test.parquet and so on"
    _write(folder / "metrics.json", _json({seeds.NAME: found}))
    _write(folder / "report.md", "\n\n".join(page))
    _write(folder / "report.html", html.page(heading, summary, chapters, added, table))
    return {seeds.NAME: found}


def _told(parts: Mapping[str, Any], metrics: Mapping[str, Any], reading: Reading) -> dict[str, str]:
    """The chapters of the parts, but for those that have nothing to say of such a folder."""
    told = {heading: part.chapter(metrics.get(part.NAME), reading) for heading, part in parts.items()}
    if sections.is_folds(reading.run):  # what cannot be told of them together
        told = {heading: body for heading, body in told.items() if parts[heading].NAME in metrics}
    return {heading: body for heading, body in told.items() if body}


def _additions(parts: Mapping[str, Any], metrics: Mapping[str, Any], reading: Reading) -> dict[str, html.Addition]:
    """What the parts add to their chapters on the page."""
    made = {
        heading: part.addition(metrics[part.NAME], reading) for heading, part in parts.items() if part.NAME in metrics
    }
    return {heading: addition for heading, addition in made.items() if addition is not None}


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """The few lines that a terminal shows at the end of a run; last, whether it does not beat a simple answer."""
    if "test" not in metrics:
        return seeds.text(metrics[seeds.NAME])
    lines = []
    for split in (split for split in reversed(SPLITS) if split in metrics):
        headline = metrics[split]["headline"]
        lines.append(
            f"{split:<5} {title(headline['name'])} {with_interval(headline)} on {plural(metrics[split]['rows'], 'row')}"
        )
    places = decimals(metrics["test"]["rows"] ** -0.5)
    others = {name: value for name, value in metrics["test"]["scores"].items() if name != headline["name"]}
    sure = metrics["test"].get("intervals") or {}
    digits = (f"{title(name)} {told(value, sure.get(name), places)[0]}" for name, value in others.items())
    lines.insert(1, f"      {', '.join(digits)}")
    lines += [folds.text(metrics[folds.NAME])] if folds.NAME in metrics else []
    lines += [words] if (words := baselines.doubt_sentence(metrics.get("baselines"))) else []
    return "\n".join(lines)


def _read_config(folder: Path) -> str | None:
    path = folder / "config.yaml"
    return path.read_text(encoding="utf-8") if path.exists() else None


def _read_log(folder: Path) -> list[dict[str, Any]]:
    """The events of training, none where there is no log."""
    path, events = folder / "log.jsonl", []
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], start=1):
        try:
            events.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{path}, line {place} is no JSON ({error}); make the run again") from error
        if not isinstance(events[-1], dict) or "update" not in events[-1]:
            raise UserError(f"{path}, line {place} is no event of training; make the run again")
    return events


def _write(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8", newline="\n")


def _json(value: Any, margin: str = "") -> str:
    """JSON with a line for each name and each item of a list of lists or of objects, so that two files compare well."""
    inner = margin + "  "
    if isinstance(value, dict) and any(isinstance(item, (dict, list)) for item in value.values()):
        items = [f"{inner}{json.dumps(name, ensure_ascii=False)}: {_json(item, inner)}" for name, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{margin}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[\n" + ",\n".join(inner + _json(item, inner) for item in value) + f"\n{margin}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
