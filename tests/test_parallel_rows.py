"""Which pairs of texts go where, and which are refused?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from graftkit.data.parallel_rows import DEMO_FOLDER, ParallelDataConfig, load_parallel
from graftkit.errors import UserError

ROWS = [("a red apple", "ein roter Apfel"), ("a pear", "eine Birne"), ("a plum", "eine Pflaume"), ("two", "zwei")]


def jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def folder(place: Path, make=lambda one, other: {"source": one, "target": other}, **splits) -> Path:
    """Train, dev and test of the same four pairs, or what is given of them."""
    for split in ("train", "dev", "test"):
        jsonl(place / f"{split}.jsonl", [make(*pair) for pair in splits.get(split, ROWS)])
    return place


def load(**settings):
    return load_parallel(ParallelDataConfig(**{name: str(value) for name, value in settings.items()}), 0)


def refused(**settings) -> str:
    with pytest.raises(UserError) as error:
        load(**settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_pairs_are_read_by_the_names_of_their_columns(tmp_path):
    splits = load(path=folder(tmp_path))
    assert splits.train.column_names == ["id", "source", "target"]
    assert splits.train[0] == {"id": "train-1", "source": "a red apple", "target": "ein roter Apfel"}
    assert splits.labels == []
    assert splits.facts["columns"] == {"source": "source", "target": "target"}
    assert splits.facts["splits"]["train"]["rows"] == 4
    assert "classes" not in splits.facts["splits"]["train"]


def test_languages_of_a_translation_column(tmp_path):
    place = folder(tmp_path, lambda one, other: {"id": 1, "translation": {"de": other, "en": one}})
    splits = load(path=place, source="de", target="en")
    assert splits.dev[1] == {"id": "dev-2", "source": "eine Birne", "target": "a pear"}
    assert splits.facts["columns"] == {"source": "de", "target": "en"}
    assert "found 'id', 'de', 'en'. Set --data.source" in refused(path=place)
    assert "no column 'fr' in" in refused(path=place, source="fr", target="en")


def test_a_language_with_the_name_of_a_column_keeps_its_own(tmp_path):
    place = folder(tmp_path, lambda one, other: {"de": "no text", "translation": {"de": other, "en": one}})
    splits = load(path=place, source="translation.de", target="en")
    assert splits.train["source"][1] == "eine Birne"


def test_the_hubs_own_kind_of_translation_column(tmp_path):
    from datasets import Dataset, Features, Translation

    features = Features({"translation": Translation(languages=["de", "en"])})
    rows = [{"translation": {"de": other, "en": one}} for one, other in ROWS]
    for split in ("train", "dev", "test"):
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    assert load(path=tmp_path, source="en", target="de").test["target"][0] == "ein roter Apfel"


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (("", "nichts"), "empty or missing source in row 5"),
        (("nothing", " "), "empty or missing target in row 5"),
        (("nothing", None), "empty or missing target in row 5"),
    ],
)
def test_empty_texts_are_errors_or_dropped(tmp_path, pair, words):
    place = folder(tmp_path, train=[*ROWS, pair])
    assert words in refused(path=place)
    splits = load(path=place, bad_rows="drop")
    assert len(splits.train) == 4
    assert splits.facts["dropped"] == {"train": {words.removesuffix(" in row 5"): 1}}


def test_missing_columns_are_named(tmp_path):
    place = folder(tmp_path, lambda one, other: {"english": one, "german": other})
    assert "no column is named like a source; found 'english', 'german'. Set --data.source" in refused(path=place)
    assert "no column 'french' in" in refused(path=place, source="english", target="french")
    assert "name the same column twice" in refused(path=place, source="english", target="english")
    assert load(path=place, source="english", target="german").train["target"][3] == "zwei"


def test_rows_of_one_source_are_cut_together_and_overlaps_are_told(tmp_path):
    rows = [{"source": f"source {i // 2}", "target": f"target {i}"} for i in range(80)]
    splits = load(path=jsonl(tmp_path / "all.jsonl", rows))
    sources = [set(getattr(splits, split)["source"]) for split in ("train", "dev", "test")]
    assert sum(map(len, sources)) == 40
    assert len(splits.test) == 8
    (tmp_path / "given").mkdir()
    given = load(path=folder(tmp_path / "given"))
    assert "4 of 4 rows of test have a source that also stands in train, which flatters the scores on test" in (
        given.warnings
    )


def test_a_prefix_is_noted_and_one_that_says_nothing_is_refused(tmp_path):
    place = folder(tmp_path)
    splits = load(path=place, prefix="translate: ")
    assert splits.facts["prefix"] == "translate: "
    assert splits.train["source"][0] == "a red apple"  # the task puts it there, so that tables show what people wrote
    assert "before each source: 'translate: '" in splits.notes
    assert "blanks alone tell the model nothing" in refused(path=place, prefix="  ")
    twice = load(path=place, prefix="a ")
    assert any("3 of 4 sources of train begin with --data.prefix 'a ' already" in one for one in twice.warnings)


def test_the_fingerprint_follows_source_and_target(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one = load(path=folder(tmp_path / "one"))
    other = load(path=folder(tmp_path / "other", train=[*ROWS[:3], ("two", "zwo")]))
    prints = [splits.facts["splits"]["train"]["sha256"] for splits in (one, other)]
    assert prints[0] != prints[1]
    assert one.facts["splits"]["dev"]["sha256"] == prints[0]


def test_the_demo_is_what_its_rules_write_and_holds_out_its_test(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import spoken_data

    spoken_data.main(tmp_path)
    for split in ("train", "dev", "test"):
        assert (tmp_path / f"{split}.csv").read_bytes() == (DEMO_FOLDER / f"{split}.csv").read_bytes()
    sys.modules.pop("spoken_data")
    splits = load()
    assert [len(rows) for rows in (splits.train, splits.dev, splits.test)] == [1200, 100, 200]
    assert splits.warnings == []
    said = "six fifteen in the evening"
    assert any(said in text for text in splits.test["source"])
    assert not any(said in text for text in [*splits.train["source"], *splits.dev["source"]])
