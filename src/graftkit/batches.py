"""Which rows go into which update?

Rows are chosen for an update first, from (seed, epoch) alone, and only then split over micro-batches and processes:
the same update has the same rows however many processes share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MOST_TOKENS = 4096  # of a forward pass in evaluation
POOL = 64  # updates whose rows are sorted by length together: more pads less, fewer mixes better


def updates_per_epoch(rows: int, rows_per_update: int) -> int:
    """How many updates see every row once."""
    return -(-rows // rows_per_update)


def epoch_updates(
    rows: int,
    lengths: np.ndarray | None,
    rows_per_update: int,
    seed: int,
    epoch: int,
    chances: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The rows of each update of an epoch: every row once, rows of like length together, in random order.

    Rows are shuffled, cut into pools, sorted by length within a pool, cut into updates, and the updates are shuffled.
    Updates differ by at most one row in size, so that no small one is left over at the end.

    With `chances`, (rows,), that sum to 1, as many rows are drawn by these, with repeats, in place of every row once;
    a row that is drawn again goes by a number of its own: see `number_repeats`.
    """
    import numpy as np

    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(rows) if chances is None else number_repeats(rng.choice(rows, rows, p=chances), rows)
    count = updates_per_epoch(rows, rows_per_update)
    bounds = np.linspace(0, rows, count + 1).round().astype(int)
    updates: list[np.ndarray] = []
    for first in range(0, count, POOL):
        cuts = bounds[first : first + POOL + 1]
        pool = order[cuts[0] : cuts[-1]]
        if lengths is not None:
            pool = pool[np.argsort(lengths[pool % rows], kind="stable")]
        updates += np.split(pool, cuts[1:-1] - cuts[0])
    return [updates[i] for i in rng.permutation(count)]


def number_repeats(drawn: np.ndarray, rows: int) -> np.ndarray:
    """Row + rows x how often it was drawn before, of rows that were drawn one after the other, (draws,) each.

    So that chance, such as what is cut out of a picture, is another each time.
    """
    import numpy as np

    together = np.argsort(drawn, kind="stable")
    first = np.searchsorted(drawn[together], drawn[together])  # where the draws of a row begin
    before = np.empty_like(drawn)
    before[together] = np.arange(len(drawn)) - first
    return drawn + rows * before


def shares(update: np.ndarray, process: int, processes: int, accumulate: int) -> list[np.ndarray]:
    """The micro-batches of an update that one process computes: `accumulate` arrays, some perhaps empty.

    Neighbours stay together, since an update is sorted by length; sizes differ by at most one.
    """
    import numpy as np

    parts = np.array_split(update, processes * accumulate)
    return parts[process::processes]


def fixed_batches(
    lengths: np.ndarray | None, rows: int, most_rows: int = 64, most_tokens: int = MOST_TOKENS
) -> list[np.ndarray]:
    """A split cut into batches for evaluation, by the split alone: longest first, at most so many tokens each."""
    import numpy as np

    if lengths is None:
        return [np.arange(i, min(i + most_rows, rows)) for i in range(0, rows, most_rows)]
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < rows:
        size = max(1, min(most_rows, most_tokens // max(1, int(lengths[order[start]]))))
        batches.append(order[start : start + size])
        start += size
    return batches


def some_windows(inputs: dict[str, Tensor], most_tokens: int = MOST_TOKENS) -> Iterator[dict[str, Tensor]]:
    """The inputs of a batch, (windows, tokens) each, at most so many tokens at a time, but a window at least.

    One row can have any number of windows, which `fixed_batches` leaves together.
    """
    windows, width = inputs["input_ids"].shape
    each = max(1, most_tokens // width)
    for start in range(0, windows, each):
        yield {name: values[start : start + each] for name, values in inputs.items()}
