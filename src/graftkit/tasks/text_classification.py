"""Which of these labels does a text have?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.baselines import text_baselines
from graftkit.export import load_saved, save_model
from graftkit.losses import PLAIN, CrossEntropy
from graftkit.metrics import classification
from graftkit.records import label_records
from graftkit.snippets import classifying
from graftkit.task import Baseline, Batch, Kept, Record, Row
from graftkit.text import (
    encode,
    encoding_facts,
    join_to_cut,
    pad,
    stand_in,
    text_hash,
    text_measures,
    token_lengths,
)

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase


class TextClassification:
    """One label per text, or pair of texts: cross-entropy over the logits of a sequence classifier.

    `criterion` says what an answer costs in training; records and scores have the plain cross-entropy.
    """

    name = "text-classification"
    headline = "macro_f1"
    headlines = tuple(classification.HEADLINES)
    lower = frozenset({"log_loss"})
    calibrates = True
    decides = False
    cuts = True
    workers = 0
    varies = False
    auto_class = "AutoModelForSequenceClassification"
    problem_type = "single_label_classification"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        labels: list[str],
        criterion: CrossEntropy = PLAIN,
        *,
        pairs: bool = False,
    ):
        self.tokenizer = tokenizer
        self.pairs = pairs
        self.criterion = criterion
        self.labels = labels
        self.index = {label: i for i, label in enumerate(labels)}

    def lengths(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens of each row before it is cut, (rows,) int32."""
        return token_lengths(self.tokenizer, rows)

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """Token ids of the text, cut to what the model reads, and the index of the label."""
        example = encode(self.tokenizer, row["text"], row.get("text_pair"))
        return {"id": row["id"], "label": self.index[row["label"]], **example}

    def stand_in(self, row: Row, tokens: int) -> dict[str, Any]:
        """What `encode` gives, of other tokens."""
        return {"id": row["id"], "label": self.index[row["label"]], **stand_in(self.tokenizer, tokens)}

    def encoding(self) -> dict[str, Any]:
        """The tokenizer, and where texts are cut."""
        return encoding_facts(self.tokenizer)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Inputs (rows, tokens) int64, padded on the right to the longest, and labels (rows,) int64."""
        import torch

        labels = torch.tensor([example["label"] for example in examples])
        return Batch([example["id"] for example in examples], pad(self.tokenizer, examples), {"labels": labels})

    def count(self, batch: Batch) -> Tensor:
        """Rows, each with its weight."""
        return self.criterion.count(batch.targets["labels"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the answers cost, summed over the rows."""
        logits = model(**batch.inputs).logits  # (rows, labels)
        return self.criterion(logits.float(), batch.targets["labels"], batch.targets.get("teacher"))

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """The likeliest label of each row, with its logits and probabilities, (labels,) float32, and its loss."""
        logits = model(**batch.inputs).logits  # (rows, labels)
        return label_records(batch.ids, logits, batch.targets["labels"], self.labels)

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores of `metrics.classification`."""
        return classification.scores(*classification.arrays(records, self.labels))

    def digest(self, row: Row) -> str:
        """Of the text, or pair of texts."""
        return text_hash(row["text"], row.get("text_pair"))

    def overlong(self, rows: Sequence[Row]) -> Row:
        """The texts of the first rows, joined, twice as many tokens as the model reads."""
        return join_to_cut(self.tokenizer, rows) | {"label": self.labels[0]}

    def kept(self, row: Row) -> Kept:
        """The text, or pair of texts; its tokens before it is cut, and how many of them are unknown."""
        content = {name: row[name] for name in ("text", "text_pair") if name in row}
        return Kept(content, text_measures(self.tokenizer, *content.values()))

    def baselines(self, train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
        """The most frequent class, and a logistic regression on the words."""
        return text_baselines(self.labels, train, dev, test)

    def save(self, folder: Path, model: nn.Module) -> None:
        """A folder of transformers, or of PEFT where the model is an adapter."""
        save_model(folder, model, self.tokenizer, self.labels)

    def load(self, folder: Path) -> nn.Module:
        """Through transformers, or PEFT for an adapter."""
        return load_saved(folder, self.auto_class)

    def snippet(self, folder: Path, hub_id: str | None = None) -> str:
        """A pipeline of transformers, or what PEFT needs for an adapter."""
        return classifying(folder, hub_id, pairs=self.pairs)
