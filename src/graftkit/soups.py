"""Which weights are kept?

Usually those that scored best on dev after an epoch. Weights on the straight line between two networks that grew from
the same start are often better than either: between the pretrained and the trained ones (WiSE-FT, Wortsman et al. 2022,
"Robust fine-tuning of zero-shot models", arXiv 2109.01903), or the average of several (soups, Wortsman et al. 2022,
"Model soups", arXiv 2203.05482; along one run, Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and
Better Generalization", arXiv 1803.05407). What is kept is one network of the same size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from graftkit import checkpoint
from graftkit.adapt import AdaptConfig, Adapted
from graftkit.errors import UserError
from graftkit.evaluate import predict_rows
from graftkit.run import Run
from graftkit.task import Lengths, Task
from graftkit.train import CHECKPOINTS, TrainConfig, make_feed, planned_updates

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftkit.data import Splits

T = TypeVar("T")
Weights = Mapping[str, "Tensor"]
"""What training changes, by name: each tensor once, also where two layers share it."""

ALPHAS = tuple(step / 10 for step in range(11))  # shares of the way from the pretrained to the trained weights
ADDS = ("lora", "ia3", "prompt")  # strategies under which no weight of the checkpoint trains


def check_choice(adapt: AdaptConfig, config: TrainConfig) -> None:
    """Raise UserError where there are no two networks to choose between."""
    if config.wise_ft and adapt.strategy == "head":
        raise UserError(
            "--train.wise_ft with --adapt.strategy head: all that the checkpoint brought stays as it was, so there is "
            "nothing between; leave it out, or let more train"
        )
    if config.wise_ft and adapt.strategy in ADDS:
        raise UserError(
            f"--train.wise_ft with --adapt.strategy {adapt.strategy}: no weight of the checkpoint trains, so there is "
            "nothing between; leave it out, or choose full, last or bitfit"
        )


def check_epochs(run: Run, task: Task, splits: Splits, lengths: Lengths, config: TrainConfig) -> None:
    """Raise UserError, before the first update, for a soup of a run that --train.max_steps ends in its first epoch."""
    if config.soup is None:
        return
    feed = make_feed(run, task, splits, lengths, config)
    if planned_updates(feed, config) <= feed.updates_per_epoch:
        raise UserError(
            f"--train.soup {config.soup} averages the weights after each epoch, and --train.max_steps "
            f"{config.max_steps} leaves but one ({feed.updates_per_epoch} updates an epoch); allow more"
        )


def keep_start(adapted: Adapted, config: TrainConfig, *, solved: bool) -> dict[str, Tensor]:
    """A copy of what will train, before it does, of all that WiSE-FT interpolates; nothing where that is not asked for.

    Without the head where it is new: it starts from chance, so nothing lies between. `solved`: it was fitted to the
    cached features before, and counts.
    """
    if not config.wise_ft:
        return {}
    own = checkpoint.trained_weights(adapted.model).items()
    return {name: value.cpu().clone() for name, value in own if solved or name not in adapted.head}


def choose_weights(
    run: Run,
    task: Task,
    model: nn.Module,
    start: Weights,
    splits: Splits,
    lengths: Lengths,
    config: TrainConfig,
) -> nn.Module:
    """The trained model with the weights that are kept, in evaluation mode.

    A soup takes the place of what was trained; WiSE-FT then goes between `start` (see `keep_start`) and that. The same
    on every process, since all see the same records.
    """

    def score() -> float:
        with run.accelerator.autocast():  # as after each epoch, and as kept activations are
            records = predict_rows(run.accelerator, task, model, splits.dev, lengths["dev"])
        return task.score(records)[run.headline]

    if config.soup is not None:
        run.record["soup"] = make_soup(run, model, score, config.soup)
    if config.wise_ft:
        run.record["wise_ft"] = go_between(run, model, start, score)
    return model.eval()


def make_soup(run: Run, model: nn.Module, score: Callable[[], float], kind: str) -> dict[str, Any]:
    """Put the average of the weights after each epoch into the model, of all or of a greedy choice; says what it did.

    `score`: of the model as it stands, on dev. Batch norm's statistics are averaged with the rest.
    """
    paths = checkpoint.of_epochs(run.folder / CHECKPOINTS)
    own = checkpoint.trained_weights(model)

    def ask(chosen: Sequence[int]) -> float:
        put(own, average([checkpoint.read_weights(paths[place]) for place in sorted(chosen)]))
        return score()

    facts = soup([checkpoint.read_state(path).update for path in paths], ask, kind, lower=run.lower)
    run.say(tell_soup(facts, run.headline, "after update"))
    return facts


def soup(names: Sequence[Any], ask: Callable[[Sequence[int]], float], kind: str, *, lower: bool) -> dict[str, Any]:
    """Cook a soup, uniform or greedy, of some ingredients by their places in `names`, and say what is in it.

    `ask` puts the average of some into the model, the same in whatever order, and returns its score on dev; the last
    thing that it is asked is what is kept. `lower`: less of the score is better.
    """
    alone = [ask([place]) for place in range(len(names))]
    sign = -1.0 if lower else 1.0
    order = sorted(range(len(names)), key=lambda place: _rank(sign * alone[place]), reverse=True)

    def score(places: Sequence[int]) -> float:
        return sign * (ask(places) if len(places) > 1 else alone[places[0]])

    chosen = order if kind == "uniform" else greedy(order, score)
    members = [
        {"name": name, "score": value, "kept": place in chosen}
        for place, (name, value) in enumerate(zip(names, alone, strict=True))
    ]
    return {"kind": kind, "members": members, "best": alone[order[0]], "score": ask(chosen)}


def greedy(order: Sequence[T], score: Callable[[Sequence[T]], float]) -> list[T]:
    """The ingredients of a greedy soup (Wortsman et al. 2022, recipe 1), from the best: each that does no harm.

    One is added if the average with it scores no less than the one without. `score`: of an average, higher is better.
    """
    chosen = [order[0]]
    reached = score(chosen)
    for one in order[1:]:
        tried = score([*chosen, one])
        if tried >= reached:
            chosen, reached = [*chosen, one], tried
    return chosen


def go_between(run: Run, model: nn.Module, start: Weights, score: Callable[[], float]) -> dict[str, Any]:
    """Put the weights between `start` and the model's own into it that score best on dev; says which.

    Of equal scores the one nearer to the trained weights is taken.
    """
    own = whole(model)
    trained = {name: own[name].cpu().clone() for name in start}
    scores = {}
    for alpha in ALPHAS:
        put(own, interpolate(start, trained, alpha))
        scores[alpha] = score()
    sign = -1.0 if run.lower else 1.0
    alpha = max(ALPHAS, key=lambda alpha: (_rank(sign * scores[alpha]), alpha))
    put(own, interpolate(start, trained, alpha))
    head_stays = any(name not in start for name in checkpoint.trained_weights(model))
    facts = {
        "alpha": alpha,
        "score": scores[alpha],
        "table": [{"alpha": alpha, "score": score} for alpha, score in scores.items()],
        "head_stays": head_stays,
    }
    table = ", ".join(f"{alpha:g}: {score:.4f}" for alpha, score in scores.items())
    run.say(f"weights between the pretrained (0) and the trained (1), {run.headline} on dev: {table}")
    stays = "; the head is new, and stays as it was trained" if head_stays else ""
    run.say(f"WiSE-FT keeps {alpha:g} of the way: {run.headline} {scores[alpha]:.4f} on dev{stays}")
    return facts


def tell_soup(facts: Mapping[str, Any], headline: str, what: str) -> str:
    """What is in a soup, and what it gains on dev, in a line; `what` as in "the weights `after update` 3"."""
    names = [str(one["name"]) for one in facts["members"] if one["kept"]]
    kept = f"the weights {what}{'s' * (len(names) > 1)} {', '.join(names)}"
    if len(names) == 1:
        return f"{facts['kind']} soup: no average does as well on dev as {kept} alone: {headline} {facts['score']:.4f}"
    return (
        f"{facts['kind']} soup: the average of {kept} is kept: {headline} {facts['score']:.4f} on dev; "
        f"the best of {len(facts['members'])} alone {facts['best']:.4f}"
    )


# weights alone


def average(several: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean of weights of the same names and shapes, in fp32 and then as they were; whole numbers from the first."""
    import torch

    if len(several) == 1:
        return dict(several[0])

    def mean(name: str, first: Tensor) -> Tensor:
        if not first.is_floating_point():
            return first
        return torch.stack([weights[name].float() for weights in several]).mean(0).to(first.dtype)

    return {name: mean(name, value) for name, value in several[0].items()}


def interpolate(start: Weights, end: Weights, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) start + alpha end, in fp32 and then as they were; at 0 and 1 bit for bit what was given.

    Whole numbers are those of the nearer side.
    """
    import torch

    def between(one: Tensor, other: Tensor) -> Tensor:
        if not one.is_floating_point() or alpha in (0, 1):
            return one if alpha < 0.5 else other
        return torch.lerp(one.float(), other.float(), alpha).to(one.dtype)

    return {name: between(value, end[name]) for name, value in start.items()}


def put(own: Weights, weights: Weights) -> None:
    """Copy weights into those of a model, by name."""
    import torch

    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """All weights that a saved model holds, by name, each once: what is put there changes the model."""
    kept = model.state_dict().keys()
    return {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers()) if name in kept}


def _rank(score: float) -> float:
    """A score to order by; one that is no number comes last."""
    return -math.inf if math.isnan(score) else score
