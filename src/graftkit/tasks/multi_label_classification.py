"""Which labels, of which it may have any number, does a text have?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.baselines import label_set_baselines
from graftkit.calibrate import THRESHOLDS, write_note
from graftkit.export import load_saved, save_model
from graftkit.losses import PLAIN_SETS, BinaryCrossEntropy
from graftkit.metrics import multi_label
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
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

PLAIN_SNIPPET = """\
from transformers import pipeline

classify = pipeline("text-classification", {folder!r}, dtype="float32", top_k=None, function_to_apply="sigmoid")
thresholds = classify.model.config.thresholds
for found in classify(["a text"], truncation=True):
    print([one["label"] for one in found if one["score"] >= thresholds[one["label"]]])"""

ADAPTER_TOLD = """\
for row in model(**inputs).logits.sigmoid().tolist():
    print([labels[i] for i, score in enumerate(row) if score >= saved["thresholds"][labels[i]]])"""


class MultiLabelClassification:
    """Any number of labels per text, or pair of texts: binary cross-entropy over each logit of a classifier.

    A row is given the labels whose probability, the sigmoid of their logit, reaches a threshold: 0.5 while it trains,
    then one for each label that is chosen on dev. Until then scores are those at the thresholds that would be chosen:
    where labels are rare, 0.5 gives none for many epochs, and no epoch could be told from another.

    `criterion` says what an answer costs in training; records and scores have the plain cross-entropy.
    """

    name = "multi-label-classification"
    headline = multi_label.HEADLINES[0]
    headlines = multi_label.HEADLINES
    lower = frozenset({"log_loss"})
    calibrates = False
    decides = True
    cuts = True
    workers = 0
    varies = False
    auto_class = "AutoModelForSequenceClassification"
    problem_type = "multi_label_classification"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        labels: list[str],
        criterion: BinaryCrossEntropy = PLAIN_SETS,
        *,
        pairs: bool = False,
    ):
        self.tokenizer = tokenizer
        self.pairs = pairs
        self.criterion = criterion
        self.labels = labels
        self.thresholds, self.decided = np.full(len(labels), multi_label.HALF), False

    def lengths(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens of each row before it is cut, (rows,) int32."""
        return token_lengths(self.tokenizer, rows)

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """Token ids of the text, cut to what the model reads, and 1 for each label that it has, else 0."""
        example = encode(self.tokenizer, row["text"], row.get("text_pair"))
        return {"id": row["id"], "has": [float(label in row["labels"]) for label in self.labels], **example}

    def stand_in(self, row: Row, tokens: int) -> dict[str, Any]:
        """What `encode` gives, of other tokens."""
        return {
            "id": row["id"],
            "has": [float(label in row["labels"]) for label in self.labels],
            **stand_in(self.tokenizer, tokens),
        }

    def encoding(self) -> dict[str, Any]:
        """The tokenizer, and where texts are cut."""
        return encoding_facts(self.tokenizer)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Inputs (rows, tokens) int64, padded on the right to the longest; which labels rows have, (rows, labels)."""
        import torch

        has = torch.tensor([example["has"] for example in examples])
        return Batch([example["id"] for example in examples], pad(self.tokenizer, examples), {"has": has})

    def count(self, batch: Batch) -> Tensor:
        """Rows times labels, each with its weight: each is one question."""
        return self.criterion.count(batch.targets["has"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the answers cost, summed over rows and labels."""
        logits = model(**batch.inputs).logits  # (rows, labels)
        return self.criterion(logits.float(), batch.targets["has"])

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """The labels of each row whose probability reaches their threshold, in the order of `labels`.

        Besides, the truth likewise, logits and probabilities, (labels,) float32, and the loss of all labels together.
        """
        from torch.nn.functional import binary_cross_entropy_with_logits

        logits, has = model(**batch.inputs).logits.detach().float(), batch.targets["has"]  # (rows, labels)
        losses = binary_cross_entropy_with_logits(logits, has, reduction="none").sum(dim=-1).tolist()
        probabilities = logits.sigmoid().cpu().numpy()
        truth = multi_label.given(has.cpu().numpy(), np.array(multi_label.HALF), self.labels)
        predicted = multi_label.given(probabilities, self.thresholds, self.labels)
        return [
            {
                "id": id,
                "label": label,
                "prediction": prediction,
                "logits": row,
                "probabilities": probability,
                "loss": loss,
            }
            for id, label, prediction, row, probability, loss in zip(
                batch.ids, truth, predicted, logits.cpu().numpy(), probabilities, losses, strict=True
            )
        ]

    def decide(self, records: Sequence[Record]) -> dict[str, Any]:
        """The threshold of each label (`multi_label.choose_thresholds`), and which labels share theirs."""
        self.thresholds, own = self._choose(records)
        self.decided = True
        shared = [label for label, one in zip(self.labels, own, strict=True) if not one]
        return {"thresholds": self._thresholds(), "shared": shared, "enough": multi_label.ENOUGH}

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores of `metrics.multi_label`, before `decide`, at the thresholds that it would choose on them."""
        if not self.decided:
            predicted = multi_label.given(multi_label.stated(records), self._choose(records)[0], self.labels)
            records = [record | {"prediction": row} for record, row in zip(records, predicted, strict=True)]
        return multi_label.scores(records, self.labels)

    def digest(self, row: Row) -> str:
        """Of the text, or pair of texts."""
        return text_hash(row["text"], row.get("text_pair"))

    def overlong(self, rows: Sequence[Row]) -> Row:
        """The texts of the first rows, joined, twice as many tokens as the model reads."""
        return join_to_cut(self.tokenizer, rows) | {"labels": []}

    def kept(self, row: Row) -> Kept:
        """The text, or pair of texts; its tokens before it is cut, and how many of them are unknown."""
        content = {name: row[name] for name in ("text", "text_pair") if name in row}
        return Kept(content, text_measures(self.tokenizer, *content.values()))

    def baselines(self, train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
        """The labels that most rows have, and a logistic regression on the words for each label."""
        return label_set_baselines(self.labels, train, dev, test)

    def save(self, folder: Path, model: nn.Module) -> None:
        """A folder of transformers, or of PEFT where the model is an adapter; its settings have the thresholds."""
        save_model(folder, model, self.tokenizer, self.labels)
        write_note(folder, self._thresholds(), THRESHOLDS)

    def load(self, folder: Path) -> nn.Module:
        """Through transformers, or PEFT for an adapter."""
        return load_saved(folder, self.auto_class)

    def snippet(self, folder: Path, hub_id: str | None = None) -> str:
        """A pipeline of transformers with the thresholds, or what PEFT needs for an adapter."""
        return classifying(folder, hub_id, (PLAIN_SNIPPET, ADAPTER_TOLD), pairs=self.pairs)

    def _choose(self, records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
        truth = multi_label.multi_hot([record["label"] for record in records], self.labels)
        return multi_label.choose_thresholds(multi_label.stated(records), truth)

    def _thresholds(self) -> dict[str, float]:
        return dict(zip(self.labels, self.thresholds.tolist(), strict=True))
