"""Where do the pictures lie?

A folder may hold a folder per class, with a folder per split around them or none; a `metadata` file in the layout of
Hugging Face's imagefolder; or tables that name pictures, which are found as those of texts are.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graftkit.data.files import READERS, Table, name_rows, read_file
from graftkit.data.sources import SPLIT_NAMES, Places, Source, data_files, from_file, offer_files
from graftkit.errors import UserError
from graftkit.pictures import SUFFIXES

IS_SPLIT = {name for names in SPLIT_NAMES.values() for name in names}
SHOWN = 5  # names of skipped files that a note lists


def offer_folder(place: Path, path: str) -> dict[str, Source]:
    """The splits in a folder: its picture folders, its tables, or itself as the only one."""
    metadata = _metadata(place)
    folders = {folder.name: _at_folder(folder, str(Path(path, folder.name))) for folder in _folders(place)}
    if links := [name for name in folders if name.lower() in IS_SPLIT and (place / name).is_symlink()]:
        raise UserError(f"{path}: {links[0]} is a link to another folder. Put the folder itself in its place")
    folders = {name: source for name, source in folders.items() if source is not None}
    described = [name for name in folders if name.lower() in IS_SPLIT and _metadata(place / name) is not None]
    if metadata is not None and not described:
        return _offer_metadata(metadata, str(Path(path, metadata.name)))
    if not any(name.lower() in IS_SPLIT for name in folders):
        folders = {}
    tables = [file for file in data_files(place) if file != metadata]
    offered = {**folders, **offer_files(tables, path, taken=list(folders))}
    whole = None if offered else _at_folder(place, path)
    if not offered and whole is None:
        raise UserError(
            f"no pictures in the folder {path}: it has no folders per class with files that end in "
            f"{', '.join(SUFFIXES)}, no metadata.jsonl, and no table that ends in {', '.join(READERS)}"
        )
    return offered or {"train": whole}


def _at(place: Path, where: str) -> Source | None:
    return _at_folder(place, where) if place.is_dir() else from_file(place, where)


def _at_folder(folder: Path, where: str) -> Source | None:
    """The rows of a folder with a metadata file or with folders per class; None where it has neither."""
    metadata = _metadata(folder)
    if metadata is not None:
        return from_file(metadata, str(Path(where, metadata.name)))
    if any(is_picture(file) for inner in _folders(folder) for file in picture_files(inner, where)):
        return Source(where, partial(_read_classes, folder, where))
    return None


def _folders(place: Path) -> list[Path]:
    return [folder for folder in sorted(place.iterdir()) if folder.is_dir() and folder.name[0] != "."]


# metadata


def _metadata(folder: Path) -> Path | None:
    found = [file for file in data_files(folder) if file.stem == "metadata"]
    if len(found) > 1:
        raise UserError(f"{folder}: {' and '.join(file.name for file in found)} both describe it. Keep one of them")
    return found[0] if found else None


def _offer_metadata(metadata: Path, where: str) -> dict[str, Source]:
    """The rows of a file beside folders per split go by the folder that they name; else all are train."""
    table = read_file(metadata, where)
    names = table.rows["file_name"][:] if "file_name" in table.rows.column_names else []
    folders = np.array([str(name).removeprefix("./").partition("/")[0] for name in names])
    splits = sorted({name for name in folders.tolist() if name.lower() in IS_SPLIT})
    if not splits:
        return {"train": Source(where, lambda: table)}
    if (lost := ~np.isin(folders, splits)).any():
        listed = name_rows(table.numbers[lost])
        raise UserError(
            f"{where}: no folder of a split ({', '.join(splits)}) in file_name of {listed}. Put each file in one"
        )
    once = {splits[0]: {}}  # what is said of the whole file is said of its first split alone
    return {
        name: Source(
            f"{where} ({name})",
            partial(
                _part, table, f"{where} ({name})", folders == name, **once.get(name, {"malformed": {}, "notes": []})
            ),
        )
        for name in splits
    }


def _part(table: Table, where: str, kept: np.ndarray, **others: Any) -> Table:
    rows = table.rows.select(np.flatnonzero(kept))
    return replace(table, where=where, rows=rows, numbers=table.numbers[kept], **others)


# folders per class


def _read_classes(folder: Path, where: str) -> Table:
    """A row for each picture, in the order of their names; its label is the folder in which, or below which, it lies.

    Hidden files, and those whose suffix is none of pictures, are skipped and counted in a note.
    """
    from datasets import Dataset, Features, Value

    files = list(picture_files(folder, where))
    pictures = [file for file in files if is_picture(file)]
    labels = [file.partition("/")[0] if "/" in file else None for file in pictures]
    features = Features({"image": Value("string"), "label": Value("string")})
    skipped = [file for file in files if not is_picture(file)]
    kinds = sorted({Path(file).suffix or "no suffix" for file in skipped})
    more = ", ..." if len(kinds) > SHOWN else ""
    note = f"{where}: skipped {len(skipped):,} that are no pictures by their names: {', '.join(kinds[:SHOWN])}{more}"
    return Table(
        where,
        Dataset.from_dict({"image": pictures, "label": labels}, features),
        np.arange(1, len(pictures) + 1),
        notes=[note] * bool(skipped),
        folder=folder,
    )


def picture_files(folder: Path, where: str) -> Iterator[str]:
    """The files in a folder and below it, as paths from there; a hidden folder is one of them."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_dir() or entry.name[0] == ".":
            yield entry.name
        elif entry.is_symlink():
            raise UserError(f"{where}: {entry.name} is a link to another folder. Put the folder itself in its place")
        else:
            yield from (f"{entry.name}/{file}" for file in picture_files(Path(entry.path), f"{where}/{entry.name}"))


def is_picture(file: str) -> bool:
    name = file.rpartition("/")[2]
    return name[0] != "." and Path(name).suffix.lower() in SUFFIXES


# the digits that scikit-learn has


def _offer_digits(name: str, digits: range, cuts: Callable[[int], tuple[int, int]]) -> dict[str, Source]:
    """The scans of some digits; `cuts` says where, among so many of one digit, dev begins and where test."""
    wheres = {split: f"{name} ({split})" for split in SPLIT_NAMES}
    return {split: Source(where, partial(_read_digits, split, where, digits, cuts)) for split, where in wheres.items()}


def _read_digits(split: str, where: str, digits: range, cuts: Callable[[int], tuple[int, int]]) -> Table:
    """Handwritten digits, 8 x 8, as PNG; which are in which split follows from their order alone."""
    from datasets import Dataset
    from sklearn.datasets import load_digits

    scans = load_digits()
    rows = []
    for digit in digits:
        of_digit = np.flatnonzero(scans.target == digit)
        parts = np.split(of_digit, cuts(len(of_digit)))
        rows += parts[list(SPLIT_NAMES).index(split)].tolist()
    rows.sort()
    pictures = [_as_png(np.rint(scans.images[row] * (255 / 16)).astype(np.uint8)) for row in rows]
    labels = [str(scans.target[row]) for row in rows]
    return Table(where, Dataset.from_dict({"image": pictures, "label": labels}), np.arange(1, len(rows) + 1))


def _as_png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURES = Places(
    demos={
        "demo": partial(_offer_digits, "demo", range(5, 10), lambda scans: (30, 50)),
        "demo-source": partial(
            _offer_digits, "demo-source", range(5), lambda scans: (7 * scans // 10, 8 * scans // 10)
        ),
    },
    in_folder=offer_folder,
    at=_at,
)
