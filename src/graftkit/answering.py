"""How is a model asked about rows of which nobody knows the truth, and what does it answer?

The task that trained the model answers, so that windows, cuts and thresholds are what they were in training: it is
given each row with some truth, since it asks for one, and nothing follows from that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.batches import fixed_batches
from graftkit.classifiers import Located
from graftkit.data.columns import Columns
from graftkit.data.stream import (
    Chunk,
    Wanted,
    check_name,
    is_conll,
    list_pictures,
    names_start,
    read_chunks,
    read_conll,
)
from graftkit.errors import UserError
from graftkit.feed import load_batches
from graftkit.metrics.tagging import PLAIN, scheme_of, spans
from graftkit.pictures import SUFFIXES

if TYPE_CHECKING:
    from torch import nn

    from graftkit.task import Batch, Record, Row, Task

    Read = Callable[[Located, str, str | None, Columns], Iterator[list[Row]]]
    Ask = Callable[[Task, nn.Module, Sequence[Row]], Iterator[tuple[list[int], list[Record]]]]


def ask_texts(task: Task, model: nn.Module, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[Record]]]:
    """Rows of like length together, the longest first: which rows these are, and their records."""
    import numpy as np

    examples = [task.encode(row, None) for row in rows]
    windows = [example.get("windows", [example]) for example in examples]
    lengths = np.array([sum(len(one["input_ids"]) for one in each) for each in windows], dtype=int)
    for places in fixed_batches(lengths, len(rows)):
        yield places.tolist(), _predict(task, model, task.collate([examples[i] for i in places]))


def ask_in_order(task: Task, model: nn.Module, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[Record]]]:
    """Rows that all cost the same, encoded batch by batch."""
    batches = fixed_batches(None, len(rows))
    for places, batch in zip(batches, load_batches(task, rows, batches, None), strict=True):
        yield places.tolist(), _predict(task, model, batch)


def _predict(task: Task, model: nn.Module, batch: Batch) -> list[Record]:
    import torch

    with torch.inference_mode():
        return task.predict(model, batch.to(next(model.parameters()).device))


@dataclass(frozen=True)
class Kind:
    """How models of one task are asked, and what they answer."""

    reads: str  # what its rows are, as messages say it
    roles: tuple[str, ...]  # of columns that the user may name
    read: Read  # rows as they arrive, from FILE in a format; the last are the columns that the user named
    truth: Callable[[Task, Row], dict[str, Any]]  # the fields that hold it, in which something must stand
    answer: Callable[[Task, Row, Record], dict[str, Any]]  # plain JSON, with the same names for each row
    columns: Callable[[Task], list[str]]  # the names of the answer's values in csv, in order
    heads: tuple[str, ...] = ("row",)  # fields of a row that its answer begins with
    ask: Ask = ask_texts


def rows_of(wanted: Wanted) -> Read:
    """Reads rows with their number, and what stands in the columns that are wanted."""

    def read(located: Located, file: str, format: str | None, named: Columns) -> Iterator[list[Row]]:
        if format == "conll":
            raise UserError(f"--format conll: {located.name} reads no words with a line each. Name another format")
        for chunk in read_chunks(file, format, wanted, named, located.columns):
            yield [{"row": number, "id": str(number), **fields} for number, fields in chunk]

    return read


def digits(value: float) -> float:
    """A float32 with no more digits than it holds."""
    return float(f"{value:.7g}")


# one label


def _some_label(task: Task, row: Row) -> dict[str, Any]:
    return {"label": task.labels[0]}


def _label(task: Task, row: Row, record: Record) -> dict[str, Any]:
    """The likeliest label, and how likely each is."""
    shares = [digits(share) for share in record["probabilities"]]
    found = {"label": task.labels[record["probabilities"].argmax()], "probability": max(shares)}
    return found | {"probabilities": dict(zip(task.labels, shares, strict=True))}


def _label_columns(task: Task) -> list[str]:
    return ["label", "probability", *(f"probability:{label}" for label in task.labels)]


TEXT = Wanted((("text",),), others=("text_pair",), line="text")
TEXTS = Kind("texts", TEXT.roles, rows_of(TEXT), _some_label, _label, _label_columns)


# any number of labels, or a number


def _labels(task: Task, row: Row, record: Record) -> dict[str, Any]:
    """The labels whose probability reaches their threshold, and how likely each is."""
    shares = zip(task.labels, map(digits, record["probabilities"]), strict=True)
    return {"labels": record["prediction"], "probabilities": dict(shares)}


LABEL_SETS = Kind(
    "texts",
    TEXT.roles,
    rows_of(TEXT),
    lambda task, row: {"labels": []},
    _labels,
    lambda task: ["labels", *(f"probability:{label}" for label in task.labels)],
)
NUMBERS = Kind(
    "texts",
    TEXT.roles,
    rows_of(TEXT),
    lambda task, row: {"label": 0.0},
    lambda task, row, record: {"score": digits(record["prediction"])},
    lambda task: ["score"],
)


# answers in a text


def _answer(task: Task, row: Row, record: Record) -> dict[str, Any]:
    """The answer, "" for none; where it begins in the context; and the sum of its two logits."""
    given = bool(record["prediction"])
    return {
        "answer": record["prediction"],
        "start": record["start"] if given else None,
        "score": digits(record["score"]),
    }


QUESTION = Wanted((("question",), ("context",)))
QUESTIONS = Kind(
    "questions with the text that they are about",
    QUESTION.roles,
    rows_of(QUESTION),
    lambda task, row: {"answers": [], "starts": []},
    _answer,
    lambda task: ["answer", "start", "score"],
)


# pictures


def _read_pictures(located: Located, file: str, format: str | None, named: Columns) -> Iterator[list[Row]]:
    """Rows with their number, and where their picture lies: `file` as it is named, and `path` from here."""
    start, chunks = _find_pictures(file, format, named, located.columns)
    for chunk in chunks:
        names = [(number, fields["image"]) for number, fields in chunk]
        yield [{"row": n, "id": str(n), "file": name, "path": str(start / name), "bytes": None} for n, name in names]


def _find_pictures(file: str, format: str | None, named: Columns, of_run: Columns) -> tuple[Path, Iterator[Chunk]]:
    """Their names by chunks, and where these start: of a folder, of one picture, or those in a table."""
    place = Path(file)
    is_folder, is_picture = place.is_dir(), place.suffix.lower() in SUFFIXES
    if file == "-" or format is not None or not (is_folder or is_picture):
        return names_start(file, format), read_chunks(file, format, PICTURE, named, of_run)
    if named["image"] is not None:
        raise UserError(f"--image {named['image']} does nothing: {file} is no table; leave it out")
    if is_folder:
        return place, list_pictures(place, _say)
    if not place.is_file():
        raise UserError(f"{file} cannot be read: no such file")
    return Path(), iter([[(1, {"image": check_name(file)})]])


PICTURE = Wanted((("image",),), line="image")
PICTURES = Kind(
    "pictures",
    PICTURE.roles,
    _read_pictures,
    _some_label,
    _label,
    _label_columns,
    heads=("row", "file"),
    ask=ask_in_order,
)


# a tag for each word


def _read_sentences(located: Located, file: str, format: str | None, named: Columns) -> Iterator[list[Row]]:
    """Rows with their number and words: a column of them, text that is split at blanks, or a word in each line.

    Of the last, `lines` are as they stand, and `at` is the place of each word in these.
    """
    if is_conll(file, format):
        if named["text"] is not None:
            raise UserError(f"--text {named['text']} does nothing: each line of {file} has a word; leave it out")
        chunks = read_conll(file, named["words"], located.columns.get("words"))
    else:
        chunks = read_chunks(file, format, SENTENCE, named, located.columns)
    split = False
    for chunk in chunks:
        if not split and "text" in chunk[0][1]:
            _say("texts are split at blanks, so that a mark at the end of a word is part of it; --words names a column")
            split = True
        yield [
            {"row": number, "id": str(number), "words": fields["text"].split() if split else fields["words"], **fields}
            for number, fields in chunk
        ]


def _some_tags(task: Task, row: Row) -> dict[str, Any]:
    return {"tags": [task.labels[0]] * len(row["words"])}


def _tags(task: Task, row: Row, record: Record) -> dict[str, Any]:
    """The tag of each word and how likely it is; and, where tags mark them, the entities."""
    words, tags = row["words"], record["prediction"]
    likely = [digits(share) for share in record["probabilities"].max(axis=1)]
    found = {"words": words, "tags": tags, "probabilities": likely}
    scheme = scheme_of(task.labels)
    if scheme == PLAIN:
        return found
    entities = [
        {"type": span.type, "text": " ".join(words[span.first : span.last + 1]), "first": span.first, "last": span.last}
        for span in spans(tags, scheme)
    ]
    return found | {"entities": entities}


def _tag_columns(task: Task) -> list[str]:
    return ["words", "tags", "probabilities", *(["entities"] if scheme_of(task.labels) != PLAIN else [])]


SENTENCE = Wanted((("words", "text"),), line="text")
SENTENCES = Kind("words", SENTENCE.roles, _read_sentences, _some_tags, _tags, _tag_columns)


# texts that are written


SOURCE = Wanted((("source",),), line="source")
SOURCES = Kind(
    "texts to write another of",
    SOURCE.roles,
    rows_of(SOURCE),
    lambda task, row: {"target": row["source"]},
    lambda task, row, record: {"text": record["prediction"]},
    lambda task: ["text"],
)


def _read_prompts(located: Located, file: str, format: str | None, named: Columns) -> Iterator[list[Row]]:
    """Rows with their number, and a prompt, or messages, or the beginning of a text."""
    line = "text" if "text" in located.columns else "prompt"
    return rows_of(Wanted(PROMPT.needed, line=line))(located, file, format, named)


def _go_on(task: Task, model: nn.Module, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[Record]]]:
    """One row after the other, each drawn by the chance of its number."""
    for place, row in enumerate(rows):
        try:
            begun = task.reader.ask(row)
        except ValueError as error:
            raise UserError(f"row {row['row']}: {error}") from error
        yield [place], [{"prediction": task.go_on(model, begun, seed=row["row"])}]


PROMPT = Wanted((("messages", "prompt", "text"),))
PROMPTS = Kind(
    "prompts, messages or beginnings of texts",
    PROMPT.roles,
    _read_prompts,
    lambda task, row: {},
    lambda task, row, record: {"text": record["prediction"]},
    lambda task: ["text"],
    ask=_go_on,
)


KINDS = {
    "text-classification": TEXTS,
    "multi-label-classification": LABEL_SETS,
    "text-regression": NUMBERS,
    "image-classification": PICTURES,
    "token-classification": SENTENCES,
    "question-answering": QUESTIONS,
    "text2text-generation": SOURCES,
    "text-generation": PROMPTS,
}
"""For each task, how its models are asked."""


def _say(line: str) -> None:
    print(line, file=sys.stderr)
