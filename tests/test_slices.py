"""Are slices that fail more often found, others hardly ever, and does every column come through that one can name?"""

from __future__ import annotations

import datetime
import json
import shutil
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import draw, run_recipe, texts, write_csv
from test_compare import alter, by_chance
from test_report import LABELS, chapter, make_run, report_of, tables_of
from test_report_pictures import make_picture_run

from graftkit import cli
from graftkit.data import DataConfig, ImageDataConfig, load_splits
from graftkit.data.picture_rows import load_pictures, load_test_pictures
from graftkit.errors import UserError
from graftkit.metrics import slices
from graftkit.metrics.intervals import clopper_pearson
from graftkit.pictures import picture_measures
from graftkit.report import write_report
from graftkit.report.slices import words
from graftkit.report.tables import read_predictions, write_measures, write_predictions

# --- cuts --------------------------------------------------------------------


def parts(found):
    """What each slice is, and how many rows it has."""
    return [(one.kind, one.values, int(one.inside.sum())) for one in found]


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (range(100), [(0, 19, 20), (20, 39, 20), (40, 59, 20), (60, 79, 20), (80, 99, 20)]),
        ([*range(50), *range(53)], [(0, 10, 22), (11, 21, 22), (22, 31, 20), (32, 41, 20), (42, 52, 19)]),
        (range(45), [(0, 22, 23), (23, 44, 22)]),
        ([0] * 60 + list(range(1, 41)), [(0, 0, 60), (1, 40, 40)]),
        ([0] * 60 + [1] * 20 + [2] * 20, [(0, 0, 60), (1, 2, 40)]),
        ([1] * 60 + [2] * 20 + [3] * 20, [(1, 1, 60), (2, 2, 20), (3, 3, 20)]),
        ([1] * 50 + [2] * 45 + [3] * 8, [(1, 1, 50), (2, 3, 53)]),
        ([0] * 95 + [1] * 5, []),
        ([3] * 100, []),
        (range(39), []),
        ([NAN] * 100, []),
        ([], []),
    ],
)
def test_numbers_are_cut_into_about_fifths_and_equal_ones_stay_together(values, expected):
    found = slices.cut_measure("size", np.array(values, np.float64))
    assert parts(found) == [("range", (low, high), rows) for low, high, rows in expected]
    if found:
        assert sum(one.inside for one in found).tolist() == [1] * len(values)


def test_rows_without_a_number_are_a_slice_of_their_own():
    found = slices.cut_measure("size", np.array([NAN] * 12 + list(range(40)), np.float64))
    assert parts(found) == [("range", (0, 19), 20), ("range", (20, 39), 20), ("missing", (), 12)]


@pytest.mark.parametrize(
    ("values", "expected", "alone"),
    [
        (["b"] * 30 + ["a"] * 20, [("b", 30), ("a", 20)], 2),
        (["a"] * 30 + ["b"] * 20 + list("cdefghijkl"), [("a", 30), ("b", 20), ("others", 10)], 2),
        (["a"] * 30 + list("cd"), [], 1),  # two others are too few to tell it from
        (["a"] * 20 + [None] * 15 + ["", " "] + ["b"] * 13, [("a", 20), ("b", 13), ("missing", 17)], 2),
        (["true"] * 25 + ["false"] * 25, [("false", 25), ("true", 25)], 2),
        ([f"{i % 5}" for i in range(100)], [(f"{i}", 20) for i in range(5)], 5),  # such as stars
        ([f"id-{i}" for i in range(100)], [], 0),
        (
            [f"v{i % 60:02}" for i in range(1000)],
            [*[(f"v{i:02}", 17 - (i > 39)) for i in range(50)], ("others", 160)],
            50,
        ),
    ],
)
def test_words_are_cut_by_value_and_the_rare_ones_are_taken_together(values, expected, alone):
    column = slices.cut_column("kind", values)
    assert [((*values, kind)[0], rows) for kind, values, rows in parts(column.slices)] == expected
    assert (column.values, column.alone) == (len({v for v in values if v and v.strip()}), alone)


@pytest.mark.parametrize(
    "form",
    [
        str,
        lambda i: f"{i / 4 - 3}",
        lambda i: f"{i}e-3",
        lambda i: str(datetime.date(2024, 1, 1) + datetime.timedelta(i)),
        lambda i: f"2024-01-{1 + i // 24:02} {i % 24:02}:00:00",
    ],
)
def test_numbers_and_dates_written_as_words_are_cut_into_ranges(form):
    values = [form(i) for i in range(100)]
    column = slices.cut_column("when", values[::-1] + [None] * 10)
    cuts = [("range", (values[i], values[i + 19]), 20) for i in range(0, 100, 20)]
    assert parts(column.slices) == [*cuts, ("missing", (), 10)]
    assert (column.values, column.alone) == (100, None)


# --- tests -------------------------------------------------------------------


def test_fisher_is_that_of_scipy():
    from scipy.stats import fisher_exact

    rng = np.random.default_rng(0)
    for rows in [20, 21, 200, 2000] * 5:
        inside, right = rng.integers(1, rows), rng.integers(0, rows + 1)
        both = rng.hypergeometric(right, rows - right, inside)
        table = [[both, inside - both], [right - both, rows - inside - right + both]]
        assert slices.fisher(both, inside, right, rows) == pytest.approx(fisher_exact(table)[1], abs=1e-10)
    assert 0 <= slices.fisher(15_000, 20_000, 90_000, 100_000) < 1e-300  # no overflow, and soon done


def test_lines_hold_what_was_counted_and_are_corrected_for_all_slices():
    right = np.array([True] * 10 + [False] * 10 + [True] * 78 + [False] * 2)
    found = [
        slices.Slice("a", False, "range", (0.0, 1.0), np.arange(100) < 20),
        slices.Slice("a", False, "range", (2.0, 3.0), np.arange(100) >= 20),  # the rest of the first: the same test
        slices.Slice("b", True, "value", ("x",), np.arange(100) % 2 == 0),
    ]
    first, rest, other = slices.find(found, right)
    low, high = clopper_pearson(10, 20, 1 - 0.05 / 3)
    p = slices.fisher(10, 20, 88, 100)
    expected = {
        "by": "a",
        "named": False,
        "kind": "range",
        "values": [0.0, 1.0],
        "rows": 20,
        "right": 0.5,
        "level": 1 - 0.05 / 3,
    }
    assert {name: first[name] for name in expected} == expected
    assert [first[name] for name in ("low", "high", "others", "p_alone", "p")] == pytest.approx(
        [low, high, 0.975, p, 2 * p]
    )
    assert (rest["p"], rest["right"], rest["others"]) == (first["p"], 0.975, 0.5)
    assert other["p"] == 1
    assert [slices.matters(line) for line in (first, rest, other)] == [True, False, False]
    assert slices.find([], right) == []


def simulate(rng, rows=300, groups=None, planted=False):
    """All slices of a made table, what is right in it, and the groups: nothing depends on anything, unless planted."""
    sizes, rare = rng.normal(size=rows), rng.poisson(0.3, rows).astype(float)
    kinds = rng.choice(["a", "b", "c", "d"], rows, p=[0.5, 0.3, 0.15, 0.05])
    found = [
        *slices.cut_measure("size", sizes),
        *slices.cut_measure("rare", rare),
        *slices.cut_column("kind", kinds)[0],
    ]
    chance = np.where(planted & (kinds == "c"), 0.5, 0.9)
    if groups is None:
        return found, rng.random(rows) < chance, None
    places = rng.integers(0, groups, rows)
    found += slices.cut_measure("of the group", rng.normal(size=groups)[places])
    return found, rng.random(rows) < rng.beta(0.9, 0.1, size=groups)[places], places


def alarms(tables, tell=slices.find, seed=0, **how):
    """In how many tables some slice is told from the others, by p alone: slices that are better count too."""
    rng = np.random.default_rng(seed)
    found = [tell(*simulate(rng, **how)) for _ in range(tables)]
    return np.mean([any(line["p"] < 0.05 for line in lines) for lines in found])


@pytest.mark.parametrize("tables", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_with_no_difference_at_most_1_table_in_20_shows_one(tables):
    assert alarms(tables) <= by_chance(tables)


@pytest.mark.parametrize("tables", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("groups", [30, 150])
def test_groups_whose_rows_are_alike_are_no_false_alarm(tables, groups):
    assert alarms(tables, groups=groups) <= by_chance(tables)


def test_rows_of_groups_taken_as_independent_would_be():
    assert alarms(50, lambda found, right, groups: slices.find(found, right), groups=30) > 0.3


def test_a_planted_slice_is_found_and_no_other_is_blamed():
    rng = np.random.default_rng(0)
    found = [[line for line in slices.find(*simulate(rng, planted=True)) if slices.matters(line)] for _ in range(100)]
    assert np.mean([any(line["values"] == ["c"] for line in lines) for lines in found]) > 0.9
    assert np.mean([any(line["by"] != "kind" for line in lines) for lines in found]) < 0.15


def test_rows_that_stand_in_copies_count_once():
    rng = np.random.default_rng(0)
    found, right, _ = simulate(rng, planted=True)
    copies = [slices.Slice(one.by, one.named, one.kind, one.values, np.repeat(one.inside, 5)) for one in found]
    grouped = slices.find(copies, np.repeat(right, 5), np.repeat(np.arange(300), 5))
    for line, once in zip(grouped, slices.find(found, right), strict=True):
        assert line["rows"] == 5 * once["rows"]
        for name in ("right", "low", "high", "p"):
            assert line[name] == pytest.approx(once[name], rel=1e-6)
    alone = slices.find(found, right, np.arange(300))
    assert [line["p"] for line in alone] == pytest.approx([line["p"] for line in slices.find(found, right)])


def test_how_much_rows_of_groups_are_worth():
    assert slices.worth(np.arange(12), 0.5) == 12
    assert slices.worth(np.repeat(np.arange(4), 3), 1.0) == pytest.approx(4)
    assert slices.worth(np.repeat(np.arange(4), 3), 0.5) == pytest.approx(12 / 2)
    assert slices.alike(np.array([True] * 4 + [False] * 4), np.array([0] * 4 + [1] * 4)) == 1
    assert slices.alike(np.array([True, False] * 4), np.repeat(np.arange(4), 2)) == 0
    assert slices.alike(np.array([True, False] * 4), np.zeros(8, int)) == 1  # one group: nobody knows


# --- the chapter -------------------------------------------------------------


def make_sliced(folder: Path, make=make_run, *, columns=True, planted=True, group=False, **change) -> Path:
    """A run whose longest rows, and those from "<b>web|", are wrong more often."""
    settings = {"slice": ["from|", "serial", "price"] if columns else None, "group": "who" if group else None}
    make(folder, rows=400, lead=2.0, report=settings, **change)
    for split in ("dev", "test"):
        rng, rows = np.random.default_rng(7), []
        for place, record in enumerate(read_predictions(folder, split)[1]):
            wrong = planted and record["label"] != record["prediction"]
            long, web = wrong and rng.random() < 0.7, wrong and rng.random() < 0.8
            row = {"id": record["id"], "measure:tokens": float(rng.integers(60, 80) if long else rng.integers(3, 80))}
            row |= {"measure:unknown_tokens": float(rng.random() < 0.1), "measure:constant": 1.0}
            if columns:
                row["column:from|"] = "<b>web|" if web or rng.random() < 0.2 else None if rng.random() < 0.1 else "mail"
                row |= {"column:serial": f"no {place}", "column:price": f"{rng.integers(500) / 4}"}
            rows.append(row | ({"group": place // 2} if group else {}))
        write_measures(folder, split, rows)
    return folder


HEADING = "Where it fails more often"


def test_slices_that_matter_are_named_in_plain_words_the_worst_first(tmp_path):
    text = chapter(report_of(make_sliced(tmp_path)), HEADING)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["slices"]
    looked = metrics["slices"]
    bad = sorted(filter(slices.matters, looked), key=lambda line: line["right"])
    assert {(line["by"], line["kind"]) for line in bad} == {("tokens", "range"), ("from|", "value")}
    assert {line["by"] for line in looked} == {"tokens", "unknown_tokens", "from|", "price"}
    assert f"The test rows were cut into {len(looked)} slices by what they have in common. **{len(bad)} of them" in text
    (table,) = tables_of(text)
    assert len(table) == 2 + len(bad)
    for line, cells in zip(bad, table[2:], strict=True):
        assert cells[1:3] == [str(line["rows"]), f"{line['right']:.0%}"]
    worst = next(line for line in bad if line["by"] == "from|")
    shares = [f"{worst[name]:.0%}" for name in ("right", "low", "high", "others")]
    assert (
        "- Texts whose “from&#124;” is “&lt;b&gt;web&#124;”: **{} right** ({} to {}), against {} of the others.".format(
            *shares
        )
        in text
    )
    assert "“price” has" in text
    assert "different numbers or dates, which were cut into ranges" in text
    assert "“serial” was not looked at: of 400 values, none is that of at least 10 rows" in text
    assert "Each row counts by itself" in text


def test_nothing_that_matters_is_no_proof(tmp_path):
    text = chapter(report_of(make_sliced(tmp_path, planted=False)), HEADING)
    assert "**None of them is wrong more often than chance explains.** That is no proof" in text
    assert tables_of(text) == []


def test_groups_are_told_of(tmp_path):
    text = chapter(report_of(make_sliced(tmp_path, group=True)), HEADING)
    assert "Rows of one group are not independent" in text
    assert json.loads((tmp_path / "metrics.json").read_text())["slices"]["grouped"] is True


def test_what_is_missing_is_named(tmp_path):
    old = report_of(make_run(tmp_path / "old"))
    assert "Not looked at: there are no measures of its rows" in chapter(old, HEADING)
    assert "slices" not in json.loads((tmp_path / "old" / "metrics.json").read_text())
    few = make_run(tmp_path / "few", rows=12)
    write_measures(few, "test", [{"id": r["id"], "measure:tokens": 1.0} for r in read_predictions(few, "test")[1]])
    write_measures(few, "dev", [{"id": r["id"], "measure:tokens": 1.0} for r in read_predictions(few, "dev")[1]])
    assert "12 test rows are too few, or too much alike, to be cut" in chapter(report_of(few), HEADING)
    pushed = make_sliced(tmp_path / "pushed", columns=False, rows_left_out=True)
    record = json.loads((pushed / "run.json").read_text())
    (pushed / "run.json").write_text(json.dumps(record | {"report": {"slice": ["a|b"], "group": None}}))
    text = chapter(report_of(pushed), HEADING)
    assert "- “a&#124;b”, which --report.slice names, is not in this copy of the run: not looked at." in text
    assert "Texts of " in text


def test_the_page_folds_all_slices_away_and_draws_those_that_matter(tmp_path):
    write_report(make_sliced(tmp_path))
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "metrics.json").read_text())["slices"]["slices"]
    section = source[source.index('<section id="where-it-fails-more-often"') :].partition("</section>")[0]
    assert f"<summary>All slices that were looked at ({len(found)})</summary>" in section
    folded = section[section.index("<details") :]
    assert folded.count("<tr>") == 1 + len(found)
    assert section.count('class="ring"') == sum(map(slices.matters, found))
    assert "<b>web" not in section
    assert '<option value="0">' in source.partition('<select id="slice">')[2]


def test_pictures_are_called_pictures(tmp_path):
    text = chapter(report_of(make_sliced(tmp_path, make_picture_run)), HEADING)
    assert "- Pictures whose “from&#124;” is" in text
    assert "text" not in text.lower()


MEASURE = {"named": False, "kind": "range"}
COLUMN = {"by": "from", "named": True}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (MEASURE | {"by": "tokens", "values": [40.0, 1112.0]}, "texts of 40 to 1,112 tokens"),
        (MEASURE | {"by": "tokens", "values": [1.0, 1.0]}, "texts of 1 token"),
        (MEASURE | {"by": "unknown_tokens", "values": [0.0, 0.0]}, "texts with no unknown tokens"),
        (
            MEASURE | {"by": "brightness", "values": [0.1234, 0.5]},
            "texts of brightness 0.123 to 0.5 (0 is black, 1 white)",
        ),
        (MEASURE | {"by": "share_of_caps", "values": [0.5, 2345.6]}, "texts whose share of caps is 0.5 to 2,346"),
        (MEASURE | {"by": "tokens", "kind": "missing", "values": []}, "texts whose number of tokens is not known"),
        (COLUMN | {"kind": "range", "values": ["2019", "2024"]}, "texts whose “from” is 2019 to 2024"),
        (COLUMN | {"kind": "value", "values": ["x" * 60]}, f"texts whose “from” is “{'x' * 39}…”"),
        (COLUMN | {"kind": "others", "values": []}, "texts with a rarer “from”"),
        (COLUMN | {"kind": "missing", "values": []}, "texts without “from”"),
    ],
)
def test_slices_in_words(line, said):
    assert words(line, "text") == said


# --- graft compare -----------------------------------------------------------


def compared(capsys, *names) -> str:
    assert cli.main(["compare", *map(str, names)]) == 0
    return capsys.readouterr().out.partition("### Slices")[2].partition("##")[0]


def test_runs_are_compared_by_slice(tmp_path, capsys):
    one = make_sliced(tmp_path / "a")
    shutil.copytree(one, tmp_path / "b")
    two = alter(tmp_path / "b", 1, spoil=80)  # of the first rows
    text = compared(capsys, one, two)
    (table,) = tables_of(text)
    truth, said, now = (
        np.array([record[name] for record in read_predictions(run, "test")[1]])
        for run, name in ((one, "label"), (one, "prediction"), (two, "prediction"))
    )
    found = write_report(one)["slices"]["slices"]
    assert text.startswith(f"\n\nOf {len(found)} slices, as ")
    assert len(table) == 2 + 5
    values = pq.read_table(one / "measures-test.parquet")["column:from|"].to_pylist()
    (mail,) = (each for each in slices.cut_column("from|", values).slices if each.values == ("mail",))
    (line,) = slices.slice_changes([mail], truth, said[None], now[None])
    assert line["lost"] == np.sum(mail.inside & (said == truth) & (now != truth)) > 0
    assert line["right"] == (np.mean((said == truth)[mail.inside]), np.mean((now == truth)[mail.inside]))
    assert line["p"] < 1e-6
    assert f"raised for {len(found)} slices" in text
    write_predictions(two, "test", read_predictions(two, "test")[1][::-1], LABELS)
    (two / "measures-test.parquet").unlink()
    assert compared(capsys, one, two) == text
    shutil.copytree(one, tmp_path / "c")
    swapped = compared(capsys, two, tmp_path / "c").replace(str(tmp_path / "c"), str(one))
    assert sorted(row[0] for row in tables_of(swapped)[0]) == sorted(row[0] for row in table)


def test_slices_come_from_whichever_run_has_them(tmp_path, capsys):
    one, two = make_sliced(tmp_path / "a", group=True), alter(make_run(tmp_path / "b", rows=400), 1, spoil=40)
    text = compared(capsys, two, one)
    assert f"as {tmp_path / 'a'} measured the rows" in text.replace("\\", "")
    assert "It takes rows as independent; here they come in groups" in text
    (one / "measures-test.parquet").unlink()
    assert "Not compared: these runs kept no measures" in compared(capsys, two, one)


def test_slices_of_runs_that_answer_alike(tmp_path, capsys):
    one = make_sliced(tmp_path / "a")
    shutil.copytree(one, tmp_path / "b")
    assert "None of " in compared(capsys, one, tmp_path / "b")


def test_seeds_are_compared_by_slice_without_p(tmp_path, capsys):
    runs = [shutil.copytree(make_sliced(tmp_path / "a"), tmp_path / name) for name in "bcd"]
    for seed, run in enumerate(runs):
        alter(run, seed, noise=0.5)
    text = compared(capsys, f"{tmp_path / 'a'},{runs[0]}", f"{runs[1]},{runs[2]}")
    (table,) = tables_of(text)
    assert table[0] == ["Slice", "Rows", "Right in A", "Right in B", "Change (points)"]


# --- the columns of the data -------------------------------------------------


def write_splits(folder: Path, columns: dict, write) -> Path:
    """train, dev and test of the same rows, with these columns besides."""
    rows = [{"text": f"{text} {i}", "label": label} for i, (text, label) in enumerate(texts(24))]
    for split in ("train", "dev", "test"):
        write(folder / split, [row | {n: v[i % len(v)] for n, v in columns.items()} for i, row in enumerate(rows)])
    return folder


def as_parquet(place: Path, rows, features=None) -> None:
    datasets.Dataset.from_list(rows, features).to_parquet(f"{place}.parquet")


def as_csv(place: Path, rows) -> None:
    header = list(rows[0])
    write_csv(Path(f"{place}.csv"), [tuple(row[name] for name in header) for row in rows], header)


def as_jsonl(place: Path, rows) -> None:
    Path(f"{place}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def named(folder: Path, *extra: str, **how) -> dict[str, list]:
    rows = load_splits(DataConfig(path=str(folder), **how), 0, extra).test
    return {name: rows[f"column:{name}"][:4] for name in extra}


def test_every_kind_of_column_comes_as_words(tmp_path):
    date, time = datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 13, 5)
    columns = {
        "stars": [1, None, 3],
        "price": [1.0, 2.5, None],
        "seen": [True, False, None],
        "day": [date, None],
        "at": [time, None],
        "nothing": [None],
        "of, class": [0, 1, -1],
    }
    told = {"text": datasets.Value("string"), "label": datasets.Value("string")}
    kinds = {
        "stars": "int64",
        "price": "float64",
        "seen": "bool",
        "day": "date32",
        "at": "timestamp[s]",
        "nothing": "null",
    }
    told |= {name: datasets.Value(kind) for name, kind in kinds.items()}
    told["of, class"] = datasets.ClassLabel(names=["cat", "dog"])
    write_splits(tmp_path, columns, partial(as_parquet, features=datasets.Features(told)))
    assert named(tmp_path, *columns) == {
        "stars": ["1", None, "3", "1"],
        "price": ["1", "2.5", None, "1"],
        "seen": ["true", "false", None, "true"],
        "day": ["2024-02-29", None, "2024-02-29", None],
        "at": ["2024-02-29 13:05:00", None, "2024-02-29 13:05:00", None],
        "nothing": [None] * 4,
        "of, class": ["cat", "dog", None, "cat"],
    }


@pytest.mark.parametrize("write", [as_csv, as_jsonl])
def test_columns_of_text_files_and_those_that_have_a_role(tmp_path, write):
    write_splits(tmp_path, {"column:x": ["a", "b"], "sentence": ["s"]}, write)
    found = named(tmp_path, "column:x", "label", "text", text="text")
    assert found["column:x"] == ["a", "b", "a", "b"]
    assert found["label"] == [label for _, label in texts(4)]
    assert [word.split()[-1] for word in found["text"]] == ["0", "1", "2", "3"]


def test_a_list_is_no_word(tmp_path):
    write_splits(tmp_path, {"tags": [["a"], ["b", "c"]]}, as_jsonl)
    with pytest.raises(UserError) as error:
        named(tmp_path, "tags")
    assert str(error.value) == (
        f"{tmp_path}/train.jsonl: column 'tags' holds list<item: string>, and rows are told apart by one word, number "
        "or date each. Set --report.slice and --report.group to other columns"
    )


def test_a_column_that_test_lacks_is_named(tmp_path):
    write_splits(tmp_path, {"source": ["a"]}, as_csv)
    write_csv(tmp_path / "test.csv", texts(24))
    with pytest.raises(
        UserError, match=r"^no column 'source' in .*/test\.csv; found 'text', 'label'\. .*--report\.slice"
    ):
        named(tmp_path, "source")


def put_pictures(folder: Path) -> Path:
    for split, seed in (("train", 0), ("dev", 100), ("test", 200)):
        (folder / split).mkdir(parents=True)
        rows = []
        for i in range(12):
            draw(shape := ("disc", "square")[i % 2], seed + i).save(folder / split / f"{i}.png")
            rows.append({"file_name": f"{i}.png", "label": shape, "camera": ("phone", None)[i % 2], "stops": i / 2})
        (folder / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_columns_beside_pictures(tmp_path):
    config = ImageDataConfig(path=str(put_pictures(tmp_path)))
    rows = load_pictures(config, 0, ("camera", "stops", "label")).test
    assert rows["column:camera"][:3] == ["phone", None, "phone"]
    assert rows["column:stops"][:3] == ["0", "0.5", "1"]
    assert rows["column:label"][:] == rows["label"][:]
    scored = load_test_pictures(config, ["disc", "square"], {}, ("camera",)).test
    assert scored["column:camera"][:3] == ["phone", None, "phone"]
    with pytest.raises(UserError, match=r"^no column 'lens' in .*; found 'file_name', 'label', 'camera', 'stops'\."):
        load_pictures(config, 0, ("lens",))


def test_a_run_and_an_evaluation_slice_by_named_columns(tmp_path, checkpoint, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    for seed, split in enumerate(("train", "dev", "test")):
        rows = [(text, label, ("web", "", "mail")[i % 3], i // 2) for i, (text, label) in enumerate(texts(60, seed))]
        write_csv(folder / f"{split}.csv", rows, ("text", "label", "from", "person"))
    words = ("--data.path", folder, "--report.slice", "from,person", "--report.group", "person")
    train = ("--backbone.name", checkpoint("bert"), "--train.epochs", 1, "--train.lr", 5e-3)
    run_recipe("text_classify", *train, *words, "--run.out", tmp_path / "run")
    found = pq.read_table(tmp_path / "run" / "measures-test.parquet").to_pydict()
    assert found["column:from"][:3] == ["web", None, "mail"]
    assert found["group"][:4] == [found["group"][0]] * 2 + [found["group"][2]] * 2
    evaluate = ["evaluate", tmp_path / "run", "--data.path", folder, "--run.out", tmp_path / "again", *words[2:]]
    assert cli.main([*map(str, evaluate)]) == 0, capsys.readouterr().err
    one, again = (json.loads((tmp_path / name / "metrics.json").read_text())["slices"] for name in ("run", "again"))
    assert one == again
    assert {line["by"] for line in one["slices"]} >= {"tokens", "from", "person"}
    assert ("from", "missing") in {(line["by"], line["kind"]) for line in one["slices"]}
    assert one["grouped"] is True
    gone = ["evaluate", tmp_path / "run", "--data.path", folder, "--run.out", tmp_path / "no", "--report.slice", "form"]
    assert cli.main([*map(str, gone)]) == 2
    assert "no column 'form' in" in capsys.readouterr().err


# --- measures ----------------------------------------------------------------


def test_measures_of_pictures():
    from PIL import Image, ImageFilter

    plain = picture_measures(Image.new("RGB", (300, 600), (51, 51, 51)))
    assert plain == {"short_side": 300, "aspect_ratio": 0.5, "brightness": 0.2, "contrast": 0, "sharpness": 0}
    half = Image.new("L", (512, 512), 0)
    half.paste(255, (256, 0, 512, 512))
    assert picture_measures(half)["brightness"] == pytest.approx(0.5, abs=1e-3)
    assert picture_measures(half)["contrast"] == pytest.approx(0.5, abs=5e-3)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    grey = np.float64(noise) / 255
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    found = picture_measures(Image.fromarray(noise))
    assert [found[name] for name in ("brightness", "contrast", "sharpness")] == pytest.approx(
        [grey.mean(), grey.std(), laplacian.std()]
    )
    drawn = draw("stripes", 0, (600, 500))
    sharp = [picture_measures(drawn.filter(ImageFilter.GaussianBlur(r)))["sharpness"] for r in (0, 1, 2, 4)]
    assert sharp == sorted(sharp, reverse=True)
    for size in ((1, 1), (2, 900), (900, 2)):
        assert np.isfinite(list(picture_measures(Image.new("RGB", size)).values())).all()
