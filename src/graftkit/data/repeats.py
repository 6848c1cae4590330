"""Which texts, or pictures, stand more than once?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from graftkit.data.columns import LabelledRows


def number_contents(
    splits: Mapping[str, LabelledRows], columns: Sequence[str] = ("text", "text_pair")
) -> dict[str, LabelledRows]:
    """The splits with a column `content`: one number for each text (and its pair), the same in every row and split.

    `columns` of strings hold what makes rows the same; one that the splits lack is passed over.
    """
    import pyarrow as pa

    numbers = np.zeros(sum(len(rows) for rows in splits.values()), np.int64)
    for column in [name for name in columns if name in splits["train"].rows.column_names]:
        chunks = [chunk for rows in splits.values() for chunk in rows.rows.column(column).chunks]
        encoded = pa.chunked_array(chunks).dictionary_encode()  # one dictionary for all chunks
        codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
        numbers = np.unique(numbers * (codes.max() + 1) + codes, return_inverse=True)[1]
    return add_contents(splits, numbers)


def add_contents(splits: Mapping[str, LabelledRows], numbers: np.ndarray) -> dict[str, LabelledRows]:
    """The splits with the column `content`, from the numbers of all their rows in order, (rows of all splits,)."""
    import pyarrow as pa

    ends = np.cumsum([len(rows) for rows in splits.values()])
    return {
        split: replace(rows, rows=rows.rows.append_column("content", pa.array(part)))
        for (split, rows), part in zip(splits.items(), np.split(numbers, ends[:-1]), strict=True)
    }


def count_repeats(rows: LabelledRows, things: str) -> dict[str, int]:
    """Of one split: the rows whose text stood in an earlier row, and the texts (`things`) under several labels."""
    contents, classes = rows.column("content"), rows.classes()
    labelled = np.unique(contents * (classes.max() + 1) + classes) // (classes.max() + 1)  # one per text and label
    distinct, labels = np.unique(labelled, return_counts=True)
    return {"repeated_rows": len(rows) - len(distinct), f"{things}_with_several_labels": int((labels > 1).sum())}


def count_overlaps(splits: Mapping[str, LabelledRows]) -> dict[str, int]:
    """How many rows of the one split have a content that stands in the other, too."""
    contents = {split: rows.column("content") for split, rows in splits.items()}
    pairs = [("test", "train"), ("dev", "train"), ("test", "dev")]
    return {f"{one} in {other}": int(np.isin(contents[one], contents[other]).sum()) for one, other in pairs}
