"""Is report.html whole by itself, safe whatever the data say, and does it show what report.md says?"""

from __future__ import annotations

import base64
import itertools
import json
import math
import os
import re
import shutil
from collections import Counter
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from test_report import LABELS, NASTY, chapter, make_records, make_run, tables_of
from test_report_pictures import make_picture_run
from test_slices import make_sliced

from graftkit.errors import UserError
from graftkit.metrics import classification
from graftkit.report import charts, error_browser, write_report
from graftkit.report.curves import POINTS
from graftkit.report.figures import PAIRS
from graftkit.report.probabilities import bins
from graftkit.report.tables import read_predictions, read_rows, write_predictions, write_rows

VOID = {"meta", "img", "input", "br", "wbr", "link", "hr"}
MANY = [f"class_{i}" for i in range(77)]


class Page(HTMLParser):
    """What an HTML reader makes of a page: `elements` are (tag, attributes, words inside), parents before children."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[list] = []
        self.open: list[list] = []
        self.feed(source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"an attribute of {tag} twice"
        self.elements.append([tag, dict(attributes), ""])
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, self.getpos()

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, *tags: str, **attributes: str) -> list[list]:
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [e for e in self.elements if e[0] in tags and wanted.items() <= e[1].items()]

    def words(self, **attributes: str) -> str:
        """The words of the one element with these attributes, its blanks made single."""
        (found,) = self.all(*{e[0] for e in self.elements}, **attributes)
        return " ".join(found[2].split())


def source_of(folder: Path) -> str:
    write_report(folder)
    return (folder / "report.html").read_text(encoding="utf-8")


def page_of(folder: Path) -> Page:
    return Page(source_of(folder))


def make_log(folder: Path, *, updates: int = 100, epochs: int = 5) -> Path:
    """A log as training leaves it: a loss for each update, and the scores on dev after each epoch."""
    events = []
    for update in range(1, updates + 1):
        events.append({"update": update, "loss": 2 / update, "norm": 1.0, "lr": 1e-4})
        if update % (updates // epochs) == 0:
            events.append({"update": update, "dev": {"macro_f1": 1 - 10 / (update + 10), "log_loss": 3 / update}})
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return folder


def make_evaluation(folder: Path) -> Path:
    make_run(folder, recipe="evaluate")
    for name in ("predictions-dev.parquet", "rows-dev.parquet"):
        (folder / name).unlink()
    return folder


RUNS = {
    "texts": lambda folder: make_log(make_run(folder, lead=1.0)),
    "pairs of texts": lambda folder: make_run(folder, lead=1.0, pair=True),
    "pictures": lambda folder: make_log(make_picture_run(folder, blank=("test-3", "test-5"))),
    "77 classes": lambda folder: make_run(folder, rows=400, labels=MANY),
    "no rows": lambda folder: make_run(folder, lead=1.0, keep_rows=False),
    "no rows here": lambda folder: make_run(folder, lead=1.0, keep_rows=False, rows_left_out=True),
    "no errors": lambda folder: make_run(folder, lead=30.0),
    "an evaluation": make_evaluation,
    "slices": make_sliced,
    "a single row": lambda folder: make_run(folder, rows=1),
}


# --- the page ----------------------------------------------------------------


@pytest.mark.parametrize("kind", RUNS)
def test_the_page_is_whole_and_can_be_found_through(tmp_path, kind):
    page = page_of(RUNS[kind](tmp_path))
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes, _ in page.elements:
        for name in ("aria-labelledby", "href"):
            assert {id.removeprefix("#") for id in attributes.get(name, "").split()} <= set(ids), (tag, attributes)
    assert [len(page.all(tag)) for tag in ("html", "head", "h1", "main", "nav", "header", "footer")] == [1] * 7
    assert page.all("html")[0][1] == {"lang": "en"}
    assert next(e for e in page.elements if e[0] == "a")[2] == "Skip to the report"
    headings = [int(e[0][1]) for e in page.elements if re.fullmatch("h[1-6]", e[0])]
    assert all(below <= above + 1 for above, below in itertools.pairwise(headings))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(attributes.get("scope") in ("col", "row") for _, attributes, _ in page.all("th"))
    assert all(words.strip() for _, attributes, words in page.all("th") if attributes["scope"] == "col")
    assert all(attributes["role"] == "img" for _, attributes, _ in page.all("svg"))
    assert all(attributes.get("alt") for _, attributes, _ in page.all("img"))
    assert all(attributes["aria-label"] for _, attributes, _ in page.all("div", role="region"))


@pytest.mark.parametrize("kind", RUNS)
def test_nothing_is_fetched_and_one_script_runs(tmp_path, kind):
    source = source_of(RUNS[kind](tmp_path))
    page = Page(source)
    for tag, attributes, _ in page.elements:
        assert not {"srcset", "action", "data", "poster", "background"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
        assert re.match("data:image/jpeg;base64,|$", attributes.get("src", "")), tag
        assert re.match("#|$", attributes.get("href", "")), tag
    assert not re.search(r"url\(|@import|expression\(", source[source.index("<style>") : source.index("</style>")])
    assert not page.all("link", "iframe", "object", "embed", "base", "form")
    ((_, _, script),) = page.all("script")
    (rules,) = page.all("meta", http_equiv="Content-Security-Policy")
    assert rules[1]["content"].startswith("default-src 'none'; ")
    assert base64.b64encode(sha256(script.encode()).digest()).decode() in rules[1]["content"]
    assert not re.search(r"fetch|XMLHttpRequest|innerHTML|eval|import\(", script)


def test_no_text_or_label_can_break_the_page(tmp_path):
    hostile = ["</td></table><img src=x onerror=alert(1)>", "--></script><script>alert(2)</script>", "\u202e\x00&amp;"]
    labels = [*LABELS[:2], "</option><svg onload=alert(3)>", "![x](http://x.y/z.png)"]
    words = {"warnings": ["<b>|`", "[x](javascript:alert(4))"], "command": "echo ``` </code></pre><script>"}
    kinds = {"nasty": (labels, [*NASTY, *hostile], words), "plain": ("wxyz", "abcdefghij", {"warnings": ["a", "b"]})}
    pages = {}
    for name, (names, texts, change) in kinds.items():
        folder = make_log(make_run(tmp_path / name, lead=-1.0, labels=list(names), texts=texts, **change))
        for split in ("dev", "test"):  # the same predictions, whatever the classes are called
            rows = [row | {"id": f"{row['id']} {texts[-1]}"} for row in read_rows(folder, split)]
            write_rows(folder, split, rows)
            _, records = read_predictions(folder, split)
            write_predictions(folder, split, [r | {"id": f"{r['id']} {texts[-1]}"} for r in records], list(names))
        pages[name] = page_of(folder)
    kinds_of = {name: Counter(e[0] for e in page.elements if e[0] != "wbr") for name, page in pages.items()}
    assert kinds_of["nasty"] == kinds_of["plain"]
    cells = {words for _, _, words in pages["nasty"].all("td")}
    shown = [" ".join("".join(c if c.isprintable() else " " for c in text).split()) for text in [*NASTY, *hostile]]
    assert {*shown, *labels} <= cells
    options = {words.rpartition(" (")[0] for _, _, words in pages["nasty"].all("option")}
    assert set(labels) <= options


def test_the_page_says_what_the_markdown_says(tmp_path):
    page = page_of(RUNS["texts"](tmp_path))
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert [words for _, _, words in page.all("h2")] == re.findall("^## (.*)", report, flags=re.MULTILINE)
    assert [words for _, _, words in page.all("h1")] == [report.splitlines()[0].removeprefix("# ")]
    opening = " ".join(" ".join(words.split()) for _, _, words in page.all("header"))
    assert opening.endswith(page.words(class_="caution"))
    assert opening.startswith(report.splitlines()[0].removeprefix("# ") + "On 120 test rows")
    cells = Counter(" ".join(words.split()) for _, _, words in page.all("td", "th"))
    for name in ("Data", "Scores", "Classes", "Confusions", "Time and memory", "How this was made"):
        for table in tables_of(chapter(report, name)):
            for line in table[:1] + table[2:]:
                for cell in line:
                    words = re.sub(r"\\(.)|\*\*", r"\1", cell).replace("&#124;", "|")
                    assert cells[words.replace("&lt;", "<").replace("&gt;", ">")] or not cell, (name, cell)


def test_the_same_folder_makes_the_same_bytes(tmp_path):
    first = source_of(RUNS["pictures"](tmp_path / "one"))
    assert source_of(tmp_path / "one") == first
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere")
    assert source_of(tmp_path / "elsewhere") == first
    assert not list(tmp_path.rglob("*.writing"))


def test_a_record_with_nothing_but_the_task_makes_a_page(tmp_path):
    make_log(make_run(tmp_path))
    (tmp_path / "run.json").write_text('{"task": "text-classification"}')
    page = page_of(tmp_path)
    assert page.words(id="score").startswith("macro F1 on dev by update")


# --- charts ------------------------------------------------------------------


def table_in(page: Page, id: str) -> list[list[str]]:
    """The cells of the tables inside the element with this id, line by line."""
    start = next(place for place, e in enumerate(page.elements) if e[1].get("id") == id)
    lines: list[list[str]] = []
    for tag, _, words in page.elements[start + 1 :]:
        if tag in ("figure", "section"):
            break
        if tag == "tr":
            lines.append([])
        elif tag in ("td", "th"):
            lines[-1].append(" ".join(words.split()))
    return lines


def test_learning_curves_show_the_log_and_the_weights_kept(tmp_path):
    page = page_of(make_log(make_run(tmp_path)))
    loss = table_in(page, "loss")
    assert loss[0] == ["Update", "Split", "Loss"]
    assert loss[1:3] == [["1", "train", "2"], ["2", "train", "1"]]
    assert loss[101:] == [[str(u), "dev", f"{3 / u:.3g}"] for u in (20, 40, 60, 80, 100)]
    score = table_in(page, "score")
    assert score[0] == ["Epoch", "macro F1"]
    assert [line[0] for line in score[1:]] == ["1", "2", "3", "4 (kept)", "5"]
    assert [line[1] for line in score[1:]] == ["0.67", "0.80", "0.86", "0.89", "0.91"]
    assert source_of(tmp_path).split('id="score"')[1].split("</figure>")[0].count('class="ring"') == 1


def test_long_curves_are_thinned(tmp_path):
    page = page_of(make_log(make_run(tmp_path, training={"updates": 6000, "epochs": 600}), updates=6000, epochs=600))
    assert "each point of train is the mean of 40 updates" in page.words(id="loss")
    lines = table_in(page, "loss")[1:]
    assert [line[1] for line in lines].count("train") == POINTS
    assert [line[1] for line in lines].count("dev") <= POINTS + 1
    assert table_in(page, "score")[-1][0] == "600"


@pytest.mark.parametrize("log", [None, "", '{"update": 1, "loss": 2.0}\n'])
def test_without_a_course_there_is_no_curve(tmp_path, log):
    make_run(tmp_path)
    if log is not None:
        (tmp_path / "log.jsonl").write_text(log)
    assert "How it learnt" not in source_of(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"), [('{"update": 101, "lo', "no JSON"), ("[1]", "no event"), ('{"loss": 1.0}', "no event")]
)
def test_a_broken_log_is_one_line(tmp_path, line, message):
    make_log(make_run(tmp_path))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(UserError, match=rf"log\.jsonl, line 106 is {message}") as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)


def test_the_bins_are_those_of_the_calibration_error():
    arrays = classification.arrays(make_records(500), LABELS)
    found = bins(*arrays, classification.BINS)
    assert sum(one.rows for one in found) == 500
    error = sum(one.rows * abs(one.stated - one.right) for one in found) / 500
    assert error == pytest.approx(classification.calibration_error(*arrays), abs=1e-12)
    assert all(one.low < one.stated <= one.high and one.least <= one.right <= one.most for one in found)


def test_the_reliability_diagram_has_its_numbers(tmp_path):
    page = page_of(make_run(tmp_path))
    lines = table_in(page, "reliability")
    assert lines[0] == ["Stated probability", "Rows", "On average", "Were right", "95% interval"]
    assert sum(int(line[1]) for line in lines[1:]) == 120
    assert len(page.all("rect", class_="bar")) == len(lines) - 1


def test_few_classes_are_a_shaded_table_and_many_a_drawing_with_its_list(tmp_path):
    few = page_of(make_run(tmp_path / "few", labels=MANY[:40], rows=400, lead=1.0))
    assert not few.all("figure", id="matrix")
    shades = [
        attributes["class"]
        for _, attributes, _ in few.all("td")
        if re.match("right|wrong", attributes.get("class", ""))
    ]
    assert len(shades) == 1600
    assert all(words.strip() == "·" for _, a, words in few.all("td") if a.get("class", "").startswith("wrong0"))
    many = page_of(make_run(tmp_path / "many", labels=MANY, rows=400, lead=1.0))
    assert not [a for _, a, _ in many.all("td") if a.get("class", "").startswith("wrong")]
    counts = np.array(json.loads((tmp_path / "many/metrics.json").read_text())["test"]["confusion"]["counts"])
    lines = table_in(many, "matrix")[1:]
    assert {(t.split()[0], g.split()[0]): int(rows) for t, g, rows, _ in lines} == {
        (str(t + 1), str(g + 1)): int(counts[t, g]) for t, g in np.argwhere(counts) if t != g
    }
    drawn = sum(a.get("d", "").count("M") for _, a, _ in many.all("path") if re.match("right|wrong", a["class"]))
    assert drawn == np.count_nonzero(counts)
    assert f"The confused pairs ({len(lines)})" in many.words(id="matrix")


def test_more_classes_than_can_be_named_stay_small(tmp_path):
    labels = [f"class {i}" for i in range(400)]
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, (400, 400))
    drawing = charts.matrix("matrix", "Confusion matrix", counts, labels)
    assert drawing.count("M") <= charts.CELLS + 400 + 100
    assert len(drawing) < 600_000
    page = page_of(make_run(tmp_path, labels=labels, rows=3000, lead=0.0))
    assert len(table_in(page, "matrix")) == PAIRS + 1
    assert f"the {PAIRS:,} most frequent of" in page.words(id="matrix")
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (0.88, 0.93, (0.88, 0.89, 0.9, 0.91, 0.92, 0.93)),
        (0, 846, (0, 200, 400, 600, 800)),
    ],
)
def test_ticks(low, high, expected):
    assert tuple(charts.ticks(low, high)[0]) == expected


@pytest.mark.parametrize(
    ("values", "most", "expected"),
    [
        ([0.882, 0.927], 1.0, (0.88, 0.93)),
        ([0.95, 1.0], 1.0, (0.95, 1.0)),
        ([0.5, 0.5], 1.0, (0.5, 0.51)),
        ([0, 4.3], math.inf, (0, 5)),
    ],
)
def test_around(values, most, expected):
    assert charts.around(values, most=most) == expected


# --- errors ------------------------------------------------------------------


def errors_in(page: Page) -> list[tuple[dict, list[str]]]:
    """The attributes and cells of each line of the error browser."""
    lines = table_in(page, "errors")[1:]
    attributes = [a for _, a, _ in page.all("tr") if "data-t" in a]
    return list(zip(attributes, lines, strict=True))


def test_all_errors_are_there_the_worst_first(tmp_path):
    page = page_of(make_run(tmp_path, lead=0.5, texts=[f"text {i}" for i in range(120)]))
    labels, records = read_predictions(tmp_path, "test")
    wrong = sorted((r for r in records if r["label"] != r["prediction"]), key=lambda record: -record["loss"])
    found = errors_in(page)
    assert [cells[-1] for _, cells in found] == [record["id"] for record in wrong]
    assert [cells[0] for _, cells in found] == [record["id"].replace("test-", "text ") for record in wrong]
    for (attributes, cells), record in zip(found, wrong, strict=True):
        assert cells[1:3] == [record["label"], record["prediction"]]
        assert [labels[int(attributes[name])] for name in ("data-t", "data-g")] == cells[1:3]
        assert int(attributes["data-s"]) == round(100 * float(record["probabilities"].max()))
    assert f"{len(wrong)} test rows were given a wrong class; the highest loss comes first" in page.words(
        id="worst-errors"
    )
    listed = tables_of(chapter((tmp_path / "report.md").read_text(), "Worst errors"))[0][2:]
    assert [cells[4] for cells in listed] == [cells[-1] for _, cells in found[:20]]


@pytest.mark.parametrize(("text", "rows"), [("ä" * 2000, 4000), ("x", 8000)])
def test_errors_stop_at_their_limit_and_say_so(tmp_path, text, rows):
    page = page_of(make_run(tmp_path, rows=rows, lead=-1.0, texts=[text]))
    found = errors_in(page)
    _, records = read_predictions(tmp_path, "test")
    wrong = sum(record["label"] != record["prediction"] for record in records)
    assert 500 < len(found) <= error_browser.MOST
    assert len(found) < wrong
    assert f"{wrong:,} test rows were given a wrong class; these {len(found):,} have the highest loss" in page.words(
        id="worst-errors"
    )
    size = (tmp_path / "report.html").stat().st_size
    assert size < error_browser.CONTENT + 150_000 < 3_000_000


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no rows", "The run kept no texts in its folder, so their rows are named by id."),
        ("no rows here", "The texts are not in this copy of the run, so their rows are named by id."),
    ],
)
def test_rows_that_are_not_there_are_named_by_id(tmp_path, kind, words):
    page = page_of(RUNS[kind](tmp_path))
    assert words in page.words(id="worst-errors")
    assert table_in(page, "errors")[0] == ["True class", "Predicted", "How sure", "Gave the true class", "Row"]


def test_rows_that_were_left_out_are_not_shown_though_they_lie_there(tmp_path):
    assert "secret" not in source_of(make_run(tmp_path, lead=0.0, texts=["secret"], rows_left_out=True))


def test_an_empty_text_is_a_text(tmp_path):
    page = page_of(make_run(tmp_path, lead=0.0, texts=[""]))
    assert {cells[0] for _, cells in errors_in(page)} == {""}
    assert "not kept" not in page.words(id="worst-errors")


def test_errors_are_shown_as_pictures(tmp_path):
    page = page_of(make_picture_run(tmp_path, blank=("test-3", "test-5")))
    rows = {row["id"]: row for row in read_rows(tmp_path, "test")}
    shown = {a["alt"].removeprefix("Picture of row "): a["src"] for _, a, _ in page.all("img")}
    wrong = {cells[-1] for _, cells in errors_in(page)}
    assert set(shown) == {id for id in wrong if rows[id]["thumbnail"]}
    for id, source in shown.items():
        assert base64.b64decode(source.removeprefix("data:image/jpeg;base64,")) == rows[id]["thumbnail"]
    assert all(rows[cells[-1]]["path"] in cells[0] for _, cells in errors_in(page))


def test_pictures_that_were_not_kept_are_named_by_their_paths(tmp_path):
    everything = {f"test-{i}" for i in range(60)}
    page = page_of(make_picture_run(tmp_path, blank=everything))
    assert "The run kept no pictures in its folder, so they are named here, not shown." in page.words(id="worst-errors")
    assert all(cells[0].endswith(".jpg") for _, cells in errors_in(page))


def test_without_errors_there_is_nothing_to_browse(tmp_path):
    page = page_of(RUNS["no errors"](tmp_path))
    assert page.words(id="worst-errors") == "Worst errors None: all test rows were given the right class."
    assert not page.all("input", "select", "button")


# --- in a browser ------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'graftkit[browser]'")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """A function that opens the report of a run; at the end, nothing may have been complained of or fetched."""
    complaints, asked, contexts = [], [], []

    def go(kind: str, *, width: int = 1200, **options):
        source_of(RUNS[kind](tmp_path))
        contexts.append(chromium.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: (
                complaints.append(request.url)
                if "report.html" not in request.url and not request.url.startswith("data:")
                else None
            ),
        )
        page.goto((tmp_path / "report.html").as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in asked if not url.startswith("data:")} <= {(tmp_path / "report.html").as_uri()}


def visible(page) -> list[str]:
    return page.eval_on_selector_all("#errors tbody tr:not([hidden])", "rows => rows.map(row => row.textContent)")


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["texts", "pictures", "no rows"])
def test_filters_and_search_find_errors(opened, kind):
    page = opened(kind)
    rows = page.locator("#errors tbody tr").count()
    assert len(visible(page)) == min(rows, 50)
    page.select_option("#truth", "1")
    found = visible(page)
    assert 0 < len(found) < rows
    assert page.locator("#errors tbody tr[data-t='1']:visible").count() == len(found)
    assert page.inner_text("#found") == f"{len(found)} of {rows} fit; {len(found)} shown"
    page.select_option("#given", "0")
    assert page.locator("#errors tbody tr[data-t='1'][data-g='0']:visible").count() == len(visible(page)) < len(found)
    page.click("#clear")
    assert page.evaluate("document.activeElement.id") == "search"
    page.select_option("#sure", "50 to 70")
    sure = page.eval_on_selector_all("#errors tbody tr:not([hidden])", "rows => rows.map(row => +row.dataset.s)")
    assert sure
    assert all(50 <= one < 70 for one in sure)
    page.click("#clear")
    last = page.eval_on_selector("#errors tbody tr:last-child th", "cell => cell.textContent")
    page.fill("#search", last.upper())
    assert [text for text in visible(page) if not text.endswith(last)] == [
        t for t in visible(page) if last + "" not in t
    ]
    assert any(text.endswith(last) for text in visible(page))
    page.fill("#search", "nothing has this")
    assert visible(page) == []
    assert page.inner_text("#found") == f"0 of {rows} fit; 0 shown"


@pytest.mark.browser
def test_errors_are_filtered_by_slice(opened):
    page = opened("slices", width=390)
    rows = page.locator("#errors tbody tr").count()
    choices = page.eval_on_selector_all("#slice option", "all => all.map(one => [one.value, one.textContent])")
    assert choices[0] == ["", "any"]
    assert any("“<b>web|”" in words for _, words in choices)
    page.focus("#slice")
    for value, words in choices[1:]:
        page.keyboard.press("ArrowDown")
        assert page.input_value("#slice") == value
        inside = page.eval_on_selector_all(
            "#errors tbody tr", f"all => all.filter(r => r.matches('[data-c~=\"{value}\"]')).length"
        )
        assert words.endswith(f" ({inside})")
        assert 0 < inside < rows
        assert page.inner_text("#found").startswith(f"{inside} of {rows} fit; ")
        assert len(visible(page)) == min(inside, 50)
    page.select_option("#slice", "0")
    inside = len(visible(page))
    page.select_option("#truth", "1")
    both = page.locator("#errors tbody tr[data-t='1'][data-c~='0']:visible").count()
    assert 0 < both == len(visible(page)) < inside
    page.click("#clear")
    assert page.input_value("#slice") == ""
    assert len(visible(page)) == min(rows, 50)
    assert page.get_by_label("Slice", exact=False).first.is_visible()


@pytest.mark.browser
def test_more_errors_are_shown_when_asked_for(opened):
    page = opened("77 classes")
    rows = page.locator("#errors tbody tr").count()
    assert rows > 100
    page.focus("#more")
    for shown in range(100, rows + 50, 50):
        page.keyboard.press("Enter")
        assert len(visible(page)) == min(shown, rows)
    assert page.locator("#more").is_hidden()
    assert page.evaluate("document.activeElement !== document.body")


@pytest.mark.browser
def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened):
    page = opened("texts")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "report"
    reached, unseen = [], []
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "() => { const e = document.activeElement; return [e.id || e.localName, getComputedStyle(e).outlineStyle] }"
        )
        reached.append(name)
        if outline == "none" and name != "body":
            unseen.append(name)
    assert {"summary", "search", "truth", "given", "sure"} <= set(reached)
    assert unseen == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390, 800, 1500])
@pytest.mark.parametrize("kind", ["texts", "pictures", "77 classes"])
def test_the_page_never_scrolls_sideways(opened, kind, width):
    page = opened(kind, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.eval_on_selector_all("details", "all => all.forEach(part => part.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def _contrast(one: str, other: str) -> float:
    """How far two colours stand apart, 1 to 21 (WCAG 2)."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_the_page_in_light_and_dark(opened, scheme):
    page = opened("texts", color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (_contrast(paper, "rgb(255, 255, 255)") < 1.5) == (scheme == "light")
    for selector in ("p", "nav a", "figcaption", "#errors tbody th", "summary", "footer p", ".controls label"):
        assert _contrast(page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color"), paper) >= 4.5
    for selector in ("svg text", "svg .quiet"):
        assert _contrast(page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).fill"), paper) >= 4.5
    for selector in ("svg .first", "svg .second"):
        assert _contrast(page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).stroke"), paper) >= 3


@pytest.mark.browser
def test_without_scripts_all_errors_are_a_plain_table(opened):
    page = opened("77 classes", java_script_enabled=False)
    rows = page.locator("#errors tbody tr")
    assert rows.count() > 100
    assert all(row.is_visible() for row in rows.all()[::40])
    assert page.locator("#search").is_hidden()
    assert page.locator("#more").is_hidden()
