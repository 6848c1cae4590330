"""Which of these labels does a text have?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graftkit.metrics import classification
from graftkit.task import Batch, Record, Row
from graftkit.text import encode, pad, token_lengths

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


class TextClassification:
    """One label per text, or pair of texts: cross-entropy over the logits of a sequence classifier."""

    name = "text-classification"
    headline = "macro_f1"
    headlines = tuple(classification.HEADLINES)
    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, labels: list[str]):
        self.tokenizer = tokenizer
        self.labels = labels
        self.index = {label: i for i, label in enumerate(labels)}

    def lengths(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens of each row before it is cut, (rows,) int32."""
        return token_lengths(self.tokenizer, rows)

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """Token ids of the text, cut to what the model reads, and the index of the label."""
        example = encode(self.tokenizer, row["text"], row.get("text_pair"))
        return {"id": row["id"], "label": self.index[row["label"]], **example}

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Inputs (rows, tokens) int64, padded on the right to the longest, and labels (rows,) int64."""
        import torch

        labels = torch.tensor([example["label"] for example in examples])
        return Batch([example["id"] for example in examples], pad(self.tokenizer, examples), {"labels": labels})

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        import torch

        return torch.tensor(float(len(batch.ids)))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, summed over the rows."""
        from torch.nn.functional import cross_entropy

        logits = model(**batch.inputs).logits  # (rows, labels)
        return cross_entropy(logits.float(), batch.targets["labels"], reduction="sum")

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """The likeliest label of each row, with its logits and probabilities, (labels,) float32, and its loss."""
        from torch.nn.functional import cross_entropy, softmax

        logits = model(**batch.inputs).logits.detach().float()  # (rows, labels)
        truth = batch.targets["labels"]
        losses = cross_entropy(logits, truth, reduction="none").tolist()
        probabilities = softmax(logits, dim=-1).cpu().numpy()
        return [
            {
                "id": id,
                "label": self.labels[label],
                "prediction": self.labels[row.argmax()],
                "logits": row,
                "probabilities": probability,
                "loss": loss,
            }
            for id, label, row, probability, loss in zip(
                batch.ids, truth.tolist(), logits.cpu().numpy(), probabilities, losses, strict=True
            )
        ]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores of `metrics.classification`."""
        return classification.scores(*classification.arrays(records, self.labels))
