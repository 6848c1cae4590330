"""Which label has each of these rows?

Any classifier that `graft evaluate` can score is asked, in fp32, as a run asks it for its tables.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from graftkit.batches import fixed_batches
from graftkit.classifiers import Located, load_classifier, locate, read_labels
from graftkit.data.columns import Columns
from graftkit.data.stream import Chunk, check_name, list_pictures, names_start, read_chunks
from graftkit.errors import UserError
from graftkit.feed import load_batches
from graftkit.images import ImageConfig
from graftkit.machine import keep_freed_memory
from graftkit.pictures import SUFFIXES

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from graftkit.task import Batch, Row, Task

    Writer = Callable[[Row, str, list[float]], Any]  # writes the answer to a row: its label, and all probabilities


@dataclass(frozen=True)
class Kind:
    """How rows of one kind are found and asked."""

    name: str
    roles: tuple[str, ...]  # of columns, first the one that a table must have
    heads: tuple[str, ...]  # the fields of a row that its answer begins with
    read: Callable[[str, str | None, Columns, Columns], Iterator[list[Row]]]
    encode: Callable[[Task, Sequence[Row]], Iterator[tuple[np.ndarray, Batch]]]  # batches, and which rows are in each


def predict(
    model: str,
    file: str,
    *,
    output: str | None = None,
    format: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    image: str | None = None,
) -> None:
    """Write one answer per row of `file`, or of standard input (-), in order; to standard output, or to `output`.

    The first rows are read before anything heavy is loaded. UserError where the model cannot be asked, and, after the
    answers to what came before, where rows cannot be read.
    """
    place = _check_output(output, file)
    located = locate(model)
    kind = TEXTS if located.reads_texts else PICTURES
    named = _choose_columns(located, kind, {"text": text, "text_pair": text_pair, "image": image})
    chunks = kind.read(file, format, named, located.columns)
    chunks = chain([next(chunks, [])], chunks)
    task, network = _load(located)
    sys.stdout.reconfigure(encoding="utf-8")
    try:
        with place.open("w", encoding="utf-8", newline="") if place else nullcontext(sys.stdout) as out:
            write = (_csv_writer if place and place.suffix == ".csv" else _json_writer)(out, kind.heads, task.labels)
            for rows in chunks:
                for answers in _ask(kind, task, network, rows):
                    for row, shares in answers:
                        write(row, task.labels[shares.argmax()], [float(f"{share:.7g}") for share in shares])  # as fp32
                    out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{place or 'standard output'} cannot be written: {error.strerror}") from error


def _check_output(output: str | None, file: str) -> Path | None:
    place = Path(output) if output else None
    if place and place.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--output {place}: the name must end in .csv or .jsonl")
    if place and file != "-" and place.resolve() == Path(file).resolve():
        raise UserError(f"--output {place} is the file to read; name another")
    return place


def _choose_columns(located: Located, kind: Kind, named: Columns) -> Columns:
    """The roles of a kind, with the columns that the user named. UserError for a column that does nothing."""
    for role, column in named.items():
        if role not in kind.roles and column is not None:
            raise UserError(f"--{role} {column} does nothing: {located.name} reads {kind.name}; leave it out")
    return {role: named[role] for role in kind.roles}


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


def _ask(kind: Kind, task: Task, model: nn.Module, rows: Sequence[Row]) -> Iterator[list[tuple[Row, np.ndarray]]]:
    """Rows with how likely each label is, (labels,) float32; in order, as soon as all before them are there."""
    import torch

    device, found, given = next(model.parameters()).device, {}, 0
    labelled = [{**row, "label": task.labels[0]} for row in rows]  # a task asks for one; nothing follows from it
    for indices, batch in kind.encode(task, labelled):
        with torch.inference_mode():
            records = task.predict(model, batch.to(device))
        found.update(zip(indices.tolist(), (record["probabilities"] for record in records), strict=True))
        ready = []
        while given in found:
            ready.append((rows[given], found.pop(given)))
            given += 1
        yield ready


# texts


def _read_texts(file: str, format: str | None, named: Columns, of_run: Columns) -> Iterator[list[Row]]:
    """Rows with their number, text and perhaps text_pair."""
    for chunk in read_chunks(file, format, named, of_run):
        yield [{"row": number, "id": str(number), **fields} for number, fields in chunk]


def _encode_texts(task: Task, rows: Sequence[Row]) -> Iterator[tuple[np.ndarray, Batch]]:
    """Texts of like length together, the longest first."""
    import numpy as np

    examples = [task.encode(row, None) for row in rows]
    lengths = np.array([len(example["input_ids"]) for example in examples], dtype=int)
    for indices in fixed_batches(lengths, len(rows)):
        yield indices, task.collate([examples[i] for i in indices])


TEXTS = Kind("texts", ("text", "text_pair"), ("row",), _read_texts, _encode_texts)


# pictures


def _read_pictures(file: str, format: str | None, named: Columns, of_run: Columns) -> Iterator[list[Row]]:
    """Rows with their number, and where their picture lies: `file` as it is named, and `path` from here."""
    start, chunks = _find_pictures(file, format, named, of_run)
    for chunk in chunks:
        names = [(number, fields["image"]) for number, fields in chunk]
        yield [{"row": n, "id": str(n), "file": name, "path": str(start / name), "bytes": None} for n, name in names]


def _find_pictures(file: str, format: str | None, named: Columns, of_run: Columns) -> tuple[Path, Iterator[Chunk]]:
    """Their names by chunks, and where these start: of a folder, of one picture, or those in a table."""
    place = Path(file)
    is_folder, is_picture = place.is_dir(), place.suffix.lower() in SUFFIXES
    if file == "-" or format is not None or not (is_folder or is_picture):
        return names_start(file, format), read_chunks(file, format, named, of_run)
    if named["image"] is not None:
        raise UserError(f"--image {named['image']} does nothing: {file} is no table; leave it out")
    if is_folder:
        return place, list_pictures(place, lambda line: print(line, file=sys.stderr))
    if not place.is_file():
        raise UserError(f"{file} cannot be read: no such file")
    return Path(), iter([[(1, {"image": check_name(file)})]])


def _encode_pictures(task: Task, rows: Sequence[Row]) -> Iterator[tuple[np.ndarray, Batch]]:
    """Pictures in their order, decoded batch by batch."""
    batches = fixed_batches(None, len(rows))
    return zip(batches, load_batches(task, rows, batches, None), strict=True)


PICTURES = Kind("pictures", ("image",), ("row", "file"), _read_pictures, _encode_pictures)


# answers


def _json_writer(file: TextIO, heads: Sequence[str], labels: list[str]) -> Writer:
    def write(row: Row, label: str, shares: list[float]) -> None:
        answer = {head: row[head] for head in heads} | {"label": label, "probability": max(shares)}
        answer["probabilities"] = dict(zip(labels, shares, strict=True))
        file.write(json.dumps(answer, ensure_ascii=False) + "\n")

    return write


def _csv_writer(file: TextIO, heads: Sequence[str], labels: list[str]) -> Writer:
    table = csv.writer(file, lineterminator="\n")
    table.writerow([*heads, "label", "probability", *(f"probability:{label}" for label in labels)])
    return lambda row, label, shares: table.writerow([*(row[head] for head in heads), label, max(shares), *shares])
