"""Which columns hold the text and the label?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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

EXTRA = "column:"  # what the name of a column begins with that the report alone reads
HASHED_ROWS = 20_000  # rows that stand in memory as Python strings at a time


Columns = Mapping[str, str | None]
"""The name of the column to read for each role (text, text_pair, label): None where there is none."""


@dataclass(frozen=True)
class LabelledRows:
    """One split of labelled texts (or pictures), on the way from a Table to a Dataset."""

    where: str  # how messages name its source
    rows: pa.Table  # number, id, text, [text_pair], label (strings; null where missing); content, once it is numbered
    said: Sequence[str] = ("text", "text_pair", "label")  # the columns that hold what a row says

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

        It is that of the JSON array of all rows, `json.dumps(rows, ensure_ascii=False)` in UTF-8, each row being the
        array of its columns `said`, such as [text, text_pair or null, label]; it is made and hashed in pieces.
        """
        whole, between = hashlib.sha256(b"["), ""
        for batch in self.rows.to_batches(max_chunksize=HASHED_ROWS):
            columns = batch.to_pydict()
            rows = list(zip(*(columns.get(name, [None] * len(batch)) for name in self.said), strict=True))
            whole.update((between + json.dumps(rows, ensure_ascii=False)[1:-1]).encode())
            between = ", "
        whole.update(b"]")
        return whole.hexdigest()

    def keep(self, kept: np.ndarray) -> LabelledRows:
        """The rows where `kept` (rows,) is true, in their order."""
        import pyarrow as pa

        return replace(self, rows=self.rows.filter(pa.array(kept, pa.bool_())))


def choose_columns(
    table: Table, named: Columns, known: Mapping[str, Sequence[str]], ways_out: Mapping[str, str] | None = None
) -> tuple[Columns, list[str]]:
    """The columns that the user named, or else the only ones named like their role; and notes for the log.

    `known` says what columns of a role are named like; a role that it lacks may stay without a column. `ways_out` has,
    by role, what else there is to set.
    """
    notes: list[str] = []

    def choose(role: str) -> str:
        found = [column for column in table.rows.column_names if column.lower() in known[role]]
        if len(found) == 1:
            notes.append(f"{role} column: {found[0]!r} (the only one named like {a_role(role)})")
            return found[0]
        listed = ", ".join(repr(column) for column in found or table.rows.column_names)
        none = f"no column is named like {a_role(role)}; found {listed}"
        wrong, also = f"{listed} could each be the {role}" if found else none, (ways_out or {}).get(role, "")
        raise UserError(f"{table.where}: {wrong}. Set --data.{role}{also}")

    columns = {role: choose(role) if name is None and role in known else name for role, name in named.items()}
    names = [name for name in columns.values() if name is not None]
    if len(set(names)) < len(names):
        *others, last = named
        flags = ", .".join(others)
        raise UserError(f"--data.{flags} and .{last} name the same column twice: {', '.join(names)}")
    return columns, notes


def label_rows(split: str, table: Table, columns: Columns, extra: Sequence[str] = ()) -> LabelledRows:
    """The chosen columns as strings, and an id for each row: `train-17` is row 17 of the source of train."""
    import pyarrow as pa

    rows = number_rows(split, table)
    for role, values in read_columns(table, columns).items():
        rows[role] = as_strings(table, columns[role], values, role)
    return LabelledRows(table.where, pa.table(rows | extra_columns(table, extra)))


def extra_columns(table: Table, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    """Columns that the report asks for, as strings, by `column:<name>`. UserError where the table lacks one."""
    for name in names:
        if name not in table.rows.column_names:
            listed = ", ".join(repr(column) for column in table.rows.column_names)
            raise UserError(
                f"no column {name!r} in {table.where}; found {listed}. Set --report.group and --report.slice to columns"
            )
    if not names:
        return {}
    data = table.rows.select_columns(list(names)).with_format("arrow")[:]
    return {EXTRA + name: _as_words(table, name, data.column(name)) for name in names}


def _as_words(table: Table, column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """As `_to_strings`, and dates and times as ISO 8601 writes them. UserError for what holds several values a row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    types, kind = pa.types, values.type
    if types.is_date(kind) or types.is_timestamp(kind) or types.is_time(kind):
        return pc.replace_substring_regex(values.cast(pa.string()), r"\.0+(Z?)$", r"\1")  # no parts of seconds
    words = _to_strings(values, class_names(table, column))
    if words is None:
        raise UserError(
            f"{table.where}: column {column!r} holds {kind}, and rows are told apart by one word, number or date each. "
            "Set --report.slice and --report.group to other columns"
        )
    return words


def number_rows(split: str, table: Table) -> dict[str, Any]:
    """The columns `number` and `id`."""
    import pyarrow as pa

    ids = pa.array([f"{split}-{number}" for number in table.numbers.tolist()], pa.string())
    return {"number": table.numbers, "id": ids}


def read_columns(table: Table, columns: Columns) -> dict[str, pa.ChunkedArray]:
    """The values of each role that has a column, as they are. UserError where the table lacks it."""
    wanted = {role: name for role, name in columns.items() if name is not None}
    for role, name in wanted.items():
        if name not in table.rows.column_names:
            listed = ", ".join(repr(column) for column in table.rows.column_names)
            raise UserError(f"no column {name!r} in {table.where}; found {listed}. Set --data.{role}")
    data = table.rows.select_columns(list(wanted.values())).with_format("arrow")[:]
    return {role: data.column(name) for role, name in wanted.items()}


def class_names(table: Table, column: str) -> list[str] | None:
    """The names of a ClassLabel column, in its order; None for a column of any other kind."""
    from datasets import ClassLabel

    feature = table.rows.features.get(column)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def a_role(role: str) -> str:
    """The word with its article; plurals, such as words and tags, have none."""
    return role if role.endswith("s") else f"{'an' if role[0] in 'aeiou' else 'a'} {role}"


def sort_labels(labels: set[str], names: Sequence[str] | None) -> list[str]:
    """ClassLabel names first, in their order; then the rest by number where all are integers, else by letter."""
    rest = labels - set(names or [])
    try:
        ordered = sorted(rest, key=lambda label: (int(label), label))
    except ValueError:
        ordered = sorted(rest)
    return [*(names or []), *ordered]


def as_strings(table: Table, column: str, values: pa.ChunkedArray, role: str) -> pa.ChunkedArray:
    """The column of a role by `_to_strings`, a label's with the names of its ClassLabel. UserError for other types."""
    strings = _to_strings(values, class_names(table, column) if role == "label" else None)
    if strings is None:
        raise UserError(
            f"{table.where}: column {column!r} holds {values.type}, and {a_role(role)} is one string. Set --data.{role}"
        )
    return strings


def _to_strings(values: pa.ChunkedArray, names: Sequence[str] | None) -> pa.ChunkedArray | None:
    """The `names` of a ClassLabel; numbers without needless digits (1.0 is '1'), booleans as 'true' and 'false'.

    None for a type that holds no such values.
    """
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
        return None
    return values.cast(pa.string())


def _replace_each(values: pa.ChunkedArray, to_string: Any) -> pa.ChunkedArray:
    """`to_string` of each value that is not null, worked out once for each distinct one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    distinct = values.unique().drop_null()
    strings = pa.array([to_string(value) for value in distinct.to_numpy(zero_copy_only=False)], pa.string())
    places = pc.index_in(values, value_set=distinct)
    return pa.chunked_array([strings.take(chunk) for chunk in places.chunks], pa.string())
