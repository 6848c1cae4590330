"""Which rows? Files and the Hub's data sets as checked splits: `load_splits(DataConfig(path=...), seed=0)`."""

from graftkit.data.files import Table, read_file
from graftkit.data.sources import load_tables
from graftkit.data.splits import DataConfig, Splits, load_splits

__all__ = ["DataConfig", "Splits", "Table", "load_splits", "load_tables", "read_file"]
