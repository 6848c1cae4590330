"""Which linear head fits features best, if the features may not change?

With L2 that is a convex problem with one solution: logistic regression for labels, ridge regression for numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

STRENGTHS = tuple(4.0**-step for step in range(11))
"""Of L2, from strong to weak: a row's mean loss + strength / 2 x (sum of squared weights of standardised features)."""
STRONGER = (4.0, 16.0, 64.0, 256.0)  # tried where the first of these is the best
PATIENCE = 2  # strengths in turn with neither a better score nor a lower loss on dev, before the search ends
ROUGH = {"tolerance_grad": 1e-6, "tolerance_change": 1e-7}  # for a strength that is only tried, in float32
EXACT = {"tolerance_grad": 1e-3, "tolerance_change": 1e-12}  # in float64, of UNIT times the mean loss
UNIT = 1e4  # so that torch's L-BFGS, which drops updates of less than 1e-10, still learns from the last ones
MOST_STEPS = 2000
MEMORY = 20  # updates from which L-BFGS guesses the curvature
CHUNK = 4096  # rows that are turned at a time
SURE = 0.1  # curvature of the loss in a logit, as a share of that of a model that knows nothing, for the scaling
Loss = Callable[["Tensor", "Tensor"], "tuple[Tensor, Tensor]"]


def choose_strength(
    ask: Callable[[float], tuple[float, float]], rows: int, *, lower: bool
) -> tuple[list[dict[str, float]], float]:
    """All strengths that were tried, and the best: of those whose score is about the best, the one of the lowest loss.

    `ask` solves with a strength, and says the score and the mean loss on dev, of `rows` rows. About the best: within
    the standard error that a share of so many rows has at most (the one-standard-error rule, Breiman et al. 1984,
    "Classification and Regression Trees"). The loss tells strengths apart that differ in the scores of a few rows, by
    chance; but a loss that is low because a rare label is never answered does not win, where that costs more of the
    score. For errors in a unit (rmse, mae) the bound means little, and does little: the loss orders heads much as they
    do. Of equal ones the stronger is taken, and a score that is no number never wins.
    """
    tried: list[dict[str, float]] = []
    sign = -1.0 if lower else 1.0

    def walk(strengths: Sequence[float]) -> None:
        tops, idle = (-np.inf, -np.inf), 0
        for strength in strengths:
            score, loss = ask(strength)
            tried.append({"strength": strength, "score": score, "loss": loss})
            now = _rank(sign * score), _rank(-loss)
            idle = 0 if any(one > top for one, top in zip(now, tops, strict=True)) else idle + 1
            tops = tuple(map(max, now, tops))
            if idle >= PATIENCE:
                return

    def best() -> dict[str, float]:
        enough = max(_rank(sign * one["score"]) for one in tried) - 0.5 / np.sqrt(rows)
        able = [one for one in tried if _rank(sign * one["score"]) >= enough]
        return max(able, key=lambda one: (_rank(-one["loss"]), one["strength"]))

    walk(STRENGTHS)
    if best() is tried[0]:
        walk(STRONGER)
    return tried, best()["strength"]


def _rank(value: float) -> float:
    """A value to order by; one that is no number comes last."""
    return -np.inf if np.isnan(value) else value


# losses of logits and targets, (rows, labels) each


def softmax_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of one label each, summed over the rows, and its gradient in the logits."""
    import torch

    logs = torch.log_softmax(logits, dim=1)
    loss = -torch.dot(logs.view(-1), targets.view(-1))
    return loss, logs.exp_().sub_(targets)


def sigmoid_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy, summed over rows and labels, and its gradient in the logits."""
    from torch.nn.functional import binary_cross_entropy_with_logits as entropy

    return entropy(logits, targets, reduction="sum"), logits.sigmoid().sub_(targets)


def squared_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Half the squared error, summed over the rows, and its gradient in the answers."""
    errors = logits - targets
    return errors.square().sum() / 2, errors


# the problem


class Solution(NamedTuple):
    """Weights of the turned features, (directions, labels), and biases (labels,), in float64."""

    weight: Tensor
    bias: Tensor


class LinearHead:
    """The head with the least mean loss of the rows plus L2, with the features standardised.

    It is found by L-BFGS (Liu and Nocedal 1989) in coordinates in which that is quick: along the principal axes of the
    features, each scaled by its curvature. Axes along which no row differs have no weight. Each solution starts from
    the one before, or from itself.

    Besides the features, in float32, it holds them turned: in float32 while strengths are tried, then in float64.
    """

    def __init__(self, features: np.ndarray, targets: np.ndarray, loss: Loss, curvature: float, *, bias: bool):
        """`features` (rows, features), `targets` (rows, labels); without `bias` features keep their mean."""
        import torch

        self.features, width = torch.from_numpy(features), features.shape[1]
        mean = features.mean(0, dtype=np.float64) if bias else np.zeros(width)
        self.mean, self.scale = torch.from_numpy(mean), torch.ones(width, dtype=torch.float64)
        spread = (sum(rows.square().sum(0) for rows in self._standard()) / len(features)).sqrt()
        self.scale = torch.where(spread > 1e-7 * spread.max(), spread, torch.inf)  # a feature that is constant
        variances, axes = torch.linalg.eigh(sum(rows.T @ rows for rows in self._standard()) / len(features))
        real = variances > 1e-10 * variances.max()
        self.variances, self.axes = variances[real], axes[:, real]
        self.targets = torch.from_numpy(targets)
        self._turned: tuple[Tensor, Tensor] | None = None
        self.loss, self.curvature, self.with_bias = loss, curvature, bias
        labels = targets.shape[1]
        zeros = torch.zeros((len(self.variances) + 1, labels), dtype=torch.float64)
        self.start = Solution(zeros[:-1], zeros[-1])
        self.solutions: dict[float, Solution] = {}  # by strength

    def _standard(self) -> Iterator[Tensor]:
        """The standardised features in float64, some rows at a time."""
        for rows in self.features.split(CHUNK):
            yield rows.double().sub_(self.mean).div_(self.scale)

    def turned(self, *, exact: bool) -> tuple[Tensor, Tensor]:
        """The turned features, (rows, directions), and the targets, (rows, labels), in float64 if `exact`."""
        import torch

        kind = torch.float64 if exact else torch.float32
        if self._turned is None or self._turned[0].dtype != kind:
            self._turned = None  # one of the two at a time
            turned = torch.empty((len(self.features), len(self.variances)), dtype=kind)
            for place, rows in zip(turned.split(CHUNK), self._standard(), strict=True):
                place.copy_(rows @ self.axes)
            self._turned = turned, self.targets.to(kind)
        return self._turned

    def mean_loss(self, logits: Tensor, targets: np.ndarray) -> float:
        """The mean loss, without L2, of answers to other rows, (rows, labels) each."""
        import torch

        return float(self.loss(logits.double(), torch.from_numpy(targets).double())[0]) / len(logits)

    def solve(self, strength: float, *, exact: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Weights (features, labels) and biases (labels,) of the features as they are."""
        import torch

        scale = torch.rsqrt(self.curvature * self.variances + strength)[:, None]
        bias_scale = self.curvature**-0.5
        known = self.solutions.get(strength, self.start)
        point = torch.cat([known.weight / scale, known.bias[None] / bias_scale]).requires_grad_()
        search = torch.optim.LBFGS(
            [point],
            max_iter=MOST_STEPS,
            max_eval=2 * MOST_STEPS,
            history_size=MEMORY,
            line_search_fn="strong_wolfe",
            **(EXACT if exact else ROUGH),
        )

        unit = UNIT if exact else 1.0

        def measure() -> float:
            at = point.detach()
            value, by_weight, by_bias = self.measure(at[:-1] * scale, at[-1] * bias_scale, strength, exact=exact)
            point.grad = unit * torch.cat([by_weight * scale, by_bias[None] * bias_scale])
            return unit * value

        search.step(measure)
        end = point.detach()
        found = self.start = self.solutions[strength] = Solution(end[:-1] * scale, end[-1] * bias_scale)
        weight = (self.axes @ found.weight) / self.scale[:, None]
        return weight.numpy(), (found.bias - self.mean @ weight).numpy() if self.with_bias else None

    def measure(self, weight: Tensor, bias: Tensor, strength: float, *, exact: bool) -> tuple[float, Tensor, Tensor]:
        """The mean loss with L2, and its gradient in the weights of the turned features and in the biases."""
        import torch

        turned, targets = self.turned(exact=exact)
        logits = torch.addmm(bias.to(turned.dtype), turned, weight.to(turned.dtype))
        loss, errors = self.loss(logits, targets)
        rows = len(turned)
        by_bias = errors.sum(0).double() / rows if self.with_bias else torch.zeros_like(bias)
        value = float(loss) / rows + strength / 2 * float(weight.square().sum())
        return value, (errors.T @ turned).T.double() / rows + strength * weight, by_bias
