"""What does the report of a classifier say?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from graftkit.errors import UserError
from graftkit.metrics import classification
from graftkit.metrics.intervals import LEVEL, RESAMPLES, clopper_pearson
from graftkit.report import baselines, metric_modules
from graftkit.report.markdown import (
    decimals,
    escape,
    number,
    percent,
    plural,
    rounded,
    shorten,
    table,
    title,
    told,
    with_interval,
)
from graftkit.report.pictures import grid
from graftkit.report.reading import Reading
from graftkit.report.rows import worst as worst_of
from graftkit.report.sections import NOUNS, apart, is_folds, look

MATRIX_CLASSES = 40  # a wider confusion matrix cannot be read
HEADER_LETTERS = 90  # class names longer than this in all head the matrix as numbers
PAIRS = 20
WORST = 20
FEW = 20  # test rows of a class, below which its own scores are rough
SCARCE = 5  # rows of a class, below which means over classes are less sure than they look: see docs/intervals.md
FEW_GROUPS = 20  # below which a bootstrap by group says too little: see docs/intervals.md
MEANINGS = {
    "accuracy": "share of rows that get the right class",
    "balanced_accuracy": "recall, averaged over classes: each class counts the same, however rare",
    "macro_f1": "F1, averaged over classes: each class counts the same, however rare",
    "weighted_f1": "F1, averaged over classes by their rows: frequent classes count more",
    "matthews": "agreement beyond chance: 1 is perfect, 0 is guessing",
    "log_loss": "price of being wrong and sure of it: 0 is perfect, lower is better",
    "calibration_error": "how far its stated probabilities are off on average: 0 is perfect, lower is better",
}


def measure(reading: Reading, split: str) -> dict[str, Any]:
    """All that metrics.json says of a split; macro F1 leads it by default. UserError for an unknown headline."""
    headline, labels = reading.run.get("headline") or "macro_f1", reading.labels
    if headline not in classification.HEADLINES:
        raise UserError(
            f"no headline {headline!r} for a classifier; choose one of {', '.join(classification.HEADLINES)}"
        )
    truth, predicted, probabilities = reading.arrays[split]
    confusion = classification.confusion(truth, predicted, len(labels))
    groups = reading.groups(split)
    drawn = None if groups is None else classification.group_counts(truth, predicted, groups, len(labels))
    scores, classes = classification.all_intervals(confusion, drawn)
    intervals = {name: asdict(interval) for name, interval in scores.items()}
    of_class = [{name: asdict(interval) for name, interval in found.items()} for found in classes]
    lines = zip(classification.per_class(confusion, labels), of_class, strict=True)
    named = (reading.run.get("metrics") or {}).get(split)
    return {
        "rows": len(truth),
        "headline": {"name": headline, **intervals[headline]},
        "scores": classification.scores(truth, predicted, probabilities),
        "intervals": intervals,
        "per_class": [line | {"intervals": found} for line, found in lines],
        "confusion": {"labels": list(labels), "counts": confusion.tolist()},
        **({} if drawn is None else {"groups": {"column": reading.settings.get("group"), "count": drawn.shape[0]}}),
        **({"named": named} if named else {}),
    }


def summary(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Two or three sentences: how good, against what, on how many rows, and what to watch out for.

    A model that does not beat a baseline says so first of all.
    """
    test = metrics["test"]
    counts = _counts(test)
    rows, right, headline = test["rows"], int(np.trace(counts)), test["headline"]
    doubt = baselines.doubt(metrics.get("baselines"))
    start, who = (f"**{doubt}**: on", "it") if doubt else ("On", "this recipe" if is_folds(run) else "this model")
    sentences = [
        f"{start} {plural(rows, 'test row')}{apart(run)}, {who} sorts {NOUNS[run['task']]}s into "
        f"{plural(len(counts), 'class', 'classes')} with {_article(headline['name'])} of "
        f"**{with_interval(headline)}**, where 1 is perfect{_against(metrics, run)}.",
        f"It gives {_how_many(right, rows)} of them the right class ({percent(right, rows)}); "
        f"{_always(metrics, counts)}.",
    ]
    cautions = _cautions(test, run)
    if cautions:
        sentences.append(f"**Watch out:** {'; '.join(cautions)}.")
    return " ".join(sentences)


def worst(records: Sequence[Mapping[str, Any]], most: int = WORST) -> list[Mapping[str, Any]]:
    """The records of the worst errors, those of the highest loss."""
    return worst_of(records, most)


def chapters(
    metrics: Mapping[str, Any],
    run: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """The report's chapters on a classifier, by heading: scores, classes, confusions, and the worst errors on test.

    `shown` are the records of the worst errors, and `rows` the rows of these records, by id.
    """
    return {
        "Scores": _scores(metrics, run),
        "Classes": _classes(metrics["test"]),
        "Confusions": _confusions(metrics["test"]),
        "Worst errors": _worst_errors(metrics["test"], run, shown, rows),
    }


def _against(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """What others reach: of the baselines the one to fear most, and the models that the run was compared with."""
    found, headline = metrics.get("baselines"), metrics["test"]["headline"]
    others = [f"; {escape(other['name'])} reaches {_reached(other, headline)}" for other in run.get("compared") or []]
    if found is not None:
        answer = baselines.nearest(found)
        name = "the simple answer" if baselines.doubt(found) else baselines.WORDS[answer["name"]]
        others.insert(0, f"; {name} reaches {_reached(answer, headline)}")
    return "".join(others)


def _always(metrics: Mapping[str, Any], counts: np.ndarray) -> str:
    """What the same answer every time would be right for: the most frequent class of train, or else of test."""
    test, found = metrics["test"], metrics.get("baselines") or {"answers": []}
    line = test["per_class"][int(counts.sum(axis=1).argmax())]
    label, right, whose = line["label"], line["support"], ""
    for answer in found["answers"]:
        if answer["name"] == "majority" and answer["always"] is not None:  # of folds, it may be another in each
            label, right, whose = answer["always"], answer["right"], ", the most frequent class of train,"
    share = percent(right, test["rows"])
    return f"always answering “{escape(label)}”{whose} would be right for {_how_many(right, test['rows'])} ({share})"


def _how_many(part: int, whole: int) -> str:
    return "none" if part == 0 else f"{part:,}" if part < whole else "all"


def _article(name: str) -> str:
    return f"{'an' if title(name)[0] in 'aeiou' else 'a'} {title(name)}"


def _reached(other: Mapping[str, Any], headline: Mapping[str, Any]) -> str:
    """The score that a comparison reached, named where it is another than the headline: 0.61 (0.55 to 0.67)."""
    value, interval = _measured(other["headline"])
    name = other["headline"]["name"]
    which = "" if name == headline["name"] else f"{_article(name)} of "
    return f"{which}{value} ({interval})" if interval else f"{which}{value}"


def _measured(score: Mapping[str, Any]) -> tuple[str, str]:
    """A score of another model and its interval; no interval where nearly all resamples gave the same."""
    if score.get("method") == "constant":
        return number(score["value"], 2), ""
    value, low, high = rounded(score)
    return value, f"{low} to {high}"


def _counts(split: Mapping[str, Any]) -> np.ndarray:
    return np.array(split["confusion"]["counts"])  # (labels, labels), rows are the truth


def _pairs(counts: np.ndarray) -> list[tuple[int, int, int]]:
    """Truth, prediction and rows of each confusion, the most frequent first."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    truth, predicted = np.nonzero(wrong)
    found = zip(truth.tolist(), predicted.tolist(), wrong[truth, predicted].tolist(), strict=True)
    return sorted(found, key=lambda pair: -pair[2])


def _cautions(test: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What a reader should know before trusting the score, as phrases."""
    cautions = []
    classes = [line for line in test["per_class"] if line["support"]]
    given = [line["label"] for line in test["per_class"] if line["predicted"]]
    if len(given) == 1 < len(classes):
        cautions.append(f"it gives every test row the same class, “{escape(given[0])}”")
    if np.trace(_counts(test)) <= max(line["support"] for line in classes) < test["rows"]:
        cautions.append("it is right no more often than the same answer every time would be")
    for other in run.get("compared") or []:
        score = other["headline"]
        if score["name"] == test["headline"]["name"] and score["value"] >= test["headline"]["value"]:
            cautions.append(f"{escape(other['name'])} is no worse")
    weakest = min(classes, key=lambda line: line["f1"])
    if weakest["f1"] < 1:
        cautions.append(_weakness(test, weakest))
    few = [line for line in classes if line["support"] < FEW]
    if few:
        fewest = min(line["support"] for line in few)
        which = "every class has" if len(few) == len(classes) > 1 else plural(len(few), "class has", "classes have")
        cautions.append(f"{which} fewer than {FEW} test rows (down to {fewest}), so single class scores are rough")
    unseen = len(test["per_class"]) - len(classes)
    if unseen:
        cautions.append(f"{plural(unseen, 'class has', 'classes have')} no test row and could not be measured")
    cut = look(run, "lengths", "truncated_share") or 0.0
    if cut >= 0.05:
        cautions.append(f"{percent(cut)} of the texts were too long and were cut")
    if test["scores"]["calibration_error"] >= 0.1:
        off = number(test["scores"]["calibration_error"], 2)
        cautions.append(f"its stated probabilities are off by {off} on average")
    warnings = len(run.get("warnings") or [])
    if warnings:
        cautions.append(f"the run gave {plural(warnings, 'warning')} (below)")
    return cautions


def _weakness(test: Mapping[str, Any], weakest: Mapping[str, Any]) -> str:
    names = test["confusion"]["labels"]
    place = names.index(weakest["label"])
    phrase = f"the weakest class is “{escape(weakest['label'])}” (F1 {number(weakest['f1'], 2)})"
    for truth, predicted, rows in _pairs(_counts(test)):
        if rows > 1 and truth == place:
            return f"{phrase}, most often taken for “{escape(names[predicted])}” ({rows} of {weakest['support']} rows)"
        if rows > 1 and predicted == place:
            return f"{phrase}, which {rows:,} rows of “{escape(names[truth])}” are taken for"
    return phrase


def _scores(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    test, dev = metrics["test"], metrics.get("dev")  # an evaluation has none
    first = test["headline"]["name"]
    lines = []
    for name in sorted(test["scores"], key=lambda name: name != first):
        words = f"**{title(name)}**" if name == first else title(name)
        lines.append((words, *_cells(test, name), *([_cells(dev, name)[0]] if dev else []), MEANINGS[name]))
    for place, other in enumerate(run.get("compared") or [], start=1):
        value, interval = _measured(other["headline"])
        words = f"{title(other['headline']['name'])} of {escape(other['name'])}"
        lines.insert(place, (words, value, interval or "–", "–", "the score of another model, for comparison"))
    for answer in (metrics.get("baselines") or {"answers": []})["answers"]:
        value, interval = _measured(answer["headline"])
        words = f"{title(answer['headline']['name'])} of {baselines.WORDS[answer['name']]}"
        blank = ["–"] if dev else []
        lines.append((words, value, interval or "–", *blank, "the score of a simple answer, for comparison"))
    header = ("Score", "Test", f"{LEVEL:.0%} interval", *(["Dev"] if dev else []), "What it says")
    scores = table(header, lines, numbers=[1, 3] if dev else [1])
    sure = _how_sure(test, "test", NOUNS[run["task"]])
    return "\n\n".join([scores, sure, *([_NOT_DEV] if dev else []), *metric_modules.told(metrics)])


_NOT_DEV = (
    "The dev rows chose which weights to keep, so the dev scores tend to be too good. The test rows chose nothing."
)


def _cells(split: Mapping[str, Any], name: str) -> tuple[str, str]:
    """A score and its interval, with as many digits as the interval, or the number of rows, supports."""
    return told(split["scores"][name], split["intervals"].get(name), decimals(split["rows"] ** -0.5))


def _how_sure(split: Mapping[str, Any], name: str, noun: str) -> str:
    """What the intervals mean, and where they come from."""
    groups, rows, right = split.get("groups"), split["rows"], int(np.trace(_counts(split)))
    others = f"other {name} rows of the same kind{', from other groups' if groups else ''}"
    meaning = f"The interval says how far a score would move on {others}. It says nothing of {noun}s of another kind, "
    meaning += "or of training again with another seed."
    if right in (0, rows):
        how = _at_the_edge(groups, rows, name, right > 0)
    elif groups:
        how = f"(Bootstrap by {_source_of(groups)}, each drawn with all its rows: {RESAMPLES:,} resamples, BCa.)"
    else:
        how = f"(Bootstrap by row: {RESAMPLES:,} resamples of {plural(rows, 'row')}, BCa.)"
    if groups and groups["count"] < FEW_GROUPS:
        how += (
            f" **Fewer than {FEW_GROUPS} groups are too few**: these intervals are narrower than they should be. More "
            "rows of the same groups do not help; rows of other groups do."
        )
    scarce = sum(line["support"] < SCARCE for line in split["per_class"])
    if scarce:
        how += (
            f" {plural(scarce, 'class has', 'classes have')} fewer than {SCARCE} {name} rows: the intervals of "
            "macro F1 and balanced accuracy, to which each class counts the same, are then narrower than they should "
            "be."
        )
    return f"{meaning} {how}"


def _at_the_edge(groups: Mapping[str, Any] | None, rows: int, name: str, right: bool) -> str:
    """What the intervals are where all rows are right, or none."""
    units, source = (groups["count"], _source_of(groups)) if groups else (rows, plural(rows, "row"))
    low, high = clopper_pearson(units if right else 0, units)
    alike = f"all classes{' and all rows of a group' if groups else ''}"
    if right:
        doubt = f"that {percent(1 - low)} of groups have errors" if groups else f"an error rate of {percent(1 - low)}"
        end = f"low ends are what the scores would then be, if errors hit {alike} alike"
    else:
        doubt = f"that {percent(high)} {'of groups have right rows' if groups else 'could be'}"
        end = f"high ends are what the scores would then be, if {alike} gained alike"
    fact = f"No {name} row is {'wrong' if right else 'right'}. Even so, {source} cannot rule out {doubt}"
    return f"{fact} (Clopper-Pearson). The {end}."


def _source_of(groups: Mapping[str, Any]) -> str:
    """What was drawn: the 40 groups of column “patient”."""
    count = "the one group" if groups["count"] == 1 else f"the {groups['count']:,} groups"
    return count if groups["column"] is None else f"{count} of column “{escape(groups['column'])}”"


def _classes(test: Mapping[str, Any]) -> str:
    """Precision, recall and F1 of each class with their intervals, the weakest first."""
    lines = []
    for line in sorted(test["per_class"], key=lambda line: (line["support"] == 0, line["f1"])):
        intervals = line.get("intervals") or {}
        rows = {"precision": line["predicted"], "recall": line["support"], "f1": line["support"] + line["predicted"]}
        cells = {name: told(line[name], intervals.get(name)) if rows[name] else ("–", "–") for name in rows}
        (precision, of_precision), (recall, of_recall), (f1, of_f1) = cells.values()
        given, had = f"{line['predicted']:,}", f"{line['support']:,}"
        lines.append((escape(line["label"]), precision, recall, f1, of_f1, had, given, of_precision, of_recall))
    interval = f"{LEVEL:.0%} interval"
    header = ("Class", "Precision", "Recall", "F1", f"F1: {interval}", "Test rows", "Predicted")
    header += (f"Precision: {interval}", f"Recall: {interval}")
    intro = (
        "Weakest first. Precision: of the rows that were given this class, the share that has it. Recall: of the rows "
        "that have it, the share that was given it. F1: one number for both. “–”: no row to tell from. The fewer rows "
        "a class has, the wider its intervals: two classes whose intervals overlap much may be equally good."
    )
    return f"{intro}\n\n{table(header, lines, numbers=[1, 2, 3, 5, 6])}"


def _confusions(test: Mapping[str, Any]) -> str:
    counts, names = _counts(test), [escape(name) for name in test["confusion"]["labels"]]
    parts = [_matrix(counts, names)] if len(names) <= MATRIX_CLASSES else []
    pairs = _pairs(counts)
    if not pairs:
        return "\n\n".join([*parts, "No test row was given a wrong class."])
    lines = [
        (names[truth], names[predicted], f"{rows:,}", percent(rows, counts[truth].sum()))
        for truth, predicted, rows in pairs[:PAIRS]
    ]
    left = f", the {PAIRS} most frequent of {len(pairs):,}" if len(pairs) > PAIRS else ""
    header = ("True class", "Taken for", "Rows", "Share of the class")
    return "\n\n".join([*parts, f"Which class is taken for which{left}:", table(header, lines, numbers=[2, 3])])


def _matrix(counts: np.ndarray, names: Sequence[str]) -> str:
    """The confusion matrix; long names head its columns as numbers."""
    heads = list(names)
    if sum(map(len, names)) > HEADER_LETTERS:
        heads = [str(place) for place in range(1, len(names) + 1)]
        names = [f"{place} {name}" for place, name in zip(heads, names, strict=True)]
    lines = []
    for place, (name, row) in enumerate(zip(names, counts.tolist(), strict=True)):
        cells = [f"{count:,}" if count else "·" for count in row]
        cells[place] = f"**{row[place]:,}**"
        lines.append((name, *cells))
    intro = "Each line is a true class, each column the class that its test rows were given; right answers are bold."
    return f"{intro}\n\n{table(('', *heads), lines, numbers=range(1, len(heads) + 1))}"


def _worst_errors(
    test: Mapping[str, Any],
    run: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Any]],
) -> str:
    """A grid where there are pictures of the errors, else a table."""
    if not shown:
        return "None: all test rows were given the right class."
    wrong = test["rows"] - int(np.trace(_counts(test)))
    which = f"these {WORST} have the highest loss" if wrong > len(shown) else "the highest loss comes first"
    intro = (
        f"{plural(wrong, 'test row was', 'test rows were')} given a wrong class; {which}. "
        "Where the model is sure of its answer, look whether the true class in the data is right."
    )
    if any(row.get("thumbnail") for row in rows.values()):
        below = (
            "Below each picture: its true class, the class that it was taken for, and how sure the model was of that."
        )
        return f"{intro}\n\n{below}\n\n{grid(shown, rows)}"
    noun = NOUNS[run["task"]]
    if noun == "picture":
        where = "This copy of the run holds" if run.get("rows_left_out") else "The run kept"
        intro += f"\n\n{where} no pictures in its folder, so they are named here, not shown."
    return f"{intro}\n\n{_error_table(noun, shown, rows)}"


def _error_table(noun: str, shown: Sequence[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        (
            content_of(rows.get(record["id"], {})),
            escape(record["label"]),
            escape(record["prediction"]),
            percent(float(record["probabilities"].max())),
            escape(record["id"]),
        )
        for record in shown
    ]
    return table((noun.capitalize(), "True class", "Predicted", "How sure", "Row"), lines, numbers=[3])


def content_of(row: Mapping[str, Any]) -> str:
    """The texts of a row, shortened, or its path; what is known of it where they were not kept."""
    parts = [escape(shorten(row[name])) for name in ("text", "text_pair", "path") if row.get(name) is not None]
    if parts:
        return " **+** ".join(parts)
    return f"*not kept* (SHA-256 {row['sha256'][:12]}…)" if "sha256" in row else "*not kept*"
