"""Does an audit of the labels find, keep and tell what it should, and no more?"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import load_recipe, run_recipe, texts, write_csv
from datasets import Dataset
from test_label_quality import clusters, flip
from test_report import LABELS, NASTY, chapter, make_run, report_of

from graftkit import audit, cli
from graftkit.audit import Rows, judge, sentence, write_audit
from graftkit.config import parse, to_yaml
from graftkit.data import load_pictures, load_splits
from graftkit.errors import UserError
from graftkit.report import write_report
from graftkit.run import not_kept
from graftkit.task import Kept

HEADING = "Are the labels right?"
SPLITS = {"train": 200, "dev": 40, "test": 120}


def make_rows(share: float = 0.1, copies: int = 3, spread: float = 0.6) -> tuple[Rows, np.ndarray]:
    """Rows of four classes, of which a share has a wrong label; the first of test are nearly those of train."""
    features, truth = clusters(sum(SPLITS.values()), spread=spread)
    labels, wrong = flip(truth, share)
    first = SPLITS["train"] + SPLITS["dev"]
    features[first : first + copies] = features[:copies] + 0.001
    labels[:copies], labels[first : first + copies] = truth[:copies], truth[:copies]
    wrong[:copies] = wrong[first : first + copies] = False
    if copies > 1:
        labels[first + 1] = (truth[1] + 1) % 4  # one pair bears two labels
        wrong[first + 1] = True
    splits = np.repeat(list(SPLITS), list(SPLITS.values()))
    ids = np.array([f"{split}-{i}" for split, count in SPLITS.items() for i in range(count)])
    return Rows(splits, ids, labels, LABELS, features, seconds=1.5), wrong


def write(folder: Path, rows: Rows, *, content: bool = True, fields=lambda i: {"text": NASTY[i % len(NASTY)]}) -> Path:
    """Put the audit of these rows into a run's folder."""
    splits = {
        split: Dataset.from_list([{"id": id, "place": i} for i, id in enumerate(rows.ids[rows.splits == split])])
        for split in SPLITS
    }
    task = SimpleNamespace(kept=lambda row: Kept(fields(row["place"]), {}))
    facts = write_audit(folder, task, SimpleNamespace(**splits), rows, 0, content=content)
    run = json.loads((folder / "run.json").read_text()) | {"audit": facts}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


# what is found


def test_wrong_labels_and_near_duplicates_stand_in_the_table():
    rows, wrong = make_rows()
    columns, facts = judge(rows, 0)
    assert list(columns["id"]) == rows.ids.tolist()
    suspect, score = np.array(columns["suspect"]), np.array(columns["score"])
    assert wrong[suspect].mean() >= 0.95
    assert suspect[wrong].mean() >= 0.8
    assert score[suspect].max() < np.median(score[~suspect])
    assert all(columns["label"][i] != columns["suggested"][i] for i in np.flatnonzero(suspect))
    assert facts["suspects"] == {split: int(suspect[rows.splits == split].sum()) for split in SPLITS}
    assert facts["judged"] == facts["looked_at"] == SPLITS
    assert facts["wrong_share"] == pytest.approx(wrong.mean(), abs=0.03)
    assert sum(pair["suspects"] for pair in facts["pairs"]) == suspect.sum()
    assert facts["near_duplicates"] == {"dev": {"rows": 0, "other_label": 0}, "test": {"rows": 3, "other_label": 1}}
    pairs = {id: near for id, near in zip(columns["id"], columns["nearest"], strict=True) if near is not None}
    assert pairs == {f"test-{i}": f"train-{i}" for i in range(3)}
    json.dumps(facts, allow_nan=False)


def test_the_same_rows_give_the_same_audit():
    rows, _ = make_rows()
    assert judge(rows, 3) == judge(rows, 3)


def test_rows_that_nothing_can_judge_are_counted_and_not_blamed():
    rows, _ = make_rows(share=0.0, copies=0)
    rows.labels[:] = np.arange(len(rows.labels)) % 3
    rows.labels[5] = 3  # alone with its label
    columns, facts = judge(rows, 0)
    assert facts["not_judged"] == 1
    assert columns["score"][5] is None
    assert columns["suggested"][5] is None
    assert not columns["suspect"][5]


def test_no_more_rows_are_looked_at_than_stated(monkeypatch):
    monkeypatch.setattr(audit, "MOST", {"train": 7, "dev": 50, "test": 5})
    monkeypatch.setattr(audit, "pooled_features", lambda accelerator, task, headed, rows, lengths: lengths[:, None])
    splits = {split: Dataset.from_list([{"id": f"{split}-{i}", "label": "b"} for i in range(10)]) for split in SPLITS}
    lengths = dict.fromkeys(SPLITS, np.arange(10))
    rows = audit.observe(None, SimpleNamespace(labels=["a", "b"]), None, SimpleNamespace(**splits), lengths, 0)
    assert [(rows.splits == split).sum() for split in SPLITS] == [7, 10, 5]
    assert [int(id.split("-")[1]) for id in rows.ids] == rows.features[:, 0].tolist()  # costs follow their rows
    assert rows.ids[rows.splits == "train"].tolist() != [f"train-{i}" for i in range(7)]
    assert set(rows.labels) == {1}


# what is told


def test_the_chapter_shows_the_rows_and_escapes_them(tmp_path):
    report = chapter(report_of(write(make_run(tmp_path), make_rows()[0])), HEADING)
    assert "labels look wrong**" in report
    assert "3 rows of test" in report
    assert "1 of them with another label" in report
    assert "<b>bold</b>" not in report
    assert "<script>" not in report
    assert "&lt;script&gt;alert(1)" in report
    assert "test-1 | train-1 |" in report.split("of two labels first")[1]
    assert json.loads((tmp_path / "metrics.json").read_text())["audit"]["near_duplicates"]["test"]["rows"] == 3
    html = (tmp_path / "report.html").read_text()
    assert "<script>alert" not in html
    assert "audit-pictures" not in html


def test_a_run_that_keeps_no_rows_names_them_by_id(tmp_path):
    folder = write(make_run(tmp_path, keep_rows=False), make_rows()[0], content=False)
    assert "text" not in pq.read_table(folder / "audit.parquet").column_names
    report = chapter(report_of(folder), HEADING)
    assert "named by id" in report
    assert "script" not in report


def test_only_rows_that_are_shown_keep_their_text(tmp_path):
    rows, _ = make_rows()
    table = pq.read_table(write(make_run(tmp_path), rows) / "audit.parquet").to_pylist()
    kept = {row["id"] for row in table if row["text"] is not None}
    assert kept >= {"train-0", "train-1", "train-2"}  # the test rows' neighbours
    assert len(kept) <= audit.PAIRS + 30
    assert all(row["split"] == "train" for row in table if row["id"] in kept)


def test_a_pushed_copy_has_the_counts_and_no_text(tmp_path):
    folder = write(make_run(tmp_path, rows_left_out=True), make_rows()[0])
    (folder / "audit.parquet").unlink()
    report = chapter(report_of(folder), HEADING)
    assert "labels look wrong**" in report
    assert "not in this copy" in report
    assert "script" not in report


def test_pictures_are_shown_where_they_were_kept(tmp_path):
    rows, _ = make_rows()
    folder = make_run(tmp_path, task="image-classification")
    fields = {"path": "a|b/<i>.jpg", "thumbnail": b"\xff\xd8 no picture"}
    write(folder, rows, fields=lambda i: fields)
    write_report(folder)
    html = (folder / "report.html").read_text()
    shown = html.split('id="audit-pictures"')[1].split("</figure>")[0]
    suspects = [row for row in pq.read_table(folder / "audit.parquet").to_pylist() if row["suspect"]]
    train = [row for row in sorted(suspects, key=lambda row: row["score"])[:30] if row["split"] == "train"]
    assert shown.count("data:image/jpeg;base64,") == len(train) > 0
    assert "<i>.jpg" not in html


def test_clean_labels_are_called_clean(tmp_path):
    rows, _ = make_rows(share=0.0, copies=0, spread=0.4)
    report = chapter(report_of(write(make_run(tmp_path), rows)), HEADING)
    assert "none looks wrong" in report
    assert "No row of dev or test is nearly the same" in report


def test_a_classifier_that_knows_little_is_said_to(tmp_path):
    report = chapter(report_of(write(make_run(tmp_path), make_rows(spread=5.0)[0])), HEADING)
    assert "That is little" in report


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "`graft report RUN --audit`"),
        ({"recipe": "evaluate"}, "an evaluation does not have"),
        ({"seeds": [{"name": "seed-0", "seed": 0}]}, "`graft report RUN/seed-0 --audit`"),
        ({"folds": [{"name": "fold-1"}]}, "`graft report RUN/fold-1 --audit`"),
    ],
)
def test_a_run_without_an_audit_says_how_to_get_one(tmp_path, change, told):
    from graftkit.report import audit as part
    from graftkit.report.reading import read_folder

    reading = read_folder(make_run(tmp_path, **change), ("test",))
    assert part.measure(reading) is None
    assert told in part.chapter(None, reading)


# who makes it


def settings_of(folder: Path, name: str, load, *words: object) -> Path:
    """A run's folder with the settings and the fingerprints of a recipe that read real rows, without training."""
    recipe = load_recipe(name)
    config = parse(recipe.Config, [str(word) for word in words])
    splits = load(config.data, config.run.seed, config.report.columns, config.report.group)
    task = "image-classification" if name.startswith("image") else "text-classification"
    make_run(folder, labels=splits.labels, task=task, data=splits.facts, tables={})
    (folder / "config.yaml").write_text(to_yaml(config, leave_out=not_kept(config)))
    return folder


def test_a_run_audits_its_labels_and_a_later_audit_says_the_same(tmp_path, checkpoint, capsys):
    rows = texts(90, seed=5)
    data = write_csv(tmp_path / "rows.csv", [*rows, *rows[:5]])
    words = ["--backbone.name", checkpoint("bert"), "--data.path", data, "--train.epochs", 1, "--run.precision", "fp32"]
    metrics = run_recipe("text_classify", *words, "--run.out", tmp_path / "run", "--report.audit")
    folder = tmp_path / "run"
    run, table = json.loads((folder / "run.json").read_text()), (folder / "audit.parquet").read_bytes()
    assert metrics["audit"] == {name: value for name, value in run["audit"].items() if name != "seconds"}
    assert sum(run["audit"]["looked_at"].values()) == 95
    assert "audit" in run["seconds"]
    assert any(note == sentence(run["audit"]) for note in run["notes"])
    (folder / "audit.parquet").unlink()
    (folder / "run.json").write_text(json.dumps({**run, "audit": None}))
    assert cli.main(["report", str(folder), "--audit"]) == 0
    assert sentence(run["audit"]) in capsys.readouterr().out
    assert (folder / "audit.parquet").read_bytes() == table
    assert json.loads((folder / "run.json").read_text())["tables"] == run["tables"]
    (folder / "audit.parquet").write_bytes(table + b" ")
    assert cli.main(["report", str(folder)]) == 2
    assert "audit.parquet was changed" in capsys.readouterr().err


def test_other_rows_and_lost_rows_are_one_line_and_data_may_move(tmp_path, checkpoint, capsys):
    data = write_csv(tmp_path / "rows.csv", texts(60))
    words = ["--backbone.name", checkpoint("distilbert"), "--data.path", data]
    folder = settings_of(tmp_path / "run", "text_classify", load_splits, *words)
    before = (folder / "run.json").read_bytes()
    data.rename(tmp_path / "moved.csv")
    assert cli.main(["report", str(folder), "--audit"]) == 2
    error = capsys.readouterr().err
    assert "Set --data.path" in error
    assert error.count("\n") == 1
    write_csv(data, texts(60, seed=9))
    assert cli.main(["report", str(folder), "--audit"]) == 2
    assert "holds other train rows than" in capsys.readouterr().err
    assert (folder / "run.json").read_bytes() == before
    assert cli.main(["report", str(folder), "--audit", "--data.path", str(tmp_path / "moved.csv")]) == 0
    assert set(json.loads((folder / "run.json").read_text())["tables"]) == {"audit.parquet"}
    assert cli.main(["report", str(folder), "--data.path", "elsewhere"]) == 2


def test_a_run_of_pictures_is_audited_later(tmp_path, image_checkpoint, pictures):
    words = ["--backbone.name", image_checkpoint("test_resnet"), "--data.path", pictures]
    folder = settings_of(tmp_path / "run", "image_classify", load_pictures, *words)
    assert "labels: " in audit.audit_run(folder)
    table = pq.read_table(folder / "audit.parquet").to_pylist()
    assert [sum(row["split"] == split for row in table) for split in SPLITS] == [31, 10, 13]
    assert all((row.get("thumbnail") is None) or row["split"] == "train" for row in table)
    write_report(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": "evaluate"}, "no rows of train"),
        ({"folds": [{"name": "fold-1"}]}, "holds several runs; give one of them, such as .*fold-1"),
    ],
)
def test_what_cannot_be_audited_is_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        audit.audit_run(make_run(tmp_path, **change))


def test_the_pictures_demo_is_audited_by_its_recipe_alone(tmp_path):
    folder = make_run(tmp_path, task="image-classification")
    (folder / "config.yaml").write_text("backbone: {name: demo}\ndata: {path: demo}\n")
    with pytest.raises(UserError, match=r"run it again with --report\.audit"):
        audit.audit_run(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"no config\.yaml"):
        audit.audit_run(folder)
