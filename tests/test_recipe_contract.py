"""What every recipe must hold to, end to end: a table with one row per recipe.

A run that was stopped and resumed ends as one that never stopped; two processes write the bytes that one writes.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import SHAPES, WORDS, draw, finish, launch_script, load_recipe, run_recipe, texts, write_csv
from test_token_classification import sentences

from graftkit.config import parse
from graftkit.errors import Stopped, UserError
from graftkit.stop import Stop

TABLES = ("predictions-test.parquet", "predictions-dev.parquet", "rows-test.parquet", "measures-test.parquet")


@dataclass(frozen=True)
class Case:
    """A recipe, a tiny checkpoint for it, and rows."""

    recipe: str
    kind: str
    write: Callable[[Path], Path]  # rows into a folder; what to give as --data.path
    words: tuple[object, ...] = ()


def write_texts(folder: Path) -> Path:
    """Sentences with a class each."""
    return write_csv(folder / "rows.csv", texts(60))


def write_sentences(folder: Path) -> Path:
    """Sentences with a tag for each word."""
    rows = [{name: row[name] for name in ("words", "tags")} for row in sentences(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def write_pictures(folder: Path) -> Path:
    """Pictures in a folder for each class."""
    for i in range(36):
        place = folder / SHAPES[i % 3]
        place.mkdir(exist_ok=True)
        draw(SHAPES[i % 3], i).save(place / f"{i}.png")
    return folder


def write_sets(folder: Path) -> Path:
    """Sentences with any number of labels."""
    named = {text: [group for group in WORDS if set(WORDS[group]) & set(text.split())] for text in PAIRED}
    return write_csv(folder / "rows.csv", [(text, "|".join(groups)) for text, groups in named.items()])


def write_numbers(folder: Path) -> Path:
    """Sentences with a number: how many words they have."""
    return write_csv(folder / "rows.csv", [(text, str(len(text.split()))) for text, _ in texts(60)])


def write_questions(folder: Path) -> Path:
    """Which fruit, tool or bird a sentence names; some name none."""
    rows = []
    for i, (text, label) in enumerate(texts(60)):
        asked = label if i % 4 else "number"
        found = next(word for word in text.split() if word in WORDS[label])
        answers = {"text": [found], "answer_start": [f" {text} ".index(f" {found} ")]} if i % 4 else {}
        answers = answers or {"text": [], "answer_start": []}
        rows.append({"id": str(i), "context": f"{text} {i}", "question": f"which {asked} is it", "answers": answers})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def write_pairs(folder: Path) -> Path:
    """A sentence, and the fruit, tool or bird that it names."""
    rows = [(text, next(word for word in text.split() if word in WORDS[label])) for text, label in texts(60)]
    return write_csv(folder / "rows.csv", rows, ("source", "target"))


PAIRED = [f"{one} {other}" for (one, _), (other, _) in zip(texts(60), texts(60, 1)[7:] + texts(7, 2), strict=True)]

CASES = [
    Case("text_classify", "bert", write_texts),
    Case("text_classify", "bert", write_sets, ("--data.task", "multi")),
    Case("text_classify", "bert", write_numbers, ("--data.task", "regression")),
    Case("token_classify", "bert", write_sentences),
    Case("image_classify", "test_resnet", write_pictures, ("--image.workers", 0)),
    Case("answer", "bert", write_questions),
    Case("generate", "gpt2", write_texts, ("--generate.max_new_tokens", 4)),
    Case("translate", "t5", write_pairs, ("--generate.beams", 2, "--generate.max_new_tokens", 6)),
    Case("pretrain", "bert", write_texts),
]


@pytest.fixture(params=CASES, ids=[f"{case.recipe}-{i}" for i, case in enumerate(CASES)])
def ready(request, tmp_path, checkpoint, image_checkpoint):
    """A recipe and the words that run it on a tiny checkpoint with dropout."""
    case = request.param
    (tmp_path / "data").mkdir()
    pictures = case.recipe == "image_classify"
    start = image_checkpoint(case.kind) if pictures else checkpoint(case.kind, dropout=0.1)
    path = case.write(tmp_path / "data")
    words = ["--backbone.name", start, "--data.path", path, "--run.precision", "fp32", *case.words]
    return case.recipe, [str(word) for word in words]


@pytest.mark.parametrize("name", dict.fromkeys(case.recipe for case in CASES))
def test_settings_that_do_not_go_together_are_refused_by_check_which_main_asks_first(name, monkeypatch):
    recipe = load_recipe(name)
    recipe.check(recipe.Config())
    wrong = parse(recipe.Config, ["--adapt.explain", "--train.lr", "auto"])
    with pytest.raises(UserError, match=r"^--adapt\.explain shows rates"):
        recipe.check(wrong)
    asked = []
    monkeypatch.setattr(recipe, "check", lambda config: asked.append(config) or recipe.no_such_name)
    with pytest.raises(AttributeError, match="no_such_name"):
        recipe.main(wrong)
    assert asked == [wrong]


def stop_after(updates: int, monkeypatch) -> None:
    """Let the run be asked to stop, as by Ctrl-C, after so many updates."""
    asked = []

    def agreed(self, accelerator):
        asked.append(None)
        if len(asked) == updates:
            self.signal = signal.SIGINT
        return len(asked) == updates

    monkeypatch.setattr(Stop, "agreed", agreed)


def same_files(one: Path, other: Path, names) -> None:
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_run_that_was_stopped_and_resumed_ends_as_one_that_never_stopped(ready, tmp_path, monkeypatch):
    recipe, words = ready
    words += ["--train.epochs", "2", "--train.batch_size", "8", "--train.lr", "1e-3"]
    run_recipe(recipe, *words, "--run.out", tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_after(3, patched)
        with pytest.raises(Stopped, match=r"after update 3, which is saved"):
            run_recipe(recipe, *words, "--run.out", tmp_path / "parts")
    assert not (tmp_path / "parts" / "model").exists()
    run_recipe(recipe, *words, "--run.out", tmp_path / "parts", "--run.resume")
    weights = [f"model/{path.name}" for path in (tmp_path / "whole" / "model").glob("*.safetensors")]
    assert weights
    same_files(tmp_path / "whole", tmp_path / "parts", [*weights, *TABLES, "log.jsonl", "metrics.json"])


@pytest.mark.slow
def test_a_run_until_dev_leaves_test_unasked_and_goes_on_to_the_same_end(ready, tmp_path, monkeypatch):
    recipe, words = ready
    words += ["--train.max_steps", "3", "--train.batch_size", "8", "--train.lr", "1e-3"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    metrics = run_recipe(recipe, *words, "--run.out", whole)
    asked = asked_rows(monkeypatch)
    found = run_recipe(recipe, *words, "--run.out", parts, "--run.until", "dev")
    assert asked == ids_of(whole, "dev")
    assert not list(parts.glob("*test*"))
    record = json.loads((parts / "run.json").read_text())
    assert found["dev"]["headline"] == record["dev"]["headline"] == metrics["dev"]["headline"]
    assert not {"samples", "baselines", "saved", "audit"} & set(record)
    assert not (parts / "report.html").exists()
    run_recipe(recipe, *words, "--run.out", parts, "--run.resume")
    weights = [f"model/{path.name}" for path in (whole / "model").glob("*.safetensors")]
    same_files(whole, parts, [*weights, *TABLES, "log.jsonl", "metrics.json"])
    assert "dev" not in json.loads((parts / "run.json").read_text())


def asked_rows(monkeypatch) -> set[str]:
    """The ids of the rows that the model is asked about from now on."""
    from graftkit import evaluate

    asked, load = set(), evaluate.load_batches

    def load_batches(task, rows, batches, *more):
        asked.update(row["id"] for row in rows)
        return load(task, rows, batches, *more)

    monkeypatch.setattr(evaluate, "load_batches", load_batches)
    return asked


def ids_of(folder: Path, split: str) -> set[str]:
    """The rows of a table of predictions."""
    from graftkit.report.tables import read_predictions

    return {record["id"] for record in read_predictions(folder, split)[1]}


@pytest.mark.slow
def test_seeds_and_folds_are_told_together(ready, tmp_path):
    recipe, words = ready
    words += ["--train.max_steps", "2", "--train.batch_size", "8"]
    over_seeds = run_recipe(recipe, *words, "--run.out", tmp_path / "seeds", "--run.seeds", 0, 1)["seeds"]
    assert [one["seed"] for one in over_seeds["runs"]] == [0, 1]
    apart = [one["headline"]["value"] for one in over_seeds["runs"]]
    assert over_seeds["headline"]["value"] == pytest.approx(sum(apart) / 2)
    metrics = run_recipe(recipe, *words, "--run.out", tmp_path / "folds", "--data.folds", 2)
    rows = [fold["test"] for fold in metrics["folds"]["runs"]]
    assert metrics["test"]["rows"] == sum(rows) > 2 * 10
    name = metrics["test"]["headline"]["name"]
    folds = [tmp_path / f"folds/fold-{i}/metrics.json" for i in (1, 2)]
    apart = [json.loads(path.read_text())["test"]["scores"][name] for path in folds]
    assert [fold["scores"][name] for fold in metrics["folds"]["runs"]] == pytest.approx(apart)
    for folder in ("seeds", "folds"):
        assert "Watch out" in (tmp_path / folder / "report.md").read_text()


@pytest.mark.slow
def test_two_processes_write_the_bytes_that_one_writes(ready, tmp_path):
    """From the same weights: training itself rounds otherwise on two (see test_processes)."""
    recipe, words = ready
    script = Path(__file__).parent / "untrained.py"
    for processes in (1, 2):
        finish(launch_script(script, recipe, *words, "--run.out", tmp_path / str(processes), processes=processes))
    same_files(tmp_path / "1", tmp_path / "2", [*TABLES, "baselines-test.parquet", "metrics.json"])
