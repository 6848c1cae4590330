"""How are records kept?

In two tables per split that anyone can open: `predictions-test.parquet` holds what the model said of each row,
`rows-test.parquet` the row itself. The same records make the same bytes: there is no time or path in them. A record is
of one label, or of a list of them, one for each word: only this module and the chapters of a task need to know which.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

LOGIT, PROBABILITY = "logit:", "probability:"
MEASURE, COLUMN, GROUP = "measure:", "column:", "group"
FAR = 1e-3  # from 1, which the probabilities of a row add up to
MADE_LATER = ("audit.parquet", "explanations-test.parquet")  # which a report can do without
BASELINE = "baseline:"
BASELINES = "baselines-test.parquet"


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write to; renamed to `path` once the block is done, so that a reader never sees half a file."""
    aside = path.with_name(f"{path.name}.writing")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_predictions(folder: Path, split: str, records: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Path:
    """Write predictions-<split>.parquet: id, label, prediction, one logit and one probability per label, loss.

    Where a row has any number of labels, label and prediction are lists. Where each word has a label (`of_words`), so
    are logits and probabilities: those of the first word in the order of `labels`, then those of the second, and so on.
    Where rows have no class, the columns are the fields of the records: str, int, float, list of str or of float, None.
    """
    if of_words(records):
        columns = _word_columns(records)
    elif records and not _have_labels(records):
        columns = _field_columns(records)
    else:
        columns = _label_columns(records, labels)
    return _write(folder / f"predictions-{split}.parquet", columns)


def of_words(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether records have a label for each word of a row, and not one for the row."""
    return _have_labels(records) and np.ndim(records[0]["probabilities"]) == 2


def _have_labels(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether records say how likely each label is."""
    return bool(records) and "probabilities" in records[0]


def _field_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    import pyarrow as pa

    kinds = {str: pa.string(), list: pa.list_(pa.string()), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    columns = {}
    for name in records[0]:
        values = [record[name] for record in records]
        first = next((value for value in values if value), "")
        numbers = isinstance(first, list) and isinstance(first[0], float)
        kind = next((type(value) for value in values if value is not None), str)
        columns[name] = pa.array(values, pa.list_(pa.float64()) if numbers else kinds[kind])
    return columns


def _label_columns(records: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> dict[str, pa.Array]:
    import pyarrow as pa

    def matrix(name: str) -> np.ndarray:
        values = np.array([record[name] for record in records], dtype=np.float32)
        return np.ascontiguousarray(values.reshape(len(records), len(labels)).T)  # (labels, rows)

    columns = {"id": pa.array([record["id"] for record in records], pa.string())}
    several = bool(records) and isinstance(records[0]["label"], list)
    kind = pa.list_(pa.string()) if several else pa.string()
    columns |= {name: pa.array([record[name] for record in records], kind) for name in _NAMES[1:]}
    for prefix, values in ((LOGIT, matrix("logits")), (PROBABILITY, matrix("probabilities"))):
        columns |= {prefix + label: pa.array(column) for label, column in zip(labels, values, strict=True)}
    return columns | {"loss": pa.array([record["loss"] for record in records], pa.float64())}


def _word_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    import pyarrow as pa

    tags, numbers = pa.list_(pa.string()), pa.list_(pa.float32())
    columns = {"id": pa.array([record["id"] for record in records], pa.string())}
    columns |= {name: pa.array([record[name] for record in records], tags) for name in _NAMES[1:]}
    columns |= {name: pa.array([np.ravel(record[name]) for record in records], numbers) for name in _OF_WORDS}
    return columns | {"loss": pa.array([record["loss"] for record in records], pa.float64())}


def read_predictions(folder: Path, split: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The labels and the records of predictions-<split>.parquet.

    Raises UserError where the file is missing or no such table, has no rows, or holds a label or number that cannot be.
    """
    path = folder / f"predictions-{split}.parquet"
    table = _read(path, ("id", "loss"))
    if not table.num_rows:
        raise UserError(f"{path} has no rows, so there is nothing to score")
    words = set(_OF_WORDS) <= set(table.column_names)
    if not words and not any(name.startswith((LOGIT, PROBABILITY)) for name in table.column_names):
        return [], _read_fields(path, table)
    _need(path, table, _NAMES)
    several = not words and table.schema.field("label").type != table.schema.field("id").type
    labels, numbers, sizes = _read_words(path, table) if words else _read_labels(path, table)
    ids, truth, predicted = (table[name].to_pylist() for name in _NAMES)
    losses = table["loss"].to_pylist()
    owners = np.repeat(np.arange(len(ids)), sizes)

    def rows_where(flags: np.ndarray) -> list[str]:
        return [ids[place] for place in dict.fromkeys(owners[flags].tolist())]

    broken = "the weights or these rows are broken"
    for name, values in zip(("logit", "probability"), numbers, strict=True):
        _refuse(path, f"a {name} that is no finite number", rows_where(~np.isfinite(values).all(axis=1)), broken)
    bad = np.flatnonzero(~np.isfinite(np.array(losses, np.float64)))
    _refuse(path, "a loss that is no finite number", [ids[place] for place in bad], broken)
    shares = numbers[1]
    off = (shares < 0).any(axis=1)
    off |= (shares > 1).any(axis=1) if several else np.abs(shares.sum(axis=1, dtype=np.float64) - 1) > FAR
    wrong = "a probability outside of 0 to 1" if several else "probabilities that do not add up to 1"
    _refuse(path, wrong, rows_where(off), "make the table again")
    known = set(labels)
    said = [(*one, *other) if words or several else (one, other) for one, other in zip(truth, predicted, strict=True)]
    strange = [row for row, given in zip(ids, said, strict=True) if not known.issuperset(given)]
    _refuse(path, "a label without a column of its own", strange, "make the table again")
    if words:
        numbers = tuple(np.split(values, np.cumsum(sizes)[:-1]) for values in numbers)
    rows = zip(ids, truth, predicted, *numbers, losses, strict=True)
    return labels, [dict(zip((*_NAMES, *_OF_WORDS, "loss"), row, strict=True)) for row in rows]


def _read_fields(path: Path, table: pa.Table) -> list[dict[str, Any]]:
    """The records of a table without classes."""
    from pyarrow import types

    for name in table.column_names:
        if types.is_floating(table[name].type):
            values = table[name].drop_null().to_numpy()
            if not np.isfinite(values).all():
                bad = [row["id"] for row in table.select(["id", name]).to_pylist() if not _is_finite(row[name])]
                _refuse(path, f"a {name} that is no finite number", bad, "the weights or these rows are broken")
    return table.to_pylist()


def _is_finite(value: float | None) -> bool:
    return value is None or bool(np.isfinite(value))


_Numbers = tuple[list[str], tuple[np.ndarray, np.ndarray], np.ndarray]


def _read_labels(path: Path, table: pa.Table) -> _Numbers:
    """The labels; logits and probabilities, (rows, labels); and how many of these lines a row has: one."""
    labels = [name.removeprefix(PROBABILITY) for name in table.column_names if name.startswith(PROBABILITY)]
    missing = [LOGIT + label for label in labels if LOGIT + label not in table.column_names]
    if not labels or missing:
        raise UserError(f"{path}: no column {(missing or [PROBABILITY + '<label>'])[0]!r}; make the table again")
    logits, probabilities = (
        np.stack([table[prefix + label].to_numpy() for label in labels], axis=1) for prefix in (LOGIT, PROBABILITY)
    )
    return labels, (logits, probabilities), np.ones(table.num_rows, np.int64)


def _read_words(path: Path, table: pa.Table) -> _Numbers:
    """The labels by run.json; logits and probabilities, (words of all rows, labels); and how many words a row has."""
    from pyarrow import compute

    try:
        labels = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no run.json beside it that names its labels; make the run again") from error
    words = compute.list_value_length(table["label"]).to_numpy()
    for name in ("prediction", *_OF_WORDS):
        whole = words * (1 if name == "prediction" else len(labels))
        wrong = np.flatnonzero(compute.list_value_length(table[name]).to_numpy() != whole)
        ids = [table["id"][int(place)].as_py() for place in wrong]
        _refuse(path, f"a {name} that is not of each word", ids, "make the table again")
    logits, probabilities = (
        table[name].combine_chunks().flatten().to_numpy().reshape(-1, len(labels)) for name in _OF_WORDS
    )
    return labels, (logits, probabilities), words


def copy_measures(folder: Path, target: Path, split: str, *, with_columns: bool) -> None:
    """Copy measures-<split>.parquet, if there is one, with or without the columns of the data."""
    from pyarrow import parquet

    path = folder / f"measures-{split}.parquet"
    if path.exists():
        table = parquet.read_table(path, partitioning=None)
        names = [name for name in table.column_names if with_columns or not name.startswith(COLUMN)]
        _write(target / path.name, {name: table[name] for name in names})


def table_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each table of a run, by the name of its file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.parquet"))}


def check_tables(folder: Path, recorded: Mapping[str, str] | None) -> None:
    """Raise UserError where a table is gone, or is not the one that run.json has the SHA-256 of.

    Runs that were made before this was recorded pass.
    """
    if not isinstance(recorded or {}, Mapping):
        raise UserError(f"{folder / 'run.json'}: its `tables` are no names with SHA-256; make the run again")
    found = table_hashes(folder)
    for name, sha256 in (recorded or {}).items():
        if name not in found and name in MADE_LATER:
            continue
        if name not in found:
            raise UserError(f"{folder / name}, which the run made, is gone; put it back, or make the run again")
        if found[name] != sha256:
            cure = "remove it" if name in MADE_LATER else "make the run again"
            raise UserError(f"{folder / name} was changed since the run made it (SHA-256); {cure}")


def write_rows(folder: Path, split: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows-<split>.parquet: id, sha256 of the content, then the other fields as they first appear in `rows`.

    A field is a str, bytes or None, in all rows or in some; one that is None throughout is left out.
    """
    import pyarrow as pa

    columns: dict[str, list[Any]] = {name: [] for name in _ROW}
    for place, row in enumerate(rows):
        for name in row:
            columns.setdefault(name, [None] * place).append(row[name])
        for column in columns.values():
            column.extend([None] * (place + 1 - len(column)))

    def array(column: list[Any]) -> pa.Array:
        return pa.array(column, pa.binary() if any(isinstance(value, bytes) for value in column) else pa.string())

    kept = {name: c for name, c in columns.items() if name in _ROW or any(value is not None for value in c)}
    return _write(folder / f"rows-{split}.parquet", {name: array(column) for name, column in kept.items()})


def write_measures(folder: Path, split: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write measures-<split>.parquet: id, then what may go with an error, the same columns for all rows.

    `measure:<name>` are floats, `column:<name>` a str or None, and `group` an int.
    """
    import pyarrow as pa

    def array(name: str) -> pa.Array:
        kind = pa.float64() if name.startswith(MEASURE) else pa.int64() if name == GROUP else pa.string()
        return pa.array([row[name] for row in rows], kind)

    return _write(folder / f"measures-{split}.parquet", {name: array(name) for name in rows[0]})


def read_measures(folder: Path, split: str) -> dict[str, np.ndarray]:
    """The columns of measures-<split>.parquet as arrays (rows,), `id` among them; none where there is no such file.

    A number that is missing is NaN, a word that is missing None. Raises UserError where the file is no such table.
    """
    path = folder / f"measures-{split}.parquet"
    if not path.exists():
        return {}
    table = _read(path, ("id",))
    return {name: table[name].to_numpy() for name in table.column_names}


def write_baselines(folder: Path, ids: Sequence[str], given: Mapping[str, Sequence[Any]]) -> Path:
    """Write baselines-test.parquet: id, and for each baseline, by name, what it gives for each row: `baseline:<name>`.

    That is a label or a text, a list of them, or a number.
    """
    import pyarrow as pa

    columns = {"id": ids} | {BASELINE + name: values for name, values in given.items()}
    known = {list: pa.list_(pa.string()), float: pa.float64(), str: pa.string()}
    kinds = {name: known[type(values[0])] for name, values in columns.items()}
    return _write(folder / BASELINES, {name: pa.array(column, kinds[name]) for name, column in columns.items()})


def read_baselines(folder: Path) -> tuple[list[str], dict[str, list[Any]]] | None:
    """The ids of baselines-test.parquet and, by the baseline's name, their labels; None where there is no such file.

    Raises UserError where the file is no such table.
    """
    if not (folder / BASELINES).exists():
        return None
    table = _read(folder / BASELINES, ("id",))
    names = [name for name in table.column_names if name.startswith(BASELINE)]
    if not names:
        raise UserError(f"{folder / BASELINES}: no column {BASELINE + '<name>'!r}; make the run again")
    return table["id"].to_pylist(), {name.removeprefix(BASELINE): table[name].to_pylist() for name in names}


def read_rows(folder: Path, split: str, ids: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of rows-<split>.parquet, or those of these ids: id, sha256, and the other fields if they were kept.

    Raises UserError where the file is missing or no such table.
    """
    table = _read(folder / f"rows-{split}.parquet", _ROW)
    if ids is not None:
        import pyarrow as pa
        from pyarrow import compute

        table = table.filter(compute.is_in(table["id"], pa.array(ids, pa.string())))
    return table.to_pylist()


_NAMES = ("id", "label", "prediction")
_OF_WORDS = ("logits", "probabilities")  # lists, where each word has a label
_ROW = ("id", "sha256")


def _write(path: Path, columns: Mapping[str, pa.Array]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    words = [name for name, column in columns.items() if column.type == pa.string()]
    words += [f"{name}.list.element" for name, column in columns.items() if column.type == pa.list_(pa.string())]
    with written_aside(path) as aside:
        parquet.write_table(pa.table(dict(columns)), aside, compression="zstd", use_dictionary=words)
    return path


def _read(path: Path, columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa
    from pyarrow import parquet

    if not path.exists():
        raise UserError(f"no {path.name} in {path.parent}; give the folder of a run that went to its end")
    try:
        table = parquet.read_table(path, partitioning=None)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no parquet file ({str(error).splitlines()[0]}); make the table again") from error
    _need(path, table, columns)
    return table


def _need(path: Path, table: pa.Table, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; make the table again")


def _refuse(path: Path, what: str, ids: Sequence[str], cure: str) -> None:
    if ids:
        shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        raise UserError(f"{path}: {what} in row {shown}; {cure}")
