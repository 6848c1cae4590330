"""How soon is a text classifier as good as it gets, from a solved head?

    python benchmarks/lp_ft.py --seeds 0 1 2 --jobs 2 --out lp_ft.json

Each arm trains the same checkpoint (MiniLM, from the demo extra) on banking77 from the folder of GRAFTKIT_ASSETS (or
../shared), 32 rows an update, in a process of its own, with nothing kept from earlier ones: graftkit's strategies head
(solved), full and lp_ft, and transformers.Trainer at its best: group_by_length, a tenth of warm-up (as graftkit), the
fused AdamW and, where the hardware has it, bf16. The same learning rates are tried for every arm that has one, with the
first seed and the most epochs, and the next one while the best is the lowest or the highest of them; the one with the
best dev accuracy runs with all seeds, and with fewer epochs. graftkit's dev rows are kept from Trainer, too. With
--jobs N, N processes run at a time, each with its share of the cores. What is done is kept in --out, so that a stopped
command goes on.

What is timed: `training` is all that learn() does for graftkit (features, solution, updates, dev after each epoch), and
for Trainer its first batch to its last update, with no evaluation. `in all` is from the start of the process, with
imports, data and tokens, to the end of training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean
from threading import Lock
from typing import Any

from rounds import ASSETS, ROOT, make_clock

from graftkit.run import write_aside

LRS = (1e-4, 2e-4, 4e-4)
ARMS = {
    "head": ("graftkit, head solved", (0,)),
    "lp_ft": ("graftkit, lp_ft", (2, 1)),
    "full": ("graftkit, full", (3,)),
    "trainer": ("Trainer, at its best", (3, 2)),
}
TARGETS = (0.91, 0.92)
Result = dict[str, Any]


# in the process of a job


def load(seed: int, rows: int | None) -> Any:
    """The rows; with `rows`, at most so many of train and of test."""
    from graftkit.data import DataConfig, load_splits

    splits = load_splits(DataConfig(path=str(ASSETS / "data" / "banking77"), max_rows=rows), seed)
    if rows is None:
        return splits
    return replace(splits, test=splits.test.shuffle(seed=0).select(range(min(rows, len(splits.test)))))


def accuracies(accelerator: Any, task: Any, model: Any, splits: Any) -> Result:
    """Of dev and test, by the plain model in fp32."""
    from graftkit.evaluate import predict_rows

    found = {}
    for split in ("dev", "test"):
        rows = getattr(splits, split)
        records = predict_rows(accelerator, task, model, rows, task.lengths(rows))
        found[split] = mean(record["prediction"] == record["label"] for record in records)
    return found


def run_graftkit(
    arm: str, epochs: int, lr: float | None, seed: int, rows: int | None, folder: str, began: float
) -> Result:
    """The recipe as far as the end of its training."""
    sys.path.insert(0, str(ROOT / "recipes"))
    from text_classify import Config

    from graftkit.adapt import ClassifierAdaptConfig, adapt
    from graftkit.heads import load_classifier
    from graftkit.learn import ClassifierTrainConfig, learn
    from graftkit.run import RunConfig, open_run
    from graftkit.tasks.text_classification import TextClassification
    from graftkit.text import load_tokenizer, measure

    train = ClassifierTrainConfig(batch_size=32) if lr is None else ClassifierTrainConfig(epochs, 32, lr=lr)
    config = Config(adapt=ClassifierAdaptConfig(strategy=arm), train=train, run=RunConfig(out=folder, seed=seed))
    config = replace(config, run=replace(config.run, headline="accuracy"))
    run = open_run("text_classify", config)
    splits = load(seed, rows)
    tokenizer = load_tokenizer(config.backbone)
    task = TextClassification(tokenizer, splits.labels)
    run.introduce(task, splits)
    lengths = measure(run, task, splits)
    adapted = adapt(load_classifier(config.backbone, splits.labels, tokenizer, seed), config.adapt)
    start = time.perf_counter()
    model = learn(run, task, adapted, splits, lengths, config.adapt, config.train)
    spent = {"training": time.perf_counter() - start, "all": time.time() - began}
    known = {"precision": run.record["precision"], "solver": run.record.get("solver")}
    return {**spent, **known, **accuracies(run.accelerator, task, model, splits)}


def run_trainer(arm: str, epochs: int, lr: float, seed: int, rows: int | None, folder: str, began: float) -> Result:
    """transformers.Trainer over rows that are tokenised beforehand and padded batch by batch."""
    import torch
    import transformers

    from graftkit.backbone import BackboneConfig, resolve
    from graftkit.machine import choose_precision
    from graftkit.tasks.text_classification import TextClassification
    from graftkit.text import load_tokenizer

    splits = load(seed, rows)
    task = TextClassification(load_tokenizer(BackboneConfig()), splits.labels)
    tokenizer = transformers.AutoTokenizer.from_pretrained(resolve("demo"))

    def tokenise(part: Any) -> Any:
        labels = [task.index[name] for name in part["label"]]
        return {**tokenizer(part["text"], truncation=True), "label": labels}

    tokenised = splits.train.map(tokenise, batched=True, remove_columns=splits.train.column_names)
    gpu = torch.cuda.is_available()
    precision = choose_precision("auto", "cuda" if gpu else "cpu")
    flags = {} if precision == "fp32" else {precision: True, "use_cpu": not gpu}
    settings = transformers.TrainingArguments(
        folder, num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=lr, seed=seed,
        save_strategy="no", disable_tqdm=True, optim="adamw_torch_fused", train_sampling_strategy="group_by_length",
        warmup_steps=0.1,
        **flags,
    )  # fmt: skip
    transformers.set_seed(seed)
    auto = transformers.AutoModelForSequenceClassification
    clock, first = make_clock(), []
    clock.on_train_begin = lambda *_, **__: first.append(time.perf_counter())
    model = auto.from_pretrained(resolve("demo"), num_labels=len(splits.labels))
    pad = transformers.DataCollatorWithPadding(tokenizer)
    trainer = transformers.Trainer(model, settings, pad, tokenised, callbacks=[clock], processing_class=tokenizer)
    trainer.train()
    spent = {"training": clock.ended - first[0], "all": time.time() - began}
    plain = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return {**spent, "precision": precision, **accuracies(trainer.accelerator, task, plain, splits)}


# the rounds


class Rounds:
    """Jobs, some at a time, each in a fresh process with a cache folder of its own; what is done is kept in a file."""

    def __init__(self, out: Path | None, jobs: int, rows: int | None):
        self.out, self.rows, self.jobs, self.pool = out, rows, jobs, ThreadPoolExecutor(jobs)
        self.lock = Lock()  # of what is done, and of its file
        self.done: list[Result] = json.loads(out.read_text(encoding="utf-8")) if out and out.exists() else []

    def run_all(self, wanted: Sequence[Result]) -> list[Result]:
        """The results of jobs, each named by arm, epochs, lr and seed."""
        return list(self.pool.map(self.run_apart, wanted))

    def run_apart(self, wanted: Result) -> Result:
        """A job's result: what is kept of an earlier one, or that of a process."""
        given = {**wanted, "rows": self.rows}
        for known in self.done:
            if all(known[name] == value for name, value in given.items()):
                return known
        own = dict(os.environ)
        if self.jobs > 1:
            own["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // self.jobs))
        with tempfile.TemporaryDirectory() as folder:
            own |= {"GRAFTKIT_CACHE": f"{folder}/cache", "GRAFTKIT_RESULT": f"{folder}/result.json"}
            job = json.dumps({**given, "folder": f"{folder}/run", "began": time.time()})
            command = [sys.executable, __file__, "--job", job]
            child = subprocess.run(
                command, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
            )
            if child.returncode:
                print(f"{child.stdout}\n{given} failed", flush=True)  # now: the other arms go on until they are done
                raise SystemExit(f"{given} failed, see above; what is done is kept with --out")
            found = json.loads(Path(own["GRAFTKIT_RESULT"]).read_text(encoding="utf-8"))
        result = {**given, **found, "load_average": os.getloadavg()[0]}
        with self.lock:
            self.done.append(result)
            if self.out:
                write_aside(self.out, json.dumps(self.done, indent=2) + "\n")
        print(
            f"{given['arm']}, {given['epochs']} epochs, lr {given['lr']}, seed {given['seed']}: {found['training']:.1f}"
            f" s training, {found['all']:.1f} s in all, dev {found['dev']:.4f}, test {found['test']:.4f}, load "
            f"{result['load_average']:.1f}",
            flush=True,
        )
        return result

    def find_rate(self, arm: str, lrs: Sequence[float], seed: int) -> float | None:
        """The rate that is best on dev; while that is the lowest or the highest tried, the next one is tried, too."""
        if arm == "head":
            return None
        tried: dict[float, float] = {}
        wanted = list(lrs)
        while wanted:
            jobs = [{"arm": arm, "epochs": ARMS[arm][1][0], "lr": lr, "seed": seed} for lr in wanted]
            tried |= {found["lr"]: found["dev"] for found in self.run_all(jobs)}
            best = max(tried, key=lambda lr: tried[lr])
            wanted = [lr for lr, edge in ((best / 2, min(tried)), (best * 2, max(tried))) if best == edge]
        return best

    def sweep(self, arms: Sequence[str], lrs: Sequence[float], seeds: Sequence[int]) -> list[list[Result]]:
        """For each arm and number of epochs the results of all seeds, at the rate that was best on dev."""
        with ThreadPoolExecutor(len(arms)) as pool:
            best = dict(zip(arms, pool.map(lambda arm: self.find_rate(arm, lrs, seeds[0]), arms), strict=True))
        groups = [
            [{"arm": arm, "epochs": epochs, "lr": best[arm], "seed": seed} for seed in seeds]
            for arm in arms
            for epochs in ARMS[arm][1]
        ]
        results = iter(self.run_all([job for group in groups for job in group]))
        return [[next(results) for _ in group] for group in groups]


def to_table(groups: Sequence[Sequence[Result]]) -> str:
    """A line for each arm and number of epochs: means over the seeds, and the range of test accuracy."""
    lines = [
        "| | epochs | lr | seconds training | in all | test accuracy | from | to |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for group in groups:
        first, tests = group[0], [found["test"] for found in group]
        numbers = [f"{mean(found[name] for found in group):.1f}" for name in ("training", "all")]
        lr = "" if first["lr"] is None else f"{first['lr']:g}"
        scores = [f"{value:.4f}" for value in (mean(tests), min(tests), max(tests))]
        lines.append(f"| {' | '.join([ARMS[first['arm']][0], str(first['epochs'] or ''), lr, *numbers, *scores])} |")
    return "\n".join(lines)


def to_ratios(groups: Sequence[Sequence[Result]]) -> str:
    """How many times sooner each accuracy is reached than by Trainer: mean accuracy and seconds over the seeds."""
    lines = []
    for target in TARGETS:
        for name, word in (("training", "training only"), ("all", "in all")):
            reached: dict[bool, list[tuple[float, str]]] = {True: [], False: []}
            for group in groups:
                if mean(found["test"] for found in group) >= target:
                    seconds = mean(found[name] for found in group)
                    how = f"{ARMS[group[0]['arm']][0]}, {group[0]['epochs']} epochs, {seconds:.0f} s"
                    reached[group[0]["arm"] == "trainer"].append((seconds, how))
            ours, theirs = (min(reached[kind], default=None) for kind in (False, True))
            if ours is None or theirs is None:
                said = [found[1] if found else "not reached" for found in (ours, theirs)]
                lines.append(f"{target} ({word}): {' against '.join(said)}")
            else:
                lines.append(
                    f"{target} ({word}): {theirs[0] / ours[0]:.1f} times sooner ({ours[1]} against {theirs[1]})"
                )
    return "\n".join(lines)


def main() -> None:
    """Read the command line; run everything, or, in a process of its own, one job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first one tries the rates")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which arms, in which order")
    parser.add_argument("--lrs", type=float, nargs="+", default=list(LRS), help="learning rates to try for each arm")
    parser.add_argument("--rows", type=int, help="at most so many training rows, for a quick look")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--out", type=Path, help="keep all results here, and go on from there")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        job = json.loads(given.job)
        result = (run_trainer if job["arm"] == "trainer" else run_graftkit)(**job)
        Path(os.environ["GRAFTKIT_RESULT"]).write_text(json.dumps(result), encoding="utf-8")
        return
    if not (ASSETS / "data" / "banking77").is_dir():
        parser.error(f"no folder {ASSETS / 'data' / 'banking77'}; set GRAFTKIT_ASSETS to the one that holds data/")
    groups = Rounds(given.out, given.jobs, given.rows).sweep(given.arms, given.lrs, given.seeds)
    print(f"\n{to_table(groups)}\n\n{to_ratios(groups)}")


if __name__ == "__main__":
    main()
