"""How fast is full fine-tuning of a text classifier, next to transformers.Trainer?

    python benchmarks/text_speed.py --rounds 3 --out text_speed.json

Three arms train the same checkpoint (MiniLM, from the demo extra) on the same rows for one epoch at the same learning
rate, 32 rows an update, in turn and each in a process of its own: `defaults` is Trainer with no other flag set, `best`
is Trainer with group_by_length and, where the hardware has it, bf16, and `graftkit` is the recipe's parts with no flag
set but data and epochs. The data is banking77 where the folder of GRAFTKIT_ASSETS (or ../shared) is there, else the
set that ships with graftkit. The dev rows that graftkit cuts from train are kept from Trainer too.

What is timed: from before the first batch is fetched until the last update is done, for all three. Saving and
evaluating lie outside: Trainer's clock is a callback (on_epoch_begin to the last on_step_end, saving off), graftkit's
is `rows_per_second` of its record, which stops while it evaluates and saves. graftkit tokenises inside that span.
Trainer's rows are tokenised before it; those seconds stand apart, as do those in which graftkit counts tokens.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from rounds import ASSETS, ROOT, Benchmark, Column, main, outcome, profile_updates, to_lines, train_with_trainer

from graftkit.adapt import adapt
from graftkit.backbone import BackboneConfig, resolve
from graftkit.data import DataConfig, load_splits
from graftkit.evaluate import predict_rows
from graftkit.feed import Feed
from graftkit.heads import load_classifier
from graftkit.run import RunConfig, open_run
from graftkit.tasks.text_classification import TextClassification
from graftkit.text import load_tokenizer, measure
from graftkit.train import TrainConfig, train

sys.path.insert(0, str(ROOT / "recipes"))
from text_classify import Config

TRAIN = TrainConfig(epochs=1, batch_size=32)
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm")


def data_config(rows: int | None) -> DataConfig:
    """banking77 where the assets are, else the embedded set."""
    folder = ASSETS / "data" / "banking77"
    return DataConfig(path=str(folder) if folder.is_dir() else "demo", max_rows=rows)


class Counted(TextClassification):
    """The task, counting the tokens that train, and the places in the batches that hold them."""

    real = places = 0

    def loss(self, model: Any, batch: Any) -> Any:
        """The task's own loss; only training asks for it."""
        self.count_tokens(batch.inputs["attention_mask"])
        return super().loss(model, batch)

    def count_tokens(self, mask: Any) -> None:
        """Add a batch's attention mask, without waiting for the device."""
        self.real, self.places = self.real + mask.sum(), self.places + mask.numel()

    def result(self, accelerator: Any, model: Any, splits: Any, rate: float, **known: Any) -> dict[str, Any]:
        """What an arm reports; test is predicted alike for all, by the plain model in fp32."""
        records = predict_rows(accelerator, self, model, splits.test, self.lengths(splits.test))
        found = outcome(len(splits.train), rate, records, **known)
        return {**found, "real_tokens": int(self.real) / self.places}


def run_trainer(seed: int, rows: int | None, folder: str, *, best: bool) -> dict[str, Any]:
    """transformers.Trainer over rows that are tokenised beforehand and padded batch by batch."""
    import transformers

    def collate(features: list[dict[str, Any]]) -> Any:
        batch = pad(features)
        task.count_tokens(batch["attention_mask"])
        return batch

    def load_model() -> Any:
        auto = transformers.AutoModelForSequenceClassification
        return auto.from_pretrained(resolve("demo"), num_labels=len(splits.labels))

    splits = load_splits(data_config(rows), seed)
    task = Counted(load_tokenizer(BackboneConfig()), splits.labels)
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve("demo"))
    pad = transformers.DataCollatorWithPadding(tokenizer)
    start = time.perf_counter()
    tokenised = splits.train.map(
        lambda part: {
            **tokenizer(part["text"], truncation=True),
            "label": [task.index[name] for name in part["label"]],
        },
        batched=True,
        remove_columns=splits.train.column_names,
    )
    before = time.perf_counter() - start
    flags = {"train_sampling_strategy": "group_by_length"} if best else {}
    trainer, rate, precision = train_with_trainer(
        seed, folder, TRAIN, load_model, tokenised, collate, best=best, flags=flags, processing_class=tokenizer
    )
    plain = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return task.result(trainer.accelerator, plain, splits, rate, seconds_before=before, precision=precision)


def run_graftkit(seed: int, rows: int | None, folder: str) -> dict[str, Any]:
    """The recipe as far as its end of training."""
    run, task, splits, lengths, adapted, before = build_graftkit(seed, rows, folder)
    model = train(run, task, adapted, splits, lengths, TRAIN)
    rate, precision = run.record["training"]["rows_per_second"], run.record["precision"]
    return task.result(run.accelerator, model, splits, rate, seconds_before=before, precision=precision)


def build_graftkit(seed: int, rows: int | None, folder: str) -> tuple[Any, ...]:
    """What the recipe builds before it trains, and the seconds in which it counted tokens (of train, dev and test)."""
    config = Config(data=data_config(rows), train=TRAIN, run=RunConfig(out=folder, seed=seed))
    run = open_run("text_classify", config)
    splits = load_splits(config.data, seed)
    tokenizer = load_tokenizer(config.backbone)
    task = Counted(tokenizer, splits.labels)
    run.introduce(task, splits)
    start = time.perf_counter()
    lengths = measure(run, task, splits)
    before = time.perf_counter() - start
    adapted = adapt(load_classifier(config.backbone, splits.labels, tokenizer, seed), config.adapt)
    return run, task, splits, lengths, adapted, before


def profile_graftkit(seed: int, rows: int | None, folder: str) -> dict[str, Any]:
    """Where the time of an update goes, and how fast its matrix products are."""
    run, task, splits, lengths, adapted, _ = build_graftkit(seed, rows, folder)
    feed = Feed(task, splits.train, lengths["train"], TRAIN.batch_size, TRAIN.accumulate, seed, run.accelerator)
    found, times, flops = profile_updates(feed, adapted, TRAIN, "tokenise and collate", "forward")
    products = sum(times.get(name, 0) for name in PRODUCTS)  # microseconds
    milliseconds = found["updates"] * sum(found["milliseconds_per_update"].values())
    return {
        "precision": run.record["precision"],
        **found,
        "products_share": products / sum(times.values()),
        "products_gflops": flops / products / 1e3,
        "step_gflops": flops / milliseconds / 1e6,
    }


def show_profile(found: dict[str, Any]) -> str:
    """Where the time of a step goes."""
    return to_lines(found) + (
        f"\nmatrix products (addmm, mm, bmm): {found['products_share']:.0%} of that time, at "
        f"{found['products_gflops']:.0f} GFLOP/s; the step as a whole makes {found['step_gflops']:.0f}"
    )


BENCHMARK = Benchmark(
    file=__file__,
    description=__doc__ or "",
    recipe="text_classify",
    config=Config,
    train=TRAIN,
    data="embedded set" if data_config(None).path == "demo" else "banking77",
    needs=(),
    arms={"defaults": "Trainer, defaults", "best": "Trainer, at its best", "graftkit": "graftkit, no flag set"},
    ours=("graftkit",),
    jobs={
        "defaults": lambda *given: run_trainer(*given, best=False),
        "best": lambda *given: run_trainer(*given, best=True),
        "graftkit": run_graftkit,
        "profile": profile_graftkit,
    },
    things="rows",
    column=Column("real_tokens", "real tokens", ".0%"),
    packages=("python", "torch", "transformers", "accelerate"),
    show_profile=show_profile,
)

if __name__ == "__main__":
    main(BENCHMARK)
