"""Which rows?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graftkit.data.checks import (
    BadRows,
    check_classes,
    check_filled,
    check_known,
    check_known_to_model,
    check_measured,
    check_parsed,
    check_spelling,
)
from graftkit.data.columns import (
    EXTRA,
    LABEL_NAMES,
    TEXT_NAMES,
    Columns,
    LabelledRows,
    choose_columns,
    class_names,
    label_rows,
    sort_labels,
)
from graftkit.data.config import RowsConfig
from graftkit.data.cuts import cut_folds, cut_rows, cut_tenths, join_groups
from graftkit.data.repeats import count_overlaps, count_repeats, number_contents
from graftkit.data.sources import load_tables, load_test, reads_path
from graftkit.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from graftkit.data.files import Table
    from graftkit.data.sources import Places

ROLES = ("text", "text_pair", "label")
COLUMN_NAMES = {"text": TEXT_NAMES, "label": LABEL_NAMES}


@dataclass(frozen=True)
class DataConfig(RowsConfig):
    """Which rows to learn from, and which of their columns."""

    text: str | None = None
    """column of the text (by default the only one named like a text)"""
    text_pair: str | None = None
    """column of a second text that belongs to the first"""
    label: str | None = None
    """column of the label (by default the only one named like a label)"""
    task: Literal["single", "multi", "regression"] = "single"
    """what a row has: a single label; with multi any number of labels (lists, or text such as a|b); with regression a
    number"""
    labels: list[str] | None = None
    """with multi, columns of 0 and 1, one for each label, in place of one column of labels"""

    def __post_init__(self) -> None:
        if self.labels is not None and self.task != "multi":
            raise UserError(f"--data.labels: with --data.task {self.task} there is one column; set --data.label")
        if self.labels is not None and self.label is not None:
            raise UserError("--data.labels and --data.label both name the labels; leave one of them out")


@dataclass(frozen=True)
class Splits:
    """The rows of a run: columns `id`, `text`, `text_pair` where there is one, and `label`, all strings.

    Pictures have, in place of texts, `path` (absolute) or `bytes`, the other being null, and `sha256` of the file.
    """

    train: Dataset
    dev: Dataset
    test: Dataset
    labels: list[str]  # of train and dev; a ClassLabel's names keep their order, also those without a row
    facts: dict[str, Any]  # plain JSON for the run's record
    notes: list[str]  # sentences for the log
    warnings: list[str]

    @property
    def pairs(self) -> bool:
        """Whether a row is two texts."""
        return "text_pair" in self.train.column_names


@dataclass(frozen=True)
class RowsToScore:
    """Rows to score a model on, with the columns of `Splits`; their labels are the model's own."""

    test: Dataset
    facts: dict[str, Any]  # plain JSON for the run's record
    notes: list[str]  # sentences for the log
    warnings: list[str]


@dataclass(frozen=True)
class Checked:
    """Rows that were checked and are not cut yet."""

    tables: Mapping[str, Table]  # what they were read from
    columns: Columns
    splits: dict[str, LabelledRows]  # with numbered contents
    bad: BadRows
    notes: list[str]


@dataclass(frozen=True)
class Kind:
    """What the rows hold, and how it is said."""

    things: str
    repeat: str  # what rows of train do that repeat another
    overlap: str  # what rows of a split do that stand in another, {}
    to_dataset: Callable[[LabelledRows], Dataset]


def dataset_of(*columns: str) -> Callable[[LabelledRows], Dataset]:
    """Rows as a Dataset of `id`, those of these columns that are there, and the columns for the report."""

    def to_dataset(rows: LabelledRows) -> Dataset:
        from datasets import Dataset

        names = rows.rows.column_names
        kept = [name for name in columns if name in names] + [name for name in names if name.startswith(EXTRA)]
        return Dataset(rows.rows.select(["id", *kept]))

    return to_dataset


TEXTS = Kind(
    things="texts",
    repeat="repeat the text of an earlier one",
    overlap="also stand in {}",
    to_dataset=dataset_of(*ROLES),
)


def load_splits(config: DataConfig, seed: int, extra: Sequence[str] = (), group: str | None = None) -> Splits:
    """Train, dev and test, checked; what is not there is cut from train, the same way for the same seed.

    `extra` columns come along as strings, named `column:<name>`; rows with the same value in the column `group`, one of
    them, are cut together. UserError for what cannot be found, read or learnt from.
    """
    tables, notes, bad = load_to_cut(config)
    wanted = {"text": config.text, "text_pair": config.text_pair, "label": config.label}
    columns, column_notes = choose_columns(tables["train"], wanted, COLUMN_NAMES)
    labelled = {split: label_rows(split, table, columns, extra) for split, table in tables.items()}
    filled = {split: check_filled(split, rows, bad, ROLES) for split, rows in labelled.items()}
    measured = check_measured(filled["train"])
    contents = number_contents(check_labels(filled, bad))
    checked = Checked(tables, columns, contents, bad, [*notes, *column_notes])
    splits = make_splits(config, checked, TEXTS, seed, group)
    return replace(splits, warnings=[*measured, *splits.warnings])


def load_to_cut(config: Any, places: Places | None = None) -> tuple[dict[str, Table], list[str], BadRows]:
    """The tables to learn from, notes, and the rows that cannot be read, an error unless they are to be dropped.

    With folds, test is left out, since each fold is the test of one model. `config`: a DataConfig or its like.
    """
    check_folds(config)
    named = {"train": config.train, "dev": config.dev, "test": config.test}
    tables, notes = load_tables(config.path, config.subset, named, places)
    if config.folds is not None and "test" in tables:
        left = tables.pop("test")
        notes = [*notes, f"folds are cut from train; the {len(left.numbers):,} rows of {left.where} stay untouched"]
    bad = BadRows(drop=config.bad_rows == "drop")
    for split, table in tables.items():
        check_parsed(split, table, bad)
    return tables, notes, bad


def check_folds(config: Any) -> None:
    """Raise UserError for folds that cannot be; `config`: a DataConfig or its like."""
    if config.folds is None:
        if config.fold is not None:
            raise UserError(f"--data.fold {config.fold}: of how many? Set --data.folds")
        return
    if config.test is not None:
        raise UserError(
            f"--data.test {config.test}: with --data.folds each fold is the test of one model; leave it out"
        )
    if config.fold is None:
        raise UserError(f"--data.folds {config.folds} are as many models; set --data.fold to the one to train")
    if config.fold > config.folds:
        raise UserError(f"--data.fold {config.fold}: there are {config.folds} (--data.folds); name one from 1 up")


def load_test_texts(
    config: DataConfig, labels: Sequence[str], usual: Columns, extra: Sequence[str] = ()
) -> RowsToScore:
    """The rows of test alone, checked, for a model that has these labels; `usual` are the columns that it read before.

    UserError for what cannot be found or read, and for a label that the model does not have.
    """
    table, notes = load_test(config.path, config.subset, config.test)
    bad = BadRows(drop=config.bad_rows == "drop")
    check_parsed("test", table, bad)
    wanted = {"text": config.text, "text_pair": config.text_pair, "label": config.label}
    columns, column_notes = choose_columns(table, prefer(wanted, usual, table), COLUMN_NAMES)
    rows = check_filled("test", label_rows("test", table, columns, extra), bad, ROLES)
    known = meanings(labels)
    rows = check_known_to_model(rows, known, bad)
    return make_rows_to_score(config, columns, rows, known, bad, [*notes, *column_notes], TEXTS.to_dataset)


def prefer(named: Columns, usual: Columns, table: Table) -> Columns:
    """The columns that the user named, or else those that the model read before, where the table has them.

    A model of pairs always wants its second text.
    """
    there = {role: name for role, name in usual.items() if name in table.rows.column_names or role == "text_pair"}
    return {role: there.get(role) if name is None else name for role, name in named.items()}


def meanings(labels: Sequence[str]) -> dict[str, str]:
    """The model's label for all that data may write: its own names, and 0, 1 ... where these are LABEL_0, LABEL_1 ...

    transformers makes up such names where nobody named the labels; they say nothing but their number. A name that
    somebody gave is never taken for a number: the data may count in another order.
    """
    unnamed = list(labels) == [f"LABEL_{i}" for i in range(len(labels))]
    numbers = {str(i): label for i, label in enumerate(labels)} if unnamed else {}
    return {label: label for label in labels} | numbers


def make_rows_to_score(
    config: Any,
    columns: Columns,
    rows: LabelledRows,
    known: Mapping[str, str],
    bad: BadRows,
    notes: list[str],
    to_dataset: Callable[[LabelledRows], Dataset],
) -> RowsToScore:
    """The rows with the model's labels, and described; `config`: a DataConfig or its like."""
    import pyarrow as pa

    written = rows.rows.column("label").to_pylist()
    place = rows.rows.column_names.index("label")
    named = rows.rows.set_column(place, "label", pa.array([known[label] for label in written], pa.string()))
    model_rows, labels = replace(rows, rows=named), list(dict.fromkeys(known.values()))
    facts = {
        "path": config.path if reads_path(config.path, config.test) else None,
        "subset": config.subset,
        "sources": {"test": rows.where},
        "columns": columns,
        "splits": {"test": _describe(model_rows, labels) | {"sha256": rows.fingerprint()}},
        "bad_rows": config.bad_rows,
        "dropped": bad.dropped,
    }
    renamed = next((label for label in written if known[label] != label), None)
    if renamed is not None:
        notes = [*notes, f"the model does not name its labels: {renamed} in the data is its {known[renamed]}"]
    return RowsToScore(to_dataset(model_rows), facts, [*notes, *bad.notes()], [])


def check_labels(splits: Mapping[str, LabelledRows], bad: BadRows) -> dict[str, LabelledRows]:
    """What shows only when rows are seen together; first, `check_filled` sees each by itself."""
    check_spelling(splits)
    checked = {**splits, "train": check_classes(splits["train"], bad)}
    if "test" in checked:
        checked["test"] = check_known(checked["test"], checked["train"], bad)
    return checked


def make_splits(config: Any, checked: Checked, kind: Kind, seed: int, group: str | None = None) -> Splits:
    """Train, dev and test, cut where they are missing, described, and warned of; `config`: a DataConfig or its like."""
    seed = seed if config.seed is None else config.seed
    whole, few = checked.splits, []
    taken, fold_notes = whole, []
    if config.folds is not None:
        taken, fold_notes, few = _take_fold(whole, config, kind, seed, group)
    splits, cut_notes = _cut(taken, config.max_rows, seed, group)
    tables, columns, bad = checked.tables, checked.columns, checked.bad
    in_train, in_dev = splits["train"].label_counts(), splits["dev"].label_counts()
    labels = sort_labels({*whole["train"].label_counts(), *in_dev}, class_names(tables["train"], columns["label"]))
    repeats, overlaps = count_repeats(splits["train"], kind.things), count_overlaps(splits)
    facts = {
        "path": config.path if reads_path(config.path, config.train) else None,
        "subset": config.subset,
        "sources": {split: rows.where for split, rows in splits.items()},
        "columns": columns,
        "splits": {split: _describe(rows, labels) for split, rows in splits.items()},
        "cut_from_train": {
            split: {"share": 0.1 if split not in taken else 1 / config.folds, "seed": seed}
            for split in splits
            if split not in tables
        },
        "max_rows": config.max_rows,
        "bad_rows": config.bad_rows,
        "dropped": bad.dropped,
        "repeats_in_train": repeats,
        "overlaps": overlaps,
    }
    if config.folds is not None:
        facts["fold"] = {"fold": config.fold, "folds": config.folds, "of": _describe(whole["train"], labels)}
    only_dev = [label for label in labels if label in in_dev and label not in in_train]
    return Splits(
        **{split: kind.to_dataset(rows) for split, rows in splits.items()},
        labels=labels,
        facts=facts,
        notes=[*checked.notes, *bad.notes(), *fold_notes, *cut_notes],
        warnings=[*few, *_warnings(kind, splits, repeats, overlaps, only_dev), *_shared_groups(splits, group)],
    )


def make_plain_splits(config: Any, checked: Checked, kind: Kind, seed: int, group: str | None = None) -> Splits:
    """As `make_splits`, for rows that have no class: whatever is cut is cut by chance alone, and `labels` is empty."""
    import pyarrow as pa

    def with_class(rows: LabelledRows) -> LabelledRows:
        return replace(rows, rows=rows.rows.append_column("label", pa.array(["all"] * len(rows), pa.string())))

    def without(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
        return {key: value for key, value in facts.items() if key != name}

    one_class = {split: with_class(rows) for split, rows in checked.splits.items()}
    cut = make_splits(config, replace(checked, splits=one_class, columns={"label": None}), kind, seed, group)
    facts = cut.facts | {
        "columns": checked.columns,
        "splits": {split: without(found, "classes") for split, found in cut.facts["splits"].items()},
        "repeats_in_train": without(cut.facts["repeats_in_train"], f"{kind.things}_with_several_labels"),
    }
    if "fold" in facts:
        facts["fold"] = facts["fold"] | {"of": without(facts["fold"]["of"], "classes")}
    return replace(cut, labels=[], facts=facts)


def _together(rows: LabelledRows, group: str | None) -> np.ndarray:
    """A number from 0 for each row, (rows,): the same for rows that a cut must not part, by content or by `group`."""
    contents = np.unique(rows.column("content"), return_inverse=True)[1]
    if group is None:
        return contents
    named = [
        f"row {place}" if value is None else f"value {value}"
        for place, value in enumerate(rows.rows.column(EXTRA + group).to_pylist())
    ]
    return join_groups(contents, np.unique(named, return_inverse=True)[1])


def _how_many_apart(rows: LabelledRows, apart: int, group: str | None) -> str:
    """So many rows, and how many of them a cut can part."""
    if apart == len(rows):
        return f"{len(rows)} rows"
    return (
        f"{len(rows)} rows{f', of which only {apart} differ,' if group is None else f' in {apart} groups by {group}'}"
    )


def _take_fold(
    splits: dict[str, LabelledRows], config: Any, kind: Kind, seed: int, group: str | None
) -> tuple[dict[str, LabelledRows], list[str], list[str]]:
    """The splits with the fold as test, and without its rows in train; notes and warnings."""
    train, folds = splits["train"], config.folds
    classes, numbers = train.classes(), _together(train, group)
    apart = int(numbers.max()) + 1
    if folds > apart:
        raise UserError(
            f"{train.where}: {_how_many_apart(train, apart, group)} are too few for --data.folds {folds}. "
            "Add rows, or ask for fewer folds"
        )
    mine = cut_folds(classes, numbers, folds, seed) == config.fold - 1
    names = list(train.label_counts())
    each = np.unique(np.stack([classes, numbers]), axis=1)[0]
    few = [repr(name) for name, count in zip(names, np.bincount(each), strict=True) if count < folds]
    unseen = [repr(names[place]) for place in np.setdiff1d(classes[mine], classes[~mine])]
    warnings = []
    if few:
        warnings.append(
            f"labels with fewer {kind.things} that can be parted than {folds} folds, so that some folds test none: "
            f"{_some(few)}"
        )
    if unseen:
        warnings.append(
            f"labels of which fold {config.fold} holds all rows, so that its model never saw: {_some(unseen)}"
        )
    taken = {**splits, "train": train.keep(~mine), "test": train.keep(mine)}
    note = f"fold {config.fold} of {folds} is test: {int(mine.sum()):,} of {len(train):,} rows of train, seed {seed}"
    return taken, [note], warnings


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _cut(
    splits: dict[str, LabelledRows], max_rows: int | None, seed: int, group: str | None
) -> tuple[dict[str, LabelledRows], list[str]]:
    """Train, dev and test, each missing one a tenth of train; `max_rows` comes last and changes no other."""
    train, notes = splits["train"], []
    missing = [split for split in ("dev", "test") if split not in splits]
    if missing:
        numbers = _together(train, group)
        tenths = cut_tenths(train.classes(), numbers, seed)
        if tenths is None:
            rows = _how_many_apart(train, int(numbers.max()) + 1, group)
            raise UserError(
                f"{train.where}: {rows} are too few to cut {' and '.join(missing)} from. "
                f"Add rows, or set --data.{' and --data.'.join(missing)}"
            )
        splits = {**splits, **{split: train.keep(tenths[split]) for split in missing}}
        train = train.keep(~np.any([tenths[split] for split in missing], axis=0))
        evenly = "a stratified tenth" if train.classes().any() else "a tenth"
        notes += [
            f"no {split} split: {evenly} of train, seed {seed} ({len(splits[split]):,} rows)" for split in missing
        ]
    if max_rows is not None and max_rows < len(train):
        classes = train.classes()
        if max_rows <= classes.max():
            raise UserError(f"--data.max_rows {max_rows} is less than one row for each of {classes.max() + 1} labels")
        evenly = "a stratified " if classes.any() else ""
        notes.append(f"train: {evenly}{max_rows:,} of {len(train):,} rows, seed {seed}")
        train = train.keep(cut_rows(classes, max_rows, seed))
    return {"train": train, "dev": splits["dev"], "test": splits["test"]}, notes


def _describe(rows: LabelledRows, labels: list[str]) -> dict[str, Any]:
    """The fingerprint of a split, and its rows for each label."""
    counts = rows.label_counts()
    return {
        "rows": len(rows),
        "sha256": rows.fingerprint(),
        "classes": {label: counts.get(label, 0) for label in labels},
    }


def _shared_groups(splits: dict[str, LabelledRows], group: str | None) -> list[str]:
    """A warning for each pair of splits that have rows of the same group, which only given splits can have; and for one
    of a single group, of which no interval can be made.
    """
    if group is None:
        return []
    warnings = [
        f"{split} has one group ({group}) only, so no interval can be made; set --data.{split} to rows of more groups"
        for split in ("dev", "test")
        if len(splits[split].rows.column(EXTRA + group).unique()) == 1
    ]
    for one, other in (("test", "train"), ("test", "dev"), ("dev", "train")):
        columns = (splits[split].rows.column(EXTRA + group) for split in (one, other))
        here, there = (set(column.drop_null().unique().to_pylist()) for column in columns)
        if shared := len(here & there):
            warnings.append(
                f"{shared:,} of {len(here):,} groups ({group}) of {one} also have rows in {other}, which flatters the "
                f"scores on {one}"
            )
    return warnings


def _warnings(
    kind: Kind,
    splits: dict[str, LabelledRows],
    repeats: dict[str, int],
    overlaps: dict[str, int],
    only_dev: list[str],
) -> list[str]:
    warnings = []
    if repeated := repeats["repeated_rows"]:
        warnings.append(f"{repeated:,} of {len(splits['train']):,} rows of train {kind.repeat}")
    if conflicting := repeats[f"{kind.things}_with_several_labels"]:
        warnings.append(f"{conflicting:,} {kind.things} of train stand under more than one label")
    for pair, count in overlaps.items():
        one, _, other = pair.partition(" in ")
        if count:
            flatter = f", which flatters the scores on {one}" if other == "train" else ""
            warnings.append(f"{count:,} of {len(splits[one]):,} rows of {one} {kind.overlap.format(other)}{flatter}")
    if only_dev:
        warnings.append(
            f"labels of dev that train never had, and that nothing can teach: {', '.join(map(repr, only_dev))}"
        )
    return warnings
