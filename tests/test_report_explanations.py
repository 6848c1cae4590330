"""Does the chapter say what the table of explanations holds, whatever it holds?"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from test_report import LABELS, NASTY, chapter, make_run, report_of, tables_of

from graftkit.errors import UserError
from graftkit.report.explanations import TABLE, Explanation, measure, read_explanations, write_explanations
from graftkit.report.markdown import escape
from graftkit.report.reading import read_folder

HEADING = "Why did it say that?"


def text(id="test-0", label="refund", prediction="card_lost", other=None, **change) -> Explanation:
    """A row whose four words add up to 1."""
    words = [("please", 0.75), (" ", None), ("my", 0.01), (" ", None), ("card", 0.5), ("!", -0.26)]
    wrong = label != prediction
    given = {"sure": 0.8, "answer": 1.5, "baseline": 0.5, "rest": 0.0, "gap": 0.002, "steps": 64, "texts": [words]}
    return Explanation(id, label, prediction, other or (label if wrong else "a|b"), **(given | change))


def picture(id="test-1", **change) -> Explanation:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (160, 200), "grey").save(file, "JPEG")
    heat = [[0.0] * 6 for _ in range(6)]
    heat[0][0], heat[5][5] = 2.0, -0.4
    given = {"sure": 0.7, "answer": 2.2, "picture": file.getvalue(), "heat": heat}
    return Explanation(id, "refund", "card_lost", "refund", **(given | change))


def run_with(folder: Path, *found: Explanation, **change) -> Path:
    make_run(folder, **change)
    write_explanations(folder, found)
    return folder


def page_of(folder: Path) -> str:
    report_of(folder)
    return (folder / "report.html").read_text(encoding="utf-8").split('<section id="why')[1].split("</section>")[0]


@pytest.mark.parametrize("one", [text(), text(texts=[[("a", 1.0)], [("b", 0.0), ("\n", None)]], cut=True), picture()])
def test_what_is_written_is_read(tmp_path, one):
    write_explanations(tmp_path, [one])
    assert read_explanations(tmp_path) == [one]
    assert [path.name for path in tmp_path.iterdir()] == [TABLE]


def test_no_table_is_none_and_no_such_table_one_line(tmp_path):
    assert read_explanations(tmp_path) is None
    (tmp_path / TABLE).write_bytes(b"no table")
    with pytest.raises(UserError, match="is no table of explanations; make it again: graft report RUN --explain"):
        read_explanations(tmp_path)
    (tmp_path / TABLE).write_bytes((make_run(tmp_path / "run") / "predictions-test.parquet").read_bytes())
    with pytest.raises(UserError, match="is no table of explanations"):
        read_explanations(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "`graft report RUN --explain` adds"),
        ({"rows_left_out": True}, "the texts of the data are not in this copy"),
        ({"recipe": "evaluate"}, "an evaluation holds no model"),
    ],
)
def test_a_missing_one_is_named(tmp_path, change, words):
    report = report_of(make_run(tmp_path, **change))
    assert words in chapter(report, HEADING)
    assert "explanations" not in json.loads((tmp_path / "metrics.json").read_text())


def test_words_are_told_by_the_side_that_they_push_to(tmp_path):
    """In an error what pushed towards the given class pushed against the true one; in a right answer for it."""
    wrong, right = text(), text("test-1", "card_lost", "card_lost")
    said = chapter(report_of(run_with(tmp_path, wrong, right)), HEADING)
    _, _, error = tables_of(said)[0]
    _, _, unsure = tables_of(said)[1]
    assert error == ["test-0", "refund", "card_lost", "80%", "! (+0.26)", "please (−0.75), card (−0.50), my (−0.01)"]
    assert unsure[4:] == ["please (+0.75), card (+0.50), my (+0.01)", "! (−0.26)"]
    assert unsure[2] == "card_lost (before a&#124;b)"
    assert "within 1%" in said
    assert "What this does not say" in said


def test_a_padding_token_is_no_markup(tmp_path):
    folder = run_with(tmp_path, text(), explanations={"baseline": "<pad>[x]"})
    assert "replaced by &lt;pad&gt;\\[x\\]." in report_of(folder)
    assert "replaced by &lt;pad&gt;[x]." in (folder / "report.html").read_text()


def test_a_gap_is_stated(tmp_path):
    found = run_with(tmp_path, text(), text("test-2", gap=0.2, steps=512))
    assert "to 20% at worst" in chapter(report_of(found), HEADING)
    assert json.loads((found / "metrics.json").read_text())["explanations"]["largest_gap"] == pytest.approx(0.2)


def test_the_gap_of_next_to_no_change_is_one_of_logits():
    assert text(answer=0.501, gap=0.001).gap_share == pytest.approx(0.01)
    assert text(answer=2.5, gap=0.002).gap_share == pytest.approx(0.001)


def test_the_page_shades_words_and_gives_their_numbers(tmp_path):
    page = page_of(run_with(tmp_path, text(cut=True)))
    assert '<u class="wrong5" title="−0.75">please</u> my <u class="wrong4" title="−0.50">card</u>' in page
    assert '<span class="right2" title="+0.26">!</span>' in page  # "my" is too weak to be shaded
    assert "the model read no further" in page
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", page.split("<tbody>")[1])
    assert cells[:6] == ["please", "−0.75", "card_<wbr>lost", "card", "−0.50", "card_<wbr>lost"]
    assert cells[-3:] == ["my", "−0.01", "card_<wbr>lost"]


def test_pictures_have_their_map_beside_them(tmp_path):
    folder = run_with(tmp_path, picture(), task="image-classification")
    page = page_of(folder)
    assert page.count("<image ") == page.count("<use ") == 1
    assert page.count("<rect ") == 2
    assert page.count("<line ") == 1  # the part that pushed away from the true class is crossed
    assert 'style="fill:rgb(var(--wrong) / 0.70)"' in page
    _, _, line = tables_of(chapter((folder / "report.md").read_text(), HEADING))[0]
    assert line[4:] == ["lower right (+0.10)", "upper left (−0.50)"]


def test_no_text_or_label_breaks_the_page(tmp_path):
    nasty = [(words, score) for score in (0.5, 0.001, None) for words in NASTY]  # shaded, too weak for that, no word
    folder = run_with(tmp_path, *(text(f"test-{i}", "<b>bold</b>", "a|b", texts=[nasty, nasty]) for i in range(2)))
    page, report = page_of(folder), (folder / "report.md").read_text()
    assert "<script>" not in page
    assert "<b>bold" not in page
    assert {len(line) for block in tables_of(chapter(report, HEADING)) for line in block} <= {6, 3}
    assert escape("<b>bold</b>") in report


def test_words_that_often_mislead_are_listed(tmp_path):
    """Only those of at least two errors, however they are written; signs, and rows that were right, do not count."""
    other = [("Please", 0.5), (" ", None), ("lost", 0.2), ("!", 0.4)]
    rows = [text(), text("test-1", texts=[other]), text("test-2", "card_lost", "card_lost")]
    folder = run_with(tmp_path, *rows)
    assert tables_of(chapter(report_of(folder), HEADING))[2][2:] == [["please", "2", "2"]]
    assert "<td" in page_of(folder).split("Words that push towards wrong answers</h3>")[1]
    write_explanations(folder, rows[:1])
    assert "Words that push" not in report_of(folder)


def test_no_word_of_the_data_gets_into_the_metrics(tmp_path):
    folder = run_with(tmp_path, text(texts=[[("veryprivate", 1.0)]]))
    assert "veryprivate" in report_of(folder)
    assert "veryprivate" not in (folder / "metrics.json").read_text()
    assert measure(read_folder(folder, ("test",)))["rows"] == 1


def test_a_text_without_a_single_push_and_an_even_picture(tmp_path):
    none = text(answer=0.5, gap=0.0, texts=[[("a", 0.0)]])
    assert '<p dir="auto"' in page_of(run_with(tmp_path / "one", none))
    assert tables_of(chapter(report_of(tmp_path / "one"), HEADING))[0][2][4:] == ["–", "–"]
    even = picture(heat=[[0.0] * 4] * 4)
    assert "<rect" not in page_of(run_with(tmp_path / "two", even, task="image-classification"))


def test_the_same_folder_makes_the_same_bytes(tmp_path):
    pages = []
    for name in ("one", "two"):
        folder = run_with(tmp_path / name, text(), picture("test-3"), labels=LABELS)
        report_of(folder)
        pages.append((folder / TABLE).read_bytes() + (folder / "report.html").read_bytes())
    assert pages[0] == pages[1]
