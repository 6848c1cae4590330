"""How is cross-entropy summed, where the logits of all tokens would not fit?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graftkit.data.turns import IGNORED

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

LOGITS = 2**25  # of an evaluation that are held at once: 128 MiB in fp32
POSITIONS = 1024  # whose logits are made fp32 probabilities at a time


def summed_loss(logits: Tensor, following: Tensor) -> Tensor:
    """Cross-entropy summed over the targets; in training, of `logits` (lines, tokens, vocabulary) in any precision.

    Probabilities are made in fp32 for POSITIONS tokens at a time, and again in the backward pass, so that they are
    never held for all.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.checkpoint import checkpoint

    def of_part(part: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(part.float(), targets, ignore_index=IGNORED, reduction="sum")

    parts = zip(logits.flatten(0, 1).split(POSITIONS), following.flatten().split(POSITIONS), strict=True)
    losses = [checkpoint(of_part, part, targets, use_reentrant=False) for part, targets in parts]
    return torch.stack(losses).sum()


def token_losses(
    logits: Tensor, following: Tensor, rows: Tensor
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of the tokens that count, POSITIONS at a time: their rows, their losses float64, and if likeliest."""
    from torch.nn.functional import cross_entropy

    flat = (values.flatten(0, 1).split(POSITIONS) for values in (logits, following, rows))
    for part, targets, owners in zip(*flat, strict=True):
        counts = targets != IGNORED
        if counts.any():
            part, targets = part[counts].float(), targets[counts]
            losses = cross_entropy(part, targets, reduction="none").double()
            right = part.argmax(dim=-1) == targets
            yield owners[counts].cpu().numpy(), losses.cpu().numpy(), right.double().cpu().numpy()


def few_at_a_time(count: int, logits: int) -> Iterator[slice]:
    """Of `count` lines of so many `logits` each, as many at a time as have LOGITS of them at most; one at least."""
    step = max(1, LOGITS // logits)
    for start in range(0, count, step):
        yield slice(start, start + step)
