"""Which column holds the pictures, and where do they lie?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.data.columns import LABEL_NAMES, Columns, choose_columns, read_columns
from graftkit.data.files import Table
from graftkit.errors import UserError
from graftkit.pictures import BadPicture, Survey, survey

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

IMAGE_NAMES = ["image", "images", "file_name", "path", "file", "filename", "img", "picture"]


@dataclass(frozen=True)
class Stored:
    """The pictures of a table as it holds them: a file's name, or bytes."""

    names: pa.ChunkedArray  # (rows,) strings, for messages too; null where there is no picture
    contents: Dataset | None  # (rows,) with the column `bytes`
    folder: Path | None  # where names start from
    roots: Sequence[Path]  # where files must lie

    def look(self, positions: list[int]) -> list[tuple[str | None, Survey] | str]:
        """Of each picture the absolute path, if it is a file, and its survey; or why it cannot be read."""
        return [self._look(position) for position in positions]

    def _look(self, position: int) -> tuple[str | None, Survey] | str:
        content = None if self.contents is None else self.contents[position]["bytes"]
        try:
            path = self.find(self.names[position].as_py()) if content is None else None
            return path, survey(path if content is None else content)
        except BadPicture as error:
            return str(error)

    def find(self, name: str) -> str:
        """The absolute path of a file, links followed. BadPicture where that leads out of the data."""
        if "://" in name:
            raise BadPicture("an address, not a file")
        if "\0" in name or (self.folder is None and not os.path.isabs(name)):
            raise BadPicture("no such file")
        path = os.path.realpath(name if self.folder is None else self.folder / name)
        if not any(Path(path).is_relative_to(root) for root in self.roots):
            raise BadPicture("outside the data folder")
        return path


def choose_picture_columns(table: Table, image: str | None, label: str | None) -> tuple[Columns, list[str]]:
    """The columns `image` and `label`: named by the user, the only one that holds pictures, or named like their role.

    Notes for the log come with them where the table left something to choose.
    """
    held = [name for name, feature in table.rows.features.items() if _holds_pictures(feature)]
    notes = []
    if image is None and len(held) == 1:
        image, notes = held[0], [f"image column: {held[0]!r} (the only one that holds pictures)"]
    known = {"image": IMAGE_NAMES, "label": LABEL_NAMES}
    columns, more_notes = choose_columns(table, {"image": image, "label": label}, known)
    return columns, [] if set(table.rows.column_names) == set(columns) else notes + more_notes


def find_pictures(table: Table, column: str) -> Stored:
    """The pictures in a column of names, of bytes, or of both: {bytes, path}, as the Hub has it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = read_columns(table, {"image": column})["image"]
    kind, contents = values.type, None
    if pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}:
        contents, values = pc.struct_field(values, "bytes"), pc.struct_field(values, "path")
    elif _is_binary(kind):
        contents, values = values, pa.chunked_array([pa.nulls(len(values), pa.string())])
    if not _is_text(values.type) or not (contents is None or _is_binary(contents.type)):
        raise UserError(
            f"{table.where}: column {column!r} holds {kind}, and an image is the name of a file, or its bytes. "
            f"Set --data.image"
        )
    names = values.cast(pa.string())
    if contents is None or pa.types.is_null(contents.type):
        return Stored(names, None, table.folder, _roots(table))
    names = pc.if_else(pc.and_(pc.is_null(names), pc.is_valid(contents)), "bytes", names)
    return Stored(names, _bytes_alone(table.rows, column), table.folder, _roots(table))


def _bytes_alone(rows: Dataset, column: str) -> Dataset:
    """The column's bytes as the column `bytes`, not decoded and not copied."""
    from datasets import Image

    rows = rows.select_columns([column])
    if isinstance(rows.features[column], Image):
        rows = rows.cast_column(column, Image(decode=False))
    if f"{column}.bytes" in rows.flatten().column_names:
        rows, column = rows.flatten().select_columns([f"{column}.bytes"]), f"{column}.bytes"
    return rows.rename_column(column, "bytes")


def _holds_pictures(feature: Any) -> bool:
    """Whether a column is one of pictures, not of their names."""
    from datasets import Image, Value

    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _roots(table: Table) -> list[Path]:
    """The folders in which files must lie: that of the table, or the caches where the Hub's libraries unpack."""
    if table.folder is not None:
        return [table.folder.resolve()]
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    return [Path(cache).resolve() for cache in (config.HF_DATASETS_CACHE, HF_HUB_CACHE)]
