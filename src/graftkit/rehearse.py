"""What would it cost?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from graftkit.adapt import Adapted, set_training_mode
from graftkit.failures import explain_memory
from graftkit.feed import Feed
from graftkit.machine import peak_memory
from graftkit.run import Run
from graftkit.task import Lengths, Task
from graftkit.train import TrainConfig, accumulate_gradients, planned_updates, prepare

if TYPE_CHECKING:
    from graftkit.data import Splits

TRIED = 4  # updates: the longest one, for memory, and some others, for time


def rehearse(
    run: Run,
    task: Task,
    adapted: Adapted,
    splits: Splits,
    lengths: Lengths,
    config: TrainConfig,
) -> dict[str, Any]:
    """Try a few updates, the one with the longest rows first, and say what the whole run would take.

    The weights that these updates change are thrown away. Returns seconds and GiB.
    """
    feed = Feed(task, splits.train, lengths["train"], config.batch_size, config.accumulate, run.seed, run.accelerator)
    model, optimizer = prepare(run.accelerator, adapted, config)
    set_training_mode(run.accelerator.unwrap_model(model))
    seconds, start = [], time.perf_counter()
    for update in feed.sample(TRIED):
        with explain_memory(update.rows, feed.lengths, config.batch_size):
            accumulate_gradients(run.accelerator, task, model, update).item()
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)  # with the time to read the rows
        start = time.perf_counter()
    updates = planned_updates(feed, config)
    per_update = sum(seconds[1:]) / len(seconds[1:]) if seconds[1:] else seconds[0]  # the first one warms up
    estimate = {"updates": updates, "seconds": round(updates * per_update, 1), "memory": peak_memory()}
    run.say(
        f"dry run: {updates} updates of {feed.rows_per_update} rows at {per_update:.2f} s take about "
        f"{updates * per_update / 60:.1f} minutes; peak memory {_gib(estimate['memory'])}; nothing is kept"
    )
    return estimate


def _gib(memory: dict[str, float | None]) -> str:
    gpu = "" if memory["gpu"] is None else f" and {memory['gpu']:.1f} GiB on the GPU"
    return f"{memory['process']:.1f} GiB{gpu}"
