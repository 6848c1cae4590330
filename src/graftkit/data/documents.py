"""Which documents?

Texts without labels: plain text files, folders of them, or tables with a column of texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from graftkit.data.checks import BadRows
from graftkit.data.columns import TEXT_NAMES, Columns, LabelledRows, choose_columns, label_rows
from graftkit.data.config import RowsConfig
from graftkit.data.files import READERS, Table, read_file
from graftkit.data.repeats import number_contents
from graftkit.data.sources import DEMO, DEMO_FOLDER, SPLIT_NAMES, Places, Source, offer_files
from graftkit.data.splits import Checked, Kind, Splits, dataset_of, load_to_cut, make_plain_splits
from graftkit.errors import UserError

TEXT_FILE = ".txt"
BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")  # one or more, which may hold blanks
SPLITS = {name for names in SPLIT_NAMES.values() for name in names}
EMPTY = "an empty document"


@dataclass(frozen=True)
class DocumentsConfig(RowsConfig):
    """Which documents to learn from."""

    path: str = "demo"
    """data set: a Hub id, a text file (.txt) or a table, which becomes train, or a folder: of splits (train.txt,
    dev.txt and test.txt, or folders by these names), or of text files, which are train together; 'demo' comes with
    graftkit"""
    text: str | None = None
    """column of the text in tables (by default the only one named like a text)"""
    documents: Literal["auto", "file", "paragraph", "line"] = "auto"
    """what is a document in text files: the file, a paragraph (blank lines part them) or a line; by default a file is
    one in a folder of text files, and a paragraph elsewhere"""


def load_documents(config: DocumentsConfig, seed: int, extra: Sequence[str] = (), group: str | None = None) -> Splits:
    """Train, dev and test, checked; what is not there is cut from train, the same way for the same seed.

    Rows have `id` and `text`, and the `extra` columns as `column:<name>`; those of a folder of text files have a column
    `file`, too. Rows with the same value in the column `group`, one of them, are cut together. `labels` is empty.
    UserError for what cannot be found or read.
    """
    tables, notes, bad = load_documents_to_cut(config)
    columns, column_notes = choose_columns(tables["train"], {"text": config.text}, {"text": TEXT_NAMES})
    rows = {split: document_rows(split, table, columns, extra, bad) for split, table in tables.items()}
    checked = Checked(tables, columns, number_contents(rows), bad, [*notes, *column_notes])
    return make_plain_splits(config, checked, DOCUMENTS, seed, group)


def load_documents_to_cut(config: DocumentsConfig) -> tuple[dict[str, Table], list[str], BadRows]:
    """What `load_to_cut` gives. UserError where `documents` would part none of the tables."""
    tables, notes, bad = load_to_cut(config, text_places(config.documents))
    if config.documents != "auto" and not any(isinstance(table, TextTable) for table in tables.values()):
        raise UserError(
            f"--data.documents {config.documents}: says what a document is in text files ({TEXT_FILE}), and "
            f"{tables['train'].where} is none; leave it out"
        )
    return tables, notes, bad


DOCUMENTS = Kind(
    things="documents",
    repeat="repeat an earlier document",
    overlap="also stand in {}",
    to_dataset=dataset_of("text"),
)


def document_rows(split: str, table: Table, columns: Columns, extra: Sequence[str], bad: BadRows) -> LabelledRows:
    """The rows with a text that is not blank. UserError where none is left."""
    import pyarrow.compute as pc

    rows = replace(label_rows(split, table, columns, extra), said=("text",))
    text = pc.utf8_trim_whitespace(rows.rows.column("text"))
    rows = bad.without(split, rows, EMPTY, pc.fill_null(pc.equal(text, ""), True).to_numpy())
    if not len(rows):
        raise UserError(f"{rows.where}: no document with a text is left. Set --data.{split} or --data.text")
    return rows


# where they lie


def text_places(documents: str, demos: Mapping[str, Sequence[Path]] | None = None) -> Places:
    """Text files beside tables; `demos`: by path, the files of data sets that ship with graftkit."""
    demos = demos or {DEMO: [DEMO_FOLDER / f"{split}.csv" for split in ("train", "dev", "test")]}

    def at(place: Path, where: str) -> Source | None:
        if place.is_dir():
            return Source(where, partial(_read_folder, place, where, documents)) if _text_files(place) else None
        if not place.is_file():
            return None
        if place.suffix.lower() == TEXT_FILE:
            return Source(where, partial(_read_text_file, place, where, documents))
        if place.suffix.lower() not in READERS:
            endings = ", ".join((*READERS, TEXT_FILE))
            raise UserError(f"{where}: cannot read this kind of file; its name must end in {endings}")
        return Source(where, partial(read_file, place, where))

    def in_folder(place: Path, path: str) -> dict[str, Source]:
        shown = [entry for entry in sorted(place.iterdir()) if entry.name[0] != "."]
        files = [e for e in shown if e.is_file() and e.suffix.lower() in (*READERS, TEXT_FILE)]
        folders = [e for e in shown if e.is_dir() and e.name.lower() in SPLITS and _text_files(e)]
        plain = [file for file in files if file.suffix.lower() == TEXT_FILE]
        if not folders and not any(file.stem.lower() in SPLITS for file in plain) and len(plain) == len(files):
            if not _text_files(place):
                endings = ", ".join((*READERS, TEXT_FILE))
                raise UserError(f"no data in the folder {path}: no file there ends in {endings}")
            return {"train": at(place, path)}
        names = [folder.name for folder in folders]
        offered = {name: at(folder, str(Path(path, name))) for name, folder in zip(names, folders, strict=True)}
        named = offer_files(files, path, names)
        return offered | {name: at(f, str(Path(path, f.name))) for name, f in zip(named, files, strict=True)}

    return Places(
        demos={name: partial(offer_files, files, name) for name, files in demos.items()}, in_folder=in_folder, at=at
    )


def _text_files(folder: Path) -> list[Path]:
    """All text files below a folder, by name."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() == TEXT_FILE and path.is_file())
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


# what they hold


class TextTable(Table):
    """The documents of text files."""


def _read_text_file(path: Path, where: str, documents: str) -> Table:
    import pyarrow as pa
    from datasets import Dataset

    texts = _documents(_read_text(path, where), "paragraph" if documents == "auto" else documents)
    if not any(text.strip() for text in texts):
        raise UserError(f"{where} is empty: it has no text")
    note = f"{where}: {len(texts):,} documents, {PARTED['paragraph' if documents == 'auto' else documents]}"
    return TextTable(where, Dataset(pa.table({"text": texts})), np.arange(1, len(texts) + 1), notes=[note])


def _read_folder(folder: Path, where: str, documents: str) -> Table:
    """All text files of a folder; where each is a document, empty ones are `malformed`."""
    import pyarrow as pa
    from datasets import Dataset

    files = _text_files(folder)
    names = [path.relative_to(folder).as_posix() for path in files]
    how = "file" if documents == "auto" else documents
    parts = [_documents(_read_text(f, str(Path(where, name))), how) for f, name in zip(files, names, strict=True)]
    found = [(name, text) for name, texts in zip(names, parts, strict=True) for text in texts]
    empty = [number for number, (_, text) in enumerate(found, 1) if not text.strip()]
    malformed = {f"{EMPTY} (first: {found[empty[0] - 1][0]})": empty} if empty else {}
    good = [(number, name, text) for number, (name, text) in enumerate(found, 1) if text.strip()]
    columns = {"text": pa.array([text for *_, text in good], pa.string()), "file": [name for _, name, _ in good]}
    note = f"{where}: {len(good):,} documents in {len(files):,} text files, {PARTED[how]}"
    numbers = np.array([number for number, *_ in good], int)
    return TextTable(where, Dataset(pa.table(columns)), numbers, malformed, [note], folder)


PARTED = {
    "file": "a file each",
    "paragraph": "parted by blank lines (--data.documents)",
    "line": "a line each",
}


def _documents(text: str, documents: str) -> list[str]:
    """The documents of a file, without the blank lines around them; a file that is one may be empty."""
    if documents == "file":
        return [text.strip("\n")]
    parts = text.split("\n") if documents == "line" else BLANK_LINES.split(text)
    return [part.strip("\n") for part in parts if part.strip()]


def _read_text(path: Path, where: str) -> str:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{where}: bytes that are not UTF-8 in line {line}. Save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
