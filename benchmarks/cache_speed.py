"""How much sooner is training done, when what is frozen runs once per row and not in every epoch?

    python benchmarks/cache_speed.py head --rounds 3
    python benchmarks/cache_speed.py last --rounds 3
    python benchmarks/cache_speed.py pictures --rounds 3

Three arms train the same part of the same checkpoint for ten epochs, 32 rows an update, in turn and each in a process
of its own: `defaults` is transformers.Trainer with the same parameters frozen, at graftkit's rate (that of its head
where the head alone trains) and no other flag set; `best` has besides group_by_length and, where the hardware has it,
bf16; `graftkit` is the recipe's parts with no flag set but data, epochs and what trains. `head` trains the head of
MiniLM (demo extra), `last` its last 2 of 6 blocks with what follows and the head, both on banking77 (or the set that
ships with graftkit); `pictures` the head of mobilenetv2_100.imagenet on flowers12, as evaluation sees the pictures.
Data are those of the folder of GRAFTKIT_ASSETS, or ../shared. The dev rows that graftkit cuts from train are kept from
Trainer too. `closed-form` is what graftkit does for a head by default: no epochs, the best head by L-BFGS.

What is timed: from the start of the training call to the end of the last update, imports and loading excluded. For
graftkit that is all of it: running the frozen part once over train and dev, into a cache that is empty before, ten
epochs, an evaluation on dev after each, and its checkpoints. Trainer neither evaluates nor saves, and its texts are
tokenised beforehand; it opens pictures in every epoch, as its example script does.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import image_speed
import text_speed
from rounds import ROOT, Benchmark, Column, main, outcome, train_with_trainer

from graftkit.adapt import ClassifierAdaptConfig, adapt
from graftkit.backbone import BackboneConfig, resolve
from graftkit.data import load_pictures, load_splits
from graftkit.evaluate import predict_rows
from graftkit.heads import load_classifier
from graftkit.image_backbone import load_image_classifier
from graftkit.images import ImageConfig, reading_processes
from graftkit.learn import ClassifierTrainConfig, learn
from graftkit.run import RunConfig, open_run
from graftkit.tasks.image_classification import ImageClassification
from graftkit.tasks.text_classification import TextClassification
from graftkit.text import load_tokenizer, measure

sys.path.insert(0, str(ROOT / "recipes"))
import image_classify
import text_classify

TRAIN = ClassifierTrainConfig(epochs=10, batch_size=32)
PICTURES = replace(image_classify.Config().train, epochs=10, batch_size=32)
ADAPT = {
    "head": ClassifierAdaptConfig(strategy="head", solver="sgd"),
    "last": ClassifierAdaptConfig(strategy="last", blocks=2),
    "pictures": ClassifierAdaptConfig(strategy="head", solver="sgd"),
    "closed-form": ClassifierAdaptConfig(strategy="head"),
}
PLAIN = ImageConfig(augment="none")


def trained_of(model: Any) -> list[str]:
    """Names of the parameters that train."""
    return sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def freeze(model: Any, trained: list[str], prefix: str = "") -> Any:
    """The model, of which exactly these parameters train."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.removeprefix(prefix) in trained
    if trained_of(model) != sorted(prefix + name for name in trained):
        sys.exit(f"the arms do not train the same: {set(trained_of(model)) ^ {prefix + name for name in trained}}")
    return model


def cut_dev(splits: Any) -> Any:
    """The same with a dev split of a ninth of train at most, as in the whole data, where --rows takes a part of it.

    Drawn by chance: the rows stand class by class, and the first of them know only some of the classes.
    """
    many = min(len(splits.dev), max(1, len(splits.train) // 9))
    return replace(splits, dev=splits.dev.shuffle(seed=0).select(range(many)))


# texts


def text_trainer(case: str, seed: int, rows: int | None, folder: str, *, best: bool) -> dict[str, Any]:
    """transformers.Trainer over rows that are tokenised beforehand and padded batch by batch."""
    import transformers

    splits = cut_dev(load_splits(text_speed.data_config(rows), seed))
    ours = load_tokenizer(BackboneConfig())
    task = TextClassification(ours, splits.labels)
    headed = load_classifier(BackboneConfig(), splits.labels, ours, seed)
    trained = trained_of(adapt(headed, ADAPT[case]).model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve("demo"))

    def load_model() -> Any:
        auto = transformers.AutoModelForSequenceClassification
        return freeze(auto.from_pretrained(resolve("demo"), num_labels=len(splits.labels)), trained)

    start = time.perf_counter()
    tokenised = splits.train.map(
        lambda part: tokenizer(part["text"], truncation=True) | {"label": [task.index[name] for name in part["label"]]},
        batched=True,
        remove_columns=splits.train.column_names,
    )
    before = time.perf_counter() - start
    flags: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if best else {}
    config = replace(TRAIN, lr=50 * TRAIN.lr) if case == "head" else TRAIN  # a head alone, at graftkit's rate for it
    collate = transformers.DataCollatorWithPadding(tokenizer)
    trainer, rate, precision = train_with_trainer(
        seed, folder, config, load_model, tokenised, collate, best=best, flags=flags, processing_class=tokenizer
    )
    plain = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    records = predict_rows(trainer.accelerator, task, plain, splits.test, task.lengths(splits.test))
    known = {"seconds_before": before, "precision": precision, "frozen_once": 0.0}
    return outcome(TRAIN.epochs * len(splits.train), rate, records, **known)


def text_graftkit(case: str, seed: int, rows: int | None, folder: str) -> dict[str, Any]:
    """The recipe as far as its end of training."""
    os.environ["GRAFTKIT_CACHE"] = str(Path(folder).with_name("cache"))  # empty still
    config = text_classify.Config(
        data=text_speed.data_config(rows), adapt=ADAPT[case], train=TRAIN, run=RunConfig(out=folder, seed=seed)
    )
    run = open_run("text_classify", config)
    splits = cut_dev(load_splits(config.data, seed))
    tokenizer = load_tokenizer(config.backbone)
    task = TextClassification(tokenizer, splits.labels)
    run.introduce(task, splits)
    start = time.perf_counter()
    lengths = measure(run, task, splits)
    before = time.perf_counter() - start
    adapted = adapt(load_classifier(config.backbone, splits.labels, tokenizer, seed), config.adapt)
    return learn_and_test(run, task, adapted, splits, lengths, config, before)


# pictures


def picture_trainer(seed: int, rows: int | None, folder: str, *, best: bool) -> dict[str, Any]:
    """transformers.Trainer over pictures that are transformed, as evaluation does, when they are read."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    splits, workers = load_pictures(image_speed.data_config(rows), seed), reading_processes(ImageConfig())
    ours = load_image_classifier(image_speed.BACKBONE, PLAIN, splits.labels, seed)
    trained = trained_of(adapt(ours.headed, ADAPT["pictures"]).model)

    def load_model() -> Any:
        auto = AutoModelForImageClassification
        found = auto.from_pretrained(
            image_speed.CHECKPOINT, num_labels=len(splits.labels), ignore_mismatched_sizes=True
        )
        return freeze(found, trained, "timm_model.")

    processor = AutoImageProcessor.from_pretrained(image_speed.CHECKPOINT)
    pictures = image_speed.transformed(splits.train, splits.labels, processor.val_transforms)
    flags: dict[str, Any] = {"remove_unused_columns": False}
    flags |= {"dataloader_num_workers": workers} if best else {}
    config = replace(PICTURES, lr=PICTURES.lr * PICTURES.head_factor)
    trainer, rate, precision = train_with_trainer(
        seed, folder, config, load_model, pictures, image_speed.collate, best=best, flags=flags
    )
    task = ImageClassification(ours.preprocessing, splits.labels, splits.train, workers)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).timm_model
    records = predict_rows(trainer.accelerator, task, model, splits.test, None)
    known = {"seconds_before": 0.0, "precision": precision, "frozen_once": 0.0}
    return outcome(PICTURES.epochs * len(splits.train), rate, records, **known)


def picture_graftkit(case: str, seed: int, rows: int | None, folder: str) -> dict[str, Any]:
    """The recipe as far as its end of training."""
    os.environ["GRAFTKIT_CACHE"] = str(Path(folder).with_name("cache"))
    config = image_classify.Config(
        backbone=image_speed.BACKBONE,
        data=image_speed.data_config(rows),
        image=PLAIN,
        adapt=ADAPT[case],
        train=PICTURES,
        run=RunConfig(out=folder, seed=seed),
    )
    run = open_run("image_classify", config)
    splits = cut_dev(load_pictures(config.data, seed))
    model = load_image_classifier(config.backbone, config.image, splits.labels, seed)
    task = ImageClassification(model.preprocessing, splits.labels, splits.train, reading_processes(config.image))
    run.introduce(task, splits)
    adapted = adapt(model.headed, config.adapt)
    return learn_and_test(run, task, adapted, splits, image_speed.LENGTHS, config, 0.0)


def learn_and_test(
    run: Any, task: Any, adapted: Any, splits: Any, lengths: Any, config: Any, before: float
) -> dict[str, Any]:
    """What an arm of graftkit reports: all seconds of its learning, and its answers on test."""
    start = time.perf_counter()
    model = learn(run, task, adapted, splits, lengths, config.adapt, config.train)
    seconds = time.perf_counter() - start
    records = predict_rows(run.accelerator, task, model, splits.test, lengths["test"])
    seen = config.train.epochs * len(splits.train)
    known = {"seconds_before": before, "precision": run.record["precision"]}
    return outcome(seen, seen / seconds, records, frozen_once=run.record["cache"]["seconds"], **known)


def make_benchmark(case: str) -> Benchmark:
    """The arms of `head`, `last` or `pictures`."""
    pictures = case == "pictures"

    def trainer(best: bool) -> Any:
        if pictures:
            return lambda *given: picture_trainer(*given, best=best)
        return lambda *given: text_trainer(case, *given, best=best)

    ours = picture_graftkit if pictures else text_graftkit
    jobs = {
        "defaults": trainer(False),
        "best": trainer(True),
        "graftkit": lambda *given: ours(case, *given),
        "closed-form": lambda *given: ours("closed-form", *given),
    }
    arms = {"defaults": "Trainer, defaults", "best": "Trainer, at its best", "graftkit": "graftkit, from the cache"}
    arms |= {} if case == "last" else {"closed-form": "graftkit, computed head"}
    texts = text_speed.BENCHMARK.data
    return Benchmark(
        file=__file__,
        words=(case,),
        description=__doc__ or "",
        recipe="image_classify" if pictures else "text_classify",
        config=image_classify.Config if pictures else text_classify.Config,
        train=PICTURES if pictures else TRAIN,
        data=image_speed.BENCHMARK.data if pictures else texts,
        needs=(image_speed.CHECKPOINT, image_speed.PICTURES) if pictures else (),
        arms=arms,
        ours=tuple(arm for arm in arms if arm in ("graftkit", "closed-form")),
        jobs={arm: jobs[arm] for arm in arms},
        things="rows",
        column=Column("frozen_once", "s for the frozen part", ".1f"),
        packages=("python", "torch", "transformers", "accelerate", "timm"),
    )


CASES = ("head", "last", "pictures")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in CASES:
        sys.exit(f"{__doc__}\nsay what trains: {', '.join(CASES)}")
    main(make_benchmark(sys.argv.pop(1)))
