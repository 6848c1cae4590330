"""The same numbers, however many processes share the work. Real processes: torchrun, gloo, CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import finish, launch, launch_script
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
    finish(launch("text_classify", *words, "--run.out", run, "--train.batch_size", 8))
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
