"""Which way of adapting is best for how many rows?

    python benchmarks/strategies.py --out strategies --seeds 0 1 2

Each way of adapting is run by its recipe, as anyone would, in a process of its own, on real data from the folder of
GRAFTKIT_ASSETS (or ../shared): banking77 (77 intents) with 10 and 50 rows a class, sms_spam (13% spam), and flowers12
(12 species) with 5, 10 and 60 rows a class. Texts start from MiniLM (of the demo extra), pictures from
mobilenetv2_100.imagenet. A seed draws the rows as well as the head and the order; one row in five of each class is dev.
Banking77's test is ten rows a class, the others' is whole. Finished runs are kept, so a stopped command goes on.

What stands in the table: the mean over the seeds of the test score (accuracy; macro F1 for sms_spam) with its 95%
interval by Student's t, the median of the seconds of the phases `train` and `backbone` (loading, solving, caching,
training; not testing or reporting), and the parameters that trained.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from graftkit.metrics.spread import student

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("GRAFTKIT_ASSETS") or ROOT.parent / "shared")
Rows = dict[str, list[tuple[str, str]]]
"""Of each split, a text or the name of a file, and its label."""


class Data(NamedTuple):
    """Rows to learn from, and how they are trained on."""

    folder: str
    each: int | None  # rows of each class for train and dev; None: all
    recipe: str
    score: str
    flags: tuple[str, ...]
    test_each: int | None = None


TEXT = ("--run.keep_rows", "false", "--train.batch_size", "16")
PICTURES = (*TEXT, "--image.cache", "--backbone.name", str(ASSETS / "checkpoints" / "mobilenetv2_100.imagenet"))
DATA = {
    "banking77-10": Data("banking77", 10, "text_classify", "accuracy", (*TEXT, "--train.epochs", "8"), 10),
    "banking77-50": Data("banking77", 50, "text_classify", "accuracy", (*TEXT, "--train.epochs", "4"), 10),
    "sms_spam": Data("sms_spam", None, "text_classify", "macro_f1", (*TEXT, "--train.epochs", "2")),
    "flowers12-5": Data("flowers12", 5, "image_classify", "accuracy", (*PICTURES, "--train.epochs", "12")),
    "flowers12-10": Data("flowers12", 10, "image_classify", "accuracy", (*PICTURES, "--train.epochs", "8")),
    "flowers12-60": Data("flowers12", None, "image_classify", "accuracy", (*PICTURES, "--train.epochs", "4")),
}
WAYS = {
    "full": "",
    "head": "--adapt.strategy head",
    "head-sgd": "--adapt.strategy head --adapt.solver sgd",
    "lp_ft": "--adapt.strategy lp_ft",
    "last": "--adapt.strategy last",
    "lora": "--adapt.strategy lora",
    "lora-rs": "--adapt.strategy lora --adapt.rslora",
    "lora-dora": "--adapt.strategy lora --adapt.dora",
    "ia3": "--adapt.strategy ia3",
    "bitfit": "--adapt.strategy bitfit",
    "prompt": "--adapt.strategy prompt",
    "full-layer-decay": "--train.layer_decay 0.8",
    "full-unfreezing": "--train.unfreeze_every 1",
    "full-l2-sp": "--train.l2_sp 100",
    "full-ema": "--train.ema 0.98",
    "lp_ft-wise_ft": "--adapt.strategy lp_ft --train.wise_ft",
    "full-soup": "--train.soup greedy",
    "full-smoothing": "--train.label_smoothing 0.1",
    "full-class-weights": "--train.class_weights balanced",
    "full-sampling": "--train.sampling balanced",
    "full-focal": "--train.focal 2",
}
BY_LOOP = ("--train.epochs", "--train.batch_size")
"""Flags that the closed form refuses, since nothing is trained by gradient."""


# rows


def read_texts(folder: Path) -> Rows:
    """Train and test of a data set of texts."""
    tables = {split: pd.read_csv(next(folder.glob(f"{split}*.csv"))) for split in ("train", "test")}
    return {split: list(table.iloc[:, :2].itertuples(index=False, name=None)) for split, table in tables.items()}


def read_pictures(folder: Path) -> Rows:
    """Train and test of a folder with a folder for each class."""
    return {
        split: [(str(path), path.parent.name) for path in sorted((folder / split).glob("*/*"))]
        for split in ("train", "test")
    }


def draw(rows: Sequence[tuple[str, str]], each: int | None, rng: np.random.Generator) -> list[tuple[str, str]]:
    """So many rows of each class, by chance; all where `each` is None."""
    chosen = []
    for label in sorted({label for _, label in rows}):
        mine = [row for row in rows if row[1] == label]
        chosen += [mine[place] for place in rng.permutation(len(mine))[:each]]
    return chosen


def make_rows(data: Data, seed: int) -> Rows:
    """The rows of a seed: drawn from train and cut into train and dev by class, and those of test, always the same."""
    rng, fixed = np.random.default_rng([7, seed]), np.random.default_rng(7)
    found = (read_pictures if data.recipe == "image_classify" else read_texts)(ASSETS / "data" / data.folder)
    rows: Rows = {"train": [], "dev": [], "test": draw(found["test"], data.test_each, fixed)}
    drawn = draw(found["train"], data.each, rng)
    for label in sorted({label for _, label in drawn}):
        mine = [row for row in drawn if row[1] == label]
        cut = max(1, len(mine) // 5)
        rows["dev"] += mine[:cut]
        rows["train"] += mine[cut:]
    return rows


def write_rows(data: Data, rows: Rows, folder: Path) -> None:
    """A folder that the recipe reads: tables of texts, or pictures in a folder for each class."""
    folder.mkdir(parents=True)
    for split, members in rows.items():
        if data.recipe == "text_classify":
            pd.DataFrame(members, columns=["text", "label"]).to_csv(folder / f"{split}.csv", index=False)
            continue
        for path, label in members:
            place = folder / split / label / Path(path).name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


# runs


def run_one(name: str, way: str, seed: int, out: Path) -> None:
    """Run the recipe once, unless that was done before; what it prints lies beside."""
    data, folder = DATA[name], out / "runs" / name / f"{way}-{seed}"
    if (folder / "metrics.json").exists():
        return
    rows = out / "data" / f"{name}-{seed}"
    if not rows.exists():
        write_rows(data, make_rows(data, seed), rows)
    flags = list(data.flags)
    if way == "head":
        for flag in BY_LOOP:
            place = flags.index(flag)
            del flags[place : place + 2]
    command = [sys.executable, str(ROOT / "recipes" / f"{data.recipe}.py"), "--data.path", str(rows), *flags]
    command += [*WAYS[way].split(), "--run.seed", str(seed), "--run.out", str(folder), "--run.overwrite"]
    began = time.perf_counter()
    child = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    folder.with_suffix(".txt").parent.mkdir(parents=True, exist_ok=True)
    folder.with_suffix(".txt").write_text(child.stdout, encoding="utf-8")
    if child.returncode:
        last = child.stdout.strip().splitlines()[-1]
        print(f"{name}, {way}, seed {seed}: not run: {last}", flush=True)
        return
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    said = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"]["scores"]
    seconds = time.perf_counter() - began
    print(f"{name}, {way}, seed {seed}: {data.score} {_value(said, data.score):.3f}, {seconds:.0f} s", flush=True)
    shutil.rmtree(folder / "model", ignore_errors=True)


def _value(scores: dict[str, Any], name: str) -> float:
    found = scores[name]
    return float(found["value"] if isinstance(found, dict) else found)


# the table


def read_one(folder: Path, score: str) -> dict[str, float]:
    """What a finished run says."""
    metrics, run = (json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("metrics", "run"))
    seconds = run["seconds"]
    return {
        "score": _value(metrics["test"]["scores"], score),
        "seconds": seconds["train"] + seconds["backbone"],
        "trained": run["adapt"]["trained_parameters"],
    }


def to_table(name: str, ways: Sequence[str], seeds: Sequence[int], out: Path) -> str:
    """A line for each way that was run, the best first."""
    data, lines = DATA[name], []
    for way in ways:
        folders = [out / "runs" / name / f"{way}-{seed}" for seed in seeds]
        found = [read_one(folder, data.score) for folder in folders if (folder / "metrics.json").exists()]
        if not found:
            continue
        scores = [one["score"] for one in found]
        reach = student(scores, 0.0, 1.0) if len(scores) > 1 else None
        between = "" if reach is None else f" ({reach.low:.3f} to {reach.high:.3f})"
        seconds, trained = median(one["seconds"] for one in found), found[0]["trained"]
        row = f"| {way} | {mean(scores):.3f}{between} | {len(scores)} | {seconds:.0f} | {trained:,.0f} |"
        lines.append((mean(scores), row))
    head = (
        f"| {name} | test {data.score} (95% interval) | seeds | seconds | trained parameters |\n|---|---|---|---|---|"
    )
    return "\n".join([head, "|---" * 5 + "|", *(line for _, line in sorted(lines, reverse=True))])


def main() -> None:
    """Run what is asked for and not yet there, data set by data set and seed by seed, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps data and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), metavar="DATA", help=", ".join(DATA))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, and run nothing")
    given = parser.parse_args()
    if not given.table:
        for name in given.data:
            for seed in given.seeds:
                for way in given.ways:
                    run_one(name, way, seed, given.out)
    for name in given.data:
        print(f"\n{to_table(name, given.ways, given.seeds, given.out)}")


if __name__ == "__main__":
    main()
