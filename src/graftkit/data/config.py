"""What may the user say of the rows, whatever they hold?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graftkit.config import AtLeastOne, AtLeastTwo, NotNegativeInt


@dataclass(frozen=True)
class RowsConfig:
    """Which rows to learn from."""

    path: str = "demo"
    """data set: a Hub id, a file (it becomes train) or a folder with train, dev and test; 'demo' comes with graftkit"""
    subset: str | None = None
    """subset (configuration) of a data set on the Hub"""
    train: str | None = None
    """training rows: a file, or a split of the path (by default the one named train)"""
    dev: str | None = None
    """rows that choose the best checkpoint: a file or a split (by default dev or validation, else cut from train)"""
    test: str | None = None
    """rows for the final scores: a file or a split (by default the one named test, else cut from train)"""
    bad_rows: Literal["error", "drop"] = "error"
    """what becomes of bad rows: an error that names them, or they are dropped and counted"""
    max_rows: AtLeastOne | None = None
    """at most so many rows of train, every class or tag in its share"""
    seed: NotNegativeInt | None = None
    """seed of what is cut from train, and of max_rows: the same rows for all seeds (by default --run.seed, or the first
    of --run.seeds)"""
    folds: AtLeastTwo | None = None
    """cut train into so many folds, and train one model for each on the others: each row is tested by a model that has
    not seen it"""
    fold: AtLeastOne | None = None
    """of the folds, train the model for this one alone, from 1 up"""
