"""Which number does a text have?

The network learns the number in standard deviations of train, counted from train's mean, so that loss and learning rate
mean the same whatever the unit; once it is trained, both go into the weights of the last layer (`fold`), and whoever
loads the model with plain libraries gets the number itself. A last layer without a bias, as GPT-2 and Llama have it,
cannot take the mean: there the network learns the number in standard deviations counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.baselines import number_baselines
from graftkit.calibrate import fold as divide
from graftkit.errors import UserError
from graftkit.export import load_saved, save_model
from graftkit.metrics import regression
from graftkit.metrics.sums import score
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

    from graftkit.data import Splits

PLAIN_ASK = """\
from transformers import pipeline

tell = pipeline("text-classification", {folder!r}, dtype="float32")
print(tell(["a text"], truncation=True, function_to_apply="none"))"""

ADAPTER_ASK = """\
print(model(**inputs).logits[:, 0].tolist())"""


class TextRegression:
    """One number per text, or pair of texts: squared error of the one output of a sequence classifier."""

    name = "text-regression"
    headline = regression.HEADLINES[0]
    headlines = regression.HEADLINES
    lower = regression.LOWER
    labels: list[str] = []  # noqa: RUF012 - rows have no class
    calibrates = False
    decides = False
    cuts = True
    workers = 0
    varies = False
    auto_class = "AutoModelForSequenceClassification"
    problem_type = "regression"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        column: str,
        mean: float,
        sd: float,
        *,
        pairs: bool = False,
        folded: bool = False,
    ):
        """`column` names the number; `mean` and `sd` are those of train; a saved model is `folded`."""
        self.tokenizer = tokenizer
        self.pairs = pairs
        self.column = column
        self.mean, self.sd = mean, sd
        self.folded = folded
        self.shifts: bool | None = None  # whether the head has a bias, for the mean; not known until it is seen

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, splits: Splits) -> TextRegression:
        """The task of learning these numbers."""
        train = splits.facts["splits"]["train"]
        return cls(tokenizer, *splits.labels, train["mean"], train["sd"], pairs=splits.pairs)

    def lengths(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens of each row before it is cut, (rows,) int32."""
        return token_lengths(self.tokenizer, rows)

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """Token ids of the text, cut to what the model reads, and the number."""
        example = encode(self.tokenizer, row["text"], row.get("text_pair"))
        return {"id": row["id"], "label": row["label"], **example}

    def stand_in(self, row: Row, tokens: int) -> dict[str, Any]:
        """What `encode` gives, of other tokens."""
        return {"id": row["id"], "label": row["label"], **stand_in(self.tokenizer, tokens)}

    def encoding(self) -> dict[str, Any]:
        """The tokenizer, and where texts are cut."""
        return encoding_facts(self.tokenizer)

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Inputs (rows, tokens) int64, padded on the right to the longest; the numbers as they are, and standardised.

        The latter, `standard` (rows,) float32, are counted from train's mean.
        """
        import torch

        labels = [example["label"] for example in examples]
        standard = torch.tensor([(label - self.mean) / self.sd for label in labels], dtype=torch.float32)
        inputs = pad(self.tokenizer, examples)
        return Batch([example["id"] for example in examples], inputs, {"labels": labels, "standard": standard})

    def count(self, batch: Batch) -> Tensor:
        """Rows."""
        import torch

        return torch.tensor(float(len(batch.ids)))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Squared error in standard deviations of train, summed over the rows."""
        told = self._output(model, batch) - (0.0 if self._shifts(model) else self.mean / self.sd)
        return (told - batch.targets["standard"]).square().sum()

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """The number that the model says of each row, in the unit of its label.

        `loss` is the squared error in standard deviations of train.
        """
        told = self._output(model, batch).detach().double().cpu().numpy()
        if not self.folded:
            told = told * self.sd + (self.mean if self._shifts(model) else 0.0)
        return [
            {"id": id, "label": label, "prediction": number, "loss": ((number - label) / self.sd) ** 2}
            for id, label, number in zip(batch.ids, batch.targets["labels"], told.tolist(), strict=True)
        ]

    def fold(self, model: nn.Module, batch: Batch) -> None:
        """Put train's mean and standard deviation into the last layer. UserError where there is no such layer.

        No list of names that last layers go by is needed: of the layers with one output, the one that moves the
        answers is the one.
        """
        import torch

        def ask() -> np.ndarray:
            with torch.no_grad():
                return self._output(model.eval(), batch).double().cpu().numpy()[:, None]

        shifts = self._shifts(model)
        if not divide(model, 1 / self.sd, ask) or (shifts and not _shift(model, self.mean, ask)):
            raise UserError(
                f"{type(model).__name__}: its answer comes from more than one last layer, so that the unit of "
                f"{self.column!r} cannot be put into it; take another checkpoint"
            )
        self.folded = True

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores of `metrics.regression`."""
        return score(regression.SCORING, records)

    def digest(self, row: Row) -> str:
        """Of the text, or pair of texts."""
        return text_hash(row["text"], row.get("text_pair"))

    def overlong(self, rows: Sequence[Row]) -> Row:
        """The texts of the first rows, joined, twice as many tokens as the model reads."""
        return join_to_cut(self.tokenizer, rows) | {"label": self.mean}

    def kept(self, row: Row) -> Kept:
        """The text, or pair of texts; its tokens before it is cut, and how many of them are unknown."""
        content = {name: row[name] for name in ("text", "text_pair") if name in row}
        return Kept(content, text_measures(self.tokenizer, *content.values()))

    def baselines(self, train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
        """The mean of train, and a ridge regression on the words."""
        return number_baselines(train, dev, test)

    def save(self, folder: Path, model: nn.Module) -> None:
        """A folder of transformers, or of PEFT where the model is an adapter."""
        save_model(folder, model, self.tokenizer, [self.column])

    def load(self, folder: Path) -> nn.Module:
        """Through transformers, or PEFT for an adapter."""
        return load_saved(folder, self.auto_class)

    def snippet(self, folder: Path, hub_id: str | None = None) -> str:
        """A pipeline of transformers, or what PEFT needs for an adapter."""
        return classifying(folder, hub_id, (PLAIN_ASK, ADAPTER_ASK), pairs=self.pairs)

    def _shifts(self, model: nn.Module) -> bool:
        """Whether the head has a bias: as of the model that was seen first, whatever is added to it later."""
        if self.shifts is None:
            self.shifts = bool(_head_biases(model))
        return self.shifts

    def _output(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the network says of each row, in the unit in which it learns until it is folded, (rows,) float32."""
        return model(**batch.inputs).logits.float()[:, 0]


def _head_biases(model: nn.Module) -> list[Tensor]:
    """Biases of one number outside of the backbone; around the model may be PEFT, or what trains several processes."""
    from transformers import PreTrainedModel

    whole = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    backbone = {id(parameter) for parameter in whole.base_model.parameters()}
    found = [getattr(layer, "bias", None) for layer in whole.modules()]
    return [bias for bias in found if getattr(bias, "shape", None) == (1,) and id(bias) not in backbone]


def _shift(model: nn.Module, shift: float, ask: Callable[[], np.ndarray]) -> bool:
    """Add `shift` to the bias that moves all answers by it; False, and nothing changed, where there is none."""
    import torch

    wanted = ask() + shift
    for bias in reversed(_head_biases(model)):
        kept = bias.detach().clone()
        with torch.no_grad():
            bias.add_(shift)
            if np.allclose(ask(), wanted, rtol=1e-4, atol=1e-4 * float(np.abs(wanted).max())):
                return True
            bias.copy_(kept)
    return False
