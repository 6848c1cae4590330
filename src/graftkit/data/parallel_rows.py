"""Which texts, and which text is to come of each?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.data.checks import BadRows, check_filled
from graftkit.data.columns import Columns, LabelledRows, choose_columns, label_rows
from graftkit.data.config import RowsConfig
from graftkit.data.files import Table
from graftkit.data.repeats import number_contents
from graftkit.data.sources import DEMO, FILES, Source, offer_files
from graftkit.data.splits import Checked, Kind, Splits, dataset_of, load_to_cut, make_plain_splits
from graftkit.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = ("source", "target")
COLUMN_NAMES = {
    "source": ["source", "src", "input", "inputs", "text", "document", "article", "dialogue"],
    "target": ["target", "tgt", "output", "outputs", "summary", "highlights", "translation"],
}
NESTED = "translation"  # the column in which the Hub's data sets of translations hold a text for each language
DEMO_FOLDER = Path(__file__).parent / "spoken"


@dataclass(frozen=True)
class ParallelDataConfig(RowsConfig):
    """Which texts to learn from, and which of their columns."""

    source: str | None = None
    """column of the text to read, or its language where a column named translation holds several (by default the only
    one named like a source)"""
    target: str | None = None
    """column of the text to write, or its language (by default the only one named like a target)"""
    prefix: str = ""
    """what is put before each source, such as "translate English to German: ": T5 was told its tasks so"""

    def __post_init__(self) -> None:
        if self.prefix and not self.prefix.strip():
            raise UserError("--data.prefix: blanks alone tell the model nothing; leave it out")


def load_parallel(config: ParallelDataConfig, seed: int, extra: Sequence[str] = (), group: str | None = None) -> Splits:
    """Train, dev and test, checked; what is not there is cut from train, the same way for the same seed.

    Rows have `id`, `source` and `target` (str), and the `extra` columns as `column:<name>`; rows of the same source,
    or with the same value in the column `group`, one of `extra`, are cut together. UserError for what cannot be found,
    read or learnt from.
    """
    tables, notes, bad = load_to_cut(config, replace(FILES, demos={DEMO: _demo}))
    named = {"source": config.source, "target": config.target}
    tables = {split: _spread(table) for split, table in tables.items()}
    columns, column_notes = choose_columns(tables["train"], named, COLUMN_NAMES)
    rows = {split: _rows(split, table, columns, extra, bad) for split, table in tables.items()}
    checked = Checked(tables, columns, number_contents(rows, ["source"]), bad, [*notes, *column_notes])
    return _with_prefix(make_plain_splits(config, checked, TEXTS, seed, group), config.prefix)


TEXTS = Kind(
    things="texts",
    repeat="repeat the source of an earlier one",
    overlap="have a source that also stands in {}",
    to_dataset=dataset_of(*ROLES),
)


def _demo() -> dict[str, Source]:
    """The data set that ships in this package."""
    return offer_files([DEMO_FOLDER / f"{split}.csv" for split in ("train", "dev", "test")], DEMO)


def _spread(table: Table) -> Table:
    """The table with a column for each language of its column `translation`, where it holds several.

    A language that has the name of another column keeps `translation.` before its own.
    """
    kind = table.rows.features.get(NESTED)
    if not isinstance(kind, dict) and not hasattr(kind, "languages"):  # datasets' own Translation
        return table
    there = set(table.rows.column_names)
    rows: Dataset = table.rows.flatten()
    inner = [name for name in rows.column_names if name.startswith(f"{NESTED}.")]
    bare = {name: name.removeprefix(f"{NESTED}.") for name in inner}
    return replace(table, rows=rows.rename_columns({name: to for name, to in bare.items() if to not in there}))


def _rows(split: str, table: Table, columns: Columns, extra: Sequence[str], bad: BadRows) -> LabelledRows:
    """The rows with a source and a target that are not empty. UserError where none is left."""
    rows = replace(label_rows(split, table, columns, extra), said=ROLES)
    return check_filled(split, rows, bad, ROLES)


def _with_prefix(splits: Splits, prefix: str) -> Splits:
    """The splits, with a note of the prefix, or a warning where the rows have it already."""
    if not prefix:
        return splits
    had = sum(source.startswith(prefix.strip()) for source in splits.train["source"][:])
    warnings = list(splits.warnings)
    if had:
        warnings.append(
            f"{had:,} of {len(splits.train):,} sources of train begin with --data.prefix {prefix!r} already, and get "
            "it twice"
        )
    facts = {**splits.facts, "prefix": prefix}
    return replace(splits, facts=facts, notes=[*splits.notes, f"before each source: {prefix!r}"], warnings=warnings)
