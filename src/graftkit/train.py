"""How does it learn?"""

from __future__ import annotations

import contextlib
import math
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from graftkit import checkpoint
from graftkit.adapt import Adapted, set_training_mode
from graftkit.averaging import Average
from graftkit.config import differences
from graftkit.errors import Stopped, UserError
from graftkit.evaluate import predict_rows
from graftkit.failures import check_finite, check_reached, explain_memory
from graftkit.feed import Feed, Update
from graftkit.heads import recompute_activations
from graftkit.losses import LossConfig, draw_weights
from graftkit.optim import find_statistics, hold_statistics, leave_waiting, pull_to_start, remember_start, set_lr
from graftkit.progress import Progress
from graftkit.run import Run
from graftkit.stop import Stop
from graftkit.task import Lengths, Task
from graftkit.train_config import TrainConfig
from graftkit.turns import last_turn, optimizer_of, planned_updates, say_turns, take_turns

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from graftkit.data import Splits

CHECKPOINTS = "checkpoints"


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
    learner = _make_learner(accelerator, model, optimizer, config)
    state = _resume(run, learner)
    _say_plan(run, feed, updates, state)
    say_turns(run, feed, updates, optimizer, config)
    _say_copies(run, learner)

    with Stop() as stop, Progress(updates, state.update, feed.rows_per_update, show=run.main) as progress:
        while state.update < updates and not _stale(state, config.patience):
            epoch, skip = divmod(state.update, feed.updates_per_epoch)
            set_training_mode(accelerator.unwrap_model(model))
            progress.start_clock()
            for update in feed.epoch(epoch, skip):
                event = _step(run, task, learner, feed, update, state, config)
                run.log({"update": state.update, **event})
                progress.step(len(update.rows), event["loss"])
                if state.update in (updates, (epoch + 1) * feed.updates_per_epoch):
                    break  # what follows evaluates before it saves
                asked = stop.agreed(accelerator)
                if asked or state.update % (config.save_every or updates) == 0:
                    _save(run, learner, state)
                if asked:
                    _leave(run, stop, state)

            with learner.average.in_place():
                records = predict_rows(accelerator, task, model, splits.dev, lengths["dev"])
            waits = state.stepped <= last_turn(optimizer, updates)
            _keep_best(run, task.score(records), state, epoch, progress, waits=waits)
            state.epochs += [state.update] * (config.soup is not None)
            _save(run, learner, state)
            if stop.agreed(accelerator):
                _leave(run, stop, state)

    _record(run, feed, state, updates, progress)
    trained = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    checkpoint.load_weights(checkpoint.best(run.folder / CHECKPOINTS, state), trained)
    return trained.eval()


@dataclass(frozen=True)
class _Learner:
    """What learns, and what an update has to know of it."""

    model: nn.Module
    optimizer: Optimizer
    waiting: list[tuple[nn.Module, int]]  # modules whose statistics wait, and when they begin
    start: list[list[Tensor]]  # where weights are pulled to
    average: Average


def _make_learner(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, config: TrainConfig) -> _Learner:
    plain = accelerator.unwrap_model(model)
    waiting = find_statistics(plain, optimizer)
    return _Learner(model, optimizer, waiting, remember_start(optimizer), Average(plain, config.ema))


def _step(
    run: Run, task: Task, learner: _Learner, feed: Feed, update: Update, state: checkpoint.State, config: TrainConfig
) -> dict[str, Any]:
    """One update: the gradient of its rows, a step of the weights, and what follows them. Returns what the log says."""
    accelerator, model, optimizer = run.accelerator, learner.model, learner.optimizer
    seed_dropout(run.seed, state.update, accelerator.process_index)
    factor = set_lr(optimizer, state.stepped, planned_updates(feed, config), config.warmup)
    hold_statistics(learner.waiting, state.stepped)
    with explain_memory(update.rows, feed.lengths, config.batch_size):
        loss = accumulate_gradients(accelerator, task, model, update).item()
        if state.update == 0:
            check_reached(model)
        leave_waiting(optimizer, state.stepped)
        norm = float(accelerator.clip_grad_norm_(model.parameters(), config.clip))
        stepped = not skips_step(accelerator, loss, norm)
        if stepped:
            check_finite(loss, norm, state.update + 1, feed.rows, update.rows)
        optimizer.step()
        optimizer.zero_grad()

    state.update += 1
    state.stepped += stepped
    if stepped:
        pull_to_start(optimizer, learner.start)
        learner.average.follow(state.stepped)
    event = {"loss": loss, "norm": norm if stepped else None, "lr": config.lr * factor}
    head = next((group["lr"] for group in optimizer.param_groups if group["in_head"]), None)
    return event if head is None else event | {"head_lr": head}


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
        torch.default_generator.manual_seed(number)  # the same; the other also asks after devices, which takes 0.4 ms


def _stale(state: checkpoint.State, patience: int | None) -> bool:
    return patience is not None and state.without_gain >= patience


def _resume(run: Run, learner: _Learner) -> checkpoint.State:
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
    checkpoint.load_stepped(path, accelerator.unwrap_model(learner.model), learner.average.values)
    checkpoint.load_optimizer(path, learner.optimizer.optimizer)
    if accelerator.scaler is not None and state.scaler is not None:
        accelerator.scaler.load_state_dict(state.scaler)
    run.cut_log(state.log_size)
    run.say(f"resumed after update {state.update}")
    return state


def has_ended(run: Run, feed: Feed, config: TrainConfig) -> bool:
    """Whether the newest checkpoint of a run is its last one, so that nothing is left to train."""
    path = checkpoint.newest(run.folder / CHECKPOINTS)
    if path is None:
        return False
    state = checkpoint.read_state(path)
    return state.update >= planned_updates(feed, config) or _stale(state, config.patience)


def _origin(run: Run) -> dict[str, Any]:
    """What must not change under a run that is resumed, beside its settings: rows, settled precision, any teacher."""
    splits = {name: facts["sha256"] for name, facts in run.record["data"]["splits"].items()}
    teacher = {"teacher": run.record["teacher"]["sha256"]} if "teacher" in run.record else {}
    return {"rows": splits, "precision": run.record["precision"], **teacher}


def _save(run: Run, learner: _Learner, state: checkpoint.State) -> None:
    accelerator = run.accelerator
    state.scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
    state.log_size = run.log_size()
    plain, optimizer = accelerator.unwrap_model(learner.model), learner.optimizer.optimizer
    run.once(lambda: checkpoint.save(run.folder / CHECKPOINTS, plain, optimizer, state, learner.average.values))
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


def _keep_best(
    run: Run, scores: dict[str, float], state: checkpoint.State, epoch: int, progress: Progress, *, waits: bool = False
) -> None:
    """Log the scores on dev, and remember the update if its headline is the best so far, or as good with less loss.

    On a few rows of dev many updates score alike, often the first of them as well as the last; the loss tells them
    apart. `waits`: not all trains yet that is to train, so that no better score says nothing.
    """
    score, loss = scores[run.headline], scores.get("log_loss")
    best = state.best_score
    gains = best is None or (score < best if run.lower else score > best)
    less = None not in (loss, state.best_loss) and loss < state.best_loss
    better = gains or (score == best and less)
    if better:
        state.best_update, state.best_score, state.best_loss = state.update, score, loss
    if gains:
        state.without_gain = 0
    elif not waits:
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
    run.record["plan"] = {"updates": updates, "updates_per_epoch": feed.updates_per_epoch}
    run.save_record()  # a bakeoff reads it


def _say_copies(run: Run, learner: _Learner) -> None:
    """Say how much memory the copies of the weights take."""
    copies = {
        "the weights are pulled to where they began": [tensor for group in learner.start for tensor in group],
        "a moving average of the weights is evaluated and kept": list(learner.average.values.values()),
    }
    for what, tensors in copies.items():
        if tensors:
            mib = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
            run.say(f"{what}: a copy of {mib:,.1f} MiB stays in memory")


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
