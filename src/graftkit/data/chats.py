"""Which texts to go on from, and which to answer with?

Documents, as `documents` reads them; chats, rows with a list of messages; or prompts, each with its completion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graftkit.data.checks import BadRows
from graftkit.data.columns import (
    TEXT_NAMES,
    Columns,
    LabelledRows,
    choose_columns,
    extra_columns,
    label_rows,
    number_rows,
    read_columns,
)
from graftkit.data.documents import DOCUMENTS, DocumentsConfig, document_rows, load_documents_to_cut
from graftkit.data.files import Table
from graftkit.data.list_columns import parse_written
from graftkit.data.repeats import number_contents
from graftkit.data.splits import Checked, Kind, Splits, dataset_of, make_plain_splits
from graftkit.data.turns import Reader
from graftkit.errors import UserError

COLUMN_NAMES = {
    "text": TEXT_NAMES,
    "messages": ["messages", "conversation", "conversations"],
    "prompt": ["prompt"],
    "completion": ["completion", "response"],
}
OF_CHATS, OF_PROMPTS, OF_DOCUMENTS = ("messages",), ("prompt", "completion"), ("text",)
ROLES = ("system", "user", "assistant")
ORDER = "roles out of order (system may come first, then user and assistant in turn, the assistant last)"


@dataclass(frozen=True)
class GenerateDataConfig(DocumentsConfig):
    """Which texts to learn from, and which of their columns."""

    messages: str | None = None
    """column of chats: lists of messages, each with role and content (by default the only one named like messages)"""
    prompt: str | None = None
    """column of prompts (by default the one named prompt)"""
    completion: str | None = None
    """column of what is to follow a prompt (by default the one named completion or response)"""


def load_to_generate(
    config: GenerateDataConfig,
    seed: int,
    reader: Reader,
    length: int,
    extra: Sequence[str] = (),
    group: str | None = None,
) -> Splits:
    """Train, dev and test, checked; what is not there is cut from train, the same way for the same seed.

    Rows have `id`, and `text`, or `chat` (a JSON list of messages), or `prompt` and `completion`; and the `extra`
    columns as `column:<name>`. `length`: tokens that the model reads at once. UserError for what cannot be found, read
    or learnt from.
    """
    tables, notes, bad = load_documents_to_cut(config)
    columns, column_notes = _choose(tables["train"], config)
    roles = tuple(columns)
    rows_of, kind = ROWS[roles]
    rows = {split: rows_of(split, table, columns, extra, bad) for split, table in tables.items()}
    if roles != OF_DOCUMENTS:
        if roles == OF_CHATS and not reader.template:
            raise UserError(
                "--backbone.name: its tokenizer has no chat template, so nothing says how messages are written; take "
                "an instruction-tuned checkpoint, or data with --data.prompt and --data.completion"
            )
        rows = {split: _check_tokens(split, one, reader, length, bad) for split, one in rows.items()}
    content = number_contents(rows, list(rows["train"].said))
    cut = make_plain_splits(config, Checked(tables, columns, content, bad, [*notes, *column_notes]), kind, seed, group)
    endless = [NEVER_CLOSED] if roles != OF_DOCUMENTS and reader.close is None else []
    return replace(cut, notes=[*cut.notes, LEARNS[roles]], warnings=[*cut.warnings, *endless])


def _choose(table: Table, config: GenerateDataConfig) -> tuple[Columns, list[str]]:
    """The columns of the one kind of rows that the user named, or that is there."""
    named = {role: getattr(config, role) for role in COLUMN_NAMES}
    kinds = (OF_CHATS, OF_PROMPTS, OF_DOCUMENTS)
    asked = [kind for kind in kinds if any(named[role] is not None for role in kind)]
    if len(asked) > 1:
        flags = " and ".join(f"--data.{next(role for role in kind if named[role] is not None)}" for kind in asked)
        raise UserError(f"{flags}: rows are chats, prompts with completions, or documents; set one kind of column")
    if not asked:
        there = {name.lower() for name in table.rows.column_names}
        asked = [kind for kind in kinds if all(there & set(COLUMN_NAMES[role]) for role in kind)]
        if len(asked) > 1:
            flags = " or ".join(f"--data.{kind[0]}" for kind in asked)
            listed = ", ".join(map(repr, table.rows.column_names))
            raise UserError(f"{table.where}: {listed} could be rows of several kinds. Set {flags}")
    roles = asked[0] if asked else OF_DOCUMENTS
    known = {role: COLUMN_NAMES[role] for role in roles}
    ways_out = {"text": ", or --data.prompt and --data.completion, or --data.messages"}
    return choose_columns(table, {role: named[role] for role in roles}, known, ways_out)


# prompts


def _prompt_rows(split: str, table: Table, columns: Columns, extra: Sequence[str], bad: BadRows) -> LabelledRows:
    """The rows with a prompt and a completion, neither blank. UserError where none is left."""
    import pyarrow.compute as pc

    rows = replace(label_rows(split, table, columns, extra), said=OF_PROMPTS)
    for role in OF_PROMPTS:
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(rows.rows.column(role)), ""), True).to_numpy()
        rows = bad.without(split, rows, f"an empty {role}", blank)
    if not len(rows):
        raise UserError(f"{rows.where}: no row with a prompt and a completion is left. Set --data.{split}")
    return rows


# chats


def _chat_rows(split: str, table: Table, columns: Columns, extra: Sequence[str], bad: BadRows) -> LabelledRows:
    """The rows with messages whose roles take turns, as JSON. UserError where none is left."""
    import pyarrow as pa

    chats = [_parse(value) for value in read_columns(table, columns)["messages"].to_pylist()]
    wrong = [wrong_with(chat) for chat in chats]
    written = [None if why else _write(chat) for chat, why in zip(chats, wrong, strict=True)]
    rows = pa.table(
        {**number_rows(split, table), "chat": pa.array(written, pa.string()), **extra_columns(table, extra)}
    )
    return _without(split, LabelledRows(table.where, rows, said=("chat",)), wrong, bad)


def wrong_with(messages: Any) -> str | None:
    """Why a list of messages is no chat to learn from; None where it is one."""
    if not isinstance(messages, list) or not messages:
        return "no messages"
    if not all(isinstance(one, Mapping) and isinstance(one.get("role"), str) for one in messages):
        return "a message without a role (messages are objects with role and content)"
    if not all(isinstance(one.get("content"), str) and one["content"].strip() for one in messages):
        return "an empty message"
    roles = [one["role"] for one in messages]
    if not set(roles) <= set(ROLES):
        return f"a role that is not {', '.join(ROLES[:-1])} or {ROLES[-1]}"
    if "assistant" not in roles:
        return "no assistant turn"
    turns = roles[1:] if roles[0] == "system" else roles
    return None if turns == ["user", "assistant"] * (len(turns) // 2) else ORDER


def _parse(value: Any) -> Any:
    """The messages of a row, which may be written as text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_written(value)
    except ValueError:
        return None


def _write(messages: Sequence[Mapping[str, str]]) -> str:
    return json.dumps([{name: one[name] for name in ("role", "content")} for one in messages], ensure_ascii=False)


# both


def _check_tokens(split: str, rows: LabelledRows, reader: Reader, length: int, bad: BadRows) -> LabelledRows:
    """The rows whose answers can be found, and begin before the model has read all that it can."""

    def why(row: Mapping[str, str]) -> str | None:
        try:
            counted = reader.read(row).counted
        except ValueError as error:
            return str(error)
        return None if any(counted[: length + 1]) else f"a prompt longer than the model reads ({length} tokens)"

    return _without(split, rows, [why(row) for row in rows.rows.select(rows.said).to_pylist()], bad)


def _without(split: str, rows: LabelledRows, wrong: Sequence[str | None], bad: BadRows) -> LabelledRows:
    """The rows with which nothing is wrong. UserError where none is left."""
    for reason in dict.fromkeys(why for why in wrong if why is not None):
        places = np.array([why == reason for why in wrong])
        bad.refuse_or_count(split, rows.where, reason, rows.column("number")[places])
    rows = rows.keep(np.array([why is None for why in wrong], bool))
    if not len(rows):
        raise UserError(f"{rows.where}: no row is left. Set --data.{split} to others")
    return rows


RowsOf = Callable[[str, Table, Columns, Sequence[str], BadRows], LabelledRows]
CHATS = Kind("chats", "repeat an earlier chat", "also stand in {}", dataset_of("chat"))
PROMPTS = Kind("prompts", "repeat an earlier prompt and completion", "also stand in {}", dataset_of(*OF_PROMPTS))
ROWS: dict[tuple[str, ...], tuple[RowsOf, Kind]] = {
    OF_CHATS: (_chat_rows, CHATS),
    OF_PROMPTS: (_prompt_rows, PROMPTS),
    OF_DOCUMENTS: (document_rows, DOCUMENTS),
}
LEARNS = {
    OF_CHATS: "rows are chats: the assistant's turns are learnt, the others are read",
    OF_PROMPTS: "rows are prompts with completions: the completions are learnt, the prompts are read",
    OF_DOCUMENTS: "rows are documents: every token is learnt, and the end of each",
}
NEVER_CLOSED = (
    "the chat template writes no special token after an answer, so the model does not learn to stop; take a checkpoint "
    "whose tokenizer has the token that its template ends a turn with"
)
