"""Which rows? Files and the Hub's data sets as checked splits: `load_splits(DataConfig(path=...), seed=0)`.

Pictures: `load_pictures(ImageDataConfig(path=...), seed=0)`.
"""

from graftkit.data.files import Table, read_file
from graftkit.data.picture_rows import ImageDataConfig, load_pictures
from graftkit.data.sources import load_tables
from graftkit.data.splits import DataConfig, Splits, load_splits

__all__ = [
    "DataConfig",
    "ImageDataConfig",
    "Splits",
    "Table",
    "load_pictures",
    "load_splits",
    "load_tables",
    "read_file",
]
