"""What must a task tell the loop?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

Row = Mapping[str, Any]
"""One row of a split: `id` (unique over all splits), and the columns that its task reads."""

Record = dict[str, Any]
"""What the model said of one row, and the truth: `id`, and the task's own fields as plain Python or NumPy values."""


class Kept(NamedTuple):
    """What the run's tables say of a row."""

    content: dict[str, str | bytes | None]  # what people want to see of it
    measures: dict[str, float]  # numbers that an error may go with: the same names for every row of a task


class Baseline(NamedTuple):
    """What something simple, without a pretrained network, says of the test rows."""

    given: list[Any]  # what it gives for each row, in order: a label, a list of them, a text or a number
    facts: dict[str, Any]  # plain JSON: `rows` that it learned from, `of` so many, `seconds`, and what was chosen


Lengths = Mapping[str, "np.ndarray | None"]
"""Tokens of each row, (rows,) int32, by split; None where every row costs the same."""


@dataclass(frozen=True)
class Batch:
    """Rows as numbers, padded and stacked."""

    ids: list[str]  # one per row, in order
    inputs: dict[str, Tensor]  # what the model is called with
    targets: dict[str, Any]  # what the loss and the records need besides

    def to(self, device: Any) -> Batch:
        """The same batch with its tensors on `device`."""

        def move(values: dict[str, Any]) -> dict[str, Any]:
            return {name: v.to(device, non_blocking=True) if hasattr(v, "to") else v for name, v in values.items()}

        return Batch(self.ids, move(self.inputs), move(self.targets))


class Task(Protocol):
    """All that the loop, the evaluation and the report need to know of a task. There is no base class."""

    name: str  # as the Hub calls it, such as "text-classification"
    headline: str  # the score that picks the best checkpoint
    headlines: tuple[str, ...]  # the scores that may pick it instead
    lower: frozenset[str]  # those of all scores of which less is better, such as perplexity
    labels: list[str]  # none where rows have no class
    calibrates: bool  # whether a row has one label, whose probability can be made what it should be
    decides: bool  # whether something is chosen on dev once training has ended, such as a threshold: see `decide`
    cuts: bool  # whether a row that is longer than the model reads is cut, and not read in windows
    workers: int  # processes that encode rows beside the one that trains; 0 where encoding costs next to nothing

    def lengths(self, rows: Sequence[Row]) -> np.ndarray | None:
        """The cost of each row in tokens, (rows,) int32, to make batches of like rows; None where all cost the same."""

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """One row as numbers. `rng` follows from (seed, epoch, row) when training and is None when evaluating."""

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Encoded rows, padded and stacked."""

    def count(self, batch: Batch) -> Tensor:
        """How many targets (or the sum of their weights) the loss of this batch sums over: a scalar."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss summed, not averaged, over those targets: a scalar."""

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """One record per row of the batch, in order."""

    def decide(self, records: Sequence[Record]) -> dict[str, Any]:
        """Choose on dev what turns numbers into answers, for every later `predict`; returns it as plain JSON."""

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """All scores of a split, once, from all its records."""

    def digest(self, row: Row) -> str:
        """SHA-256 of what a row holds, by which it is known where its content is not kept."""

    def overlong(self, rows: Sequence[Row]) -> Row | None:
        """A row that is longer than the model reads, made of these, to see how it is cut; None where nothing is."""

    def kept(self, row: Row) -> Kept:
        """What the run's tables say of a row."""

    def baselines(self, train: Sequence[Row], dev: Sequence[Row], test: Sequence[Row]) -> dict[str, Baseline]:
        """What the model has to beat, by name: learned from train, chosen on dev, asked on test."""

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write a folder that plain libraries of the field load."""

    def load(self, folder: Path) -> nn.Module:
        """The model of such a folder as anyone loads it: in fp32, and in evaluation mode."""

    def snippet(self, folder: Path, hub_id: str | None = None) -> str:
        """The lines of Python that load such a folder, or the same from the Hub, with plain libraries, and ask it."""


@runtime_checkable
class Keepable(Protocol):
    """A task whose rows are such that what a frozen network says of them can be kept: see `activation_cache`."""

    varies: bool  # whether a training row looks otherwise in each epoch

    def stand_in(self, row: Row, tokens: int) -> dict[str, Any]:
        """In place of `encode`, where nobody reads the inputs: the truth, with the cheapest inputs.

        They are so many tokens, none of which is padding, or a picture of one pixel.
        """

    def encoding(self) -> dict[str, Any]:
        """What the numbers of a row follow from, besides its content: plain JSON."""


@runtime_checkable
class Gathering(Protocol):
    """A task that may have rows as numbers already, and then gives a batch of them at once.

    A task around another that encodes or collates in its own way must not pass these on.
    """

    def holds(self, rows: Sequence[Row], chance: tuple[int, int] | None) -> bool:
        """Whether it has these rows, for an epoch of training (`chance` is seed and epoch) or for evaluation (None)."""

    def gather(self, rows: Sequence[Row], numbers: np.ndarray, chance: tuple[int, int] | None) -> Batch:
        """The batch of the rows of these numbers, which are places, or those of `batches.number_repeats`."""


@runtime_checkable
class Folding(Protocol):
    """A task whose model learns in another unit than it is to answer in, such as standard deviations."""

    def fold(self, model: nn.Module, batch: Batch) -> None:
        """Bring the trained model's weights into the unit of its answers, for every later `predict`.

        `batch` holds a few rows to try it on.
        """
