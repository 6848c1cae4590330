"""When does what train, and at which rate?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftkit.adapt import Adapted
from graftkit.blocks import Depths, depths_of, has_decoder
from graftkit.errors import UserError
from graftkit.feed import Feed
from graftkit.optim import begin_from_the_top, make_optimizer, wait_for_head
from graftkit.run import Run
from graftkit.train_config import TrainConfig

if TYPE_CHECKING:
    from torch.optim import Optimizer


def planned_updates(feed: Feed, config: TrainConfig) -> int:
    """How many updates a run has, if it is not stopped early."""
    updates = config.epochs * feed.updates_per_epoch
    return updates if config.max_steps is None else min(updates, config.max_steps)


def optimizer_of(adapted: Adapted, config: TrainConfig) -> Optimizer:
    """The optimizer of what trains, at the rates that were asked for; UserError where there are no depths for them."""
    head_lr = config.lr * config.head_factor if config.head_lr is None else config.head_lr
    asked = {"layer_decay": config.layer_decay < 1, "unfreeze_every": config.unfreeze_every is not None}
    flags = [f"--train.{name} {getattr(config, name)}" for name, given in asked.items() if given]
    depths = _depths_for(flags[0], adapted) if flags else None
    return make_optimizer(
        adapted.model, adapted.head, config.lr, head_lr, config.weight_decay, depths, config.layer_decay, config.l2_sp
    )


def _depths_for(flag: str, adapted: Adapted) -> Depths:
    """The depth of each parameter; UserError for a network that has no blocks, or not one above the other."""
    if has_decoder(adapted.model):
        raise UserError(
            f"{flag}: {adapted.architecture} reads with an encoder and writes with a decoder, and their blocks are not "
            "one above the other; leave it out"
        )
    try:
        return depths_of(adapted.model)
    except UserError as error:
        raise UserError(f"{flag}: {adapted.architecture} has no blocks to tell apart; leave it out") from error


def take_turns(optimizer: Optimizer, adapted: Adapted, feed: Feed, config: TrainConfig) -> None:
    """Let each group of weights begin at its update. UserError where nothing would wait, or no wait would end."""
    updates, every = planned_updates(feed, config), config.unfreeze_every
    flag = f"--train.head_first {config.head_first:g}" if every is None else f"--train.unfreeze_every {every}"
    if not adapted.head and (config.head_first or every is not None):
        raise UserError(f"{flag}: the head is not new, so there is nothing to train first; leave it out")
    if every is None:
        wait_for_head(optimizer, round(updates * config.head_first))
        return
    if every * feed.updates_per_epoch >= updates:
        raise UserError(
            f"{flag}: training ends after {_epochs(updates, feed)}, before anything joins the head; set a smaller "
            f"number, or {_longer_than(every, feed, config)} or more"
        )
    begin_from_the_top(optimizer, every * feed.updates_per_epoch, depths_of(adapted.model).blocks)


def last_turn(optimizer: Optimizer, updates: int) -> int:
    """The update, from 0, at which the last of the groups begins, of those that begin at all."""
    return max((group["begins"] for group in optimizer.param_groups if group["begins"] < updates), default=0)


def say_turns(run: Run, feed: Feed, updates: int, optimizer: Optimizer, config: TrainConfig) -> None:
    """Say when what begins, where not all begins at once."""
    turns = sorted({group["begins"] for group in optimizer.param_groups if group["begins"]})
    if not turns:
        return
    if config.unfreeze_every is None:
        run.say(f"the head is new: in the first {turns[0]} updates it trains alone, and what is below it stays")
        return
    every, late = config.unfreeze_every, sum(turn >= updates for turn in turns)
    last = "" if late else f"; after epoch {every * len(turns)} everything trains"
    run.say(
        f"the head is new, and trains alone for {_plural(every)} ({turns[0]} updates); then a group joins it from the "
        f"top, and one more after every {_plural(every).removeprefix('1 ')}{last}"
    )
    if late:
        run.say(
            f"{late} of the {len(turns)} groups below the head never train in {_epochs(updates, feed)}: for all, set "
            f"{_longer_than(every * len(turns), feed, config)} or more, or a smaller --train.unfreeze_every",
            warning=True,
        )


def _longer_than(epochs: int, feed: Feed, config: TrainConfig) -> str:
    """The settings, and their least values, with which training lasts longer than so many epochs."""
    flags = [f"--train.epochs {epochs + 1}"] if config.epochs <= epochs else []
    updates = epochs * feed.updates_per_epoch
    if config.max_steps is not None and config.max_steps <= updates:
        flags.append(f"--train.max_steps {updates + 1}")
    return " and ".join(flags)


def _epochs(updates: int, feed: Feed) -> str:
    """How long training takes, in words."""
    whole, rest = divmod(updates, feed.updates_per_epoch)
    return f"{updates} updates" if rest else _plural(whole)


def _plural(epochs: int) -> str:
    return "1 epoch" if epochs == 1 else f"{epochs} epochs"
