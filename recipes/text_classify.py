"""Fine-tune a text classifier: a pretrained BERT- or GPT-style checkpoint, a new head, your labelled texts.

    accelerate launch recipes/text_classify.py --data.path reviews.csv --backbone.name roberta-base

With no arguments it adapts all-MiniLM-L6-v2 to 672 customer-support messages in 8 intents, both of which are installed
with the demo extra. Every setting: --help. Once per seed: --run.seeds 0 1 2; cross-validated: --data.folds 5.
Texts that have any number of labels: --data.task multi, which by itself learns what the demo's messages mention. Texts
that have a number, such as stars or a price: --data.task regression --data.label stars.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from graftkit.activation_cache import check_views
from graftkit.adapt import TextAdaptConfig, adapt
from graftkit.audit import make_audit
from graftkit.backbone import BackboneConfig
from graftkit.config import start
from graftkit.data import DataConfig, load_label_sets, load_numbers, load_splits
from graftkit.finish import finish
from graftkit.heads import load_classifier
from graftkit.hub import HubConfig, check_ready, share
from graftkit.learn import ClassifierTrainConfig, check_ways, learn
from graftkit.losses import check_fits, choose_loss, choose_loss_of_sets
from graftkit.rehearse import rehearse
from graftkit.report import ReportConfig
from graftkit.report.metric_modules import check_metrics
from graftkit.run import RunConfig, open_run
from graftkit.several import check_plain, run_several, several_asked
from graftkit.tasks.multi_label_classification import MultiLabelClassification
from graftkit.tasks.text_classification import TextClassification
from graftkit.tasks.text_regression import TextRegression
from graftkit.teach import check_teacher
from graftkit.text import load_tokenizer, measure

LOADERS = {"single": load_splits, "multi": load_label_sets, "regression": load_numbers}
TASKS = {
    "single": lambda tokenizer, splits, run, config: TextClassification(
        tokenizer, splits.labels, choose_loss(run, config, splits), pairs=splits.pairs
    ),
    "multi": lambda tokenizer, splits, run, config: MultiLabelClassification(
        tokenizer, splits.labels, choose_loss_of_sets(run, config, splits), pairs=splits.pairs
    ),
    "regression": lambda tokenizer, splits, run, config: TextRegression.of(tokenizer, splits),
}


@dataclass(frozen=True)
class Config:
    """All that the user may set."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    adapt: TextAdaptConfig = field(default_factory=TextAdaptConfig)
    train: ClassifierTrainConfig = field(default_factory=ClassifierTrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    hub: HubConfig = field(default_factory=HubConfig)


def check(config: Config) -> None:
    """Raise UserError, before anything is done, for settings that do not go together."""
    if config.data.task != "single":
        check_plain(config, f"--data.task {config.data.task}")
        check_fits(config.train, config.data.task)
    how = {"task": TextClassification.name, "resumed": config.run.resume}
    check_ways(config.adapt, config.train, Config().train, **how)
    check_views(config.adapt)


def main(config: Config) -> dict[str, Any]:
    """From settings to a saved model and its metrics."""
    check(config)
    if several_asked(config):
        return run_several("text_classify", main, config)
    check_ready(config.hub)
    check_metrics(config.report.metrics)
    run = open_run("text_classify", config)

    with run.phase("data"):
        load = LOADERS[config.data.task]
        splits = load(config.data, config.run.seed, config.report.columns, config.report.group)
        check_metrics(config.report.metrics, splits.labels)
        check_teacher(run, splits.labels, config.train)
        tokenizer = load_tokenizer(config.backbone, pairs=splits.pairs, places=config.adapt.places)
        task = TASKS[config.data.task](tokenizer, splits, run, config.train)
        run.introduce(task, splits)
        lengths = measure(run, task, splits)

    with run.phase("backbone"):
        headed = load_classifier(config.backbone, splits.labels, tokenizer, config.run.seed, task.problem_type)
    make_audit(run, task, headed, splits, lengths, config.report)
    adapted = adapt(headed, config.adapt)
    run.describe(adapted, config)

    if run.settings.dry_run:
        return rehearse(run, task, adapted, splits, lengths, config.adapt, config.train)

    with run.phase("train"):
        model = learn(run, task, adapted, splits, lengths, config.adapt, config.train)

    metrics = finish(run, task, model, splits, lengths, config.report, merge=config.adapt.merge)
    share(run, config.hub)
    return metrics


if __name__ == "__main__":
    start(main, Config, description=__doc__)
