"""The same numbers, however many processes share the work. Real processes: torchrun, gloo, CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import finish, free_port, launch
from safetensors.torch import load_file

SPLITS = [(1, 8, 1), (1, 2, 4), (2, 2, 2), (2, 4, 1), (3, 1, 4)]  # processes, batch_size, accumulate


def gradients(folder: Path, checkpoint: Path, data: Path, processes: int, batch_size: int, accumulate: int):
    out = folder / f"{processes}-{batch_size}-{accumulate}"
    script = [str(Path(__file__).parent / "gradients.py"), str(checkpoint), str(data), str(out)]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    command = [sys.executable, *torchrun, *script, str(batch_size), str(accumulate)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, timeout=240, capture_output=True)
    notes = [json.loads(Path(f"{out}.{process}.json").read_text()) for process in range(processes)]
    return notes, load_file(f"{out}.safetensors")["gradient"].double()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory, checkpoint, data):
    return gradients(tmp_path_factory.mktemp("one"), checkpoint("bert"), data, *SPLITS[0])


@pytest.mark.parametrize(
    "split", [SPLITS[1], SPLITS[2], *(pytest.param(s, marks=pytest.mark.slow) for s in SPLITS[3:])]
)
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
    assert size == 8
    assert notes[0]["orders"]["0"] != notes[0]["orders"]["1"]
    assert all(note["orders"] == notes[0]["orders"] for note in notes)


def test_tables_are_byte_identical_for_one_and_two_processes(tmp_path, checkpoint, data):
    """From the same saved weights: a run that is resumed after its last update predicts, and does not train."""
    run = tmp_path / "one"
    words = ["--backbone.name", checkpoint("bert"), "--data.path", data, "--train.epochs", 1, "--run.precision", "fp32"]
    finish(launch("text_classify", *words, "--run.out", run, "--train.batch_size", 8))
    script = Path(__file__).parent / "tables.py"
    for processes in (1, 2):
        out = tmp_path / f"again-{processes}"
        torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command = [
            sys.executable,
            *torchrun,
            "--master_port",
            str(free_port()),
            str(script),
            str(run),
            str(data),
            str(out),
        ]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, timeout=240, capture_output=True)
    for name in ("predictions-test.parquet", "predictions-dev.parquet", "metrics.json"):
        kept = (run / name).read_bytes()
        assert (tmp_path / "again-1" / name).read_bytes() == kept
        assert (tmp_path / "again-2" / name).read_bytes() == kept
    rows = json.loads((run / "metrics.json").read_text())["test"]["rows"]
    assert rows == 19
