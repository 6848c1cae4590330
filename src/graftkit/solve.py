"""Which head is best, if nothing else may change?

Then what enters the last layer never changes either, and finding its weights is a convex problem with one solution:
logistic regression for labels, ridge regression for numbers. It is computed once over all rows, in place of a training
loop, for some strengths of L2, of which dev chooses one. With the strategy lp_ft all weights train from there (Kumar et
al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", arXiv 2202.10054).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.adapt import AdaptConfig, Adapted, ClassifierAdaptConfig, solves
from graftkit.errors import UserError
from graftkit.evaluate import predict_rows
from graftkit.images import ImageConfig
from graftkit.linear_head import (
    STRENGTHS,
    STRONGER,
    SURE,
    LinearHead,
    choose_strength,
    sigmoid_loss,
    softmax_loss,
    squared_loss,
)
from graftkit.losses import LossConfig
from graftkit.run import Run
from graftkit.task import Batch, Lengths, Record, Row, Task
from graftkit.train import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftkit.data import Splits

MIXES, CHANGES = ("mixup", "cutmix"), ("augment", "crop", "flip", "erase")  # of pictures, in training alone
PROBED = 4  # rows on which it is seen which layer is the last


# which settings go together


def check_solver(adapt: AdaptConfig, config: TrainConfig, usual: TrainConfig) -> None:
    """Raise UserError for settings of training that do nothing where the head is solved; `usual` are the defaults."""
    if not solves(adapt):
        return
    idle = [name for name in vars(config) if getattr(config, name) != getattr(usual, name)]
    if adapt.strategy == "head" and idle:
        raise UserError(
            f"--train.{idle[0]} does nothing with --adapt.strategy head, whose head is computed and not trained; leave "
            "it out, or train it: --adapt.solver sgd"
        )
    if adapt.strategy == "lp_ft" and config.head_first:
        raise UserError("--train.head_first does nothing with --adapt.strategy lp_ft: the head is solved first")


def check_pictures(adapt: AdaptConfig, config: ImageConfig) -> None:
    """Raise UserError for changes to pictures that a head that is solved would never see."""
    if adapt.strategy != "head" or not solves(adapt):
        return
    for name in MIXES:
        if getattr(config, name):
            raise UserError(
                f"--image.{name} mixes labels, and --adapt.solver lbfgs needs rows of one label each; leave it out, or "
                "set --adapt.solver sgd"
            )
    if not sees_no_views(adapt):
        return
    for name in CHANGES:
        if getattr(config, name) not in (getattr(ImageConfig, name), "none"):
            raise UserError(
                f"--image.{name} does nothing with --adapt.solver lbfgs, which sees pictures as evaluation does; set "
                "--adapt.views 5 for so many views of each, or --adapt.solver sgd"
            )


def sees_no_views(adapt: ClassifierAdaptConfig) -> bool:
    """Whether nothing is learned but a head that is solved, of pictures as evaluation sees them."""
    return adapt.strategy == "head" and solves(adapt) and adapt.views is None


def after_solving(adapt: AdaptConfig, config: TrainConfig) -> TrainConfig:
    """The settings with which everything trains from a solved head: it does not start from nothing."""
    if adapt.strategy != "lp_ft" or config.head_lr is not None:
        return config
    return replace(config, head_factor=1.0)


# the verb


@contextmanager
def head_alone(adapted: Adapted) -> Iterator[None]:
    """Inside, nothing but the head is to train."""
    named = list(adapted.model.named_parameters())
    before = [parameter.requires_grad for _, parameter in named]
    try:
        for name, parameter in named:
            parameter.requires_grad = name in adapted.head
        yield
    finally:
        for (_, parameter), trains in zip(named, before, strict=True):
            parameter.requires_grad = trains


def solve_head(
    run: Run, task: Task, adapted: Adapted, splits: Splits, lengths: Lengths, views: int | None = None
) -> None:
    """Put the best weights into the model's last layer; the strength of L2 is chosen on dev: see `choose_strength`.

    `views`: so many views of each training picture are rows of their own; by default rows are as evaluation sees them.
    The same on every process, and again whenever it is done. UserError where there is no one last layer.
    """
    began = time.perf_counter()
    model = adapted.model.to(run.accelerator.device).eval()
    layer = find_last_layer(task, model, [splits.train[i] for i in range(min(PROBED, len(splits.train)))])
    reader = _Features(task, layer)
    views = views if task.varies else None
    chances = [None] if views is None else [(run.seed, view) for view in range(views)]
    with run.accelerator.autocast():  # as training reads rows
        parts = [features_of(run, reader, model, splits.train, lengths["train"], chance) for chance in chances]
        dev, dev_truth = features_of(run, reader, model, splits.dev, lengths["dev"], None)
    features, truth = np.concatenate([part[0] for part in parts]), [one for part in parts for one in part[1]]
    del parts
    read = time.perf_counter()
    score = scorer(task, model, splits.dev, plain=reader.plain)

    def solve() -> tuple[list[dict[str, float]], float, float, np.ndarray, np.ndarray | None]:
        problem = make_problem(task, features, truth, bias=layer.bias is not None)
        targets = targets_of(task, dev_truth, bias=layer.bias is not None)

        def ask(strength: float) -> tuple[float, float]:
            logits = answers(dev, *problem.solve(strength, exact=False))
            return score(logits)[run.headline], problem.mean_loss(logits, targets)

        tried, best = choose_strength(ask, len(dev), lower=run.lower)
        head = problem.solve(best, exact=True)
        return tried, best, score(answers(dev, *head))[run.headline], *head

    tried, best, scored, weight, bias = run.once(solve)
    write_weights(layer, weight, bias)
    unsolved = layers_before(adapted, layer)
    run.record["solver"] = {
        "rows": features.shape[0],
        "features": features.shape[1],
        "tried": tried,
        "strength": best,
        "score": scored,
        "unsolved": unsolved,
        "by_chance": views is not None or bool(unsolved),
        "seconds": {"features": round(read - began, 3), "solve": round(time.perf_counter() - read, 3)},
    }
    _tell(run, run.record["solver"])
    _tell_limits(run)


def log_solution(run: Run, model: nn.Module) -> nn.Module:
    """The solved model, where nothing trains after it: in evaluation mode, and with a log of one event."""
    solved = run.record["solver"]
    run.cut_log(0)
    run.log({"update": 0, "strength": solved["strength"], "dev": {run.headline: solved["score"]}})
    return model.eval()


def scorer(task: Task, model: nn.Module, rows: Sequence[Row], *, plain: bool) -> Callable[[Tensor], dict[str, float]]:
    """What the task says of logits (rows, labels) float32 of these rows, which the model need not be asked about.

    `plain`: whether the model gives a tensor, or an output with `logits`.
    """
    import torch

    light = rows.remove_columns([name for name in ("bytes",) if name in rows.column_names])  # no pictures are read
    batch = task.collate([task.stand_in(row, 1) for row in light])

    def score(logits: Tensor) -> dict[str, float]:
        said = logits if plain else SimpleNamespace(logits=logits)
        before = model.__dict__.get("forward")
        model.__dict__["forward"] = lambda *given, **named: said
        try:
            with torch.no_grad():
                return task.score(task.predict(model, batch))
        finally:
            model.__dict__.pop("forward")
            if before is not None:
                model.__dict__["forward"] = before

    return score


def answers(features: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> Tensor:
    """The logits, (rows, labels) float32, that a head makes of features."""
    import torch

    return torch.from_numpy((features @ weight.astype(np.float32) + (0.0 if bias is None else bias)).astype(np.float32))


def _tell(run: Run, solved: Mapping[str, Any]) -> None:
    """Say what was solved, and what of the head was not."""
    seconds, strength = solved["seconds"], solved["strength"]
    run.say(
        f"the head is solved: {solved['rows']:,} rows of {solved['features']:,} features in "
        f"{seconds['features']:.1f} s, then L2 of {len(solved['tried'])} strengths in {seconds['solve']:.1f} s; "
        f"{strength:.3g} is chosen on dev ({run.headline} {solved['score']:.4f})"
    )
    if strength in (STRENGTHS[-1], STRONGER[-1]):
        run.say(f"{strength:.3g} is the {'weakest' if strength < 1 else 'strongest'} L2 that is tried")
    if solved["unsolved"]:
        stays = ", and stays so" if run.config["adapt"]["strategy"] == "head" else ""
        run.say(
            f"of the head only the last layer is solved; what comes before it ({', '.join(solved['unsolved'])}) is new "
            f"and random, unless the checkpoint brought it{stays}",
            warning=True,
        )


def _tell_limits(run: Run) -> None:
    """Say what about training is nothing to a head that is computed."""
    if ignored := costs_ignored(run.config["train"]):
        run.say(f"the head is computed with the plain loss; {', '.join(ignored)} counts from the first update on")
    if run.config["adapt"]["strategy"] == "head" and not run.record["solver"]["by_chance"]:
        run.say("nothing of this head is drawn by chance: on the same rows every seed of --run.seeds gives it again")


def costs_ignored(settings: Mapping[str, Any]) -> list[str]:
    """The flags among settings of training that change what an answer costs, or how often a row is seen."""
    usual = {field.name: field.default for field in fields(LossConfig)}
    costs = ("label_smoothing", "class_weights", "sampling", "focal", "teacher")
    return [f"--train.{name}" for name in costs if settings.get(name, usual[name]) != usual[name]]


def layers_before(adapted: Adapted, layer: nn.Module) -> list[str]:
    """The layers with weights in the head besides the one that is solved, by name."""
    own = {id(parameter) for parameter in layer.parameters()}
    named = [(name, p) for name, p in adapted.model.named_parameters() if name in adapted.head]
    return [name.rpartition(".")[0] for name, p in named if p.ndim > 1 and id(p) not in own]


# what enters the last layer


def find_last_layer(task: Task, model: nn.Module, rows: Sequence[Row]) -> nn.Module:
    """The linear layer, or convolution of one pixel, that alone turns features into logits. UserError where none does.

    No list of names is needed: other weights are put into a layer, and it is seen on a few rows whether the logits are
    what these make of its features.
    """
    import torch

    batch = task.collate([task.encode(row, None) for row in rows]).to(next(model.parameters()).device)
    with torch.no_grad():
        outputs = _ask(task, model, batch)[1].shape[1]
        for layer in reversed(list(model.modules())):
            weight = getattr(layer, "weight", None)
            linear = hasattr(weight, "dim") and (weight.dim() == 2 or (weight.dim() == 4 and weight[0, 0].numel() == 1))
            if linear and weight.shape[0] == outputs and _is_last(task, model, layer, batch):
                return layer
    raise UserError(
        f"{type(model).__name__}: its logits do not come from one last linear layer, so they cannot be solved; set "
        "--adapt.solver sgd, or --adapt.strategy full"
    )


def _is_last(task: Task, model: nn.Module, layer: nn.Module, batch: Batch) -> bool:
    """Whether the logits are what this layer's weights, whatever they are, make of what enters it."""
    import torch

    weight, kept = layer.weight, layer.weight.detach().clone()
    draw = torch.Generator().manual_seed(0)
    try:
        weight.copy_(torch.randn(weight.shape, generator=draw))
        logits = _ask(task, model, batch)[1]
        weight.mul_(2)
        moved = _ask(task, model, batch)[1]
        bias = 0.0 if layer.bias is None else layer.bias
        if not torch.allclose(moved - logits, logits - bias, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
            return False
        features = _ask(task, model, batch, layer)[1]
        made = features @ weight.flatten(1).T + bias
        return torch.allclose(made, moved, rtol=1e-3, atol=1e-3 * float(moved.abs().max()))
    finally:
        weight.copy_(kept)


def features_of(
    run: Run,
    reader: _Features,
    model: nn.Module,
    rows: Sequence[Row],
    lengths: np.ndarray | None,
    chance: tuple[int, int] | None,
) -> tuple[np.ndarray, list[Any]]:
    """What enters the last layer of each row, (rows, features) float32, and the truth of each.

    UserError where that is not finite: a head would be made of it that says nothing, without a word.
    """
    records = predict_rows(run.accelerator, reader, model, rows, lengths, chance)
    features = np.stack([record["features"] for record in records])
    wrong = [rows[int(place)]["id"] for place in np.flatnonzero(~np.isfinite(features).all(axis=1))]
    if wrong:
        shown = ", ".join(wrong[:8]) + (f" and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise UserError(
            f"what the network says of these rows is not finite, so no head can be solved: {shown}; look at them, or "
            "set --run.precision fp32"
        )
    return features, [record["label"] for record in records]


class _Features:
    """A task whose record of a row is its truth, and what enters a layer; all else is the task that is asked."""

    def __init__(self, task: Task, layer: nn.Module):
        self.task, self.layer = task, layer
        self.plain = False  # whether the model gives a tensor, and not an output with `logits`

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """Truth and features of each row."""
        records, features, self.plain = _ask(self.task, model, batch, self.layer)
        rows = features.float().cpu().numpy()
        return [{"label": record["label"], "features": row} for record, row in zip(records, rows, strict=True)]


def _ask(
    task: Task, model: nn.Module, batch: Batch, without: nn.Module | None = None
) -> tuple[list[Record], Tensor, bool]:
    """The task's records of a batch, what the model says, (rows, labels), and whether it gives a tensor alone.

    `without` this layer: it passes on what enters it, so that the model says its features, (rows, features): of the
    token that the answer is taken from, or the mean over places, whatever the model does with its outputs. The records
    are then good for the truth alone.
    """
    said: list[Tensor] = []
    alone: list[bool] = []

    def note(module: nn.Module, given: Any, output: Any) -> Any:
        import torch

        plain = isinstance(output, torch.Tensor)
        said.append(output if plain else output.logits)
        alone.append(plain)
        if without is None:
            return output
        blank = said[0].new_zeros((len(said[0]), without.weight.shape[0]))
        if plain:
            return blank
        output.logits = blank
        return output

    hooks = [model.register_forward_hook(note)]
    if without is not None:
        hooks.append(without.register_forward_hook(lambda module, given, output: given[0]))
    try:
        records = task.predict(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return records, said[0].flatten(1), alone[0]


def write_weights(layer: nn.Module, weight: np.ndarray, bias: np.ndarray | None) -> None:
    """Put weights (features, labels) and biases (labels,) into a layer, in its own precision."""
    import torch

    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight.T)).reshape(layer.weight.shape))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))


# the problem


def make_problem(task: Task, features: np.ndarray, truth: Sequence[Any], *, bias: bool) -> LinearHead:
    """The problem of rows whose truth is a label, a list of labels, or a number."""
    targets = targets_of(task, truth, bias=bias)
    if isinstance(truth[0], str):
        return LinearHead(features, targets, softmax_loss, SURE / len(task.labels), bias=bias)
    if isinstance(truth[0], list):
        return LinearHead(features, targets, sigmoid_loss, SURE / 2, bias=bias)
    return LinearHead(features, targets, squared_loss, 1.0, bias=bias)


def targets_of(task: Task, truth: Sequence[Any], *, bias: bool) -> np.ndarray:
    """What the model is to say of rows, (rows, labels): shares of labels, or numbers in the unit in which it learns."""
    if isinstance(truth[0], str):
        index = {label: place for place, label in enumerate(task.labels)}
        return np.eye(len(task.labels), dtype=np.float32)[[index[label] for label in truth]]
    if isinstance(truth[0], list):
        return np.array([[label in labels for label in task.labels] for labels in truth], dtype=np.float32)
    numbers = np.array(truth, dtype=np.float64)[:, None]
    return (numbers - (task.mean if bias else 0.0)) / task.sd
