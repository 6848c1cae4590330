"""Which rows of pictures?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from graftkit.data.checks import BadRows, check_filled, check_known_to_model, check_parsed
from graftkit.data.columns import EXTRA, Columns, LabelledRows, as_strings, extra_columns, number_rows, read_columns
from graftkit.data.config import RowsConfig
from graftkit.data.files import Table
from graftkit.data.picture_columns import Stored, choose_picture_columns, find_pictures
from graftkit.data.picture_sources import PICTURES
from graftkit.data.repeats import add_contents
from graftkit.data.sources import load_test
from graftkit.data.splits import (
    Checked,
    Kind,
    RowsToScore,
    Splits,
    check_labels,
    load_to_cut,
    make_rows_to_score,
    make_splits,
    meanings,
    prefer,
)
from graftkit.machine import cores
from graftkit.pictures import Survey, group_alike

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = ("image", "label")
COLUMNS = ("id", "path", "bytes", "sha256", "label")  # of the splits
PERCENTILES = (0, 5, 50, 95, 100)
SURVEYED = 64  # pictures that a thread looks at before it reports


@dataclass(frozen=True)
class ImageDataConfig(RowsConfig):
    """Which pictures to learn from, and what says their labels."""

    path: str = "demo"
    """data set: a Hub id, a file (it becomes train) or a folder with folders per class, train, dev and test around them
    or not, with metadata.jsonl, or with tables; 'demo' comes with graftkit"""
    train: str | None = None
    """training rows: a file, a folder, or a split of the path (by default the one named train)"""
    dev: str | None = None
    """rows that choose the best checkpoint: likewise (by default dev or validation, else cut from train)"""
    test: str | None = None
    """rows for the final scores: likewise (by default the one named test, else cut from train)"""
    image: str | None = None
    """column of the picture: its file, seen from the folder of the table, or its bytes (by default the only one that
    holds pictures or is named like one)"""
    label: str | None = None
    """column of the label (by default the only one named like a label)"""


def load_pictures(config: ImageDataConfig, seed: int, extra: Sequence[str] = (), group: str | None = None) -> Splits:
    """Train, dev and test, every picture opened once; what is not there is cut from train, the same for the same seed.

    UserError for what cannot be found, read or learnt from. Pictures that look the same count as one in the cuts and
    in the warnings: see `pictures.group_alike`. `extra` columns come along as strings, named `column:<name>`; rows with
    the same value in the column `group`, one of them, are cut together.
    """
    tables, notes, bad = load_to_cut(config, PICTURES)
    columns, column_notes = choose_picture_columns(tables["train"], config.image, config.label)
    stored = {split: find_pictures(table, columns["image"]) for split, table in tables.items()}
    labelled = {split: _label_rows(split, table, columns, stored[split], extra) for split, table in tables.items()}
    filled = {split: check_filled(split, rows, bad, ROLES) for split, rows in labelled.items()}
    checked = check_labels(filled, bad)  # before pictures are opened, which may take minutes
    surveyed, survey_note = _survey_splits(checked, stored, bad)
    filled = {split: check_filled(split, rows, bad, ROLES) for split, rows in surveyed.items()}
    checked = check_labels(filled, bad)  # again: a class may have lost its pictures
    contents = add_contents(checked, _group(checked))
    kind = Kind(
        things="pictures",
        repeat="show the same picture as an earlier one (perceptual hash)",
        overlap="show the same picture as one of {} (perceptual hash)",
        to_dataset=partial(_to_dataset, {table.where: stored[split] for split, table in tables.items()}),
    )
    known = Checked(tables, columns, contents, bad, [*notes, *column_notes, survey_note])
    splits = make_splits(config, known, kind, seed, group)
    return replace(splits, facts={**splits.facts, "sizes": {split: _sizes(rows) for split, rows in contents.items()}})


def load_test_pictures(
    config: ImageDataConfig, labels: Sequence[str], usual: Columns, extra: Sequence[str] = ()
) -> RowsToScore:
    """The pictures of test alone, every one opened once, for a model that has these labels: see `load_test_texts`."""
    table, notes = load_test(config.path, config.subset, config.test, PICTURES)
    bad = BadRows(drop=config.bad_rows == "drop")
    check_parsed("test", table, bad)
    wanted = prefer({"image": config.image, "label": config.label}, usual, table)
    columns, column_notes = choose_picture_columns(table, wanted["image"], wanted["label"])
    stored = find_pictures(table, columns["image"])
    rows = check_filled("test", _label_rows("test", table, columns, stored, extra), bad, ROLES)
    known = meanings(labels)
    rows = check_known_to_model(rows, known, bad)
    surveyed, survey_note = _survey_splits({"test": rows}, {"test": stored}, bad)
    rows = check_filled("test", surveyed["test"], bad, ROLES)
    notes = [*notes, *column_notes, survey_note]
    made = make_rows_to_score(config, columns, rows, known, bad, notes, partial(_to_dataset, {table.where: stored}))
    return replace(made, facts={**made.facts, "sizes": {"test": _sizes(rows)}})


def _label_rows(split: str, table: Table, columns: Columns, stored: Stored, extra: Sequence[str]) -> LabelledRows:
    import pyarrow as pa

    labels = read_columns(table, {"label": columns["label"]})["label"]
    rows = {
        **number_rows(split, table),
        "position": np.arange(len(table.numbers)),
        "image": stored.names,
        "label": as_strings(table, columns["label"], labels, "label"),
        **extra_columns(table, extra),
    }
    return LabelledRows(table.where, pa.table(rows), said=("sha256", "label"))


# every picture, opened once


def _survey_splits(
    splits: Mapping[str, LabelledRows], stored: Mapping[str, Stored], bad: BadRows
) -> tuple[dict[str, LabelledRows], str]:
    """The rows whose pictures can be read, with what a survey tells of them; and how long that took."""
    started, surveyed, count = time.perf_counter(), {}, 0
    with ThreadPoolExecutor(cores()) as pool:  # Pillow decodes, and hashlib hashes, outside the interpreter's lock
        for split, rows in splits.items():
            positions = rows.column("position").tolist()
            parts = [positions[start : start + SURVEYED] for start in range(0, len(positions), SURVEYED)]
            found = [look for looks in pool.map(stored[split].look, parts) for look in looks]
            surveyed[split] = _add_surveys(split, rows, found, bad)
            count += len(found)
    return surveyed, f"opened {count:,} pictures in {time.perf_counter() - started:.1f} s"


def _add_surveys(
    split: str, rows: LabelledRows, found: list[tuple[str | None, Survey] | str], bad: BadRows
) -> LabelledRows:
    import pyarrow as pa

    names, numbers = rows.rows.column("image").to_pylist(), rows.column("number").tolist()
    unreadable = [
        (number, name, look) for number, name, look in zip(numbers, names, found, strict=True) if isinstance(look, str)
    ]
    bad.refuse_or_count_each(split, rows.where, "pictures that cannot be read", unreadable)
    kept = rows.keep(np.array([not isinstance(look, str) for look in found], bool))
    looks = [look for look in found if not isinstance(look, str)]
    columns = {
        "path": pa.array([path for path, _ in looks], pa.string()),
        "sha256": pa.array([seen.sha256 for _, seen in looks], pa.string()),
        "short_side": pa.array([min(seen.width, seen.height) for _, seen in looks], pa.int64()),
        "hash": pa.array([seen.hash for _, seen in looks], pa.uint64()),
        "colours": pa.array([seen.colours for _, seen in looks], pa.binary()),
    }
    return replace(
        kept, rows=pa.table({**{name: kept.rows.column(name) for name in kept.rows.column_names}, **columns})
    )


def _group(splits: Mapping[str, LabelledRows]) -> np.ndarray:
    """The number of each picture's look, the same in every row and split, (rows of all splits,)."""
    hashes = np.concatenate([rows.column("hash") for rows in splits.values()])
    colours = b"".join(colours for rows in splits.values() for colours in rows.rows.column("colours").to_pylist())
    return group_alike(hashes, np.frombuffer(colours, np.uint8).reshape(len(hashes), -1))


def _sizes(rows: LabelledRows) -> dict[str, int]:
    """Percentiles of the short side in pixels."""
    sides = np.percentile(rows.column("short_side"), PERCENTILES, method="nearest")
    return {str(percent): int(side) for percent, side in zip(PERCENTILES, sides, strict=True)}


def _to_dataset(stored: Mapping[str, Stored], rows: LabelledRows) -> Dataset:
    """The rows as a Dataset; bytes stay where they are, such as in the Hub's memory-mapped files."""
    import pyarrow as pa
    from datasets import Dataset, concatenate_datasets

    contents, positions = stored[rows.where].contents, rows.column("position")
    extra = [name for name in rows.rows.column_names if name.startswith(EXTRA)]
    columns = {name: rows.rows.column(name) for name in (*COLUMNS, *extra) if name != "bytes"}
    if contents is None:
        columns["bytes"] = pa.nulls(len(rows), pa.binary())
        return Dataset(pa.table({name: columns[name] for name in (*COLUMNS, *extra)}))
    taken = np.full(len(contents), -1)
    taken[positions] = np.arange(len(rows))
    places = pa.array(taken, mask=taken < 0)
    others = Dataset(pa.table({name: column.take(places) for name, column in columns.items()}))  # null in dropped rows
    whole = concatenate_datasets([others, contents], axis=1).select_columns([*COLUMNS, *extra])
    return whole.select(positions)
