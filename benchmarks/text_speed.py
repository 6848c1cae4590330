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

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import Any

from graftkit.adapt import adapt, set_training_mode
from graftkit.backbone import BackboneConfig, resolve
from graftkit.data import DataConfig, load_splits
from graftkit.evaluate import predict_rows
from graftkit.feed import Feed
from graftkit.heads import load_classifier
from graftkit.machine import choose_precision
from graftkit.run import RunConfig, open_run
from graftkit.tasks.text_classification import TextClassification
from graftkit.text import load_tokenizer, measure
from graftkit.train import TrainConfig, accumulate_gradients, prepare, seed_dropout, set_lr, train

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "recipes"))
from text_classify import Config  # noqa: E402

TRAIN = TrainConfig(epochs=1, batch_size=32)
ARMS = {"defaults": "Trainer, defaults", "best": "Trainer, at its best", "graftkit": "graftkit, no flag set"}
PROFILED = 40  # updates
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm")


def data_config(rows: int | None) -> DataConfig:
    """banking77 where the assets are, else the embedded set."""
    folder = Path(os.environ.get("GRAFTKIT_ASSETS") or ROOT.parent / "shared") / "data" / "banking77"
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
        right = sum(record["prediction"] == record["label"] for record in records)
        scores = {"accuracy": right / len(records), "real_tokens": int(self.real) / self.places}
        return {
            "rows": len(splits.train),
            "seconds": len(splits.train) / rate,
            "rows_per_second": rate,
            **known,
            **scores,
        }


# the jobs, each in a process of its own


def run_trainer(seed: int, rows: int | None, folder: str, *, best: bool) -> dict[str, Any]:
    """transformers.Trainer over rows that are tokenised beforehand and padded batch by batch."""
    import torch
    import transformers

    class Clock(transformers.TrainerCallback):
        """When the epoch began, and when its last update was done."""

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == state.max_steps:
                wait_for_device()
                self.ended = time.perf_counter()

    def collate(features: list[dict[str, Any]]) -> Any:
        batch = pad(features)
        task.count_tokens(batch["attention_mask"])
        return batch

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

    gpu = torch.cuda.is_available()
    precision = choose_precision("auto", "cuda" if gpu else "cpu") if best else "fp32"
    flags: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if best else {}
    if precision != "fp32":
        flags |= {precision: True, "use_cpu": not gpu}  # Trainer refuses bf16 on a CPU that it was not told to use
    settings = transformers.TrainingArguments(
        folder,
        num_train_epochs=1,
        per_device_train_batch_size=TRAIN.batch_size,
        learning_rate=TRAIN.lr,
        seed=seed,
        save_strategy="no",
        disable_tqdm=True,
        **flags,
    )
    transformers.set_seed(seed)
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_pretrained(resolve("demo"), num_labels=len(splits.labels))
    clock = Clock()
    trainer = transformers.Trainer(model, settings, collate, tokenised, processing_class=tokenizer, callbacks=[clock])
    trainer.train()
    rate = len(splits.train) / (clock.ended - clock.began)
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


def describe_machine(seed: int, rows: int | None, folder: str) -> dict[str, Any]:
    """What a run's record says of hardware and versions."""
    record = open_run("text_classify", Config(run=RunConfig(out=folder))).record
    return {name: record[name] for name in ("hardware", "threads", "device", "precision", "versions", "git_commit")}


def profile_graftkit(seed: int, rows: int | None, folder: str) -> dict[str, Any]:
    """The same updates twice: by the clock, part by part, and by torch.profiler, operation by operation."""
    from torch.profiler import profile

    run, task, splits, lengths, adapted, _ = build_graftkit(seed, rows, folder)
    accelerator = run.accelerator
    feed = Feed(task, splits.train, lengths["train"], TRAIN.batch_size, TRAIN.accumulate, seed, accelerator)
    model, optimizer = prepare(accelerator, adapted, TRAIN)
    set_training_mode(accelerator.unwrap_model(model))
    spent: dict[str, float] = defaultdict(float)
    fetch = clocked(spent, "tokenise and collate")(next)
    task.loss = clocked(spent, "forward")(task.loss)
    accelerator.backward = clocked(spent, "backward")(accelerator.backward)

    def run_updates(count: int) -> int:
        """Run the first updates of the epoch, as the loop does."""
        source, done = islice(feed.epoch(0), count), 0
        while (update := fetch(source, None)) is not None:
            seed_dropout(seed, done, 0)
            set_lr(optimizer, done, feed.updates_per_epoch, TRAIN.warmup)
            accumulate_gradients(accelerator, task, model, update).item()
            with clocked(spent, "clip"):
                accelerator.clip_grad_norm_(model.parameters(), TRAIN.clip)
            with clocked(spent, "optimizer"):
                optimizer.step()
                optimizer.zero_grad()
            done += 1
        return done

    run_updates(3)  # the first are slower
    spent.clear()
    start = time.perf_counter()
    done = run_updates(PROFILED)
    wall = time.perf_counter() - start
    parts = {**spent, "the rest": wall - sum(spent.values())}
    with profile(with_flops=True) as profiled:
        run_updates(PROFILED)
    cost = "self_device_time_total" if accelerator.device.type == "cuda" else "self_cpu_time_total"
    events = [event for event in profiled.key_averages() if event.device_type.name == "CPU"]  # others: a GPU's kernels
    times = {event.key: getattr(event, cost) for event in events}  # microseconds
    flops, products = sum(event.flops for event in events), sum(times.get(name, 0) for name in PRODUCTS)
    largest = sorted(times, key=times.__getitem__, reverse=True)[:14]
    return {
        "precision": run.record["precision"],
        "updates": done,
        "milliseconds_per_update": {name: 1000 * seconds / done for name, seconds in parts.items()},
        "operations": {name: times[name] / sum(times.values()) for name in largest},
        "products_share": products / sum(times.values()),
        "products_gflops": flops / products / 1e3,
        "step_gflops": flops / wall / 1e9,
    }


def wait_for_device() -> None:
    """Let a GPU finish what it was given, so that the clock is right."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def clocked(spent: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of the block, or of each call of the function that it decorates, to `spent`."""
    wait_for_device()
    start = time.perf_counter()
    yield
    wait_for_device()
    spent[name] += time.perf_counter() - start


# the rounds, and what they say


def run_apart(job: str, seed: int, rows: int | None) -> dict[str, Any]:
    """A job's result, from a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--job", job, "--seed", str(seed), "--folder", folder]
        command += [] if rows is None else ["--rows", str(rows)]
        child = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if child.returncode:
            sys.exit(f"{child.stdout}\n{job} failed")
        return json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))


def run_rounds(arms: list[str], rounds: int, rows: int | None) -> list[dict[str, Any]]:
    """Each arm in turn, in each round; the round's number is the seed."""
    results = []
    for seed, arm in ((seed, arm) for seed in range(rounds) for arm in arms):
        found = {"arm": arm, "round": seed, **run_apart(arm, seed, rows), "load_average": os.getloadavg()[0]}
        results.append(found)
        print(
            f"round {seed}, {ARMS[arm]}: {found['rows_per_second']:.1f} rows/s, {found['seconds']:.1f} s for "
            f"{found['rows']:,} rows ({found['seconds_before']:.1f} s before), {found['precision']}, test accuracy "
            f"{found['accuracy']:.4f}, {found['real_tokens']:.0%} real tokens, load {found['load_average']:.1f}",
            flush=True,
        )
    return results


def compare(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How many times as fast graftkit was as each other arm, round by round, and how much more accurate, in points."""
    by_arm = {arm: [found for found in results if found["arm"] == arm] for arm in ARMS}
    ours, comparison = by_arm.pop("graftkit"), {}
    for arm, theirs in by_arm.items():
        if ours and theirs:
            pairs = list(zip(ours, theirs, strict=True))
            ratios = [a["rows_per_second"] / b["rows_per_second"] for a, b in pairs]
            points = 100 * mean(a["accuracy"] - b["accuracy"] for a, b in pairs)
            comparison[arm] = {"ratios": ratios, "median": median(ratios), "accuracy_points": points}
    return comparison


def to_table(results: list[dict[str, Any]], comparison: dict[str, dict[str, Any]]) -> str:
    """The README's table: medians over the rounds, the mean accuracy, and the paired ratios."""
    head = "precision | rows/s | seconds | seconds before | real tokens | test accuracy | graftkit's speed over it"
    lines = [f"| | {head} |", "|---" * 8 + "|"]
    names = ("rows_per_second", "seconds", "seconds_before", "real_tokens")
    for arm in dict.fromkeys(found["arm"] for found in results):
        mine = [found for found in results if found["arm"] == arm]
        rate, seconds, before, real = (median(found[name] for found in mine) for name in names)
        accuracy, against, ratio = mean(found["accuracy"] for found in mine), comparison.get(arm), ""
        if against:
            every = ", ".join(f"{value:.2f}" for value in against["ratios"])
            ratio = f"{against['median']:.2f} ({every}), {against['accuracy_points']:+.1f} points of accuracy"
        numbers = f"{rate:.1f} | {seconds:.1f} | {before:.1f} | {real:.0%} | {accuracy:.4f} | {ratio}"
        lines.append(f"| {ARMS[arm]} | {mine[0]['precision']} | {numbers} |")
    return "\n".join(lines)


def to_lines(found: dict[str, Any]) -> str:
    """Where the time of a step goes."""
    parts = found["milliseconds_per_update"]
    total = sum(parts.values())
    lines = [f"{total:.0f} ms an update ({found['updates']} updates, {found['precision']})"]
    lines += [f"  {name:<22}{value:7.1f} ms  {value / total:6.1%}" for name, value in parts.items()]
    lines.append("of the time of all operations, by torch.profiler")
    lines += [f"  {share:6.1%}  {name}" for name, share in found["operations"].items()]
    return "\n".join(lines) + (
        f"\nmatrix products (addmm, mm, bmm): {found['products_share']:.0%} of that time, at "
        f"{found['products_gflops']:.0f} GFLOP/s; the step as a whole makes {found['step_gflops']:.0f}"
    )


def introduce(facts: dict[str, Any]) -> str:
    """Date, hardware, versions and data, and what is timed."""
    hardware, precision = facts["hardware"], facts["precision"]
    chips = [f"{hardware['cpu']}, {hardware['cores']} cores, {facts['threads']} threads", *hardware["gpus"]]
    without = f"no bf16 that is faster (on a CPU: AVX512-BF16 or AMX), so Trainer's best and graftkit take {precision}"
    versions = [f"{name} {facts['versions'][name]}" for name in ("python", "torch", "transformers", "accelerate")]
    timed = (__doc__ or "").rpartition("\n\n")[2]
    return (
        f"{facts['date']}, {', '.join(chips)}; {'bf16' if precision == 'bf16' else without}\n{', '.join(versions)}\n"
        f"{facts['data']}, batch {TRAIN.batch_size}, one epoch, lr {TRAIN.lr}\n\n{timed}"
    )


def main() -> None:
    """Read the command line; run the rounds, or the profile, or, in a process of its own, one job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that each arm runs; a round's number is its seed")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which arms, in which order")
    parser.add_argument("--rows", type=int, help="at most so many training rows, for a quick look")
    parser.add_argument("--profile", action="store_true", help="say where the time of graftkit's step goes, instead")
    parser.add_argument("--out", type=Path, help="write all numbers as JSON, too")
    for hidden, kind in (("--job", str), ("--seed", int), ("--folder", Path)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        result = JOBS[given.job](given.seed, given.rows, str(given.folder / "run"))
        (given.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return
    facts = {"date": time.strftime("%Y-%m-%d"), **run_apart("machine", 0, None)}
    facts |= {"data": "embedded set" if data_config(None).path == "demo" else "banking77", "training": vars(TRAIN)}
    print(introduce(facts), flush=True)
    if given.profile:
        facts["profile"] = run_apart("profile", 0, given.rows)
        print(to_lines(facts["profile"]))
    else:
        facts["runs"] = run_rounds(given.arms, given.rounds, given.rows)
        facts["graftkit_against"] = compare(facts["runs"])
        print("\n" + to_table(facts["runs"], facts["graftkit_against"]))
    if given.out:
        given.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


JOBS = {
    "defaults": lambda *given: run_trainer(*given, best=False),
    "best": lambda *given: run_trainer(*given, best=True),
    "graftkit": run_graftkit,
    "machine": describe_machine,
    "profile": profile_graftkit,
}

if __name__ == "__main__":
    main()
