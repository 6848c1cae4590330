"""What does a report say of a model that gives a text any number of labels?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from graftkit.metrics import multi_label
from graftkit.metrics.intervals import LEVEL
from graftkit.report import baselines, curves, figures, rows
from graftkit.report.html import Addition
from graftkit.report.markdown import escape, limit, number, percent, plural, shorten, table, told
from graftkit.report.reading import Reading
from graftkit.report.sections import look
from graftkit.report.simple_rows import SimpleRows

PAIRS = 20
WORST = 20
LETTERS = 300  # of a text
FEW = 20  # rows of test with a label, below which its own scores are rough
MEANINGS = {
    "micro_f1": "one number for precision and recall of all labels together: frequent labels count more",
    "macro_f1": "F1, averaged over labels: each label counts the same, however rare",
    "micro_precision": "of the labels that it gives, the share that is right",
    "micro_recall": "of the labels that there are, the share that it finds",
    "subset_accuracy": "share of texts that get exactly their labels: no label too many or too few",
    "label_accuracy": "share of right answers to “does this text have this label?”: high where labels are rare, "
    "whatever the model does",
    "log_loss": "price of being wrong and sure of it, per text and label: 0 is perfect, lower is better",
    "average_precision": "how well its probabilities sort texts with a label before those without, whatever the "
    "threshold; averaged over labels",
    "micro_average_precision": "the same with all texts and labels in one ranking",
}


def measure(reading: Reading, split: str) -> dict[str, Any]:
    """All that metrics.json says of a split. UserError for an unknown headline."""
    labels, records, groups = reading.labels, reading.records[split], reading.groups(split)
    measured = rows.measure(reading, split, multi_label.scoring(labels), multi_label.HEADLINES)
    areas = multi_label.average_precisions(records, labels, groups)
    better = multi_label.whole_intervals(records, labels, groups) | areas
    measured["intervals"] |= {name: asdict(interval) for name, interval in better.items()}
    measured["headline"] |= measured["intervals"][measured["headline"]["name"]]
    measured["scores"] |= {name: interval.value for name, interval in areas.items()}
    lines = multi_label.per_label(records, labels, groups)
    for line in lines:
        line["intervals"] = {name: asdict(interval) for name, interval in line["intervals"].items()}
    pairs = _pairs(records)
    return measured | {
        "per_label": lines,
        "rows_without_error": sum(record["label"] == record["prediction"] for record in records),
        "without_label": {
            name: sum(not record[field] for record in records)
            for name, field in (("true", "label"), ("given", "prediction"))
        },
        "confused": [{"missed": one, "given": other, "rows": n} for (one, other), n in pairs.most_common(PAIRS)],
    }


def _pairs(records: Sequence[Mapping[str, Any]]) -> Counter[tuple[str, str]]:
    """Of a label that was missed and one that was given wrongly: rows with both, by the two, in a fixed order."""
    found = Counter(
        (missed, extra)
        for record in records
        for missed in record["label"]
        for extra in record["prediction"]
        if missed not in record["prediction"] and extra not in record["label"]
    )
    return Counter(dict(sorted(found.items())))


def summary(metrics: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Three sentences: how good and against what, how much of it, and what to watch out for."""
    test = metrics["test"]
    right, truth, given = _totals(test)
    whole = test["rows_without_error"]
    sentences = [
        rows.opening(metrics, run, "gives labels", perfect="where 1 is perfect"),
        f"It finds {right:,} of the {plural(truth, 'label')} ({percent(right, truth)}), and {given - right:,} of the "
        f"{given:,} that it gives are wrong; {whole:,} of the {plural(test['rows'], 'text')} "
        f"({percent(whole, test['rows'])}) get exactly their labels.",
    ]
    if cautions := _cautions(test, run):
        sentences.append(f"**Watch out:** {'; '.join(cautions)}.")
    return " ".join(sentences)


def worst(records: Sequence[Mapping[str, Any]], most: int = WORST) -> list[Mapping[str, Any]]:
    """The records of the texts with a label too many or too few, those of the highest loss."""
    return rows.worst(records, most)


def chapters(
    metrics: Mapping[str, Any],
    run: Mapping[str, Any],
    shown: Sequence[Mapping[str, Any]],
    kept: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """The report's chapters, by heading; `shown` are the worst records, and `kept` their rows by id."""
    areas = (
        "The intervals of average precision follow from how far each text by itself would move it (jackknife). The "
        "thresholds were chosen on dev, too: one more reason why the scores of dev tend to be too good."
    )
    return {
        "Scores": f"{rows.scores(metrics, run, MEANINGS)}\n\n{areas}",
        "Labels": _labels(metrics["test"], run),
        "Labels that are confused": _confused(metrics["test"]),
        "Worst texts": _worst_texts(metrics["test"], shown, kept),
    }


def additions(
    metrics: Mapping[str, Any],
    reading: Reading,
    rows: Mapping[str, Mapping[str, Any]],
    log: Sequence[Mapping[str, Any]],
) -> dict[str, Addition]:
    """What the page shows besides: curves of training, and bars behind F1."""
    return {"Labels": Addition(cells=figures.bar)} | curves.additions(metrics, reading.run, log)


class SimpleSets:
    """A part of the report (see `page.PARTS`): `SimpleRows` by the scores of the run's labels."""

    NAME = baselines.NAME

    def measure(self, reading: Reading) -> dict[str, Any] | None:
        """The score of each simple answer, and how far the model is ahead on the same rows; None without the table."""
        return self._rows(reading).measure(reading)

    def chapter(self, found: Mapping[str, Any] | None, reading: Reading) -> str:
        """The scores of the simple answers, the model's lead, and what that means."""
        return self._rows(reading).chapter(found, reading)

    def addition(self, found: Mapping[str, Any], reading: Reading) -> None:
        """The table says it all."""

    def _rows(self, reading: Reading) -> SimpleRows:
        return SimpleRows(multi_label.scoring(reading.labels), multi_label.HEADLINES[0])


# what it says


def _totals(test: Mapping[str, Any]) -> tuple[int, int, int]:
    """Labels that are right, that there are, and that were given."""
    lines = test["per_label"]
    truth, given = (sum(line[name] for line in lines) for name in ("support", "predicted"))
    return round(sum(line["recall"] * line["support"] for line in lines)), truth, given


def _cautions(test: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What a reader should know before trusting the score, as phrases."""
    cautions = []
    known = [line for line in test["per_label"] if line["support"]]
    if not known:
        cautions.append("no row of test has a label, so nothing was measured")
    elif (weakest := min(known, key=lambda line: line["f1"]))["f1"] < 1:
        cautions.append(f"the weakest label is “{escape(weakest['label'])}” (F1 {number(weakest['f1'], 2)})")
    few = [line["support"] for line in known if line["support"] < FEW]
    if few:
        which = plural(len(few), "label stands", "labels stand")
        cautions.append(
            f"{which} in fewer than {FEW} rows of test (down to {min(few)}), so scores of a single label are rough"
        )
    if shared := look(run, "decision", "shared"):
        which = (
            "every label has" if len(shared) == len(run["labels"]) else plural(len(shared), "label has", "labels have")
        )
        own = "its" if which.endswith(("every label has", "label has")) else "their"
        cautions.append(f"{which} too few rows in dev for a threshold of {own} own")
    if run.get("warnings"):
        cautions.append(f"the run gave {plural(len(run['warnings']), 'warning')} (below)")
    return cautions


def _labels(test: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Precision, recall, F1 and average precision of each label, and its threshold, the weakest first."""
    decided = run.get("decision") or {}
    limits, shared = decided.get("thresholds") or {}, set(decided.get("shared") or [])
    lines = []
    for line in sorted(test["per_label"], key=lambda line: (line["support"] == 0, line["f1"])):
        found, label = line["intervals"], line["label"]
        cells = [
            told(line[name], found[name]) if name in found else ("–", "–")
            for name in ("precision", "recall", "f1", "average_precision")
        ]
        (precision, of_precision), (recall, of_recall), (f1, of_f1), (area, of_area) = cells
        threshold = limit(limits[label]) + "*" * (label in shared) if label in limits else "–"
        counts = (f"{line['support']:,}", f"{line['predicted']:,}")
        name = escape(label)
        lines.append((name, precision, recall, f1, of_f1, area, of_area, threshold.replace("*", "\\*"), *counts))
        lines[-1] += (of_precision, of_recall)
    share = f"{LEVEL:.0%} interval"
    header = ("Label", "Precision", "Recall", "F1", f"F1: {share}", "Average precision", f"AP: {share}")
    header += ("Threshold", "In test", "Given", f"Precision: {share}", f"Recall: {share}")
    intro = (
        "Weakest first. Precision: of the texts that were given this label, the share that has it. Recall: of the "
        "texts that have it, the share that was given it. F1: one number for both. Average precision: how well its "
        "probability sorts texts with the label before those without; by chance, the label's share of the texts. "
        "Threshold: the probability from which on a text is given the label. “–”: nothing to tell from."
    )
    how = _how_chosen(decided, len(limits))
    none = test["without_label"]
    empty = (
        f"{plural(none['true'], 'text')} of test {'has' if none['true'] == 1 else 'have'} no label; "
        f"{plural(none['given'], 'text')} {'was' if none['given'] == 1 else 'were'} given none."
    )
    return "\n\n".join(
        part for part in (intro, table(header, lines, numbers=[1, 2, 3, 5, 7, 8, 9]), how, empty) if part
    )


def _how_chosen(decided: Mapping[str, Any], labels: int) -> str:
    if not decided:
        return ""
    own = (
        "Each threshold is the one of the label's best F1 on dev, which lies low where a label is hard to tell: to "
        "miss it would cost more than to give it too often. For other costs, set others in the saved model's settings."
    )
    if not decided["shared"]:
        return own
    few = f"fewer than {decided['enough']} rows of dev with the label, or without it"
    together = f"{few}: the threshold of the best micro F1 of all labels, since that of so few rows is mostly chance"
    return f"\\* {together}." if len(decided["shared"]) == labels else f"{own} (\\* {together}.)"


def _confused(test: Mapping[str, Any]) -> str:
    """Which label is given in place of which."""
    if not test["confused"]:
        return "No test text lacks one of its labels and has a wrong one."
    missed = {line["label"]: round((1 - line["recall"]) * line["support"]) for line in test["per_label"]}
    lines = [
        (
            escape(pair["missed"]),
            escape(pair["given"]),
            f"{pair['rows']:,}",
            percent(pair["rows"], missed[pair["missed"]]),
        )
        for pair in test["confused"]
    ]
    header = ("Missed label", "Given and wrong", "Texts", "Share of those where it is missed")
    return f"Texts that lack one of their labels and have a wrong one:\n\n{table(header, lines, numbers=[2, 3])}"


def _worst_texts(
    test: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], kept: Mapping[str, Mapping[str, Any]]
) -> str:
    if not shown:
        return "None: all texts of test were given exactly their labels."
    wrong = test["rows"] - test["rows_without_error"]
    which = f"these {len(shown)} have the highest loss" if wrong > len(shown) else "the highest loss comes first"
    intro = (
        f"{plural(wrong, 'test text has', 'test texts have')} a label too many or too few; {which}. Where the model "
        "looks right, look whether the labels in the data are."
    )
    lines = [
        (
            _text(kept.get(record["id"], {})),
            _names(label for label in record["label"] if label not in record["prediction"]),
            _names(label for label in record["prediction"] if label not in record["label"]),
            _names(label for label in record["label"] if label in record["prediction"]),
            escape(record["id"]),
        )
        for record in shown
    ]
    return f"{intro}\n\n{table(('Text', 'Missed', 'Given and wrong', 'Right', 'Row'), lines)}"


def _text(row: Mapping[str, Any]) -> str:
    texts = [row[name] for name in ("text", "text_pair") if row.get(name) is not None]
    return " **+** ".join(escape(shorten(text, LETTERS)) for text in texts) or "*not kept*"


def _names(labels: Any) -> str:
    return ", ".join(map(escape, labels)) or "–"
