"""Which way does it learn?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graftkit.activation_cache import cached
from graftkit.adapt import AdaptConfig, Adapted, solves
from graftkit.losses import LossConfig
from graftkit.rate_range import check_rate, settle_rate
from graftkit.run import Run
from graftkit.solve import after_solving, check_solver, head_alone, log_solution, solve_head
from graftkit.soups import check_choice, check_epochs, choose_weights, keep_start
from graftkit.task import Lengths, Task
from graftkit.teach import check_costs, taught
from graftkit.train import TrainConfig, check_start, check_turns, train

if TYPE_CHECKING:
    from torch import nn

    from graftkit.data import Splits


@dataclass(frozen=True)
class ClassifierTrainConfig(LossConfig, TrainConfig):
    """How does it learn?"""

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        LossConfig.__post_init__(self)


def check_ways(
    adapt: AdaptConfig, config: TrainConfig, usual: TrainConfig | None = None, *, untrained: bool = False
) -> None:
    """Raise UserError, before anything is done, for ways of adapting and of training that do not go together.

    `usual` are the recipe's own settings of training, where some ways of adapting do without any. `untrained`: the
    network starts from random weights.
    """
    if untrained:
        check_start(config)
    if usual is not None:
        check_solver(adapt, config, usual)
    check_choice(adapt, config)
    check_turns(adapt, config)
    check_rate(adapt, config)
    check_costs(adapt, config)


def learn(
    run: Run,
    task: Task,
    adapted: Adapted,
    splits: Splits,
    lengths: Lengths,
    adapt: AdaptConfig,
    config: TrainConfig,
) -> nn.Module:
    """The model as it is to be kept, in evaluation mode: trained, with the weights that scored best on dev."""
    check_epochs(run, task, splits, lengths, config)
    if solves(adapt):
        with head_alone(adapted), cached(run, task, adapted, splits, lengths, replace(adapt, strategy="head")) as known:
            solve_head(run, known, adapted, splits, lengths, adapt.views)
        if adapt.strategy == "head":
            return log_solution(run, adapted.model)
    with cached(run, task, adapted, splits, lengths, adapt) as task:
        if isinstance(config, LossConfig) and config.teacher is not None:
            task = taught(run, task, splits, config)
        config = after_solving(adapt, settle_rate(run, task, adapted, splits, lengths, config))
        start = keep_start(adapted, config, solved=adapt.strategy == "lp_ft")
        model = train(run, task, adapted, splits, lengths, config)
    return choose_weights(run, task, model, start, splits, lengths, config)
