"""What does the model bring over simple answers?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from graftkit.errors import UserError
from graftkit.metrics import classification, comparison
from graftkit.metrics.comparison import ALPHA
from graftkit.metrics.intervals import LEVEL
from graftkit.report.markdown import (
    bullets,
    decimals,
    duration,
    escape,
    plural,
    probability,
    rounded,
    table,
    title,
    with_sign,
)
from graftkit.report.reading import Reading
from graftkit.report.sections import has_no_model, look
from graftkit.report.tables import BASELINES, read_baselines

NAME = "baselines"
WORDS = {
    "majority": "giving every row the most frequent class",
    "tf_idf": "logistic regression on word counts (TF-IDF)",
    "colours": "asking the training pictures of the most similar colours",
    "word_tags": "giving each word the tag that it has most often in train",
    "mean": "giving every row the mean of train",
    "ridge": "ridge regression on word counts (TF-IDF)",
    "sentence": "giving what the most similar sentence adds to the question",
    "no_answer": "never giving an answer",
    "copy": "giving back the source as it is",
    "nearest": "giving the training target of the most similar source",
    "frequent_tokens": "guessing by how often each token stands in train",
    "unigram": "guessing each token by how often it stands in train",
    "usual_labels": "giving every row the labels that most rows of train have",
    "before": "the same checkpoint before it was trained here",
}
"""What each baseline is, as it stands in a sentence."""
VERDICTS = {"no": "does not beat", "not shown": "is not shown to beat", "yes": "beats"}
MOST_DRAWS, FEWEST_DRAWS = 2_000, 200
DRAWN_ROWS = 20_000_000  # in all draws: with very many rows, fewer draws tell as much, and 100,000 take seconds


def measure(reading: Reading) -> dict[str, Any] | None:
    """The score of each baseline, and how far the model is ahead of it on the same rows; None without the table."""
    found = read_baselines(reading.folder)
    if found is None:
        return None
    truth, predicted, _ = reading.arrays["test"]
    headline = reading.run.get("headline") or "macro_f1"
    groups = reading.groups("test")
    draws = max(FEWEST_DRAWS, min(MOST_DRAWS, DRAWN_ROWS // len(truth)))
    answers = []
    for name, given in _places(reading, *found).items():
        table = classification.confusion(truth, given, len(reading.labels))
        held = None if groups is None else classification.group_counts(truth, given, groups, len(reading.labels))
        same = len(set(given.tolist())) == 1
        answer = {
            "name": name,
            "right": int(np.trace(table)),
            "always": reading.labels[given[0]] if same else None,
            "headline": {"name": headline, **asdict(classification.intervals(table, held, resamples=draws)[headline])},
        }
        answers.append(answer | _lead(truth, given, predicted, len(reading.labels), headline, draws, groups))
    return {"draws": draws, "answers": answers}


def chapter(found: Mapping[str, Any] | None, reading: Reading) -> str:
    """The scores of the baselines, the model's lead, and what that means."""
    if found is None:
        if reading.run.get("recipe") == "evaluate":
            return "Not made: an evaluation has no training rows that a simple answer could be learned from."
        if has_no_model(reading.run):
            return "Not made here: the report of each of these models compares it with simple answers."
        return (
            f"Not made: there is no {BASELINES} in this run. Make the run again, by the command at the end, to see "
            "whether the model beats answers that need no pretrained network."
        )
    headline = title(found["answers"][0]["headline"]["name"])
    lines = []
    for answer in found["answers"]:
        value, interval = _cells(answer["headline"])
        lead, range_of_lead = _cells(answer["lead"], sign="+")
        lines.append((_capital(WORDS[answer["name"]]), value, interval, lead, range_of_lead, probability(answer["p"])))
    share = f"{LEVEL:.0%} interval"
    header = ("Simple answer", f"Its {headline}", share, "The model's lead", share, "p")
    closest = nearest(found)
    advice = (
        "The pretrained network pays for itself only where it is ahead."
        if closest["beaten"] == "yes"
        else "Before you use this model, look for more rows, for wrong labels and at other settings, or take the "
        "simple answer: it costs next to nothing."
    )
    parts = [
        "What answers the same test rows without a pretrained network, learned from the same training rows:",
        table(header, lines, numbers=[1, 3, 5]),
        bullets(f"This model {VERDICTS[answer['beaten']]} {WORDS[answer['name']]}." for answer in found["answers"]),
        advice,
        _how_made(reading.run),
        _how_to_read(reading, found),
    ]
    return "\n\n".join(part for part in parts if part)


def addition(found: Mapping[str, Any], reading: Reading) -> None:
    """The table says it all."""


def nearest(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The baseline that the model has most to fear of: one that it does not beat, and of several the best."""
    order = list(VERDICTS)

    def fear(answer: Mapping[str, Any]) -> tuple[int, float]:
        headline = answer["headline"]
        sign = 1 if headline.get("lower_is_better") else -1
        return order.index(answer["beaten"]), sign * headline["value"]

    return min(found["answers"], key=fear)


def doubt(found: Mapping[str, Any] | None) -> str:
    """The first words on a model that does not beat a baseline; none where it beats all, or there are none."""
    if found is None or (answer := nearest(found))["beaten"] == "yes":
        return ""
    return f"This model {VERDICTS[answer['beaten']]} {WORDS[answer['name']]}"


def doubt_sentence(found: Mapping[str, Any] | None) -> str:
    """The same with the score of that baseline, as a terminal shows it."""
    if not (words := doubt(found)):
        return ""
    headline = nearest(found)["headline"]
    value, interval = _cells(headline)
    return f"{words}, whose {title(headline['name'])} is {value}" + (f" ({interval})." if interval != "–" else ".")


def _places(reading: Reading, ids: list[str], given: Mapping[str, list[str]]) -> dict[str, np.ndarray]:
    """What each baseline gives each row of test, as places in the labels: (rows,) by its name."""
    path, place = reading.folder / BASELINES, {label: i for i, label in enumerate(reading.labels)}
    if ids != [record["id"] for record in reading.records["test"]]:
        raise UserError(
            f"{path} and predictions-test.parquet do not hold the same rows in the same order; make the run again"
        )
    for name, labels in given.items():
        strange = [label for label in labels if label not in place]
        if strange or name not in WORDS:
            what = f"the label {strange[0]!r}" if strange else f"the baseline {name!r}"
            raise UserError(f"{path}: {what} is unknown; make the run again")
    return {name: np.array([place[label] for label in labels]) for name, labels in given.items()}


def _lead(
    truth: np.ndarray,
    given: np.ndarray,
    predicted: np.ndarray,
    labels: int,
    headline: str,
    draws: int,
    groups: np.ndarray | None,
) -> dict[str, Any]:
    """The model's score minus that of a baseline, whether it could be chance, and whether the baseline is beaten."""
    lead = comparison.differences(truth, given[None], predicted[None], labels, groups, resamples=draws)[headline]
    if headline == "accuracy" and groups is None:
        lost, gained = np.sum((given == truth) & (predicted != truth)), np.sum((given != truth) & (predicted == truth))
        p = float(comparison.mcnemar(lost, gained))
    else:
        p = comparison.swap_test(truth, given, predicted, labels, groups, swaps=draws)[headline]
    beaten = "no" if lead.value <= 0 else "yes" if p <= ALPHA else "not shown"
    return {"lead": asdict(lead), "p": p, "beaten": beaten}


def _cells(score: Mapping[str, Any], sign: str = "") -> tuple[str, str]:
    """A score or a lead, and its interval; – where it does not vary."""
    if score["method"] == "constant":
        return f"{score['value'] + 0.0:{sign}.2f}", "–"
    if not sign:
        value, low, high = rounded(score)
        return value, f"{low} to {high}"
    places = decimals((score["high"] - score["low"]) / 2)
    value, low, high = (with_sign(score[end], places) for end in ("value", "low", "high"))
    return value, f"{low} to {high}"


def _capital(words: str) -> str:
    return words[0].upper() + words[1:]


def _how_made(run: Mapping[str, Any]) -> str:
    """What each baseline learned from, and how long that took."""
    lines = []
    for name, facts in (run.get("baselines") or {}).items():
        if name == "majority" or name not in WORDS:
            continue
        used, whole = facts["rows"], facts["of"]
        rows = plural(used, "row") if used == whole else f"{used:,} of {whole:,} rows"
        share = "" if used == whole else ", every class in its share"
        chosen = [f"{words} {facts[key]:g}, chosen on dev" for key, words in CHOSEN.items() if key in facts]
        made = [f"learned from {rows} of train{share}", *chosen, f"{duration(facts['seconds'])} in all"]
        lines.append(f"{_capital(WORDS[name])}: {'; '.join(made)}.")
    return bullets(lines)


CHOSEN = {"C": "C", "neighbours": "neighbours:"}


def _how_to_read(reading: Reading, found: Mapping[str, Any]) -> str:
    draws = f"{found['draws']:,}"
    grouped = reading.groups("test") is not None
    unit = f"group of “{escape(str(look(reading.settings, 'group')))}”" if grouped else "row"
    exact = found["answers"][0]["headline"]["name"] == "accuracy" and not grouped
    by_swaps = f"the answers of the two trade places on each {unit} by chance, {draws} times"
    test = "exact test of McNemar" if exact else by_swaps
    return (
        f"A lead counts as shown where p is at most {ALPHA:g}. p says how likely so large a lead is if it were chance "
        f"which of the two gave which answer ({test}). The interval of the lead is a bootstrap by {unit}, both on the "
        f"same rows ({draws} resamples, BCa)."
    )
