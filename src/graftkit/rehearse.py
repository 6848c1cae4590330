"""What would it do, and what would it cost?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graftkit.adapt import AdaptConfig, Adapted, set_training_mode, solves
from graftkit.averaging import Average
from graftkit.batches import fixed_batches
from graftkit.blocks import depths_of, has_decoder
from graftkit.errors import UserError
from graftkit.evaluate import predict_rows
from graftkit.failures import explain_memory
from graftkit.feed import Feed
from graftkit.machine import peak_memory
from graftkit.optim import remember_start
from graftkit.rate_range import rising
from graftkit.run import Run
from graftkit.solve import after_solving
from graftkit.task import Lengths, Task
from graftkit.teach import has_teacher, tried
from graftkit.train import (
    TrainConfig,
    accumulate_gradients,
    make_feed,
    planned_updates,
    prepare,
)
from graftkit.turns import optimizer_of, take_turns

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from graftkit.data import Splits

TRIED = 4  # updates: the longest one, for memory, and some others, for time
COLUMNS = ("group", "parameters", "train", "highest lr", "decay", "from epoch", "update")


def rehearse(
    run: Run,
    task: Task,
    adapted: Adapted,
    splits: Splits,
    lengths: Lengths,
    adapt: AdaptConfig,
    config: TrainConfig,
) -> dict[str, Any]:
    """Say which weights would train, and when and at which rate; or try a few updates, and say what all would take."""
    feed, computed = make_feed(run, task, splits, lengths, config), adapt.strategy == "head" and solves(adapt)
    config = after_solving(adapt, config)
    if adapt.explain:
        return explain_groups(run, adapted, feed, config, computed=computed)
    reading = try_reading(run, task, adapted, splits, lengths, adapt.views or 1) if solves(adapt) else 0.0
    if computed:
        return {"updates": 0, "seconds": reading, "memory": peak_memory()}
    task, asking = tried(run, task, splits, config) if has_teacher(config) else (task, 0.0)
    estimate = try_updates(run, task, adapted, feed, config)
    return estimate | {"seconds": round(estimate["seconds"] + reading + asking, 1)}


def try_reading(run: Run, task: Task, adapted: Adapted, splits: Splits, lengths: Lengths, views: int) -> float:
    """Put a few batches through the network, and say how many seconds train and dev take before a head is solved."""
    accelerator, model = run.accelerator, adapted.model.to(run.accelerator.device)
    batches = fixed_batches(lengths["train"], len(splits.train))
    tried = batches[:: max(1, len(batches) // TRIED)][:TRIED]
    start = time.perf_counter()
    for batch in tried:
        tokens = None if lengths["train"] is None else lengths["train"][batch]
        predict_rows(accelerator, task, model, [splits.train[int(place)] for place in batch], tokens)
    each = (time.perf_counter() - start) / sum(len(batch) for batch in tried)
    seconds = round(each * (views * len(splits.train) + len(splits.dev)) / accelerator.num_processes, 4)
    run.say(
        f"dry run: before the head is solved, the network reads train and dev once, in about {seconds:.1f} s (nothing, "
        "where an earlier run has kept what it says); how long the solution takes depends on the rows"
    )
    return seconds


def try_updates(run: Run, task: Task, adapted: Adapted, feed: Feed, config: TrainConfig) -> dict[str, Any]:
    """Try a few updates, the one with the longest rows first, and say what the whole run would take.

    The weights that these updates change are thrown away. Returns seconds and GiB.
    """
    if config.lr == "auto":
        looked = len(rising(planned_updates(feed, config)))
        run.say(
            f"--train.lr auto is not looked for now; when the run trains, up to {looked} updates before it find one"
        )
        config = replace(config, lr=1e-4)  # which one makes no difference to time and memory
    model, optimizer = prepare(run.accelerator, adapted, config)
    take_turns(optimizer, adapted, feed, config)
    copies = remember_start(optimizer), Average(run.accelerator.unwrap_model(model), config.ema)
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
    del copies  # their memory counts
    run.say(
        f"dry run: {updates} updates of {feed.rows_per_update} rows at {per_update:.2f} s take about "
        f"{updates * per_update / 60:.1f} minutes; peak memory {_gib(estimate['memory'])}; nothing is kept"
    )
    return estimate


def _gib(memory: dict[str, float | None]) -> str:
    gpu = "" if memory["gpu"] is None else f" and {memory['gpu']:.1f} GiB on the GPU"
    return f"{memory['process']:.1f} GiB{gpu}"


# which weights train, when and at which rate


@dataclass
class Group:
    """What becomes of the weights of one part of the network."""

    name: str
    parameters: int = 0
    trained: int = 0
    lr: float | None = None  # the highest; none where nothing trains
    decay: float | None = None  # of matrices
    begins: int | None = None  # the update, from 0


def explain_groups(
    run: Run, adapted: Adapted, feed: Feed, config: TrainConfig, *, computed: bool = False
) -> dict[str, Any]:
    """Print the groups of weights from below as a table; returns them as plain values. `computed`: not trained."""
    optimizer = optimizer_of(adapted, config)
    take_turns(optimizer, adapted, feed, config)
    groups, updates = list_groups(adapted, optimizer), planned_updates(feed, config)
    if computed:
        groups = [replace(group, lr=None, decay=None, begins=None) for group in groups]
    end = "the head is computed at once, so it has no rate" if computed else _tell(config)
    run.say(f"\n{to_table(groups, updates, feed.updates_per_epoch)}\n{end}; nothing was trained (--adapt.explain)")
    return {"groups": [vars(group) for group in groups], "updates": updates}


def list_groups(adapted: Adapted, optimizer: Optimizer) -> list[Group]:
    """The groups from below: what feeds the blocks, each block, what follows them, the head."""
    settings = {name: group for group in optimizer.param_groups for name in group["names"]}
    found: dict[int, Group] = {}
    for (name, parameter), (place, title) in zip(adapted.own_parameters(), _name_groups(adapted), strict=True):
        group = found.setdefault(place, Group(title))
        group.parameters += parameter.numel()
        if name in settings:
            own = settings[name]
            group.trained += parameter.numel()
            group.lr = own["peak_lr"]
            group.decay = max(own["weight_decay"], group.decay or 0.0)
            group.begins = own["begins"]
    return [found[place] for place in sorted(found)]


def _name_groups(adapted: Adapted) -> list[tuple[int, str]]:
    """For each parameter, the place of its group from below, and the group's name."""
    named = adapted.own_parameters()
    try:
        _, blocks, depths = depths_of(adapted.model)
    except UserError:  # no blocks: see find_blocks
        blocks, depths = 0, {name: 0 for name, _ in named}
    pictures = any(parameter.ndim == 4 for name, parameter in named if depths[name] == 0)
    below = "below the decoder" if has_decoder(adapted.model) else "stem" if pictures else "embeddings"
    names = [
        below if blocks else "backbone",
        *(f"block {place + 1}" for place in range(blocks)),
        "what follows",
        "head",
    ]
    places = [blocks + 2 if name in adapted.head else depths[name] for name, _ in named]
    return [(place, names[place]) for place in places]


def to_table(groups: Sequence[Group], updates: int, updates_per_epoch: int) -> str:
    """The groups as lines of at most 80 columns."""
    total = Group("all", sum(group.parameters for group in groups), sum(group.trained for group in groups))
    lines = [_line(*COLUMNS)]
    for group in [*groups, total]:
        numbers = f"{group.parameters:,}", f"{group.trained:,}"
        if group.lr is None or group.begins is None:
            lines.append(_line(group.name, *numbers, "", "", "", ""))
            continue
        late = group.begins >= updates
        when = ("never", "") if late else (f"{group.begins // updates_per_epoch + 1}", f"{group.begins + 1:,}")
        lines.append(_line(group.name, *numbers, f"{group.lr:.1e}", f"{group.decay:g}", *when))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    name, *numbers = cells
    widths = (12, 12, 10, 5, 10, 7)
    return " ".join([f"{name:<18}", *(f"{n:>{width}}" for n, width in zip(numbers, widths, strict=True))]).rstrip()


def _tell(config: TrainConfig) -> str:
    pulled = f"; all but the head are pulled to where they began ({config.l2_sp:g})" if config.l2_sp else ""
    return f"biases and norms have no decay{pulled}"
