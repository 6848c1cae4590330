"""Are pictures found, opened, and told apart, whatever says their labels?"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import socket
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from graftkit.config import to_dict
from graftkit.data import ImageDataConfig, Splits, load_pictures
from graftkit.errors import UserError

CLASSES = ("rose", "tulip")


def draw(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A picture with shapes of its own."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encode(seed: int, kind: str = "PNG", **settings) -> bytes:
    file = io.BytesIO()
    draw(seed).save(file, kind, **settings)
    return file.getvalue()


def put(path: Path, content: bytes | str | int) -> Path:
    """A file with this content, or with the picture of this seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = encode(content) if isinstance(content, int) else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def put_classes(folder: Path, rows: int = 4, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """A folder with a folder of pictures for each class."""
    for index in range(rows):
        for number, name in enumerate(classes):
            put(folder / name / f"{index}.png", seed + index * len(classes) + number)
    return folder


def put_splits(root: Path, *names: str) -> Path:
    for number, split in enumerate(names or ("train", "dev", "test")):
        put_classes(root / split, seed=1000 * number)
    return root


def load(path: Path | str, seed: int = 0, **settings) -> Splits:
    return load_pictures(ImageDataConfig(path=str(path), **settings), seed=seed)


def rows_of(rows: datasets.Dataset) -> list[tuple[str, str]]:
    """What lies at the path, or in the bytes, of each row, by its hash, which `sha256` says too; and the label."""
    contents = [Path(row["path"]).read_bytes() if row["bytes"] is None else row["bytes"] for row in rows]
    hashes = [hashlib.sha256(content).hexdigest() for content in contents]
    assert hashes == rows["sha256"][:]
    return list(zip(hashes, rows["label"][:], strict=True))


# the demo


def test_the_demo_is_digits_that_need_no_network(monkeypatch):
    from sklearn.datasets import load_digits

    monkeypatch.setattr(socket, "socket", None)
    splits, again = load("demo"), load("demo", seed=1)
    assert splits.labels == ["5", "6", "7", "8", "9"]
    assert Counter(splits.train["label"][:]) == dict.fromkeys(splits.labels, 30)
    assert Counter(splits.dev["label"][:]) == dict.fromkeys(splits.labels, 20)
    assert len(splits.train) + len(splits.dev) + len(splits.test) == sum(load_digits().target >= 5)
    assert splits.facts["splits"] == again.facts["splits"]
    assert splits.warnings == []
    assert splits.train.column_names == ["id", "path", "bytes", "sha256", "label"]
    assert splits.train[16]["id"] == "train-17"
    scan = Image.open(io.BytesIO(splits.train[0]["bytes"]))
    assert (scan.mode, scan.size, scan.getextrema()) == ("L", (8, 8), (0, 255))
    first = next(image for image, digit in zip(load_digits().images, load_digits().target, strict=True) if digit >= 5)
    assert (np.rint(np.asarray(scan, int) * 16 / 255) == first).all()


def test_the_source_of_the_demo_is_the_other_digits():
    splits = load("demo-source")
    assert splits.labels == ["0", "1", "2", "3", "4"]
    sizes = [len(rows) for rows in (splits.train, splits.dev, splits.test)]
    assert np.round(np.divide(sizes, sum(sizes)), 2).tolist() == [0.7, 0.1, 0.2]
    assert splits.warnings == []
    assert not {*splits.train["sha256"][:]} & {*load("demo").train["sha256"][:]}


# folders


def test_a_folder_for_each_split_and_class(tmp_path):
    put_splits(tmp_path, "train", "val", "test")
    put(tmp_path / "train" / "rose" / "deeper" / "still" / "x.JPG", encode(99, "JPEG"))
    splits = load(tmp_path)
    assert splits.labels == ["rose", "tulip"]
    assert splits.facts["sources"] == {
        "train": str(tmp_path / "train"),
        "dev": str(tmp_path / "val"),
        "test": str(tmp_path / "test"),
    }
    assert splits.train["id"][:] == [f"train-{number}" for number in range(1, 10)]
    assert splits.train["label"][:] == ["rose"] * 5 + ["tulip"] * 4
    assert splits.train["path"][4] == str(tmp_path / "train/rose/deeper/still/x.JPG")
    assert splits.train["bytes"][:] == [None] * 9
    assert rows_of(splits.train)[0] == (hashlib.sha256(encode(0)).hexdigest(), "rose")
    assert [note for note in splits.notes if "column" in note] == []
    assert splits.notes[-1].startswith("opened 25 pictures in ")


def test_a_folder_for_each_class_is_train(tmp_path):
    splits = load(put_classes(tmp_path, rows=20))
    assert splits.facts["sources"] == dict.fromkeys(["train", "dev", "test"], str(tmp_path))
    assert [len(rows) for rows in (splits.train, splits.dev, splits.test)] == [32, 4, 4]
    assert Counter(splits.test["label"][:]) == {"rose": 2, "tulip": 2}


def test_a_class_may_bear_the_name_of_a_split(tmp_path):
    splits = load(put_classes(tmp_path, rows=20, classes=("train", "car")))
    assert splits.labels == ["car", "train"]


def test_what_is_no_picture_by_its_name_is_skipped_and_counted(tmp_path):
    put_splits(tmp_path)
    for name in ("Thumbs.db", ".DS_Store", "README", "._0.png", ".git/x.png"):
        put(tmp_path / "train" / "rose" / name, "x")
    put(tmp_path / "train" / ".ipynb_checkpoints" / "0.png", 7)
    splits = load(tmp_path)
    assert len(splits.train) == 8
    listed = ".db, .png, no suffix"  # not the files' names: the note may be published
    assert f"{tmp_path}/train: skipped 6 that are no pictures by their names: {listed}" in splits.notes


def test_a_class_that_a_split_lacks_shifts_no_other(tmp_path):
    """One label space over the splits, by name: timm numbers the classes of each split from 0."""
    put_classes(tmp_path / "train", classes=("a", "b", "c"))
    put_classes(tmp_path / "dev", classes=("a", "c"), seed=100)
    put_classes(tmp_path / "test", classes=("b", "c"), seed=200)
    splits = load(tmp_path)
    assert splits.labels == ["a", "b", "c"]
    for split in ("dev", "test"):
        for row in getattr(splits, split):
            assert row["label"] == Path(row["path"]).parent.name
    assert splits.facts["splits"]["dev"]["classes"] == {"a": 4, "b": 0, "c": 4}


def test_splits_may_lie_apart(tmp_path):
    for split, seed in (("one", 0), ("two", 100), ("three", 200)):
        put_classes(tmp_path / "somewhere" / split, seed=seed)
    here = tmp_path / "somewhere"
    splits = load("demo", train=str(here / "one"), dev=str(here / "two"), test=str(here / "three"))
    assert splits.facts["path"] is None
    assert splits.facts["sources"]["test"] == str(here / "three")
    assert rows_of(splits.test)[0][0] == hashlib.sha256(encode(200)).hexdigest()


# tables

TABLE = [(f"pictures/{name}.png", CLASSES[seed % 2], seed) for seed, name in enumerate("abcd")]


def write_table(file: Path, rows: list[dict]) -> None:
    names = list(rows[0])
    if file.suffix in (".csv", ".tsv"):
        mark = "," if file.suffix == ".csv" else "\t"
        put(file, "\n".join(mark.join(values) for values in [names, *([row[name] for name in names] for row in rows)]))
    elif file.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
    else:
        put(file, json.dumps(rows) if file.suffix == ".json" else "\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize(
    ("suffix", "column"),
    [
        *[("csv", "image"), ("tsv", "file_name"), ("json", "path"), ("jsonl", "file"), ("parquet", "Filename")],
        *[("csv", "img"), ("csv", "picture")],
    ],
)
def test_tables_name_files_from_where_they_lie(tmp_path, monkeypatch, suffix, column):
    monkeypatch.chdir("/")
    for name, _, seed in TABLE:
        put(tmp_path / name, seed)
    for split in ("train", "dev", "test"):
        write_table(tmp_path / f"{split}.{suffix}", [{column: name, "label": label} for name, label, _ in TABLE])
    splits = load(tmp_path)
    expected = [(hashlib.sha256(encode(seed)).hexdigest(), label) for _, label, seed in TABLE]
    assert rows_of(splits.train) == rows_of(splits.test) == expected
    assert splits.train["path"][:] == [str(tmp_path / name) for name, _, _ in TABLE]
    assert splits.facts["columns"] == {"image": column, "label": "label"}


BYTES = [
    {"img": {"bytes": encode(seed), "path": f"{seed}.png"}, "species": seed % 2, "file_name": "no matter"}
    for seed in range(20)
]
NAMED = datasets.Features(
    {
        "img": datasets.Image(),
        "species": datasets.ClassLabel(names=["tulip", "rose"]),
        "file_name": datasets.Value("string"),
    }
)


def check_bytes(splits: Splits) -> None:
    """Each row has its own bytes and label, also where other rows were cut away."""
    expected = {hashlib.sha256(encode(seed)).hexdigest(): ["tulip", "rose"][seed % 2] for seed in range(20)}
    found = [rows_of(rows) for rows in (splits.train, splits.dev, splits.test)]
    assert all(expected[sha256] == label for rows in found for sha256, label in rows)
    assert [len(rows) for rows in found] == [10, 2, 2]
    assert splits.labels == ["tulip", "rose"]
    assert splits.train["path"][:] == [None] * 10
    assert "image column: 'img' (the only one that holds pictures)" in splits.notes


def test_parquet_with_pictures_of_the_hub(tmp_path):
    datasets.Dataset.from_list(BYTES, NAMED).to_parquet(tmp_path / "all.parquet")
    check_bytes(load(tmp_path / "all.parquet", label="species", max_rows=10))


def test_the_hub(monkeypatch, tmp_path):
    datasets.DatasetDict(train=datasets.Dataset.from_list(BYTES, NAMED)).save_to_disk(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset: datasets.load_from_disk(tmp_path))
    check_bytes(load("owner/name", label="species", max_rows=10))


def test_parquet_with_bytes(tmp_path):
    rows = [{"img": encode(seed), "species": ["tulip", "rose"][seed % 2]} for seed in range(20)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "all.parquet")
    splits = load(tmp_path / "all.parquet", label="species")
    assert sorted(rows_of(splits.train) + rows_of(splits.dev) + rows_of(splits.test)) == sorted(
        (hashlib.sha256(row["img"]).hexdigest(), row["species"]) for row in rows
    )


def test_the_hub_reads_no_file_outside_its_caches(monkeypatch, tmp_path):
    secret = str(put(tmp_path / "secret.png", 1))
    rows = [{"img": {"bytes": None, "path": path}, "species": 0, "file_name": ""} for path in (secret, "x.png")]
    kept = datasets.DatasetDict(train=datasets.Dataset.from_list(BYTES + rows, NAMED))
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset: kept)
    with pytest.raises(UserError) as error:
        load("owner/name", label="species")
    assert str(error.value) == (
        f"owner/name (train): pictures that cannot be read: row 21 ({secret}): outside the data folder; "
        "row 22 (x.png): no such file. Mend the data, or set --data.bad_rows drop"
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UserError, match=r"read: row 22 \(x\.png\): no such file\."):
        load("owner/name", label="species")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_metadata_in_the_folder_of_each_split(tmp_path, suffix):
    for split in ("train", "test"):
        for name, _, seed in TABLE:
            put(tmp_path / split / name, seed + (split == "test") * 10)
        rows = [{"file_name": name, "label": label, "photographer": "me"} for name, label, _ in TABLE]
        write_table(tmp_path / split / f"metadata.{suffix}", rows)
    splits = load(tmp_path, dev="test")
    assert splits.facts["sources"]["test"] == str(tmp_path / "test" / f"metadata.{suffix}")
    assert rows_of(splits.test) == [(hashlib.sha256(encode(seed + 10)).hexdigest(), label) for _, label, seed in TABLE]


def test_metadata_beside_the_folders_of_splits(tmp_path):
    rows = []
    for split in ("test", "train", "validation"):
        for name, label, seed in TABLE:
            put(tmp_path / split / name, seed + 10 * len(split))
            rows.append({"file_name": f"{split}/{name}", "label": label})
    write_table(tmp_path / "metadata.jsonl", rows)
    splits = load(tmp_path)
    assert splits.facts["sources"]["dev"] == f"{tmp_path}/metadata.jsonl (validation)"
    assert splits.test["id"][:] == ["test-1", "test-2", "test-3", "test-4"]
    assert splits.train["id"][:] == ["train-5", "train-6", "train-7", "train-8"]
    assert rows_of(splits.dev)[0] == (hashlib.sha256(encode(100)).hexdigest(), "rose")
    write_table(tmp_path / "metadata.jsonl", [*rows, {"file_name": "pictures/a.png", "label": "rose"}])
    with pytest.raises(UserError, match=r"no folder of a split \(test, train, validation\) in file_name of row 13\."):
        load(tmp_path)


def test_metadata_of_one_folder_is_train(tmp_path):
    rows = [{"file_name": f"{seed}.png", "kind": str(seed % 2)} for seed in range(20)]
    for seed in range(20):
        put(tmp_path / f"{seed}.png", seed)
    write_table(tmp_path / "metadata.csv", rows)
    assert len(load(tmp_path, label="kind").train) == 16


def test_a_table_beside_a_folder_of_its_pictures(tmp_path):
    for name, _, seed in TABLE:
        put(tmp_path / "train" / name.removeprefix("pictures/"), seed)
    rows = [{"image": name.replace("pictures", "train"), "label": label} for name, label, _ in TABLE]
    for split in ("train", "dev", "test"):
        write_table(tmp_path / f"{split}.csv", rows)
    assert load(tmp_path).facts["sources"]["train"] == str(tmp_path / "train.csv")
    put_classes(tmp_path / "train")
    with pytest.raises(UserError, match=r"^'train', 'train\.csv' of .* could each be the train split\. Set --data\."):
        load(tmp_path)
    with pytest.raises(
        UserError, match=r"empty or missing label in rows 1, 2, 3, 4 \(a\.png, b\.png, c\.png, d\.png\)"
    ):
        load(tmp_path, train="train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": "x", "x.png": 1}, "no pictures in the folder {}: it has no folders per class with files that"),
        (
            {"metadata.csv": "file_name,label\nx.png,a\n", "metadata.jsonl": "{}"},
            "{}: metadata.csv and metadata.jsonl both describe it. Keep one of them",
        ),
        (
            {"train.csv": "title,label\nx,a\n"},
            "{}/train.csv: no column is named like an image; found 'title', 'label'.",
        ),
        ({"train.csv": "path,image,label\nx,x,a\n"}, "{}/train.csv: 'path', 'image' could each be the image. Set --"),
        ({"train.json": '[{"image": ["x"], "label": "a"}]'}, "{}/train.json: column 'image' holds list<item: string>"),
        ({"train.csv": "image,label\n,a\nx,b\n"}, "{}/train.csv: empty or missing image in row 1. Mend the data"),
        ({"train.csv": "image,label\nx,a\ny,\n"}, "{}/train.csv: empty or missing label in row 2 (y). Mend the data"),
        ({"a/x.png": 1, "a/y.png": 2}, "{}: only one class, 'a', and nothing to tell it from. Set --data.label or"),
        (
            {"train/a/x.png": 1, "train/b/x.png": 2, "train/b/y.png": 3, "train/z.png": 4},
            "{}/train: empty or missing label in row 4 (z.png). Mend the data",
        ),
        (
            {"a/1.png": 1, "a/2.png": 2, "A/1.png": 3, "A/2.png": 4},
            "{}: labels that differ only by case or blanks: 'A'",
        ),
        (
            {"train/a/1.png": 1, "train/a/2.png": 2, "train/b/1.png": 3},
            "{}/train: a class with one row ('b') in row 3 (b/1.png). Mend the data",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_named(tmp_path, files, message):
    for name, content in files.items():
        put(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert str(error.value).startswith(message.replace("{}", str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_test_label_that_train_never_had(tmp_path):
    put_splits(tmp_path)
    put(tmp_path / "test" / "violet" / "x.png", 7)
    with pytest.raises(
        UserError, match=r"test: a label that train never had \('violet'\) in row 9 \(violet/x\.png\)\. Mend the data"
    ):
        load(tmp_path)
    assert load(tmp_path, bad_rows="drop").facts["dropped"] == {"test": {"a label that train never had": 1}}


def test_a_column_named_twice(tmp_path):
    put(tmp_path / "train.csv", "image,label\nx,a\n")
    with pytest.raises(UserError, match=r"^--data\.image and \.label name the same column twice: label, label$"):
        load(tmp_path, image="label")


# paths that lead elsewhere


def put_table(folder: Path, *others: str) -> Path:
    """A table of 20 good pictures, and of others."""
    for seed in range(20):
        put(folder / f"{seed}.png", seed)
    rows = [f"{seed}.png,{CLASSES[seed % 2]}\n" for seed in range(20)] + [f"{other},rose\n" for other in others]
    return put(folder / "list.csv", "image,label\n" + "".join(rows))


@pytest.mark.parametrize("kind", ["above", "absolute", "link", "linked folder", "linked file of a class"])
def test_no_path_leads_outside_the_data_folder(tmp_path, kind):
    outside, inside = put(tmp_path / "secret" / "x.png", 99), tmp_path / "data"
    inside.mkdir()
    names = {"above": "../secret/x.png", "absolute": str(outside), "link": "link.png", "linked folder": "more/x.png"}
    name = names.get(kind, "rose/x.png")
    put_table(inside, *[name] * (kind in names))
    if kind == "link":
        (inside / name).symlink_to(outside)
    elif kind == "linked folder":
        (inside / "more").symlink_to(outside.parent)
    elif kind not in names:
        shutil.rmtree(inside)
        put_classes(inside, rows=10)
        (inside / name).symlink_to(outside)
    row = 21 if kind in names else 11
    with pytest.raises(UserError) as error:
        load(inside)
    where = inside / "list.csv" if kind in names else inside
    assert str(error.value) == (
        f"{where}: pictures that cannot be read: row {row} ({name}): outside the data folder. "
        "Mend the data, or set --data.bad_rows drop"
    )
    splits = load(inside, bad_rows="drop")
    assert splits.facts["dropped"] == {"train": {"outside the data folder": 1}}
    read = [sha256 for rows in (splits.train, splits.dev, splits.test) for sha256, _ in rows_of(rows)]
    assert len(read) == 20
    assert hashlib.sha256(encode(99)).hexdigest() not in read


@pytest.mark.parametrize(("linked", "message"), [("train", "train is a link"), ("train/rose", "rose is a link")])
def test_linked_folders_are_refused(tmp_path, linked, message):
    put_splits(tmp_path / "data")
    shutil.move(tmp_path / "data" / linked, tmp_path / "elsewhere")
    (tmp_path / "data" / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{message} to another folder"):
        load(tmp_path / "data")
    if linked == "train":  # a folder that the user names is where the data are
        assert load("demo", train=str(tmp_path / "data" / "train")).labels == ["rose", "tulip"]


# pictures that cannot be read

BAD = {
    "cut.jpg": (encode(50, "JPEG")[:-300], "truncated"),
    "empty.png": (b"", "empty file"),
    "text.png": (b"hello", "not an image"),
}


def test_unreadable_pictures_are_named(tmp_path):
    table = put_table(tmp_path, *BAD, "gone.png", "http://x.org/y.png", "empty.png", "text.png")
    for name, (content, _) in BAD.items():
        put(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        load(table)
    assert str(error.value) == (
        f"{table}: pictures that cannot be read: row 21 (cut.jpg): truncated; row 22 (empty.png): empty file; "
        "row 23 (text.png): not an image; row 24 (gone.png): no such file; "
        "row 25 (http://x.org/y.png): an address, not a file and 2 more. Mend the data, or set --data.bad_rows drop"
    )
    splits = load(table, bad_rows="drop")
    reasons = {"truncated": 1, "empty file": 2, "not an image": 2, "no such file": 1, "an address, not a file": 1}
    assert splits.facts["dropped"] == {"train": reasons}
    listed = "1 x truncated, 2 x empty file, 2 x not an image, 1 x no such file, 1 x an address, not a file"
    assert f"dropped from train: {listed}" in splits.notes
    assert len(splits.train) + len(splits.dev) + len(splits.test) == 20


def test_a_bad_picture_among_bytes(tmp_path):
    rows = [{"image": encode(seed), "label": CLASSES[seed % 2]} for seed in range(20)]
    rows[4]["image"], rows[7]["image"] = b"hello", None
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "all.parquet")
    with pytest.raises(UserError, match=r"all\.parquet: empty or missing image in row 8\."):
        load(tmp_path / "all.parquet")
    splits = load(tmp_path / "all.parquet", bad_rows="drop")
    assert splits.facts["dropped"] == {"train": {"empty or missing image": 1, "not an image": 1}}
    expected = sorted((hashlib.sha256(row["image"]).hexdigest(), row["label"]) for row in rows if row["image"])
    found = sorted(rows_of(splits.train) + rows_of(splits.dev) + rows_of(splits.test))
    assert len(found) == 18
    assert {*found} < {*expected}


def test_labels_are_checked_again_when_pictures_were_dropped(tmp_path):
    put_splits(tmp_path)
    for number in (1, 2, 3):
        put(tmp_path / "train" / "tulip" / f"{number}.png", b"hello")
    put_classes(tmp_path / "train", seed=500, classes=("violet", "lily"))
    splits = load(tmp_path, bad_rows="drop")
    assert splits.labels == ["lily", "rose", "tulip", "violet"]  # dev has it, which is warned of
    assert "tulip" in splits.warnings[-1]
    assert splits.facts["dropped"] == {
        "train": {"not an image": 3, "a class with one row": 1},
        "test": {"a label that train never had": 4},
    }


def test_a_split_without_a_picture_that_can_be_read(tmp_path):
    put_splits(tmp_path)
    for file in (tmp_path / "dev").rglob("*.png"):
        put(file, b"hello")
    with pytest.raises(UserError, match=r"dev: no row with an image and a label is left\. Set --data\.dev, \.image or"):
        load(tmp_path, bad_rows="drop")


def test_mistakes_in_labels_are_said_before_pictures_are_opened(tmp_path, monkeypatch):
    put_classes(tmp_path, classes=("rose", "Rose"))
    monkeypatch.setattr("graftkit.data.picture_columns.survey", None)
    with pytest.raises(UserError, match="labels that differ only by case"):
        load(tmp_path)


# the same picture more than once


def test_copies_in_several_splits_are_counted(tmp_path):
    put_splits(tmp_path)
    put(tmp_path / "test" / "rose" / "again.jpg", encode(0, "JPEG", quality=60))
    put(tmp_path / "test" / "rose" / "once more.jpg", encode(0, "JPEG", quality=90))
    put(tmp_path / "dev" / "tulip" / "again.jpg", encode(1, "JPEG", quality=85))
    put(tmp_path / "train" / "tulip" / "again.jpg", encode(0, "JPEG", quality=75))
    splits = load(tmp_path)
    assert splits.facts["repeats_in_train"] == {"repeated_rows": 1, "pictures_with_several_labels": 1}
    assert splits.facts["overlaps"] == {"test in train": 2, "dev in train": 1, "test in dev": 0}
    look = "(perceptual hash)"
    assert splits.warnings == [
        f"1 of 9 rows of train show the same picture as an earlier one {look}",
        "1 pictures of train stand under more than one label",
        f"2 of 10 rows of test show the same picture as one of train {look}, which flatters the scores on test",
        f"1 of 9 rows of dev show the same picture as one of train {look}, which flatters the scores on dev",
    ]


def test_copies_stay_together_when_splits_are_cut(tmp_path):
    put_classes(tmp_path, rows=15)
    for seed in range(30):
        put(tmp_path / CLASSES[seed % 2] / f"copy of {seed}.jpg", encode(seed, "JPEG", quality=80))
    for seed in range(3):
        splits = load(tmp_path, seed=seed)
        assert splits.facts["overlaps"] == {"test in train": 0, "dev in train": 0, "test in dev": 0}
        assert [len(rows) for rows in (splits.train, splits.dev, splits.test)] == [48, 6, 6]


# the record


def test_facts_are_plain_json(tmp_path):
    put_splits(tmp_path)
    put(tmp_path / "train" / "tulip" / "9.png", encode(9))
    facts = load(tmp_path).facts
    said = json.dumps([list(row) for row in rows_of(load(tmp_path).test)])
    assert json.loads(json.dumps(facts)) == facts
    assert facts["splits"]["test"] == {
        "rows": 8,
        "sha256": hashlib.sha256(said.encode()).hexdigest(),
        "classes": {"rose": 4, "tulip": 4},
    }
    side = dict.fromkeys(["0", "5", "50", "95", "100"], 40)
    assert facts["sizes"] == {"train": side, "dev": side, "test": side}
    assert facts["path"] == str(tmp_path)
    assert facts["columns"] == {"image": "image", "label": "label"}


def test_the_config_has_the_names_that_recipes_show():
    assert to_dict(ImageDataConfig()) == {
        **dict.fromkeys(["subset", "train", "dev", "test", "image", "label", "max_rows"]),
        **dict.fromkeys(["seed", "folds", "fold"]),
        "path": "demo",
        "bad_rows": "error",
    }
