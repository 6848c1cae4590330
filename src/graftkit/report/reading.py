"""What did a run leave in its folder?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from graftkit.errors import UserError
from graftkit.metrics import classification
from graftkit.report.tables import COLUMN, GROUP, MEASURE, check_tables, read_measures, read_predictions

SPLITS = ("dev", "test")


@dataclass(frozen=True)
class Reading:
    """A run's folder as the chapters of its report read it: nothing else decides what they say."""

    folder: Path
    run: dict[str, Any]  # run.json
    labels: list[str]
    records: dict[str, list[dict[str, Any]]]  # by split: dev and test, or test alone

    @cached_property
    def arrays(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """By split: truth (rows,) and prediction (rows,) as places in `labels`, and probabilities (rows, labels)."""
        return {split: classification.arrays(records, self.labels) for split, records in self.records.items()}

    def logits(self, split: str) -> np.ndarray:
        """(rows, labels) float32, in the order of the records."""
        return np.stack([record["logits"] for record in self.records[split]])

    @property
    def settings(self) -> Mapping[str, Any]:
        """The section `report` of the run's settings; empty for a run that was made before there was one."""
        return self.run.get("report") or {}

    def measures(self, split: str) -> dict[str, np.ndarray]:
        """Numbers by which errors may differ, such as `tokens`, by name: (rows,) float64, NaN where there is none."""
        return self._found(split, MEASURE)

    def columns(self, split: str) -> dict[str, np.ndarray]:
        """Columns of the data that --report.slice names, by name: (rows,) str, None where there is none."""
        return self._found(split, COLUMN)

    def groups(self, split: str) -> np.ndarray | None:
        """The group of each row by --report.group, numbered from 0, (rows,); None where rows stand for themselves."""
        return self._measured[split].get(GROUP)

    def _found(self, split: str, prefix: str) -> dict[str, np.ndarray]:
        columns = self._measured[split].items()
        return {name.removeprefix(prefix): values for name, values in columns if name.startswith(prefix)}

    @cached_property
    def _measured(self) -> dict[str, dict[str, np.ndarray]]:
        """By split, the table of measures; UserError where it does not hold the rows of the predictions, in order."""
        found = {split: read_measures(self.folder, split) for split in self.records}
        for split, columns in found.items():
            if columns and [record["id"] for record in self.records[split]] != columns["id"].tolist():
                raise UserError(
                    f"{self.folder}: measures-{split}.parquet and predictions-{split}.parquet do not hold the same "
                    "rows in the same order; make the run again"
                )
        return found


def read_folder(folder: Path, splits: Sequence[str]) -> Reading:
    """The run in `folder`. Raises UserError where run.json or a table is missing, broken or was edited."""
    run = read_run(folder)
    records, found = {}, {}
    check_asked(folder, run, splits)
    check_tables(folder, run.get("tables"))
    for split in splits:
        found[split], records[split] = read_predictions(folder, split)
    labels = found[splits[-1]]
    for split in (split for split in splits if found[split] != labels):
        raise UserError(
            f"{folder}: predictions-{split}.parquet has other labels than predictions-{splits[-1]}.parquet, or in "
            "another order; make the run again"
        )
    return Reading(folder, run, labels, records)


def check_asked(folder: Path, run: Mapping[str, Any], splits: Sequence[str]) -> None:
    """Raise UserError where test is to be read of a run that ended at dev (`--run.until dev`)."""
    if "test" in splits and "dev" in run and not (folder / "predictions-test.parquet").exists():
        raise UserError(
            f"{folder}: this run ended at dev; to ask test, give its command again with --run.out {folder} "
            "--run.resume and without --run.until"
        )


CLASSIFIERS = ("text-classification", "image-classification")
"""The tasks whose rows have one label each."""


def check_classifier(folder: Path, run: Mapping[str, Any], command: str) -> None:
    """Raise UserError for a run of a task that `command` does not know: it knows rows of one label only."""
    if run.get("task") not in CLASSIFIERS:
        raise UserError(
            f"{folder} is a run of {run.get('task')}, which {command} cannot read yet: it knows classifiers of rows"
        )


def read_run(folder: Path) -> dict[str, Any]:
    """run.json. Raises UserError where there is none, or it is no record of a run."""
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"no run.json in {folder}; give the folder of a run that went to its end") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); make the run again") from error
    if not isinstance(run, dict):
        raise UserError(f"{path} holds no record of a run; make the run again")
    return run
