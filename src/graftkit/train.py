"""How does it learn?"""

from __future__ import annotations

import contextlib
import math
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from graftkit import checkpoint
from graftkit.adapt import AdaptConfig, Adapted, set_training_mode
from graftkit.averaging import Average
from graftkit.blocks import depths_of, has_decoder
from graftkit.config import AtLeastOne, Fraction, NotNegative, NotZero, Positive, Share, differences
from graftkit.errors import Stopped, UserError
from graftkit.evaluate import predict_rows
from graftkit.failures import check_finite, check_reached, explain_memory
from graftkit.feed import Feed, Update
from graftkit.heads import recompute_activations
from graftkit.losses import LossConfig, draw_weights
from graftkit.optim import (
    Depths,
    begin_from_the_top,
    find_statistics,
    hold_statistics,
    leave_waiting,
    make_optimizer,
    pull_to_start,
    remember_start,
    set_lr,
    wait_for_head,
)
from graftkit.progress import Progress
from graftkit.run import Run
from graftkit.stop import Stop
from graftkit.task import Lengths, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from graftkit.data import Splits

CHECKPOINTS = "checkpoints"
WHY = {
    "layer_decay": "trains no blocks",
    "unfreeze_every": "trains nothing that could wait",
    "l2_sp": "leaves the weights of the checkpoint as they are",
}  # why a setting does nothing beside a strategy


@dataclass(frozen=True)
class TrainConfig:
    """How does it learn?"""

    epochs: AtLeastOne = 3
    """passes over the training rows"""
    batch_size: AtLeastOne = 16
    """rows per process and forward pass"""
    accumulate: AtLeastOne = 1
    """forward passes per update; rows per update = batch_size x accumulate x processes"""
    lr: Positive | Literal["auto"] = 1e-4
    """highest learning rate of the backbone; auto looks for one, at rates that rise from 1e-7"""
    head_lr: Positive | None = None
    """highest learning rate of the head; by default 50 times lr: it starts from nothing"""
    weight_decay: NotNegative = 0.01
    """AdamW's decay of matrices; biases and norms have none"""
    warmup: Fraction = 0.1
    """share of the updates in which the rate rises; then it falls linearly to 0"""
    head_first: Fraction = 0.0
    """share of the updates, the first ones, in which a new head trains alone, and what is below it waits"""
    clip: Positive = 1.0
    """longest gradient, as a norm over all parameters"""
    patience: AtLeastOne | None = None
    """stop after so many epochs without a better score on dev"""
    max_steps: AtLeastOne | None = None
    """stop after so many updates"""
    save_every: AtLeastOne | None = None
    """save a checkpoint after so many updates, besides the one after each epoch"""
    checkpointing: bool = False
    """compute activations again in the backward pass: less memory, more time"""
    layer_decay: NotZero = 1.0
    """rate of each block over that of the next one above; the embeddings or the stem have the lowest"""
    unfreeze_every: AtLeastOne | None = None
    """train a new head alone for so many epochs, and let one more block join it, from the top, after each so many"""
    l2_sp: NotNegative = 0.0
    """pull to where the weights began, in place of weight_decay (L2-SP); a weight hardly goes further than 1 / l2_sp"""
    ema: Share | None = None
    """evaluate and keep a moving average of the weights, with this decay, such as 0.99"""
    soup: Literal["uniform", "greedy"] | None = None
    """keep the average of the weights after each epoch: of all, or of those that do not lower its score on dev"""
    wise_ft: bool = False
    """keep weights between the pretrained and the trained ones: a share of the way, from 0 to 1, chosen on dev"""

    def __post_init__(self) -> None:
        if self.unfreeze_every is not None and self.head_first:
            raise UserError(
                f"--train.unfreeze_every {self.unfreeze_every}: the head trains alone for so many epochs, and "
                f"--train.head_first {self.head_first:g} says otherwise; set --train.head_first 0"
            )
        if self.soup is not None and self.epochs is not None and self.epochs < 2:  # None: not settled yet
            raise UserError(
                f"--train.soup {self.soup} averages the weights after each epoch, and --train.epochs {self.epochs} "
                "leaves but one; train for 2 epochs or more"
            )


def train(
    run: Run,
    task: Task,
    adapted: Adapted,
    splits: Splits,
    lengths: Lengths,
    config: TrainConfig,
) -> nn.Module:
    """Train on the train split, and return the model with the weights that scored best on dev.

    Continues from the newest checkpoint in the run's folder, if there is one, exactly as if it had never stopped.
    """
    accelerator = run.accelerator
    feed = make_feed(run, task, splits, lengths, config)
    updates = planned_updates(feed, config)
    model, optimizer = prepare(accelerator, adapted, config)
    take_turns(optimizer, adapted, feed, config)
    waiting = find_statistics(accelerator.unwrap_model(model), optimizer)
    start, average = remember_start(optimizer), Average(accelerator.unwrap_model(model), config.ema)
    state = _resume(run, model, optimizer, average)
    _say_plan(run, feed, updates, state)
    _say_turns(run, feed, updates, optimizer, config)
    _say_copies(run, start, average)

    with Stop() as stop, Progress(updates, state.update, feed.rows_per_update, show=run.main) as progress:
        while state.update < updates and not _stale(state, config.patience):
            epoch, skip = divmod(state.update, feed.updates_per_epoch)
            set_training_mode(accelerator.unwrap_model(model))
            progress.start_clock()
            for update in feed.epoch(epoch, skip):
                seed_dropout(run.seed, state.update, accelerator.process_index)
                factor = set_lr(optimizer, state.stepped, updates, config.warmup)
                hold_statistics(waiting, state.stepped)
                with explain_memory(update.rows, feed.lengths, config.batch_size):
                    loss = accumulate_gradients(accelerator, task, model, update).item()
                    if state.update == 0:
                        check_reached(model)
                    leave_waiting(optimizer, state.stepped)
                    norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip))
                    stepped = not skips_step(accelerator, loss, norm)
                    if stepped:
                        check_finite(loss, norm, state.update + 1, splits.train, update.rows)
                    optimizer.step()
                    optimizer.zero_grad()

                state.update += 1
                state.stepped += stepped
                if stepped:
                    pull_to_start(optimizer, start)
                    average.follow(state.stepped)
                event = {"loss": loss, "norm": norm if stepped else None, "lr": config.lr * factor}
                run.log({"update": state.update, **event})
                progress.step(len(update.rows), loss)
                if state.update in (updates, (epoch + 1) * feed.updates_per_epoch):
                    break  # what follows evaluates before it saves
                asked = stop.agreed(accelerator)
                if asked or state.update % (config.save_every or updates) == 0:
                    _save(run, model, optimizer, state, average)
                if asked:
                    _leave(run, stop, state)

            with average.in_place():
                records = predict_rows(accelerator, task, model, splits.dev, lengths["dev"])
            _keep_best(run, task.score(records), state, epoch, progress)
            state.epochs += [state.update] * (config.soup is not None)
            _save(run, model, optimizer, state, average)
            if stop.agreed(accelerator):
                _leave(run, stop, state)

    _record(run, feed, state, updates, progress)
    trained = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    checkpoint.load_weights(checkpoint.best(run.folder / CHECKPOINTS, state), trained)
    return trained.eval()


def make_feed(run: Run, task: Task, splits: Splits, lengths: Lengths, config: TrainConfig) -> Feed:
    """The training rows as this run sees them."""
    balanced = isinstance(config, LossConfig) and config.sampling is not None
    chances = draw_weights(splits.train["label"]) if balanced else None
    return Feed(
        task,
        splits.train,
        lengths["train"],
        config.batch_size,
        config.accumulate,
        run.seed,
        run.accelerator,
        chances,
    )


def planned_updates(feed: Feed, config: TrainConfig) -> int:
    """How many updates a run has, if it is not stopped early."""
    updates = config.epochs * feed.updates_per_epoch
    return updates if config.max_steps is None else min(updates, config.max_steps)


def accumulate_gradients(accelerator: Accelerator, task: Task, model: nn.Module, update: Update) -> Tensor:
    """Add an update's gradient to the parameters, and return its loss: sums over all micro-batches and processes,
    divided once by the number of their targets. The same, to rounding, however the rows are split.
    """
    import torch

    counts = [task.count(batch) * real for batch, real in zip(update.micro_batches, update.real, strict=True)]
    targets = accelerator.reduce(torch.stack(counts).sum().to(accelerator.device), "sum")
    total = torch.zeros((), device=accelerator.device)
    for i, (batch, real) in enumerate(zip(update.micro_batches, update.real, strict=True)):
        last = i + 1 == len(update.micro_batches)
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            loss = task.loss(model, batch) * real
            accelerator.backward(loss * (accelerator.num_processes / targets))  # DDP averages over processes
        total += loss.detach()
    return accelerator.reduce(total, "sum") / targets


def prepare(accelerator: Accelerator, adapted: Adapted, config: TrainConfig) -> tuple[nn.Module, Optimizer]:
    """The model and its optimizer as Accelerate runs them."""
    if config.checkpointing:
        recompute_activations(adapted.model)
    return accelerator.prepare(adapted.model, optimizer_of(adapted, config))


def optimizer_of(adapted: Adapted, config: TrainConfig) -> Optimizer:
    """The optimizer of what trains, at the rates that were asked for; UserError where there are no depths for them."""
    head_lr = config.lr * 50 if config.head_lr is None else config.head_lr
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


def check_start(config: TrainConfig) -> None:
    """Raise UserError for ways to stay near the start where that is random weights."""
    for name in ("l2_sp", "wise_ft"):
        if getattr(config, name):
            raise UserError(
                f"--train.{name} stays near the checkpoint, and this network starts from random weights; leave it out, "
                "or name a pretrained one"
            )


def take_turns(optimizer: Optimizer, adapted: Adapted, feed: Feed, config: TrainConfig) -> None:
    """Let each group of weights begin at its update. UserError where gradual unfreezing would free nothing."""
    updates, every = planned_updates(feed, config), config.unfreeze_every
    if every is None:
        wait_for_head(optimizer, round(updates * config.head_first) if adapted.head else 0)
        return
    flag = f"--train.unfreeze_every {every}"
    if not adapted.head:
        raise UserError(f"{flag}: the head is not new, so there is nothing to train first; leave it out")
    if every * feed.updates_per_epoch >= updates:
        raise UserError(
            f"{flag}: training ends after {_epochs(updates, feed)}, before anything joins the head; set a smaller "
            "number, or a larger --train.epochs"
        )
    begin_from_the_top(optimizer, every * feed.updates_per_epoch, depths_of(adapted.model).blocks)


def check_turns(adapt: AdaptConfig, config: TrainConfig) -> None:
    """Raise UserError, before anything is done, for ways to step the weights that do nothing beside what trains."""
    if adapt.explain and config.lr == "auto":
        raise UserError("--adapt.explain shows rates, and --train.lr auto finds its own in training; set a number")
    alone = adapt.strategy == "head"
    for name, asked in {
        "layer_decay": config.layer_decay < 1 and (alone or adapt.strategy == "prompt"),
        "unfreeze_every": config.unfreeze_every is not None and alone,
        "l2_sp": config.l2_sp > 0 and (alone or adapt.strategy in ("lora", "ia3", "prompt")),
    }.items():
        if asked:
            raise UserError(
                f"--train.{name} {getattr(config, name)} does nothing with --adapt.strategy {adapt.strategy}, which "
                f"{WHY[name]}; leave one of them out"
            )


def skips_step(accelerator: Accelerator, loss: float, norm: float) -> bool:
    """Whether fp16's loss scaling leaves the weights alone, and lowers its scale, since the gradient overflowed."""
    return accelerator.scaler is not None and math.isfinite(loss) and not math.isfinite(norm)


def seed_dropout(seed: int, update: int, process: int) -> None:
    """Make the random draws of an update a function of (seed, update, process), so that there is no state to save."""
    import numpy as np
    import torch

    number = int(np.random.SeedSequence([seed, update, process]).generate_state(1, np.uint64)[0])
    if torch.cuda.is_available():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)  # the same; the other also looks for devices, which takes 1 ms


def _stale(state: checkpoint.State, patience: int | None) -> bool:
    return patience is not None and state.without_gain >= patience


def _resume(run: Run, model: nn.Module, optimizer: Optimizer, average: Average) -> checkpoint.State:
    """The state of the newest checkpoint, with weights and optimizer put back; a new one where there is none."""
    accelerator = run.accelerator
    path = checkpoint.newest(run.folder / CHECKPOINTS)
    if path is None:
        run.cut_log(0)
        return checkpoint.State(processes=accelerator.num_processes, origin=_origin(run))
    state = checkpoint.read_state(path)
    changed = differences(state.origin, _origin(run))
    if changed:
        raise UserError(f"--run.resume: not what the run was started with: {'; '.join(changed)}")
    if state.processes != accelerator.num_processes:
        raise UserError(
            f"--run.resume: the run was started with {state.processes} processes, this one has "
            f"{accelerator.num_processes}; an update would have other rows"
        )
    checkpoint.load_stepped(path, accelerator.unwrap_model(model), average.values)
    checkpoint.load_optimizer(path, optimizer.optimizer)
    if accelerator.scaler is not None and state.scaler is not None:
        accelerator.scaler.load_state_dict(state.scaler)
    run.cut_log(state.log_size)
    run.say(f"resumed after update {state.update}")
    return state


def _origin(run: Run) -> dict[str, Any]:
    """What must not change under a run that is resumed, beside its settings: the rows, and the settled precision."""
    splits = {name: facts["sha256"] for name, facts in run.record["data"]["splits"].items()}
    return {"rows": splits, "precision": run.record["precision"]}


def _save(run: Run, model: nn.Module, optimizer: Optimizer, state: checkpoint.State, average: Average) -> None:
    accelerator = run.accelerator
    state.scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
    state.log_size = run.log_size()
    plain = accelerator.unwrap_model(model)
    run.once(lambda: checkpoint.save(run.folder / CHECKPOINTS, plain, optimizer.optimizer, state, average.values))
    run.save_record()


def _leave(run: Run, stop: Stop, state: checkpoint.State) -> NoReturn:
    """Raise Stopped, with the way to go on."""
    run.end()
    name = signal.Signals(stop.signal).name
    raise Stopped(
        f"stopped by {name} after update {state.update}, which is saved; to go on, give the same command with "
        f"--run.out {run.folder} --run.resume (and without --run.overwrite)",
        128 + stop.signal,
    )


def _keep_best(run: Run, scores: dict[str, float], state: checkpoint.State, epoch: int, progress: Progress) -> None:
    """Log the scores on dev, and remember the update if its headline is the best so far."""
    score = scores[run.headline]
    best = state.best_score
    better = best is None or (score < best if run.lower else score > best)
    if better:
        state.best_update, state.best_score, state.without_gain = state.update, score, 0
    else:
        state.without_gain += 1
    run.log({"update": state.update, "dev": scores})
    star = " (best so far)" if better else ""
    progress.write(
        f"epoch {epoch + 1}, update {state.update}: train loss {progress.mean_loss():.3f}, "
        f"dev {run.headline} {score:.4f}{star}, {progress.rows_per_second:.0f} rows/s"
    )


def _say_plan(run: Run, feed: Feed, updates: int, state: checkpoint.State) -> None:
    processes = run.accelerator.num_processes
    run.say(
        f"{updates - state.update} updates to go, of {feed.rows_per_update} rows each ({feed.batch_size} rows x "
        f"{feed.accumulate} forward passes x {processes} processes), {feed.updates_per_epoch} an epoch"
    )


def _say_turns(run: Run, feed: Feed, updates: int, optimizer: Optimizer, config: TrainConfig) -> None:
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
            f"--train.epochs {every * len(turns) + 1} or more, or a smaller --train.unfreeze_every",
            warning=True,
        )


def _say_copies(run: Run, start: list[list[Tensor]], average: Average) -> None:
    """Say how much memory the copies of the weights take."""
    copies = {
        "the weights are pulled to where they began": [tensor for group in start for tensor in group],
        "a moving average of the weights is evaluated and kept": list(average.values.values()),
    }
    for what, tensors in copies.items():
        if tensors:
            mib = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
            run.say(f"{what}: a copy of {mib:,.1f} MiB stays in memory")


def _epochs(updates: int, feed: Feed) -> str:
    """How long training takes, in words."""
    whole, rest = divmod(updates, feed.updates_per_epoch)
    return f"{updates} updates" if rest else _plural(whole)


def _plural(epochs: int) -> str:
    return "1 epoch" if epochs == 1 else f"{epochs} epochs"


def _record(run: Run, feed: Feed, state: checkpoint.State, updates: int, progress: Progress) -> None:
    if not progress.seen:
        return  # a finished run was resumed; its record stands
    finished = state.update == updates
    if not finished:
        run.say(f"stopped early: {state.without_gain} epochs without a better {run.headline} on dev")
    run.say(f"the weights after update {state.best_update} are kept: {run.headline} {state.best_score:.4f} on dev")
    run.record["training"] = {
        "updates": state.update,
        "epochs": round(state.update / feed.updates_per_epoch, 2),
        "rows_per_update": feed.rows_per_update,
        "best": {"update": state.best_update, "score": state.best_score},
        "stopped": "finished" if finished else "early",
        "rows_per_second": round(progress.rows_per_second, 1),
    }
