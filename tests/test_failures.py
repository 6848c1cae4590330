from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from graftkit.errors import UserError
from graftkit.failures import explain_disk, explain_memory
from graftkit.machine import choose_precision


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_rows_lengths_and_flags(error):
    lengths = np.array([5, 900, 7])
    with (
        pytest.raises(
            UserError, match=r"with 8 rows of up to 900 tokens per forward pass; set a smaller --train"
        ) as got,
        explain_memory(np.array([0, 1]), lengths, 8),
    ):
        raise error
    assert got.value.everywhere
    assert "\n" not in str(got.value)


def test_memory_that_really_runs_out_is_explained():
    import torch

    with pytest.raises(UserError, match="out of memory with 4 rows"), explain_memory(np.array([0]), None, 4):
        torch.empty(2**50)


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"), explain_memory(np.array([0]), None, 1):
        raise RuntimeError("shapes do not match")
    with pytest.raises(OSError, match="denied"), explain_disk("x"):
        raise PermissionError(13, "Permission denied")


def test_a_disk_that_is_really_full_is_one_line(tmp_path):
    """The kernel refuses files above 4 KiB: what safetensors and Python then raise becomes our sentence."""
    script = """
import resource, signal, sys
from pathlib import Path
import torch
from graftkit import checkpoint
from graftkit.config import start
from graftkit.optim import make_optimizer
model = torch.nn.Linear(100, 100)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
from dataclasses import dataclass
@dataclass(frozen=True)
class Config: pass
optimizer = make_optimizer(model, set(), 1, 1, 0)
start(lambda config: checkpoint.save(Path(sys.argv[1]), model, optimizer, checkpoint.State()), Config, [])
"""
    command = [sys.executable, "-c", script, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "the disk is full; what was saved is whole" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.safetensors"))


def test_precision_follows_the_hardware(monkeypatch):
    from graftkit import machine

    for has, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(machine, "_cpu_has_bf16", lambda has=has: has)
        assert choose_precision("auto", "cpu") == expected
    assert choose_precision("bf16", "cpu") == "bf16"
    with pytest.raises(UserError, match="fp16 needs a CUDA GPU"):
        choose_precision("fp16", "cpu")
