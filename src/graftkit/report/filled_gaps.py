"""What does a model that fills gaps say of a few documents of test, before and after it was trained?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from graftkit.report.markdown import bold, escape, table
from graftkit.report.reading import Reading
from graftkit.report.sections import is_evaluation
from graftkit.report.tables import read_rows

NAME = "filled_gaps"
SHOWN = 5  # documents
LETTERS = 300  # of a document that are shown


def examples(records: Sequence[Mapping[str, Any]] | None) -> dict[str, list[str]] | None:
    """What the hidden words of a few documents were filled with, by id; None where that is not known."""
    if not records or records[0]["filled"] is None:
        return None
    filled = {record["id"]: record["filled"] for record in records}
    return {id: filled[id] for id in _drawn(list(filled))}


def measure(reading: Reading) -> dict[str, Any] | None:
    """Which documents are shown, by chance that follows from their ids; None where no words were kept."""
    found = examples(reading.records["test"])
    return None if found is None else {"ids": list(found)}


def chapter(found: Mapping[str, Any] | None, reading: Reading) -> str:
    """These documents, with each hidden word and what it was filled with."""
    if found is None:
        return "Not kept: the run was made without `--run.keep_rows`."
    records = {record["id"]: record for record in reading.records["test"]}
    rows = {row["id"]: row for row in read_rows(reading.folder, "test", found["ids"])}
    before = reading.run.get("filled_before")
    lines = [(marked(rows[id], records[id], (before or {}).get(id)), escape(id)) for id in found["ids"]]
    intro = (
        "A few documents of test, drawn by chance. The words that were hidden are bold; after each stands what the "
        f"model says{_when(reading.run)}. All hidden words of a document are hidden at once."
    )
    return f"{intro}\n\n{table(('Document', 'Row'), lines)}"


def _when(run: Mapping[str, Any]) -> str:
    """Of which times the answers are; of a model from elsewhere, and of those of folds, only the last is known."""
    if is_evaluation(run):
        return ""
    if run.get("filled_before"):
        return " before it was trained here, and what it says now"
    return " (nothing is known of before: its head was new)"


def addition(found: Mapping[str, Any], reading: Reading) -> None:
    """The table says it all."""


def marked(
    row: Mapping[str, Any], record: Mapping[str, Any], before: Sequence[str] | None = None, around: int = 0
) -> str:
    """The part of a document around one of its hidden words, by its number, with all hidden words there marked."""
    text, spans = row["text"], json.loads(row["hidden"])
    first = spans[around][0] - LETTERS // 2 if spans[around][1] > LETTERS else 0
    last = first + LETTERS
    shown, done = "… " * (first > 0), first
    for number, (start, end) in enumerate(spans):
        if first <= start and end <= last:
            said = _said(record["words"][number], record["filled"][number], before and before[number])
            shown = bold(escape(text[start:end]), before=shown + _plain(text[done:start])) + f" ({said})"
            done = end
    rest = text[done : max(done, last)]
    return shown + _plain(rest) + " …" * (done + len(rest) < len(text))


def _said(word: str, filled: str, before: str | None) -> str:
    def told(answer: str) -> str:
        return "right" if answer == word else f"“{escape(answer)}”"

    return told(filled) if before is None else f"before {told(before)}, now {told(filled)}"


def _plain(part: str) -> str:
    """Escaped, with the blanks at its ends."""
    words = escape(part)
    return " " * part[:1].isspace() + words + " " * (bool(words) and part[-1:].isspace())


def _drawn(ids: Sequence[str]) -> list[str]:
    """A few ids, the same of the same ids."""
    return sorted(sorted(ids, key=lambda id: hashlib.sha256(id.encode()).digest())[:SHOWN], key=ids.index)
