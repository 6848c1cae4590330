"""What comes down this pipe?

Rows are read as they arrive, for answering one by one; whole files, to learn from, are read by `files`.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from graftkit.data.columns import TEXT_NAMES, Columns
from graftkit.data.picture_columns import IMAGE_NAMES
from graftkit.data.picture_sources import SHOWN, is_picture, picture_files
from graftkit.errors import UserError
from graftkit.pictures import SUFFIXES

CHUNK = 1024  # rows in memory; texts among them are sorted by length together
BLOCK = 2**18  # bytes read at once; a pipe gives what it has
KNOWN = {"text": TEXT_NAMES, "image": IMAGE_NAMES}
"""For each role that a table must have, what its column is named like."""
NOUNS = {"text": "a text", "text_pair": "a text", "image": "the name of a file"}

Chunk = list[tuple[int, dict[str, str]]]
"""For some rows the number, from 1, and what stands in the column of each role."""


def read_chunks(file: str, format: str | None, named: Columns, of_run: Columns) -> Iterator[Chunk]:
    """The rows of a table, or lines, at most CHUNK at a time, in order.

    `named` are the roles to read, first the one that every table must have, with the columns that the user named;
    `of_run` those that the run of the model read.
    """
    where, role = "standard input" if file == "-" else file, next(iter(named))
    reader = READERS.get(_format(file, format))
    if reader is None:
        raise UserError(f"{file}: its name does not end in .{', .'.join(READERS)}. Set --format")
    waiting: deque[bytes] = deque()
    columns: dict[str, str] = {}
    chunk: Chunk = []
    for number, row in reader(_read_lines(file, waiting), where, role):
        columns = columns or _choose_columns(list(row), where, named, of_run)
        fields = {
            role: _field(row.get(name), role, f"{where}: column {name!r}, row {number}")
            for role, name in columns.items()
        }
        chunk.append((number, fields))
        if len(chunk) == CHUNK or not waiting:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def names_start(file: str, format: str | None) -> Path:
    """Where names of files in a table start from: its folder, as in training; for plain lines, the working folder."""
    return Path() if file == "-" or _format(file, format) == "txt" else Path(file).parent


def list_pictures(folder: Path, say: Callable[[str], None]) -> Iterator[Chunk]:
    """The pictures in a folder and below it, by their paths from there, in the order in which training reads them.

    Hidden files, and those whose suffix is none of pictures, are skipped, and named to `say`.
    """
    pictures, skipped = 0, 0
    chunk: Chunk = []
    shown: list[str] = []
    try:
        for name in picture_files(folder, str(folder)):
            if not is_picture(name):
                skipped += 1
                shown += [name] if skipped <= SHOWN else []
                continue
            pictures += 1
            chunk.append((pictures, {"image": check_name(name)}))
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from error
    if not pictures:
        raise UserError(f"no pictures in the folder {folder}: no name in it ends in {', '.join(SUFFIXES)}")
    if chunk:
        yield chunk
    if skipped:
        more = ", ..." if skipped > SHOWN else ""
        say(f"skipped {skipped:,} that are no pictures by their names: {', '.join(shown)}{more}")


def check_name(file: str) -> str:
    """The name of a file, as it is. UserError where it is no text, and so could not be written into an answer."""
    try:
        file.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{file!r}: the name of this file is not UTF-8. Rename it") from error
    return file


def _format(file: str, format: str | None) -> str:
    return format or ("txt" if file == "-" else Path(file).suffix.lower().removeprefix("."))


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


def _read_txt(lines: Iterator[str], where: str, role: str) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((number, {role: line.rstrip("\r\n")}) for number, line in enumerate(lines, 1))


def _read_jsonl(lines: Iterator[str], where: str, role: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(filter(str.strip, lines), 1):
        try:
            row = json.loads(line, parse_constant=lambda name: None)  # NaN is missing
        except ValueError as error:
            raise UserError(f"{where}: row {number} is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{where}: row {number} is no JSON object, such as {{{role!r}: {NOUNS[role]!r}}}")
        yield number, row


def _read_csv(lines: Iterator[str], where: str, role: str, expected: str = ",") -> Iterator[tuple[int, dict[str, Any]]]:
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
    "tsv": partial(_read_csv, expected="\t"),
    "jsonl": _read_jsonl,
    "txt": _read_txt,
}


def _choose_columns(found: list[str], where: str, named: Columns, of_run: Columns) -> dict[str, str]:
    """The columns of the roles: of the first one always, of others if the user named one or the run read one."""
    role, *others = named
    listed = ", ".join(map(repr, found))
    likely = [of_run[role]] if of_run.get(role) in found else [name for name in found if name.lower() in KNOWN[role]]
    if named[role] is None and len(likely) != 1:
        raise UserError(f"{where}: which column is the {role} cannot be told; found {listed}. Set --{role}")
    columns = {role: named[role] or likely[0]} | {other: named[other] or of_run.get(other) for other in others}
    columns = {role: name for role, name in columns.items() if name is not None}
    for role, name in columns.items():
        if name not in found:
            raise UserError(f"{where}: no column {name!r}; found {listed}. Set --{role}")
    return columns


def _field(value: Any, role: str, where: str) -> str:
    """A field as the text that training would have read. UserError where there is none."""
    text = json.dumps(value) if isinstance(value, int | float) else value
    if text is None or not str(text).strip():
        raise UserError(f"{where}: empty or missing; every row needs {NOUNS[role]}")
    if not isinstance(text, str):
        raise UserError(f"{where}: holds a {type(text).__name__}, and {NOUNS[role]} is one string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: not UTF-8, or half of a character. Save the file as UTF-8") from error
    if role == "image" and "://" in text:
        raise UserError(f"{where}: {text} is an address, and pictures are read from files. Fetch it first")
    return text
