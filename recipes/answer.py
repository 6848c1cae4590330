"""Fine-tune a model that answers questions with words of a text: a pretrained BERT- or GPT-style checkpoint.

    accelerate launch recipes/answer.py --data.path squad_v2/ --backbone.name roberta-base

Questions with their answers marked in a text, as SQuAD has them, where some may have no answer. With no arguments it
adapts all-MiniLM-L6-v2, which is installed with the demo extra, to questions on short pages of product help. Every
setting: --help.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from graftkit.adapt import AdaptConfig, adapt
from graftkit.backbone import BackboneConfig
from graftkit.config import start
from graftkit.data.answer_rows import CONTEXT, AnswersDataConfig, has_none, load_answers
from graftkit.finish import finish
from graftkit.heads import load_answerer
from graftkit.learn import check_ways, learn
from graftkit.rehearse import rehearse
from graftkit.report import RowsReportConfig
from graftkit.run import RunConfig, check_texts_kept, open_run
from graftkit.several import run_several, several_asked
from graftkit.tasks.question_answering import AnswerConfig, QuestionAnswering
from graftkit.text import load_tokenizer, measure
from graftkit.train import TrainConfig


@dataclass(frozen=True)
class AnswersReportConfig(RowsReportConfig):
    """What is told of questions?"""

    group: str | None = CONTEXT
    """column of the data whose equal values belong together: intervals then draw whole groups; context: the questions
    on one text; null: each question stands for itself"""


@dataclass(frozen=True)
class Config:
    """All that the user may set."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    data: AnswersDataConfig = field(default_factory=AnswersDataConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=4, lr=2e-4))
    run: RunConfig = field(default_factory=RunConfig)
    report: AnswersReportConfig = field(default_factory=AnswersReportConfig)


def check(config: Config) -> None:
    """Raise UserError, before anything is done, for settings that do not go together."""
    check_ways(config.adapt, config.train, Config().train)
    check_texts_kept(config.run)


def main(config: Config) -> dict[str, Any]:
    """From settings to a saved model and its metrics."""
    check(config)
    if several_asked(config):
        return run_several("answer", main, config)
    run = open_run("answer", config)

    with run.phase("data"):
        splits = load_answers(config.data, config.run.seed, config.report.columns, config.report.group)
        tokenizer = load_tokenizer(config.backbone)
        task = QuestionAnswering(tokenizer, no_answer=has_none(splits.facts), max_tokens=config.answer.max_tokens)
        run.introduce(task, splits)
        lengths = measure(run, task, splits)

    with run.phase("backbone"):
        headed = load_answerer(config.backbone, tokenizer, config.run.seed)
    adapted = adapt(headed, config.adapt)
    run.describe(adapted, config)

    rows, tokens = task.in_windows(splits.train, lengths["train"])
    windows, sizes = replace(splits, train=rows), {**lengths, "train": tokens}
    if len(rows) > len(splits.train):
        run.say(f"each window of a long text of train is a row of its own: {len(rows):,} rows")
    if run.settings.dry_run:
        return rehearse(run, task, adapted, windows, sizes, config.adapt, config.train)

    with run.phase("train"):
        model = learn(run, task, adapted, windows, sizes, config.adapt, config.train)

    return finish(run, task, model, splits, lengths, config.report, merge=config.adapt.merge)


if __name__ == "__main__":
    start(main, Config, description=__doc__)
