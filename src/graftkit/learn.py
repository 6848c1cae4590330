"""Which way does it learn?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftkit.adapt import AdaptConfig, Adapted
from graftkit.run import Run
from graftkit.task import Lengths, Task
from graftkit.train import TrainConfig, train

if TYPE_CHECKING:
    from torch import nn

    from graftkit.data import Splits


@dataclass(frozen=True)
class ClassifierTrainConfig(TrainConfig):
    """How does it learn?"""


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
    return train(run, task, adapted, splits, lengths, config)
