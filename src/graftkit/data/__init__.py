"""Which rows? Files and the Hub's data sets as checked splits: `load_splits(DataConfig(path=...), seed=0)`.

Pictures: `load_pictures(ImageDataConfig(path=...), seed=0)`. `load_test_texts` and
`load_test_pictures` read the rows to score a finished model on.
"""

from graftkit.data.answer_rows import AnswersDataConfig, load_answers
from graftkit.data.chats import GenerateDataConfig, load_to_generate
from graftkit.data.files import Table, read_file
from graftkit.data.label_sets import load_label_sets
from graftkit.data.picture_rows import ImageDataConfig, load_pictures, load_test_pictures
from graftkit.data.scored_rows import load_numbers
from graftkit.data.sources import load_tables
from graftkit.data.splits import DataConfig, RowsToScore, Splits, load_splits, load_test_texts
from graftkit.data.tagged_rows import TaggedDataConfig, load_tagged

__all__ = [
    "AnswersDataConfig",
    "DataConfig",
    "GenerateDataConfig",
    "ImageDataConfig",
    "RowsToScore",
    "Splits",
    "Table",
    "TaggedDataConfig",
    "load_answers",
    "load_label_sets",
    "load_numbers",
    "load_pictures",
    "load_splits",
    "load_tables",
    "load_tagged",
    "load_test_pictures",
    "load_test_texts",
    "load_to_generate",
    "read_file",
]
