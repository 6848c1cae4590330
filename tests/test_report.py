"""Does a report say what the tables hold, whatever they hold?"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from graftkit.errors import UserError
from graftkit.metrics import classification
from graftkit.report import metrics_text, write_report
from graftkit.report.markdown import amount, decimals, duration, escape, fenced, number, percent, shorten, with_interval
from graftkit.report.tables import (
    read_predictions,
    read_rows,
    table_hashes,
    write_baselines,
    write_predictions,
    write_rows,
)
from graftkit.text import text_hash

LABELS = ["refund", "a|b", "card_lost", "<b>bold</b>"]
NASTY = [
    "a | b",
    "two\nlines",
    "`tick` ``two``",
    "<script>alert(1)</script>",
    "\\| \\",
    "*_x_* ~~y~~ [l](u)",
    "# no heading",
]


def make_records(rows: int, labels=LABELS, seed: int = 0, lead: float = 2.0) -> list[dict]:
    """Records of a random classifier; the larger the lead of the true logit, the better it is."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(labels), rows)
    logits = rng.normal(size=(rows, len(labels))).astype(np.float32)
    logits[np.arange(rows), truth] += lead
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return [
        {
            "id": f"test-{i}",
            "label": labels[truth[i]],
            "prediction": labels[logits[i].argmax()],
            "logits": logits[i],
            "probabilities": probabilities[i],
            "loss": float(-np.log(probabilities[i, truth[i]])),
        }
        for i in range(rows)
    ]


def make_run(
    folder: Path, *, rows=120, labels=LABELS, lead=2.0, texts=NASTY, keep_rows=True, pair=False, **change
) -> Path:
    """A run's folder as a run leaves it."""
    folder.mkdir(exist_ok=True)
    for seed, split in enumerate(("dev", "test")):
        records = make_records(rows, labels, seed, lead)
        write_predictions(folder, split, records, labels)
        fields = [
            {"text": texts[i % len(texts)]} | ({"text_pair": "second | text"} if pair else {}) for i in range(rows)
        ]
        contents = [
            {"id": record["id"], "sha256": text_hash(*kept.values()), **(kept if keep_rows else {})}
            for record, kept in zip(records, fields, strict=True)
        ]
        write_rows(folder, split, contents)
    classes = dict.fromkeys(labels, 30)
    splits = {name: {"rows": rows, "sha256": name * 9, "classes": classes} for name in ("train", "dev", "test")}
    run = {
        "graftkit": "0.1.0",
        "task": "text-classification",
        "command": "accelerate launch recipes/text_classify.py --train.epochs 3",
        "headline": "macro_f1",
        "labels": labels,
        "versions": {"torch": "2.15.0"},
        "git_commit": None,
        "hardware": {"cpu": "a processor", "cores": 2, "memory_gib": 23.5, "gpus": []},
        "processes": 1,
        "threads": 2,
        "device": "cpu",
        "precision": "bf16",
        "seed": 0,
        "data": {
            "path": "reviews.csv",
            "columns": {"text": "body", "label": "stars", "text_pair": None},
            "splits": splits,
            "dropped": {"train": {"missing text": 3}},
        },
        "notes": ["a tenth of train became dev"],
        "warnings": ["2 rows stand in train and in test"],
        "backbone": {"name": "org/some-model", "revision": "main", "architecture": "BertForSequenceClassification"},
        "adapt": {
            "strategy": "last",
            "trained_parameters": 3.6e6,
            "total_parameters": 22.7e6,
            "description": "top blocks",
        },
        "lengths": {
            "truncated_share": 0.1,
            "truncated_rows": 12,
            "max_length": 256,
            "percentiles": {"50": 14, "100": 880},
        },
        "training": {"updates": 100, "epochs": 5, "rows_per_update": 32, "best": {"update": 80, "score": 0.93}},
        "seconds": {"data": 1.23, "train": 61.0, "total": 7500.0},
        "peak_memory_gib": {"process": 1.2, "gpu": None},
        "snippet": "model = load('model')",
    }
    (folder / "run.json").write_text(json.dumps(run | change), encoding="utf-8")
    (folder / "config.yaml").write_text("train:\n  epochs: 3\n", encoding="utf-8")
    return folder


def report_of(folder: Path) -> str:
    write_report(folder)
    return (folder / "report.md").read_text(encoding="utf-8")


def chapter(report: str, heading: str) -> str:
    return report.split(f"## {heading}\n")[1].split("\n## ")[0]


def tables_of(text: str) -> list[list[list[str]]]:
    """The cells of each table, as a reader of markdown cuts them: at pipes, escaped or not."""
    blocks = re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE)
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()] for block in blocks]


# --- tables ------------------------------------------------------------------


def test_predictions_come_back_as_they_were(tmp_path):
    records = make_records(30)
    path = write_predictions(tmp_path, "test", records, LABELS)
    labels, back = read_predictions(tmp_path, "test")
    assert labels == LABELS
    for record, read in zip(records, back, strict=True):
        assert list(read) == list(record)
        for name in ("logits", "probabilities"):
            assert read[name].dtype == np.float32
            assert np.array_equal(read.pop(name), record.pop(name))
        assert read == record
    assert [file.name for file in tmp_path.iterdir()] == [path.name] == ["predictions-test.parquet"]


def test_predictions_are_a_plain_table(tmp_path):
    from pyarrow import parquet

    table = parquet.read_table(write_predictions(tmp_path, "dev", make_records(3), LABELS))
    columns = {name: str(table.schema.field(name).type) for name in table.column_names}
    logits, probabilities = ({f"{kind}:{label}": "float" for label in LABELS} for kind in ("logit", "probability"))
    assert columns == dict.fromkeys(("id", "label", "prediction"), "string") | logits | probabilities | {
        "loss": "double"
    }


def test_the_same_records_make_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        make_run(tmp_path / name)
    for file in ("predictions-test.parquet", "rows-test.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_write_that_fails_leaves_the_table_that_was(tmp_path, monkeypatch):
    path = write_rows(tmp_path, "test", [{"id": "a", "sha256": "1", "text": "first"}])
    before = path.read_bytes()

    def fail(table, where, **options):
        Path(where).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", fail)
    with pytest.raises(OSError, match="No space"):
        write_rows(tmp_path, "test", [{"id": "b", "sha256": "2", "text": "second"}])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["probabilities", "logits"])
def test_what_is_no_number_is_refused(tmp_path, name, value):
    records = make_records(9)
    for record in records[2:]:
        record[name] = record[name].copy()
        record[name][1] = value
    write_predictions(tmp_path, "test", records, LABELS)
    with pytest.raises(UserError, match=r"no finite number in row test-2, .*test-6 and 2 more"):
        read_predictions(tmp_path, "test")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "run.json").unlink(), "no run.json in"),
        (lambda folder: (folder / "run.json").write_text("{"), "run.json is no JSON"),
        (lambda folder: (folder / "run.json").write_text("[]"), "run.json holds no record"),
        (
            lambda folder: make_run(folder, task="sorting"),
            "no report for the task 'sorting'; known: text-classification",
        ),
        (
            lambda folder: make_run(folder, headline="log_loss"),
            "no headline 'log_loss'.* choose one of macro_f1, accuracy",
        ),
        (lambda folder: (folder / "predictions-dev.parquet").unlink(), "no predictions-dev.parquet in"),
        (lambda folder: (folder / "predictions-test.parquet").unlink(), "no predictions-test.parquet in"),
        (lambda folder: (folder / "rows-test.parquet").unlink(), "no rows-test.parquet in"),
        (lambda folder: (folder / "rows-test.parquet").write_text("rows"), "rows-test.parquet is no parquet file"),
        (lambda folder: write_predictions(folder, "test", [], LABELS), "predictions-test.parquet has no rows"),
        (
            lambda folder: write_predictions(folder, "test", [{**make_records(1)[0], "label": "?"}], LABELS),
            "a label without a column of its own in row test-0",
        ),
        (
            lambda folder: (folder / "rows-test.parquet").rename(folder / "predictions-test.parquet"),
            "no column 'loss'",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_one_line(tmp_path, break_it, message):
    break_it(make_run(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value)


def test_rows_keep_their_fields(tmp_path):
    rows = [
        {"id": "a", "sha256": "1", "text": "naïve", "text_pair": None},
        {"id": "b", "sha256": "2", "text": "", "text_pair": None},
    ]
    write_rows(tmp_path, "test", rows)
    kept = [{name: row[name] for name in ("id", "sha256", "text")} for row in rows]
    assert read_rows(tmp_path, "test") == kept
    assert read_rows(tmp_path, "test", ["b", "unknown"]) == kept[1:]


def test_rows_are_a_plain_table_of_the_fields_as_they_first_appear(tmp_path):
    from pyarrow import parquet

    rows = iter(
        [
            {"sha256": "1", "path": "a.jpg", "id": "a"},
            {"id": "b", "thumbnail": b"\xff\xd8", "path": None, "sha256": "2"},
            {"id": "c", "sha256": "3", "path": "c.jpg", "thumbnail": None},
        ]
    )
    table = parquet.read_table(write_rows(tmp_path, "test", rows))
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "id": "string",
        "sha256": "string",
        "path": "string",
        "thumbnail": "binary",
    }
    assert table.column_names == ["id", "sha256", "path", "thumbnail"]
    assert table["path"].to_pylist() == ["a.jpg", None, "c.jpg"]
    assert table["thumbnail"].to_pylist() == [None, b"\xff\xd8", None]


def test_the_hash_of_a_text_is_that_of_its_bytes_and_tells_pairs_apart():
    from hashlib import sha256

    for texts, content in ((("naïve",), "naïve"), (("naïve", None), "naïve"), (("x", "y z"), "x\0y z")):
        assert text_hash(*texts) == sha256(content.encode()).hexdigest()
    assert text_hash("x y", "z") != text_hash("x", "y z")


# --- metrics.json ------------------------------------------------------------


def test_metrics_follow_the_agreed_form(tmp_path):
    metrics = write_report(make_run(tmp_path, headline="accuracy"))
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert list(metrics)[:2] == ["dev", "test"]
    test = metrics["test"]
    assert test["rows"] == 120
    assert list(test["headline"]) == ["name", "value", "low", "high", "level", "method"]
    assert (test["headline"]["name"], test["headline"]["value"]) == ("accuracy", test["scores"]["accuracy"])
    assert test["headline"]["low"] < test["headline"]["value"] < test["headline"]["high"]
    labels, records = read_predictions(tmp_path, "test")
    assert test["scores"] == classification.score_records(records, labels)
    assert [line["label"] for line in test["per_class"]] == test["confusion"]["labels"] == LABELS
    assert np.sum(test["confusion"]["counts"]) == 120


def test_metrics_depend_on_the_tables_and_the_headline_alone(tmp_path):
    write_report(make_run(tmp_path / "one", processes=1))
    other = make_run(tmp_path / "two")
    (other / "run.json").write_text('{"task": "text-classification", "processes": 2, "labels": ["other"]}')
    write_report(other)
    assert (tmp_path / "one/metrics.json").read_bytes() == (other / "metrics.json").read_bytes()
    write_report(make_run(tmp_path / "three", headline="matthews"))
    assert (tmp_path / "one/metrics.json").read_bytes() != (tmp_path / "three/metrics.json").read_bytes()


def test_a_report_can_be_made_again(tmp_path):
    first = report_of(make_run(tmp_path))
    assert report_of(tmp_path) == first
    assert not list(tmp_path.glob("*.writing"))


# --- report.md ---------------------------------------------------------------


def test_the_summary_says_how_good_on_how_many_rows_and_what_to_watch(tmp_path):
    metrics = write_report(make_run(tmp_path, rows=50))
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    opening = report.split("\n\n")[1]
    assert opening.startswith("On 50 test rows")
    assert with_interval(metrics["test"]["headline"]) in opening
    right = sum(metrics["test"]["confusion"]["counts"][i][i] for i in range(4))
    assert f"gives {right} of them the right class" in opening
    weakest = min(metrics["test"]["per_class"], key=lambda line: line["f1"])
    assert f"the weakest class is “{escape(weakest['label'])}”" in opening
    assert "every class has fewer than 20 test rows" in opening
    assert "10% of the texts were too long and were cut" in opening
    assert "the run gave 1 warning (below)" in opening


def test_the_report_holds_what_was_recorded(tmp_path):
    report = report_of(make_run(tmp_path))
    for heading, words in {
        "Data": [
            "reviews.csv",
            "text from “body”, label from “stars”\n",
            "train: 3 x missing text",
            "| refund | 30 | 30 | 30 |",
            "50% of the texts have at most 14, the longest has 880; ",
            "the model reads at most 256; 12 longer texts were cut (10%)",
        ],
        "Warnings and notes": ["**Warning:** 2 rows stand in train and in test", "- a tenth of train became dev"],
        "Model and training": [
            "org/some-model, revision main, BertForSequenceClassification",
            "top blocks: 3.6 million of 22.7 million parameters (16%)",
            "5 epochs, 100 updates of 32 rows",
            "after update 80, the best on dev (macro F1 0.93)",
        ],
        "Time and memory": [
            "| data | 1.2 s |",
            "| train | 1 min 1 s |",
            "**2 h 5 min**",
            "1.2 GiB by the process",
            "no GPU",
        ],
        "Load the model": ["```python\nmodel = load('model')\n```"],
        "How this was made": [
            "```bash\naccelerate launch recipes/text_classify.py --train.epochs 3\n```",
            "graftkit 0.1.0, torch 2.15.0",
            "Git commit: not recorded",
            "Seed: 0",
            "1 process with 2 threads",
            "traintraintrain",
            "```yaml\ntrain:\n  epochs: 3\n```",
        ],
    }.items():
        for word in words:
            assert word in chapter(report, heading)


def test_a_record_with_nothing_but_the_task_makes_a_report(tmp_path):
    make_run(tmp_path)
    (tmp_path / "run.json").write_text('{"task": "text-classification"}')
    (tmp_path / "config.yaml").unlink()
    report = report_of(tmp_path)
    assert report.count("ot recorded") >= 15
    assert "None" not in report.replace("None: all", "")


@pytest.mark.parametrize(
    "part",
    [
        "data",
        "hardware",
        "lengths",
        "training",
        "seconds",
        "peak_memory_gib",
        "adapt",
        "backbone",
        "warnings",
    ],
)
def test_a_part_that_is_null_is_not_recorded(tmp_path, part):
    whole = report_of(make_run(tmp_path, rows=20)).count("ot recorded")
    assert report_of(make_run(tmp_path, rows=20, **{part: None})).count("ot recorded") > whole


def test_no_text_or_label_can_break_the_page(tmp_path):
    report = report_of(make_run(tmp_path, lead=0.0, pair=True, command="echo ```", warnings=["<b>|`", "# x", "1. x"]))
    for table in tables_of(report):
        assert {len(cells) for cells in table} == {len(table[0])}
        assert set("".join(table[1])) <= set("-:")
    outside_code = re.sub(r"(`{3,})\w*\n.*?\n\1\n", "", report, flags=re.DOTALL)
    assert "<" not in outside_code
    named = re.sub(r"`(?:graft |--)[^`\n]*`", "", outside_code)  # commands and flags that the report tells of
    assert not re.findall(r"(?<!\\)`", named)
    assert [line for line in outside_code.splitlines() if line.startswith("# ")] == [report.splitlines()[0]]
    errors = tables_of(chapter(report, "Worst errors"))[0]
    assert {cells[0] for cells in errors[2:]} <= {f"{escape(text)} **+** second &#124; text" for text in NASTY}


def test_markdown_readers_see_the_texts_as_they_are(tmp_path):
    markdown_it = pytest.importorskip("markdown_it")
    from html import unescape

    html = markdown_it.MarkdownIt().enable(["table", "strikethrough"]).render(report_of(make_run(tmp_path, lead=-1.0)))
    cells = {unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", html)}
    assert {" ".join(text.split()) for text in NASTY} | set(LABELS) <= cells


def test_the_worst_errors_come_first(tmp_path):
    report = report_of(make_run(tmp_path, lead=0.5, texts=[f"text {i}" for i in range(120)]))
    _, records = read_predictions(tmp_path, "test")
    wrong = sorted((r for r in records if r["label"] != r["prediction"]), key=lambda record: -record["loss"])
    assert len(wrong) > 20
    lines = tables_of(chapter(report, "Worst errors"))[0][2:]
    assert [cells[4] for cells in lines] == [record["id"] for record in wrong[:20]]
    assert [cells[0] for cells in lines] == [f"text {record['id'].removeprefix('test-')}" for record in wrong[:20]]
    assert [cells[1] for cells in lines] == [escape(record["label"]) for record in wrong[:20]]
    assert [cells[2] for cells in lines] == [escape(record["prediction"]) for record in wrong[:20]]
    assert lines[0][3] == percent(float(wrong[0]["probabilities"].max()))


def test_texts_that_were_not_kept_are_named_by_their_hash(tmp_path):
    report = report_of(make_run(tmp_path, keep_rows=False, texts=["secret"]))
    assert "secret" not in report
    assert f"*not kept* (SHA-256 {read_rows(tmp_path, 'test')[0]['sha256'][:12]}…)" in report


def test_long_texts_are_shortened(tmp_path):
    report = report_of(make_run(tmp_path, texts=["word " * 1000]))
    cells = tables_of(chapter(report, "Worst errors"))[0][2]
    assert cells[0].endswith("word…")
    assert len(cells[0]) <= 200


@pytest.mark.parametrize("classes", [40, 41])
def test_a_matrix_up_to_40_classes_and_always_the_pairs(tmp_path, classes):
    labels = [f"class {i}" for i in range(classes)]
    report = report_of(make_run(tmp_path, rows=400, labels=labels, lead=1.0))
    tables = tables_of(chapter(report, "Confusions"))
    assert [len(table[0]) for table in tables] == ([41, 4] if classes == 40 else [4])
    assert len(tables[-1][2:]) == 20


def test_the_matrix_and_the_pairs_show_the_counts(tmp_path):
    metrics = write_report(make_run(tmp_path, lead=1.0))
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    lines = tables_of(chapter(report, "Confusions"))[0]
    assert lines[0] == ["", *map(escape, LABELS)]
    counts = [[int(cell.strip("*").replace("·", "0")) for cell in cells[1:]] for cells in lines[2:]]
    assert counts == metrics["test"]["confusion"]["counts"]
    pairs = tables_of(chapter(report, "Confusions"))[1][2:]
    wrong = {(escape(t), escape(p)): counts[i][j] for i, t in enumerate(LABELS) for j, p in enumerate(LABELS) if i != j}
    assert {(true, given): int(rows) for true, given, rows, _ in pairs} == {pair: n for pair, n in wrong.items() if n}
    assert [int(cells[2]) for cells in pairs] == sorted(filter(None, wrong.values()), reverse=True)


def test_no_error_is_not_called_certain(tmp_path):
    report = report_of(make_run(tmp_path, lead=30.0, warnings=[], lengths={}))
    assert "macro F1 of **1.00 (95% interval 0.97 to 1.00)**" in report
    assert "gives all of them the right class (100%)" in report
    assert "120 rows cannot rule out an error rate of 3%" in report
    assert "Watch out" not in report
    assert "None: all test rows were given the right class." in chapter(report, "Worst errors")


def test_a_model_that_learnt_nothing_is_called_that(tmp_path):
    make_run(tmp_path)
    always = [{**record, "prediction": "a|b"} for record in make_records(60)]
    write_predictions(tmp_path, "test", always, LABELS)
    report = report_of(tmp_path)
    assert (
        "it gives every test row the same class, “a&#124;b”; it is right no more often than the same answer" in report
    )
    assert "| Matthews correlation | 0.00 | – |" in report
    assert "| balanced accuracy | 0.25 | – |" in report


def test_classes_without_rows_are_told_apart_from_bad_ones(tmp_path):
    make_run(tmp_path)
    records = [record for record in make_records(60) if "refund" not in (record["label"], record["prediction"])]
    write_predictions(tmp_path, "test", records, LABELS)
    report = report_of(tmp_path)
    assert "1 class has no test row and could not be measured" in report
    assert tables_of(chapter(report, "Classes"))[0][-1] == ["refund", *"––––", "0", "0", *"––"]


def test_the_terminal_gets_a_few_lines(tmp_path):
    metrics = write_report(make_run(tmp_path))
    lines = metrics_text(metrics).splitlines()
    assert len(lines) == 3
    assert lines[0] == f"test  macro F1 {with_interval(metrics['test']['headline'])} on 120 rows"
    assert "log loss" in lines[1]
    assert lines[2].startswith("dev   macro F1 ")


# --- words and numbers -------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, of course: 3.5 - 2 (ok)!", "plain text, of course: 3.5 - 2 (ok)!"),
        ("a|b", "a&#124;b"),
        ("card_not_working _x_", "card_not_working \\_x\\_"),
        ("a\r\nb\tc\u2028d\x00e", "a b c d e"),
        ("\u202eevil", "evil"),
        ("<br> &amp;", "&lt;br&gt; &amp;amp;"),
        ("1. x", "1\\. x"),
        ("0.1.0", "0.1.0"),
        ("- x", "\\- x"),
        ("https://x.y www.z.com", "https:\\//x.y www\\.z.com"),
    ],
)
def test_escape(text, expected):
    assert escape(text) == expected


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.9312, 0.90, 0.96, "0.93 (95% interval 0.90 to 0.96)"),
        (0.93121, 0.9294, 0.9328, "0.931 (95% interval 0.929 to 0.933)"),
        (0.7, 0.4, 0.9, "0.70 (95% interval 0.40 to 0.90)"),
        (0.9981, 0.97, 0.9999, "0.998 (95% interval 0.970 to 1.000)"),
        (1.0, 0.98, 1.0, "1.00 (95% interval 0.98 to 1.00)"),
        (-0.001, -0.1, 0.1, "0.00 (95% interval -0.10 to 0.10)"),
    ],
)
def test_no_more_digits_than_the_interval_supports(value, low, high, expected):
    score = {"value": value, "low": low, "high": high, "level": 0.95, "method": "bca"}
    assert with_interval(score) == expected


def test_words_and_numbers():
    assert [decimals(width) for width in (0, 0.2, 0.02, 0.002, 1e-9)] == [2, 2, 2, 3, 6]
    assert [number(value, 2) for value in (0.996, 1.0, 0.5)] == ["0.996", "1.00", "0.50"]
    assert [percent(share) for share in (0, 0.001, 0.5, 0.999, 1)] == ["0%", "under 1%", "50%", "over 99%", "100%"]
    assert [amount(count) for count in (640, 12345, 22.7e6, 1.2e9)] == ["640", "12,345", "22.7 million", "1.2 billion"]
    assert [duration(s) for s in (0.42, 12, 59.7, 200, 7500)] == [
        "0.4 s",
        "12 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
    ]
    assert shorten("a" * 300) == "a" * 199 + "…"
    assert fenced("a ``` b").splitlines()[0] == "````"


def record_tables(folder: Path) -> None:
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"tables": table_hashes(folder)}))


def reorder(folder: Path) -> None:
    _, records = read_predictions(folder, "dev")
    turned = [r | {name: r[name][::-1] for name in ("logits", "probabilities")} for r in records]
    write_predictions(folder, "dev", turned, LABELS[::-1])


def exaggerate(folder: Path) -> None:
    labels, records = read_predictions(folder, "test")
    write_predictions(folder, "test", [r | {"probabilities": 2 * r["probabilities"]} for r in records], labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: (run / "rows-test.parquet").unlink(), "rows-test.parquet, which the run made, is gone"),
        (exaggerate, "was changed since the run made it"),
        (lambda run: (reorder(run), record_tables(run)), "has other labels than predictions-test.parquet, or in"),
        (lambda run: (exaggerate(run), record_tables(run)), "probabilities that do not add up to 1 in row test-0,"),
        (lambda run: (write_baselines(run, ["test-0"], {}), record_tables(run)), "no column 'baseline:<name>'"),
    ],
)
def test_tables_that_are_not_what_the_run_made_are_refused(tmp_path, change, message):
    folder = make_run(tmp_path / "run")
    record_tables(folder)
    write_report(folder)
    change(folder)
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        write_report(folder)
    assert "\n" not in str(refused.value)


# rows without a class


PLAIN = [
    {"id": "a", "loss": 0.5, "label": ["x", "y z"], "prediction": "x", "gap": None, "tokens": 3},
    {"id": "b", "loss": 0.25, "label": [], "prediction": "", "gap": -1.5, "tokens": 0},
]


def test_records_without_a_class_come_back_as_they_were(tmp_path):
    write_predictions(tmp_path, "test", PLAIN, [])
    assert read_predictions(tmp_path, "test") == ([], PLAIN)


def test_records_of_any_number_of_labels_come_back_as_they_were(tmp_path):
    numbers = {"logits": np.float32([1, -1]), "probabilities": np.float32([0.75, 0.25])}
    records = [
        {"id": "a", "label": ["cat", "dog"], "prediction": ["cat"], **numbers, "loss": 0.5},
        {
            "id": "b",
            "label": [],
            "prediction": [],
            **{k: -v + (k == "probabilities") for k, v in numbers.items()},
            "loss": 1.0,
        },
    ]
    write_predictions(tmp_path, "test", records, ["cat", "dog"])
    labels, back = read_predictions(tmp_path, "test")
    assert labels == ["cat", "dog"]
    for one, other in zip(records, back, strict=True):
        assert {k: v for k, v in one.items() if k not in numbers} == {
            k: v for k, v in other.items() if k not in numbers
        }
        assert all(np.array_equal(one[name], other[name]) for name in numbers)


def test_a_number_that_is_none_names_its_row(tmp_path):
    write_predictions(tmp_path, "test", [PLAIN[0], PLAIN[1] | {"gap": float("nan")}], [])
    with pytest.raises(UserError, match="a gap that is no finite number in row b"):
        read_predictions(tmp_path, "test")
