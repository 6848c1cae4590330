"""What does a report say of scores, where rows have no class?

Every task without classes tells its scores in the same way; its own module says what they mean, and shows its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from graftkit.errors import UserError
from graftkit.metrics.intervals import LEVEL, RESAMPLES
from graftkit.metrics.sums import Scoring, intervals, score
from graftkit.report import baselines
from graftkit.report.markdown import decimals, plural, table, title, told, with_interval
from graftkit.report.reading import Reading
from graftkit.report.sections import NOUNS, apart


def measure(reading: Reading, split: str, scoring: Scoring, headlines: tuple[str, ...]) -> dict[str, Any]:
    """What metrics.json says of the scores of a split. UserError for an unknown headline."""
    headline = reading.run.get("headline") or headlines[0]
    if headline not in headlines:
        raise UserError(f"no headline {headline!r} for this task; choose one of {', '.join(headlines)}")
    records, groups = reading.records[split], reading.groups(split)
    found = {name: asdict(interval) for name, interval in intervals(scoring, records, groups).items()}
    measured = {
        "rows": len(records),
        "headline": {"name": headline, "lower_is_better": headline in scoring.lower, **found[headline]},
        "scores": score(scoring, records),
        "intervals": found,
    }
    if groups is not None:
        measured["groups"] = {"column": reading.settings.get("group"), "count": len(set(groups.tolist()))}
    return measured


def opening(metrics: Mapping[str, Any], run: Mapping[str, Any], does: str, *, perfect: str) -> str:
    """The first sentence of a report: how good, on what, and against what.

    `does` is what the model does, such as "answers questions"; `perfect` what a perfect score would be.
    """
    test = metrics["test"]
    doubt = baselines.doubt(metrics.get("baselines"))
    start, who = (f"**{doubt}**: on", "it") if doubt else ("On", "this model")
    against = ""
    if found := metrics.get("baselines"):
        answer = baselines.nearest(found)
        name = "the simple answer" if doubt else baselines.WORDS[answer["name"]]
        value, interval = told(answer["headline"]["value"], answer["headline"])
        against = f"; {name} reaches {value}" + (f" ({interval})" if interval != "–" else "")
    name, noun = title(test["headline"]["name"]), f"test {NOUNS[run['task']]}"
    article = "an" if name[0] in "aeioEF" or name in ("R²", "RMSE") else "a"
    return (
        f"{start} {plural(test['rows'], noun)}{apart(run)}, {who} {does} with "
        f"{article} {name} of **{with_interval(test['headline'])}**, {perfect}{against}."
    )


def worst(records: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """The records whose prediction is not their label, those of the highest loss."""
    wrong = [record for record in records if record["label"] != record["prediction"]]
    return sorted(wrong, key=lambda record: -record["loss"])[:most]


def scores(metrics: Mapping[str, Any], run: Mapping[str, Any], meanings: Mapping[str, str]) -> str:
    """The chapter on scores: all of them on test with their intervals, on dev, and what each means."""
    test, dev, noun = metrics["test"], metrics.get("dev"), NOUNS[run["task"]]
    first = test["headline"]["name"]
    lines = []
    for name in sorted(test["scores"], key=lambda name: name != first):
        words = f"**{title(name)}**" if name == first else title(name)
        lines.append((words, *_cells(test, name), *([_cells(dev, name)[0]] if dev else []), meanings[name]))
    for answer in (metrics.get("baselines") or {"answers": []})["answers"]:
        value, interval = told(answer["headline"]["value"], answer["headline"])
        words = f"{title(answer['headline']['name'])} of {baselines.WORDS[answer['name']]}"
        lines.append((words, value, interval, *(["–"] if dev else []), "for comparison"))
    header = ("Score", "Test", f"{LEVEL:.0%} interval", *(["Dev"] if dev else []), "What it says")
    groups = test.get("groups")
    unit = plural(groups["count"], "group") if groups else plural(test["rows"], noun)
    sure = (
        f"The interval says how far a score would move on other test {noun}s of the same kind. It says nothing of "
        f"{noun}s of another kind, or of training again with another seed. (Bootstrap of whole "
        f"{'groups' if groups else f'{noun}s'}, up to {RESAMPLES:,} resamples of {unit}, BCa; a share that is none or "
        "all has the interval of Clopper and Pearson.)"
    )
    not_dev = f"The dev {noun}s chose which weights to keep, so the dev scores tend to be too good." if dev else ""
    return "\n\n".join(part for part in (table(header, lines, numbers=[1, 3] if dev else [1]), sure, not_dev) if part)


def _cells(split: Mapping[str, Any], name: str) -> tuple[str, str]:
    return told(split["scores"][name], split["intervals"].get(name), decimals(split["rows"] ** -0.5))
