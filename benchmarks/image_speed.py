"""How fast is full fine-tuning of an image classifier, next to transformers.Trainer?

    python benchmarks/image_speed.py --rounds 3 --out image_speed.json

Four arms train the same timm checkpoint (mobilenetv2_100.imagenet, at its own 224 pixels) on flowers12, both from the
folder of GRAFTKIT_ASSETS (or ../shared), for one epoch at the same learning rate, 32 pictures an update, in turn and
each in a process of its own. `defaults` is Trainer on transformers' own wrapper of timm, with no other flag set; its
pictures pass through the transforms of transformers' example script (RandomResizedCrop, flip, ToTensor, Normalize) when
they are read. For timm's checkpoints that script adds timm's colour jitter, which costs more and is left out here.
`best` has besides as many workers as graftkit takes, on a GPU evaluation batches of graftkit's size (on a CPU Trainer's
own 8 pictures are quicker) and, where the hardware has it, bf16. `graftkit` is the recipe's parts with no flag set but
data, backbone, epochs and batch size, `graftkit-cache` the same with --image.cache. The dev pictures that graftkit cuts
from train are kept from Trainer too.

What is timed: from before the first batch is fetched until the last update is done, for all four, with the start of
the workers. Saving and evaluating lie outside: Trainer's clock is a callback (on_epoch_begin to the last on_step_end,
saving off), graftkit's is `rows_per_second` of its record, which stops while it evaluates and saves. The seconds before
are those in which the cache, which is new each time, was made. Evaluating is dev and test, read and predicted as during
training, by Trainer.predict and by the function that graftkit's loop calls; the cache holds dev, but not test.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rounds import (
    ASSETS,
    ROOT,
    Benchmark,
    Column,
    main,
    outcome,
    profile_updates,
    to_lines,
    train_with_trainer,
    wait_for_device,
)

from graftkit.adapt import adapt
from graftkit.data import ImageDataConfig, load_pictures
from graftkit.evaluate import predict_rows
from graftkit.feed import Feed
from graftkit.image_backbone import ImageBackboneConfig, load_image_classifier
from graftkit.image_cache import prepare_pictures
from graftkit.images import ImageConfig, reading_processes
from graftkit.run import RunConfig, open_run
from graftkit.tasks.image_classification import ImageClassification
from graftkit.train import train

sys.path.insert(0, str(ROOT / "recipes"))
from image_classify import Config

TRAIN = replace(Config().train, epochs=1, batch_size=32)
CHECKPOINT = ASSETS / "checkpoints" / "mobilenetv2_100.imagenet"
PICTURES = ASSETS / "data" / "flowers12"
BACKBONE = ImageBackboneConfig(name=str(CHECKPOINT))
EVALUATED = 64  # pictures that graftkit evaluates at a time
LENGTHS = {"train": None, "dev": None, "test": None}


def data_config(rows: int | None) -> ImageDataConfig:
    """flowers12, of train at most so many rows."""
    return ImageDataConfig(path=str(PICTURES), max_rows=rows)


def run_trainer(seed: int, rows: int | None, folder: str, *, best: bool) -> dict[str, Any]:
    """transformers.Trainer over pictures that are transformed when they are read."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    def load_model() -> Any:
        auto = AutoModelForImageClassification
        return auto.from_pretrained(CHECKPOINT, num_labels=len(splits.labels), ignore_mismatched_sizes=True)

    splits, workers = load_pictures(data_config(rows), seed), reading_processes(ImageConfig())
    processor = AutoImageProcessor.from_pretrained(CHECKPOINT)
    pictures = transformed(splits.train, splits.labels, train_transform(processor.data_config))
    flags: dict[str, Any] = {"remove_unused_columns": False}  # else the transform gets no pictures
    if best:
        flags |= {"dataloader_num_workers": workers}
        flags |= {"per_device_eval_batch_size": EVALUATED} if torch.cuda.is_available() else {}
    trainer, rate, precision = train_with_trainer(
        seed, folder, TRAIN, load_model, pictures, collate, best=best, flags=flags
    )
    held_out = [transformed(part, splits.labels, processor.val_transforms) for part in (splits.dev, splits.test)]
    trainer.predict(held_out[0])  # graftkit too has evaluated before
    evaluating = time_evaluating(trainer.predict, held_out)
    preprocessing = load_image_classifier(BACKBONE, ImageConfig(), splits.labels, seed).preprocessing
    task = ImageClassification(preprocessing, splits.labels, splits.train, workers)
    known = {"evaluated_per_second": evaluating, "seconds_before": 0.0, "precision": precision}
    return result(trainer.accelerator, task, trainer.model.timm_model, splits, rate, **known)


def transformed(rows: Any, labels: list[str], transform: Callable[[Any], Any]) -> Any:
    """A split as Trainer reads it: a data set of `pixel_values` and `labels`."""
    from datasets import ClassLabel, Features, Image

    def to_numbers(part: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            "pixel_values": [transform(picture.convert("RGB")) for picture in part["path"]],
            "labels": part["label"],
        }

    features = Features({"path": Image(), "label": ClassLabel(names=labels)})
    return rows.select_columns(list(features)).cast(features).with_transform(to_numbers)


def train_transform(facts: dict[str, Any]) -> Callable[[Any], Any]:
    """That of transformers' example script, for a checkpoint with this size, mean and std."""
    from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor

    crop = RandomResizedCrop(facts["input_size"][-2:])
    return Compose([crop, RandomHorizontalFlip(), ToTensor(), Normalize(facts["mean"], facts["std"])])


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack what the transform made."""
    import torch

    pixels = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixels, "labels": torch.tensor([example["labels"] for example in examples])}


def run_graftkit(seed: int, rows: int | None, folder: str, *, cache: bool) -> dict[str, Any]:
    """The recipe as far as its end of training."""
    run, task, splits, adapted, before = build_graftkit(seed, rows, folder, cache)
    model = train(run, task, adapted, splits, LENGTHS, TRAIN)

    def evaluate(part: Any) -> None:
        with run.accelerator.autocast():  # as while it trains
            predict_rows(run.accelerator, task, model, part, None)

    evaluating = time_evaluating(evaluate, [splits.dev, splits.test])
    known = {"evaluated_per_second": evaluating, "seconds_before": before, "precision": run.record["precision"]}
    return result(run.accelerator, task, model, splits, run.record["training"]["rows_per_second"], **known)


def build_graftkit(seed: int, rows: int | None, folder: str, cache: bool) -> tuple[Any, ...]:
    """What the recipe builds before it trains, and the seconds in which it made the cache."""
    os.environ["GRAFTKIT_CACHE"] = str(Path(folder).with_name("cache"))  # empty still
    image, run_config = ImageConfig(cache=cache), RunConfig(out=folder, seed=seed)
    config = Config(backbone=BACKBONE, data=data_config(rows), image=image, train=TRAIN, run=run_config)
    run = open_run("image_classify", config)
    splits = load_pictures(config.data, seed)
    model = load_image_classifier(config.backbone, config.image, splits.labels, seed)
    start = time.perf_counter()
    workers, cached = prepare_pictures(run, model.preprocessing, splits)
    before = time.perf_counter() - start if cache else 0.0
    task = ImageClassification(model.preprocessing, splits.labels, splits.train, workers, cached)
    run.introduce(task, splits)
    return run, task, splits, adapt(model.headed, config.adapt), before


def time_evaluating(predict: Callable[[Any], Any], parts: list[Any]) -> float:
    """Pictures per second."""
    start = time.perf_counter()
    for part in parts:
        predict(part)
    wait_for_device()
    return sum(map(len, parts)) / (time.perf_counter() - start)


def result(accelerator: Any, task: Any, model: Any, splits: Any, rate: float, **known: Any) -> dict[str, Any]:
    """What an arm reports; test is predicted alike for all, by timm's model in fp32."""
    records = predict_rows(accelerator, task, model, splits.test, None)
    return outcome(len(splits.train), rate, records, **known)


def profile_graftkit(seed: int, rows: int | None, folder: str) -> dict[str, Any]:
    """Where the time of an update goes."""
    run, task, splits, adapted, _ = build_graftkit(seed, rows, folder, cache=False)
    feed = Feed(task, splits.train, None, TRAIN.batch_size, TRAIN.accumulate, seed, run.accelerator)
    found, _, _ = profile_updates(feed, adapted, TRAIN, "wait for batches", "normalise and forward")
    return {"precision": run.record["precision"], **found}


BENCHMARK = Benchmark(
    file=__file__,
    description=__doc__ or "",
    recipe="image_classify",
    config=Config,
    train=TRAIN,
    data=f"{CHECKPOINT.name} on {PICTURES.name}, worker processes: {reading_processes(ImageConfig())}",
    needs=(CHECKPOINT, PICTURES),
    arms={
        "defaults": "Trainer, defaults",
        "best": "Trainer, at its best",
        "graftkit": "graftkit, no flag set",
        "graftkit-cache": "graftkit, --image.cache",
    },
    ours=("graftkit", "graftkit-cache"),
    jobs={
        "defaults": lambda *given: run_trainer(*given, best=False),
        "best": lambda *given: run_trainer(*given, best=True),
        "graftkit": lambda *given: run_graftkit(*given, cache=False),
        "graftkit-cache": lambda *given: run_graftkit(*given, cache=True),
        "profile": profile_graftkit,
    },
    things="images",
    column=Column("evaluated_per_second", "images/s evaluating", ".1f"),
    packages=("python", "torch", "transformers", "timm", "accelerate"),
    show_profile=to_lines,
)

if __name__ == "__main__":
    main(BENCHMARK)
