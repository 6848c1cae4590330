"""How do rows reach the model?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.batches import epoch_updates, shares, updates_per_epoch
from graftkit.task import Batch, Row, Task

if TYPE_CHECKING:
    from accelerate import Accelerator


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

    @property
    def rows_per_update(self) -> int:
        """Rows that an update sees, over all micro-batches and processes."""
        return self.batch_size * self.accumulate * self.accelerator.num_processes

    @property
    def updates_per_epoch(self) -> int:
        """Updates in which every row is seen once."""
        return updates_per_epoch(len(self.rows), self.rows_per_update)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Update]:
        """The updates of an epoch, without the first `skip`."""
        return self._encoded(self._updates(epoch)[skip:], epoch)

    def sample(self, count: int) -> Iterator[Update]:
        """A few updates of the first epoch, the one with the longest rows first."""
        updates = self._updates(0)
        if self.lengths is not None:
            updates.sort(key=lambda update: -int(self.lengths[update].max()))
        return self._encoded([updates[0], *updates[1 :: max(1, len(updates) // count)]][:count], 0)

    def _updates(self, epoch: int) -> list[np.ndarray]:
        return epoch_updates(len(self.rows), self.lengths, self.rows_per_update, self.seed, epoch)

    def _encoded(self, updates: list[np.ndarray], epoch: int) -> Iterator[Update]:
        from torch.utils.data import DataLoader

        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        parts = [shares(update, process, processes, self.accumulate) for update in updates]
        stand_in = [
            part if len(part) else update[:1] for update, mine in zip(updates, parts, strict=True) for part in mine
        ]
        examples = _Examples(self.task, self.rows, self.seed, epoch)
        loader = iter(DataLoader(examples, batch_sampler=stand_in, collate_fn=self.task.collate))
        for update, mine in zip(updates, parts, strict=True):
            batches = [next(loader).to(self.accelerator.device) for _ in mine]
            yield Update(update, batches, [len(part) > 0 for part in mine])


@dataclass(frozen=True)
class _Examples:
    """Encoded rows of one epoch, by index."""

    task: Task
    rows: Sequence[Row]
    seed: int
    epoch: int

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, self.epoch, int(index)])
        return self.task.encode(self.rows[int(index)], rng)
