"""How are ways to train compared, in turn and each in a process of its own?

A benchmark says what its arms do (`Benchmark`); the command line, the rounds, the clocks and the table are here.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from graftkit.adapt import Adapted, set_training_mode
from graftkit.feed import Feed
from graftkit.machine import choose_precision
from graftkit.run import RunConfig, open_run
from graftkit.task import Record
from graftkit.train import TrainConfig, accumulate_gradients, prepare, seed_dropout, set_lr

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("GRAFTKIT_ASSETS") or ROOT.parent / "shared")
PROFILED = 40  # updates

Result = dict[str, Any]
Job = Callable[[int, int | None, str], Result]
"""From the seed, the most training rows and the folder for the run, to what JSON can hold."""


@dataclass(frozen=True)
class Column:
    """A figure of each arm that this benchmark alone has."""

    name: str  # in the arm's result
    title: str
    form: str  # as format() takes it


@dataclass(frozen=True)
class Benchmark:
    """What is measured, and how it is shown."""

    file: str  # the script
    description: str  # its docstring; the last paragraph says what is timed
    recipe: str
    config: Callable[..., Any]  # the recipe's settings
    train: TrainConfig
    data: str
    needs: Sequence[Path]  # folders without which nothing can be measured
    arms: Mapping[str, str]  # as they are shown
    ours: Sequence[str]  # the arms that are compared with each of the others
    jobs: Mapping[str, Job]  # an arm's by its name, and `profile`
    things: str  # what is counted in a second
    column: Column
    packages: Sequence[str]  # whose versions are shown
    show_profile: Callable[[Result], str] | None = None  # None: no job `profile`
    words: Sequence[str] = ()  # that the script wants before its flags


# clocks, in the process of a job


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


def make_clock() -> TrainerCallback:
    """Trainer's callback that notes when the first epoch `began`, and when the last update `ended`."""
    import transformers

    class Clock(transformers.TrainerCallback):
        began = None

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.began = self.began or time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == state.max_steps:
                wait_for_device()
                self.ended = time.perf_counter()

    return Clock()


def train_with_trainer(
    seed: int,
    folder: str,
    config: TrainConfig,
    load_model: Callable[[], Any],
    rows: Any,
    collate: Callable[[list[Any]], Any],
    *,
    best: bool,
    flags: Mapping[str, Any],
    **others: Any,
) -> tuple[Trainer, float, str]:
    """A Trainer at the end of training, its rows per second, and its precision: bf16 where that is `best`, else fp32.

    `flags` are TrainingArguments, `others` Trainer's own.
    """
    import torch
    import transformers

    gpu = torch.cuda.is_available()
    precision = choose_precision("auto", "cuda" if gpu else "cpu") if best else "fp32"
    if precision != "fp32":
        flags = {**flags, precision: True, "use_cpu": not gpu}  # else it refuses bf16 on a CPU
    settings = transformers.TrainingArguments(
        folder,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.lr,
        seed=seed,
        save_strategy="no",
        disable_tqdm=True,
        **flags,
    )
    transformers.set_seed(seed)
    clock = make_clock()
    trainer = transformers.Trainer(load_model(), settings, collate, rows, callbacks=[clock], **others)
    trainer.train()
    return trainer, config.epochs * len(rows) / (clock.ended - clock.began), precision


def outcome(rows: int, rate: float, records: Sequence[Record], **known: Any) -> Result:
    """What an arm reports of so many rows (over all epochs) at this rate, and of its records on test."""
    right = sum(record["prediction"] == record["label"] for record in records)
    return {
        "rows": rows,
        "seconds": rows / rate,
        "rows_per_second": rate,
        **known,
        "accuracy": right / len(records),
    }


def profile_updates(
    feed: Feed, adapted: Adapted, config: TrainConfig, fetching: str, forward: str
) -> tuple[Result, dict[str, float], int]:
    """The same updates twice: by the clock, part by part, and by torch.profiler, operation by operation.

    `fetching` and `forward` name two of the parts. Returns what is shown, and of the profiler the microseconds of each
    operation and the floating-point operations that it counted.
    """
    from torch.profiler import profile

    accelerator = feed.accelerator
    model, optimizer = prepare(accelerator, adapted, config)
    set_training_mode(accelerator.unwrap_model(model))
    spent: dict[str, float] = defaultdict(float)
    fetch = clocked(spent, fetching)(next)
    feed.task.loss = clocked(spent, forward)(feed.task.loss)
    accelerator.backward = clocked(spent, "backward")(accelerator.backward)

    def run_updates(count: int) -> int:
        """Run the first updates of the epoch, as the loop does."""
        source, done = islice(feed.epoch(0), count), 0
        while (update := fetch(source, None)) is not None:
            seed_dropout(feed.seed, done, 0)
            set_lr(optimizer, done, feed.updates_per_epoch, config.warmup)
            accumulate_gradients(accelerator, feed.task, model, update).item()
            with clocked(spent, "clip"):
                accelerator.clip_grad_norm_(model.parameters(), config.clip)
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
    largest = sorted(times, key=times.__getitem__, reverse=True)[:14]
    found = {
        "updates": done,
        "milliseconds_per_update": {name: 1000 * seconds / done for name, seconds in parts.items()},
        "operations": {name: times[name] / sum(times.values()) for name in largest},
    }
    return found, times, sum(event.flops for event in events)


def describe_machine(benchmark: Benchmark, folder: str) -> Result:
    """What a run's record says of hardware and versions."""
    record = open_run(benchmark.recipe, benchmark.config(run=RunConfig(out=folder))).record
    return {name: record[name] for name in ("hardware", "threads", "device", "precision", "versions", "git_commit")}


# the rounds


def run_apart(benchmark: Benchmark, job: str, seed: int, rows: int | None) -> Result:
    """A job's result, from a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            benchmark.file,
            *benchmark.words,
            "--job",
            job,
            "--seed",
            str(seed),
            "--folder",
            folder,
        ]
        command += [] if rows is None else ["--rows", str(rows)]
        child = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if child.returncode:
            sys.exit(f"{child.stdout}\n{job} failed")
        return json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))


def run_rounds(benchmark: Benchmark, arms: list[str], rounds: int, rows: int | None) -> list[Result]:
    """Each arm in turn, in each round; the round's number is the seed."""
    results, things, own = [], benchmark.things, benchmark.column
    for seed, arm in ((seed, arm) for seed in range(rounds) for arm in arms):
        found = run_apart(benchmark, arm, seed, rows)
        found = {"arm": arm, "round": seed, **found, "load_average": os.getloadavg()[0]}
        results.append(found)
        print(
            f"round {seed}, {benchmark.arms[arm]}: {found['rows_per_second']:.1f} {things}/s, {found['seconds']:.1f} s "
            f"for {found['rows']:,} {things} ({found['seconds_before']:.1f} s before), {found['precision']}, "
            f"test accuracy {found['accuracy']:.4f}, {found[own.name]:{own.form}} {own.title}, "
            f"load {found['load_average']:.1f}",
            flush=True,
        )
    return results


def compare(benchmark: Benchmark, results: list[Result], arm: str) -> dict[str, Result]:
    """How many times as fast an arm of ours was as each other, round by round, and how many points more accurate."""
    by_arm = {name: [found for found in results if found["arm"] == name] for name in benchmark.arms}
    ours, comparison = by_arm[arm], {}
    for other, theirs in by_arm.items():
        if ours and theirs and other not in benchmark.ours:
            pairs = list(zip(ours, theirs, strict=True))
            ratios = [a["rows_per_second"] / b["rows_per_second"] for a, b in pairs]
            points = 100 * mean(a["accuracy"] - b["accuracy"] for a, b in pairs)
            comparison[other] = {"ratios": ratios, "median": median(ratios), "accuracy_points": points}
    return comparison


# what they say


def to_table(benchmark: Benchmark, results: list[Result], comparisons: Mapping[str, dict[str, Result]]) -> str:
    """The README's table: medians over the rounds, the mean accuracy, and the paired ratios."""
    own, over = benchmark.column, " | ".join(f"{arm}'s speed over it" for arm in comparisons)
    head = f"precision | {benchmark.things}/s | seconds | seconds before | {own.title} | test accuracy | {over}"
    lines = [f"| | {head} |", "|---" * (7 + len(comparisons)) + "|"]
    names = ("rows_per_second", "seconds", "seconds_before", own.name)
    for arm in dict.fromkeys(found["arm"] for found in results):
        mine = [found for found in results if found["arm"] == arm]
        rate, seconds, before, special = (median(found[name] for found in mine) for name in names)
        accuracy = mean(found["accuracy"] for found in mine)
        ratios = " | ".join(_ratios(comparison.get(arm)) for comparison in comparisons.values())
        numbers = f"{rate:.1f} | {seconds:.1f} | {before:.1f} | {special:{own.form}} | {accuracy:.4f} | {ratios}"
        lines.append(f"| {benchmark.arms[arm]} | {mine[0]['precision']} | {numbers} |")
    return "\n".join(lines)


def _ratios(against: Result | None) -> str:
    if against is None:
        return ""
    every = ", ".join(f"{value:.2f}" for value in against["ratios"])
    return f"{against['median']:.2f} ({every}), {against['accuracy_points']:+.1f} points of accuracy"


def to_lines(found: Result) -> str:
    """Where the time of an update goes."""
    parts = found["milliseconds_per_update"]
    total = sum(parts.values())
    lines = [f"{total:.0f} ms an update ({found['updates']} updates, {found['precision']})"]
    lines += [f"  {name:<22}{value:7.1f} ms  {value / total:6.1%}" for name, value in parts.items()]
    lines.append("of the time of all operations, by torch.profiler")
    lines += [f"  {share:6.1%}  {name}" for name, share in found["operations"].items()]
    return "\n".join(lines)


def introduce(benchmark: Benchmark, facts: Result) -> str:
    """Date, hardware, versions and data, and what is timed."""
    hardware, precision, train = facts["hardware"], facts["precision"], benchmark.train
    chips = [f"{hardware['cpu']}, {hardware['cores']} cores, {facts['threads']} threads", *hardware["gpus"]]
    without = f"no bf16 that is faster (on a CPU: AVX512-BF16 or AMX), so Trainer's best and graftkit take {precision}"
    versions = [f"{name} {facts['versions'][name]}" for name in benchmark.packages]
    timed = benchmark.description.rpartition("\n\n")[2]
    return (
        f"{facts['date']}, {', '.join(chips)}; {'bf16' if precision == 'bf16' else without}\n{', '.join(versions)}\n"
        f"{facts['data']}, batch {train.batch_size}, {_epochs(train)}, lr {train.lr}\n\n{timed}"
    )


def _epochs(train: TrainConfig) -> str:
    return "one epoch" if train.epochs == 1 else f"{train.epochs} epochs"


def main(benchmark: Benchmark) -> None:
    """Read the command line; run the rounds, or the profile, or, in a process of its own, one job."""
    parser = _parser(benchmark)
    given = parser.parse_args()
    missing = [folder for folder in benchmark.needs if not folder.is_dir()]
    if missing:
        parser.error(f"no folder {missing[0]}; set GRAFTKIT_ASSETS to the folder that holds checkpoints/ and data/")
    if given.job:
        jobs = {"machine": lambda seed, rows, folder: describe_machine(benchmark, folder), **benchmark.jobs}
        result = jobs[given.job](given.seed, given.rows, str(given.folder / "run"))
        (given.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return
    facts = {"date": time.strftime("%Y-%m-%d"), **run_apart(benchmark, "machine", 0, None)}
    facts |= {"data": benchmark.data, "training": vars(benchmark.train)}
    print(introduce(benchmark, facts), flush=True)
    if given.profile:
        facts["profile"] = run_apart(benchmark, "profile", 0, given.rows)
        print(benchmark.show_profile(facts["profile"]))
    else:
        facts["runs"] = run_rounds(benchmark, given.arms, given.rounds, given.rows)
        comparisons = {arm: compare(benchmark, facts["runs"], arm) for arm in benchmark.ours}
        facts |= {f"{arm}_against": comparison for arm, comparison in comparisons.items()}
        print("\n" + to_table(benchmark, facts["runs"], comparisons))
    if given.out:
        given.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _parser(benchmark: Benchmark) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=benchmark.description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arms = benchmark.arms
    parser.add_argument("--rounds", type=int, default=3, help="times that each arm runs; a round's number is its seed")
    parser.add_argument("--arms", nargs="+", choices=arms, default=list(arms), help="which arms, in which order")
    parser.add_argument("--rows", type=int, help="at most so many training rows, for a quick look")
    if benchmark.show_profile:
        parser.add_argument(
            "--profile", action="store_true", help="say where the time of graftkit's step goes, instead"
        )
    parser.set_defaults(profile=False)
    parser.add_argument("--out", type=Path, help="write all numbers as JSON, too")
    for hidden, kind in (("--job", str), ("--seed", int), ("--folder", Path)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    return parser
