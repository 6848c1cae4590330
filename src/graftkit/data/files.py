"""What is in this file?

csv, tsv, json, jsonl and parquet are parsed once, by a plain scan that counts rows. So every malformed row has a number
to be named by, and there is no second parser that might read the file otherwise.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

CHUNK_ROWS = 20_000  # rows of csv that stand in memory as Python strings at a time

SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")  # in JSON: half of a character, good only beside its other half


@dataclass(frozen=True)
class Table:
    """The rows of one source: parsed, with nothing checked of what they say."""

    where: str  # how messages name the source: a file, or a Hub id and its split
    rows: Dataset
    numbers: np.ndarray  # (rows,) each row's number in its source, from 1; header and blank lines are not counted
    malformed: dict[str, list[int]] = field(default_factory=dict)  # what is wrong: numbers of the rows left out for it
    notes: list[str] = field(default_factory=list)
    folder: Path | None = None  # where the paths in its rows start from; None for rows that no file here holds


def read_file(path: Path, where: str | None = None) -> Table:
    """All rows of a file, which messages call `where`.

    Rows that cannot be parsed are left out and listed in `malformed`. UserError where the file as a whole cannot be
    read: not one of the formats, empty, not UTF-8, or rows that cannot be told apart.
    """
    where = where or str(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{where}: cannot read this kind of file; its name must end in {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise UserError(f"{where} is empty")
    table = reader(path, where)
    if not len(table.numbers) and not table.malformed:
        raise UserError(f"{where} is empty: it has no rows")
    return replace(table, folder=path.parent)


def name_rows(numbers: Iterable[int]) -> str:
    """Row numbers as messages say them: the first five, and how many more."""
    numbers = [int(number) for number in numbers]
    more = f" and {len(numbers) - 5:,} more" if len(numbers) > 5 else ""
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:5]))}{more}"


# csv and tsv


def _read_csv(path: Path, where: str) -> Table:
    """Fields as strings, of which only the empty one is missing; the first line that is not blank is the header."""
    import pyarrow as pa

    csv.field_size_limit(2**31 - 1)  # for the whole process: its 128 KiB are too few for a long document
    malformed: dict[str, list[int]] = defaultdict(list)
    not_utf8: list[int] = []
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first_line = next((line for line in file if line.strip()), "")
        delimiter, notes = _find_delimiter(path, where, first_line)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = _read_header(reader, where)
        rows = _csv_rows(reader, where, len(header), malformed)
        chunks, numbers = [], []
        while batch := list(islice(rows, CHUNK_ROWS)):
            numbers.append(np.array([number for number, _ in batch]))
            try:
                chunks.append(_string_columns(header, [fields for _, fields in batch]))
            except UnicodeEncodeError:  # an undecoded byte stands in the string as half of a character
                not_utf8 += [number for number, fields in batch if not _is_unicode("".join(fields))]
    if not_utf8:
        raise _not_utf8(where, not_utf8)
    table = pa.concat_tables(chunks) if chunks else _string_columns(header, [])
    return _table(where, table, np.concatenate([*numbers, np.array([], int)]), malformed, notes)


def _find_delimiter(path: Path, where: str, first_line: str) -> tuple[str, list[str]]:
    """Comma or tab, as the name says; but what parts the header wins: spreadsheets write .csv with semicolons."""
    expected = "\t" if path.suffix.lower() == ".tsv" else ","
    others = [mark for mark in (",", "\t", ";") if mark in first_line]
    if expected in others or len(others) != 1:
        return expected, []
    name = {",": "commas", "\t": "tabs", ";": "semicolons"}
    return others[0], [f"{where}: read with {name[others[0]]} between fields, as its header has them"]


def _read_header(reader: Iterator[list[str]], where: str) -> list[str]:
    try:
        header = [name.strip() for name in next((fields for fields in reader if fields), [])]
    except csv.Error:
        raise UserError(f"{where}: the header (its first line) has a quote that is not closed") from None
    if not header:
        raise UserError(f"{where} is empty: it has blank lines only")
    if not _is_unicode("".join(header)):
        raise UserError(f"{where}: the header is not UTF-8. Save the file as UTF-8")
    return header


def _csv_rows(reader: Any, where: str, width: int, malformed: dict[str, list[int]]) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of each row with `width` fields; the numbers of others go to `malformed`."""
    number = 0
    while True:
        first_line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            number += 1
            if reader.line_num > first_line:  # how many rows it swallowed cannot be known
                raise UserError(
                    f"{where}: an open quote in row {number} (line {first_line}). Close it; a quote within a quoted "
                    f'field is written twice ("")'
                ) from None
            malformed["an open or stray quote"].append(number)
            continue
        if not fields:
            continue
        number += 1
        if len(fields) == width:
            yield number, fields
        else:
            malformed["too few fields" if len(fields) < width else "too many fields"].append(number)


def _string_columns(header: list[str], rows: list[list[str]]) -> pa.Table:
    """Rows as columns, the empty field as null. A column without a name (an index, a trailing comma) is left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    arrays = [pa.array(column, pa.string()) for column in columns]
    named = [(pc.if_else(pc.equal(array, ""), None, array), name) for array, name in zip(arrays, header, strict=True)]
    return pa.Table.from_arrays([a for a, name in named if name], [name for _, name in named if name])


# json and jsonl


def _read_jsonl(path: Path, where: str) -> Table:
    malformed: dict[str, list[int]] = defaultdict(list)
    not_utf8: list[int] = []
    rows, numbers = [], []
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate((line for line in file if line.strip()), 1):
            if not _is_unicode(line):
                not_utf8.append(number)
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):  # the latter of thousands of brackets
                malformed["not valid JSON"].append(number)
                continue
            if wrong := _wrong_with(row, bool(SURROGATE_ESCAPE.search(line))):
                malformed[wrong].append(number)
            else:
                rows.append(row)
                numbers.append(number)
    if not_utf8:
        raise _not_utf8(where, not_utf8)
    return _table(where, _columns_of(rows), np.array(numbers, int), malformed, [])


def _read_json(path: Path, where: str) -> Table:
    """An array of objects, or one object with such an array as `data`; one object per line is read as jsonl."""
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _read_jsonl(path, where)
        number = _first_unread(text)
        row = f" in row {number}" if number else ""
        raise UserError(
            f"{where}: not valid JSON{row} (line {error.lineno}, column {error.colno}): {error.msg}"
        ) from None
    except RecursionError:
        raise UserError(f"{where}: not valid JSON: brackets within brackets, thousands of them") from None
    if isinstance(values, dict):
        values = values.get("data")
    if not isinstance(values, list):
        raise UserError(f"{where}: found neither an array of rows nor an object with such an array as 'data'")
    if not _is_unicode(text):
        raise _not_utf8(where, [n for n, row in enumerate(values, 1) if not _is_unicode(_as_json(row))])
    escapes = bool(SURROGATE_ESCAPE.search(text))
    malformed: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(values, 1):
        if wrong := _wrong_with(row, escapes):
            malformed[wrong].append(number)
    numbers = np.setdiff1d(np.arange(1, len(values) + 1), [n for bad in malformed.values() for n in bad])
    return _table(where, _columns_of([values[n - 1] for n in numbers]), numbers, malformed, [])


def _first_unread(text: str) -> int | None:
    """The number of the first row of a JSON array that does not parse; None where the rows cannot be found."""
    start = re.match(r'\s*(\{\s*"data"\s*:\s*)?\[', text)
    if start is None:
        return None
    decoder, blanks = json.JSONDecoder(), re.compile(r"\s*")
    number, position = 1, start.end()
    while True:
        try:
            _, position = decoder.raw_decode(text, blanks.match(text, position).end())
        except json.JSONDecodeError:
            return number
        number, position = number + 1, blanks.match(text, position).end()
        if text[position : position + 1] != ",":
            return number
        position += 1


def _wrong_with(row: Any, escapes: bool) -> str | None:
    """Why a JSON value is no row; `escapes`: whether it may hold half of a character, written as an escape."""
    if not isinstance(row, dict):
        return "not a JSON object"
    return "half of a character (a lone surrogate)" if escapes and not _is_unicode(_as_json(row)) else None


def _columns_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """One column per key of any row; a row without the key has null there."""
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _json_column([row.get(name) for row in rows]) for name in names})


def _json_column(values: list[Any]) -> pa.Array:
    """The values in the type that fits all; where they are of mixed types, the JSON text of those that are no text."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        missing = [value is None or value != value for value in values]  # NaN alone differs from itself
        texts = [value if isinstance(value, str) else _as_json(value) for value in values]
        return pa.array([None if gone else text for text, gone in zip(texts, missing, strict=True)], pa.string())


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# parquet


def _read_parquet(path: Path, where: str) -> Table:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{where}: not a parquet file that can be read: {' '.join(str(error).split())}") from None
    for index, column in enumerate(table.schema):
        if pa.types.is_dictionary(column.type):  # a pandas category
            table = table.set_column(index, column.name, table.column(index).cast(column.type.value_type))
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            _check_parquet_text(table.column(index), where)
    return _table(where, table, np.arange(1, table.num_rows + 1), {}, [])


def _check_parquet_text(column: pa.ChunkedArray, where: str) -> None:
    import pyarrow as pa

    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        values = column.cast(pa.large_binary()).to_pylist()
        raise _not_utf8(where, [n for n, value in enumerate(values, 1) if not _decodes(value or b"")]) from None


# all of them

READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _table(
    where: str, columns: pa.Table, numbers: np.ndarray, malformed: dict[str, list[int]], notes: list[str]
) -> Table:
    from datasets import Dataset

    names = columns.column_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{where}: column {twice[0]!r} stands twice. Give one of them another name")
    return Table(where, Dataset(columns), numbers, dict(malformed), notes)


def _not_utf8(where: str, numbers: list[int]) -> UserError:
    return UserError(f"{where}: bytes that are not UTF-8 in {name_rows(numbers)}. Save the file as UTF-8")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decodes(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
