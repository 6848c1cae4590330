"""What need a frozen network not say twice?

With the strategies head and last, what the frozen part says of a row is computed once, kept in a file and read from
there in every epoch, by this run and by later ones. A file is named after all that its numbers follow from: the frozen
weights, how rows become numbers, and what the rows hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit import row_file
from graftkit.activations import Boundary, find_boundary, probes
from graftkit.adapt import CACHED, AdaptConfig, Adapted, ClassifierAdaptConfig, solves
from graftkit.batches import fixed_batches
from graftkit.errors import UserError
from graftkit.evaluate import full_precision
from graftkit.failures import explain_memory
from graftkit.feed import load_batches
from graftkit.machine import cache_folder
from graftkit.task import Batch, Keepable, Lengths, Record, Row, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from graftkit.data import Splits
    from graftkit.images import ImageConfig
    from graftkit.run import Run

FORMAT = 2  # to be raised where the code that makes the numbers changes
IDS, KEPT = "ids", "activations"  # among the targets of all rows; among those of a batch
GB = 10**9
LIBRARIES = ("torch", "torchvision", "transformers", "timm", "tokenizers", "pillow")  # that make the numbers


@contextmanager
def cached(
    run: Run, task: Task, adapted: Adapted, splits: Splits, lengths: Lengths, config: AdaptConfig
) -> Iterator[Task]:
    """The task to learn with: one that reads what the frozen part says of train and dev, where that can be kept.

    Otherwise the task itself. Says and records what was kept, or why nothing is. Its rows of train and dev go through
    the model from the boundary on, all others the plain way; the model itself stays as it is.
    """
    if not isinstance(config, ClassifierAdaptConfig) or config.strategy not in CACHED or config.cache == "off":
        yield task
        return
    keeper, said = _open(run, task, adapted, splits, lengths, config)
    run.say(said)
    if keeper is None:
        run.record["cache"] = {"reason": said}
    yield task if keeper is None else keeper


def _open(
    run: Run, task: Task, adapted: Adapted, splits: Splits, lengths: Lengths, config: ClassifierAdaptConfig
) -> tuple[CachedTask | None, str]:
    """The task with its files, and what to say of them; or None, and why nothing is kept."""
    if not isinstance(task, Keepable):
        return None, "not cached: this task cannot be"
    if task.varies and config.views is None and not solves(config):  # a head is solved as evaluation sees rows
        return None, (
            "not cached: training rows look otherwise in each epoch; --adapt.views 5 keeps so many views of each, "
            "--image.augment none has but one"
        )
    if run.accelerator.state.dynamo_plugin.backend != "NO":
        return None, "not cached: torch.compile runs the network as a whole"
    began = time.monotonic()
    model = adapted.model.to(run.accelerator.device)
    places = probes(lengths["train"], len(splits.train))
    tokens = None if lengths["train"] is None else lengths["train"][places]
    rows = [splits.train[place] for place in places]
    boundary, where = find_boundary(task, model, rows, tokens)
    if not _agree(where):
        return None, "not cached: the processes do not find the same boundary"
    if boundary is None:
        return None, f"not cached: {where}"
    stored = _Stored(run, task, model, boundary, rows, tokens)
    views = config.views if task.varies else None
    plans = [stored.plan(splits.train, lengths["train"], views), stored.plan(splits.dev, lengths["dev"], None)]
    size = sum(plan.size for plan in plans)
    if size > config.cache_gb * GB:
        return None, f"not cached: {_readable(size)} of activations; --adapt.cache_gb is {config.cache_gb:g}"
    paths = [stored.path(plan) for plan in plans]
    made = [not run.once(partial(stored.is_good, path, plan)) for path, plan in zip(paths, plans, strict=True)]
    if any(made):
        run.say(f"the frozen part runs once, over each row: {where} is kept in the cache folder")
    for path, plan, missing in zip(paths, plans, made, strict=True):
        why = stored.open(path, plan, missing=missing)
        if why is not None:
            return None, f"not cached: {why}"
    run.once(lambda: row_file.keep_within(paths, int(config.cache_gb * GB)))
    seconds = time.monotonic() - began
    facts = {
        "boundary": boundary.at,
        "form": boundary.form.name,
        "rows": [plan.count for plan in plans],
        "views": views,
        "bytes": size,
        "seconds": round(seconds, 3),
        "found": not any(made),
    }
    run.record["cache"] = facts
    kept = f"{where} of {' + '.join(f'{plan.count:,}' for plan in plans)} rows, {_readable(size)}"
    said = f"kept in {seconds:.1f} s: {kept}" if any(made) else f"the frozen part need not run: found {kept}"
    return CachedTask(task, boundary, plans), said


class CachedTask:
    """A task that gives the model what is kept of the rows of train and dev, and the rest to do.

    All else, other rows too, is the task that is asked.
    """

    def __init__(self, task: Any, boundary: Boundary, plans: Sequence[_Plan]):
        self.task, self.boundary, self.plans = task, boundary, plans
        self.targets: dict[int, dict[str, Any]] = {}  # by plan, those of all its rows
        self.examples: dict[int, list[dict[str, Any]]] = {}  # by plan, its texts as numbers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def holds(self, rows: Sequence[Row], chance: tuple[int, int] | None) -> bool:
        """Whether what the model needs of these rows is kept: of augmented ones, as training sees them."""
        plan = self._plan(rows)
        return plan is not None and (plan.views is None or chance is not None)

    def gather(self, rows: Sequence[Row], numbers: np.ndarray, chance: tuple[int, int] | None) -> Batch:
        """A batch of rows that `holds` says yes to, with what is kept of them, and inputs that nobody reads.

        Epochs see the views of a row in turn; one that is drawn again in an epoch (see `batches.number_repeats`) is
        seen in the next view.
        """
        plan = self._plan(rows)
        again, places = np.divmod(numbers, len(rows))
        views = 0 if plan.views is None else (chance[1] + again) % plan.views
        kept = plan.kept.read(views * len(rows) + places)
        if plan.kept.ragged:  # as the model may look for the padding among the ids
            batch = self.task.collate([self._examples(plan)[place] for place in places.tolist()])
            return Batch(batch.ids, batch.inputs, batch.targets | {KEPT: kept})
        targets = {name: _some(values, places) for name, values in self._targets(plan).items()}
        ids = targets.pop(IDS)
        return Batch(ids, self._inputs(plan, len(places)), targets | {KEPT: kept})

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The task's own, from the boundary on."""
        with self._entered(model, batch):
            return self.task.loss(model, batch)

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """The task's own, from the boundary on."""
        with self._entered(model, batch):
            return self.task.predict(model, batch)

    def _entered(self, model: nn.Module, batch: Batch) -> Any:
        return self.boundary.entered(model, batch.targets[KEPT]) if KEPT in batch.targets else nullcontext()

    def _plan(self, rows: Sequence[Row]) -> _Plan | None:
        return next((plan for plan in self.plans if plan.rows is rows), None)

    def _inputs(self, plan: _Plan, rows: int) -> dict[str, Tensor]:
        """Of one token each, or pictures of one pixel: those of the first row serve for all."""
        inputs = self.task.collate([self.task.stand_in(plan.first, 1)]).inputs
        return {name: one.expand(rows, *one.shape[1:]) for name, one in inputs.items()}

    def _examples(self, plan: _Plan) -> list[dict[str, Any]]:
        """The texts of a split as numbers: little beside what is kept of each token."""
        if id(plan) not in self.examples:
            self.examples[id(plan)] = [self.task.encode(row, None) for row in plan.rows]
        return self.examples[id(plan)]

    def _targets(self, plan: _Plan) -> dict[str, Any]:
        """The ids of all rows of a split, and what `collate` says of them besides the inputs."""
        known = self.targets.get(id(plan))
        if known is None:
            batch = self.task.collate([self.task.stand_in(row, 1) for row in plan.light])
            known = self.targets[id(plan)] = {IDS: batch.ids, **batch.targets}
        return known


def _some(values: Any, places: np.ndarray) -> Any:
    return values[places] if hasattr(values, "shape") else [values[place] for place in places.tolist()]


@dataclass(eq=False)
class Activations:
    """What is kept of rows, in a memory-mapped file."""

    path: Path
    index: np.ndarray  # (rows, 2) int64: first byte, and how many tokens
    shape: tuple[int, ...]  # of what is kept of a row; of a text with all tokens, of a token
    dtype: torch.dtype
    ragged: bool  # whether rows have tokens of their own

    def __post_init__(self) -> None:
        self._bytes = np.memmap(self.path, dtype=np.uint8, mode="r").view(np.ndarray)
        if not self.ragged:
            each = int(np.prod(self.shape)) * self.dtype.itemsize
            end = row_file.HEADER + len(self.index) * each
            self._rows = self._bytes[row_file.HEADER : end].reshape(len(self.index), each)

    def read(self, places: np.ndarray) -> Tensor:
        """What is kept of the rows at these places, (rows, ...), tokens padded by zeros."""
        import torch

        if not self.ragged:
            block = torch.from_numpy(self._rows[places])
            return block.view(self.dtype).reshape(len(places), *self.shape)
        each = int(np.prod(self.shape)) * self.dtype.itemsize
        starts, tokens = self.index[places].T.tolist()
        block = np.zeros((len(places), max(tokens), each), dtype=np.uint8)
        for i, (start, count) in enumerate(zip(starts, tokens, strict=True)):
            block[i, :count] = self._bytes[start : start + count * each].reshape(count, each)
        return torch.from_numpy(block).view(self.dtype).reshape(len(places), max(tokens), *self.shape)


@dataclass(eq=False)
class _Plan:
    """What is to be kept of a split."""

    rows: Sequence[Row]
    tokens: np.ndarray | None  # of each row, (rows,); None for pictures
    views: int | None  # how many of each row, None where rows look the same in every epoch
    index: np.ndarray  # (rows, 2) int64
    size: int  # bytes
    kept: Activations | None = None

    @cached_property
    def light(self) -> Sequence[Row]:
        """The rows without the bytes of pictures."""
        heavy = [name for name in ("bytes",) if name in self.rows.column_names]
        return self.rows.remove_columns(heavy) if heavy else self.rows

    @cached_property
    def first(self) -> Row:
        """One of them."""
        return self.light[0]

    @property
    def count(self) -> int:
        """How many rows are kept, each view counted."""
        return len(self.index)


class _Stored:
    """The files of a model's activations."""

    def __init__(
        self, run: Run, task: Any, model: nn.Module, boundary: Boundary, rows: Sequence[Row], tokens: np.ndarray | None
    ):
        self.run, self.task, self.model, self.boundary = run, task, model, boundary
        kept = self._compute([task.encode(row, None) for row in rows], tokens)  # for its shape
        self.ragged = boundary.form.whole and tokens is not None
        self.shape, self.dtype = tuple(kept.shape[2 if self.ragged else 1 :]), kept.dtype
        self.each = int(np.prod(self.shape)) * self.dtype.itemsize

    def plan(self, rows: Sequence[Row], tokens: np.ndarray | None, views: int | None) -> _Plan:
        """Where in its file each row of a split will lie."""
        counts = np.ones(len(rows), np.int64) if not self.ragged else tokens.astype(np.int64)
        counts = np.tile(counts, views or 1)
        starts = row_file.HEADER + np.concatenate([[0], np.cumsum(counts)[:-1]]) * self.each
        return _Plan(rows, tokens, views, np.stack([starts, counts], axis=1), int(counts.sum()) * self.each)

    def path(self, plan: _Plan) -> Path:
        """Its file, which bears its key as its name."""
        return cache_folder() / "activations" / f"{self._key(plan)}.rows"

    def open(self, path: Path, plan: _Plan, *, missing: bool) -> str | None:
        """Let a plan read its file, which is made if `missing`, all processes together; returns why not, if so."""
        for make in (missing, True):  # another run may have removed what was just found
            why = self.make(path, plan) if make else None
            if why is not None:
                return why
            plan.kept = self.read(path)
            if all(_gather(plan.kept is not None)):
                return None
        return f"{path} cannot be read; set GRAFTKIT_CACHE to a folder of your own"

    def read(self, path: Path) -> Activations | None:
        """What a whole file holds; None where there is none that may be read."""
        index = row_file.read_index(path, path.stem)
        if index is None:
            return None
        try:
            return Activations(path, index, self.shape, self.dtype, self.ragged)
        except (OSError, ValueError):  # removed meanwhile, or another one in its place
            return None

    def is_good(self, path: Path, plan: _Plan) -> bool:
        """Whether there is a whole file, in which a few rows are what the network says of them now."""
        import torch

        found = self.read(path)
        if found is None or not np.array_equal(found.index, plan.index):
            return False
        places = probes(plan.tokens, len(plan.rows))
        chance = None if plan.views is None else (self.run.seed, 0)
        tokens = None if plan.tokens is None else plan.tokens[places]
        batch = next(load_batches(self.task, plan.rows, [np.array(places)], chance))
        now = self._compute_batch(batch, tokens).float().cpu()
        kept = found.read(np.array(places)).float()
        noise = 1e-4 if self.dtype == torch.float32 else 0.05
        for place, (one, other) in enumerate(zip(now, kept, strict=True)):
            wide = slice(None) if not self.ragged else slice(int(tokens[place]))
            if not torch.allclose(one[wide], other[wide], rtol=noise, atol=noise * float(one[wide].abs().max())):
                return False
        return True

    def make(self, path: Path, plan: _Plan) -> str | None:
        """Make the file, all processes together; returns why it cannot be, if so."""
        part, why = self.run.once(partial(self._begin, path, plan))
        if part is None:
            return why
        try:
            why = next((why for why in _gather(self._write(Path(part), plan)) if why is not None), None)
            if why is None:
                seal = partial(row_file.seal, Path(part), path, path.stem, plan.index)
                why = self.run.once(lambda: _tried(path.parent, seal))
        finally:
            if self.run.main:
                Path(part).unlink(missing_ok=True)
        return why

    def _begin(self, path: Path, plan: _Plan) -> tuple[str | None, str | None]:
        """A file of the right size to write into; or None, and why there is none."""
        parts: list[Path] = []

        def start() -> None:
            parts.append(row_file.begin(path))
            free = shutil.disk_usage(path.parent).free
            if plan.size > free:
                raise OSError(f"{_readable(plan.size)} are needed, and {_readable(free)} are free")
            os.truncate(parts[0], row_file.HEADER + plan.size)

        why = _tried(path.parent, start)
        if why is None:
            return str(parts[0]), None
        for part in parts:
            part.unlink(missing_ok=True)
        return None, why

    def _write(self, part: Path, plan: _Plan) -> str | None:
        """Compute what this process has to, and write it into its places."""

        def write() -> None:
            with part.open("r+b", buffering=0) as file:
                for view in range(plan.views or 1):
                    self._write_view(file.fileno(), plan, view)

        return _tried(part.parent, write)

    def _write_view(self, file: int, plan: _Plan, view: int) -> None:
        import torch

        accelerator = self.run.accelerator
        batches = fixed_batches(plan.tokens, len(plan.rows))
        mine = batches[accelerator.process_index :: accelerator.num_processes]
        chance = None if plan.views is None else (self.run.seed, view)
        for places, batch in zip(mine, load_batches(self.task, plan.rows, mine, chance), strict=True):
            with explain_memory(places, plan.tokens, len(places), training=False):
                kept = self._compute_batch(batch, None if plan.tokens is None else plan.tokens[places])
            numbers = kept.cpu().flatten(1).contiguous().view(torch.uint8).numpy()
            for row, place in zip(numbers, (view * len(plan.rows) + places).tolist(), strict=True):
                start, tokens = plan.index[place].tolist()
                os.pwrite(file, row[: tokens * self.each].data, start)

    def _compute(self, examples: list[dict[str, Any]], tokens: np.ndarray | None) -> Tensor:
        return self._compute_batch(self.task.collate(examples), tokens)

    def _compute_batch(self, batch: Batch, tokens: np.ndarray | None) -> Tensor:
        """What is kept of the rows of a batch, in the precision in which the run trains."""
        import torch

        accelerator = self.run.accelerator
        counts = None if tokens is None else torch.from_numpy(tokens.astype(np.int64))
        self.model.eval()
        with full_precision(), accelerator.autocast():
            return self.boundary.take(self.task, self.model, batch.to(accelerator.device), counts)

    def _key(self, plan: _Plan) -> str:
        """What the numbers follow from, as a name."""
        facts = {
            "format": FORMAT,
            "boundary": [self.boundary.at, str(self.boundary.slot), self.boundary.form.name],
            "shape": [self.shape, str(self.dtype)],
            "weights": self._weights,
            "settings": str(getattr(self.model, "config", None) or getattr(self.model, "pretrained_cfg", None)),
            "network": repr(self.model),  # of timm: what was set besides its pretrained_cfg
            "encoding": self.task.encoding(),
            "rows": _digest(self.task, plan.light),
            "views": None if plan.views is None else self._chance(plan.views),
            "precision": self.run.record["precision"],
            "device": self.run.accelerator.device.type,
            "versions": [version(name) for name in LIBRARIES],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]

    def _chance(self, views: int) -> list[Any]:
        """What views of a picture follow from."""
        return [self.run.seed, views, self.task.preprocessing.random_facts()]

    @cached_property
    def _weights(self) -> str:
        """SHA-256 of all that is frozen: parameters, and the buffers of modules of which nothing trains."""
        import torch

        whole = hashlib.sha256()
        for path, module in self.model.named_modules():
            own = list(module.named_parameters(recurse=False))
            frozen = [(name, p) for name, p in own if not p.requires_grad]
            if len(frozen) == len(own):
                frozen += list(module.named_buffers(recurse=False))
            for name, tensor in frozen:
                whole.update(f"{path}.{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return whole.hexdigest()


def check_views(config: AdaptConfig, image: ImageConfig | None = None) -> None:
    """Raise UserError for `--adapt.views` where no row has several; `image` is how pictures are read."""
    if not isinstance(config, ClassifierAdaptConfig) or config.views is None:
        return
    if image is None:
        raise UserError("--adapt.views does nothing with texts, which look the same in every epoch; leave it out")
    if image.mixes:
        raise UserError("--adapt.views with --image.mixup or .cutmix: each epoch mixes others; leave one of them out")
    if image.augment == "none" and image.erase == 0:
        raise UserError("--adapt.views does nothing with --image.augment none: each picture has one; leave it out")


def _digest(task: Any, rows: Sequence[Row]) -> str:
    """SHA-256 of what rows hold, in their order."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(f"{task.digest(row)}\n".encode())
    return whole.hexdigest()


def _tried(folder: Path, action: Callable[[], None]) -> str | None:
    """Do something to a file in a folder; returns in one line why it could not be done, if so."""
    try:
        action()
    except OSError as error:
        return f"nothing can be written to {folder} ({error.strerror or error}); set GRAFTKIT_CACHE to another folder"
    return None


def _gather(value: Any) -> list[Any]:
    """The values of all processes."""
    from accelerate.utils import gather_object

    return gather_object([value])


def _agree(value: Any) -> bool:
    return len(set(_gather(value))) == 1


def _readable(size: int) -> str:
    unit, name = next((one for one in ((GB, "GB"), (10**6, "MB")) if size >= one[0]), (1000, "kB"))
    return f"{size / unit:.{int(unit > 1000)}f} {name}"
