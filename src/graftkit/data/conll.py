"""What is in this CoNLL file?

One word per line, its columns between blanks or tabs, a blank line between sentences. Lines of documents (-DOCSTART-)
and comments before a sentence (`# text = ...`) hold no words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from graftkit.data.files import Table
from graftkit.errors import UserError

SUFFIXES = (".conll", ".conllu", ".iob", ".iob2", ".bio", ".bioes", ".txt")

COMMENT = re.compile(r"#\s+(\w[\w.:-]*\s*=|newdoc\b|newpar\b)")
DOCUMENT = "-DOCSTART-"


class Line(NamedTuple):
    """A line of a file, without its end."""

    number: int  # from 1
    text: str
    fields: list[str]  # none where it holds no word


def read_conll(path: Path, where: str | None = None) -> Table:
    """All sentences of a file, which messages call `where`: columns named 1, 2, ... of lists of strings.

    Sentences with a line of more or fewer columns than the first are left out and listed in `malformed`. UserError
    where the file as a whole cannot be read.
    """
    import pyarrow as pa
    from datasets import Dataset

    where = where or str(path)
    found = read_sentences(_lines(path, where), skip_ranges=path.suffix.lower() == ".conllu")
    sentences = [[(line.number, line.fields) for line in lines if line.fields] for lines in found]
    if not sentences:
        raise UserError(f"{where} is empty: it has no words")
    width = len(sentences[0][0][1])
    if width < 2:
        raise UserError(
            f"{where}: one column only, {sentences[0][0][1][0]!r}; CoNLL files have a word and its tag in each line"
        )
    good, numbers, bad, first_bad_line = [], [], [], 0
    for number, sentence in enumerate(sentences, 1):
        ragged = next((line for line, fields in sentence if len(fields) != width), None)
        if ragged is None:
            good.append(tuple(zip(*(fields for _, fields in sentence), strict=True)))
            numbers.append(number)
        else:
            bad.append(number)
            first_bad_line = first_bad_line or ragged
    columns = {
        str(place + 1): pa.array([list(sentence[place]) for sentence in good], pa.list_(pa.string()))
        for place in range(width)
    }
    malformed = {f"more or fewer columns than {width} (first in line {first_bad_line})": bad} if bad else {}
    return Table(where, Dataset(pa.table(columns)), np.array(numbers, int), malformed)


def is_conll(table: Table) -> bool:
    """Whether a table was read from such a file: its columns have no names but their numbers."""
    return table.rows.column_names == [str(place + 1) for place in range(len(table.rows.column_names))]


def _lines(path: Path, where: str) -> list[str]:
    """The lines as a plain newline parts them: a word may hold other signs that Python's splitlines breaks at."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{where}: bytes that are not UTF-8 in line {line}. Save the file as UTF-8") from None


def read_sentences(lines: Iterable[str], skip_ranges: bool) -> Iterator[list[Line]]:
    """The lines of each sentence, as soon as it ends; those without a word before it come with it.

    CoNLL-U has lines of several words in one (1-2) and of words that are not there (1.1), which are left out where
    `skip_ranges`.
    """
    sentence: list[Line] = []
    within = False
    for number, line in enumerate(chain(lines, [""]), 1):
        text = line.rstrip("\r\n")
        fields = [field.strip() for field in text.split("\t")] if "\t" in text else text.split()
        between = not any(fields) or fields[0] == DOCUMENT
        if between and within:
            yield sentence
            sentence, within = [], False
            if not any(fields):
                continue
        comment = not within and COMMENT.match(line)
        if between or comment or (skip_ranges and re.fullmatch(r"\d+[-.]\d+", fields[0])):
            fields = []
        sentence.append(Line(number, text, fields))
        within = within or bool(fields)
