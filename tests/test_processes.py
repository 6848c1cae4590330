"""The same numbers, however many processes share the work. Real processes: torchrun, gloo, CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import finish, launch, launch_script, run_recipe
from safetensors.torch import load_file

SPLITS = [(1, 8, 1), (1, 2, 4), (2, 2, 2), (2, 4, 1), (3, 1, 4)]  # processes, batch_size, accumulate


def gradients(folder: Path, checkpoint: Path, data: Path, processes: int, batch_size: int, accumulate: int):
    out = folder / f"{processes}-{batch_size}-{accumulate}"
    words = [checkpoint, data, out, batch_size, accumulate]
    finish(launch_script(Path(__file__).parent / "gradients.py", *words, processes=processes))
    notes = [json.loads(Path(f"{out}.{process}.json").read_text()) for process in range(processes)]
    return notes, load_file(f"{out}.safetensors")["gradient"].double()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, checkpoint, data):
    return gradients(tmp_path_factory.mktemp("one"), checkpoint("bert"), data, *SPLITS[0])


SLOW = [pytest.param(split, marks=pytest.mark.slow) for split in SPLITS[3:]]


@pytest.mark.parametrize("split", [*SPLITS[1:3], *SLOW])
def test_loss_and_gradient_do_not_depend_on_the_split(tmp_path, checkpoint, data, one_process, split):
    notes, gradient = gradients(tmp_path, checkpoint("bert"), data, *split)
    expected, whole = one_process
    size = len(expected[0]["rows"])
    if split[0] * split[1] * split[2] == 8:
        assert all(note["rows"] == expected[0]["rows"] for note in notes)
        assert all(note["loss"] == pytest.approx(expected[0]["loss"], rel=1e-6) for note in notes)
        assert torch.linalg.norm(gradient - whole) <= 2e-6 * torch.linalg.norm(whole)
    seen = sorted(id for note in notes for batch in note["mine"] for id in batch)
    assert len(seen) == len(set(seen)) == len(notes[0]["rows"])
    assert size in (7, 8)  # 47 rows in 6 updates
    assert notes[0]["orders"]["0"] != notes[0]["orders"]["1"]
    assert all(note["orders"] == notes[0]["orders"] for note in notes)


def test_tables_are_byte_identical_for_one_and_two_processes(tmp_path, checkpoint, data):
    """From the same saved weights; the run itself was made by one process."""
    run = tmp_path / "one"
    words = ["--backbone.name", checkpoint("bert"), "--data.path", data, "--train.epochs", 1, "--run.precision", "fp32"]
    run_recipe("text_classify", *words, "--run.out", run, "--train.batch_size", 8)
    script = Path(__file__).parent / "tables.py"
    for processes in (1, 2):
        out = tmp_path / f"again-{processes}"
        finish(launch_script(script, run, data, out, processes=processes))
    for name in ("predictions-test.parquet", "predictions-dev.parquet", "metrics.json"):
        kept = (run / name).read_bytes()
        assert (tmp_path / "again-1" / name).read_bytes() == kept
        assert (tmp_path / "again-2" / name).read_bytes() == kept
    rows = json.loads((run / "metrics.json").read_text())["test"]["rows"]
    assert rows == 19


@pytest.mark.slow
def test_scores_after_training_apart_agree(tmp_path, checkpoint, data):
    """The same updates on one process and on two round differently; docs/concepts.md states how far that may lead."""
    found = []
    for processes, batch_size in ((1, 8), (2, 4)):
        run = tmp_path / f"run-{processes}"
        words = ["--backbone.name", checkpoint("bert"), "--data.path", data, "--train.epochs", 8, "--train.lr", 5e-3]
        words += [
            "--train.head_lr",
            5e-3,
            "--train.batch_size",
            batch_size,
            "--run.precision",
            "fp32",
            "--run.out",
            run,
        ]
        finish(launch("text_classify", *words, processes=processes))
        table = pq.read_table(run / "predictions-test.parquet")
        chances = [table[name].to_numpy() for name in table.column_names if name.startswith("probability:")]
        found.append((np.array(chances), json.loads((run / "metrics.json").read_text())["test"]["scores"]))
    (alone, scores), (together, others) = found
    assert np.ptp(alone, axis=1).max() > 0.1  # it learned something that could differ
    assert np.abs(alone - together).max() < 1e-5
    assert scores == pytest.approx(others, abs=1e-5)


def test_the_batch_size_of_training_does_not_reach_the_tables(tmp_path, checkpoint, data):
    """At a rate at which no weight moves, runs with other batch sizes save the same weights: their tables are equal."""
    words = ["--backbone.name", checkpoint("bert"), "--data.path", data, "--train.epochs", 1, "--train.lr", 1e-300]
    words += ["--train.head_lr", 1e-300, "--train.weight_decay", 0, "--run.precision", "fp32"]
    for batch_size in (3, 16):
        run_recipe("text_classify", *words, "--train.batch_size", batch_size, "--run.out", tmp_path / str(batch_size))
    for name in ("model/model.safetensors", "predictions-test.parquet", "predictions-dev.parquet", "metrics.json"):
        assert (tmp_path / "3" / name).read_bytes() == (tmp_path / "16" / name).read_bytes(), name
