"""Which runs are compared, and did they answer the same rows?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from graftkit.errors import UserError
from graftkit.metrics import classification
from graftkit.metrics.slices import Slice
from graftkit.report import slices
from graftkit.report.reading import Reading, check_asked, check_classifier, read_run
from graftkit.report.tables import check_tables, read_predictions, read_rows

SPLIT = "test"
SAME_ROWS = "compare runs on the same test rows (`graft evaluate` scores any model on rows of your choice)"


@dataclass(frozen=True)
class Run:
    """What one run said of its test rows."""

    folder: Path
    headline: str
    labels: list[str]
    records: dict[str, Mapping[str, Any]]  # by the row's id
    digests: dict[str, str] | None  # of what each row holds, by id; None where the run was pulled without its rows
    reading: Reading


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a model, or the models that several seeds of a recipe gave."""

    letter: str
    name: str  # as the user wrote it
    runs: list[Run]
    said: np.ndarray  # (runs, rows), as places in the labels


@dataclass(frozen=True)
class Rows:
    """The rows that all runs answered, in the reference's order."""

    ids: list[str]
    labels: list[str]
    truth: np.ndarray  # (rows,), as places in the labels
    groups: np.ndarray | None = None  # (rows,), numbered from 0: rows that belong together; None where each is alone
    grouped_by: tuple[str, ...] = ()  # the columns of --report.group that say so
    unmatched: tuple[str, ...] = ()  # further such columns, of which no run kept what they hold

    @property
    def units(self) -> int:
        """What is drawn, and by what this is independent: groups, or rows."""
        return len(self.ids) if self.groups is None else int(self.groups.max()) + 1


def load(names: Sequence[str]) -> tuple[list[Arm], Rows]:
    """The arms, all on the same rows; raises UserError where they are not, or where a folder is not whole.

    A name is the folder of a run, or several with commas between them: the seeds of one arm. So is the folder of a run
    over seeds.
    """
    if not 2 <= len(names) <= len(ascii_uppercase):
        raise UserError("name two runs or more, at most 26: graft compare RUN_A RUN_B (see graft compare --help)")
    folders = [
        seed_folders(Path(name)) if Path(name).is_dir() else [Path(part) for part in name.split(",")] for name in names
    ]
    check_folders(folders)
    runs = [[read(folder) for folder in arm] for arm in folders]
    reference = runs[0][0]
    for run in (run for arm in runs for run in arm if run is not reference):
        check_labels(reference, run)
        check_rows(reference, run)
    ids, place = list(reference.records), {label: i for i, label in enumerate(reference.labels)}
    truth = np.array([place[reference.records[id]["label"]] for id in ids])
    arms = []
    for letter, name, arm in zip(ascii_uppercase, names, runs, strict=False):
        said = [[place[run.records[id]["prediction"]] for id in ids] for run in arm]
        arms.append(Arm(letter, name, arm, np.array(said)))
    return arms, Rows(ids, reference.labels, truth, *together([run for arm in runs for run in arm], ids))


def together(runs: Sequence[Run], ids: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...], tuple[str, ...]]:
    """Which rows, of these ids, belong together by any run; the columns that say so, and those that nobody kept.

    Where two runs group by two columns, rows that are tied by either are one group: nothing is then taken as
    independent that is not.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    kept, named, ties = {}, {}, []
    for run in runs:
        column, groups = run.reading.settings.get("group"), run.reading.groups(SPLIT)
        if groups is None:
            named |= {column: None} if column else {}
            continue
        of_row = dict(zip(run.records, groups.tolist(), strict=True))
        ties.append(np.unique([of_row[id] for id in ids], return_inverse=True)[1])
        kept[column or "group"] = None
    unmatched = tuple(str(column) for column in named if column not in kept)
    count = len(ids)
    if not ties:
        return None, (), unmatched
    starts = count + np.cumsum([0, *(int(tie.max()) + 1 for tie in ties)])
    ends = np.concatenate([tie + start for tie, start in zip(ties, starts, strict=False)])
    edges = coo_array((np.ones(len(ends)), (np.tile(np.arange(count), len(ties)), ends)), shape=(starts[-1],) * 2)
    parts = connected_components(edges.tocsr(), directed=False)[1][:count]
    groups = np.unique(parts, return_inverse=True)[1]
    alone = groups.max() + 1 == count
    return None if alone else groups, () if alone else tuple(map(str, kept)), unmatched


def seed_folders(folder: Path) -> list[Path]:
    """The runs that a folder stands for: those of its seeds (`--run.seeds`), or itself."""
    return [folder / one["name"] for one in read_run(folder).get("seeds") or []] or [folder]


def check_folders(folders: Sequence[Sequence[Path]]) -> None:
    """Raise UserError for a folder that is named twice, and for one run against the seeds of an arm."""
    seen: set[Path] = set()
    for folder in (folder for arm in folders for folder in arm):
        if folder.resolve() in seen:
            raise UserError(f"{folder} is given twice; name each run once")
        seen.add(folder.resolve())
    if len({len(arm) > 1 for arm in folders}) > 1:
        alone = next(arm[0] for arm in folders if len(arm) == 1)
        raise UserError(f"{alone} is one run against an arm of several seeds; give each arm two seeds or more")


def read(folder: Path) -> Run:
    """What a run said of its test rows; raises UserError where a table is missing or broken, or holds a row twice."""
    record = read_run(folder)
    check_classifier(folder, record, "graft compare")
    headline = record.get("headline") or "macro_f1"
    if headline not in classification.HEADLINES:
        known = ", ".join(classification.HEADLINES)
        raise UserError(f"{folder}: its headline {headline!r} is no score of a classifier; known: {known}")
    check_asked(folder, record, (SPLIT,))
    check_tables(folder, record.get("tables"))
    labels, records = read_predictions(folder, SPLIT)
    by_id = {record["id"]: record for record in records}
    if len(by_id) < len(records):
        raise UserError(f"{folder}: an id stands twice in predictions-{SPLIT}.parquet; make the table again")
    reading = Reading(folder, record, labels, {SPLIT: records})
    if record.get("rows_left_out"):
        return Run(folder, headline, labels, by_id, None, reading)
    digests = {row["id"]: row["sha256"] for row in read_rows(folder, SPLIT)}
    lacking = [id for id in by_id if id not in digests]
    if lacking:
        raise UserError(f"{folder}: rows-{SPLIT}.parquet lacks {_some(lacking)} of predictions-{SPLIT}.parquet")
    return Run(folder, headline, labels, by_id, digests, reading)


def check_labels(one: Run, other: Run) -> None:
    """Raise UserError where two runs do not have the same labels; their order does not matter."""
    for here, there in ((one, other), (other, one)):
        missing = [label for label in here.labels if label not in there.labels]
        if missing:
            raise UserError(
                f"{there.folder} has no label {missing[0]!r}, which {here.folder} has ({len(there.labels)} and "
                f"{len(here.labels)} labels); only models of the same labels can be compared"
            )


def check_rows(one: Run, other: Run) -> None:
    """Raise UserError where two runs did not answer the same rows: by id, label and, where both know it, content."""
    for here, there in ((one, other), (other, one)):
        missing = [id for id in here.records if id not in there.records]
        if missing:
            raise UserError(f"{there.folder} lacks {_some(missing)} of {here.folder}; {SAME_ROWS}")
    if one.digests is not None and other.digests is not None:
        changed = [id for id in one.records if one.digests[id] != other.digests[id]]
        if changed:
            raise UserError(f"{_some(changed)} of {other.folder} is another than that of {one.folder}; {SAME_ROWS}")
    changed = [id for id, record in one.records.items() if record["label"] != other.records[id]["label"]]
    if changed:
        labels = " and ".join(repr(run.records[changed[0]]["label"]) for run in (one, other))
        raise UserError(
            f"{_some(changed)} has another label in {other.folder} than in {one.folder} ({labels}); {SAME_ROWS}"
        )


def cut(runs: Sequence[Run], ids: Sequence[str]) -> tuple[Run | None, list[Slice]]:
    """The slices of the rows of these ids, in this order, as the first run that cut them has them; and that run."""
    for run in runs:
        place = {id: i for i, id in enumerate(run.records)}
        order = np.array([place[id] for id in ids])
        found = [replace(one, inside=one.inside[order]) for one in slices.cut(run.reading)[0]]
        if found:
            return run, found
    return None, []


def contents(runs: Sequence[Run], ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The rows of these ids, each from the first run that keeps what it holds; a row that none keeps has its digest."""
    found: dict[str, dict[str, Any]] = {}
    for run in (run for run in runs if run.digests is not None):
        for row in read_rows(run.folder, SPLIT, ids):
            if len(row) > len(found.get(row["id"], {})):
                found[row["id"]] = row
    return found


def _some(ids: Sequence[str]) -> str:
    return f"row {', '.join(ids[:3])}" + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
