"""What does a column of lists hold?"""

from __future__ import annotations

import ast
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.data.checks import SHOWN, BadRows
from graftkit.data.columns import LabelledRows
from graftkit.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from graftkit.data.files import Table


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists, or nothing at all."""
    from pyarrow import types

    return any(holds(kind) for holds in (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_null))


def are_lists(texts: Iterable[str]) -> bool:
    """Whether each of these texts is a list, as JSON or Python writes it."""
    return all(text[0] == "[" and text[-1] == "]" for text in texts)


def parse_written(text: str) -> Any:
    """What a text writes, as JSON or as Python, by which pandas fills csv files. ValueError where it writes nothing.

    So it is, too, where it writes what JSON cannot hold, such as a set, what is nested too deeply to be read, or half
    of a character (a lone surrogate), which no table stores.
    """
    try:
        found = _read_written(text)
        json.dumps(found, ensure_ascii=False).encode()
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"neither JSON nor Python ({type(error).__name__})") from error
    return found


def _read_written(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text)


def parse_list(text: str) -> list[Any]:
    """The list that a text writes; one that does not parse is a list of nothing that could be a word."""
    try:
        found = parse_written(text)
    except ValueError:
        return [None]
    return found if isinstance(found, list) else [None]


def names_in_lists(table: Table, column: str) -> list[str] | None:
    """The names of a column of ClassLabel sequences, in their order; None for a column of any other kind."""
    from datasets import ClassLabel

    feature = table.rows.features[column]
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return list(inner.names) if isinstance(inner, ClassLabel) else None


def as_name(value: Any, names: Sequence[str] | None) -> str | None:
    """A tag or label as a string; None for what is none, such as the -1 that the Hub writes for a withheld one."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if names is None:
        return str(value)
    return names[value] if 0 <= value < len(names) else None


def values_in(column: str, *splits: LabelledRows) -> set[str]:
    """All values that stand in the lists of these rows."""
    import pyarrow.compute as pc

    return {value for rows in splits for value in pc.list_flatten(rows.rows.column(column)).unique().to_pylist()}


def without_values(
    split: str, rows: LabelledRows, column: str, values: set[str], wrong: str, bad: BadRows
) -> LabelledRows:
    """The rows with none of these values in their lists; the others are `wrong`. UserError where no row is left."""
    if not values:
        return rows
    holds = np.array([not values.isdisjoint(row) for row in rows.rows.column(column).to_pylist()], bool)
    rows = bad.without(split, rows, wrong, holds, f" ({some(map(repr, sorted(values)))})")
    if not len(rows):
        raise UserError(f"{rows.where}: every row has {wrong}. Set --data.{split} or --data.{column}")
    return rows


def one_by_one(rows: LabelledRows, column: str) -> LabelledRows:
    """One row for each row and value in its list, as `label`: what `check_spelling` tells of labels holds of these."""
    import pyarrow as pa

    lists = rows.rows.column(column).to_pylist()
    pairs = [
        (number, value)
        for number, values in zip(rows.column("number").tolist(), lists, strict=True)
        for value in sorted(set(values))
    ]
    numbers, values = zip(*pairs, strict=True) if pairs else ((), ())
    return LabelledRows(rows.where, pa.table({"number": numbers, "label": pa.array(values, pa.string())}))


def rarest_values(contents: np.ndarray, values: Sequence[Iterable[str]]) -> list[str]:
    """Of each row the rarest value that it, or a row of the same content, holds: what a cut must spread evenly.

    `contents` (rows,) are numbers; each row holds at least one value.
    """
    held: dict[int, set[str]] = defaultdict(set)
    for content, one in zip(contents.tolist(), values, strict=True):
        held[content].update(one)
    count = Counter(value for found in held.values() for value in found)
    rarest = {content: min(found, key=lambda value: (count[value], value)) for content, found in held.items()}
    return [rarest[content] for content in contents.tolist()]


def some(words: Iterable[str]) -> str:
    """The first of these words, and how many more there are."""
    words = list(words)
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN:,} more" if len(words) > SHOWN else "")
