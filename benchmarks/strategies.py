"""Which way of adapting is best for how many rows?

    python benchmarks/strategies.py --out strategies --seeds 0 1 2 --jobs 2

Each way of adapting is trained by its recipe on real data from the folder of GRAFTKIT_ASSETS (or ../shared): banking77
(77 intents) with 10 and 50 rows a class, a fifth of sms_spam (13% spam), and flowers12 (12 species) with 5, 10 and 60
rows a class. Texts start from MiniLM (of the demo extra), pictures from mobilenetv2_100.imagenet. A seed draws the rows
as well as the head and the order; one row in five of each class is dev. Banking77's test is ten rows a class, the
others' is whole. The recipe is cut short after its training: the model answers test, and nothing else is reported.
Nothing is tuned: all ways have the recipe's own rates, but those that want a higher one (1e-3 for lora and bitfit, 5e-3
for ia3 and prompts, which are guesses).

The main ways run on all data, the others on the two sets of ten rows a class (prompts and IA3 on texts alone:
MobileNetV2 has neither tokens nor keys and values), and those against imbalance on sms_spam. The teacher of
`full-taught` is what comes of `full` on the same rows with the same seed, so a network of its own size (Furlanello et
al. 2018, "Born-Again Neural Networks", arXiv 1805.04770); its own training is not counted, asking it is.

With --jobs N, N processes work at a time, each with its share of the cores. Finished runs are kept in --out, so a
stopped command goes on, and tries again what failed.

What stands in the table: the mean over the seeds of the test score (accuracy; macro F1 for sms_spam) with its 95%
interval by Student's t, the median of the seconds of learning (the frozen part, solving, updates, dev after each
epoch), and the parameters that trained.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from graftkit.checkpoint import aside_then_renamed
from graftkit.metrics.spread import student
from graftkit.run import write_aside

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("GRAFTKIT_ASSETS") or ROOT.parent / "shared")
Rows = dict[str, list[tuple[str, str]]]
"""Of each split, a text or the name of a file, and its label."""


class Data(NamedTuple):
    """Rows to learn from, and how they are trained on."""

    folder: str
    each: int | float | None  # rows of each class for train and dev, or a share of them; None: all
    recipe: str
    score: str
    flags: tuple[str, ...]
    test_each: int | None = None


PICTURES = ("--train.batch_size", "16", "--backbone.name", str(ASSETS / "checkpoints" / "mobilenetv2_100.imagenet"))
TEXT = ("--train.batch_size", "16")
DATA = {
    "banking77-10": Data("banking77", 10, "text_classify", "accuracy", (*TEXT, "--train.epochs", "6"), 10),
    "banking77-50": Data("banking77", 50, "text_classify", "accuracy", (*TEXT, "--train.epochs", "2"), 10),
    "sms_spam": Data("sms_spam", 0.2, "text_classify", "macro_f1", (*TEXT, "--train.epochs", "2")),
    "flowers12-5": Data("flowers12", 5, "image_classify", "accuracy", (*PICTURES, "--train.epochs", "12")),
    "flowers12-10": Data("flowers12", 10, "image_classify", "accuracy", (*PICTURES, "--train.epochs", "8")),
    "flowers12-60": Data("flowers12", None, "image_classify", "accuracy", (*PICTURES, "--train.epochs", "2")),
}
FASTER, FASTEST = (f"--train.lr {lr} --train.head_lr 5e-3" for lr in ("1e-3", "5e-3"))  # the head's is the usual one
WAYS = {
    "full": "",
    "head": "--adapt.strategy head",
    "head-sgd": "--adapt.strategy head --adapt.solver sgd",
    "lp_ft": "--adapt.strategy lp_ft",
    "last": "--adapt.strategy last",
    "lora": f"--adapt.strategy lora {FASTER}",
    "lora-rs": f"--adapt.strategy lora --adapt.rslora {FASTER}",
    "lora-dora": f"--adapt.strategy lora --adapt.dora {FASTER}",
    "ia3": f"--adapt.strategy ia3 {FASTEST}",
    "bitfit": f"--adapt.strategy bitfit {FASTER}",
    "prompt": f"--adapt.strategy prompt {FASTEST}",
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
    "full-taught": "--train.teacher {full}",
}
MAIN = ("full", "head", "lp_ft", "last", "lora")
IMBALANCE = ("full-class-weights", "full-sampling", "full-focal")
USUAL = dict.fromkeys(DATA, MAIN) | {
    "banking77-10": tuple(way for way in WAYS if way not in IMBALANCE),
    "flowers12-10": tuple(way for way in WAYS if way not in (*IMBALANCE, "prompt", "ia3")),
    "sms_spam": (*MAIN, *IMBALANCE),
}
"""The ways that are tried on each set of data."""
BY_LOOP = ("--train.epochs", "--train.batch_size")
"""Flags that a computed head refuses, since nothing is trained by gradient."""
TURNS = 20  # runs of a process, after which a fresh one gives back what memory is left behind


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


def draw(rows: Sequence[tuple[str, str]], each: int | float | None, rng: np.random.Generator) -> list[tuple[str, str]]:
    """So many rows of each class, or such a share of them, by chance; all where `each` is None."""
    chosen = []
    for label in sorted({label for _, label in rows}):
        mine = [row for row in rows if row[1] == label]
        many = round(each * len(mine)) if isinstance(each, float) else each
        chosen += [mine[place] for place in rng.permutation(len(mine))[:many]]
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
    """Into a folder what the recipe reads: tables of texts, or pictures in a folder for each class."""
    for split, members in rows.items():
        if data.recipe == "text_classify":
            pd.DataFrame(members, columns=["text", "label"]).to_csv(folder / f"{split}.csv", index=False)
            continue
        for path, label in members:
            place = folder / split / label / Path(path).name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


# runs


def rows_of(name: str, seed: int, out: Path) -> Path:
    """The folder with the rows of a seed, written, whole or not at all, unless it is there."""
    folder = out / "data" / f"{name}-{seed}"
    if not folder.exists():
        with aside_then_renamed(folder) as aside:
            write_rows(DATA[name], make_rows(DATA[name], seed), aside)
    return folder


def place_of(name: str, way: str, seed: int, out: Path) -> Path:
    """Where the result of a run is kept."""
    return out / name / f"{way}-{seed}.json"


def run_one(name: str, way: str, seed: int, out: Path) -> None:
    """Train once; what the recipe prints lies beside the result."""
    place, data = place_of(name, way, seed, out), DATA[name]
    flags = list(data.flags)
    if way == "head":
        for flag in BY_LOOP:
            where = flags.index(flag)
            del flags[where : where + 2]
    place.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        open(place.with_suffix(".txt"), "w", encoding="utf-8") as output,
        redirect_stdout(output),
        redirect_stderr(output),
    ):
        os.environ["GRAFTKIT_CACHE"] = f"{folder}/cache"  # nothing of another run is used
        usual = ["--data.path", str(rows_of(name, seed, out)), *flags, "--run.seed", str(seed)]
        teacher = Path(folder) / "teacher"
        if "{full}" in WAYS[way]:
            learn_and_test(data, [*usual, "--run.out", f"{folder}/full"], save_to=teacher)
        words = [word.format(full=teacher) for word in WAYS[way].split()]
        result = learn_and_test(data, [*usual, *words, "--run.out", f"{folder}/run"])
    write_aside(place, json.dumps(result) + "\n")
    print(f"{name}, {way}, seed {seed}: {result['score']:.3f}, {result['seconds']:.0f} s", flush=True)


def learn_and_test(data: Data, words: Sequence[str], save_to: Path | None = None) -> dict[str, float]:
    """What comes of the recipe, which ends with the answers to test; the model is saved where that is asked for."""
    from graftkit.config import parse
    from graftkit.evaluate import predict_rows

    if str(ROOT / "recipes") not in sys.path:
        sys.path.insert(0, str(ROOT / "recipes"))
    recipe = importlib.import_module(data.recipe)

    def finish(run: Any, task: Any, model: Any, splits: Any, lengths: Any, *_: Any, **__: Any) -> dict[str, float]:
        if save_to is not None:
            task.save(save_to, model)
        scores = task.score(predict_rows(run.accelerator, task, model, splits.test, lengths["test"]))
        trained = run.record["adapt"]["trained_parameters"]
        return {"score": scores[data.score], "seconds": run.record["seconds"]["train"], "trained": trained}

    recipe.finish = finish
    return recipe.main(parse(recipe.Config, words))


def run_all(wanted: Sequence[tuple[str, str, int, Path]], jobs: int) -> int:
    """What is wanted and not yet there, some at a time; says which failed, and returns how many.

    A pool for each so many runs: one with max_tasks_per_child waits for ever where all is submitted at once (CPython's
    issue 115634).
    """
    wanted, failed = [one for one in wanted if not place_of(*one).exists()], 0
    for begin in range(0, len(wanted), TURNS * jobs):
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            for one, told in [(one, pool.submit(run_one, *one)) for one in wanted[begin : begin + TURNS * jobs]]:
                if error := told.exception():
                    print(f"{one[0]}, {one[1]}, seed {one[2]} failed: {error!r}\n{error.__cause__}", flush=True)
                    failed += 1
    return failed


# the table


def to_table(name: str, ways: Sequence[str], seeds: Sequence[int], out: Path) -> str:
    """A line for each way that was run, the best first."""
    data, lines = DATA[name], []
    for way in ways:
        places = [place_of(name, way, seed, out) for seed in seeds]
        found = [json.loads(place.read_text(encoding="utf-8")) for place in places if place.exists()]
        if not found:
            continue
        scores = [one["score"] for one in found]
        reach = student(scores, 0.0, 1.0) if len(scores) > 1 else None
        between = "" if reach is None else f" ({reach.low:.3f} to {reach.high:.3f})"
        seconds, trained = median(one["seconds"] for one in found), found[0]["trained"]
        row = f"| {way} | {mean(scores):.3f}{between} | {len(scores)} | {seconds:.0f} | {trained:,.0f} |"
        lines.append((mean(scores), row))
    head = f"| {name} | test {data.score} (95% interval) | seeds | seconds | trained parameters |"
    return "\n".join([head, "|---" * 5 + "|", *(line for _, line in sorted(lines, reverse=True))])


def main() -> None:
    """Run what is asked for and not yet there, data set by data set and seed by seed, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps data and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), metavar="DATA", help=", ".join(DATA))
    parser.add_argument("--ways", nargs="+", choices=WAYS, metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there, and run nothing")
    given = parser.parse_args()
    wanted = [
        (name, way, seed, given.out)
        for seed in given.seeds
        for name in given.data
        for way in given.ways or USUAL[name]
        if not given.table
    ]
    for name, seed in {(name, seed) for name, _, seed, _ in wanted}:
        rows_of(name, seed, given.out)
    if given.jobs > 1:
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // given.jobs))
    failed = run_all(wanted, given.jobs)
    for name in given.data:
        print(f"\n{to_table(name, given.ways or USUAL[name], given.seeds, given.out)}")
    if failed:
        sys.exit(f"{failed} runs failed, and are missing above")


if __name__ == "__main__":
    main()
