"""Which rows are bad?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from graftkit.data.columns import LabelledRows
from graftkit.data.files import Table, name_rows
from graftkit.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN = 5  # labels that a message names


class BadRows:
    """What becomes of bad rows: an error that names them, or, where the user said so, they are dropped and counted."""

    def __init__(self, drop: bool) -> None:
        self.drop = drop
        self.dropped: dict[str, dict[str, int]] = {}  # split -> what was wrong -> rows

    def refuse_or_count(self, split: str, where: str, wrong: str, numbers: Iterable[int], detail: str = "") -> None:
        """Of `split`, which `where` holds, these rows are `wrong`; the caller leaves them out when this returns."""
        numbers = list(numbers)
        if not numbers:
            return
        if not self.drop:
            raise UserError(
                f"{where}: {wrong}{detail} in {name_rows(numbers)}. Mend the data, or set --data.bad_rows drop"
            )
        reasons = self.dropped.setdefault(split, {})
        reasons[wrong] = reasons.get(wrong, 0) + len(numbers)

    def without(self, split: str, rows: LabelledRows, wrong: str, bad: np.ndarray, detail: str = "") -> LabelledRows:
        """The rows but for those that are `bad` (rows,)."""
        self.refuse_or_count(split, rows.where, wrong, rows.column("number")[bad], detail)
        return rows.keep(~bad) if bad.any() else rows

    def notes(self) -> list[str]:
        """One sentence per split with dropped rows, for the log."""
        return [
            f"dropped from {split}: " + ", ".join(f"{count:,} x {wrong}" for wrong, count in reasons.items())
            for split, reasons in self.dropped.items()
        ]


def check_parsed(split: str, table: Table, bad: BadRows) -> None:
    """Every row could be parsed; the table is without the others already."""
    for wrong, numbers in table.malformed.items():
        bad.refuse_or_count(split, table.where, wrong, numbers)
    if not len(table.numbers):
        raise UserError(f"{table.where}: no row could be parsed. Set --data.{split} to another file")


def check_filled(split: str, rows: LabelledRows, bad: BadRows) -> LabelledRows:
    """Every row has a text (both, of a pair) and a label: not missing, and not blanks alone."""
    for column in [name for name in ("text", "text_pair", "label") if name in rows.rows.column_names]:
        wrong = f"empty or missing {column}"
        rows = bad.without(split, rows, wrong, _blank(rows.rows.column(column)))
    if not len(rows):
        raise UserError(f"{rows.where}: no row with a text and a label is left. Set --data.{split}, .text or .label")
    return rows


def check_spelling(splits: Mapping[str, LabelledRows]) -> None:
    """No two labels differ by case or blanks alone. Which of them is right nobody here can know: no row is dropped."""
    counts: Counter[str] = sum((Counter(rows.label_counts()) for rows in splits.values()), Counter())
    spellings: dict[str, list[str]] = {}
    for label in sorted(counts):
        spellings.setdefault("".join(label.split()).casefold(), []).append(label)
    alike = [same for same in spellings.values() if len(same) > 1]
    if alike:
        listed = [" and ".join(_label_and_rows(label, counts[label]) for label in same) for same in alike]
        rare = min(alike[0], key=counts.__getitem__)
        rows = next(rows for rows in splits.values() if rare in rows.label_counts())
        places = name_rows(rows.column("number")[_is_among(rows, [rare])])
        raise UserError(
            f"{rows.where}: labels that differ only by case or blanks: {_some(listed, '; ')}; "
            f"{rare!r} is in {places}. Spell them alike"
        )


def check_classes(train: LabelledRows, bad: BadRows) -> LabelledRows:
    """Train has two classes or more, each of at least two rows."""
    counts = train.label_counts()
    if len(counts) == 1:
        [label] = counts
        raise UserError(
            f"{train.where}: only one class, {label!r}, and nothing to tell it from. Set --data.label or add rows"
        )
    single = [label for label, count in counts.items() if count == 1]
    train = bad.without("train", train, "a class with one row", _is_among(train, single), f" ({_some_labels(single)})")
    if len(counts) - len(single) < 2:
        raise UserError(f"{train.where}: fewer than two classes have two rows or more. Add rows, or set --data.label")
    return train


def check_known(test: LabelledRows, train: LabelledRows, bad: BadRows) -> LabelledRows:
    """Every label of test stands in train."""
    new = sorted(test.label_counts().keys() - train.label_counts().keys())
    test = bad.without("test", test, "a label that train never had", _is_among(test, new), f" ({_some_labels(new)})")
    if not len(test):
        raise UserError(f"{test.where}: none of its labels stands in {train.where}. Set --data.test or --data.label")
    return test


def _blank(values: pa.ChunkedArray) -> np.ndarray:
    import pyarrow.compute as pc

    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(values), ""), True).to_numpy()


def _is_among(rows: LabelledRows, labels: list[str]) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.is_in(rows.rows.column("label"), value_set=pa.array(labels, pa.string())).to_numpy()


def _label_and_rows(label: str, rows: int) -> str:
    return f"{label!r} ({rows:,} row{'s' if rows > 1 else ''})"


def _some_labels(labels: list[str]) -> str:
    return _some([repr(label) for label in labels], ", ")


def _some(words: list[str], between: str) -> str:
    more = f" and {len(words) - SHOWN:,} more" if len(words) > SHOWN else ""
    return between.join(words[:SHOWN]) + more
