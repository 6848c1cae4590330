"""Which rows are bad?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from graftkit.data.columns import LabelledRows, a_role
from graftkit.data.files import Table, name_rows
from graftkit.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN = 5  # labels, or pictures, that a message names
MANY = 20  # labels, above which such as are all numbers rather measure something than name classes


class BadRows:
    """What becomes of bad rows: an error that names them, or, where the user said so, they are dropped and counted."""

    def __init__(self, drop: bool) -> None:
        self.drop = drop
        self.dropped: dict[str, dict[str, int]] = {}  # split -> what was wrong -> rows

    def refuse_or_count(
        self, split: str, where: str, wrong: str, numbers: Iterable[int], detail: str = "", names: str = ""
    ) -> None:
        """Of `split`, which `where` holds, these rows are `wrong`; the caller leaves them out when this returns."""
        numbers = list(numbers)
        if not numbers:
            return
        if not self.drop:
            raise UserError(
                f"{where}: {wrong}{detail} in {name_rows(numbers)}{names}. Mend the data, or set --data.bad_rows drop"
            )
        reasons = self.dropped.setdefault(split, {})
        reasons[wrong] = reasons.get(wrong, 0) + len(numbers)

    def refuse_or_count_each(self, split: str, where: str, wrong: str, rows: Sequence[tuple[int, str, str]]) -> None:
        """Like `refuse_or_count`, for rows that are wrong each for a reason of its own: number, name and reason."""
        if rows and not self.drop:
            listed = _some([f"row {number} ({name}): {reason}" for number, name, reason in rows], "; ")
            raise UserError(f"{where}: {wrong}: {listed}. Mend the data, or set --data.bad_rows drop")
        for one in dict.fromkeys(reason for _, _, reason in rows):
            self.refuse_or_count(split, where, one, [number for number, _, reason in rows if reason == one])

    def without(self, split: str, rows: LabelledRows, wrong: str, bad: np.ndarray, detail: str = "") -> LabelledRows:
        """The rows but for those that are `bad` (rows,)."""
        self.refuse_or_count(split, rows.where, wrong, rows.column("number")[bad], detail, _names(rows, bad))
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


def check_filled(split: str, rows: LabelledRows, bad: BadRows, roles: Sequence[str]) -> LabelledRows:
    """Every row has a value in the column of each role there is: not missing, and not blanks alone."""
    for role in [name for name in roles if name in rows.rows.column_names]:
        rows = bad.without(split, rows, f"empty or missing {role}", _blank(rows.rows.column(role)))
    if not len(rows):
        thing, label = roles[0], roles[-1]
        raise UserError(
            f"{rows.where}: no row with {a_role(thing)} and {a_role(label)} is left. "
            f"Set --data.{split}, .{thing} or .{label}"
        )
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


def check_measured(train: LabelledRows) -> list[str]:
    """A warning where the labels look like measured numbers; UserError where as classes most would have one row."""
    counts = train.label_counts()
    if len(counts) <= MANY or not all(_is_number(label) for label in counts):
        return []
    what = f"the labels are {len(counts):,} different numbers"
    single = sum(count == 1 for count in counts.values())
    if 2 * single > len(counts):
        raise UserError(
            f"{train.where}: {what}, {single:,} of them in one row only. To learn the number itself, set --data.task "
            "regression; for classes, set --data.label to another column"
        )
    if all(float(label).is_integer() for label in counts):
        return []  # as likely the numbers of classes
    return [f"{what}, and each is taken for a class; to learn the number itself, set --data.task regression"]


def _is_number(label: str) -> bool:
    try:
        return bool(np.isfinite(float(label)))
    except ValueError:
        return False


def check_known(test: LabelledRows, train: LabelledRows, bad: BadRows) -> LabelledRows:
    """Every label of test stands in train."""
    new = sorted(test.label_counts().keys() - train.label_counts().keys())
    test = bad.without("test", test, "a label that train never had", _is_among(test, new), f" ({_some_labels(new)})")
    if not len(test):
        raise UserError(f"{test.where}: none of its labels stands in {train.where}. Set --data.test or --data.label")
    return test


def check_known_to_model(rows: LabelledRows, known: Mapping[str, str], bad: BadRows) -> LabelledRows:
    """Every label of the rows stands for one of the model's: `known` says for which."""
    new = sorted(rows.label_counts().keys() - known.keys())
    own = list(dict.fromkeys(known.values()))
    if len(new) == len(rows.label_counts()):
        how = "the model does" if len(own) == len(known) else "numbers from 0"
        raise UserError(
            f"{rows.where}: none of its labels ({_some_labels(new)}) is one of the model's ({_some_labels(own)}). "
            f"Set --data.label, or write the labels as {how}"
        )
    detail = f" ({_some_labels(new)}; it has {_some_labels(own)})"
    return bad.without("test", rows, "a label that the model does not have", _is_among(rows, new), detail)


def _names(rows: LabelledRows, bad: np.ndarray) -> str:
    """Which pictures they are; a text needs no name beside its row."""
    if "image" not in rows.rows.column_names:
        return ""
    names = rows.keep(bad).rows.column("image").drop_null().to_pylist()
    return f" ({_some(names, ', ')})" if names else ""


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
