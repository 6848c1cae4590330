"""Which columns hold the text and the label?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.data.files import Table
from graftkit.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_NAMES = [
    *("text", "sentence", "body", "content", "message", "review", "comment"),
    *("utterance", "question", "query", "tweet", "document"),
]
LABEL_NAMES = ["label", "labels", "category", "class", "intent", "target", "sentiment", "topic", "emotion"]

HASHED_ROWS = 20_000  # rows that stand in memory as Python strings at a time


@dataclass(frozen=True)
class Columns:
    """The names of the columns to read."""

    text: str
    text_pair: str | None
    label: str


@dataclass(frozen=True)
class LabelledRows:
    """One split of texts and labels, on the way from a Table to a Dataset."""

    where: str  # how messages name its source
    rows: pa.Table  # number, id, text, [text_pair], label (strings; null where missing); content, once it is numbered

    def __len__(self) -> int:
        return self.rows.num_rows

    def column(self, name: str) -> np.ndarray:
        """A column as a NumPy array, (rows,)."""
        return self.rows.column(name).to_numpy()

    def classes(self) -> np.ndarray:
        """The labels as numbers from 0, in the order in which they first stand, (rows,)."""
        encoded = self.rows.column("label").dictionary_encode()  # one dictionary for all chunks
        return np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])

    def label_counts(self) -> dict[str, int]:
        """How many rows each label has, in the order in which they first stand."""
        return {count["values"]: count["counts"] for count in self.rows.column("label").value_counts().to_pylist()}

    def fingerprint(self) -> str:
        """SHA-256 of what the rows say in their order, whatever file they came from.

        It is that of the JSON array of all rows, `json.dumps(rows, ensure_ascii=False)` in UTF-8, each row being
        [text, text_pair or null, label]; it is made and hashed in pieces.
        """
        whole, between = hashlib.sha256(b"["), ""
        for batch in self.rows.to_batches(max_chunksize=HASHED_ROWS):
            columns = batch.to_pydict()
            pairs = columns.get("text_pair", [None] * len(batch))
            rows = list(zip(columns["text"], pairs, columns["label"], strict=True))
            whole.update((between + json.dumps(rows, ensure_ascii=False)[1:-1]).encode())
            between = ", "
        whole.update(b"]")
        return whole.hexdigest()

    def keep(self, kept: np.ndarray) -> LabelledRows:
        """The rows where `kept` (rows,) is true, in their order."""
        import pyarrow as pa

        return replace(self, rows=self.rows.filter(pa.array(kept, pa.bool_())))


def choose_columns(
    table: Table, text: str | None, text_pair: str | None, label: str | None
) -> tuple[Columns, list[str]]:
    """The columns that the user named, or else the only ones named like a text and a label; and notes for the log."""
    notes: list[str] = []

    def choose(role: str, name: str | None, known: Sequence[str]) -> str:
        if name is not None:
            return name
        found = [column for column in table.rows.column_names if column.lower() in known]
        if len(found) == 1:
            notes.append(f"{role} column: {found[0]!r} (the only one named like a {role})")
            return found[0]
        listed = ", ".join(repr(column) for column in found or table.rows.column_names)
        problem = f"{listed} could each be the {role}" if found else f"no column is named like a {role}; found {listed}"
        raise UserError(f"{table.where}: {problem}. Set --data.{role}")

    columns = Columns(choose("text", text, TEXT_NAMES), text_pair, choose("label", label, LABEL_NAMES))
    names = [name for name in vars(columns).values() if name is not None]
    if len(set(names)) < len(names):
        raise UserError(f"--data.text, .text_pair and .label name the same column twice: {', '.join(names)}")
    return columns, notes


def label_rows(split: str, table: Table, columns: Columns) -> LabelledRows:
    """The chosen columns as strings, and an id for each row: `train-17` is row 17 of the source of train."""
    import pyarrow as pa

    wanted = {role: name for role, name in vars(columns).items() if name is not None}
    for role, name in wanted.items():
        if name not in table.rows.column_names:
            listed = ", ".join(repr(column) for column in table.rows.column_names)
            raise UserError(f"no column {name!r} in {table.where}; found {listed}. Set --data.{role}")
    data = table.rows.select_columns(list(wanted.values())).with_format("arrow")[:]
    names = class_names(table, columns.label)
    rows = {
        "number": table.numbers,
        "id": pa.array([f"{split}-{number}" for number in table.numbers.tolist()], pa.string()),
    }
    for role, name in wanted.items():
        rows[role] = _as_strings(
            data.column(name), names if role == "label" else None, f"{table.where}: column {name!r}", role
        )
    return LabelledRows(table.where, pa.table(rows))


def class_names(table: Table, column: str) -> list[str] | None:
    """The names of a ClassLabel column, in its order; None for a column of any other kind."""
    from datasets import ClassLabel

    feature = table.rows.features.get(column)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def sort_labels(labels: set[str], names: Sequence[str] | None) -> list[str]:
    """ClassLabel names first, in their order; then the rest by number where all are integers, else by letter."""
    rest = labels - set(names or [])
    try:
        ordered = sorted(rest, key=lambda label: (int(label), label))
    except ValueError:
        ordered = sorted(rest)
    return [*(names or []), *ordered]


def _as_strings(values: pa.ChunkedArray, names: list[str] | None, where: str, role: str) -> pa.ChunkedArray:
    """Numbers as they are written without needless digits (1.0 is '1'), booleans as 'true' and 'false'."""
    import pyarrow as pa

    kind = values.type
    if names is not None:  # the Hub writes -1 for a label that is withheld
        return _replace_each(values, lambda number: names[number] if number >= 0 else None)
    if pa.types.is_floating(kind):
        return _replace_each(
            values, lambda number: None if np.isnan(number) else np.format_float_positional(number, trim="-")
        )
    types = pa.types
    texts = (types.is_string, types.is_large_string, types.is_null)
    if not any(holds(kind) for holds in (*texts, types.is_integer, types.is_decimal, types.is_boolean)):
        raise UserError(f"{where} holds {kind}, and a {role} is one string. Set --data.{role}")
    return values.cast(pa.string())


def _replace_each(values: pa.ChunkedArray, to_string: Any) -> pa.ChunkedArray:
    """`to_string` of each value that is not null, worked out once for each distinct one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    distinct = values.unique().drop_null()
    strings = pa.array([to_string(value) for value in distinct.to_numpy(zero_copy_only=False)], pa.string())
    places = pc.index_in(values, value_set=distinct)
    return pa.chunked_array([strings.take(chunk) for chunk in places.chunks], pa.string())
