"""What does a model say of each of these rows?

Any model that `answering` knows how to ask, ours or not, is asked in fp32, as a run asks it for its tables.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from graftkit.answering import KINDS, Kind
from graftkit.classifiers import DOES, Located, load_classifier, locate, read_labels
from graftkit.data.columns import Columns
from graftkit.data.conll import SUFFIXES
from graftkit.errors import UserError
from graftkit.images import ImageConfig
from graftkit.machine import keep_freed_memory

if TYPE_CHECKING:
    from torch import nn

    from graftkit.task import Row, Task

    Writer = Callable[[Row, dict[str, Any]], Any]  # writes the answer to a row


def predict(
    model: str, file: str, *, output: str | None = None, format: str | None = None, **named: str | None
) -> None:
    """Write one answer per row of `file`, or of standard input (-), in order; to standard output, or to `output`.

    `named` are columns by their role. The first rows are read before anything heavy is loaded. UserError where the
    model cannot be asked, and, after the answers to what came before, where rows cannot be read.
    """
    located = locate(model)
    if (kind := KINDS.get(located.task)) is None:
        pipeline = f"pipeline({located.task!r}, {str(located.folder)!r})"
        raise UserError(f"{model} {DOES[located.task]}, which is not done here; ask {pipeline} of transformers")
    place = _check_output(output, file, located)
    chunks = kind.read(located, file, format, _choose_columns(located, kind, named))
    first = next(chunks, [])
    task, network = _load(located)
    sys.stdout.reconfigure(encoding="utf-8")
    try:
        with place.open("w", encoding="utf-8", newline="") if place else nullcontext(sys.stdout) as out:
            write = WRITERS[_form(place, first)](out, kind, task)
            for rows in chain([first], chunks):
                for answers in _ask(kind, task, network, rows):
                    for row, answer in answers:
                        write(row, answer)
                    out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{place or 'standard output'} cannot be written: {error.strerror}") from error


def _check_output(output: str | None, file: str, located: Located) -> Path | None:
    place = Path(output) if output else None
    lines = CONLL if located.task == "token-classification" else ()
    if place and place.suffix not in (".csv", ".jsonl", *lines):
        named = ", ".join([".csv", *lines[:1]]) if lines else ".csv"
        raise UserError(f"--output {place}: the name must end in {named} or .jsonl")
    if place and file != "-" and place.resolve() == Path(file).resolve():
        raise UserError(f"--output {place} is the file to read; name another")
    return place


def _choose_columns(located: Located, kind: Kind, named: Columns) -> Columns:
    """The roles of a kind, with the columns that the user named. UserError for a column that does nothing."""
    for role, column in named.items():
        if role not in kind.roles and column is not None:
            raise UserError(f"--{role} {column} does nothing: {located.name} reads {kind.reads}; leave it out")
    return {role: named.get(role) for role in kind.roles}


def _load(located: Located) -> tuple[Task, nn.Module]:
    """The task, and its model on the best device."""
    import torch

    if located.kind != "timm":  # which does without, and is there a second sooner
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    keep_freed_memory()
    classifier = load_classifier(read_labels(located), ImageConfig())
    device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return classifier.task, classifier.model.to(device)


def _ask(kind: Kind, task: Task, model: nn.Module, rows: Sequence[Row]) -> Iterator[list[tuple[Row, dict[str, Any]]]]:
    """Rows with their answers; in order, as soon as all before them are there."""
    found, given = {}, 0
    for places, records in kind.ask(task, model, [{**row, **kind.truth(task, row)} for row in rows]):
        found.update(zip(places, records, strict=True))
        ready = []
        while given in found:
            ready.append((rows[given], kind.answer(task, rows[given], found.pop(given))))
            given += 1
        yield ready


# answers


def _form(place: Path | None, first: Sequence[Row]) -> str:
    """How answers are written: as the name of the file ends, else lines with a word each as they were read, or JSON."""
    if place is not None:
        return "conll" if place.suffix in CONLL else place.suffix.removeprefix(".")
    return "conll" if first and "lines" in first[0] else "jsonl"


def _json_writer(file: TextIO, kind: Kind, task: Task) -> Writer:
    def write(row: Row, answer: dict[str, Any]) -> None:
        file.write(json.dumps({head: row[head] for head in kind.heads} | answer, ensure_ascii=False) + "\n")

    return write


def _csv_writer(file: TextIO, kind: Kind, task: Task) -> Writer:
    """A column for each value; of an object, one for each of its values, and of a list its JSON."""
    table = csv.writer(file, lineterminator="\n")
    table.writerow([*kind.heads, *kind.columns(task)])
    return lambda row, answer: table.writerow([*(row[head] for head in kind.heads), *_flat(answer)])


def _flat(answer: dict[str, Any]) -> Iterator[Any]:
    for value in answer.values():
        if isinstance(value, dict):
            yield from value.values()
        else:
            yield json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _conll_writer(file: TextIO, kind: Kind, task: Task) -> Writer:
    """A line for each word, as it was read, with its tag in a last column; lines without a word stay as they are."""

    def write(row: Row, answer: dict[str, Any]) -> None:
        lines = list(row.get("lines", row["words"]))
        for place, tag in zip(row.get("at", range(len(lines))), answer["tags"], strict=True):
            between = " " if "\t" not in lines[place] and " " in lines[place] else "\t"
            lines[place] = f"{lines[place].rstrip()}{between}{tag}"
        file.write("\n".join(lines) + "\n\n")

    return write


CONLL = tuple(suffix for suffix in SUFFIXES if suffix != ".txt")
WRITERS = {"jsonl": _json_writer, "csv": _csv_writer, "conll": _conll_writer}
"""For each format, what makes of a file what writes answers into it."""
