"""The embedded data set is what its card says."""

from __future__ import annotations

import csv
import json
from collections import Counter
from importlib.resources import files
from itertools import combinations

import pytest

from graftkit.metrics.tagging import malformed, spans

SPLITS = ("train", "dev", "test")


def read(split: str) -> list[dict[str, str]]:
    with files("graftkit.data").joinpath("support", f"{split}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shingles(text: str, size: int) -> set[tuple[str, ...]]:
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def overlap(a: set, b: set) -> float:
    return len(a & b) / len(a | b)


def test_eight_balanced_intents_in_fixed_splits():
    counts = {split: Counter(row["label"] for row in read(split)) for split in SPLITS}
    assert {split: set(count.values()) for split, count in counts.items()} == {"train": {84}, "dev": {20}, "test": {32}}
    assert len(counts["train"]) == 8
    assert counts["train"].keys() == counts["dev"].keys() == counts["test"].keys()


@pytest.mark.parametrize("size", [1, 3])
def test_no_near_duplicates_between_splits(size):
    """Jaccard overlap of the messages' shingles: of single words below 0.75, of three words below 0.3."""
    limit = {1: 0.75, 3: 0.3}[size]
    sets = {split: [(shingles(row["text"], size), row["text"]) for row in read(split)] for split in SPLITS}
    for a, b in combinations(SPLITS, 2):
        for first, text in sets[a]:
            for second, other in sets[b]:
                assert overlap(first, second) < limit, (text, other)


def test_the_check_would_see_a_near_duplicate():
    text = "Where is my parcel, it was due on Monday and nothing came"
    assert overlap(shingles(text, 3), shingles(text.replace("Monday", "Tuesday"), 3)) > 0.3


def test_messages_are_written_not_generated():
    rows = [row for split in SPLITS for row in read(split)]
    lengths = sorted(len(row["text"].split()) for row in rows)
    assert lengths[len(lengths) // 10] <= 5
    assert lengths[9 * len(lengths) // 10] >= 38
    openings = Counter(tuple(row["text"].lower().split()[:3]) for row in rows)
    assert max(openings.values()) <= 5
    assert len({row["text"] for row in rows}) == len(rows) == 1088


def read_tagged(split: str) -> list[dict[str, list[str]]]:
    with files("graftkit.data").joinpath("tagged", f"{split}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_tagged_messages_are_as_their_card_says():
    card = files("graftkit.data").joinpath("tagged", "README.md").read_text(encoding="utf-8")
    counts = {split: Counter() for split in SPLITS}
    for split, count in counts.items():
        for row in read_tagged(split):
            assert len(row["words"]) == len(row["tags"])
            assert all(word.strip() for word in row["words"])
            assert malformed(row["tags"], "BIO") == []
            count.update(span.type for span in spans(row["tags"], "BIO"))
    for type in counts["train"]:
        (line,) = (line for line in card.splitlines() if line.startswith(f"| {type} |"))
        assert line.endswith(" | ".join(["", *(str(count[type]) for count in counts.values())]) + " |")
    messages = [" ".join(row["words"]).lower() for split in SPLITS for row in read_tagged(split)]
    assert len(set(messages)) == len(messages) == 391
    sets = {split: [shingles(" ".join(row["words"]), 3) for row in read_tagged(split)] for split in SPLITS}
    for a, b in combinations(SPLITS, 2):
        assert all(overlap(one, other) < 0.3 for one in sets[a] for other in sets[b])
