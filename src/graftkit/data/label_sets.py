"""Which texts, with any number of labels each?"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.data.checks import BadRows, check_filled, check_spelling
from graftkit.data.columns import (
    LABEL_NAMES,
    TEXT_NAMES,
    Columns,
    LabelledRows,
    as_strings,
    choose_columns,
    extra_columns,
    number_rows,
    read_columns,
    sort_labels,
)
from graftkit.data.files import Table
from graftkit.data.list_columns import (
    as_name,
    is_list,
    names_in_lists,
    one_by_one,
    parse_list,
    rarest_values,
    some,
    values_in,
    without_values,
)
from graftkit.data.repeats import number_contents
from graftkit.data.sources import DEMO, FILES, Source
from graftkit.data.splits import Checked, DataConfig, Kind, Splits, dataset_of, load_to_cut, make_splits
from graftkit.data.tagged_rows import DEMO_FOLDER
from graftkit.errors import UserError
from graftkit.metrics.tagging import spans

if TYPE_CHECKING:
    import pyarrow as pa

COLUMN_NAMES = {
    "text": TEXT_NAMES,
    "label": [*LABEL_NAMES, "categories", "classes", "intents", "targets", "topics", "emotions", "tags", "genres"],
}
SEPARATORS = "|;,"  # the first of these that stands in the labels of train parts them
YES_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
NONE = "none"  # what a row without a label counts as, where rows are cut
MISSING, UNREAD, NO_NAME = "missing labels", "labels that are no list", "a label that is missing or no text"

Reader = Callable[[str, Table, BadRows], tuple[list[list[str] | None], np.ndarray]]
"""The labels of each row of a split, None where they cannot be read, and whether they can, (rows,) bool."""


def load_label_sets(config: DataConfig, seed: int, extra: Sequence[str] = (), group: str | None = None) -> Splits:
    """Train, dev and test, checked; what is not there is cut from train, the same way for the same seed.

    Rows have `id`, `text`, `text_pair` where there is one, `labels` (a list of str in the order of the splits' own,
    empty where a row has none), and the `extra` columns as `column:<name>`; rows with the same value in the column
    `group`, one of them, are cut together. UserError for what cannot be found, read or learnt from.
    """
    tables, notes, bad = load_to_cut(config, replace(FILES, demos={DEMO: _demo}))
    columns, read, read_notes = _choose(tables["train"], config)
    rows = {split: _rows(split, table, columns, read, extra, bad) for split, table in tables.items()}
    rows = _check_sets(rows, config.labels, bad)
    labels, label_notes = _sort_labels(rows, tables["train"], columns, config.labels)
    rows = {split: _in_order(one, labels) for split, one in rows.items()}
    checked = _to_cut(tables, columns, rows, bad, [*notes, *read_notes, *label_notes])
    return _describe(make_splits(config, checked, TEXTS, seed, group), columns, labels, config.labels)


def _demo() -> dict[str, Source]:
    """What customers' messages mention: the types of what is marked in the tagged messages that ship here."""
    from datasets import Dataset

    def read(split: str) -> Table:
        lines = (DEMO_FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        columns = {
            "text": [" ".join(row["words"]) for row in rows],
            "labels": [sorted({span.type for span in spans(row["tags"], "BIO")}) for row in rows],
        }
        return Table(f"{DEMO} ({split})", Dataset.from_dict(columns), np.arange(1, len(rows) + 1))

    return {split: Source(f"{DEMO} ({split})", partial(read, split)) for split in ("train", "dev", "test")}


# where the labels stand


def _choose(train: Table, config: DataConfig) -> tuple[Columns, Reader, list[str]]:
    """The columns of the text and the label, how labels are read, and notes."""
    wanted: Columns = {"text": config.text, "text_pair": config.text_pair, "label": config.label}
    if config.labels is not None:
        columns, notes = choose_columns(train, wanted, {"text": TEXT_NAMES})
        return columns, partial(_from_columns, list(dict.fromkeys(config.labels))), notes
    ways_out = {"label": ", or --data.labels for columns of 0 and 1"}
    columns, notes = choose_columns(train, wanted, COLUMN_NAMES, ways_out)
    values = read_columns(train, {"label": columns["label"]})["label"]
    if is_list(values.type):
        return columns, partial(_from_lists, columns["label"]), notes
    texts = [text.strip() for text in _texts(train, columns["label"], values) if text is not None and text.strip()]
    if 2 * sum(text[0] == "[" and text[-1] == "]" for text in texts) > len(texts):
        return columns, partial(_from_written_lists, columns["label"]), notes
    parted = next((mark for mark in SEPARATORS if any(mark in text for text in texts)), None)
    if parted is None:
        found = f"no text in it has {', '.join(map(repr, SEPARATORS))}"
        notes.append(f"each row has at most one label: {found}. --data.task single takes them for classes")
    else:
        notes.append(f"labels are parted at {parted!r}")
    return columns, partial(_from_parted, columns["label"], parted), notes


def _texts(table: Table, column: str, values: pa.ChunkedArray) -> list[str | None]:
    from pyarrow import types

    if not (types.is_string(values.type) or types.is_large_string(values.type)):
        raise UserError(
            f"{table.where}: column {column!r} holds {values.type}, and labels are lists, or text such as a|b. Set "
            "--data.label, or --data.labels to columns of 0 and 1"
        )
    return values.to_pylist()


def _from_columns(names: Sequence[str], split: str, table: Table, bad: BadRows) -> tuple[list, np.ndarray]:
    """Columns of 0 and 1, or true and false."""
    missing = [name for name in names if name not in table.rows.column_names]
    if missing:
        found = ", ".join(repr(column) for column in table.rows.column_names)
        raise UserError(f"no column {missing[0]!r} in {table.where}; found {found}. Set --data.labels")
    good, sides = np.ones(len(table.numbers), bool), []
    for name, values in read_columns(table, {name: name for name in names}).items():
        texts = as_strings(table, name, values, "0 or 1").to_pylist()
        has = [None if text is None else YES_NO.get(text.strip().lower()) for text in texts]
        neither = np.array([one is None for one in has], bool)
        first = texts[int(neither.argmax())]
        detail = f" ({'empty' if first is None else repr(first)} in the first)"
        wrong = f"a value in column {name!r} that is neither 0 nor 1"
        bad.refuse_or_count(split, table.where, wrong, table.numbers[good & neither], detail)
        good &= ~neither
        sides.append(has)
    rows = zip(*sides, strict=True)
    return [[name for name, one in zip(names, row, strict=True) if one] for row in rows], good


def _from_lists(column: str, split: str, table: Table, bad: BadRows) -> tuple[list, np.ndarray]:
    names = names_in_lists(table, column)
    lists = read_columns(table, {"label": column})["label"].to_pylist()
    return _named(lists, names, split, table, bad)


def _from_written_lists(column: str, split: str, table: Table, bad: BadRows) -> tuple[list, np.ndarray]:
    values = _texts(table, column, read_columns(table, {"label": column})["label"])
    texts = [text and text.strip() for text in values]
    unread = np.array([bool(text) and (text[0] != "[" or parse_list(text) == [None]) for text in texts], bool)
    bad.refuse_or_count(split, table.where, UNREAD, table.numbers[unread])
    lists = [parse_list(text) if text and not wrong else None for text, wrong in zip(texts, unread, strict=True)]
    return _named(lists, None, split, table, bad, unread)


def _from_parted(column: str, mark: str | None, split: str, table: Table, bad: BadRows) -> tuple[list, np.ndarray]:
    """Text in which labels are parted by a mark; an empty field is a row without a label."""
    texts = _texts(table, column, read_columns(table, {"label": column})["label"])
    parts = [[] if text is None else [text] if mark is None else text.split(mark) for text in texts]
    return _named([[part for part in row if part.strip()] for row in parts], None, split, table, bad)


def _named(
    lists: Sequence[list[Any] | None],
    names: Sequence[str] | None,
    split: str,
    table: Table,
    bad: BadRows,
    unread: np.ndarray | None = None,
) -> tuple[list, np.ndarray]:
    """The labels of each row by name, each once; bad are rows that lack a list or hold what is no name."""
    unread = np.zeros(len(lists), bool) if unread is None else unread
    missing = np.array([row is None for row in lists], bool) & ~unread
    bad.refuse_or_count(split, table.where, MISSING, table.numbers[missing])
    named = [None if row is None else [as_name(value, names) for value in row] for row in lists]
    nameless = np.array([row is not None and None in row for row in named], bool)
    bad.refuse_or_count(split, table.where, NO_NAME, table.numbers[nameless])
    good = ~(missing | unread | nameless)
    return [
        list(dict.fromkeys(name.strip() for name in row)) if kept else None
        for row, kept in zip(named, good, strict=True)
    ], good


def _rows(split: str, table: Table, columns: Columns, read: Reader, extra: Sequence[str], bad: BadRows) -> LabelledRows:
    """The rows with a text and labels that can be read. UserError where none is left."""
    import pyarrow as pa

    sets, good = read(split, table, bad)
    kept = [row if one else None for row, one in zip(sets, good, strict=True)]
    found = number_rows(split, table) | {"labels": pa.array(kept, pa.list_(pa.string()))}
    for role, values in read_columns(table, {role: columns[role] for role in ("text", "text_pair")}).items():
        found[role] = as_strings(table, columns[role], values, role)
    rows = LabelledRows(
        table.where, pa.table(found | extra_columns(table, extra)), said=("text", "text_pair", "labels")
    ).keep(good)
    if not len(rows):
        raise UserError(f"{table.where}: no row with labels is left. Set --data.{split}, .label or .labels")
    return check_filled(split, rows, bad, ("text", "text_pair", "label"))


# what shows only when rows are seen together


def _check_sets(
    splits: Mapping[str, LabelledRows], asked: Sequence[str] | None, bad: BadRows
) -> dict[str, LabelledRows]:
    """Labels spelled alike; in train all that are `asked` for, and more than one set; in test none that train lacks."""
    check_spelling({split: one_by_one(rows, "labels") for split, rows in splits.items()})
    train, known = splits["train"], values_in("labels", splits["train"])
    if untaught := [name for name in asked or [] if name not in known]:
        raise UserError(
            f"{train.where}: {some(map(repr, untaught))} is 1 in no row, so nothing teaches it. Leave it out of "
            "--data.labels"
        )
    sets = {frozenset(row) for row in train.rows.column("labels").to_pylist()}
    if len(sets) == 1:
        [same] = sets
        has = f"has the same labels, {some(map(repr, sorted(same)))}," if same else "is without a label"
        raise UserError(f"{train.where}: every row {has} and there is nothing to tell apart. Set --data.label")
    checked = dict(splits)
    if "test" in splits:
        new, wrong = values_in("labels", splits["test"]) - known, "a label that train never had"
        checked["test"] = without_values("test", splits["test"], "labels", new, wrong, bad)
    return checked


def _sort_labels(
    splits: Mapping[str, LabelledRows], table: Table, columns: Columns, asked: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """The labels of train and dev, and notes: columns `asked` for and ClassLabel names in their order."""
    if asked is not None:
        return list(dict.fromkeys(asked)), []
    found = values_in("labels", *(splits[split] for split in ("train", "dev") if split in splits))
    names = names_in_lists(table, columns["label"]) or []
    unused = [name for name in names if name not in found]
    notes = [f"labels that are named and that no row has are left out: {some(map(repr, unused))}"] if unused else []
    return sort_labels(found, [name for name in names if name in found]), notes


def _in_order(rows: LabelledRows, labels: Sequence[str]) -> LabelledRows:
    """The rows with their labels in this order."""
    import pyarrow as pa

    place = {label: i for i, label in enumerate(labels)}
    ordered = [sorted(row, key=place.__getitem__) for row in rows.rows.column("labels").to_pylist()]
    column = rows.rows.column_names.index("labels")
    kind = pa.list_(pa.string())
    return replace(rows, rows=rows.rows.set_column(column, "labels", pa.array(ordered, kind)))


# what is cut, and what is said of it


def _to_cut(
    tables: Mapping[str, Table], columns: Columns, splits: dict[str, LabelledRows], bad: BadRows, notes: list[str]
) -> Checked:
    """The rows with numbered contents and, as `label`, the rarest label of each, which a cut must spread evenly.

    Dev and test that are there are not cut: theirs is one of train's.
    """
    import pyarrow as pa

    numbered = number_contents(splits)
    train = numbered["train"]
    held = [row or [NONE] for row in train.rows.column("labels").to_pylist()]
    rarest = [f"rarest: {label}" for label in rarest_values(train.column("content"), held)]
    usual = Counter(rarest).most_common(1)[0][0]
    labels = {split: rarest if split == "train" else [usual] * len(rows) for split, rows in numbered.items()}
    labelled = {
        split: replace(rows, rows=rows.rows.append_column("label", pa.array(labels[split], pa.string())))
        for split, rows in numbered.items()
    }
    return Checked(tables, columns, labelled, bad, notes)


TEXTS = Kind(
    things="texts",
    repeat="repeat the text of an earlier one",
    overlap="also stand in {}",
    to_dataset=dataset_of("text", "text_pair", "labels"),
)


def _describe(cut: Splits, columns: Columns, labels: list[str], asked: Sequence[str] | None) -> Splits:
    """The splits with what is to be said of their labels, in place of the one label that they were cut by."""
    sets = {split: getattr(cut, split)["labels"][:] for split in ("train", "dev", "test")}
    several = _several_sets(cut, sets["train"])
    named = columns if asked is None else {**columns, "label": None, "labels": ", ".join(asked)}
    facts: dict[str, Any] = {
        **cut.facts,
        "columns": named,
        "splits": {split: cut.facts["splits"][split] | _counts(sets[split], labels) for split in sets},
        "repeats_in_train": cut.facts["repeats_in_train"] | {"texts_with_several_labels": several},
    }
    if "fold" in facts:
        facts["fold"] = facts["fold"] | {"of": {k: v for k, v in facts["fold"]["of"].items() if k != "classes"}}
    warnings = list(cut.warnings)
    if several:
        warnings.append(f"{several:,} texts of train stand again with other labels")
    taught = {label for row in sets["train"] for label in row}
    if untaught := [label for label in labels if label not in taught]:
        warnings.append(f"labels that no row of train has, and that nothing can teach: {some(map(repr, untaught))}")
    empty = ", ".join(f"{sum(not row for row in rows):,} of {len(rows):,} in {split}" for split, rows in sets.items())
    each = sum(map(len, sets["train"])) / len(sets["train"])
    note = f"{len(labels)} labels, {each:.2f} a row of train; rows without any: {empty}"
    return replace(cut, labels=labels, facts=facts, notes=[*cut.notes, note], warnings=warnings)


def _counts(sets: Sequence[Sequence[str]], labels: Sequence[str]) -> dict[str, Any]:
    """Rows of each label, and of none."""
    found = Counter(label for row in sets for label in row)
    return {"classes": {label: found[label] for label in labels}, "without_label": sum(not row for row in sets)}


def _several_sets(cut: Splits, sets: Sequence[Sequence[str]]) -> int:
    """How many texts of train stand with more than one set of labels."""
    columns = [cut.train[name][:] for name in ("text", "text_pair") if name in cut.train.column_names]
    found: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for text, labels in zip(zip(*columns, strict=True), sets, strict=True):
        found[text].add(tuple(labels))
    return sum(len(several) > 1 for several in found.values())
