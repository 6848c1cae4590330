"""Does `graft predict` answer for pictures, wherever they lie, with the run's own numbers, or else one line why not?"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from conftest import SHAPES, draw, run_recipe

from graftkit import cli, images
from graftkit import predict as verb
from graftkit.data import stream


@pytest.fixture(scope="module")
def runs(tmp_path_factory, image_checkpoint, pictures):
    """Makes a run of a kind, once: its folder."""
    made: dict[str, Path] = {}
    folder = tmp_path_factory.mktemp("runs")
    words = {
        "timm": ("test_efficientnet",),
        "timm-grey": ("test_vit", "--backbone.in_chans", 1, "--image.size", 96),
        "transformers": ("convnext",),
    }

    def make(kind: str) -> Path:
        if kind not in made:
            name, *more = words[kind]
            train = ("--train.epochs", 1, "--train.lr", 5e-3, "--train.batch_size", 8)
            backbone = ("--backbone.name", image_checkpoint(name), *more)
            with contextlib.redirect_stdout(io.StringIO()):
                run_recipe("image_classify", "--data.path", pictures, *train, *backbone, "--run.out", folder / kind)
            made[kind] = folder / kind
        return made[kind]

    return make


@pytest.fixture
def refused(capsys):
    """Runs `graft predict` in this process; the one line that it refuses with, and nothing before it."""

    def call(*words):
        assert cli.main(["predict", *map(str, words)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("error: ")
        return captured.err

    return call


@pytest.fixture
def photos(tmp_path):
    """Three pictures in a folder, and below it: their paths from there, sorted."""
    names = ["a.png", "deep/c.png", "deep/er/b.jpg"]
    for shape, name in zip(SHAPES, names, strict=True):
        place = tmp_path / "photos" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        draw(shape, 1).save(place)
    return tmp_path / "photos", names


def assert_same(answers, expected):
    """The same but for the last digits: which pictures stand in a batch together decides these."""
    assert [answer["label"] for answer in answers] == [other["label"] for other in expected]
    for answer, other in zip(answers, expected, strict=True):
        assert answer["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


# the answers


@pytest.mark.parametrize("kind", ["timm", "timm-grey", "transformers"])
def test_a_run_answers_with_the_numbers_of_its_table(runs, pictures, predict, kind):
    run = runs(kind)
    table = parquet.read_table(run / "predictions-test.parquet").to_pylist()
    paths = parquet.read_table(run / "rows-test.parquet").column("path").to_pylist()
    answers = predict(run, pictures / "test")
    assert [answer["row"] for answer in answers] == list(range(1, 14))
    assert [str((pictures / "test" / answer["file"]).resolve()) for answer in answers] == paths
    expected = np.array([[row[f"probability:{label}"] for label in sorted(SHAPES)] for row in table])
    assert np.ptp(expected, axis=0).max() > 1e-3
    found = np.array([[answer["probabilities"][label] for label in sorted(SHAPES)] for answer in answers])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    for answer, row in zip(answers, table, strict=True):
        assert list(answer) == ["row", "file", "label", "probability", "probabilities"]
        assert answer["label"] == row["prediction"]
        assert (
            answer["probability"] == answer["probabilities"][answer["label"]] == max(answer["probabilities"].values())
        )
    assert predict(run / "model", pictures / "test") == answers


def test_one_picture_and_a_folder_of_them(runs, photos, predict, capsys, monkeypatch):
    folder, names = photos
    for hidden in (".a.png", ".cache/d.png", "notes.txt", "deep/e.heic"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"no picture")
    assert cli.main(["predict", str(runs("timm")), str(folder)]) == 0
    captured = capsys.readouterr()
    answers = [json.loads(line) for line in captured.out.splitlines()]
    assert [(answer["row"], answer["file"]) for answer in answers] == list(enumerate(names, 1))
    skipped = "skipped 4 that are no pictures by their names: .a.png, .cache, deep/e.heic, notes.txt\n"
    assert captured.err == skipped
    for name, answer in zip(names, answers, strict=True):
        [alone] = predict(runs("timm"), folder / name)
        assert (alone["row"], alone["file"]) == (1, str(folder / name))
        assert_same([alone], [answer])
    monkeypatch.chdir(folder)
    assert predict(runs("timm"), "deep/c.png")[0]["file"] == "deep/c.png"


@pytest.mark.parametrize(
    ("name", "words", "content"),
    [
        ("rows.csv", (), "file_name,text\n{0},x\n{1},y\n{2},z\n"),
        ("rows.csv", (), "image;more\n{0};x\n{1};y\n{2};z\n"),
        ("rows.tsv", ("--image", "url"), "url\tpath\n{0}\tx\n{1}\ty\n{2}\tz\n"),
        ("rows.jsonl", (), '{{"image": "{0}", "path": 1}}\n{{"image": "{1}"}}\n{{"image": "{2}"}}\n'),  # as the run's
        ("rows.jsonl", ("--image", "path"), '{{"path": "{0}"}}\n\n{{"path": "{1}"}}\n{{"path": "{2}"}}'),
        ("rows", ("--format", "csv"), "picture\n{0}\n{1}\n{2}\n"),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_names_in_a_table_start_from_its_folder(runs, photos, predict, name, words, content, absolute):
    folder, names = photos
    written = [str(folder / file) for file in names] if absolute else names
    (folder / name).write_text(content.format(*written))
    answers = predict(runs("timm"), folder / name, *words)
    assert [(answer["row"], answer["file"]) for answer in answers] == list(enumerate(written, 1))
    (folder / name).unlink()
    assert_same(answers, predict(runs("timm"), folder))


def test_names_in_lines_start_from_the_working_folder(runs, photos, predict, tmp_path, monkeypatch):
    folder, names = photos
    monkeypatch.chdir(tmp_path)
    expected, lines = predict(runs("timm"), folder), "".join(f"photos/{name}\n" for name in names)
    (folder / "list.txt").write_text(lines)
    answers = predict(runs("timm"), "photos/list.txt")
    assert [answer["file"] for answer in answers] == lines.splitlines()
    assert_same(answers, expected)
    for content, words in ((lines, ()), (f"image\n{lines}", ("--format", "csv"))):
        (tmp_path / "pipe").write_text(content)
        with (tmp_path / "pipe").open() as pipe:
            monkeypatch.setattr("sys.stdin", pipe)
            assert predict(runs("timm"), "-", *words) == answers


def test_csv_output_holds_the_same(runs, photos, predict, tmp_path):
    folder, _ = photos
    expected = predict(runs("timm"), folder)
    assert predict(runs("timm"), folder, "--output", tmp_path / "out.csv") == []
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, answer in zip(rows, expected, strict=True):
        shares = {f"probability:{label}": str(share) for label, share in answer.pop("probabilities").items()}
        assert row == {name: str(value) for name, value in answer.items()} | shares


# many pictures


@pytest.mark.parametrize("cores", [1, 4])
@pytest.mark.parametrize("chunk", [64, 1024])
def test_they_are_decoded_by_batches_and_a_bad_one_ends_it(runs, pictures, tmp_path, monkeypatch, capsys, cores, chunk):
    """With one core the process decodes by itself, with four beside it."""
    monkeypatch.setattr(images, "cores", lambda: cores)
    monkeypatch.setattr(stream, "CHUNK", chunk)
    good = sorted(pictures.glob("*/*/*.jpg"))
    many = tmp_path / "many"
    many.mkdir()
    for number in range(140):
        os.link(good[number % len(good)], many / f"{number:03d}.jpg")
    (many / "130.jpg").unlink()
    (many / "130.jpg").write_bytes(good[0].read_bytes()[:500])
    assert cli.main(["predict", str(runs("timm")), str(many)]) == 2
    captured = capsys.readouterr()
    answers = [json.loads(line) for line in captured.out.splitlines()]
    assert [(answer["row"], answer["file"]) for answer in answers] == [(n + 1, f"{n:03d}.jpg") for n in range(128)]
    assert captured.err == f"error: {many}/130.jpg: truncated; mend or remove it\n"
    assert_same(answers[len(good) : 2 * len(good)], answers[: len(good)])


def test_no_more_names_are_read_than_asked_for(photos, monkeypatch):
    folder, names = photos
    monkeypatch.setattr(stream, "CHUNK", 1)
    chunks = stream.list_pictures(folder, print)
    assert next(chunks) == [(1, {"image": names[0]})]
    (folder / names[2]).rename(folder / names[2].replace("b", "c"))  # that far it has not looked yet
    assert list(chunks) == [[(2, {"image": names[1]})], [(3, {"image": "deep/er/c.jpg"})]]


# refusals


@pytest.mark.parametrize(
    ("name", "content", "words", "expected"),
    [
        ("a.csv", "image\na.png\n\"\"\n", (), "a.csv: column 'image', row 2: empty or missing; every row needs the "),
        ("a.jsonl", '{"image": {"bytes": "x"}}\n', (), "row 1: holds a dict, and the name of a file is one string"),
        ("a.jsonl", "[1]\n", (), "row 1 is no JSON object, such as {'image': 'the name of a file'}"),
        ("a.txt", "a.png\nhttps://a.b/c.png\n", (), "row 2: https://a.b/c.png is an address, and pictures are read"),
        ("a.csv", "path,file\na,b\n", (), "which column is the image cannot be told; found 'path', 'file'. Set"),
        ("a.csv", "text\na\n", (), "which column is the image cannot be told; found 'text'. Set --image"),
        ("a.csv", "path\na\n", ("--image", "url"), "no column 'url'; found 'path'. Set --image"),
        ("a.csv", "path\na\n", ("--text", "path"), "--text path does nothing"),
        ("a.csv", "path\na\n", ("--text_pair", "path"), "--text_pair path does nothing"),
        ("a.heic", "a", (), "does not end in .csv, .tsv, .jsonl, .txt, .parquet. Set --format"),
        ("a.png", "a", ("--image", "path"), "--image path does nothing"),
        ("sub/a.txt", "", ("--image", "path"), "--image path does nothing"),
        ("sub/a.txt", "", (), "no pictures in the folder"),
        ("sub/a.txt", "", ("--format", "csv"), "cannot be read: Is a directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_known_before_the_model_is_loaded(
    runs, refused, tmp_path, monkeypatch, name, content, words, expected
):
    monkeypatch.setattr(verb, "read_labels", lambda located: pytest.fail("loaded a model for a bad file"))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    assert expected in refused(runs("timm"), tmp_path / name.partition("/")[0], *words)


def test_places_without_a_picture(runs, refused, photos, tmp_path, monkeypatch):
    folder, _ = photos
    assert f"{tmp_path}/no.png cannot be read: no such file" in refused(runs("timm"), tmp_path / "no.png")
    (tmp_path / "a.csv").write_text("image\nphotos/no.png\n")
    assert f"{tmp_path}/photos/no.png: no such file; mend or remove it" in refused(runs("timm"), tmp_path / "a.csv")
    (tmp_path / "a.png").write_bytes(b"GIF")
    assert f"{tmp_path}/a.png: not an image; mend or remove it" in refused(runs("timm"), tmp_path / "a.png")
    (folder / "link").symlink_to(folder / "deep")
    assert "link is a link to another folder" in refused(runs("timm"), folder)
    (folder / "link").unlink()
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"")
    assert "'\\udcff.png': the name of this file is not UTF-8. Rename it" in refused(runs("timm"), folder)
    monkeypatch.setattr(
        os, "scandir", lambda place: (_ for _ in ()).throw(PermissionError(13, "Permission denied", place))
    )
    assert f"{folder} cannot be read: Permission denied" in refused(runs("timm"), folder)


def test_a_model_that_is_not_whole(runs, refused, photos, tmp_path):
    folder, _ = photos
    copy = shutil.copytree(runs("timm") / "model", tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"label_names": ["disc", "square"]}))
    assert "names 2 labels in its config.json (label_names), and its head has 3" in refused(copy, folder)
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "model.safetensors").unlink()
    assert "no weights in safetensors" in refused(copy, folder)
