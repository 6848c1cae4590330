"""Go on pretraining a BERT-style checkpoint on your own texts, before you adapt it to a task: no labels are needed.

    accelerate launch recipes/pretrain.py --data.path reports/ --backbone.name roberta-base --train.epochs 10
    accelerate launch recipes/text_classify.py --data.path labelled/ --backbone.name runs/pretrain-.../model

Some words of each text are hidden, and the model learns to fill them in (Gururangan et al. 2020, "Don't Stop
Pretraining"). What comes out is a backbone for every other recipe, the source's own pooler with it. With no arguments
it adapts all-MiniLM-L6-v2, which is installed with the demo extra, to 672 customer messages; that checkpoint has no
head that fills gaps, so a new one is trained first. Every setting: --help.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from graftkit.adapt import AdaptConfig, adapt
from graftkit.backbone import BackboneConfig
from graftkit.before import ask_before
from graftkit.config import start
from graftkit.data.documents import DocumentsConfig, load_documents
from graftkit.finish import finish
from graftkit.heads import load_masked_language_model, say_whose_head
from graftkit.learn import check_ways, learn
from graftkit.masking import MaskConfig, cut_documents
from graftkit.rehearse import rehearse
from graftkit.report import RowsReportConfig
from graftkit.report.filled_gaps import examples
from graftkit.run import RunConfig, open_run
from graftkit.several import run_several, several_asked
from graftkit.tasks.masked_language_modelling import MaskedLanguageModelling
from graftkit.text import check_can_hide, load_tokenizer, measure
from graftkit.train import TrainConfig


@dataclass(frozen=True)
class Config:
    """All that the user may set."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DocumentsConfig = field(default_factory=DocumentsConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(head_factor=10, head_first=0.1))
    run: RunConfig = field(default_factory=RunConfig)
    report: RowsReportConfig = field(default_factory=RowsReportConfig)


def check(config: Config) -> None:
    """Raise UserError, before anything is done, for settings that do not go together."""
    check_ways(config.adapt, config.train, Config().train)


def main(config: Config) -> dict[str, Any]:
    """From settings to a saved backbone and its metrics."""
    check(config)
    if several_asked(config):
        return run_several("pretrain", main, config)
    run = open_run("pretrain", config)

    with run.phase("data"):
        splits = load_documents(config.data, config.run.seed, config.report.columns, config.report.group)
        tokenizer = load_tokenizer(config.backbone)
        check_can_hide(tokenizer)

    with run.phase("backbone"):
        headed, pooler = load_masked_language_model(config.backbone, config.run.seed)
        task = MaskedLanguageModelling(tokenizer, config.mask, pooler, keep_words=config.run.keep_rows)
        run.introduce(task, splits)
        lengths = measure(run, task, splits)
        splits, lengths = cut_documents(run, task.masking, splits, lengths)
        say_whose_head(run, headed)
        if not headed.head and config.train.head_first == Config().train.head_first:  # no new head to wait for
            config = replace(config, train=replace(config.train, head_first=0.0))

    before = ask_before(run, task, headed, splits, lengths)
    run.record["filled_before"] = examples(before)
    adapted = adapt(headed, config.adapt)
    run.describe(adapted, config)

    if run.settings.dry_run:
        return rehearse(run, task, adapted, splits, lengths, config.adapt, config.train)

    with run.phase("train"):
        model = learn(run, task, adapted, splits, lengths, config.adapt, config.train)

    return finish(run, task, model, splits, lengths, config.report, merge=True, before=before)


if __name__ == "__main__":
    start(main, Config, description=__doc__)
