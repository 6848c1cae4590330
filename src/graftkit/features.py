"""What does the frozen backbone say of each row?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.errors import UserError
from graftkit.evaluate import predict_rows
from graftkit.heads import head_modules
from graftkit.task import Batch, Record, Row, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

    from graftkit.heads import Headed


def pooled_features(
    accelerator: Accelerator, task: Task, headed: Headed, rows: Sequence[Row], lengths: np.ndarray | None
) -> np.ndarray:
    """What enters the head, one vector for each row: (rows, features) float32, on every process.

    In fp32, in evaluation mode and in the batches of `predict_rows`. See `pool` for what becomes of tokens and maps.
    """
    model = headed.model.to(accelerator.device)
    records = predict_rows(accelerator, _Features(task, headed.head), model, rows, lengths)
    return np.stack([record["features"] for record in records])


class _Features:
    """A task whose record of a row is its features; all else is the task that is asked."""

    def __init__(self, task: Task, head: set[str]):
        self.task, self.head = task, head

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """The id and the features of each row."""
        with entering_head(model, self.head) as seen:
            self.task.predict(model, batch)
        module, entered = seen[0]
        features = pool(module, entered, batch.inputs.get("attention_mask")).float().cpu().numpy()
        return [{"id": id, "features": row} for id, row in zip(batch.ids, features, strict=True)]


@contextmanager
def entering_head(model: nn.Module, head: set[str]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """A list that each outermost module of the head is added to when it is called, with the tensor that enters it.

    `head` are the names of the head's parameters; the first of the list stands directly on the backbone.
    """
    seen: list[tuple[nn.Module, Tensor]] = []
    names = head_modules(model, head)
    if not names:
        raise UserError(f"{type(model).__name__} has no module for its head, so what enters it cannot be seen")

    def note(module: nn.Module, words: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append((module, [*words, *named.values()][0]))

    hooks = [model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def pool(module: nn.Module, entered: Tensor, mask: Tensor | None) -> Tensor:
    """One vector for each row, (rows, features), of what enters a module of the head.

    Maps (rows, channels, height, width), or with the channels last, become the mean over places. Tokens (rows, tokens,
    features) become the mean over those that `mask` (rows, tokens) calls real. But where the module is one linear
    layer, as on GPT-style models, it answers for each token and is believed for the last real one, so they become that
    one: no other has seen the whole text.
    """
    import torch
    from torch import nn

    if entered.ndim == 4:
        reads = next(weight.shape[1] for weight in module.parameters() if weight.ndim > 1)
        channels_last = entered.shape[1] != reads == entered.shape[3]
        return entered.mean((1, 2) if channels_last else (2, 3))
    if entered.ndim == 2:
        return entered
    if mask is None:
        return entered.mean(1)
    if isinstance(module, nn.Linear):
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
        return entered[torch.arange(len(entered), device=entered.device), last]
    real = mask[:, :, None].to(entered.dtype)
    return (entered * real).sum(1) / real.sum(1).clamp(min=1)
