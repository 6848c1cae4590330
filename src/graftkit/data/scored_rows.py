"""Which texts, with a number each?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.data.checks import BadRows, check_filled
from graftkit.data.columns import (
    LABEL_NAMES,
    TEXT_NAMES,
    LabelledRows,
    as_strings,
    choose_columns,
    class_names,
    extra_columns,
    number_rows,
    read_columns,
)
from graftkit.data.repeats import number_contents
from graftkit.data.splits import Checked, DataConfig, Kind, Splits, dataset_of, load_to_cut, make_splits
from graftkit.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

    from graftkit.data.columns import Columns
    from graftkit.data.files import Table

NUMBER_NAMES = ("score", "rating", "stars", "similarity", "value", "number", "price", "points")
COLUMN_NAMES = {"text": TEXT_NAMES, "label": [*LABEL_NAMES, *NUMBER_NAMES]}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
SPECIAL = re.compile(r"[+-]?(inf|infinity)", re.IGNORECASE)
DECILES = 10
FEWEST_EACH = 10  # rows of a part that the numbers are cut by
FEW = 3  # distinct numbers, fewer than which look like classes
FAR = 1e4  # standard deviations from 0, beyond which fp32 begins to round them away


def load_numbers(config: DataConfig, seed: int, extra: Sequence[str] = (), group: str | None = None) -> Splits:
    """Train, dev and test, checked; what is not there is cut from train, evenly over small and large numbers.

    Rows have `id`, `text`, `text_pair` where there is one, and `label`, a float; `extra` columns and `group` as with
    `load_splits`. `labels` holds the name of the number alone, that of its column. UserError for what cannot be found,
    read or learnt from.
    """
    tables, notes, bad = load_to_cut(config)
    wanted = {"text": config.text, "text_pair": config.text_pair, "label": config.label}
    columns, column_notes = choose_columns(tables["train"], wanted, COLUMN_NAMES)
    rows = {split: _number_rows(split, table, columns, extra, bad) for split, table in tables.items()}
    _check_varied(rows["train"].where, rows["train"].column("value"))
    rows = _with_deciles(number_contents(rows), max(FEWEST_EACH, config.folds or 0), config.max_rows or DECILES)
    checked = Checked(tables, columns, rows, bad, [*notes, *column_notes])
    return _describe(make_splits(config, checked, TEXTS, seed, group), columns)


# what they hold


def _number_rows(split: str, table: Table, columns: Columns, extra: Sequence[str], bad: BadRows) -> LabelledRows:
    """The rows with texts and a finite number. UserError where none is left."""
    import pyarrow as pa

    values = read_columns(table, columns)
    numbers, wrong = _read_numbers(table, str(columns["label"]), values.pop("label"))
    for reason, (flags, first) in wrong.items():
        bad.refuse_or_count(split, table.where, reason, table.numbers[flags], first)
    good = np.isfinite(numbers)
    if not good.any():
        raise UserError(f"{table.where}: no row with a number as label is left. Set --data.{split} or --data.label")
    texts = {role: as_strings(table, columns[role], column, role) for role, column in values.items()}
    read = {**number_rows(split, table), **texts, "value": pa.array(numbers), **extra_columns(table, extra)}
    rows = LabelledRows(table.where, pa.table(read), said=("text", "text_pair", "value")).keep(good)
    return check_filled(split, rows, bad, ("text", "text_pair"))


Wrong = dict[str, tuple[np.ndarray, str]]  # why rows are bad: which, (rows,) bool, and more of the first


def _read_numbers(table: Table, column: str, values: pa.ChunkedArray) -> tuple[np.ndarray, Wrong]:
    """The number of each row, (rows,) float64, NaN where it is none; and what is wrong with those.

    UserError for a column of another kind. A number beyond what fp32 holds is as good as infinite.
    """
    import pyarrow as pa

    types, kind = pa.types, values.type
    if class_names(table, column) is not None or types.is_boolean(kind):
        what = "yes and no" if types.is_boolean(kind) else "names of classes"
        raise UserError(f"{table.where}: column {column!r} holds {what}, not numbers. Leave out --data.task regression")
    if types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
        return _parse(values.to_pylist())
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)):
        raise UserError(f"{table.where}: column {column!r} holds {kind}, not numbers. Set --data.label")
    missing = values.is_null().to_numpy()
    numbers = values.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
    return _sort_out(numbers, {MISSING: (missing, ""), NOT_A_NUMBER: (np.isnan(numbers) & ~missing, "")})


MISSING, NO_NUMBER, NOT_A_NUMBER = "empty or missing label", "a label that is no number", "a label that is NaN"


def _parse(texts: Sequence[str | None]) -> tuple[np.ndarray, Wrong]:
    """Numbers as text writes them, with a point before decimals."""
    stripped = [(text or "").strip() for text in texts]
    are = np.array([bool(NUMBER.fullmatch(text) or SPECIAL.fullmatch(text)) for text in stripped], bool)
    missing = np.array([not text for text in stripped], bool)
    nan = np.array([text.lower() == "nan" for text in stripped], bool)
    numbers = np.array([float(text) if good else np.nan for text, good in zip(stripped, are, strict=True)], float)
    other = ~are & ~missing & ~nan
    first = f" ({stripped[int(np.argmax(other))]!r} is the first)" if other.any() else ""
    return _sort_out(numbers, {MISSING: (missing, ""), NO_NUMBER: (other, first), NOT_A_NUMBER: (nan, "")})


def _sort_out(numbers: np.ndarray, wrong: Wrong) -> tuple[np.ndarray, Wrong]:
    with np.errstate(over="ignore"):
        infinite = np.isinf(numbers.astype(np.float32))
    return np.where(infinite, np.nan, numbers), {**wrong, "an infinite label": (infinite, "")}


# what shows only when rows are seen together


def _check_varied(where: str, values: np.ndarray) -> None:
    if len(np.unique(values)) == 1:
        raise UserError(
            f"{where}: every label of train is {values[0]:g}, and nothing can be learnt. Set --data.label or add rows"
        )


def _with_deciles(splits: Mapping[str, LabelledRows], fewest: int, most: int) -> dict[str, LabelledRows]:
    """The rows with, as `label`, what a cut must spread evenly: the tenth of train's numbers that theirs lies in.

    There are `most` parts at most, of `fewest` rows each or more. Rows of the same text, which are cut together, go by
    the first one's number. Dev and test that are there are not cut, and have one for all.
    """
    train = splits["train"]
    values, contents = train.column("value"), train.column("content")
    parts = max(1, min(DECILES, len(values) // fewest, most))
    edges = np.quantile(values, np.arange(1, parts) / parts)
    _, first, place = np.unique(contents, return_index=True, return_inverse=True)
    deciles = np.searchsorted(edges, values[first[place]], side="right")
    usual = int(np.bincount(deciles).argmax())
    found = {split: np.full(len(rows), usual) for split, rows in splits.items()} | {"train": deciles}
    return {split: _with_label(rows, found[split]) for split, rows in splits.items()}


def _with_label(rows: LabelledRows, deciles: np.ndarray) -> LabelledRows:
    import pyarrow as pa

    return replace(rows, rows=rows.rows.append_column("label", pa.array([f"part {i}" for i in deciles], pa.string())))


def _to_dataset(rows: LabelledRows) -> Dataset:
    return dataset_of("text", "text_pair", "value")(rows).rename_column("value", "label")


TEXTS = Kind(
    things="texts",
    repeat="repeat the text of an earlier one",
    overlap="also stand in {}",
    to_dataset=_to_dataset,
)


# what is said of them


def _describe(cut: Splits, columns: Columns) -> Splits:
    """The splits with what is to be said of numbers, in place of the parts that they were cut by."""
    facts, label = dict(cut.facts), str(columns["label"])
    facts["splits"] = {
        split: {name: fact for name, fact in found.items() if name != "classes"} | _spread(getattr(cut, split))
        for split, found in facts["splits"].items()
    }
    several = _several_numbers(cut.train)
    facts["repeats_in_train"] = facts["repeats_in_train"] | {"texts_with_several_labels": several}
    if "fold" in facts:
        whole = facts["fold"]["of"]
        facts["fold"] = facts["fold"] | {"of": {name: fact for name, fact in whole.items() if name != "classes"}}
    train, warnings = facts["splits"]["train"], list(cut.warnings)
    _check_varied(facts["sources"]["train"], np.array(cut.train["label"][:]))  # again: --data.max_rows may leave few
    if several:
        warnings.append(f"{several:,} texts of train stand under more than one number")
    if train["distinct"] < FEW:
        warnings.append(
            f"train has {train['distinct']} different numbers, which looks like classes; without --data.task "
            "regression each is one"
        )
    if abs(train["mean"]) > FAR * train["sd"]:
        warnings.append(
            f"numbers lie far from 0 for how little they differ (mean {train['mean']:.6g}, standard deviation "
            f"{train['sd']:.3g}), which fp32 rounds away; subtract a constant from the column {label!r}"
        )
    for split in ("dev", "test"):
        if facts["splits"][split]["distinct"] == 1:
            warnings.append(f"every row of {split} has the same number, so no correlation can be told there")
    note = (
        f"numbers of train: {train['lowest']:g} to {train['highest']:g}, mean {train['mean']:.4g}, standard deviation "
        f"{train['sd']:.3g}"
    )
    return replace(cut, labels=[label], facts=facts, notes=[*cut.notes, note], warnings=warnings)


def _spread(rows: Dataset) -> dict[str, Any]:
    """How the numbers of a split are spread."""
    values = np.array(rows["label"][:], float)
    ends = {"lowest": float(values.min()), "highest": float(values.max())}
    return {"distinct": len(np.unique(values)), "mean": float(values.mean()), "sd": float(values.std()), **ends}


def _several_numbers(rows: Dataset) -> int:
    """How many texts (or pairs) stand under more than one number."""
    names = [name for name in ("text", "text_pair") if name in rows.column_names]
    numbers: dict[tuple[str, ...], set[float]] = {}
    for number, *texts in zip(rows["label"][:], *(rows[name][:] for name in names), strict=True):
        numbers.setdefault(tuple(texts), set()).add(number)
    return sum(len(found) > 1 for found in numbers.values())
