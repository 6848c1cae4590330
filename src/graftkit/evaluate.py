"""What does it predict on a split?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graftkit.batches import fixed_batches
from graftkit.failures import explain_memory
from graftkit.feed import load_batches
from graftkit.task import Record, Row, Task

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from torch import nn


def predict_rows(
    accelerator: Accelerator,
    task: Task,
    model: nn.Module,
    rows: Sequence[Row],
    lengths: np.ndarray | None,
    chance: tuple[int, int] | None = None,
) -> list[Record]:
    """One record per row, once, in the order of the rows, on every process.

    Batches depend on the split alone and are dealt whole to processes, so that the same weights give the same numbers,
    bit for bit, for any number of processes (with the same threads each) and any batch size in training. With `chance`,
    (seed, epoch), rows look as they do in that epoch of training.
    """
    import torch
    from accelerate.utils import broadcast, gather_object

    batches = fixed_batches(lengths, len(rows))
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    plain = accelerator.unwrap_model(model)  # DDP's forward would wait for the other processes' batches
    plain.eval()
    if accelerator.num_processes > 1:
        for buffer in plain.buffers():  # batch norm's statistics: each process has seen its own rows
            broadcast(buffer)
    found: list[tuple[int, Record]] = []
    with torch.no_grad(), full_precision():
        for indices, batch in zip(mine, load_batches(task, rows, mine, chance), strict=True):
            with explain_memory(indices, lengths, len(indices), training=False):
                records = task.predict(plain, batch.to(accelerator.device))
            found += zip((int(i) for i in indices), records, strict=True)
    everywhere = gather_object(found)
    return [record for _, record in sorted(everywhere, key=lambda entry: entry[0])]


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 in convolutions, which a GPU uses by default: numbers must be those of another machine."""
    import torch

    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
