"""Fine-tune a model that writes: a pretrained GPT-style checkpoint, and your documents, chats, or prompts with answers.

    accelerate launch recipes/generate.py --data.path letters/ --backbone.name gpt2

Plain text files, tables with a column of texts, chats (`messages`), or `prompt` and `completion`, of which the answers
alone are learnt. With no arguments it trains a small model that nobody has trained before, so that nothing need be
downloaded, on short customer messages. Every setting: --help.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from graftkit.adapt import AdaptConfig, adapt
from graftkit.before import ask_before
from graftkit.config import start
from graftkit.data.chats import GenerateDataConfig, load_to_generate
from graftkit.data.turns import Reader
from graftkit.finish import finish
from graftkit.fresh import USUAL, FreshTrainConfig
from graftkit.generation import GenerateConfig, check_room
from graftkit.heads import load_headless
from graftkit.learn import check_ways, learn
from graftkit.quantize import QuantizedBackboneConfig, quantization
from graftkit.rehearse import rehearse
from graftkit.report import RowsReportConfig
from graftkit.run import RunConfig, open_run
from graftkit.samples import draw_samples
from graftkit.several import run_several, several_asked
from graftkit.tasks.causal_language_modelling import CausalLanguageModelling
from graftkit.text import load_tokenizer, measure
from graftkit.train import TrainConfig

UNTRAINED = TrainConfig(epochs=8, lr=3e-3)


@dataclass(frozen=True)
class Config:
    """All that the user may set."""

    backbone: QuantizedBackboneConfig = field(default_factory=lambda: QuantizedBackboneConfig(name="demo-gpt"))
    data: GenerateDataConfig = field(default_factory=GenerateDataConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    train: FreshTrainConfig = field(default_factory=FreshTrainConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    run: RunConfig = field(default_factory=RunConfig)
    report: RowsReportConfig = field(default_factory=RowsReportConfig)


def settle_training(config: Config) -> Config:
    """With what the user left open of training: a network that nobody has trained needs more of it, and faster."""
    usual = UNTRAINED if config.backbone.name == "demo-gpt" else USUAL
    return replace(config, train=config.train.settle(usual))


def check(config: Config) -> None:
    """Raise UserError, before anything is done, for settings that do not go together."""
    untrained = config.backbone.name == "demo-gpt"
    check_ways(config.adapt, settle_training(config).train, Config().train, untrained=untrained)
    quantization(config.backbone, config.adapt.strategy, merge=config.adapt.merge, dora=config.adapt.dora)


def main(config: Config) -> dict[str, Any]:
    """From settings to a saved model and its metrics."""
    check(config)
    config = settle_training(config)
    if several_asked(config):
        return run_several("generate", main, config)
    bits = quantization(config.backbone, config.adapt.strategy, merge=config.adapt.merge, dora=config.adapt.dora)
    run = open_run("generate", config)
    if config.backbone.name == "demo-gpt":
        run.say(
            "demo-gpt is a small network that nobody has trained: what it writes, it learnt here alone, in "
            f"{config.train.epochs} epochs at a rate of {config.train.lr} (--train.epochs, --train.lr). Name a "
            "pretrained checkpoint with --backbone.name, such as gpt2"
        )

    with run.phase("data"):
        tokenizer = load_tokenizer(config.backbone)
        check_room(config.generate, config.backbone)
        reader, length = Reader(tokenizer), tokenizer.model_max_length
        wanted = (config.report.columns, config.report.group)
        splits = load_to_generate(config.data, config.run.seed, reader, length, *wanted)
        task = CausalLanguageModelling(reader, splits.test.column_names, config.generate)
        run.introduce(task, splits)
        lengths = measure(run, task, splits)

    with run.phase("backbone"):
        headed = load_headless(config.backbone, "AutoModelForCausalLM", "CAUSAL_LM", config.run.seed, **bits)
        if bits:
            run.say("frozen weights have 4 bits while LoRA trains; scores are of whole ones, as others load them")
        if not task.try_packing(headed.model):
            run.say("this network does not keep packed documents apart, so each is padded in a line of its own")
    before = ask_before(run, task, headed, splits, lengths)
    draw_samples(run, task, headed.model, splits, "before")
    adapted = adapt(headed, config.adapt)
    run.describe(adapted, config)

    windows = replace(splits, train=task.in_windows(splits.train))
    tokens = {**lengths, "train": task.lengths(windows.train)}
    if run.settings.dry_run:
        return rehearse(run, task, adapted, windows, tokens, config.adapt, config.train)

    with run.phase("train"):
        model = learn(run, task, adapted, windows, tokens, config.adapt, config.train)
    draw_samples(run, task, model, splits, "after")

    return finish(run, task, model, splits, lengths, config.report, merge=config.adapt.merge, before=before)


if __name__ == "__main__":
    start(main, Config, description=__doc__)
