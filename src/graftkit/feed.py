"""How do rows reach the model?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.batches import epoch_updates, shares, updates_per_epoch
from graftkit.errors import UserError
from graftkit.task import Batch, Row, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor
    from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Update:
    """One update's rows, and the micro-batches of them that this process computes."""

    rows: np.ndarray  # (rows,) indices into the split, of all processes
    micro_batches: list[Batch]
    real: list[bool]  # False for a stand-in, where this process has no row left: it takes part, but counts nothing


@dataclass(frozen=True)
class Feed:
    """The training rows of a process, encoded and padded, update by update: a function of (seed, epoch)."""

    task: Task
    rows: Sequence[Row]
    lengths: np.ndarray | None
    batch_size: int
    accumulate: int
    seed: int
    accelerator: Accelerator
    chances: np.ndarray | None = None  # (rows,), of drawing each row, with repeats; None: every row once an epoch

    @property
    def rows_per_update(self) -> int:
        """Rows that an update sees, over all micro-batches and processes."""
        return self.batch_size * self.accumulate * self.accelerator.num_processes

    @property
    def updates_per_epoch(self) -> int:
        """Updates in which every row is seen once, or as many are drawn."""
        return updates_per_epoch(len(self.rows), self.rows_per_update)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Update]:
        """The updates of an epoch, without the first `skip`."""
        return self._encoded(self._updates(epoch)[skip:], epoch)

    def sample(self, count: int) -> Iterator[Update]:
        """A few updates of the first epoch, the one with the longest rows first."""
        updates = self._updates(0)
        if self.lengths is not None:
            updates.sort(key=lambda update: -int(self.lengths[update % len(self.rows)].max()))
        return self._encoded([updates[0], *updates[1 :: max(1, len(updates) // count)]][:count], 0)

    def _updates(self, epoch: int) -> list[np.ndarray]:
        return epoch_updates(len(self.rows), self.lengths, self.rows_per_update, self.seed, epoch, self.chances)

    def _encoded(self, updates: list[np.ndarray], epoch: int) -> Iterator[Update]:
        """These updates, whose rows may go by the numbers of `batches.number_repeats`."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        parts = [shares(update, process, processes, self.accumulate) for update in updates]
        stand_in = [
            part if len(part) else update[:1] for update, mine in zip(updates, parts, strict=True) for part in mine
        ]
        batches = load_batches(self.task, self.rows, stand_in, (self.seed, epoch))
        for update, mine in zip(updates, parts, strict=True):
            here = [next(batches).to(self.accelerator.device) for _ in mine]
            yield Update(update % len(self.rows), here, [len(part) > 0 for part in mine])


def load_batches(
    task: Task, rows: Sequence[Row], batches: Sequence[np.ndarray], chance: tuple[int, int] | None
) -> Iterator[Batch]:
    """Encode and stack the rows of each batch, in order, in as many processes as the task asks for.

    `chance` is (seed, epoch) in training, from which each row's generator follows, and None in evaluation. A row that
    is drawn again in an epoch goes by a number of its own: see `batches.number_repeats`. An encoding process that dies
    is a UserError that names the rows that were being read.
    """
    import torch
    from torch.utils.data import DataLoader

    holds = getattr(task, "holds", None)  # of Gathering, which tasks around another pass on by `__getattr__`
    if holds is not None and holds(rows, chance):
        yield from (task.gather(rows, numbers, chance) for numbers in batches)
        return
    workers = min(task.workers, len(batches))
    at = torch.full((max(1, workers),), -1, dtype=torch.int64).share_memory_()
    examples = _Examples(task, rows, chance, at)
    loader = DataLoader(
        examples,
        batch_sampler=batches,
        collate_fn=examples.collate,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # spawned ones would import torch again, every epoch
        worker_init_fn=_leave_signals_to_the_parent,
    )
    try:
        for batch in _iterate(loader):
            if isinstance(batch, UserError):
                raise UserError(str(batch), everywhere=True)
            yield batch
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        said = "DataLoader worker" in str(error) and "exited unexpectedly" in str(error)
        handing_over = not isinstance(error, RuntimeError)  # it died while its batch was fetched
        if not workers or not (said or handing_over):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"a process that reads rows died ({reason}); it was at {examples.being_read()}: "
            "look at these, or set fewer --image.workers if the machine ran out of memory",
            everywhere=True,
        ) from error


def _leave_signals_to_the_parent(worker: int) -> None:
    """A signal to all processes of a run (Ctrl-C, a cluster's SIGTERM) must not take the rows from the last update."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _iterate(loader: DataLoader) -> Iterator[Any]:
    """The loader's batches; a worker that died is an error where its batch is asked for, and nowhere else.

    torch handles SIGCHLD by raising that error wherever the program then stands, such as within a backward pass.
    """
    import signal
    import threading

    batches = iter(loader)
    if loader.num_workers and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return batches


@dataclass(frozen=True)
class _Examples:
    """Encoded rows, by index."""

    task: Task
    rows: Sequence[Row]
    chance: tuple[int, int] | None
    at: Tensor  # (workers,) int64 in shared memory: the row that each worker is at

    def __getitem__(self, index: int) -> dict[str, Any] | UserError:
        """A row as numbers. An error is returned: raised, it would leave a worker as a traceback of many lines."""
        from torch.utils.data import get_worker_info

        (again, index), worker = divmod(int(index), len(self.rows)), get_worker_info()
        self.at[worker.id if worker else 0] = index
        drawn = [index, again] if again else [index]
        rng = None if self.chance is None else np.random.default_rng([*self.chance, *drawn])
        try:
            return self.task.encode(self.rows[index], rng)
        except UserError as error:
            return error

    def collate(self, examples: list[dict[str, Any] | UserError]) -> Batch | UserError:
        """The rows' batch, or the first error among them."""
        errors = (example for example in examples if isinstance(example, UserError))
        return next(errors, None) or self.task.collate(examples)

    def being_read(self) -> str:
        """What the workers are at: files, or else ids of rows."""
        rows = [self.rows[index] for index in self.at.tolist() if index >= 0]
        return ", ".join(row.get("path") or row["id"] for row in rows) or "no row yet"
