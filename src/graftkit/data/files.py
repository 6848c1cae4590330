"""What is in this file?

csv, tsv, json, jsonl and parquet are each parsed once, by a plain scan that knows the number of every row. So a malformed
row can be named, and no second parser reads the file otherwise.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graftkit.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK_ROWS = 20_000  # csv rows that stand in memory as Python strings at a time

HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # a JSON escape that may be one half of a surrogate pair


@dataclass(frozen=True)
class Table:
    """The rows of one source, parsed, but with nothing checked of what they say."""

    where: str  # how messages name the source: a file, or a Hub id and its split
    rows: Dataset
    numbers: np.ndarray  # (rows,) each row's number in its source, from 1; header and blank lines are not counted
    malformed: dict[str, list[int]] = field(default_factory=dict)  # what is wrong -> numbers of the rows left out for it
    notes: list[str] = field(default_factory=list)


def read_file(path: Path, where: str | None = None) -> Table:
    """All rows of a file; `where` is what messages call it.

    Raises UserError where the file as a whole cannot be read: another format, empty, not UTF-8, rows that cannot be
    told apart. Single rows that cannot be parsed are left out and listed in `malformed`.
    """
    where = where or str(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{where}: cannot read {path.suffix or 'a file without suffix'}; use one of {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise UserError(f"{where} is empty")
    table = reader(path, where)
    if not len(table.numbers) and not table.malformed:
        raise UserError(f"{where} is empty: it has no rows")
    return table


def named_rows(numbers: Iterable[int]) -> str:
    """Row numbers as messages name them: the first five, and how many more."""
    numbers = [int(n) for n in numbers]
    shown = ", ".join(str(n) for n in numbers[:5])
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"row{'s' if len(numbers) > 1 else ''} {shown}{more}"


# csv and tsv ---------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, where: str) -> Table:
    """Fields as strings; the empty field alone is missing. The first line that is not blank is the header."""
    # The limit of 128 KiB on a field is the whole process's; a long document is no mistake.
    csv.field_size_limit(2**31 - 1)
    malformed: dict[str, list[int]] = defaultdict(list)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        delimiter, notes = _delimiter(path, where, next((line for line in file if line.strip()), ""))
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = _header(reader, path, where)
        rows = _csv_rows(reader, where, len(header), malformed)
        chunks, not_utf8 = [], []
        while batch := list(islice(rows, CHUNK_ROWS)):
            numbers, fields = zip(*batch, strict=True)
            bad = [n for n, row in batch if not _is_unicode("".join(row))] if not _fits_utf8(fields) else []
            not_utf8 += bad
            if not not_utf8:
                chunks.append((numbers, _string_columns(header, fields)))
    if not_utf8:
        raise _not_utf8(where, not_utf8)
    return _table_of_strings(where, header, chunks, malformed, notes)
