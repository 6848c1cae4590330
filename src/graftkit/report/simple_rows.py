"""What does the model bring over simple answers, where rows have no class?

The same as `report.baselines` tells of a classifier, with the intervals of `metrics.sums`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from graftkit.errors import UserError
from graftkit.metrics.intervals import LEVEL
from graftkit.metrics.sums import Scoring, intervals, lead
from graftkit.report.baselines import NAME, VERDICTS, WORDS
from graftkit.report.markdown import bullets, decimals, escape, number, table, title, told, with_sign
from graftkit.report.reading import Reading
from graftkit.report.sections import NOUNS, look
from graftkit.report.tables import BASELINES, read_baselines


@dataclass(frozen=True)
class SimpleRows:
    """A part of the report (see `page.PARTS`): scores of simple answers, each being another value of one field."""

    scoring: Scoring
    headline: str  # where the run names none
    field: str = "prediction"  # of a record: what a simple answer gives in its place
    NAME: str = NAME

    def measure(self, reading: Reading) -> dict[str, Any] | None:
        """The score of each simple answer, and how far the model is ahead on the same rows; None without the table."""
        found = read_baselines(reading.folder)
        if found is None:
            return None
        ids, answered = found
        records, groups = reading.records["test"], reading.groups("test")
        if ids != [record["id"] for record in records] or not set(answered) <= set(WORDS):
            raise UserError(f"{reading.folder / BASELINES} does not fit predictions-test.parquet; make the run again")
        name = reading.run.get("headline") or self.headline
        answers = []
        for baseline, given in answered.items():
            others = [{**record, self.field: value} for record, value in zip(records, given, strict=True)]
            ahead = lead(self.scoring, records, others, name, groups)
            scored = intervals(self.scoring, others, groups, names=(name,))[name]
            shown = ahead.low > 0 and ahead.method != "constant"  # of one group no draw differs from another
            beaten = "no" if not ahead.value > 0 else "yes" if shown else "not shown"
            headline = {"name": name, "lower_is_better": name in self.scoring.lower, **asdict(scored)}
            answers.append({"name": baseline, "headline": headline, "lead": asdict(ahead), "beaten": beaten})
        return {"answers": answers}

    def chapter(self, found: Mapping[str, Any] | None, reading: Reading) -> str:
        """The scores of the simple answers, the model's lead, and what that means."""
        if found is None:
            return f"Not made: there is no {BASELINES} in this run."
        headline = title(found["answers"][0]["headline"]["name"])
        lines = []
        for answer in found["answers"]:
            value, interval = told(answer["headline"]["value"], answer["headline"])
            words = WORDS[answer["name"]]
            lines.append((words[0].upper() + words[1:], value, interval, *_ahead(answer["lead"])))
        share = f"{LEVEL:.0%} interval"
        header = ("Simple answer", f"Its {headline}", share, "The model's lead", share)
        verdicts = bullets(
            f"This model {VERDICTS[answer['beaten']]} {WORDS[answer['name']]}." for answer in found["answers"]
        )
        noun = NOUNS[reading.run["task"]]
        grouped = reading.groups("test") is not None
        unit = f"whole groups of “{escape(str(look(reading.settings, 'group')))}”" if grouped else f"whole {noun}s"
        how = (
            "The lead is how much better the model's score is than that of the simple answer; its interval draws "
            f"{unit}, with both answers to them. The lead is not shown where that interval holds 0."
        )
        return "\n\n".join([table(header, lines, numbers=[1, 3]), verdicts, how])

    def addition(self, found: Mapping[str, Any], reading: Reading) -> None:
        """The table says it all."""


def _ahead(ahead: Mapping[str, Any]) -> tuple[str, str]:
    if ahead["method"] == "constant":
        return number(ahead["value"], 2), "–"
    places = decimals((ahead["high"] - ahead["low"]) / 2)
    value, low, high = (with_sign(ahead[end], places) for end in ("value", "low", "high"))
    return value, f"{low} to {high}"
