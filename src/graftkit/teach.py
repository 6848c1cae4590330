"""What can be learned from a larger model?

Distillation (Hinton et al. 2015): the answers of a teacher, softened by a temperature, tell of each row how like the
other labels it is, and a student learns them beside the labels (`losses.CrossEntropy`). What the teacher says of a row
that looks the same in every epoch is asked once and kept in a file. Of pictures that are cut anew in each epoch, it is
asked in training, about the very view that the student sees: "a good teacher is patient and consistent" (Beyer et al.
2022).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit import checkpoint, row_file
from graftkit.adapt import AdaptConfig
from graftkit.classifiers import CLASSIFIERS, Found, Located, load_classifier, locate, read_labels
from graftkit.errors import UserError
from graftkit.evaluate import predict_rows
from graftkit.images import ImageConfig
from graftkit.losses import LossConfig
from graftkit.machine import cache_folder, threads, versions
from graftkit.run import Run
from graftkit.task import Batch, Row, Task
from graftkit.train import CHECKPOINTS, TrainConfig

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from graftkit.data import Splits
    from graftkit.images import Preprocessing

FORMAT = 1  # to be raised where the code that asks the teacher changes
TRIED = 64  # rows that the teacher answers in a dry run, to see how long it takes


@dataclass(frozen=True)
class Teacher:
    """A trained classifier that has the student's labels."""

    found: Found
    task: Task  # that asks it: its own tokenizer, or preprocessing of pictures
    model: nn.Module  # in fp32 and evaluation mode
    architecture: str
    order: list[int]  # where it has each of the student's labels
    weights: str  # their hash

    @property
    def sha256(self) -> str:
        """Of all that its answers follow from, but for rows and machine."""
        facts = [self.weights, self.found.settings, self.task.encoding(), self.found.labels]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


class Taught:
    """A task whose loss knows what a teacher says of the rows; all else is the task."""

    def __init__(self, task: Task, ask: Callable[[Batch], Tensor]):
        self.task, self.ask = task, ask

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The task's, with the teacher's logits (rows, labels) among the targets, as `teacher`."""
        return self.task.loss(model, replace(batch, targets=batch.targets | {"teacher": self.ask(batch)}))


def has_teacher(config: TrainConfig) -> bool:
    """Whether a teacher was asked for."""
    return isinstance(config, LossConfig) and config.teacher is not None


def find_teacher(config: LossConfig, task: str | None = None) -> Located:
    """The teacher by its files. Raises UserError where there is none, it does not choose one label for a row, or it is
    for another task than the student.
    """
    try:
        located = locate(config.teacher)
    except UserError as error:
        raise UserError(f"--train.teacher {error}") from error
    if located.task not in CLASSIFIERS:
        raise UserError(
            f"--train.teacher {config.teacher} is a model for {located.task}; name one that chooses one of several "
            "labels for a text or a picture"
        )
    if task is not None and located.task != task:
        raise UserError(
            f"--train.teacher {config.teacher} is a model for {located.task}, and the student is one for {task}; "
            "name a teacher of the same kind"
        )
    return located


def check_costs(adapt: AdaptConfig, config: TrainConfig, task: str | None = None, *, resumed: bool = False) -> None:
    """Raise UserError for a loss that this way of adapting cannot have, and for a teacher that is none.

    A run that is `resumed` may be at its end, and need its teacher no more; and it keeps to the teacher's commit, which
    is not known yet.
    """
    if not has_teacher(config):
        return
    if not resumed:
        find_teacher(config, task)
    if adapt.views is not None:
        raise UserError(
            "--train.teacher with --adapt.views: the teacher is asked about the pictures that the student sees, and of "
            "kept views there are none; leave one of them out"
        )


def check_teacher(run: Run, labels: Sequence[str], config: LossConfig) -> None:
    """Raise UserError where a teacher is gone, or has other labels than the rows, and the run may still need it."""
    if has_teacher(config) and not (run.settings.resume and _may_have_ended(run, config)):
        check_labels(config.teacher, read_labels(find_teacher(config)).labels, labels)


def _may_have_ended(run: Run, config: TrainConfig) -> bool:
    """Whether an earlier part of a run may have trained to the end, by its folder; `has_ended` knows, when rows are
    measured.
    """
    path, record = checkpoint.newest(run.folder / CHECKPOINTS), run.folder / "run.json"
    if path is None:
        return False
    plan = json.loads(record.read_text(encoding="utf-8")).get("plan") if record.exists() else None
    return plan is None or config.patience is not None or checkpoint.read_state(path).update >= plan["updates"]


def taught(run: Run, task: Task, splits: Splits, config: LossConfig) -> Task:
    """The task, taught by `config.teacher`; says and records who that is, and how well it does on dev."""
    with run.phase("teacher"):
        teacher = load_teacher(run, task, config)
        _tell(run, teacher, splits, config)
        if task.varies:
            return Taught(task, asked_about_views(run, teacher, task.preprocessing))
        return Taught(task, kept_answers(run, teacher, splits.train))


def tried(run: Run, task: Task, splits: Splits, config: LossConfig) -> tuple[Task, float]:
    """The task as `taught` has it, for a dry run; says, and returns, how many seconds the teacher takes beforehand."""
    teacher, rows = load_teacher(run, task, config), splits.train
    few = rows.select(np.unique(np.linspace(0, len(rows) - 1, TRIED, dtype=int)))
    start = time.perf_counter()
    predict_rows(run.accelerator, teacher.task, teacher.model, few, _lengths(teacher.task, few))
    each = (time.perf_counter() - start) / len(few)
    seconds = round(each * (len(splits.dev) + (0 if task.varies else len(rows))), 1)
    asked = "dev" if task.varies else "train and dev (of dev alone, where an earlier run has kept the others)"
    run.say(f"dry run: before the first update, the teacher answers the rows of {asked}, in about {seconds:.1f} s")
    if task.varies:
        return Taught(task, asked_about_views(run, teacher, task.preprocessing)), seconds
    return Taught(task, partial(_made_up, run.accelerator.device, len(task.labels))), seconds


def _made_up(device: torch.device, labels: int, batch: Batch) -> Tensor:
    """Logits (rows, labels), all alike, that cost what kept ones do."""
    import torch

    return torch.zeros(len(batch.ids), labels, device=device)


def load_teacher(run: Run, task: Task, config: LossConfig) -> Teacher:
    """Raises UserError where its labels, or what it reads, are not those of the task."""
    located = find_teacher(config, task.name)
    found = read_labels(replace(located, revision=located.commit))  # of a run that is resumed, the commit it had
    check_labels(config.teacher, found.labels, task.labels)
    workers = None if found.reads_texts else task.preprocessing.config.workers
    classifier = load_classifier(found, ImageConfig(workers=workers), int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if found.reads_texts and not classifier.task.tokenizer.is_fast:
        raise UserError(f"--train.teacher {config.teacher}: its tokenizer has no fast version (tokenizer.json)")
    order = [found.labels.index(label) for label in task.labels]
    model = classifier.model.to(run.accelerator.device).requires_grad_(False)
    return Teacher(found, classifier.task, model, classifier.architecture, order, hash_weights(model))


def check_labels(name: str, theirs: Sequence[str], labels: Sequence[str]) -> None:
    """Raise UserError, which names the difference, where a teacher has other labels; their order does not matter."""
    lacks = [label for label in labels if label not in theirs]
    more = [label for label in theirs if label not in labels]
    if lacks or more:
        parts = [f"lacks {_some(lacks)}"] * bool(lacks) + [f"has {_some(more)}, which train lacks"] * bool(more)
        raise UserError(
            f"--train.teacher {name} {' and '.join(parts)}; a teacher needs the same {len(labels)} labels, by name"
        )


def kept_answers(run: Run, teacher: Teacher, rows: Sequence[Row]) -> Callable[[Batch], Tensor]:
    """What the teacher says of the rows of a batch, from a file in the cache folder, made where there is none yet.

    It goes by all that the answers follow from: see `answers_key`.
    """
    import torch

    key = run.once(lambda: answers_key(teacher, rows, run.accelerator.device.type))
    path = cache_folder() / "teachers" / f"{key}.logits"
    how = "found in the cache folder"
    if not run.once(lambda: _read(path, key, rows, teacher) is not None):
        records = predict_rows(run.accelerator, teacher.task, teacher.model, rows, _lengths(teacher.task, rows))
        run.once(lambda: _write(path, key, np.stack([record["logits"] for record in records])))
        how = "asked now, and kept in the cache folder"
    run.say(f"the teacher's answers to {len(rows):,} training rows: {how}")
    logits = torch.from_numpy(_read(path, key, rows, teacher)[:, teacher.order]).to(run.accelerator.device)
    places = {id: place for place, id in enumerate(rows["id"])}

    def ask(batch: Batch) -> Tensor:
        return logits[[places[id] for id in batch.ids]]

    return ask


def asked_about_views(run: Run, teacher: Teacher, student: Preprocessing) -> Callable[[Batch], Tensor]:
    """What the teacher says of the pixels of a batch, as the student sees them: augmented, and perhaps mixed."""
    import torch

    reads = teacher.task.preprocessing
    if reads.channels < student.channels:
        raise UserError(
            f"--train.teacher {teacher.found.name} reads grey pictures, and the student coloured ones; with "
            "--image.augment none each reads the files in its own way"
        )
    run.say("the teacher is asked in training, about each picture as the student sees it; nothing is kept")

    def ask(batch: Batch) -> Tensor:
        seen = {"pixels": as_teacher_reads(batch.inputs["pixels"], student, reads)}
        with torch.no_grad(), run.accelerator.autocast():
            return teacher.task.logits(teacher.model, replace(batch, inputs=seen)).float()[:, teacher.order]

    return ask


def as_teacher_reads(pixels: Tensor, student: Preprocessing, teacher: Preprocessing) -> Tensor:
    """The student's pixels, (rows, channels, height, width) from 0 to 255, in the teacher's size and channels.

    They are not normalised yet, so each has its own mean and deviation.
    """
    from torch.nn.functional import interpolate

    if student.blue_first != teacher.blue_first:
        pixels = pixels.flip(1)
    if student.channels < teacher.channels:
        pixels = pixels.expand(-1, teacher.channels, -1, -1)
    if student.size != teacher.size:
        how = teacher.interpolation if teacher.interpolation in ("bilinear", "bicubic") else "bilinear"
        pixels = interpolate(pixels.float(), teacher.size, mode=how, antialias=True).clamp(0, 255)
    return pixels


def answers_key(teacher: Teacher, rows: Sequence[Row], device: str) -> str:
    """All that the teacher's answers follow from, as a name: its weights, how it reads, the rows, who computes it."""
    held = [name for name in ("text", "text_pair", "sha256") if name in rows.column_names]
    contents = hashlib.sha256()
    for row in rows.select_columns(held):  # of pictures, not their bytes
        contents.update(teacher.task.digest(row).encode())
    settings = teacher.model.config.to_dict() if hasattr(teacher.model, "config") else {}
    settings.pop("_name_or_path", None)  # where it lies is no matter
    facts = {
        "format": FORMAT,
        "weights": teacher.weights,
        "network": [repr(teacher.model), settings, teacher.found.settings],
        "encoding": teacher.task.encoding(),
        "rows": contents.hexdigest(),
        "labels": teacher.found.labels,
        "computed": [device, threads(), versions()],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def hash_weights(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers, with their names and shapes."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _lengths(task: Task, rows: Sequence[Row]) -> np.ndarray | None:
    """Tokens of each row that a teacher of texts reads, by its own tokenizer."""
    lengths = task.lengths(rows)
    return None if lengths is None else np.minimum(lengths, task.tokenizer.model_max_length)


def _read(path: Path, key: str, rows: Sequence[Row], teacher: Teacher) -> np.ndarray | None:
    """The answers, (rows, labels of the teacher) float32, which stand where other row files have their index."""
    logits = row_file.read_index(path, key)
    return logits if logits is not None and logits.shape == (len(rows), len(teacher.found.labels)) else None


def _write(path: Path, key: str, logits: np.ndarray) -> None:
    try:
        part = row_file.begin(path)
    except OSError as error:
        cure = "set GRAFTKIT_CACHE to another folder"
        raise UserError(
            f"--train.teacher: its answers cannot be kept in {path.parent}: {error.strerror}; {cure}"
        ) from error
    try:
        part.write_bytes(bytes(row_file.HEADER))
        row_file.seal(part, path, key, logits)
    finally:
        part.unlink(missing_ok=True)


def _tell(run: Run, teacher: Teacher, splits: Splits, config: LossConfig) -> None:
    """Ask the teacher about dev; say and record who it is. Warn where it may have learned from rows of dev or test."""
    records = predict_rows(run.accelerator, teacher.task, teacher.model, splits.dev, _lengths(teacher.task, splits.dev))
    score = teacher.task.score(records)[run.headline]
    run.record["teacher"] = {
        "name": teacher.found.name,
        "commit": teacher.found.commit,
        "sha256": teacher.sha256,
        "kind": teacher.found.kind,
        "architecture": teacher.architecture,
        "parameters": sum(parameter.numel() for parameter in teacher.model.parameters()),
        "temperature": config.temperature,
        "share": config.teacher_share,
        "dev": {run.headline: score},
    }
    run.say(f"teacher: {config.teacher} ({teacher.architecture}), {run.headline} {score:.4f} on dev")
    theirs, mine = teacher.found.run.get("data") or {}, run.record["data"]
    seen = [split for split in ("dev", "test") if _fingerprint(theirs, split) != _fingerprint(mine, split)]
    if seen and theirs.get("sources") == mine.get("sources"):
        run.say(
            f"{config.teacher} was trained on the data of this run, but other rows of it: it may know rows of "
            f"{' and '.join(seen)}, which would flatter the scores of its student; cut them alike (--data.seed)",
            warning=True,
        )


def _fingerprint(data: dict[str, Any], split: str) -> str | None:
    """Of a split, as the record of a run has it."""
    return ((data.get("splits") or {}).get(split) or {}).get("sha256")


def _some(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    return ", ".join(repr(label) for label in labels[:3]) + more
