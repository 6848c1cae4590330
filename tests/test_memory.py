"""300,000 rows fit: the tokenised form is not held."""

from __future__ import annotations

import psutil
import pytest
from conftest import texts, write_csv

from graftkit.backbone import BackboneConfig
from graftkit.batches import epoch_updates
from graftkit.data import DataConfig, load_splits
from graftkit.tasks.text_classification import TextClassification
from graftkit.text import load_tokenizer

ROWS = 300_000


@pytest.mark.slow
def test_lengths_are_all_that_is_kept_of_the_tokens(tmp_path, checkpoint):
    path = write_csv(tmp_path / "rows.csv", [(f"{text} {i}", label) for i, (text, label) in enumerate(texts(ROWS))])
    splits = load_splits(DataConfig(path=str(path)), 0)
    tokenizer = load_tokenizer(BackboneConfig(name=str(checkpoint("bert"))))
    task = TextClassification(tokenizer, splits.labels)
    task.lengths(splits.train.select(range(5000)))  # warm up
    before = psutil.Process().memory_info().rss
    lengths = task.lengths(splits.train)
    updates = epoch_updates(len(splits.train), lengths, 32, 0, 0)
    grown = psutil.Process().memory_info().rss - before
    tokens = int(lengths.sum())
    assert len(splits.train) >= 0.79 * ROWS
    assert sum(map(len, updates)) == len(splits.train)
    assert grown < 8 * tokens  # the ids alone, as Python keeps them in lists; with two more columns, three times that
    assert grown < 60e6
