"""What stopped it?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.errors import UserError
from graftkit.task import Row

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

DISK_FULL = ("No space left on device", "os error 28", "Disk quota exceeded", "File too large")
TRAIN_ON_LESS = (
    "set a smaller --train.batch_size (with a larger --train.accumulate for the same update), "
    "--train.checkpointing true, --adapt.strategy lora, last or head, or less of each row"
)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def check_finite(loss: float, norm: float, update: int, rows: Sequence[Row], indices: np.ndarray) -> None:
    """Raise UserError where an update's loss or the norm of its gradient is not finite, before the weights step.

    It names the rows of the update: those of `rows` at `indices`.
    """
    what, value = ("loss", loss) if not math.isfinite(loss) else ("gradient", norm)
    if not math.isfinite(value):
        ids = [rows[int(i)]["id"] for i in indices]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        raise UserError(
            f"the {what} of update {update} is {value}; its rows: {shown}. The last checkpoint is good: "
            "look at these rows, or set a lower --train.lr, or --run.precision fp32"
        )


def check_reached(model: nn.Module) -> None:
    """Raise UserError where PEFT adapts layers that the network reads past, so that no gradient reaches them.

    Some networks of timm (BEiT, Swin v2) compute with a layer's weight and never call the layer, which PEFT wraps.
    """
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for part, way in ((".lora_", "LoRA"), (".ia3_", "IA3")):
        if missed := sorted({name.partition(part)[0].rpartition(".")[2] for name in without if part in name}):
            raise UserError(
                f"{way} on {', '.join(missed)} does nothing: this network reads past these layers; "
                "set --adapt.targets to others, or --adapt.strategy last"
            )


@contextmanager
def explain_memory(
    rows: np.ndarray, lengths: np.ndarray | None, batch_size: int, *, training: bool = True
) -> Iterator[None]:
    """Turn an out-of-memory error in the block into a UserError that names row lengths and the flags that help."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in OUT_OF_MEMORY):
            raise
        longest = "" if lengths is None else f" of up to {lengths[rows].max()} tokens"
        cure = TRAIN_ON_LESS if training else "the split alone says how many; shorter or smaller rows"
        size = "--image.size" if lengths is None else "--backbone.max_length"
        raise UserError(
            f"out of memory with {batch_size} rows{longest} per forward pass; {cure}: a smaller {size}", everywhere=True
        ) from error


@contextmanager
def explain_disk(folder: Path) -> Iterator[None]:
    """Turn a full disk in the block into a UserError; safetensors reports one with an error class of its own."""
    try:
        yield
    except Exception as error:
        if not any(words in str(error) for words in DISK_FULL):
            raise
        raise UserError(
            f"{folder}: the disk is full; what was saved is whole. Free space, then --run.resume"
        ) from error
