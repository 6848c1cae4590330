"""Does a saved folder answer, elsewhere, as the run's table says?

A process that cannot import graftkit loads the folder with plain libraries and answers raw rows; what it says is held
against `predictions-test.parquet`, and what the folder holds against the run's record.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftkit.errors import UserError
from graftkit.export import ADAPTER
from graftkit.fingerprint import changes, file_hashes, settings
from graftkit.hub import rows, witness
from graftkit.metrics import classification
from graftkit.report.reading import check_classifier
from graftkit.report.tables import read_predictions
from graftkit.text import join_rows

ROWS = 64  # of test that are asked
TOLERANCE = 1e-4  # between two probabilities of one label
NEEDED = ("metrics.json", "log.jsonl", "predictions-dev.parquet", "predictions-test.parquet", "model")
MINUTES = 30  # for all folders that one process is asked about
OF_A_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of torchrun's
SHOWN = 4  # differences that an error names


@dataclass(frozen=True)
class Question:
    """What is asked of a folder, and what it must answer."""

    folder: Path  # of the model
    run: Mapping[str, Any]  # the record of the run that made it
    labels: list[str]
    records: list[dict[str, Any]]  # of the run's table, of the rows that are asked
    asked: list[Any]  # the same rows' contents
    batch: list[int]  # of these, the ones that are asked together, padded
    overlong: list[str] | None  # a text, or a pair, that has to be cut
    redrawn: int  # pictures that plain libraries read in another way, and are given as graftkit reads them


def verify(folder: Path, model: Path, data_path: str | None = None) -> dict[str, Any]:
    """Let a fresh process answer for a copy of a run's model; returns what verification.json says.

    Raises UserError that names what differs.
    """
    question = make_question(folder, model, data_path)
    (answer,), versions = ask([question])
    findings, facts = judge(question, answer)
    if findings:
        raise UserError(f"the model of {folder} does not answer as its table says: {shorten(findings)}")
    return facts | {"versions": versions}


def check_files(folder: Path, run: Mapping[str, Any]) -> None:
    """Raise UserError where a run's model is not, byte for byte, what the run saved; it names what changed."""
    model, saved = folder / "model", run["saved"]
    findings = changed_settings(saved["settings"], model) + changed_files(saved["files"], model)
    if findings:
        raise UserError(f"the model of {folder} is not the one that the run tested: {shorten(findings)}")


def shorten(findings: Sequence[str]) -> str:
    """The first differences, in one line."""
    more = f"; and {len(findings) - SHOWN} more" if len(findings) > SHOWN else ""
    return "; ".join(findings[:SHOWN]) + more


# the question


def make_question(folder: Path, model: Path, data_path: str | None = None) -> Question:
    """Rows of test to ask a folder about: the longest, and others evenly over the table; all, if they are few."""
    run = read_record(folder)
    labels, records = read_predictions(folder, "test")
    known = rows.rows_of_test(folder, run, data_path)
    sizes = [rows.size(run, row) for row in known]
    order = dict.fromkeys([int(np.argmax(sizes)), *np.linspace(0, len(known) - 1, min(ROWS, len(known))).astype(int)])
    places = [int(place) for place in order]
    asked, redrawn = [rows.content(run, known[place]) for place in places], 0
    if run["task"] == "image-classification":
        plain = [as_plain_libraries_read(content, run["images"]) for content in asked]
        redrawn = sum(one is not other for one, other in zip(plain, asked, strict=True))
        asked = plain
    by_length = sorted(range(len(asked)), key=lambda i: sizes[places[i]])
    batch = sorted({*by_length[: witness.BATCH // 2], *by_length[-witness.BATCH // 2 :]})
    return Question(model, run, labels, [records[i] for i in places], asked, batch, _overlong(run, known), redrawn)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a finished run. UserError where there is none, or the run did not finish."""
    if not (folder / "config.yaml").exists() or not (folder / "run.json").exists():
        raise UserError(f"{folder} is no run's folder (no run.json); give the --run.out of a recipe")
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        recipe, finished = run["recipe"], "saved" in run
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'run.json'} is no record of a run; run it again") from error
    check_classifier(folder, run, "graft push")
    if recipe == "evaluate":
        raise UserError(f"{folder} is what graft evaluate found of a model, and holds none; give the run of a recipe")
    several = run.get("seeds") or run.get("folds")
    if several:
        raise UserError(
            f"{folder} holds {len(several)} models; give the folder of one, such as {folder / several[0]['name']}"
        )
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        raise UserError(
            f"{folder}: this run did not finish (no {missing[0]}); go on with its command, --run.out {folder} "
            "--run.resume"
        )
    if not finished:
        raise UserError(f"{folder} is a run of an older graftkit, which kept no record of what it saved; run it again")
    return run


def _overlong(run: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> list[str] | None:
    probe = run["saved"].get("overlong")
    if probe is None:
        return None
    row = join_rows(known, probe["joined_rows"])
    return [row[name] for name in ("text", "text_pair") if name in row]


def as_plain_libraries_read(content: bytes, images: Mapping[str, Any]) -> bytes:
    """A picture's file; where plain Pillow makes other pixels of it, a PNG of those that graftkit reads.

    That is so of 16 bits, of what is transparent, and of what is cut since it is very long.
    """
    from PIL import Image, ImageOps

    from graftkit.images import middle
    from graftkit.pictures import open_picture

    channels = images["input_size"][0]
    with Image.open(io.BytesIO(content)) as picture:
        plain = ImageOps.exif_transpose(picture).convert("L" if channels == 1 else "RGB")
    ours = middle(open_picture(content, channels), min(images["size"]))
    if ours.size == plain.size and ours.tobytes() == plain.tobytes():
        return content
    file = io.BytesIO()
    ours.save(file, "PNG")
    return file.getvalue()


# the answer


def ask(questions: Sequence[Question]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What one fresh process answers to each question, and its libraries' versions."""
    with tempfile.TemporaryDirectory(prefix="graftkit-gate-") as place:
        asked, answers = Path(place, "questions.json"), Path(place, "answers.json")
        asked.write_text(json.dumps([_as_json(question, Path(place), i) for i, question in enumerate(questions)]))
        command = [sys.executable, "-P", witness.__file__, str(asked), str(answers)]
        alone = {name: value for name, value in os.environ.items() if name not in OF_A_GROUP}
        alone["CUDA_VISIBLE_DEVICES"] = ""  # the same arithmetic for all libraries
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=60 * MINUTES, cwd=place, env=alone, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(f"the process that checks the model did not answer in {MINUTES} minutes") from error
        if not answers.exists():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UserError(f"the process that checks the model failed: {last}")
        found = json.loads(answers.read_text(encoding="utf-8"))
    return found["answers"], found["versions"]


def _as_json(question: Question, place: Path, number: int) -> dict[str, Any]:
    """A question as the witness reads it; pictures go as files beside it."""
    is_text = question.run["task"] == "text-classification"
    asked = question.asked
    if not is_text:
        files = [place / f"{number}-{i}" for i in range(len(asked))]
        for file, content in zip(files, asked, strict=True):
            file.write_bytes(content)
        asked = [str(file) for file in files]
    config = question.folder / "config.json"
    return {
        "kind": "text" if is_text else "picture",
        "folder": str(question.folder.resolve()),
        "adapter": (question.folder / ADAPTER).exists(),
        "timm": config.exists() and "architecture" in json.loads(config.read_text(encoding="utf-8")),
        "channels": 3 if is_text else question.run["images"]["input_size"][0],
        "rows": asked,
        "batch": question.batch,
        "overlong": question.overlong,
    }


# the judgement


def changed_files(before: Mapping[str, str], folder: Path) -> list[str]:
    """Files of a folder that are not, byte for byte, what the run saved."""
    now = file_hashes(folder)
    lost = [f"{name} is missing" for name in before if name not in now]
    new = [f"{name} was not saved by the run" for name in now if name not in before]
    return lost + new + [f"{name} changed" for name in before if name in now and before[name] != now[name]]


def changed_settings(before: Mapping[str, Any], folder: Path) -> list[str]:
    """Settings in a folder's files that are not what the run saved."""
    try:
        return changes(dict(before), settings(folder))
    except ValueError as error:
        return [f"a file of settings is no JSON ({error})"]


def judge(question: Question, answer: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """What differs between an answer and the run's table, one line each; and the figures for verification.json."""
    if "error" in answer:
        return [f"it does not load ({answer['error']})"], {}
    truth = [dict(zip(question.labels, map(float, r["probabilities"]), strict=True)) for r in question.records]
    found, facts = _compare("alone", truth, answer["alone"])
    together = [truth[i] for i in question.batch]
    found_together, facts_together = _compare("padded", together, answer["batch"])
    findings = found + found_together
    figures = {"rows": len(truth), "redrawn": question.redrawn, "max_difference": facts}
    figures |= {"padded_batch": {"rows": len(together), "max_difference": facts_together}, "beyond_max_length": None}
    if "timm" in answer:
        findings += _compare("through timm", truth + together, answer["timm"])[0]
    if answer["overlong"] is not None:
        probe = question.run["saved"]["overlong"]["probabilities"]
        found, worst = _compare("longer than the model reads", [probe], [answer["overlong"]])
        findings += found
        figures["beyond_max_length"] = {"max_difference": worst}
    found, facts = _scores(question, answer["alone"])
    return findings + found, figures | facts


def _compare(
    how: str, truth: Sequence[Mapping[str, float]], said: Sequence[Mapping[str, float]]
) -> tuple[list[str], float]:
    """What differs between probabilities by label, and the largest difference."""
    if set(said[0]) != set(truth[0]):
        strange = sorted(set(said[0]) ^ set(truth[0]))[:3]
        return [f"other labels ({', '.join(strange)})"], float("inf")
    gaps = np.array([[abs(one[label] - other[label]) for label in one] for one, other in zip(truth, said, strict=True)])
    wrong = ~(gaps <= TOLERANCE)  # also where it is no number
    worst = float(np.nanmax(gaps)) if np.isfinite(gaps).any() else float("nan")
    if not wrong.any():
        return [], worst
    return [
        f"other probabilities for {wrong.any(axis=1).sum()} of {len(gaps)} rows ({how}; by up to {worst:.2g})"
    ], worst


def _scores(question: Question, said: Sequence[Mapping[str, float]]) -> tuple[list[str], dict[str, Any]]:
    """The headline over the rows, by the table and by the answers, and what their confusion matrices tell."""
    labels, name = question.labels, question.run["headline"]
    if set(said[0]) != set(labels) or not np.isfinite([list(row.values()) for row in said]).all():
        return [], {}
    answered = []
    for record, row in zip(question.records, said, strict=True):
        best = max(row, key=lambda label: row[label])
        tie = row[best] - row[record["prediction"]] <= 2 * TOLERANCE
        values = np.array([row[label] for label in labels], np.float32)
        answered.append(record | {"prediction": record["prediction"] if tie else best, "probabilities": values})
    ours, theirs = (_confusion(records, labels) for records in (question.records, answered))
    run, fresh = (
        float(classification.scores(*classification.arrays(records, labels))[name])
        for records in (question.records, answered)
    )
    facts = {"headline": {"name": name, "run": run, "fresh": fresh}, "confusion_matrix": "same"}
    if (ours == theirs).all():
        return [], facts
    moved = _moved_labels(question.records, answered, labels)
    return [moved or "another confusion matrix"], facts | {"confusion_matrix": "differs"}


def _confusion(records: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> np.ndarray:
    """(labels, labels): rows are the truth."""
    index = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), int)
    for record in records:
        counts[index[record["label"]], index[record["prediction"]]] += 1
    return counts


def _moved_labels(
    records: Sequence[Mapping[str, Any]], answered: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> str | None:
    """Which labels changed places, where the answers are the table's under other names."""
    from scipy.optimize import linear_sum_assignment

    ours, theirs = (np.stack([record["probabilities"] for record in rows]) for rows in (records, answered))
    gaps = np.stack([np.abs(ours[:, [i]] - theirs).max(axis=0) for i in range(len(labels))])  # (ours, theirs)
    left, right = linear_sum_assignment(gaps)
    moved = [f"what was {labels[i]!r} is now {labels[j]!r}" for i, j in zip(left, right, strict=True) if i != j]
    return f"labels changed places: {moved[0]}" if moved and gaps[left, right].max() <= TOLERANCE else None
