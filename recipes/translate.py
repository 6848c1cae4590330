"""Fine-tune a writer of texts from texts: a pretrained T5-, BART- or Marian-style checkpoint, your pairs of texts.

    accelerate launch recipes/translate.py --data.path opus_books --data.subset de-en --data.source en \\
        --data.target de --data.prefix "translate English to German: " --backbone.name google-t5/t5-small \\
        --train.lr 1e-4 --train.epochs 3

Translation, summarisation, rewriting: whatever makes one text of another. With no arguments it teaches a small T5 that
nobody has trained, built on the spot, to write dates and times as figures, from sentences made by rules. Every setting:
--help.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from graftkit.adapt import AdaptConfig, adapt
from graftkit.backbone import BackboneConfig
from graftkit.config import start
from graftkit.data.parallel_rows import ParallelDataConfig, load_parallel
from graftkit.finish import finish
from graftkit.fresh import USUAL, FreshTrainConfig
from graftkit.learn import check_ways, learn
from graftkit.rehearse import rehearse
from graftkit.report import RowsReportConfig
from graftkit.run import RunConfig, check_texts_kept, open_run
from graftkit.several import run_several, several_asked
from graftkit.tasks.sequence_to_sequence import (
    GenerateConfig,
    SequenceToSequence,
    TargetConfig,
    load_reader,
    load_writer,
    measure_pairs,
    say_what_is_new,
)
from graftkit.train import TrainConfig

UNTRAINED = TrainConfig(epochs=12, batch_size=32, lr=4e-3)


@dataclass(frozen=True)
class Config:
    """All that the user may set."""

    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(name="demo-t5"))
    data: ParallelDataConfig = field(default_factory=ParallelDataConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    train: FreshTrainConfig = field(default_factory=FreshTrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    report: RowsReportConfig = field(default_factory=RowsReportConfig)


def settle_training(config: Config) -> Config:
    """With what the user left open of training: a network that nobody has trained needs more of it, and faster."""
    usual = UNTRAINED if config.backbone.name == "demo-t5" else USUAL
    return replace(config, train=config.train.settle(usual))


def check(config: Config) -> None:
    """Raise UserError, before anything is done, for settings that do not go together."""
    check_texts_kept(config.run)
    untrained = config.backbone.name == "demo-t5"
    check_ways(config.adapt, settle_training(config).train, Config().train, untrained=untrained)


def main(config: Config) -> dict[str, Any]:
    """From settings to a saved model and its metrics."""
    check(config)
    config = settle_training(config)
    if several_asked(config):
        return run_several("translate", main, config)
    run = open_run("translate", config)

    with run.phase("data"):
        splits = load_parallel(config.data, config.run.seed, config.report.columns, config.report.group)
        tokenizer = load_reader(config.backbone, config.target, config.generate)
        task = SequenceToSequence(tokenizer, config.data.prefix, config.target, config.generate)
        run.introduce(task, splits)
        lengths = measure_pairs(run, task, splits)
    task.writes = run.headline != "log_loss"  # texts of dev after each epoch may take longer than the epoch

    with run.phase("backbone"):
        headed = load_writer(config.backbone, config.run.seed)
        say_what_is_new(run, config.backbone, config.adapt.strategy, config.train.lr)
    adapted = adapt(headed, config.adapt)
    run.describe(adapted, config)

    if run.settings.dry_run:
        return rehearse(run, task, adapted, splits, lengths, config.adapt, config.train)

    with run.phase("train"):
        model = learn(run, task, adapted, splits, lengths, config.adapt, config.train)
    task.writes = True

    return finish(run, task, model, splits, lengths, config.report, merge=config.adapt.merge)


if __name__ == "__main__":
    start(main, Config, description=__doc__)
