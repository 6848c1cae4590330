"""How do the models of several runs become one? What `graft soup RUN RUN ...` does.

Their weights are averaged: of all, or of a greedy choice on dev (see `soups`). The new run has the tables of the first
one but for what the model says, so neither training nor baselines are made again; test is asked once, of what is kept.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit import calibrate
from graftkit.classifiers import find_classifier, load_classifier
from graftkit.errors import UserError
from graftkit.evaluate import predict_rows
from graftkit.export import ADAPTER, HUB_ID, check_saved
from graftkit.fingerprint import file_hashes, settings
from graftkit.finish import ask_overlong
from graftkit.images import ImageConfig
from graftkit.report import ReportConfig, write_report
from graftkit.report.metric_modules import measure_named
from graftkit.report.reading import SPLITS, Reading, check_classifier, read_folder, read_run
from graftkit.report.sections import is_evaluation
from graftkit.report.tables import table_hashes, write_predictions
from graftkit.run import write_aside
from graftkit.soups import average, put, soup, tell_soup, whole

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset
    from torch import Tensor, nn

    from graftkit.classifiers import Classifier
    from graftkit.soups import Weights
    from graftkit.task import Record, Row, Task

COPIED = ("config.yaml", "rows-*.parquet", "measures-*.parquet", "baselines-test.parquet", "audit.parquet")
"""What the new run has from the first one: settings, rows and simple answers are the same."""
OF_TRAINING = ("training", "soup", "wise_ft", "rate_range", "explanations", "peak_memory_gib", "energy")
"""What a record says of the making of one model."""
CONTENT = {"text-classification": ("text", "text_pair"), "image-classification": ("path", "bytes")}
"""For each task, the fields of a row that its model reads."""
BESIDE = ("augment", "workers", "cache")  # how pictures were read in training, which a saved model does not know


def find_runs(names: Sequence[str]) -> list[Reading]:
    """The runs in these folders, or in a folder of several seeds. UserError where their weights cannot be averaged."""
    folders = [folder for name in names for folder in _runs_in(Path(name))]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is named twice; name each run once")
    if len(folders) < 2:
        raise UserError(
            f"{folders[0]} is one run, and there is nothing to average; name two, or a run of several seeds"
        )
    readings = [read_folder(folder, SPLITS) for folder in folders]
    for reading in readings[1:]:
        _check_alike(readings[0], reading)
    return readings


def _runs_in(folder: Path) -> list[Path]:
    run = read_run(folder)
    if "folds" in run:
        raise UserError(
            f"{folder} holds folds: the dev and test rows of each are training rows of the others, so nothing could be "
            "said of their average; give runs of several seeds (--run.seeds)"
        )
    if "seeds" in run:
        return [seed for one in run["seeds"] for seed in _runs_in(folder / one["name"])]
    check_classifier(folder, run, "graft soup")
    if is_evaluation(run):
        raise UserError(f"{folder} is an evaluation, which holds no model; name the run that made it")
    if not (folder / "model").is_dir():
        raise UserError(f"{folder} holds no model (no model/); name a run that went to its end")
    if (folder / "model" / ADAPTER).exists():
        raise UserError(f"{folder} is an adapter, and this averages whole models; train it with --adapt.merge true")
    return [folder]


def _check_alike(first: Reading, other: Reading) -> None:
    """UserError where two runs did not start from the same weights, with the same labels, on the same rows."""
    for what, facts in ALIKE.items():
        one, another = facts(first.run), facts(other.run)
        if one != another:
            raise UserError(
                f"{other.folder} has not the {what} of {first.folder}; only runs that began as the same network, on "
                "the same rows, as --run.seeds gives them, have an average that means something"
            )


def _start(run: Mapping[str, Any]) -> list[Any]:
    return [run["backbone"].get(name) for name in ("name", "revision", "commit", "architecture")]


def _pictures(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (run.get("images") or {}).items() if name not in BESIDE}


ALIKE = {
    "task": lambda run: run["task"],
    "labels": lambda run: run["labels"],
    "pretrained model": _start,
    "rows": lambda run: {name: split["sha256"] for name, split in run["data"]["splits"].items()},
    "length of texts (--backbone.max_length)": lambda run: (run.get("lengths") or {}).get("max_length"),
    "size and colours of pictures": _pictures,
}
"""What must be the same, from run.json."""


@dataclass(frozen=True)
class Asker:
    """A task, and the rows of dev and test that a model is asked, in fp32 and in the batches of a run."""

    task: Task
    rows: Mapping[str, Dataset]
    accelerator: Accelerator

    def predict(self, model: nn.Module, split: str) -> list[Record]:
        """What a model says of a split."""
        task, rows = self.task, self.rows[split]
        lengths = task.lengths(rows)
        cut = lengths if lengths is None or not task.cuts else np.minimum(lengths, task.tokenizer.model_max_length)
        return predict_rows(self.accelerator, task, model, rows, cut)


def blend(
    readings: Sequence[Reading], rows: Mapping[str, Sequence[Row]], kind: str, out: Path, command: str
) -> dict[str, Any]:
    """Write a run into `out` whose model is a soup of those of some runs; returns its metrics.

    `rows`: those of dev and test, with their content. The temperatures that calibrated the runs are taken out of their
    weights before, and the soup gets its own.
    """
    from accelerate import Accelerator
    from transformers.utils import logging

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists; name another folder")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    began, first = time.perf_counter(), readings[0]
    asked = {split: _with_labels(first, split, rows[split]) for split in SPLITS}
    classifier, weights = _load(readings, asked["dev"])
    asker = Asker(classifier.task, asked, Accelerator())
    classifier.model.to(asker.accelerator.device)
    facts = _cook(asker, classifier.model, weights, readings, kind)
    calibration = _calibrate(classifier, first, asker.predict(classifier.model, "dev"), asked["dev"])
    out.mkdir(parents=True, exist_ok=True)
    for path in (path for pattern in COPIED for path in first.folder.glob(pattern)):
        shutil.copy2(path, out / path.name)
    (out / "log.jsonl").touch()  # nothing was trained
    _save(classifier, calibration, out / "model")
    record = _record(readings, classifier, facts, calibration, out) | _answer(asker, first, out)
    seconds = round(time.perf_counter() - began, 3)
    record |= {"command": command, "seconds": {"soup": seconds, "total": seconds}}
    write_aside(out / "run.json", json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return write_report(out)


def _cook(
    asker: Asker, model: nn.Module, weights: Sequence[Weights], readings: Sequence[Reading], kind: str
) -> dict[str, Any]:
    """Put the soup into the model, and say what is in it."""
    own, headline = whole(model), readings[0].run["headline"]

    def ask(chosen: Sequence[int]) -> float:
        put(own, average([weights[place] for place in sorted(chosen)]))
        return asker.task.score(asker.predict(model, "dev"))[headline]

    facts = soup(_names(readings), ask, kind, lower=headline in asker.task.lower)
    print(tell_soup(facts, headline, "of run"), flush=True)
    return facts | {"runs": len(readings)}


def _answer(asker: Asker, first: Reading, out: Path) -> dict[str, Any]:
    """Let the saved model, as anyone loads it, answer dev and test; what run.json says of that."""
    task, model = asker.task, asker.task.load(out / "model").to(asker.accelerator.device)
    predicted = {split: asker.predict(model, split) for split in SPLITS}
    for split, records in predicted.items():
        write_predictions(out, split, records, task.labels)
    files = {"files": file_hashes(out / "model"), "settings": settings(out / "model")}
    names = first.settings.get("metrics")
    named = {split: measure_named(names, task.labels, one)[0] for split, one in predicted.items()} if names else {}
    return {
        "saved": files | ask_overlong(asker.accelerator, task, model, asker.rows["test"]),
        "tables": table_hashes(out),
    } | ({"metrics": named} if names else {})


def _names(readings: Sequence[Reading]) -> list[str]:
    """What each run is called: the name of its folder, or the whole path where two have the same."""
    short = [reading.folder.name for reading in readings]
    return short if len(set(short)) == len(short) else [str(reading.folder) for reading in readings]


def _with_labels(reading: Reading, split: str, rows: Sequence[Row]) -> Dataset:
    """The rows that a run's table of a split has, in its order, as its task reads them."""
    from datasets import Dataset

    found = {row["id"]: row for row in rows}
    names = [name for name in CONTENT[reading.run["task"]] if name != "text_pair" or rows[0].get(name) is not None]
    return Dataset.from_list(
        [
            {"id": record["id"], "label": record["label"]} | {name: found[record["id"]].get(name) for name in names}
            for record in reading.records[split]
        ]
    )


def _load(readings: Sequence[Reading], rows: Dataset) -> tuple[Classifier, list[dict[str, Tensor]]]:
    """A model to ask, and the weights of each run as they were before they were calibrated."""
    several: list[dict[str, Tensor]] = []
    for reading in readings:
        classifier = load_classifier(find_classifier(str(reading.folder)), ImageConfig())
        temperature = (reading.run.get("calibration") or {}).get("temperature")
        if temperature is not None and not _divide(classifier, 1 / temperature, rows):
            raise UserError(f"{reading.folder}: its temperature cannot be taken out of its last layer; calibrate later")
        several.append({name: value.clone() for name, value in whole(classifier.model).items()})
        if {n: v.shape for n, v in several[-1].items()} != {n: v.shape for n, v in several[0].items()}:
            raise UserError(f"{reading.folder} has weights of other shapes than {readings[0].folder}; leave it out")
    return classifier, several


def _divide(classifier: Classifier, temperature: float, rows: Dataset) -> bool:
    """Divide the logits by a number, in the last layer; False where that cannot be done."""
    task, model = classifier.task, classifier.model
    few = task.collate([task.encode(rows[place], None) for place in range(min(calibrate.PROBED, len(rows)))])
    few = few.to(next(model.parameters()).device)
    return calibrate.fold(model, temperature, lambda: calibrate.logits_of(task.predict(model, few)))


def _calibrate(classifier: Classifier, first: Reading, dev: Sequence[Record], rows: Dataset) -> dict[str, Any]:
    """Give the soup a temperature, where the first run was to have one; what there is to know of it."""
    labels, usual = classifier.task.labels, ReportConfig()
    wanted, alpha = first.settings.get("calibrate", usual.calibrate), first.settings.get("alpha", usual.alpha)
    temperature, reason = calibrate.fit(dev, labels) if wanted else (None, "--report.calibrate false")
    if temperature is not None and not _divide(classifier, temperature, rows):
        temperature, reason = None, "its logits come from more than one last layer"
    return calibrate.describe(dev, labels, temperature, reason, alpha)


def _save(classifier: Classifier, calibration: dict[str, Any], place: Path) -> None:
    """Write the model's folder, and see that it holds the model."""
    place.mkdir()
    classifier.task.save(place, classifier.model)
    calibrate.write_note(place, calibration)
    check_saved(classifier.model, classifier.task.load(place))


def _record(
    readings: Sequence[Reading], classifier: Classifier, facts: dict[str, Any], calibration: dict[str, Any], out: Path
) -> dict[str, Any]:
    """run.json of the new run: what all of them have in common, and what is in the soup."""
    first, model = readings[0].run, out / "model"

    def common(kind: str) -> list[str]:
        return [line for line in first.get(kind) or [] if all(line in (one.run.get(kind) or []) for one in readings)]

    return {name: value for name, value in first.items() if name not in OF_TRAINING} | {
        "seed": [reading.run.get("seed") for reading in readings],
        "notes": [*common("notes"), tell_soup(facts, first["headline"], "of run")],
        "warnings": common("warnings"),
        "soup": facts,
        "calibration": calibration,
        "snippet": classifier.task.snippet(model),
        "hub_snippet": classifier.task.snippet(model, HUB_ID),
    }
