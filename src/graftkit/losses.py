"""What does a wrong answer cost?

What a row costs has a weight, that of its label; the loss of an update is the weighted mean of its rows. `__call__`
gives the sum over the rows of a batch and `count` the sum of their weights, so that the loop divides once, and the
result does not depend on how the rows are split over forward passes and processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from graftkit.config import NotNegative, NotZero, Positive, Range
from graftkit.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from graftkit.data import Splits
    from graftkit.run import Run

BelowOne = Annotated[float, Range("a number from 0 up, below 1", lambda number: 0 <= number < 1)]

SKEWED = (
    "class weights, balanced sampling and focal loss change what the model's probabilities mean: they are no longer "
    "shares of rows; trust the ranking of the labels more than their probabilities"
)
MENDED = ". The temperature that is chosen on dev mends a part of that alone"


@dataclass(frozen=True)
class LossConfig:
    """What does a wrong answer cost?"""

    label_smoothing: BelowOne = 0.0
    """share of each row's target that is spread over all labels, such as 0.1"""
    class_weights: Literal["balanced"] | None = None
    """balanced: an error costs the more, the fewer rows of train have the label"""
    sampling: Literal["balanced"] | None = None
    """balanced: an epoch draws rows of each label equally often, with repeats, and does not see every row"""
    focal: NotNegative = 0.0
    """focal loss: rows that the model is sure of cost less; its exponent, such as 2; 0 is off"""
    teacher: str | None = None
    """folder or Hub id of a larger classifier with the same labels, whose answers are learned, too"""
    temperature: Positive = 2.0
    """by which the logits of teacher and student are divided when they are compared"""
    teacher_share: NotZero = 0.5
    """share of the loss that the teacher has; the rest is that of the labels"""

    def __post_init__(self) -> None:
        if self.class_weights is not None and self.sampling is not None:
            raise UserError(
                "--train.class_weights and --train.sampling both even out the labels, and together would count the "
                "imbalance twice; choose one of them"
            )
        for name in ("temperature", "teacher_share"):
            if self.teacher is None and getattr(self, name) != getattr(LossConfig, name):
                raise UserError(f"--train.{name} does nothing without --train.teacher; set both, or neither")
        for name in ("label_smoothing", "focal"):
            if self.teacher is not None and self.teacher_share == 1 and getattr(self, name):
                raise UserError(
                    f"--train.{name} does nothing with --train.teacher_share 1, by which labels cost nothing"
                )


NAMES = ("label_smoothing", "class_weights", "sampling", "focal", "teacher")
"""The settings of `LossConfig` that do something alone."""
UNFIT = {
    "multi": (("label_smoothing", "sampling", "teacher"), "rows may have any number of labels"),
    "regression": (NAMES, "rows have a number, and no label"),
}
"""Of these, what cannot be done with a kind of rows, and why."""


def check_fits(config: LossConfig, rows: str) -> None:
    """Raise UserError for a setting that is not for this kind of rows (`--data.task`)."""
    names, why = UNFIT[rows]
    for name in changed(config):
        if name in names:
            raise UserError(f"--train.{name} {getattr(config, name)}: not with --data.task {rows}: {why}; leave it out")


def changed(config: LossConfig) -> dict[str, Any]:
    """What the user set of `NAMES`."""
    return {name: getattr(config, name) for name in NAMES if getattr(config, name) != getattr(LossConfig, name)}


@dataclass(frozen=True)
class CrossEntropy:
    """What rows of one label each cost, and how much of it is left to a teacher.

    A row costs the cross-entropy of its target, smoothed as in torch (Szegedy et al. 2016: 1 - s on the label and s
    spread over all labels), times (1 - p)^focal, p being the probability of its label (Lin et al. 2017); a soft target
    costs what its labels would, each by its share. With a teacher that is (1 - share) of the cost, and the rest is
    temperature^2 times the divergence of the answers from the teacher's, KL(teacher || student), both softened by the
    temperature (Hinton et al. 2015). All that is multiplied by the row's weight: that of its label, or of a soft
    target the mean of its labels'. (torch weighs each label of a smoothed target by itself; here smoothing leaves the
    weight of a row as it is.)
    """

    label_smoothing: float = 0.0
    weights: tuple[float, ...] | None = None  # of each label
    focal: float = 0.0
    temperature: float = 2.0
    teacher_share: float = 0.0

    def __call__(self, logits: Tensor, targets: Tensor, teacher: Tensor | None = None) -> Tensor:
        """The cost of all rows: a scalar.

        `logits` and `teacher`, logits too, are (rows, labels); `targets` (rows,) int64, or soft ones (rows, labels).
        """
        if teacher is None:
            return self._cost(logits, targets)
        divergence = softened_divergence(logits, teacher, self.temperature) * self._weights(targets)  # (rows,)
        return (1 - self.teacher_share) * self._cost(logits, targets) + self.teacher_share * divergence.sum()

    def count(self, targets: Tensor) -> Tensor:
        """The weights of all rows together, 1 each where labels have none: a scalar."""
        import torch

        return torch.tensor(float(len(targets))) if self.weights is None else self._weights(targets).sum()

    def _cost(self, logits: Tensor, targets: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        if self.weights is None and self.focal == 0:
            return cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction="sum")
        given = logits.log_softmax(-1)
        costs = -(1 - self.label_smoothing) * given - self.label_smoothing * given.mean(-1, keepdim=True)
        if self.focal:
            costs = costs * _unsure(given.exp(), self.focal)
        if self.weights is not None:
            costs = costs * costs.new_tensor(self.weights)
        return (costs * _shares(targets, costs)).sum()  # (rows, labels): what each label would cost, by its share

    def _weights(self, targets: Tensor) -> Tensor:  # (rows,)
        import torch

        if self.weights is None:
            return torch.ones(len(targets), device=targets.device)
        if targets.ndim == 2:
            return targets @ targets.new_tensor(self.weights)
        return torch.tensor(self.weights, device=targets.device)[targets]


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """What rows of any number of labels cost, each label being a question of its own: does the row have it?

    A question costs its cross-entropy times (1 - p)^focal, p being the probability of the right answer (Lin et al.
    2017, whose focal loss is of this kind), times its weight: that of the label where the row has it, otherwise 1.
    """

    weights: tuple[float, ...] | None = None  # of each label
    focal: float = 0.0

    def __call__(self, logits: Tensor, has: Tensor) -> Tensor:
        """The cost of all questions: a scalar. `logits` and `has`, 1 or 0, are (rows, labels)."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        if self == BinaryCrossEntropy():
            return binary_cross_entropy_with_logits(logits, has, reduction="sum")
        costs = binary_cross_entropy_with_logits(logits, has, reduction="none")
        if self.focal:
            chance = logits.sigmoid()
            costs = costs * _unsure(has * chance + (1 - has) * (1 - chance), self.focal)
        return (costs * self._weights(has)).sum()

    def count(self, has: Tensor) -> Tensor:
        """The weights of all questions together, 1 each where labels have none: a scalar."""
        import torch

        return torch.tensor(float(has.numel())) if self.weights is None else self._weights(has).sum()

    def _weights(self, has: Tensor) -> Tensor:  # (rows, labels)
        import torch

        if self.weights is None:
            return torch.ones_like(has)
        return 1 + has * (has.new_tensor(self.weights) - 1)


PLAIN, PLAIN_SETS = CrossEntropy(), BinaryCrossEntropy()


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """temperature^2 x KL(teacher || student) of each row, (rows,), of logits (rows, labels).

    The square keeps gradients as large as those of the labels, whatever the temperature (Hinton et al. 2015).
    """
    theirs = (teacher / temperature).log_softmax(-1)
    mine = (student / temperature).log_softmax(-1)
    return temperature**2 * (theirs.exp() * (theirs - mine)).sum(-1)


def balanced_weights(rows: Sequence[int]) -> tuple[float, ...]:
    """Each label's weight: all rows / (labels that have any x rows of the label); 0 for a label that no row has.

    Over these rows the mean is 1. `rows` has the number of each label's rows.
    """
    seen = sum(count > 0 for count in rows)
    return tuple(sum(rows) / (seen * count) if count else 0.0 for count in rows)


def rarity(rows: Sequence[int], others: Sequence[int]) -> tuple[float, ...]:
    """Each label's weight where it is a question: rows that lack the label / rows that have it; 1 where none has."""
    return tuple(lack / have if have else 1.0 for have, lack in zip(rows, others, strict=True))


def draw_weights(labels: Sequence[str]) -> np.ndarray:
    """How likely each row is to be drawn, (rows,), so that each label is drawn equally often: they sum to 1."""
    import numpy as np

    _, place, rows = np.unique(labels, return_inverse=True, return_counts=True)
    return 1 / (len(rows) * rows[place])


def choose_loss(run: Run, config: LossConfig, splits: Splits) -> CrossEntropy:
    """The cost of answers to rows of one label each, with weights counted on train; says and records what it is."""
    labels = list(splits.train["label"])
    counts = [labels.count(label) for label in splits.labels]
    weights = None if config.class_weights is None else balanced_weights(counts)
    share = config.teacher_share if config.teacher is not None else 0.0
    if config.sampling is not None:
        chances = draw_weights(labels)
        seen = len(labels) - float(((1 - chances) ** len(labels)).sum())
        run.say(
            f"balanced sampling: an epoch draws {len(labels):,} rows, each label equally often, some rows many times; "
            f"it sees about {seen:,.0f} of the {len(labels):,} rows"
        )
    calibrated = run.config["report"]["calibrate"]
    _tell(run, config, dict(zip(splits.labels, weights or (), strict=False)), calibrated=calibrated)
    return CrossEntropy(config.label_smoothing, weights, config.focal, config.temperature, share)


def choose_loss_of_sets(run: Run, config: LossConfig, splits: Splits) -> BinaryCrossEntropy:
    """Likewise of rows of any number of labels: see `rarity`."""
    rows = list(splits.train["labels"])
    counts = [sum(label in row for row in rows) for label in splits.labels]
    weights = None if config.class_weights is None else rarity(counts, [len(rows) - count for count in counts])
    _tell(run, config, dict(zip(splits.labels, weights or (), strict=False)), calibrated=False)
    return BinaryCrossEntropy(weights, config.focal)


def _tell(run: Run, config: LossConfig, weights: Mapping[str, float], *, calibrated: bool) -> None:
    """Record what an answer costs, where that is not the plain cross-entropy; say what follows for probabilities."""
    weights = {label: weight for label, weight in weights.items() if weight > 0}
    if settings := changed(config):
        run.record["loss"] = {**settings, "weights": weights} if weights else settings
    if weights:
        low, high = min(weights, key=weights.__getitem__), max(weights, key=weights.__getitem__)
        run.say(f"class weights: from {weights[low]:.3g} ({low}) to {weights[high]:.3g} ({high})")
    if config.class_weights or config.sampling or config.focal:
        run.say(SKEWED + MENDED if calibrated else SKEWED)


def _unsure(chance: Tensor, power: float) -> Tensor:
    """(1 - chance)^power; at a chance of 1, where a power below 1 has no slope, it has that of 0."""
    import torch

    return (1 - chance).clamp(min=torch.finfo(chance.dtype).eps) ** power


def _shares(targets: Tensor, like: Tensor) -> Tensor:
    """Soft targets as they are; of others 1 at the label and 0 elsewhere: (rows, labels)."""
    from torch.nn.functional import one_hot

    return targets if targets.ndim == 2 else one_hot(targets, like.shape[-1]).to(like.dtype)
