"""Do several seeds, or folds, say together what their runs say one by one?"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, finish, launch_script, load_recipe, run_recipe, texts, write_csv
from test_report import make_run, report_of

from graftkit.compare.arms import load as load_arms
from graftkit.config import parse, to_yaml
from graftkit.data import DataConfig, ImageDataConfig, load_pictures, load_splits
from graftkit.data.cuts import cut_folds, join_groups
from graftkit.errors import Stopped, UserError
from graftkit.metrics.intervals import Interval
from graftkit.metrics.spread import divided, spread, student
from graftkit.report import metrics_text, write_report
from graftkit.report.reading import read_run
from graftkit.report.tables import read_predictions, read_rows, write_measures, write_predictions
from graftkit.run import not_kept, write_aside
from graftkit.several import check_several, join_measures, one_by_one, run_several, several_asked

TABLES = ("predictions-test.parquet", "rows-test.parquet", "measures-test.parquet")


def config(*words: object):
    return parse(load_recipe("text_classify").Config, [str(word) for word in words])


# the numbers


def test_the_interval_over_seeds_is_students():
    from scipy import stats

    values = [0.91, 0.94, 0.92, 0.9]
    found = student(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high), abs=1e-12)
    assert student([0.99, 0.9], 0.0, 1.0).high == 1.0
    assert student([0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 0.95, "constant")
    assert spread([1.0, 2.0, 6.0]) == pytest.approx({"mean": 3, "sd": 7**0.5, "lowest": 1, "highest": 6})


def test_the_most_divided_rows_come_first():
    said = np.array([[0, 1, 2, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 1, 1]])
    truth = np.array([0, 1, 0, 2, 0])
    assert divided(truth, said).tolist() == [2, 3, 4]  # three answers; then two, of which none is right; then one wrong


# which rows a fold has


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_hold_the_classes_in_their_shares(folds):
    classes = np.random.default_rng(folds).permutation(np.repeat([0, 1, 2], [100, 31, 4]))
    found = cut_folds(classes, np.arange(len(classes)), folds, seed=1)
    assert sorted(set(found.tolist())) == list(range(folds))
    assert np.ptp(np.bincount(found)) <= 1
    for number in range(3):
        assert np.ptp(np.bincount(found[classes == number], minlength=folds)) <= 1
    assert found.tolist() == cut_folds(classes, np.arange(len(classes)), folds, seed=1).tolist()
    assert found.tolist() != cut_folds(classes, np.arange(len(classes)), folds, seed=2).tolist()


def test_groups_are_joined_by_chains():
    assert join_groups(np.array([0, 1, 2, 2, 3]), np.array([0, 0, 1, 2, 2])).tolist() == [0, 0, 1, 1, 1]


def folded(path: Path, folds: int, **more) -> list:
    return [load_splits(DataConfig(path=str(path), folds=folds, fold=i + 1, **more), 0) for i in range(folds)]


def test_each_row_of_train_is_tested_once_and_never_learnt_then(tmp_path):
    rows = [*texts(60), *texts(60)[:9]]  # nine texts stand twice
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "test.csv", texts(10, seed=9))
    all_splits = folded(tmp_path, 4)
    assert sorted(id for splits in all_splits for id in splits.test["id"]) == sorted(
        f"train-{i + 1}" for i in range(69)
    )
    for splits in all_splits:
        assert not {*splits.test["text"]} & {*splits.train["text"], *splits.dev["text"]}
        assert not {*splits.dev["text"]} & {*splits.train["text"]}
        assert len(splits.train) + len(splits.dev) + len(splits.test) == 69
        assert splits.facts["overlaps"] == {"test in train": 0, "dev in train": 0, "test in dev": 0}
        assert f"folds are cut from train; the 10 rows of {tmp_path / 'test.csv'} stay untouched" in splits.notes
    assert len({splits.facts["fold"]["of"]["sha256"] for splits in all_splits}) == 1
    assert all_splits[1].facts["cut_from_train"] == {
        "test": {"share": 0.25, "seed": 0},
        "dev": {"share": 0.1, "seed": 0},
    }
    fewer = folded(tmp_path, 4, max_rows=12)
    assert [splits.test["id"] for splits in fewer] == [splits.test["id"] for splits in all_splits]
    assert [len(splits.train) for splits in fewer] == [12] * 4


def test_a_given_dev_split_stays_that_of_every_fold(data):
    for splits in folded(data, 3):
        assert len(splits.dev) == 13
        assert len(splits.train) + len(splits.test) == 47


def test_folds_keep_groups_together(tmp_path):
    rows = [(text, label, str(place // 6)) for place, (text, label) in enumerate(texts(60))]
    rows.append((*texts(1)[0], ""))  # a text of group 0, without a group itself
    path = write_csv(tmp_path / "rows.csv", rows, ("text", "label", "patient"))
    parts = [
        load_splits(DataConfig(path=str(path), folds=3, fold=fold), 0, ["patient"], "patient") for fold in (1, 2, 3)
    ]
    for splits in parts:
        patients = [{*split["column:patient"]} - {None} for split in (splits.train, splits.dev, splits.test)]
        assert not patients[0] & patients[1]
        assert not patients[0] & patients[2]
        assert not patients[1] & patients[2]
    assert sum(len(splits.test) for splits in parts) == 61


def test_groups_on_both_sides_of_given_splits_are_warned_of(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2], f"user {i // 4}") for i in range(40)]
    for split, part in (("train", rows[:24]), ("dev", rows[22:32]), ("test", rows[32:])):
        write_csv(tmp_path / f"{split}.csv", part, ("text", "label", "user"))
    splits = load_splits(DataConfig(path=str(tmp_path)), 0, ["user"], "user")
    said = "1 of 3 groups (user) of dev also have rows in train, which flatters the scores on dev"
    assert [warning for warning in splits.warnings if "groups" in warning] == [said]


def test_few_rows_of_a_class_are_warned_of_and_all_folds_have_the_same_labels(tmp_path):
    rows = [*texts(40), ("odd one", "rare"), ("odd two", "rare"), ("the same", "single"), ("the same", "single")]
    path = write_csv(tmp_path / "rows.csv", rows)
    parts = folded(path, 4)
    assert all(splits.labels == ["bird", "fruit", "rare", "single", "tool"] for splits in parts)
    few = "labels with fewer texts that can be parted than 4 folds, so that some folds test none: 'rare', 'single'"
    assert all(few in splits.warnings for splits in parts)
    unseen = [line for splits in parts for line in splits.warnings if "never saw" in line]
    assert len(unseen) == 1
    assert unseen[0].endswith("holds all rows, so that its model never saw: 'single'")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fold": 2}, "--data.fold 2: of how many? Set --data.folds"),
        ({"folds": 3, "fold": 4}, "--data.fold 4: there are 3 (--data.folds); name one from 1 up"),
        ({"folds": 3}, "--data.folds 3 are as many models; set --data.fold to the one to train"),
        (
            {"folds": 3, "fold": 1, "test": "more.csv"},
            "--data.test more.csv: with --data.folds each fold is the test of one model; leave it out",
        ),
        ({"folds": 9, "fold": 1}, "rows.csv: 8 rows, of which only 4 differ, are too few for --data.folds 9. "
         "Add rows, or ask for fewer folds"),
    ],
)  # fmt: skip
def test_folds_that_cannot_be(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    write_csv(Path("rows.csv"), [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")] * 2)
    with pytest.raises(UserError) as error:
        load_splits(DataConfig(path="rows.csv", **settings), 0)
    assert str(error.value) == message


def test_pictures_are_folded_too(pictures):
    config = ImageDataConfig(path=str(pictures), folds=2)
    parts = [load_pictures(replace(config, fold=fold), 0) for fold in (1, 2)]
    assert sorted(id for splits in parts for id in splits.test["id"]) == sorted(f"train-{i + 1}" for i in range(31))
    for splits in parts:
        assert len(splits.dev) == 10
        assert not {*splits.test["sha256"]} & {*splits.train["sha256"]}


def test_the_cut_follows_data_seed(tmp_path):
    path = str(write_csv(tmp_path / "rows.csv", texts(60)))
    first, other = (load_splits(DataConfig(path=path, seed=7), seed) for seed in (0, 1))
    assert first.test["id"] == other.test["id"] == load_splits(DataConfig(path=path), 7).test["id"]
    assert first.facts == other.facts
    assert first.facts["cut_from_train"]["test"]["seed"] == 7
    assert first.test["id"] != load_splits(DataConfig(path=path), 0).test["id"]


# what may be asked


@pytest.mark.parametrize("words", [["0", "1", "2"], ["0,1,2"], ["[0, 1, 2]"]])
def test_seeds_are_a_list(words):
    assert config("--run.seeds", *words, "--run.seed", 0).run.seeds == [0, 1, 2]


def test_a_list_stands_in_yaml_too_and_a_wrong_one_is_an_error(tmp_path):
    (tmp_path / "c.yaml").write_text("run:\n  seeds: [3, 4]\n")
    assert config("--config", tmp_path / "c.yaml").run.seeds == [3, 4]
    with pytest.raises(UserError, match=r"^--run\.seeds must be a list such as 0,1,2 or null, not "):
        config("--run.seeds", "one", "two")
    with pytest.raises(UserError, match=r"^'3' is no setting"):
        config("--run.seed", 2, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--run.seeds 3", "--run.seeds 3: name two seeds or more, each once, from 0 up; for one use --run.seed"),
        ("--run.seeds 1 1", "--run.seeds 1,1: name two seeds or more"),
        ("--run.seeds 0 -1", "--run.seeds 0,-1: name two seeds or more"),
        ("--run.seeds 0 1 --run.seed 2", "--run.seed 2 does nothing beside --run.seeds"),
        ("--run.seeds 0 1 --data.folds 3", "--run.seeds and --data.folds together would be a model for each pair"),
        ("--data.folds 3 --data.test x.csv", "--data.test x.csv: with --data.folds"),
        ("--run.seeds 0 1 --hub.push_to me/it", "--hub.push_to with --run.seeds: there will be 2 models; leave it out, "
         "and push one of them with graft push RUN/seed-0 me/it"),
        ("--data.folds 3 --hub.push_to me/it", "--hub.push_to with --data.folds: there will be 3 models"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_before_training(words, message):
    asked = config(*words.split())
    assert several_asked(asked)
    with pytest.raises(UserError) as error:
        check_several(asked)
    assert str(error.value).startswith(message)


def test_one_fold_is_an_ordinary_run_also_with_seeds():
    assert not several_asked(config("--data.folds", 3, "--data.fold", 2))
    assert not several_asked(config())
    asked = config("--data.folds", 3, "--data.fold", 2, "--run.seeds", 4, 5)
    check_several(asked)
    parts = one_by_one(asked)
    assert [(part.run.seed, part.run.seeds, part.data.seed, part.data.fold) for part in parts.values()] == [
        (4, None, 4, 2),
        (5, None, 4, 2),
    ]


def test_a_dry_run_tries_the_first(tmp_path):
    tried = []
    run_several("r", lambda part: tried.append(part) or {}, config("--data.folds", 3, "--run.dry_run"))
    assert [part.data.fold for part in tried] == [1]


def fail(part):
    raise UserError("no such rows")


def test_a_folder_is_touched_only_when_the_data_are_found_good(tmp_path):
    out = tmp_path / "runs" / "r"
    asked = config("--run.seeds", 0, 1, "--run.out", out)
    with pytest.raises(UserError, match=r"^no such rows$"):
        run_several("r", fail, asked)
    assert not out.exists()
    for name, text in (("config.yaml", "a: 1\n"), ("report.md", "old")):
        out.mkdir(exist_ok=True)
        (out / name).write_text(text)
    with pytest.raises(UserError, match=r"is not empty; set --run\.resume, --run\.overwrite or another folder"):
        run_several("r", fail, asked)
    with pytest.raises(UserError, match=r"^no such rows$"):
        run_several("r", fail, replace(asked, run=replace(asked.run, overwrite=True)))
    assert {path.name: path.read_text() for path in out.iterdir()} == {"config.yaml": "a: 1\n", "report.md": "old"}
    assert list(out.parent.iterdir()) == [out]

    write_aside(out / "config.yaml", to_yaml(asked, leave_out=not_kept(asked)))
    with pytest.raises(UserError, match=r"^no such rows$"):  # nor when it fails to go on
        run_several("r", fail, replace(asked, run=replace(asked.run, resume=True)))
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "report.md"]

    def claim_and_fail(part):
        Path(part.run.out).mkdir()
        raise UserError("it broke later")

    with pytest.raises(UserError, match=r"^it broke later$"):
        run_several("r", claim_and_fail, replace(asked, run=replace(asked.run, overwrite=True)))
    assert sorted(path.name for path in out.iterdir()) == ["config.yaml", "seed-0"]
    assert list(out.parent.iterdir()) == [out]


def finished(folder: Path, part) -> None:
    """A run that went to its end, as far as whoever resumes looks."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(part, leave_out=not_kept(part)))
    (folder / "report.html").write_text("")


def test_folds_that_were_trained_one_by_one_are_kept(tmp_path):
    asked = config("--data.folds", 3, "--run.out", tmp_path / "run", "--run.resume")
    parts = one_by_one(asked)
    for name in ("fold-1", "fold-3"):
        finished(tmp_path / "run" / name, parts[name])
    with pytest.raises(UserError, match=r"^no such rows$"):
        run_several("r", lambda part: fail(part) if part.data.fold == 2 else pytest.fail("trained again"), asked)
    (tmp_path / "run" / "config.yaml").unlink(missing_ok=True)
    changed = replace(asked, train=replace(asked.train, epochs=9))
    with pytest.raises(UserError, match=r"settings differ from those of .*fold-1: train\.epochs: 3 -> 9"):
        run_several("r", fail, changed)


def test_seeds_may_be_added_but_not_to_an_ordinary_run(tmp_path):
    asked = config("--run.seeds", 4, 5, "--run.out", tmp_path / "run", "--run.resume")
    more = replace(asked, run=replace(asked.run, seeds=[4, 5, 6]))
    for name, part in one_by_one(asked).items():
        finished(tmp_path / "run" / name, part)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(asked, leave_out=not_kept(asked)))
    tried = []
    with pytest.raises(UserError, match=r"^no such rows$"):
        run_several("r", lambda part: tried.append((part.run.seed, part.data.seed)) or fail(part), more)
    assert tried == [(6, 4)]  # on the rows of the first seed
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config(), leave_out=not_kept(asked)))
    with pytest.raises(UserError, match=r"settings differ from those of .*run: run\.seeds: null -> \[4, 5, 6\]"):
        run_several("r", fail, more)


def test_whoever_stops_one_run_is_told_how_all_go_on(tmp_path):
    def stop(part):
        Path(part.run.out).mkdir()
        raise Stopped(f"to go on, give the same command with --run.out {part.run.out} --run.resume", 130)

    out = tmp_path / "run"
    with pytest.raises(Stopped) as stopped:
        run_several("r", stop, config("--run.seeds", 0, 1, "--run.out", out))
    assert str(stopped.value) == f"to go on, give the same command with --run.out {out} --run.resume"
    assert stopped.value.code == 130


# what is told of them


def test_groups_of_folds_are_numbered_on():
    tables = [
        {"id": np.array(["a", "b"], object), "measure:x": np.array([1.0, np.nan]), "group": np.array([0, 1])},
        {"id": np.array(["c", "d"], object), "measure:x": np.array([2.0, 3.0]), "group": np.array([0, 0])},
    ]
    rows = join_measures(tables)
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    assert [row["group"] for row in rows] == [0, 1, 2, 2]


def over_seeds(folder: Path, **change) -> Path:
    """The folder of three seeds, as a recipe leaves it."""
    folder.mkdir()
    for seed in range(3):
        child = make_run(folder / f"seed-{seed}", seed=seed, lead=2.0)
        labels, records = read_predictions(child, "test")
        for place, record in enumerate(records[: 10 * seed]):
            record["prediction"] = labels[(labels.index(record["label"]) + 1 + place % seed) % len(labels)]
        write_predictions(child, "test", records, labels)
    run = read_run(folder / "seed-0") | {"seed": [0, 1, 2]}
    run |= {"seeds": [{"name": f"seed-{seed}", "seed": seed} for seed in range(3)]} | change
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def test_the_report_over_seeds_follows_from_the_tables(tmp_path):
    folder = over_seeds(tmp_path / "run")
    metrics = write_report(folder)["seeds"]
    scores = [write_report(folder / f"seed-{seed}")["test"]["headline"] for seed in range(3)]
    assert [one["headline"] for one in metrics["runs"]] == scores
    expected = student([one["value"] for one in scores], 0.0, 1.0)
    assert (metrics["headline"]["value"], metrics["headline"]["low"]) == (expected.value, expected.low)
    said = [[r["prediction"] for r in read_predictions(folder / f"seed-{s}", "test")[1]] for s in range(3)]
    assert metrics["answers"]["not_the_same"] == sum(len(set(row)) > 1 for row in zip(*said, strict=True)) > 0
    assert sum(metrics["answers"][f"right_by_{who}"] for who in ("all", "some", "none")) == 120
    page, written = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for seed in range(3):
        assert f'href="seed-{seed}/report.html"' in page
        assert f"`seed-{seed}/report.html`" in written
    assert "<script>alert(1)</script>" not in page
    assert "\n## Load the model" not in written
    assert json.loads((folder / "metrics.json").read_text()) == {"seeds": metrics}
    lines = metrics_text({"seeds": metrics}).splitlines()
    assert len(lines) == 3
    assert "over 3 seeds" in lines[0]
    assert "of 120 rows get another answer from another seed" in lines[2]


def test_seeds_that_answered_other_rows_or_were_edited_are_an_error(tmp_path):
    folder = over_seeds(tmp_path / "run")
    labels, records = read_predictions(folder / "seed-1", "test")
    write_predictions(folder / "seed-1", "test", records[:-1], labels)
    with pytest.raises(UserError, match=r"seed-1 and .*seed-0 did not answer the same rows"):
        write_report(folder)
    shutil.rmtree(folder / "seed-1")
    with pytest.raises(UserError, match=r"no run\.json in .*seed-1"):
        write_report(folder)


def test_a_folder_over_seeds_is_an_arm_and_holds_no_model_to_push_or_ask(tmp_path):
    from graftkit.classifiers import locate
    from graftkit.hub.gate import read_record

    one, other = (over_seeds(tmp_path / name, recipe="text_classify") for name in ("one", "other"))
    arms, _ = load_arms([str(one), str(other)])
    assert [len(arm.runs) for arm in arms] == [3, 3]
    (one / "config.yaml").write_text("a: 1\n")
    for ask in (lambda: read_record(one), lambda: locate(str(one))):
        with pytest.raises(UserError, match=r"holds 3 models; .* such as .*seed-0$"):
            ask()


def test_an_ordinary_report_says_how_to_get_seeds_and_folds(tmp_path):
    report = report_of(make_run(tmp_path / "run"))
    assert "--run.seeds 0 1 2 says" in report.split("## Over seeds\n")[1].split("\n## ")[0]
    assert "--data.folds 5 trains five models" in report.split("## Over folds\n")[1].split("\n## ")[0]


def test_the_report_over_folds_is_that_of_all_rows_with_the_spread(tmp_path):
    folder = make_run(
        tmp_path / "run", folds=[{"name": f"fold-{i}", "train": 80, "dev": 8, "test": 40} for i in (1, 2, 3)]
    )
    for path in folder.glob("*-dev.parquet"):
        path.unlink()
    write_measures(folder, "test", [{"id": row["id"], "measure:tokens": 3.0} for row in read_rows(folder, "test")])
    metrics = write_report(folder)
    assert metrics["test"]["rows"] == 120
    _, records = read_predictions(folder, "test")
    right = [record["label"] == record["prediction"] for record in records]
    shares = [float(np.mean(right[start : start + 40])) for start in (0, 40, 80)]
    assert [one["scores"]["accuracy"] for one in metrics["folds"]["runs"]] == pytest.approx(shares)
    assert metrics["folds"]["scores"]["accuracy"] == pytest.approx(spread(shares))
    report = (folder / "report.md").read_text()
    assert "each answered by the one of 3 models that had not seen it, this recipe sorts" in report
    assert "Bengio and Grandvalet 2004" in report
    assert "## Over seeds" not in report
    assert "## Load the model" not in report
    assert 'href="fold-2/report.html"' in (folder / "report.html").read_text()
    assert "macro F1 of the 3 folds: " in metrics_text(metrics)


# the whole of it


def words(checkpoint, path, out) -> list[object]:
    return [
        "--backbone.name", checkpoint("bert", dropout=0.1), "--data.path", path, "--train.epochs", 1,
        "--train.batch_size", 8, "--train.save_every", 1, "--run.precision", "fp32", "--run.out", out,
    ]  # fmt: skip


def stop_in(monkeypatch, wanted: int) -> None:
    """Let training end with an interrupt at its update of this number, counted over all runs."""
    from graftkit import train

    whole, seen = train.accumulate_gradients, []

    def stop(*arguments):
        seen.append(1)
        if len(seen) == wanted:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(train, "accumulate_gradients", stop)


@pytest.mark.parametrize(("flags", "names"), [
    (("--run.seeds", 0, 5), ("seed-0", "seed-5")),
    (("--data.folds", 2), ("fold-1", "fold-2")),
])  # fmt: skip
def test_several_runs_that_were_stopped_end_as_if_they_never_had(tmp_path, checkpoint, monkeypatch, flags, names):
    path = write_csv(tmp_path / "rows.csv", texts(60))
    whole, run = tmp_path / "whole", tmp_path / "run"
    metrics = run_recipe("text_classify", *words(checkpoint, path, whole), *flags)
    updates = (whole / names[0] / "log.jsonl").read_text().count('"loss"')
    with monkeypatch.context() as patch:
        stop_in(patch, updates + 3)  # in the second run
        with pytest.raises(KeyboardInterrupt):
            run_recipe("text_classify", *words(checkpoint, path, run), *flags)
    assert (run / names[0] / "report.html").exists()
    assert not (run / names[1] / "run.json").read_text().count('"tables"')
    kept = (run / names[0] / "run.json").stat().st_mtime_ns
    again = run_recipe("text_classify", *words(checkpoint, path, run), *flags, "--run.resume")
    assert again == metrics
    assert (run / names[0] / "run.json").stat().st_mtime_ns == kept
    assert "resumed after update 2" in read_run(run / names[1])["notes"]
    seconds = read_run(run)["seconds"]
    assert seconds["total"] >= seconds[names[0]] + seconds[names[1]]  # what was spent before the stop counts, too
    tables = [f"{name}/{table}" for name in names for table in TABLES]
    for name in [*tables, "metrics.json", *(TABLES if names[0] == "fold-1" else [])]:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    with pytest.raises(UserError, match=r"settings differ .*train\.epochs: 1 -> 3"):
        run_recipe("text_classify", *words(checkpoint, path, run), *flags, "--train.epochs", 3, "--run.resume")
    if names[0] == "fold-1":
        ids = [row["id"] for row in read_rows(run, "test")]
        assert sorted(ids) == sorted(f"train-{i + 1}" for i in range(60))
        load_arms([str(run), str(whole)])
    else:  # each is an ordinary run
        plain = words(checkpoint, path, tmp_path / "plain")
        run_recipe("text_classify", *plain, "--run.seed", 5, "--data.seed", 0)
        for name in TABLES:
            assert (tmp_path / "plain" / name).read_bytes() == (whole / "seed-5" / name).read_bytes()


@pytest.mark.slow
def test_seeds_and_folds_on_two_processes(tmp_path, checkpoint):
    path = write_csv(tmp_path / "rows.csv", texts(60))
    for name, flags, parts in (
        ("seeds", ("--run.seeds", 0, 5), ("seed-0", "seed-5")),
        ("folds", ("--data.folds", 2), ("fold-1", "fold-2")),
    ):
        out = tmp_path / name
        recipe = ROOT / "recipes" / "text_classify.py"
        finish(launch_script(recipe, *words(checkpoint, path, out), *flags, processes=2))
        assert [read_run(out / part)["processes"] for part in parts] == [2, 2]
        assert (out / "report.html").exists()
