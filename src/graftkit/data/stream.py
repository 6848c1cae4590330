"""What comes down this pipe?

Rows are read as they arrive, for answering one by one; whole files, to learn from, are read by `files`.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from graftkit.data.columns import TEXT_NAMES, Columns
from graftkit.data.conll import SUFFIXES as CONLL_SUFFIXES
from graftkit.data.conll import Line, read_sentences
from graftkit.data.list_columns import are_lists, parse_list
from graftkit.data.picture_columns import IMAGE_NAMES
from graftkit.data.picture_sources import SHOWN, is_picture, picture_files
from graftkit.errors import UserError
from graftkit.pictures import SUFFIXES

CHUNK = 1024  # rows in memory; texts among them are sorted by length together
BLOCK = 2**18  # bytes read at once; a pipe gives what it has

Chunk = list[tuple[int, dict[str, Any]]]
"""For some rows the number, from 1, and what stands in the column of each role."""


@dataclass(frozen=True)
class Role:
    """What stands in a column that a model reads."""

    noun: str  # how messages call it
    names: Sequence[str]  # columns of it are named like this
    parse: Callable[[Any, str, str], Any]  # a field, the noun and where it stands -> what the model reads of it


@dataclass(frozen=True)
class Wanted:
    """Which columns the rows of a table must have, and may have."""

    needed: tuple[tuple[str, ...], ...]  # roles; of those in one tuple a table has one or another
    others: tuple[str, ...] = ()  # read where the user names a column, or the run read one
    line: str | None = None  # the role of a plain line of text; None where that would not be enough

    @property
    def roles(self) -> tuple[str, ...]:
        """All of them."""
        return (*chain(*self.needed), *self.others)


def read_chunks(file: str, format: str | None, wanted: Wanted, named: Columns, of_run: Columns) -> Iterator[Chunk]:
    """The rows of a table, or lines, at most CHUNK at a time, in order.

    `named` are the columns that the user named, by role; `of_run` those that the run of the model read.
    """
    where = _where(file)
    reader = READERS.get(form := _format(file, format))
    if reader is None:
        raise UserError(f"{file}: its name does not end in .{', .'.join(READERS)}. Set --format")
    role = wanted.needed[0][0] if wanted.line is None else wanted.line
    if form == "txt" and wanted.line is None:
        raise UserError(f"{where}: a row is more than a line of text. Write csv or jsonl, and set --format")
    waiting: deque[Any] = deque()
    return _in_chunks(_fields(reader(file, waiting, role), where, wanted, named, of_run), waiting)


def read_conll(file: str, words: str | None, of_run: str | None) -> Iterator[Chunk]:
    """The sentences of a file with a word in each line, at most CHUNK at a time: `words`, `lines` and `at`.

    `words` is the number of their column from 1; by default that which the run read, or else the first one, which in
    CoNLL-U is the second. `lines` are those of the sentence as they stand, and `at` the place of each word in these.
    """
    where, is_conllu = _where(file), file.lower().endswith(".conllu")
    usual = of_run if of_run is not None and of_run.isdecimal() else "2" if is_conllu else "1"
    column = usual if words is None else words
    if not column.isdecimal() or int(column) < 1:
        raise UserError(f"--words {column}: columns of {where} have numbers, from 1, and no names")
    waiting: deque[Any] = deque()
    return _in_chunks(_sentences(_read_lines(file, waiting), where, int(column), is_conllu), waiting)


def is_conll(file: str, format: str | None) -> bool:
    """Whether a file has a word in each line, by what the user said or by its name. UserError where that may be."""
    if format is None and file.lower().endswith(".txt"):
        raise UserError(f"{file}: its lines may be words, or texts. Set --format conll, or --format txt")
    return format == "conll" or (format is None and file.lower().endswith(CONLL_SUFFIXES))


def _where(file: str) -> str:
    return "standard input" if file == "-" else file


def _in_chunks(rows: Iterator[tuple[int, dict[str, Any]]], waiting: deque[Any]) -> Iterator[Chunk]:
    """At most CHUNK rows, and no more than are at hand."""
    chunk: Chunk = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK or not waiting:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _fields(
    rows: Iterator[tuple[int, dict[str, Any]]], where: str, wanted: Wanted, named: Columns, of_run: Columns
) -> Iterator[tuple[int, dict[str, Any]]]:
    """What stands in the column of each role."""
    columns: dict[str, str] = {}
    for number, row in rows:
        columns = columns or _choose_columns(list(row), where, wanted, named, of_run)
        yield (
            number,
            {
                role: ROLES[role].parse(row.get(name), ROLES[role].noun, f"{where}: column {name!r}, row {number}")
                for role, name in columns.items()
            },
        )


def _sentences(lines: Iterator[str], where: str, column: int, is_conllu: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, sentence in enumerate(read_sentences(lines, skip_ranges=is_conllu), 1):
        words = [_word(line, column, where) if line.fields else None for line in sentence]
        fields = {"words": [word for word in words if word is not None], "lines": [line.text for line in sentence]}
        yield number, {**fields, "at": [place for place, word in enumerate(words) if word is not None]}


def _word(line: Line, column: int, where: str) -> str:
    """The word of a line. UserError where it has none in this column."""
    if len(line.fields) < column or not line.fields[column - 1]:
        raise UserError(f"{where}, line {line.number}: no word in column {column} of {line.text!r}. Set --words")
    _check_unicode(line.fields[column - 1], f"{where}, line {line.number}")
    return line.fields[column - 1]


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
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: row {number} is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{where}: row {number} is no JSON object, such as {{{role!r}: {ROLES[role].noun!r}}}")
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


def _read_parquet(file: str, waiting: deque[Any], role: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet as parquet
    from pyarrow.lib import ArrowException

    if file == "-":
        raise UserError("standard input: parquet is read from files. Name the file")
    try:
        with parquet.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches(CHUNK):
                waiting.extend(batch.to_pylist())
                while waiting:
                    number += 1
                    yield number, waiting.popleft()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except ArrowException as error:
        raise UserError(f"{file} is no parquet file ({str(error).partition(chr(10))[0]})") from error


def _of_lines(parse: Callable[[Iterator[str], str, str], Iterator[tuple[int, dict[str, Any]]]]) -> Callable[..., Any]:
    return lambda file, waiting, role: parse(_read_lines(file, waiting), _where(file), role)


READERS: dict[str, Callable[[str, deque[Any], str], Iterator[tuple[int, dict[str, Any]]]]] = {
    "csv": _of_lines(_read_csv),
    "tsv": _of_lines(partial(_read_csv, expected="\t")),
    "jsonl": _of_lines(_read_jsonl),
    "txt": _of_lines(_read_txt),
    "parquet": _read_parquet,
}
"""For each format, the numbers and fields of the rows of a file; the role is that of a plain line."""


def _choose_columns(found: list[str], where: str, wanted: Wanted, named: Columns, of_run: Columns) -> dict[str, str]:
    """The column of each role that is read."""
    columns = dict(_choose_column(found, where, group, named, of_run) for group in wanted.needed)
    columns |= {role: named.get(role) or of_run.get(role) for role in wanted.others}
    columns = {role: name for role, name in columns.items() if name is not None}
    for role, name in columns.items():
        if name not in found:
            raise UserError(f"{where}: no column {name!r}; found {_listed(found)}. Set --{role}")
    return columns


def _choose_column(
    found: list[str], where: str, group: tuple[str, ...], named: Columns, of_run: Columns
) -> tuple[str, str]:
    """One of the roles and its column: what the user named, else what the run read, else what is named like it."""
    said = [(role, named[role]) for role in group if named.get(role) is not None]
    if len(said) > 1:
        raise UserError(f"--{said[0][0]} and --{said[1][0]}: a row has one of them. Leave one out")
    read = [(role, of_run[role]) for role in group if of_run.get(role) in found]
    if said or read:
        return (said or read)[0]
    alike = {role: [name for name in found if name.lower() in ROLES[role].names] for role in group}
    likely = next(((role, names[0]) for role, names in alike.items() if len(names) == 1), None)
    if likely is None:
        flags = " or ".join(f"--{role}" for role in group)
        raise UserError(f"{where}: which column is the {group[0]} cannot be told; found {_listed(found)}. Set {flags}")
    return likely


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))


# what stands in a field


def _parse_text(value: Any, noun: str, where: str) -> str:
    """A field as the text that training would have read. UserError where there is none."""
    text = json.dumps(value) if isinstance(value, int | float) else value
    if text is None or not str(text).strip():
        raise UserError(f"{where}: empty or missing; every row needs {noun}")
    if not isinstance(text, str):
        raise UserError(f"{where}: holds a {type(text).__name__}, and {noun} is one string")
    _check_unicode(text, where)
    return text


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: not UTF-8, or half of a character. Save the file as UTF-8") from error


def _parse_image(value: Any, noun: str, where: str) -> str:
    text = _parse_text(value, noun, where)
    if "://" in text:
        raise UserError(f"{where}: {text} is an address, and pictures are read from files. Fetch it first")
    return text


def _parse_words(value: Any, noun: str, where: str) -> list[str]:
    """A list, the list that a text writes (JSON or Python), or what stands between the blanks of a text."""
    words = value
    if not isinstance(value, list):
        text = _parse_text(value, noun, where).strip()
        words = parse_list(text) if are_lists([text]) else text.split()
        if words == [None]:
            raise UserError(f'{where}: a list that is neither JSON nor Python. Write ["a", "b"]')
    if not words:
        raise UserError(f"{where}: an empty sentence; every row needs {noun}")
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise UserError(f"{where}: {word!r} is no word; {noun} are strings that are not empty")
        _check_unicode(word, where)
    return words


def _parse_messages(value: Any, noun: str, where: str) -> list[dict[str, str]]:
    """What was said so far, as a list or in JSON; the last one is not the assistant's, who is to answer."""
    messages = value
    if not isinstance(value, list):
        try:
            messages = json.loads(_parse_text(value, noun, where))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: {noun} is a list, or JSON of one ({error})") from error
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: empty or no list; every row needs {noun}")
    for one in messages:
        if not isinstance(one, dict) or not all(isinstance(one.get(name), str) for name in ("role", "content")):
            raise UserError(f'{where}: {one!r} is no message, such as {{"role": "user", "content": "a text"}}')
        _check_unicode(one["content"], where)
    if messages[-1]["role"] == "assistant":
        raise UserError(f"{where}: the assistant has answered already. Leave the last message out")
    return messages


ROLES = {
    "text": Role("a text", TEXT_NAMES, _parse_text),
    "text_pair": Role("a text", (), _parse_text),
    "image": Role("the name of a file", IMAGE_NAMES, _parse_image),
    "words": Role("words", ("words", "word", "tokens", "token"), _parse_words),
    "source": Role(
        "a text", ("source", "src", "input", "inputs", "text", "document", "article", "dialogue"), _parse_text
    ),
    "prompt": Role("a prompt", ("prompt",), _parse_text),
    "messages": Role("a list of messages", ("messages", "conversation", "conversations"), _parse_messages),
    "question": Role("a question", ("question", "query"), _parse_text),
    "context": Role("a text", ("context", "passage", "paragraph", "document"), _parse_text),
}
"""For each flag that names a column, what stands there."""
