"""What did a classifier say of each row?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graftkit.task import Record

if TYPE_CHECKING:
    from torch import Tensor


def label_records(ids: Sequence[str], logits: Tensor, truth: Tensor, labels: Sequence[str]) -> list[Record]:
    """One record per row: the likeliest label, all logits and probabilities, (labels,) float32, and the loss.

    `logits` is (rows, labels), in any precision and on any device; `truth` is (rows,), indices into `labels`.
    """
    from torch.nn.functional import cross_entropy, softmax

    logits = logits.detach().float()
    losses = cross_entropy(logits, truth, reduction="none").tolist()
    probabilities = softmax(logits, dim=-1).cpu().numpy()
    return [
        {
            "id": id,
            "label": labels[label],
            "prediction": labels[row.argmax()],
            "logits": row,
            "probabilities": probability,
            "loss": loss,
        }
        for id, label, row, probability, loss in zip(
            ids, truth.tolist(), logits.cpu().numpy(), probabilities, losses, strict=True
        )
    ]
