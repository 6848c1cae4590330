"""What does the tagger bring over simple answers?

The same as `report.baselines` tells of a classifier, of whole sentences: those are what is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from graftkit.errors import UserError
from graftkit.metrics import tagging
from graftkit.metrics.intervals import LEVEL
from graftkit.report.baselines import NAME, VERDICTS, WORDS, addition
from graftkit.report.markdown import bullets, decimals, number, rounded, table, title, with_sign
from graftkit.report.reading import Reading
from graftkit.report.tables import BASELINES, read_baselines

__all__ = ["NAME", "addition", "chapter", "measure"]


def measure(reading: Reading) -> dict[str, Any] | None:
    """The score of each simple answer, and how far the model is ahead on the same sentences; None without the table."""
    found = read_baselines(reading.folder)
    if found is None:
        return None
    ids, answered = found
    records, labels = reading.records["test"], reading.labels
    truth, predicted = ([record[name] for record in records] for name in ("label", "prediction"))
    sizes = [len(tags) for tags in truth]
    for name, given in answered.items():
        strange = {tag for tags in given for tag in tags} - set(labels)
        if ids != [record["id"] for record in records] or [len(tags) for tags in given] != sizes or strange:
            raise UserError(
                f"{reading.folder / BASELINES}: baseline {name!r} does not fit predictions-test.parquet; "
                "make the run again"
            )
    headline = reading.run.get("headline") or tagging.headlines(labels)[0]
    groups = reading.groups("test")
    drawn = None if groups is None else groups.tolist()
    answers = []
    for name, given in answered.items():
        lead = tagging.lead(truth, predicted, given, labels, headline, drawn)
        scored = tagging.intervals(truth, given, labels, drawn).scores[headline]
        shown = lead.low > 0 and lead.method != "constant"
        beaten = "no" if lead.value <= 0 else "yes" if shown else "not shown"
        answers.append(
            {
                "name": name,
                "headline": {"name": headline, **asdict(scored)},
                "lead": asdict(lead),
                "beaten": beaten,
            }
        )
    return {"answers": answers}


def chapter(found: Mapping[str, Any] | None, reading: Reading) -> str:
    """The scores of the simple answers, the model's lead, and what that means."""
    if found is None:
        return f"Not made: there is no {BASELINES} in this run. Make the run again, by the command at the end."
    headline = title(found["answers"][0]["headline"]["name"])
    lines = []
    for answer in found["answers"]:
        value, low, high = rounded(answer["headline"])
        name = WORDS[answer["name"]]
        lines.append((name[0].upper() + name[1:], value, f"{low} to {high}", *_ahead(answer["lead"])))
    share = f"{LEVEL:.0%} interval"
    header = ("Simple answer", f"Its {headline}", share, "The model's lead", share)
    said = bullets(f"This model {VERDICTS[answer['beaten']]} {WORDS[answer['name']]}." for answer in found["answers"])
    how = (
        "A word that train does not have gets the most frequent tag of all. The lead is the model's score minus that "
        "of the simple answer; its interval draws whole sentences, with both answers to them. The lead is not shown "
        "where that interval holds 0."
    )
    return "\n\n".join([table(header, lines, numbers=[1, 3]), said, how])


def _ahead(lead: Mapping[str, Any]) -> tuple[str, str]:
    if lead["method"] == "constant":
        return number(lead["value"], 2), "–"
    places = decimals((lead["high"] - lead["low"]) / 2)
    value, low, high = (with_sign(lead[end], places) for end in ("value", "low", "high"))
    return value, f"{low} to {high}"
