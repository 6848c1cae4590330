"""Documents: text files, folders of them, and tables."""

from __future__ import annotations

import pytest
from conftest import write_csv

from graftkit.data.documents import DocumentsConfig, load_documents
from graftkit.errors import UserError

POEM = "one\ntwo\n\n  \nthree\r\n\r\n\nfour\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


@pytest.fixture
def split_files(tmp_path):
    for split, text in (("train", POEM), ("dev", "five\nsix"), ("test", "\n\nseven\n\neight")):
        write(tmp_path / "files" / f"{split}.txt", text)
    return tmp_path / "files"


@pytest.fixture
def books(tmp_path):
    for i in range(30):
        write(tmp_path / "books" / f"part{i % 2}" / f"{i:02d}.txt", f"book {i}\n\nthe end of {i}")
    return tmp_path / "books"


def load(path, **settings):
    return load_documents(DocumentsConfig(path=str(path), **settings), 0)


@pytest.mark.parametrize(
    ("documents", "train", "dev"),
    [
        ("auto", ["one\ntwo", "three", "four"], ["five\nsix"]),
        ("paragraph", ["one\ntwo", "three", "four"], ["five\nsix"]),
        ("line", ["one", "two", "three", "four"], ["five", "six"]),
        ("file", ["one\ntwo\n\n  \nthree\n\n\nfour"], ["five\nsix"]),
    ],
)
def test_what_is_a_document_in_a_text_file(split_files, documents, train, dev):
    splits = load(split_files, documents=documents)
    assert splits.train["text"][:] == train
    assert splits.dev["text"][:] == dev
    assert splits.train["id"][0] == "train-1"
    assert splits.labels == []
    assert any("documents, " in note for note in splits.notes)


def test_a_folder_of_text_files_is_one_document_each(books):
    splits = load(books)
    every = [text for split in (splits.train, splits.dev, splits.test) for text in split["text"]]
    assert sorted(every) == sorted(f"book {i}\n\nthe end of {i}" for i in range(30))
    assert any("30 documents in 30 text files, a file each" in note for note in splits.notes)
    assert load(books, documents="paragraph").facts["splits"]["train"]["rows"] > len(splits.train)


def test_paragraphs_of_a_file_can_be_kept_together(books):
    splits = load_documents(DocumentsConfig(path=str(books), documents="paragraph"), 0, ("file",), "file")
    parts = [set(split["column:file"]) for split in (splits.train, splits.dev, splits.test)]
    assert all(not one & other for one in parts for other in parts if one is not other)


def test_folders_named_like_splits(tmp_path):
    for split in ("train", "validation", "test"):
        for i in range(3):
            write(tmp_path / split / f"{i}.txt", f"{split} {i}")
    splits = load(tmp_path)
    assert splits.dev["text"][:] == [f"validation {i}" for i in range(3)]
    assert "cut_from_train" not in splits.facts or not splits.facts["cut_from_train"]


def test_tables_with_a_column_of_texts(tmp_path):
    path = write_csv(tmp_path / "rows.csv", [(f"text {i}", f"class {i}") for i in range(30)], ("body", "class"))
    assert len(load(path).train) == 24
    assert load(path, text="class", bad_rows="drop").facts["columns"] == {"text": "class"}


def test_the_demo_is_there():
    splits = load("demo")
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (672, 160, 256)
    assert splits.train.column_names == ["id", "text"]
    assert load("demo").facts == splits.facts


def test_repeats_are_warned_of(split_files):
    write(split_files / "test.txt", "three\n\nnew")
    assert load(split_files).warnings == ["1 of 2 rows of test also stand in train, which flatters the scores on test"]


@pytest.mark.parametrize(
    ("files", "settings", "words"),
    [
        ({"a.txt": "a", "b.txt": " \n", "c.txt": ""}, {}, "an empty document (first: b.txt) in rows 2, 3. Mend"),
        ({"rows.csv": "text\nhello\n  \n"}, {}, "rows.csv: an empty document in row 2. Mend"),
        ({"rows.csv": "text\nhello\n"}, {"documents": "line"}, "--data.documents line: says what a document is"),
        ({"train.txt": " \n\n"}, {}, "train.txt is empty: it has no text"),
        ({"a.md": "a"}, {}, "no data in the folder"),
        ({"a.txt": "a", "b.txt": "b"}, {}, "2 rows are too few to cut dev and test from"),
        ({"a.txt": "a"}, {"train": "a.pdf"}, "no such file: a.pdf"),
        ({"a.pdf": "a", "dev.txt": "b"}, {"train": "a.pdf"}, "cannot read this kind of file; its name must end"),
    ],
)  # fmt: skip
def test_bad_input_is_an_error_of_one_line(tmp_path, files, settings, words):
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(UserError) as refused:
        load(tmp_path, **settings)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"good\nbad \xff\n")
    with pytest.raises(UserError, match=r"train\.txt: bytes that are not UTF-8 in line 2\. Save the file as UTF-8"):
        load(tmp_path / "train.txt")


def test_empty_documents_are_dropped_and_counted(tmp_path):
    for i in range(30):
        write(tmp_path / f"{i:02d}.txt", "" if i == 3 else f"text {i}")
    splits = load(tmp_path, bad_rows="drop")
    assert splits.facts["dropped"] == {"train": {"an empty document (first: 03.txt)": 1}}
