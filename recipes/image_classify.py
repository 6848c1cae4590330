"""Fine-tune an image classifier: a pretrained timm or transformers checkpoint, a new head, your pictures.

    accelerate launch recipes/image_classify.py --data.path flowers --backbone.name mobilenetv3_small_100.lamb_in1k

With no arguments it trains a small network on handwritten digits 0-4, once, and adapts it to a few dozen scans each of
the digits 5-9, beside the same network from scratch. Every setting: --help. Once per seed: --run.seeds 0 1 2;
cross-validated: --data.folds 5.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from graftkit.activation_cache import check_views
from graftkit.adapt import ClassifierAdaptConfig, adapt
from graftkit.audit import make_audit
from graftkit.config import start
from graftkit.data import ImageDataConfig, load_pictures
from graftkit.errors import UserError
from graftkit.finish import finish
from graftkit.hub import HubConfig, check_ready, share
from graftkit.image_backbone import ImageBackboneConfig, load_image_classifier
from graftkit.image_cache import prepare_pictures
from graftkit.images import ImageConfig
from graftkit.learn import ClassifierTrainConfig, check_ways, learn
from graftkit.losses import choose_loss
from graftkit.rehearse import rehearse
from graftkit.report import ReportConfig
from graftkit.report.metric_modules import check_metrics
from graftkit.run import RunConfig, kept_folder, kept_run, open_run
from graftkit.several import run_several, several_asked
from graftkit.solve import check_pictures, sees_no_views
from graftkit.tasks.image_classification import ImageClassification
from graftkit.teach import check_teacher


@dataclass(frozen=True)
class Config:
    """All that the user may set."""

    backbone: ImageBackboneConfig = field(default_factory=ImageBackboneConfig)
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    adapt: ClassifierAdaptConfig = field(default_factory=ClassifierAdaptConfig)
    train: ClassifierTrainConfig = field(
        default_factory=lambda: ClassifierTrainConfig(epochs=5, lr=5e-4, head_factor=10)
    )
    run: RunConfig = field(default_factory=RunConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    hub: HubConfig = field(default_factory=HubConfig)


SOURCE = Config(
    backbone=ImageBackboneConfig(name="resnet10t", pretrained=False),
    data=ImageDataConfig(path="demo-source"),
    image=ImageConfig(size=32, augment="none"),
    train=ClassifierTrainConfig(epochs=5, batch_size=32, lr=1e-3, head_factor=1),
)
"""How the backbone of the demo is made: from random weights, on digits 0-4."""


def check(config: Config) -> None:
    """Raise UserError, before anything is done, for settings that do not go together."""
    how = {"task": ImageClassification.name, "resumed": config.run.resume}
    check_ways(config.adapt, config.train, Config().train, untrained=not config.backbone.pretrained, **how)
    check_views(config.adapt, config.image)
    check_pictures(config.adapt, config.image)


def settle_flip(config: Config) -> Config:
    """With what the user left open of mirroring: a mirrored digit is another thing, or nothing."""
    if config.image.flip is not None or config.image.augment == "none" or sees_no_views(config.adapt):
        return config
    return replace(config, image=replace(config.image, flip=not config.data.path.startswith("demo")))


def main(config: Config) -> dict[str, Any]:
    """From settings to a saved model and its metrics."""
    check(config)
    config = settle_flip(config)
    if several_asked(config):
        return run_several("image_classify", main, config)
    check_ready(config.hub)
    check_metrics(config.report.metrics)
    source, compared = first_step(config) if config.backbone.name == "demo" else (config, [])
    run = open_run("image_classify", config)

    with run.phase("data"):
        splits = load_pictures(config.data, config.run.seed, config.report.columns, config.report.group)
        check_metrics(config.report.metrics, splits.labels)
        check_teacher(run, splits.labels, config.train)

    with run.phase("backbone"):
        model = load_image_classifier(source.backbone, source.image, splits.labels, config.run.seed)
        workers, cached = prepare_pictures(run, model.preprocessing, splits)
        criterion = choose_loss(run, config.train, splits)
        task = ImageClassification(model.preprocessing, splits.labels, splits.train, workers, cached, criterion)
        run.introduce(task, splits)
    lengths = {"train": None, "dev": None, "test": None}  # all pictures cost the same
    make_audit(run, task, model.headed, splits, lengths, config.report)
    adapted = adapt(model.headed, config.adapt)
    run.describe(adapted, config)

    if run.settings.dry_run:
        return rehearse(run, task, adapted, splits, lengths, config.adapt, config.train)

    with run.phase("train"):
        trained = learn(run, task, adapted, splits, lengths, config.adapt, config.train)

    run.record["compared"] = compared
    metrics = finish(run, task, trained, splits, lengths, config.report, merge=True)
    share(run, config.hub)
    return metrics


def first_step(config: Config) -> tuple[Config, list[dict[str, Any]]]:
    """With the demo's backbone, trained on digits 0-4; and how the same network does from scratch on the same rows.

    A run that only says what it would do trains neither: where there is no such backbone yet, one from random weights
    stands for it.
    """
    if config.data.path != "demo":
        raise UserError(
            f"--backbone.name demo knows digits, and --data.path is {config.data.path}; name a checkpoint, such as "
            "--backbone.name mobilenetv3_small_100.lamb_in1k, or a folder"
        )
    image = replace(config.image, size=config.image.size or SOURCE.image.size)
    rehearsed = config.run.dry_run or config.adapt.explain
    if rehearsed and not (kept_folder(SOURCE) / "metrics.json").exists():
        return replace(config, backbone=SOURCE.backbone, image=image), []
    source = str(kept_run(SOURCE, main) / "model")
    trained = replace(config, backbone=replace(config.backbone, name=source))
    if rehearsed or config.run.until == "dev":  # the other is held against this run on test
        return trained, []
    plain = {"adapt": ClassifierAdaptConfig(), "report": ReportConfig(), "hub": HubConfig()}
    alone = settle_flip(replace(config, backbone=SOURCE.backbone, image=image, **plain))
    score = json.loads((kept_run(alone, main) / "metrics.json").read_text(encoding="utf-8"))["test"]["headline"]
    name = "the same network trained from scratch with the same settings on the same rows"
    return trained, [{"name": name, "headline": score}]


if __name__ == "__main__":
    start(main, Config, description=__doc__)
