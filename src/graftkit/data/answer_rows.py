"""Which questions, on texts that hold their answers?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graftkit.data.checks import SHOWN, BadRows, check_filled
from graftkit.data.columns import (
    EXTRA,
    Columns,
    LabelledRows,
    as_strings,
    choose_columns,
    extra_columns,
    number_rows,
    read_columns,
)
from graftkit.data.config import RowsConfig
from graftkit.data.cuts import join_groups
from graftkit.data.files import READERS, Table
from graftkit.data.list_columns import parse_written
from graftkit.data.repeats import number_contents
from graftkit.data.sources import DEMO, Places, Source, data_files, offer_files
from graftkit.data.splits import Checked, Kind, Splits, dataset_of, load_to_cut, make_plain_splits
from graftkit.data.squad import read_questions
from graftkit.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMN_NAMES = {
    "context": ["context", "passage", "paragraph", "document"],
    "question": ["question", "query"],
    "answers": ["answers", "answer", "answer_text"],
}
STARTS = ["answer_start", "answer_starts", "start"]
DEMO_FOLDER = Path(__file__).parent / "answers"
CONTEXT = "context"  # the name of the column by which questions belong together, whatever the data call it
VERSION = re.compile(r"-v\d+(\.\d+)*$")  # train-v2.0.json, as SQuAD's files are named
AROUND = 3  # characters that a message shows beyond an answer that is not where it should be
SHORT = 40  # characters of an answer that a message shows


@dataclass(frozen=True)
class AnswersDataConfig(RowsConfig):
    """Which questions to learn from, and which of their columns."""

    context: str | None = None
    """column of the text that is asked of (by default the only one named like a context)"""
    question: str | None = None
    """column of the question (by default the only one named like a question)"""
    answers: str | None = None
    """column of the answers, as SQuAD has them (text and answer_start), or of one text; empty: the question has none
    (by default the only one named like answers)"""
    answer_start: str | None = None
    """column of where an answer begins, in characters from 0, where it does not stand in the column of the answers"""


class Answers(NamedTuple):
    """The answers that a row accepts, and where they begin in the context, in characters."""

    texts: list[str]
    starts: list[int]


def load_answers(config: AnswersDataConfig, seed: int, extra: Sequence[str] = (), group: str | None = None) -> Splits:
    """Train, dev and test, checked; what is not there is cut from train by whole contexts, the same for the same seed.

    Rows have `id`, `context`, `question`, `answers` (list of str, empty where there is none), `starts` (list of int:
    where each answer begins) and `question_id`, the data's own or None; and the `extra` columns as `column:<name>`, of
    which "context" is a name for the context. Rows with the same value in the column `group`, one of them, are cut
    together, too. UserError for what cannot be found, read or learnt from.
    """
    tables, notes, bad = load_to_cut(config, _places())
    columns, column_notes = _choose_columns(tables["train"], config)
    rows = {split: _question_rows(split, table, columns, extra, bad) for split, table in tables.items()}
    if not any(rows["train"].rows.column("answers").to_pylist()):
        raise UserError(
            f"{rows['train'].where}: no question of train has an answer, so there is nothing to learn. "
            "Set --data.answers or add rows"
        )
    numbered, together = _cut_together(number_contents(rows, ("context", "question")), group)
    checked = Checked(tables, columns, numbered, bad, [*notes, *column_notes])
    return _describe(make_plain_splits(config, checked, QUESTIONS, seed, together), rows["train"].where)


# where they lie


def _places() -> Places:
    """Files of tables, and of SQuAD."""

    def at(place: Path, where: str) -> Source | None:
        return Source(where, partial(_read, place, where)) if place.is_file() else None

    def in_folder(place: Path, path: str) -> dict[str, Source]:
        files = data_files(place)
        if not files:
            raise UserError(f"no data in the folder {path}: no file there ends in {', '.join(READERS)}")
        names = _names(files, path)
        return {name: at(file, str(Path(path, file.name))) for name, file in zip(names, files, strict=True)}

    return Places(demos={DEMO: lambda: in_folder(DEMO_FOLDER, DEMO)}, in_folder=in_folder, at=at)


def _names(files: Sequence[Path], path: str) -> list[str]:
    """What the splits of a folder are called: bare, and without the version in it, where that tells them apart."""
    names = [VERSION.sub("", name) for name in offer_files(files, path)]
    return names if len(set(names)) == len(names) else list(offer_files(files, path))


def _read(place: Path, where: str) -> Table:
    """The rows of a file, which messages call `where`."""
    if place.suffix.lower() not in READERS:
        raise UserError(f"{where}: cannot read this kind of file; its name must end in {', '.join(READERS)}")
    if place.stat().st_size == 0:
        raise UserError(f"{where} is empty")
    return read_questions(place, where)


def _choose_columns(table: Table, config: AnswersDataConfig) -> tuple[Columns, list[str]]:
    """The columns that the user named, or the only ones named like their role; `answer_start` may have none."""
    there = table.rows.column_names
    named = {role: getattr(config, role) for role in (*COLUMN_NAMES, "answer_start")}
    columns, notes = choose_columns(table, named, COLUMN_NAMES)
    if columns["answer_start"] is None:
        found = [name for name in there if name.lower() in STARTS]
        columns = {**columns, "answer_start": found[0] if len(found) == 1 else None}
    return columns, notes


# what they hold


def _question_rows(split: str, table: Table, columns: Columns, extra: Sequence[str], bad: BadRows) -> LabelledRows:
    """The rows whose answers stand where they say. UserError where none is left."""
    import pyarrow as pa

    values = read_columns(table, columns)
    texts = {role: as_strings(table, columns[role], values[role], role) for role in ("context", "question")}
    there = table.rows.column_names
    data = table.rows.with_format("arrow")[:]
    own = as_strings(table, "id", data.column("id"), "id") if "id" in there else pa.nulls(len(data), pa.string())
    found = [_answers(*pair) for pair in zip(*_written(table, columns, values), strict=True)]
    impossible = data.column("is_impossible").to_pylist() if "is_impossible" in there else [None] * len(found)
    contexts = texts["context"].to_pylist()
    blank = [
        any(not (text or "").strip() for text in pair)
        for pair in zip(contexts, texts["question"].to_pylist(), strict=True)
    ]
    wrong = [
        None if empty else _wrong_with(*row) for empty, *row in zip(blank, contexts, found, impossible, strict=True)
    ]
    _refuse(split, table, wrong, contexts, found, own.to_pylist(), bad)
    good = np.array([reason is None for reason in wrong], bool)
    kept = [
        answers if fine and isinstance(answers, Answers) else Answers([], [])
        for answers, fine in zip(found, good, strict=True)
    ]
    lists = {
        "answers": pa.array([answers.texts for answers in kept], pa.list_(pa.string())),
        "starts": pa.array([answers.starts for answers in kept], pa.list_(pa.int64())),
    }
    rows = pa.table({**number_rows(split, table), **texts, **lists, "question_id": own, **_extra(table, texts, extra)})
    held = LabelledRows(table.where, rows, said=("context", "question", "answers", "starts")).keep(good)
    if not len(held):
        raise UserError(f"{table.where}: no row with a question is left. Set --data.{split}, .context or .answers")
    return check_filled(split, held, bad, ("context", "question"))


def _written(table: Table, columns: Columns, values: Mapping[str, pa.ChunkedArray]) -> tuple[list[Any], list[Any]]:
    """What stands in the columns of answers and of where they begin, as Python values; UserError without the latter."""
    answers = values["answers"].to_pylist()
    if "answer_start" in values:
        return answers, values["answer_start"].to_pylist()
    if all(one is None or (isinstance(one, str) and not one.lstrip().startswith(("{", "["))) for one in answers):
        raise UserError(
            f"{table.where}: column {columns['answers']!r} holds texts, and no column says where they begin in the "
            "context. Set --data.answer_start"
        )
    return answers, [None] * len(answers)


UNREAD = "answers that are no texts with offsets"
UNEQUAL = "answers and offsets of different length"


def _answers(written: Any, start: Any) -> Answers | str:
    """The answers of a row, from whatever writes them; or what is wrong with them."""
    start = _parse(start) if isinstance(start, str) else start
    if isinstance(written, str) and (start is None or isinstance(start, list)):
        written = _parse(written)
    if isinstance(written, dict):
        written, start = written.get("text"), written.get("answer_start")
    elif isinstance(written, list) and all(isinstance(one, dict) for one in written):
        written, start = [one.get("text") for one in written], [one.get("answer_start") for one in written]
    texts = written if isinstance(written, list) else [] if written in (None, "") else [written]
    starts = start if isinstance(start, list) else [] if start is None or (not texts and _is_number(start)) else [start]
    if not all(isinstance(text, str) for text in texts) or not all(_is_number(one) for one in starts):
        return UNREAD
    if len(texts) != len(starts):
        return UNEQUAL
    return Answers(texts, [int(one) for one in starts])


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def _parse(text: str) -> Any:
    """What JSON, or Python as pandas writes it into a csv file, says here; the text itself where that is nothing."""
    for written in (text, re.sub(r"array\((\[.*?\]), dtype=\w+\)", r"\1", text, flags=re.DOTALL)):
        with suppress(ValueError):
            return parse_written(written)
    return text


OUTSIDE = "an answer outside of its context"
ELSEWHERE = "an answer that does not stand at its offset"


def _wrong_with(context: str, answers: Answers | str, impossible: bool | None) -> str | None:
    """Why a row is bad; None where it is not."""
    if isinstance(answers, str):
        return answers
    if impossible and answers.texts:
        return "an answer to a question that is_impossible marks as without"
    if impossible is False and not answers.texts:
        return "no answer to a question that is_impossible marks as with one"
    if not all(text.strip() for text in answers.texts):
        return "an empty answer"
    for text, start in zip(*answers, strict=True):
        if start < 0 or start + len(text) > len(context):
            return OUTSIDE
        if context[start : start + len(text)] != text:
            return ELSEWHERE
    return None


def _refuse(
    split: str,
    table: Table,
    wrong: Sequence[str | None],
    contexts: Sequence[str],
    found: Sequence[Answers | str],
    own: Sequence[str | None],
    bad: BadRows,
) -> None:
    """Refuse or count the rows that are wrong; of the first answer out of place, say what stands where."""
    for reason in dict.fromkeys(reason for reason in wrong if reason is not None):
        places = [place for place, one in enumerate(wrong) if one == reason]
        first = places[0]
        detail = _what_stands(contexts[first], found[first]) if reason in (OUTSIDE, ELSEWHERE) else ""
        ids = [own[place] for place in places if own[place] is not None]
        more = f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else ""
        names = f" (id {', '.join(ids[:SHOWN])}{more})" if ids else ""
        bad.refuse_or_count(split, table.where, reason, table.numbers[places], detail, names)


def _what_stands(context: str, answers: Answers) -> str:
    """Of the first answer that is not where it should be: what stands there, and where the answer does."""
    text, start = next(
        (text, start)
        for text, start in zip(*answers, strict=True)
        if start < 0 or context[start : start + len(text)] != text
    )
    shown = repr(text if len(text) <= SHORT else text[: SHORT - 1] + "…")
    here = context[start : start + min(len(text), SHORT)] if 0 <= start < len(context) else ""
    stands = f"there stands {here!r}" if here else f"its context has {len(context):,} characters"
    places = [match.start() for match in re.finditer(re.escape(text), context)]
    near = min(places, key=lambda place: abs(place - start), default=None)
    other = "it stands nowhere in its context" if near is None else f"it stands at {near:,}"
    return f" (in the first, {shown} should be at {start:,}; {stands}, and {other})"


def _extra(table: Table, texts: Mapping[str, pa.ChunkedArray], names: Sequence[str]) -> dict[str, Any]:
    """The columns that the report asks for, and the context as a short name, by which questions belong together."""
    import pyarrow as pa

    others = extra_columns(table, [name for name in names if name != CONTEXT])
    prints = {
        text: hashlib.sha256(text.encode()).hexdigest()[:16]
        for text in texts["context"].unique().drop_null().to_pylist()
    }
    short = [prints.get(text) for text in texts["context"].to_pylist()]
    return {**others, EXTRA + CONTEXT: pa.array(short, pa.string())}


# what belongs together


def _cut_together(splits: dict[str, LabelledRows], group: str | None) -> tuple[dict[str, LabelledRows], str]:
    """The splits, and the column whose equal values a cut must not part: the context, or that and `group`."""
    import pyarrow as pa

    if group is None or group == CONTEXT:
        return splits, CONTEXT
    sides = []
    for name in (CONTEXT, group):
        values = [value for rows in splits.values() for value in rows.rows.column(EXTRA + name).to_pylist()]
        own = [("row", place) if value is None else ("value", value) for place, value in enumerate(values)]
        places = {one: number for number, one in enumerate(dict.fromkeys(own))}
        sides.append(np.array([places[one] for one in own]))
    joined, name = join_groups(*sides).astype(str), f"{CONTEXT} and {group}"
    ends = np.cumsum([len(rows) for rows in splits.values()])[:-1]
    return {
        split: replace(rows, rows=rows.rows.append_column(EXTRA + name, pa.array(part)))
        for (split, rows), part in zip(splits.items(), np.split(joined, ends), strict=True)
    }, name


QUESTIONS = Kind(
    things="questions",
    repeat="repeat the question and context of an earlier one",
    overlap="also stand in {}",
    to_dataset=dataset_of("context", "question", "answers", "starts", "question_id"),
)


def _describe(cut: Splits, train: str) -> Splits:
    """The splits with what is to be said of contexts, and of questions without an answer."""
    facts, notes, warnings = dict(cut.facts), list(cut.notes), list(cut.warnings)
    counts = {}
    for split in ("train", "dev", "test"):
        rows = getattr(cut, split)
        without = sum(not answers for answers in rows["answers"][:])
        counts[split] = {"contexts": len(set(rows[EXTRA + CONTEXT][:])), "without_answer": without}
    facts["splits"] = {split: facts["splits"][split] | counts[split] for split in counts}
    if facts["cut_from_train"]:
        notes.append("what is cut from train is cut by whole contexts: questions on one text stay together")
    each = ", ".join(f"{one['without_answer']:,} of {split}" for split, one in counts.items())
    notes.append(f"questions without an answer: {each}" if has_none(facts) else "every question has an answer")
    unasked = counts["test"]["without_answer"]
    if unasked and not has_none(facts):
        warnings.append(
            f"{unasked:,} of {len(cut.test):,} questions of test have no answer, and none of train and dev: the model "
            "learns to answer always, and is wrong there"
        )
    if has_none(facts) and not counts["dev"]["without_answer"]:
        warnings.append("every question of dev has an answer, so nothing there says when to give none")
    return replace(cut, facts=facts, notes=notes, warnings=warnings)


def has_none(facts: Mapping[str, Any]) -> bool:
    """Whether some question that is learnt or chosen from has no answer, as in SQuAD 2.0; `facts` are a split's."""
    return any(facts["splits"][split]["without_answer"] for split in ("train", "dev"))
