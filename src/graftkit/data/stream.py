"""What comes down this pipe?

Rows are read as they arrive, for answering one by one; whole files, to learn from, are read by `files`.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from graftkit.errors import UserError

CHUNK = 1024  # rows in memory, sorted by length together
BLOCK = 2**18  # bytes read at once; a pipe gives what it has


def read_chunks(
    file: str, format: str | None, of_run: dict[str, str | None], text: str | None, text_pair: str | None
) -> Iterator[list[tuple[int, list[str]]]]:
    """The number, from 1, and the text or pair of texts of each row, at most CHUNK rows at a time, in order."""
    where = "standard input" if file == "-" else file
    reader = READERS.get(format or ("txt" if file == "-" else Path(file).suffix.lower().removeprefix(".")))
    if reader is None:
        raise UserError(f"{file}: its name does not end in .{', .'.join(READERS)}. Set --format")
    waiting: deque[bytes] = deque()
    columns: list[str] = []
    chunk: list[tuple[int, list[str]]] = []
    for number, row in reader(_read_lines(file, waiting), where):
        columns = columns or _choose_columns(list(row), where, of_run, text, text_pair)
        chunk.append((number, [_text(row.get(name), f"{where}: column {name!r}, row {number}") for name in columns]))
        if len(chunk) == CHUNK or not waiting:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _read_lines(file: str, waiting: deque[bytes]) -> Iterator[str]:
    """The lines of a file; `waiting` are those at hand: when there are none, the next one may be long in coming."""
    try:
        descriptor = sys.stdin.fileno() if file == "-" else os.open(file, os.O_RDONLY)
        rest, encoding = b"", "utf-8-sig"
        while block := os.read(descriptor, BLOCK):
            waiting.extend((rest + block).splitlines(keepends=True))
            rest = b"" if waiting[-1].endswith(b"\n") else waiting.pop()
            while waiting:
                yield waiting.popleft().decode(encoding, "surrogateescape")
                encoding = "utf-8"
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if rest:
        yield rest.decode(encoding, "surrogateescape")


def _read_txt(lines: Iterator[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((number, {"text": line.rstrip("\r\n")}) for number, line in enumerate(lines, 1))


def _read_jsonl(lines: Iterator[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(filter(str.strip, lines), 1):
        try:
            row = json.loads(line, parse_constant=lambda name: None)  # NaN is missing
        except ValueError as error:
            raise UserError(f"{where}: row {number} is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{where}: row {number} is no JSON object, such as {{'text': 'a text'}}")
        yield number, row


def _read_csv(lines: Iterator[str], where: str, expected: str = ",") -> Iterator[tuple[int, dict[str, Any]]]:
    first = next(filter(str.strip, lines), "")
    marks = [mark for mark in ",\t;" if mark in first]  # spreadsheets write .csv with semicolons
    delimiter = marks[0] if len(marks) == 1 else expected
    csv.field_size_limit(2**31 - 1)  # for the whole process: its 128 KiB are too few for a long document
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    header, number = [], 0
    try:
        header = [name.strip() for name in next(reader)]
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise UserError(f"{where}: column {twice[0]!r} stands twice. Give one of them another name")
        for number, fields in enumerate(filter(None, reader), 1):
            if len(fields) != len(header):
                raise UserError(f"{where}: row {number} has {len(fields)} fields, and the header {len(header)}")
            yield number, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        place = f"row {number + 1}" if header else "the header"
        raise UserError(f"{where}: an open or stray quote in {place}; within quotes, write it twice") from error


READERS = {
    "csv": _read_csv,
    "tsv": lambda lines, where: _read_csv(lines, where, "\t"),
    "jsonl": _read_jsonl,
    "txt": _read_txt,
}


def _choose_columns(
    found: list[str], where: str, of_run: dict[str, str | None], text: str | None, text_pair: str | None
) -> list[str]:
    """The names of the column of texts, and of the second texts if the user named one or the run read pairs."""
    from graftkit.data.columns import TEXT_NAMES

    listed = ", ".join(map(repr, found))
    likely = [of_run["text"]] if of_run.get("text") in found else [name for name in found if name.lower() in TEXT_NAMES]
    if text is None and len(likely) != 1:
        raise UserError(f"{where}: which column is the text cannot be told; found {listed}. Set --text")
    columns = {"text": text or likely[0], "text_pair": text_pair or of_run.get("text_pair")}
    for role, name in columns.items():
        if name is not None and name not in found:
            raise UserError(f"{where}: no column {name!r}; found {listed}. Set --{role}")
    return [name for name in columns.values() if name is not None]


def _text(value: Any, where: str) -> str:
    """A field as the text that training would have read. UserError where there is none."""
    text = json.dumps(value) if isinstance(value, int | float) else value
    if text is None or not str(text).strip():
        raise UserError(f"{where}: empty or missing; every row needs a text")
    if not isinstance(text, str):
        raise UserError(f"{where}: holds a {type(text).__name__}, and a text is one string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: not UTF-8, or half of a character. Save the file as UTF-8") from error
    return text
