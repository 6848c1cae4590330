"""Fine-tune a tagger of words: a pretrained BERT- or GPT-style checkpoint, a new head, your words with a tag each.

    accelerate launch recipes/token_classify.py --data.path conll2003/ --backbone.name roberta-base

Names of people, products, dates: entities in BIO, BIOES or BILOU, or plain tags such as parts of speech. With no
arguments it adapts all-MiniLM-L6-v2, which is installed with the demo extra, to short customer messages in which
products, order numbers, dates, people and places are marked. Every setting: --help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from graftkit.adapt import AdaptConfig, adapt
from graftkit.backbone import BackboneConfig
from graftkit.config import start
from graftkit.data.tagged_rows import TaggedDataConfig, load_tagged
from graftkit.finish import finish
from graftkit.heads import load_token_classifier
from graftkit.learn import check_ways, learn
from graftkit.rehearse import rehearse
from graftkit.report import RowsReportConfig
from graftkit.run import RunConfig, open_run
from graftkit.several import run_several, several_asked
from graftkit.tasks.token_classification import TokenClassification
from graftkit.text import load_tokenizer, measure
from graftkit.train import TrainConfig


@dataclass(frozen=True)
class Config:
    """All that the user may set."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: TaggedDataConfig = field(default_factory=TaggedDataConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=8))
    run: RunConfig = field(default_factory=RunConfig)
    report: RowsReportConfig = field(default_factory=RowsReportConfig)


def check(config: Config) -> None:
    """Raise UserError, before anything is done, for settings that do not go together."""
    check_ways(config.adapt, config.train, Config().train)


def main(config: Config) -> dict[str, Any]:
    """From settings to a saved model and its metrics."""
    check(config)
    if several_asked(config):
        return run_several("token_classify", main, config)
    run = open_run("token_classify", config)

    with run.phase("data"):
        splits = load_tagged(config.data, config.run.seed, config.report.columns, config.report.group)
        tokenizer = load_tokenizer(config.backbone)
        task = TokenClassification(tokenizer, splits.labels)
        run.introduce(task, splits)
        lengths = measure(run, task, splits)

    with run.phase("backbone"):
        headed = load_token_classifier(config.backbone, splits.labels, tokenizer, config.run.seed)
    adapted = adapt(headed, config.adapt)
    run.describe(adapted, config)

    if run.settings.dry_run:
        return rehearse(run, task, adapted, splits, lengths, config.adapt, config.train)

    with run.phase("train"):
        model = learn(run, task, adapted, splits, lengths, config.adapt, config.train)

    return finish(run, task, model, splits, lengths, config.report, merge=config.adapt.merge)


if __name__ == "__main__":
    start(main, Config, description=__doc__)
