"""How good is a model on rows that it did not choose?

Scores any classifier of texts, pictures or words, ours or not, into a run's folder of its own: tables, metrics and
report as a run has them, and no model. Predicted in fp32 and in the batches of a run, so that a run's own test rows
give its own table, byte for byte.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graftkit.calibrate import read_note
from graftkit.config import NotNegativeInt
from graftkit.data import DataConfig, ImageDataConfig, RowsToScore, load_test_pictures, load_test_texts
from graftkit.data.columns import Columns
from graftkit.data.sources import DEMO
from graftkit.data.tagged_rows import TaggedDataConfig, load_test_tagged
from graftkit.errors import UserError
from graftkit.evaluate import predict_rows
from graftkit.finish import score_by_name, write_tables
from graftkit.images import ImageConfig
from graftkit.report import ScoresConfig, metrics_text, write_report
from graftkit.report.config import check_unused
from graftkit.report.metric_modules import check_metrics
from graftkit.report.tables import table_hashes
from graftkit.run import Run, open_run
from graftkit.text import describe_lengths

if TYPE_CHECKING:
    from graftkit.classifiers import Classifier, Found


@dataclass(frozen=True)
class ModelConfig:
    """Which model is scored?"""

    name: str | None = None
    """folder of a run or of a model, or a Hub id; written as MODEL"""
    revision: str | None = None
    """branch, tag or commit of a Hub id"""


@dataclass(frozen=True)
class RowsConfig:
    """Which rows to score it on, and which of their columns."""

    path: str | None = None
    """data set: a Hub id, a file, or a folder as the recipes take it; 'demo' comes with graftkit"""
    subset: str | None = None
    """subset (configuration) of a data set on the Hub"""
    test: str | None = None
    """the rows: a file (for pictures also a folder), or a split of the path; by default the one named test, or the only
    one"""
    text: str | None = None
    """column of the text (by default the one that the run read, or the only one named like a text)"""
    text_pair: str | None = None
    """column of a second text that belongs to the first (by default the one that the run read, if any)"""
    image: str | None = None
    """column of the picture (by default the one that the run read, or the only one that holds pictures)"""
    label: str | None = None
    """column of the label (by default the one that the run read, or the only one named like a label)"""
    words: str | None = None
    """column of the words that are tagged; in CoNLL files its number from 1 (by default the one that the run read, or
    the only one named like words; in CoNLL files the first)"""
    tags: str | None = None
    """column of their tags; in CoNLL files its number from 1 (by default the one that the run read, or the only one
    named like tags; in CoNLL files the last)"""
    format: Literal["auto", "table", "conll"] | None = None
    """how files of words and tags are written: as tables or one word per line; by default as their names say"""
    bad_rows: Literal["error", "drop"] = "error"
    """what becomes of bad rows, and of those whose label the model does not have: an error, or they are dropped and
    counted"""


@dataclass(frozen=True)
class ReadingConfig:
    """How pictures are read."""

    workers: NotNegativeInt | None = None
    """processes that read pictures; by default as many as cores but one, at most 8, and none on fewer than 4 cores"""


@dataclass(frozen=True)
class FolderConfig:
    """Where do the results go?"""

    out: str | None = None
    """folder of the results; by default runs/evaluate-<time>"""
    headline: str | None = None
    """score that leads the report; by default that of the run, or the task's own"""
    keep_rows: bool = True
    """keep the texts, or small pictures, of the rows in the folder, for the report"""
    overwrite: bool = False
    """delete an earlier run in --run.out first"""

    # what `open_run` asks besides, and nobody can choose here
    seed, precision, resume, dry_run, trackers, until = 0, "fp32", False, False, None, "test"


@dataclass(frozen=True)
class Config:
    """All that the user may set."""

    backbone: ModelConfig = field(default_factory=ModelConfig)
    data: RowsConfig = field(default_factory=RowsConfig)
    image: ReadingConfig = field(default_factory=ReadingConfig)
    run: FolderConfig = field(default_factory=FolderConfig)
    report: ScoresConfig = field(default_factory=ScoresConfig)


def appraise(config: Config) -> dict[str, Any]:
    """Score a model, and leave tables, metrics and report in a folder; returns the metrics.

    A label that the data write and the model does not have is a UserError. Only where the model has no names for its
    labels (LABEL_0, LABEL_1 ..., which transformers makes up) may the data have their numbers: 0, 1 ...
    """
    from graftkit.classifiers import find_classifier, load_classifier

    if config.backbone.name is None:
        raise UserError("which model? Set --backbone.name to a folder or a Hub id")
    if config.data.path is None and not config.data.test:
        raise UserError("which rows? Set --data.path to a file, a folder or a data set on the Hub")
    check_metrics(config.report.metrics)
    run = open_run("evaluate", config)
    found = find_classifier(config.backbone.name, config.backbone.revision, tuple(READS))
    check_settings(found, config)
    check_metrics(config.report.metrics, found.labels)

    with run.phase("data"):
        path = DEMO if config.data.path is None else config.data.path  # it does not count: see `reads_path`
        data = replace(config.data, path=path)
        rows = READS[found.task].load(data, found.labels, found.columns, config.report.columns)

    with run.phase("model"):
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # on this machine
        classifier = load_classifier(found, ImageConfig(workers=config.image.workers), processes)
        task, model = classifier.task, classifier.model.to(run.accelerator.device)
        task.headline = found.run.get("headline", task.headline)
        run.introduce(task, rows)
        describe(run, found, classifier, rows)
        lengths = READS[task.name].measure(run, task, rows)

    with run.phase("evaluate"):
        records = predict_rows(run.accelerator, task, model, rows.test, lengths)
        tables = (run.folder, task, "test", rows.test, records, config.report, config.run.keep_rows)
        run.once(lambda: write_tables(*tables))
        score_by_name(run, task, "test", records, config.report.metrics)
    run.record |= {"report": asdict(config.report), "tables": run.once(lambda: table_hashes(run.folder))}
    run.save_record()
    metrics = run.once(lambda: write_report(run.folder))
    if run.main:
        print(f"\n{metrics_text(metrics)}\n\nreport: {run.folder / 'report.html'}", flush=True)
    run.end()
    return metrics


def check_settings(found: Found, config: Config) -> None:
    """Raise UserError for a setting that does nothing for this model."""
    reads = READS[found.task]
    for name in (name for other in READS.values() for name in other.columns):
        value = getattr(config.data, name)
        if value is not None and name not in reads.columns:
            raise UserError(f"--data.{name} {value} does nothing: {found.name} reads {reads.what}; leave it out")
    if config.image.workers is not None and found.reads_texts:
        raise UserError(
            f"--image.workers {config.image.workers} does nothing: {found.name} reads {reads.what}; leave it out"
        )
    if found.task == "token-classification":
        check_unused(config.report, "words and their tags")


def describe(run: Run, found: Found, classifier: Classifier, rows: RowsToScore) -> None:
    """Say and record which model it is; warn where the rows may be those that it was trained on."""
    run.record["backbone"] = {
        "name": found.name,
        "revision": found.revision,
        "commit": found.commit,
        "architecture": classifier.architecture,
    }
    note = read_note(found.folder)
    if note is not None:
        run.record["calibration"] = note
    run.say(f"{found.name}: {classifier.architecture} with {len(found.labels)} labels, in fp32")
    trained_on = ((found.run.get("data") or {}).get("sources") or {}).get("train")
    if trained_on == rows.facts["sources"]["test"]:
        run.say(
            f"{found.name} was trained on rows of {trained_on}, by its record: if these are those, it is flattered",
            warning=True,
        )


def _measure_texts(run: Run, task: Any, rows: RowsToScore) -> np.ndarray:
    """Tokens that are read of each text, (rows,); says how many texts are cut."""
    longest, lengths = task.tokenizer.model_max_length, task.lengths(rows.test)
    run.record["lengths"] = facts = describe_lengths(lengths, longest, cuts=task.cuts)
    if not task.cuts:
        return lengths
    if facts["truncated_rows"]:
        cut = f"{facts['truncated_rows']} rows ({facts['truncated_share']:.1%})"
        run.say(f"{cut} have more tokens than the {longest} that the model reads, and are cut")
    return np.minimum(lengths, longest)


def _describe_pictures(run: Run, task: Any, rows: RowsToScore) -> None:
    """Record how pictures are read; all cost the same."""
    preprocessing = task.preprocessing
    run.record["images"] = preprocessing.timm_settings() | {"workers": task.workers, "size": list(preprocessing.size)}
    height, width = preprocessing.size
    run.say(f"pictures: {height} x {width} pixels, {preprocessing.interpolation}")


def _load_texts(config: RowsConfig, labels: list[str], usual: Columns, extra: Sequence[str]) -> RowsToScore:
    columns = {"text": config.text, "text_pair": config.text_pair, "label": config.label}
    return load_test_texts(DataConfig(**_rows(config), **columns), labels, usual, extra)


def _load_pictures(config: RowsConfig, labels: list[str], usual: Columns, extra: Sequence[str]) -> RowsToScore:
    columns = {"image": config.image, "label": config.label}
    return load_test_pictures(ImageDataConfig(**_rows(config), **columns), labels, usual, extra)


def _load_words(config: RowsConfig, labels: list[str], usual: Columns, extra: Sequence[str]) -> RowsToScore:
    columns = {"words": config.words, "tags": config.tags, "format": config.format or "auto"}
    return load_test_tagged(TaggedDataConfig(**_rows(config), **columns), labels, usual, extra)


def _rows(config: RowsConfig) -> dict[str, Any]:
    """The settings that rows of all tasks have."""
    return {name: getattr(config, name) for name in ("path", "subset", "test", "bad_rows")}


@dataclass(frozen=True)
class Reads:
    """What models of a task read."""

    what: str
    columns: tuple[str, ...]  # the settings that say where it stands
    load: Callable[[RowsConfig, list[str], Columns, Sequence[str]], RowsToScore]  # for a model with these labels
    measure: Callable[[Run, Any, RowsToScore], np.ndarray | None]  # describes the rows; returns their lengths


READS = {
    "text-classification": Reads("texts", ("text", "text_pair", "label"), _load_texts, _measure_texts),
    "image-classification": Reads("pictures", ("image", "label"), _load_pictures, _describe_pictures),
    "token-classification": Reads("words", ("words", "tags", "format"), _load_words, _measure_texts),
}
"""For each task that is scored, what its models read."""
