"""Are the labels right, and does test repeat train?

Asked of the pretrained backbone, since a network that was fine-tuned on wrong labels has learnt them: its features of
all rows, once, serve confident learning and the search for near-duplicates (`metrics.label_quality`). A run does it
with --report.audit, before it trains; `graft report RUN --audit` does it later, with what the run's settings name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.backbone import BackboneConfig
from graftkit.data import DataConfig, ImageDataConfig, load_pictures, load_splits
from graftkit.download import pin
from graftkit.errors import UserError
from graftkit.failures import explain_disk
from graftkit.features import pooled_features
from graftkit.heads import load_classifier
from graftkit.image_backbone import ImageBackboneConfig, load_image_classifier
from graftkit.images import ImageConfig, reading_processes
from graftkit.metrics import label_quality
from graftkit.report import ReportConfig
from graftkit.report.audit import CONTENT, PAIRS, TABLE, listed_pairs, listed_suspects
from graftkit.report.reading import check_classifier, read_run
from graftkit.report.sections import is_evaluation
from graftkit.report.tables import check_tables, table_hashes, written_aside
from graftkit.run import Run, write_aside
from graftkit.task import Lengths, Task
from graftkit.tasks.image_classification import ImageClassification
from graftkit.tasks.text_classification import TextClassification
from graftkit.text import load_tokenizer

if TYPE_CHECKING:
    import pyarrow as pa
    from accelerate import Accelerator

    from graftkit.data import Splits
    from graftkit.heads import Headed

MOST = {"train": 10_000, "dev": 5_000, "test": 5_000}  # rows that are looked at, drawn by the run's seed
ALIKE = 0.98  # cosine of standardised features from which two rows are nearly the same: see docs/decisions.md
METHOD = (
    "confident learning (Northcutt et al. 2021) with self-confidence on out-of-fold probabilities of a logistic "
    "regression over the standardised features of the pretrained backbone; near-duplicates by the cosine of these"
)


@dataclass(frozen=True)
class Rows:
    """The rows that are looked at, and what the pretrained backbone says of them."""

    splits: np.ndarray  # (rows,) str
    ids: np.ndarray  # (rows,) str
    labels: np.ndarray  # (rows,) int, places in `names`
    names: list[str]
    features: np.ndarray  # (rows, features) float32
    seconds: float  # that the backbone took


def make_audit(run: Run, task: Task, headed: Headed, splits: Splits, lengths: Lengths, settings: ReportConfig) -> None:
    """With --report.audit, look at the labels before the model trains: audit.parquet, and `audit` in the record."""
    if not settings.audit or run.settings.dry_run or run.settings.until == "dev":  # it reads test
        return
    if "audit" in run.record:  # of a run that is resumed
        return
    with run.phase("audit"):
        rows = observe(run.accelerator, task, headed, splits, lengths, run.settings.seed)
        run.record["audit"] = run.once(
            lambda: write_audit(run.folder, task, splits, rows, run.settings.seed, content=run.settings.keep_rows)
        )
    run.say(sentence(run.record["audit"]))


def audit_run(folder: Path, data_path: str | None = None) -> str:
    """Look at the labels of a finished run, and put what is found into its folder; says so in a sentence.

    The data and the checkpoint are those that its settings name; `data_path` is where the data lie now. UserError where
    they are gone or are others, and for an evaluation.
    """
    from accelerate import Accelerator
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    run = read_run(folder)
    settings = _check_run(folder, run)
    if data_path is not None:
        settings["data"]["path"] = data_path
    if run["backbone"].get("commit"):
        pin(settings["backbone"]["name"], settings["backbone"]["revision"], run["backbone"]["commit"])
    try:
        splits, load = LOADERS[run["task"]](settings)
    except UserError as error:
        raise UserError(f"--audit needs the data of {folder}: {error}. Set --data.path to where they lie") from error
    for split, facts in splits.facts["splits"].items():
        if facts["sha256"] != run["data"]["splits"][split]["sha256"]:
            path = settings["data"]["path"]
            raise UserError(f"{path} holds other {split} rows than {folder} was made with; set --data.path to those")
    seed, keep_rows = settings["run"]["seed"], settings["run"].get("keep_rows", True)
    task, headed, lengths = load(splits)
    rows = observe(Accelerator(), task, headed, splits, lengths, seed)
    run["audit"] = write_audit(folder, task, splits, rows, seed, content=keep_rows)
    if "tables" in run:  # the others' hashes stay: they say what the run made
        run["tables"][TABLE] = table_hashes(folder)[TABLE]
    write_aside(folder / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")
    return sentence(run["audit"])


def _check_run(folder: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run whose labels can be judged. UserError for one whose labels cannot, or that was edited."""
    import yaml

    if several := run.get("seeds") or run.get("folds"):
        raise UserError(
            f"--audit: {folder} holds several runs; give one of them, such as {folder / several[0]['name']}"
        )
    check_classifier(folder, run, "graft report --audit")
    if is_evaluation(run) or run.get("task") not in LOADERS:
        raise UserError(
            f"--audit: {folder} has no rows of train to judge labels by; give the run that trained the model"
        )
    check_tables(folder, run.get("tables"))
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--audit: no config.yaml in {folder}, which says where its data lie") from error
    if settings["backbone"]["name"] == "demo" and run["task"] == ImageClassification.name:
        raise UserError("--audit: the recipe makes the backbone of the demo itself; run it again with --report.audit")
    return settings


def observe(accelerator: Accelerator, task: Task, headed: Headed, splits: Splits, lengths: Lengths, seed: int) -> Rows:
    """Draw the rows, and ask the backbone; on every process."""
    started = time.perf_counter()
    chosen = {split: _draw(len(getattr(splits, split)), most, seed) for split, most in MOST.items()}
    drawn = {split: getattr(splits, split).select(places) for split, places in chosen.items()}
    costs = {split: None if lengths[split] is None else lengths[split][places] for split, places in chosen.items()}
    place = {label: i for i, label in enumerate(task.labels)}
    features = [pooled_features(accelerator, task, headed, rows, costs[split]) for split, rows in drawn.items()]
    return Rows(
        splits=np.repeat(list(drawn), [len(rows) for rows in drawn.values()]),
        ids=np.array([id for rows in drawn.values() for id in rows["id"]]),
        labels=np.array([place[label] for rows in drawn.values() for label in rows["label"]]),
        names=task.labels,
        features=np.concatenate(features),
        seconds=time.perf_counter() - started,
    )


def _draw(rows: int, most: int, seed: int) -> np.ndarray:
    """Places of the rows to look at, in order: all, or so many that chance picks."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])


def write_audit(folder: Path, task: Task, splits: Splits, rows: Rows, seed: int, *, content: bool) -> dict[str, Any]:
    """Judge the rows and write audit.parquet; returns the facts for the run's record.

    With `content`, the rows of train that the report shows come with what they hold; others have tables of their own.
    """
    import pyarrow as pa
    from pyarrow import parquet

    started = time.perf_counter()
    columns, facts = judge(rows, seed)
    table = pa.table(columns)
    if content:
        table = _with_content(table, task, splits)
    with explain_disk(folder), written_aside(folder / TABLE) as aside:
        parquet.write_table(table, aside, compression="zstd")
    left = {split: len(getattr(splits, split)) - facts["looked_at"][split] for split in MOST}
    return {
        "method": METHOD,
        **facts,
        "left_out": left,
        "seconds": round(rows.seconds + time.perf_counter() - started, 3),
    }


def judge(rows: Rows, seed: int) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The columns of audit.parquet, and the facts: how many labels look wrong, which, and what stands twice."""
    near = label_quality.neighbours(rows.features, rows.splits == "train", ALIKE)
    probabilities = label_quality.out_of_fold(rows.features, rows.labels, len(rows.names), near.groups, seed=seed)
    judged = np.isfinite(probabilities).all(axis=1)
    known, labels = probabilities[judged], rows.labels[judged]
    confident = label_quality.confident_classes(known, labels)
    counts = label_quality.confident_joint(confident, labels, len(rows.names))
    joint = label_quality.estimated_joint(counts, labels)
    suspect, score = np.zeros(len(judged), bool), np.full(len(judged), np.nan)
    suspect[judged] = (confident >= 0) & (confident != labels)
    score[judged] = label_quality.self_confidence(known, labels)
    suggested = rows.labels.copy()
    suggested[judged] = np.where(suspect[judged], confident, known.argmax(axis=1))
    alike = near.similarity >= ALIKE
    names, other = np.array(rows.names, object), rows.labels != rows.labels[near.nearest]
    columns = {
        "split": rows.splits.tolist(),
        "id": rows.ids.tolist(),
        "label": names[rows.labels].tolist(),
        "suggested": np.where(judged, names[suggested], None).tolist(),
        "score": np.where(judged, score, None).tolist(),
        "suspect": suspect.tolist(),
        "nearest": np.where(alike, rows.ids.astype(object)[near.nearest], None).tolist(),
        "nearest_label": np.where(alike, names[rows.labels[near.nearest]], None).tolist(),
        "similarity": np.where(alike, near.similarity.astype(float), None).tolist(),
    }
    present = [split for split in MOST if (rows.splits == split).any()]
    facts = {
        "looked_at": {split: int((rows.splits == split).sum()) for split in present},
        "judged": {split: int((judged & (rows.splits == split)).sum()) for split in present},
        "not_judged": int((~judged).sum()),
        "folds": label_quality.FOLDS,
        "agreement": float((known.argmax(axis=1) == labels).sum() / max(1, len(labels))),
        "suspects": {split: int((suspect & (rows.splits == split)).sum()) for split in present},
        "wrong_share": float(joint.sum() - np.trace(joint)),
        **_class_pairs(counts, joint, rows.names, len(labels)),
        "alike": ALIKE,
        "near_duplicates": {
            split: {"rows": int((alike & here).sum()), "other_label": int((alike & here & other).sum())}
            for split in ("dev", "test")
            for here in [rows.splits == split]
        },
    }
    return columns, facts


def _class_pairs(counts: np.ndarray, joint: np.ndarray, names: Sequence[str], rows: int) -> dict[str, Any]:
    """Which label stands for which: the pairs with most suspects, and how many there are."""
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    label, true = np.nonzero(wrong)
    order = np.lexsort((true, label, -wrong[label, true]))
    pairs = [
        {
            "label": names[i],
            "suggested": names[j],
            "suspects": int(wrong[i, j]),
            "estimated_rows": round(float(joint[i, j]) * rows, 1),
        }
        for i, j in zip(label[order[:PAIRS]], true[order[:PAIRS]], strict=True)
    ]
    return {"pairs": pairs, "pairs_found": len(order)}


def _with_content(table: pa.Table, task: Task, splits: Splits) -> pa.Table:
    """The table with what the rows of train hold that the report shows."""
    import pyarrow as pa

    rows = table.to_pylist()
    shown = {row["id"] for row in listed_suspects(rows) if row["split"] == "train"}
    shown |= {row["nearest"] for row in listed_pairs(rows)}
    places = [place for place, id in enumerate(splits.train["id"]) if id in shown]
    kept = {row["id"]: task.kept(row).content for row in splits.train.select(places)}
    for name in CONTENT:
        values = [kept.get(row["id"], {}).get(name) for row in rows]
        if any(value is not None for value in values):
            table = table.append_column(name, pa.array(values))
    return table


def sentence(facts: Mapping[str, Any]) -> str:
    """What was found, for the terminal and the notes of the run."""
    total, suspects = sum(facts["judged"].values()), sum(facts["suspects"].values())
    test = facts["near_duplicates"]["test"]["rows"]
    return (
        f"labels: {suspects:,} of {total:,} look wrong (about {facts['wrong_share']:.0%} by estimate); "
        f"{test:,} rows of test are nearly the same as one of train"
    )


# a finished run


Loaded = tuple[Task, "Headed", Lengths]


def _load_texts(settings: Mapping[str, Any]) -> tuple[Splits, Callable[[Splits], Loaded]]:
    """The splits that the settings name, and what loads the checkpoint for them."""
    backbone, seed = BackboneConfig(**settings["backbone"]), settings["run"]["seed"]

    def load(splits: Splits) -> Loaded:
        tokenizer = load_tokenizer(backbone, pairs=splits.pairs)
        task = TextClassification(tokenizer, splits.labels)
        tokens = {split: task.lengths(getattr(splits, split)) for split in MOST}
        lengths = {split: np.minimum(counts, tokenizer.model_max_length) for split, counts in tokens.items()}
        return task, load_classifier(backbone, splits.labels, tokenizer, seed), lengths

    return load_splits(DataConfig(**settings["data"]), seed, *_columns(settings)), load


def _load_pictures(settings: Mapping[str, Any]) -> tuple[Splits, Callable[[Splits], Loaded]]:
    """Likewise of pictures."""
    backbone, image = ImageBackboneConfig(**settings["backbone"]), ImageConfig(**settings["image"])

    def load(splits: Splits) -> Loaded:
        model = load_image_classifier(backbone, image, splits.labels, settings["run"]["seed"])
        workers = reading_processes(image)
        task = ImageClassification(model.preprocessing, splits.labels, splits.train, workers)
        return task, model.headed, dict.fromkeys(MOST)

    return load_pictures(ImageDataConfig(**settings["data"]), settings["run"]["seed"], *_columns(settings)), load


def _columns(settings: Mapping[str, Any]) -> tuple[tuple[str, ...], str | None]:
    """The columns that the run read for its report, and the one whose values the cuts kept together."""
    report = ReportConfig(**settings.get("report") or {})
    return report.columns, report.group


LOADERS = {"text-classification": _load_texts, "image-classification": _load_pictures}
"""For each task, what reads the splits that a run's settings name, and its checkpoint."""
