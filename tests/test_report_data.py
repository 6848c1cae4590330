"""Does the report say what is wrong with the rows?"""

from __future__ import annotations

import pytest
from test_report import make_run

from graftkit.report import sections
from graftkit.report.reading import read_run


def data_of(tmp_path, **data) -> str:
    make_run(tmp_path, rows=20)
    run = read_run(tmp_path)
    return sections.data(run | {"data": run["data"] | data})


@pytest.mark.parametrize(
    ("repeats", "words"),
    [
        ({"repeated_rows": 0, "texts_with_several_labels": 0}, "Repeats in train: none\n"),
        ({"repeated_rows": 1, "texts_with_several_labels": 0}, "Repeats in train: 1 row\n"),
        ({"repeated_rows": 1234, "texts_with_several_labels": 2}, "1,234 rows; 2 texts with more than one label\n"),
        (None, "Repeats in train: not recorded\n"),
    ],
)
def test_repeats_are_told(tmp_path, repeats, words):
    assert words in data_of(tmp_path, repeats_in_train=repeats)


@pytest.mark.parametrize(
    ("overlaps", "words"),
    [
        ({"test in train": 0, "dev in train": 0}, "Rows that stand in two splits: none\n"),
        (
            {"test in train": 5, "dev in train": 0, "test in dev": 1},
            "5 of test (25%) also in train, 1 of test (5%) also",
        ),
        (None, "Rows that stand in two splits: not recorded\n"),
    ],
)
def test_overlaps_are_told(tmp_path, overlaps, words):
    assert words in data_of(tmp_path, overlaps=overlaps)


def test_lengths_and_what_was_cut_are_told(tmp_path):
    data = data_of(tmp_path)
    assert "50% of the texts have at most 14, the longest has 880; the model reads at most 256; 12 longer texts" in data


def test_an_evaluation_has_no_train_rows_to_repeat(tmp_path):
    run = read_run(make_run(tmp_path, rows=20)) | {"recipe": "evaluate"}
    assert "Repeats" not in sections.data(run)
    assert "two splits" not in sections.data(run)
