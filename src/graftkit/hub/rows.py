"""Which rows of a run can be asked again?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from graftkit.data import DataConfig, ImageDataConfig, Splits, load_pictures, load_splits
from graftkit.errors import UserError
from graftkit.report.tables import read_rows
from graftkit.task import Row
from graftkit.text import text_hash


@dataclass(frozen=True)
class Kind:
    """How the rows of a task are asked."""

    size: Callable[[Row], int | None]  # letters or bytes; None where the row's content is not there
    content: Callable[[Row], Any]  # a text or pair of texts as a list; the bytes of a picture's file
    digest: Callable[[Any], str]  # SHA-256 of a content, as the run's table of rows has it
    load: Callable[..., Splits]  # from the section `data` of the run's settings, its seed, and its --report.group


def _texts(row: Row) -> list[str]:
    return [row[name] for name in ("text", "text_pair") if row.get(name) is not None]


def _file_size(row: Row) -> int | None:
    if row.get("bytes") is not None:
        return len(row["bytes"])
    return os.path.getsize(row["path"]) if row.get("path") and os.path.isfile(row["path"]) else None


def _file_bytes(row: Row) -> bytes:
    return Path(row["path"]).read_bytes() if row.get("bytes") is None else row["bytes"]


KINDS = {
    "text-classification": Kind(
        size=lambda row: sum(map(len, _texts(row))) if _texts(row) else None,
        content=_texts,
        digest=lambda texts: text_hash(*texts),
        load=lambda data, seed, group: load_splits(DataConfig(**data), seed, [group] * bool(group), group),
    ),
    "image-classification": Kind(
        size=_file_size,
        content=_file_bytes,
        digest=lambda content: hashlib.sha256(content).hexdigest(),
        load=lambda data, seed, group: load_pictures(ImageDataConfig(**data), seed, [group] * bool(group), group),
    ),
}


def rows_of_test(folder: Path, run: Mapping[str, Any], data_path: str | None = None) -> list[Row]:
    """The test rows with their content: see `rows_of`."""
    return rows_of(folder, run, ("test",), data_path)["test"]


def rows_of(
    folder: Path, run: Mapping[str, Any], names: Sequence[str], data_path: str | None = None
) -> dict[str, list[Row]]:
    """The rows of some splits with their content: as the run's folder kept them, else from the data, loaded again.

    `data_path` is where the data lie now, if not where the run found them. Raises UserError where they are gone, or
    are not what they were.
    """
    kind = KINDS[run["task"]]
    kept = {
        name: read_rows(folder, name) if (folder / f"rows-{name}.parquet").exists() and data_path is None else []
        for name in names
    }
    if all(rows and all(kind.size(row) is not None for row in rows) for rows in kept.values()):
        return kept
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    group = (settings.get("report") or {}).get("group")  # its rows were cut together
    data = settings["data"] | ({} if data_path is None else {"path": data_path})
    try:
        splits = kind.load(data, settings["run"]["seed"], group)
    except UserError as error:
        raise UserError(
            f"the rows that {folder} was tested on are needed to check its model: {error}. "
            "Set --data.path to where they lie"
        ) from error
    for name in names:
        if splits.facts["splits"][name]["sha256"] != run["data"]["splits"][name]["sha256"]:
            raise UserError(
                f"{data['path']} holds other {name} rows than {folder} was tested on; set --data.path to those"
            )
    return {name: list(getattr(splits, name)) for name in names}


def content(run: Mapping[str, Any], row: Row) -> Any:
    """A row as it is asked: a list of one text or two, or a file's bytes. UserError where the run read another."""
    kind = KINDS[run["task"]]
    found = kind.content(row)
    if "sha256" in row and kind.digest(found) != row["sha256"]:
        raise UserError(f"row {row['id']} of test is not what the run read; put it back to check the model")
    return found


def size(run: Mapping[str, Any], row: Row) -> int:
    """Letters of a text, or bytes of a picture's file."""
    return KINDS[run["task"]].size(row) or 0
