"""Which way does it learn?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graftkit.activation_cache import cached
from graftkit.adapt import AdaptConfig, Adapted, solves
from graftkit.errors import UserError
from graftkit.losses import LossConfig
from graftkit.rate_range import check_rate, settle_rate
from graftkit.run import Run
from graftkit.solve import after_solving, check_solver, head_alone, log_solution, solve_head
from graftkit.soups import check_choice, check_epochs, choose_weights, keep_start
from graftkit.task import Lengths, Task
from graftkit.teach import check_costs, has_teacher, taught
from graftkit.train import has_ended, make_feed, train
from graftkit.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from graftkit.data import Splits

WHY = {
    "layer_decay": "trains no blocks",
    "unfreeze_every": "trains nothing that could wait",
    "head_first": "trains nothing that could wait",
    "l2_sp": "leaves the weights of the checkpoint as they are",
}  # why a setting does nothing beside a strategy


@dataclass(frozen=True)
class ClassifierTrainConfig(LossConfig, TrainConfig):
    """How does it learn?"""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        LossConfig.__post_init__(self)


def check_ways(
    adapt: AdaptConfig,
    config: TrainConfig,
    usual: TrainConfig | None = None,
    *,
    untrained: bool = False,
    task: str | None = None,
    resumed: bool = False,
) -> None:
    """Raise UserError, before anything is done, for ways of adapting and of training that do not go together.

    `usual` are the recipe's own settings of training, by which it is seen what the user set. `untrained`: the network
    starts from random weights. `task`: what the model is for, which its teacher must be for, too. `resumed`: an earlier
    run is gone on with, which has had its teacher.
    """
    if untrained:
        check_start(config)
    if usual is not None:
        check_solver(adapt, config, usual)
        check_head_rate(adapt, config, usual)
    check_choice(adapt, config)
    check_turns(adapt, config, usual)
    check_rate(adapt, config)
    check_costs(adapt, config, task, resumed=resumed)


def check_start(config: TrainConfig) -> None:
    """Raise UserError for ways to stay near the start where that is random weights."""
    for name in ("l2_sp", "wise_ft"):
        if getattr(config, name):
            raise UserError(
                f"--train.{name} stays near the checkpoint, and this network starts from random weights; leave it out, "
                "or name a pretrained one"
            )


def check_turns(adapt: AdaptConfig, config: TrainConfig, usual: TrainConfig | None = None) -> None:
    """Raise UserError, before anything is done, for ways to step the weights that do nothing beside what trains."""
    if adapt.explain and config.lr == "auto":
        raise UserError("--adapt.explain shows rates, and --train.lr auto finds its own in training; set a number")
    if adapt.strategy == "lp_ft" and config.unfreeze_every is not None:
        raise UserError(
            f"--train.unfreeze_every {config.unfreeze_every} trains a new head alone first, and --adapt.strategy lp_ft "
            "computes it; leave one of them out"
        )
    alone = adapt.strategy == "head"
    for name, asked in {
        "layer_decay": config.layer_decay < 1 and (alone or adapt.strategy == "prompt"),
        "unfreeze_every": config.unfreeze_every is not None and alone,
        "head_first": usual is not None and config.head_first not in (0, usual.head_first) and alone,
        "l2_sp": config.l2_sp > 0 and (alone or adapt.strategy in ("lora", "ia3", "prompt")),
    }.items():
        if asked:
            raise UserError(
                f"--train.{name} {getattr(config, name)} does nothing with --adapt.strategy {adapt.strategy}, which "
                f"{WHY[name]}; leave one of them out"
            )


def check_head_rate(adapt: AdaptConfig, config: TrainConfig, usual: TrainConfig) -> None:
    """Raise UserError for a share of the rate that the head would not learn at."""
    if config.head_factor == usual.head_factor:
        return
    if config.head_lr is not None:
        raise UserError(
            f"--train.head_factor {config.head_factor:g} does nothing beside --train.head_lr, which is the head's "
            "rate; leave one of them out"
        )
    if adapt.strategy == "lp_ft":
        raise UserError(
            f"--train.head_factor {config.head_factor:g} does nothing with --adapt.strategy lp_ft: the head is "
            "computed, and then learns at --train.lr; leave it out, or set --train.head_lr"
        )


def learn(
    run: Run,
    task: Task,
    adapted: Adapted,
    splits: Splits,
    lengths: Lengths,
    adapt: AdaptConfig,
    config: TrainConfig,
) -> nn.Module:
    """The model as it is to be kept, in evaluation mode: solved, or trained, with the weights of `choose_weights`."""
    check_epochs(run, task, splits, lengths, config)
    if solves(adapt):
        with head_alone(adapted), cached(run, task, adapted, splits, lengths, replace(adapt, strategy="head")) as known:
            solve_head(run, known, adapted, splits, lengths, adapt.views)
        if adapt.strategy == "head":
            return log_solution(run, adapted.model)
    with cached(run, task, adapted, splits, lengths, adapt) as task:
        if has_teacher(config) and not has_ended(run, make_feed(run, task, splits, lengths, config), config):
            task = taught(run, task, splits, config)
        config = settle_rate(run, task, adapted, splits, lengths, after_solving(adapt, config))
        start = keep_start(adapted, config, solved=adapt.strategy == "lp_ft")
        model = train(run, task, adapted, splits, lengths, config)
        return choose_weights(run, task, model, start, splits, lengths, config)
