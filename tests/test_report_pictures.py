"""Does the report of a picture classifier speak of pictures, and show the worst errors?"""

from __future__ import annotations

import json
import re
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest
from test_report import chapter, make_records, make_run, report_of, tables_of

from graftkit.report import write_report
from graftkit.report.pictures import file_name
from graftkit.report.tables import read_predictions, read_rows, write_predictions, write_rows

LABELS = ["daisy", "a|b]", "wild_rose", "<b>lily</b>"]
SCRATCH = "the same network trained from scratch on the same rows"
IMAGES = {
    "size": [224, 160],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "augment": "random resized crop and flip, RandAugment",
    "workers": 2,
    "cache": True,
}


def draw(words: str, hue: int) -> bytes:
    """A small picture as JPEG."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (128, 96), f"hsl({hue % 360}, 60%, 70%)")
    ImageDraw.Draw(picture).text((8, 8), words, fill="black")
    file = BytesIO()
    picture.save(file, "JPEG")
    return file.getvalue()


def make_picture_run(folder: Path, *, rows=60, lead=1.0, keep_rows=True, paths=True, blank=(), rename=str, **change):
    """A run's folder as a run on pictures leaves it; the rows in `blank` have no thumbnail."""
    run = {"task": "image-classification", "lengths": None, "images": IMAGES, **change}
    make_run(folder, rows=rows, labels=LABELS, **run)
    for seed, split in enumerate(("dev", "test")):
        records = [{**record, "id": rename(record["id"])} for record in make_records(rows, LABELS, seed, lead)]
        write_predictions(folder, split, records, LABELS)
        contents = []
        for i, record in enumerate(records):
            thumbnail = None if record["id"] in blank else draw(record["id"], i * 37)
            path = f"{split}/{record['label']}/{i}.jpg" if paths else None
            hash = sha256(record["id"].encode()).hexdigest()
            kept = {"path": path, "thumbnail": thumbnail} if keep_rows else {}
            contents.append({"id": record["id"], "sha256": hash, **kept})
        write_rows(folder, split, contents)
    return folder


def worst_of(folder: Path) -> list[dict]:
    _, records = read_predictions(folder, "test")
    wrong = [record for record in records if record["label"] != record["prediction"]]
    return sorted(wrong, key=lambda record: -record["loss"])[:20]


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "report").glob("*"))


# --- words -------------------------------------------------------------------


def test_the_report_speaks_of_pictures(tmp_path):
    sizes = {"train": {"0": 33, "50": 500, "100": 1200}}
    report = report_of(make_picture_run(tmp_path, data={"columns": {}, "sizes": sizes}))
    assert report.startswith("# Image classification with some-model\n")
    assert "this model sorts pictures into 4 classes" in report
    assert "It says nothing of pictures of another kind" in report
    assert (
        "Short side of the training pictures: the smallest has 33, 50% have at most 500, the largest has 1,200 pixels"
        in chapter(report, "Data")
    )
    assert "- Columns: none\n" in chapter(report, "Data")
    for line in [
        "Pictures: 224 x 160 pixels (height x width); resized by bicubic interpolation; cut from the middle "
        "(crop_pct 0.875); mean 0.485 / 0.456 / 0.406; standard deviation 0.229 / 0.224 / 0.225",
        "Changes to the pictures while training: random resized crop and flip, RandAugment",
        "Reading of the pictures: by 2 worker processes; resized once and kept on disk",
    ]:
        assert f"- {line}\n" in chapter(report, "Model and training")
    assert not re.search(r"\btexts?\b|token", report.replace("text_classify", ""), flags=re.IGNORECASE)


def test_the_report_of_texts_does_not_speak_of_pictures(tmp_path):
    assert "picture" not in report_of(make_run(tmp_path)).lower()
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (None, "Pictures: not recorded"),
        ({"size": [28, 28], "mean": [0.5], "std": None}, "Pictures: 28 x 28 pixels (height x width); mean 0.5"),
        (
            {"workers": 0, "cache": False},
            "Reading of the pictures: by each process itself; each epoch decodes them again",
        ),
        ({"cache": True}, "Reading of the pictures: resized once and kept on disk"),
        ({"augment": "none"}, "Changes to the pictures while training: none"),
    ],
)
def test_what_was_not_recorded_of_pictures_is_left_out(tmp_path, images, line):
    report = report_of(make_picture_run(tmp_path, rows=8, images=images))
    assert f"- {line}\n" in chapter(report, "Model and training")


# --- worst errors ------------------------------------------------------------


def test_the_worst_errors_are_a_grid_of_pictures(tmp_path):
    report = report_of(make_picture_run(tmp_path, lead=0.5))
    worst = worst_of(tmp_path)
    assert len(worst) == 20
    assert "Below each picture: its true class" in chapter(report, "Worst errors")
    grid, where = tables_of(chapter(report, "Worst errors"))
    assert {len(cells) for cells in grid} == {4}
    assert len(grid) == 2 + 5 * 2
    pictures = [cell for cells in grid[2::2] for cell in cells]
    captions = [cell for cells in grid[3::2] for cell in cells]
    thumbnails = {row["id"]: row["thumbnail"] for row in read_rows(tmp_path, "test")}
    escaped = dict(zip(LABELS, ["daisy", "a&#124;b\\]", "wild_rose", "&lt;b&gt;lily&lt;/b&gt;"], strict=True))
    for place, record in enumerate(worst):
        true, given = escaped[record["label"]], escaped[record["prediction"]]
        name = f"worst-{place + 1:02d}-{record['id']}.jpg"
        assert pictures[place] == f"![{true}, taken for {given}](report/{name})"
        assert (tmp_path / "report" / name).read_bytes() == thumbnails[record["id"]]
        sure = f"{record['probabilities'].max():.0%}"
        assert captions[place] == f"**{true}** taken for **{given}**, {sure} sure (row {record['id']})"
        assert where[2 + place] == [record["id"], f"test/{true}/{record['id'].removeprefix('test-')}.jpg"]
    assert len(files_of(tmp_path)) == 20


@pytest.mark.parametrize(("rows", "shape"), [(1, (1, 1)), (3, (1, 3)), (4, (1, 4)), (6, (2, 4))])
def test_a_few_errors_make_a_small_grid(tmp_path, rows, shape):
    make_picture_run(tmp_path, rows=rows, lead=30.0, paths=False)
    all_wrong = [
        {**record, "prediction": LABELS[LABELS.index(record["label"]) - 1]}
        for record in make_records(rows, LABELS, seed=1, lead=30.0)
    ]
    write_predictions(tmp_path, "test", all_wrong, LABELS)
    (grid,) = tables_of(chapter(report_of(tmp_path), "Worst errors"))
    assert (len(grid) - 2) // 2 == shape[0]
    assert {len(cells) for cells in grid} == {shape[1]}
    assert len(files_of(tmp_path)) == rows


def test_a_row_without_a_thumbnail_leaves_its_place_empty(tmp_path):
    first = worst_of(make_picture_run(tmp_path))[0]["id"]
    report = report_of(make_picture_run(tmp_path, blank=[first]))
    grid = tables_of(chapter(report, "Worst errors"))[0]
    assert grid[2][0] == "*no picture*"
    assert first in grid[3][0]
    assert grid[2][1].startswith("![")
    assert not [name for name in files_of(tmp_path) if name.startswith("worst-01-")]


def test_pictures_that_were_not_kept_are_named(tmp_path):
    report = report_of(make_picture_run(tmp_path, keep_rows=False))
    errors = chapter(report, "Worst errors")
    assert "The run kept no pictures in its folder, so they are named here, not shown." in errors
    lines = tables_of(errors)[0]
    assert lines[0] == ["Picture", "True class", "Predicted", "How sure", "Row"]
    assert [cells[4] for cells in lines[2:]] == [record["id"] for record in worst_of(tmp_path)]
    assert lines[2][0] == f"*not kept* (SHA-256 {sha256(lines[2][4].encode()).hexdigest()[:12]}…)"
    assert not (tmp_path / "report").exists()


def test_pictures_of_an_earlier_report_are_replaced_and_nothing_else(tmp_path):
    report_of(make_picture_run(tmp_path))
    others = ["notes.jpg", "worst.jpg", "worst-1-mine.jpg", "worst-01-my own.jpg", "worst-01-mine.jpg.bak"]
    for name in [*others, "worst-20-gone.jpg"]:
        (tmp_path / "report" / name).write_bytes(b"other")
    report_of(make_picture_run(tmp_path, lead=2.0))
    shown = {f"worst-{place:02d}-{r['id']}.jpg" for place, r in enumerate(worst_of(tmp_path), start=1)}
    assert set(files_of(tmp_path)) == shown | set(others)
    report_of(make_picture_run(tmp_path, keep_rows=False))
    assert files_of(tmp_path) == sorted(others)


@pytest.mark.parametrize(
    ("id", "name"),
    [
        ("test-17", "worst-07-test-17.jpg"),
        ("../../etc/passwd", "worst-07--etc-passwd.jpg"),
        ("C:\\a b(1).png", "worst-07-C-a-b-1-png.jpg"),
        ("маргаритка", "worst-07--.jpg"),
        ("x" * 300, f"worst-07-{'x' * 60}.jpg"),
    ],
)
def test_file_names_are_safe(id, name):
    assert file_name(7, id) == name


def test_rows_with_any_name_get_their_pictures(tmp_path):
    report = report_of(make_picture_run(tmp_path, rename=lambda id: f"../{id} (ü|).jpg"))
    links = re.findall(r"\]\((.*?)\)", chapter(report, "Worst errors"))
    assert sorted(links) == [f"report/{name}" for name in files_of(tmp_path)]
    assert len(links) == len(worst_of(tmp_path))
    for table in tables_of(report):
        assert {len(cells) for cells in table} == {len(table[0])}


def test_markdown_readers_see_the_pictures(tmp_path):
    markdown_it = pytest.importorskip("markdown_it")
    from html import unescape

    html = markdown_it.MarkdownIt().enable("table").render(report_of(make_picture_run(tmp_path)))
    seen = re.findall(r'<td><img src="report/(.*?)" alt="(.*?)"', html)
    worst = worst_of(tmp_path)
    assert [unescape(alt) for _, alt in seen] == [f"{r['label']}, taken for {r['prediction']}" for r in worst]
    assert sorted(name for name, _ in seen) == files_of(tmp_path)


# --- comparison --------------------------------------------------------------


def compare(value: float, name: str = "macro_f1", **change) -> list[dict]:
    headline = {"name": name, "value": value, "low": value - 0.06, "high": value + 0.06}
    return [{"name": SCRATCH, "headline": headline | change}]


def test_training_from_scratch_stands_beside_the_score(tmp_path):
    metrics = write_report(make_picture_run(tmp_path, lead=2.0, compared=compare(0.61)))
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f", where 1 is perfect; {SCRATCH} reaches 0.61 (0.55 to 0.67). It gives" in report.split("\n\n")[1]
    lines = tables_of(chapter(report, "Scores"))[0]
    assert lines[2][0] == "**macro F1**"
    assert lines[3][:4] == [f"macro F1 of {SCRATCH}", "0.61", "0.55 to 0.67", "–"]
    assert "is no worse" not in report
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert SCRATCH not in (tmp_path / "metrics.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("compared", "words"),
    [
        (compare(0.61, "accuracy"), f"{SCRATCH} reaches an accuracy of 0.61 (0.55 to 0.67)."),
        (compare(0.61, method="constant"), f"{SCRATCH} reaches 0.61."),
        (compare(1.0), f"**Watch out:** {SCRATCH} is no worse"),
        (compare(0.5) + compare(0.4), f"; {SCRATCH} reaches 0.50 (0.44 to 0.56); {SCRATCH} reaches 0.40"),
    ],
)
def test_a_comparison_says_what_it_can(tmp_path, compared, words):
    opening = report_of(make_picture_run(tmp_path, lead=30.0, compared=compared)).split("\n\n")[1]
    assert words in opening
