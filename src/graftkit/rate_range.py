"""Which learning rate?

A range test (Smith 2017, "Cyclical Learning Rates for Training Neural Networks", arXiv 1506.01186; in the form of
fastai's finder): train for 40 to 100 updates at rates that rise from far too low to far too high, and see at
which the loss falls. The weights are put back afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from graftkit.adapt import AdaptConfig, Adapted, set_training_mode
from graftkit.errors import UserError
from graftkit.failures import check_finite, explain_memory
from graftkit.feed import Feed, Update
from graftkit.run import Run
from graftkit.task import Lengths, Task
from graftkit.train import (
    TrainConfig,
    accumulate_gradients,
    make_feed,
    planned_updates,
    prepare,
    seed_dropout,
    skips_step,
)

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn
    from torch.optim import Optimizer

    from graftkit.data import Splits

LOWEST, HIGHEST = 1e-7, 1.0  # rates of the backbone
FEWEST, MOST = 40, 100  # updates of a test
MEMORY = 0.9  # of the running mean of the loss
BELOW = 4  # times lower than the rate of the least loss: the rate that is taken
TOO_HIGH = 4.0  # times the least smoothed loss: the test ends
EARLY = 10  # updates, at rates too low to change much: the loss there is the one that has to fall
FELL = 0.01  # share by which it has to


def settle_rate(
    run: Run, task: Task, adapted: Adapted, splits: Splits, lengths: Lengths, config: TrainConfig
) -> TrainConfig:
    """The settings with a number for `lr`: what the user set, or for `auto` what a range test finds.

    A run that is resumed has it from its record.
    """
    if config.lr != "auto":
        return config
    if "rate_range" not in run.record:
        feed = make_feed(run, task, splits, lengths, config)
        with run.phase("rate range"):
            rates, losses = try_rates(run, task, adapted, feed, config)
        smoothed = smooth(losses)
        run.record["rate_range"] = {
            "lr": suggest(rates, smoothed),
            "rates": [_short(rate) for rate in rates],
            "losses": [_short(loss) for loss in losses],
            "smoothed": [_short(loss) for loss in smoothed],
        }
        run.save_record()  # before training: its first checkpoint belongs to this rate
    found = run.record["rate_range"]
    run.say(
        f"--train.lr auto: {found['lr']:g}, found in {len(found['rates'])} updates at rates that rose from "
        f"{found['rates'][0]:.0e} to {found['rates'][-1]:.0e}; the weights are as they were"
    )
    return replace(config, lr=found["lr"])


def try_rates(
    run: Run, task: Task, adapted: Adapted, feed: Feed, config: TrainConfig
) -> tuple[list[float], list[float]]:
    """Train on the first rows of training at rising rates: the rates tried, and each update's loss before its step.

    Batches, dropout, decay and the head's share of the rate are those of training. It ends where the loss is no
    number, or its smoothed course is `TOO_HIGH` times its least. Weights and buffers are then what they were, bit for
    bit.
    """
    accelerator, rates, losses = run.accelerator, rising(planned_updates(feed, config)), []
    with _put_back(accelerator, adapted.model):
        model, optimizer = prepare(accelerator, adapted, replace(config, lr=1.0))
        set_training_mode(accelerator.unwrap_model(model))
        for done, (rate, update) in enumerate(zip(rates, _forever(feed), strict=False)):
            seed_dropout(run.seed, done, accelerator.process_index)
            _set_rate(optimizer, rate, config.head_lr)
            with explain_memory(update.rows, feed.lengths, config.batch_size):
                loss = accumulate_gradients(accelerator, task, model, update).item()
                norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip))
            if done == 0 and not skips_step(accelerator, loss, norm):
                check_finite(loss, norm, 1, feed.rows, update.rows)
            if not math.isfinite(loss):
                break
            losses.append(loss)
            smoothed = smooth(losses)
            if smoothed[-1] > TOO_HIGH * min(smoothed):
                break
            optimizer.step()
            optimizer.zero_grad()
        del model, optimizer
    return rates[: len(losses)], losses


def rising(planned: int) -> list[float]:
    """The rates to try, in equal ratios: as many as training has updates, but at least `FEWEST` and at most `MOST`."""
    steps = min(MOST, max(FEWEST, planned))
    return [LOWEST * (HIGHEST / LOWEST) ** (step / (steps - 1)) for step in range(steps)]


def smooth(losses: Sequence[float]) -> list[float]:
    """Running means of the losses, in which older ones weigh less and less; the first ones are not drawn to 0."""
    mean, means = 0.0, []
    for done, loss in enumerate(losses, 1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        means.append(mean / (1 - MEMORY**done))
    return means


def suggest(rates: Sequence[float], smoothed: Sequence[float]) -> float:
    """A quarter of the rate at which the smoothed loss is least, to two digits.

    There it no longer falls, so that rate is too high already; running means see that a little late. fastai's rule is
    a tenth of it, which was too low here. Raises UserError where the loss fell at no rate.
    """
    begun = smoothed[min(EARLY, len(smoothed)) - 1]
    least = min(range(EARLY - 1, len(smoothed)), key=smoothed.__getitem__, default=0)
    if not smoothed[least] < (1 - FELL) * begun:
        raise UserError(
            f"--train.lr auto: the loss of train fell at no rate from {LOWEST:g} to {rates[-1]:.1g} (from {begun:.4g} "
            f"to {smoothed[least]:.4g} at best), so there is none to find; set --train.lr"
        )
    return float(f"{rates[least] / BELOW:.1e}")


@contextmanager
def _put_back(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Afterwards the weights that train and all buffers are what they were, and Accelerate has forgotten the model."""
    import torch

    def tensors() -> dict[str, torch.Tensor]:
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        return trained | dict(model.named_buffers())

    before = {name: value.detach().to("cpu", copy=True) for name, value in tensors().items()}
    scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
    try:
        yield
    finally:
        accelerator.free_memory()
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        vars(model).pop("_is_accelerate_prepared", None)  # else its forward would stay without mixed precision
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in tensors().items():
                value.copy_(before[name])
        if scaler is not None:
            accelerator.scaler.load_state_dict(scaler)


def _forever(feed: Feed) -> Iterator[Update]:
    """The updates of training, over and over."""
    for epoch in count():
        yield from feed.epoch(epoch)


def _set_rate(optimizer: Optimizer, rate: float, head_lr: float | None) -> None:
    """Give each group its share of a rate; the head keeps a rate that the user set."""
    for group in optimizer.param_groups:
        fixed = group["in_head"] and head_lr is not None
        group["lr"] = head_lr if fixed else rate * group["peak_lr"]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def check_rate(adapt: AdaptConfig, config: TrainConfig) -> None:
    """Raise UserError, before anything is done, for `--train.lr auto` where there is no rate to find."""
    if config.lr != "auto" or adapt.strategy != "head":
        return
    if getattr(adapt, "solver", None) == "lbfgs":
        raise UserError(
            "--train.lr auto: with --adapt.strategy head and --adapt.solver lbfgs nothing is trained by steps, so "
            "there is no rate; leave it out, or set --adapt.solver sgd"
        )
    if config.head_lr is not None:
        raise UserError(
            "--train.lr auto: with --adapt.strategy head only the head trains, at --train.head_lr; leave that out, "
            "or set --train.lr to a number"
        )
