"""What do we tell people of a comparison?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from graftkit.compare.arms import Arm, Rows, contents, cut, load
from graftkit.compare.difference import Difference, flips, measure, model_scores
from graftkit.errors import UserError
from graftkit.metrics import classification, comparison
from graftkit.metrics.comparison import ALPHA, SWAPS
from graftkit.metrics.intervals import LEVEL, RESAMPLES, Interval, clopper_pearson
from graftkit.metrics.slices import slice_changes
from graftkit.report import slices
from graftkit.report.classification import FEW_GROUPS, content_of
from graftkit.report.markdown import (
    bullets,
    decimals,
    escape,
    number,
    percent,
    plural,
    probability,
    table,
    title,
    with_sign,
)
from graftkit.report.sections import NOUNS
from graftkit.report.tables import written_aside

CLASSES = 5  # of those that changed, the most that are shown; of slices too
FLIPPED = 5  # of the rows that flipped, each way
MANY_SEEDS = 5  # in each arm, from which on nothing is said of few


def compare(names: Sequence[str], worse_than: float | None = None, output: str | None = None) -> int:
    """Print how runs on the same test rows differ, as Markdown, and write that to `output`; returns the exit code.

    A name is the folder of a run, or several with commas between them: the seeds of one arm. The exit code is 1 where
    an arm's headline score is shown to be worse than the reference's (p at most 0.05) and, with 95% confidence, by more
    than `worse_than`: the one-sided bound of the difference lies below its negative. Both hold over all arms together.
    """
    arms, rows = load(names)
    reference, others = arms[0], arms[1:]
    headline = reference.runs[0].headline
    scores = list(dict.fromkeys([headline, "accuracy"]))
    found = measure(reference, others, rows, scores)
    parts = [f"# Comparison on {plural(len(rows.ids), 'test row')}", _overview(arms, rows, scores)]
    parts.append(" ".join([_matched(arms), *_grouped(rows)]))
    for arm, differences in zip(others, found, strict=True):
        parts.append(_chapter(reference, arm, rows, differences, len(others)))
    parts.append(f"## How to read this\n\n{_reading(reference, rows, scores, len(others))}")
    gates = []
    if worse_than is not None:
        gates = [_gate(arm, each[headline], worse_than) for arm, each in zip(others, found, strict=True)]
        lines = bullets(line for _, line in gates)
        parts.append(f"## Gate: fail if {title(headline)} is worse by more than {worse_than:g}\n\n{lines}")
    page = "\n\n".join(parts) + "\n"
    if output is not None:
        _save(Path(output), page)
    print(page, end="")
    return int(any(failed for failed, _ in gates))


def _save(path: Path, page: str) -> None:
    try:
        with written_aside(path) as aside:
            aside.write_text(page, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written ({error.strerror})") from error


def _overview(arms: Sequence[Arm], rows: Rows, scores: Sequence[str]) -> str:
    """Each arm with its scores: of one model with intervals, of several seeds the mean and the range."""
    several = len(arms[0].runs) > 1
    lines = []
    for arm in arms:
        name = escape(arm.name) + (" (the reference)" if arm is arms[0] else "")
        lines.append([arm.letter, name])
        if several:
            for values in (model_scores(arm, rows)[name] for name in scores):
                places = decimals(float(np.ptp(values)) / 2)
                low, high = number(float(values.min()), places), number(float(values.max()), places)
                lines[-1] += [number(float(values.mean()), places), f"{low} to {high}"]
        else:
            said, labels = arm.said[0], len(rows.labels)
            drawn = rows.groups
            if drawn is not None:
                drawn = classification.group_counts(rows.truth, said, drawn, labels)
            intervals = classification.intervals(classification.confusion(rows.truth, said, labels), drawn)
            lines[-1] += [cell for name in scores for cell in _cells(intervals[name])]
    spread = "Over its seeds" if several else f"{LEVEL:.0%} interval"
    heads = [head for name in scores for head in (_named(name, several), spread)]
    return table(["", "Runs" if several else "Run", *heads], lines, numbers=range(2, 2 + len(heads), 2))


def _matched(arms: Sequence[Arm]) -> str:
    runs = [run for arm in arms for run in arm.runs]
    blind = [escape(str(run.folder)) for run in runs if run.digests is None]
    if not blind:
        return "All of these runs answered the same rows, by id, content and label."
    return (
        f"Rows were matched by id and label alone for {', '.join(blind)}: shared without its rows, so whether "
        "they hold the same cannot be told here."
    )


def _grouped(rows: Rows) -> list[str]:
    """That rows belong together, and what was done about it, in sentences; none where each stands for itself."""
    if rows.groups is None:
        return []
    few = "" if rows.units >= FEW_GROUPS else f" Fewer than {FEW_GROUPS} are few: intervals are rather too narrow."
    return [
        f"Rows of one {_by(rows.grouped_by)} belong together: what was drawn are whole groups of column "
        f"{_by(rows.grouped_by)}, {rows.units:,} of them, not rows.{few}"
    ]


def _by(columns: Sequence[str]) -> str:
    return " or ".join(map(escape, columns))


def _chapter(reference: Arm, arm: Arm, rows: Rows, differences: dict[str, Difference], comparisons: int) -> str:
    pair = len(arm.runs) == 1
    lines = []
    for name, difference in differences.items():
        value, interval = _cells(difference.interval, sign="+")
        lines.append((_named(name, not pair), value, interval, probability(difference.p)))
    raised = f"p, raised for {comparisons} comparisons" if comparisons > 1 else "p"
    parts = [
        f"## {arm.letter} against {reference.letter}",
        _verdict(reference, arm, rows, differences),
        table(("Score", "Difference", f"{LEVEL:.0%} interval", raised), lines, numbers=[1, 3]),
        _classes(reference, arm, rows),
        _slices(reference, arm, rows),
    ]
    return "\n\n".join(parts + ([_flipped(reference, arm, rows)] if pair else []))


def _verdict(reference: Arm, arm: Arm, rows: Rows, differences: dict[str, Difference]) -> str:
    """Which is better, or that these rows (and seeds) cannot tell, and what they could have told."""
    (headline, difference), pair = next(iter(differences.items())), len(arm.runs) == 1
    enough = plural(len(rows.ids), "row")
    if rows.groups is not None:
        enough += f" in {plural(rows.units, 'group')}"
    if not pair:
        enough = f"{len(reference.runs)} and {len(arm.runs)} seeds on {enough}"
    value, interval = _cells(difference.interval, sign="+")
    figures = f"{value}, {LEVEL:.0%} interval {interval}, p {probability(difference.p)}"
    if pair and np.array_equal(reference.said, arm.said):
        most = percent(clopper_pearson(0, rows.units, LEVEL)[1])
        return " ".join(
            [
                f"**The two give every row the same class.** {enough} cannot rule out that they part on up to {most} "
                "of other rows.",
                *_too_sure(rows),
            ]
        )
    if difference.shown:
        word = "better" if difference.interval.value > 0 else "worse"
        recipe = "" if pair else ", over seeds"
        sentences = [
            f"**{arm.letter} is {word} than {reference.letter}{recipe}**: {_named(headline, not pair)} {figures}."
        ]
    else:
        sentences = [f"**No difference in {_named(headline, not pair)} that {enough} could show** ({figures})."]
    if difference.interval.method != "constant":
        without_zero = difference.interval.low > 0 or difference.interval.high < 0
        if without_zero != difference.shown:
            sentences.append("The interval and p do not agree on that: it is a borderline case.")
    sentences += _too_sure(rows)
    measured = "accuracy" if pair else _named(headline, True)
    if difference.smallest is None and rows.groups is not None:
        sentences.append("So few groups can hardly show any difference, however large.")
    elif difference.smallest is None:
        sentences.append(f"Indeed {enough} can show no difference at all, however large.")
    else:
        sentences.append(
            f"The smallest difference in {measured} that they reliably show is about {difference.smallest:.2g}: "
            "if that is true, it is found 4 times in 5."
        )
    if not pair and min(len(reference.runs), len(arm.runs)) < MANY_SEEDS:
        sentences.append(
            f"So few seeds hardly show how much seeds matter ({difference.freedom:.1f} degrees of freedom, hence the "
            f"wide interval); {MANY_SEEDS} or more in each arm tell more."
        )
    return " ".join(sentences)


def _too_sure(rows: Rows) -> list[str]:
    if not rows.unmatched:
        return []
    taken = "row by row" if rows.groups is None else f"by {_by(rows.grouped_by)} alone"
    return [
        f"All of this is taken {taken}, though rows of one {_by(rows.unmatched)} belong together: too sure. (No run "
        "kept which these are.)"
    ]


def _independent(rows: Rows) -> str:
    """What to think of a p-value that takes rows one by one."""
    if rows.groups is None and not rows.unmatched:
        return ""
    return " It takes rows as independent; here they come in groups, so it is too small where a group is alike."


def _classes(reference: Arm, arm: Arm, rows: Rows) -> str:
    """The classes whose F1 changed most."""
    changed = comparison.class_changes(rows.truth, reference.said, arm.said, rows.labels)
    changed = [line for line in changed if line["f1"][0] != line["f1"][1]]
    if not changed:
        return "No class has another F1."
    a, b = reference.letter, arm.letter
    pair = "p" in changed[0]
    lines = []
    for line in changed[:CLASSES]:
        f1, recall = ([f"{number(value, 2)}" for value in line[name]] for name in ("f1", "recall"))
        change = with_sign(line["f1"][1] - line["f1"][0], 2)
        cells = [escape(line["label"]), f"{line['support']:,}", *f1, change, *(recall if line["support"] else "––")]
        lines.append(cells + ([f"{line['lost']:,}", f"{line['gained']:,}", probability(line["p"])] if pair else []))
    header = ["Class", "Rows", f"F1 of {a}", f"F1 of {b}", "Change", f"Recall of {a}", f"Recall of {b}"]
    header += ["Rows lost", "Rows gained", "p"] if pair else []
    which = f"The {CLASSES} of {len(changed)} that changed most" if len(changed) > CLASSES else "Those that changed"
    intro = f"Of {plural(len(rows.labels), 'class', 'classes')}. {which}, by F1:"
    after = f"\n\np is that of the rows lost and gained, raised for {len(rows.labels)} classes." if pair else ""
    after += _independent(rows) if pair else ""
    return f"### Classes\n\n{intro}\n\n{table(header, lines, numbers=range(1, len(header)))}{after}"


def _slices(reference: Arm, arm: Arm, rows: Rows) -> str:
    """The slices whose share of right answers changed most."""
    run, found = cut([*reference.runs, *arm.runs], rows.ids)
    if run is None:
        return "### Slices\n\nNot compared: these runs kept no measures of their rows by which they could be cut."
    changed = slice_changes(found, rows.truth, reference.said, arm.said)
    changed = [line for line in changed if line["right"][0] != line["right"][1]]
    if not changed:
        return f"### Slices\n\nNone of {plural(len(found), 'slice')} has another share right."
    pair, lines = "p" in changed[0], []
    for line in changed[:CLASSES]:
        name = slices.words(line, NOUNS[run.reading.run["task"]])
        shares, change = map(percent, line["right"]), with_sign(100 * (line["right"][1] - line["right"][0]), 0)
        cells = [escape(name[0].upper() + name[1:]), f"{line['rows']:,}", *shares, change]
        lines.append(cells + ([f"{line['lost']:,}", f"{line['gained']:,}", probability(line["p"])] if pair else []))
    header = ["Slice", "Rows", f"Right in {reference.letter}", f"Right in {arm.letter}", "Change (points)"]
    header += ["Rows lost", "Rows gained", "p"] if pair else []
    which = f"The {CLASSES} of {len(changed)} that changed most" if len(changed) > CLASSES else "Those that changed"
    intro = (
        f"Of {plural(len(found), 'slice')}, as {escape(str(run.folder))} measured the rows. {which}, by what is right:"
    )
    after = f"\n\np is that of the rows lost and gained, raised for {plural(len(found), 'slice')}." if pair else ""
    after += _independent(rows) if pair else ""
    return f"### Slices\n\n{intro}\n\n{table(header, lines, numbers=range(1, len(header)))}{after}"


def _flipped(reference: Arm, arm: Arm, rows: Rows) -> str:
    """How many rows went from right to wrong and back, and those of which the wrong model was surest."""
    lost, gained, moved = flips(reference.said[0], arm.said[0], rows.truth)
    a, b = reference.letter, arm.letter
    counts = (
        f"{a} alone is right on {plural(int(lost.sum()), 'row')}, {b} alone on {int(gained.sum()):,}; on "
        f"{int(moved.sum()):,} both are wrong, each in its own way."
    )
    parts = [f"### Rows that flipped\n\n{counts}"]
    for right, wrong, which in ((reference, arm, lost), (arm, reference, gained)):
        records = wrong.runs[0].records
        ids = [rows.ids[place] for place in np.flatnonzero(which)]
        shown = sorted(ids, key=lambda id: -records[id]["loss"])[:FLIPPED]
        if shown:
            kept = contents([right.runs[0], wrong.runs[0]], shown)
            lines = [
                (
                    content_of(kept.get(id, {})),
                    *(escape(records[id][name]) for name in ("label", "prediction")),
                    escape(id),
                )
                for id in shown
            ]
            first = f", the {FLIPPED} worst of {len(ids):,}" if len(ids) > FLIPPED else ""
            header = ("What it holds", "True class", f"{wrong.letter} says", "Row")
            parts.append(f"Right in {right.letter}, wrong in {wrong.letter}{first}:\n\n{table(header, lines)}")
    return "\n\n".join(parts)


def _reading(reference: Arm, rows: Rows, scores: Sequence[str], comparisons: int) -> str:
    """Where the figures come from, and what they do not say."""
    level, drawn = ALPHA / comparisons, "row" if rows.groups is None else "group"
    if len(reference.runs) > 1:
        facts = [
            "Arms of several seeds compare recipes, as far as these seeds stand for others: Welch's t over the scores "
            f"of the seeds, with the variance that other test rows would bring (paired bootstrap by {drawn}, "
            f"{RESAMPLES:,} resamples) added, and Satterthwaite's degrees of freedom.",
            f"The difference that is found 4 times in 5 is for this test, at level {level:.2g}.",
        ]
    else:
        swaps = [title(name) for name in scores if name != "accuracy"]
        other = (
            f" That of {swaps[0]}: the two answers of each row trade places by chance, {SWAPS:,} times."
            if swaps
            else ""
        )
        facts = [
            "A pair compares two models, not two recipes: the same recipe with another seed gives another model, and "
            "with enough rows even such a pair differs. For recipes, give several seeds of each: "
            "`graft compare A1,A2,A3 B1,B2,B3`.",
            f"Intervals: bootstrap by {drawn}, {RESAMPLES:,} resamples, BCa; of differences, both models on the same "
            "rows.",
        ]
        tested = f"for McNemar's test, at level {level:.2g},"
        if rows.groups is None:
            facts.append(f"p of accuracy: the exact test of McNemar, two-sided.{other}")
        else:
            facts.append(f"p: the answers of all rows of a group trade places together by chance, {SWAPS:,} times.")
            tested += " on as many rows as these groups are worth,"
        facts.append(
            f"The difference that is found 4 times in 5 is {tested} where as large a share of rows as here is right in "
            "one model alone."
        )
    if comparisons > 1:
        facts.append(
            f"With {comparisons} comparisons p is raised by Holm's method, so that all that are at most {ALPHA:g} hold "
            "together; each interval holds by itself."
        )
    return bullets([*facts, "All of it speaks of rows of the same kind as these, and of no others."])


def _gate(arm: Arm, difference: Difference, worse_than: float) -> tuple[bool, str]:
    """Whether an arm fails the gate, and why."""
    places = decimals((difference.interval.high - difference.interval.low) / 2) + 1
    sure = f"with {1 - ALPHA:.0%} confidence, one-sided"
    if difference.shown and difference.most < -worse_than:
        return True, f"{arm.letter} **fails**: it is worse by at least {-difference.most:.{places}f} ({sure})."
    line = f"{arm.letter} **passes**: it is not shown to be worse by more than that"
    if difference.least == difference.most:  # no resample tells the two apart, which does not make them equal
        return False, f"{line}; how much worse it may be on other rows, these cannot tell."
    if difference.least < -worse_than:
        return False, f"{line}, though it may be worse by up to {-difference.least:.{places}f} ({sure})."
    return False, f"{line}, and is not ({sure})."


def _named(score: str, several: bool) -> str:
    return f"mean {title(score)}" if several else title(score)


def _cells(interval: Interval, sign: str = "") -> tuple[str, str]:
    """A score or a difference, and its interval, with as many digits as that supports; – where it does not vary."""
    shown = with_sign if sign else number
    if interval.method == "constant":
        return shown(interval.value, 2), "–"
    places = decimals((interval.high - interval.low) / 2)
    value = shown(interval.value, places)
    places = len(value.partition(".")[2])
    low, high = (f"{round(end, places) + 0.0:{sign}.{places}f}" for end in (interval.low, interval.high))
    return value, f"{low} to {high}"
