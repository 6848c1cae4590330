"""Which words does a model that fills gaps find hardest?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from graftkit.report.markdown import escape, number, percent, table
from graftkit.report.reading import Reading

NAME = "hard_words"
SHOWN = 20
ENOUGH = 3  # times that a word must have been hidden; where none was, once is enough


def measure(reading: Reading) -> dict[str, Any] | None:
    """The words of test with the highest mean loss; None where no words were kept."""
    records = reading.records["test"]
    if records[0]["words"] is None:
        return None
    losses, filled = defaultdict(list), defaultdict(Counter)
    for record in records:
        for word, answer, loss in zip(record["words"], record["filled"], record["losses"], strict=True):
            losses[word].append(loss)
            filled[word][answer] += 1
    enough = ENOUGH if any(len(found) >= ENOUGH for found in losses.values()) else 1
    lines = [
        {
            "word": word,
            "hidden": len(found),
            "right": filled[word][word],
            "mean_loss": float(np.mean(found)),
            "taken_for": min(((-n, one) for one, n in filled[word].items() if one != word), default=(0, None))[1],
        }
        for word, found in losses.items()
        if len(found) >= enough
    ]
    lines.sort(key=lambda line: (-line["mean_loss"], line["word"]))
    return {"at_least": enough, "of": len(lines), "words": lines[:SHOWN]}


def chapter(found: Mapping[str, Any] | None, reading: Reading) -> str:
    """A table of these words."""
    if found is None:
        return "Not kept: the run was made without `--run.keep_rows`."
    lines = [
        (
            escape(line["word"]) or "–",
            f"{line['hidden']:,}",
            f"{line['right']:,} ({percent(line['right'], line['hidden'])})",
            number(line["mean_loss"], 1),
            "–" if line["taken_for"] is None else escape(line["taken_for"]) or "–",
        )
        for line in found["words"]
    ]
    least = f", of the {found['of']:,} that were hidden {found['at_least']} times or more" * (found["at_least"] > 1)
    intro = (
        f"The words of test with the highest loss{least}. Numbers and names are hard to fill by their nature. A word "
        "of your field that stands here, taken for one of everyday language, needs more text that it stands in."
    )
    header = ("Hidden word", "Times hidden", "Filled in right", "Mean loss", "Most often taken for")
    return f"{intro}\n\n{table(header, lines, numbers=[1, 2, 3])}"


def addition(found: Mapping[str, Any], reading: Reading) -> None:
    """The table says it all."""
