"""How are errors shown as pictures?

The thumbnails that the table of rows keeps are written as files into report/, beside report.md, which shows them in a
grid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftkit.report.markdown import escape, percent, shorten, table
from graftkit.report.tables import written_aside

FOLDER = "report"
COLUMNS = 4
NAMED = re.compile(r"worst-\d\d-[A-Za-z0-9_-]+\.jpg")  # each file that is written here, and no other, may be deleted


def grid(shown: Sequence[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The records as a table of pictures, each above what it is, what it was taken for, and which row it is.

    Where rows have a path, a second table says where their pictures lie in the data.
    """
    lines = []
    for start in range(0, len(shown), COLUMNS):
        band = list(enumerate(shown[start : start + COLUMNS], start=start + 1))
        blank = [""] * (COLUMNS - len(band) if start else 0)
        lines.append([_picture(place, record, rows) for place, record in band] + blank)
        lines.append([_caption(record) for _, record in band] + blank)
    pictures = table([""] * min(COLUMNS, len(shown)), lines)
    paths = [(record["id"], rows.get(record["id"], {}).get("path")) for record in shown]
    lines = [(escape(id), escape(shorten(path))) for id, path in paths if path]
    return f"{pictures}\n\nWhere they lie in the data:\n\n{table(('Row', 'Picture'), lines)}" if lines else pictures


def files(shown: Sequence[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """The pictures that the grid of these records shows, by the names of their files."""
    thumbnails = [rows.get(record["id"], {}).get("thumbnail") for record in shown]
    places = enumerate(zip(shown, thumbnails, strict=True), start=1)
    return {file_name(place, record["id"]): thumbnail for place, (record, thumbnail) in places if thumbnail}


def file_name(place: int, id: str) -> str:
    """The name of a picture's file: safe on every system and in a link, whatever the row is called."""
    return f"worst-{place:02d}-{re.sub('[^A-Za-z0-9_]+', '-', id)[:60]}.jpg"


def replace(folder: Path, pictures: Mapping[str, bytes]) -> None:
    """Write the pictures into report/ of a run's folder, and delete those of an earlier report."""
    beside = folder / FOLDER
    if pictures:
        beside.mkdir(exist_ok=True)
    for name, content in pictures.items():
        with written_aside(beside / name) as aside:
            aside.write_bytes(content)
    for path in beside.glob("worst-*.jpg"):
        if path.name not in pictures and NAMED.fullmatch(path.name):
            path.unlink()


def _picture(place: int, record: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    if not rows.get(record["id"], {}).get("thumbnail"):
        return "*no picture*"
    words = f"{escape(record['label'])}, taken for {escape(record['prediction'])}"
    return f"![{words}]({FOLDER}/{file_name(place, record['id'])})"


def _caption(record: Mapping[str, Any]) -> str:
    sure = percent(float(record["probabilities"].max()))
    classes = f"**{escape(record['label'])}** taken for **{escape(record['prediction'])}**"
    return f"{classes}, {sure} sure (row {escape(record['id'])})"
