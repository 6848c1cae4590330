"""What survives a crash?

A checkpoint is a folder `checkpoints/update-00000120` with the trained weights, the optimizer's state and a few
numbers, as safetensors and JSON. There is no random state to keep: order and dropout follow from (seed, epoch, update).
Where an average of the weights is the model, that stands in place of the weights, and these beside it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.errors import UserError
from graftkit.failures import explain_disk

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
STEPPED = "stepped.safetensors"  # the weights that training goes on from, where those in WEIGHTS are their average


@dataclass
class State:
    """Where training stands, between two updates."""

    update: int = 0  # updates done
    stepped: int = 0  # of these, updates that changed the weights (fp16 skips some)
    best_update: int = 0  # after which update the best score on dev was seen
    best_score: float | None = None
    best_loss: float | None = None  # at that update, where the task scores it
    without_gain: int = 0  # evaluations since
    epochs: list[int] = field(default_factory=list)  # updates that ended one, whose weights are all kept, for a soup
    log_size: int = 0  # bytes of log.jsonl
    processes: int = 1
    origin: dict[str, Any] = field(default_factory=dict)  # hashes of rows and teacher, and the precision
    scaler: dict[str, Any] | None = None  # of the loss, in fp16


def save(
    folder: Path, model: nn.Module, optimizer: Optimizer, state: State, average: Mapping[str, Tensor] | None = None
) -> Path:
    """Write a checkpoint aside, sync it, rename it; then drop all but the newest, the best and those of `state.epochs`.

    `average`: of the model's trained weights, by name, where that is what is kept as the model. Raises UserError where
    the disk is full; nothing saved before is lost.
    """
    from safetensors.torch import save_file

    weights = trained_weights(model)
    files = {WEIGHTS: average, STEPPED: weights} if average else {WEIGHTS: weights}
    files[OPTIMIZER] = _optimizer_tensors(optimizer)
    final = _at(folder, state.update)
    with explain_disk(folder), aside_then_renamed(final) as aside:
        for name, tensors in files.items():
            save_file({key: value.contiguous() for key, value in tensors.items()}, aside / name)
        (aside / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    _prune(folder, final, {state.best_update, *state.epochs})
    return final


@contextmanager
def aside_then_renamed(final: Path) -> Iterator[Path]:
    """A folder to write in, which is synced and renamed to `final` when the block ends well, and removed when not.

    A reader never sees half a folder. Where `final` was there before, a crash between two renames leaves it beside, as
    `final.old`; checkpoints have names of their own, so that cannot happen to them.
    """
    aside, old = final.with_name(f"{final.name}.writing"), final.with_name(f"{final.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in [*aside.rglob("*"), aside]:
            _sync(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    aside.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder, from which training can go on."""
    whole = [path for path in folder.glob("update-????????") if (path / OPTIMIZER).exists()]
    return max(whole, default=None)


def read_state(path: Path) -> State:
    """Where training stood at a checkpoint."""
    return State(**json.loads((path / STATE).read_text(encoding="utf-8")))


def of_epochs(folder: Path) -> list[Path]:
    """The checkpoints after each epoch, in order, of a run that kept their weights; none where it did not."""
    path = newest(folder)
    return [] if path is None else [_at(folder, update) for update in read_state(path).epochs]


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of the model at a checkpoint, by name, on the CPU: what training changed, or the average of that."""
    from safetensors.torch import load_file

    return load_file(path / WEIGHTS, device="cpu")


def load_weights(path: Path, model: nn.Module) -> None:
    """Put a checkpoint's weights into the model that they were saved from."""
    _copy_into(trained_weights(model), read_weights(path), path)


def load_stepped(path: Path, model: nn.Module, average: Mapping[str, Tensor]) -> None:
    """Likewise the weights that training goes on from, and their average where there is one."""
    from safetensors.torch import load_file

    if not average:
        load_weights(path, model)
        return
    _copy_into(trained_weights(model), load_file(path / STEPPED, device="cpu"), path)
    _copy_into(average, read_weights(path), path)


def load_optimizer(path: Path, optimizer: Optimizer) -> None:
    """Put a checkpoint's optimizer state into an optimizer over the same parameters."""
    import torch
    from safetensors.torch import load_file

    saved = load_file(path / OPTIMIZER, device="cpu")
    for name, parameter in _named(optimizer):
        keys = [key for key in saved if key.rpartition("/")[0] == name]
        state = {key.rpartition("/")[2]: saved[key] for key in keys}
        on_device = {
            key: value if key == "step" else torch.empty_like(parameter).copy_(value) for key, value in state.items()
        }  # in the parameter's own memory layout, which may be channels-last
        if parameter.is_cuda and "step" in on_device:
            on_device["step"] = on_device["step"].to(parameter.device)  # a fused step counts on the GPU
        optimizer.state[parameter] = on_device


def best(folder: Path, state: State) -> Path:
    """The checkpoint with the best score on dev."""
    return _at(folder, state.best_update)


def _at(folder: Path, update: int) -> Path:
    return folder / f"update-{update:08d}"


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that train, and buffers that are part of the model's state."""
    keys = model.state_dict().keys()
    values = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    values |= {name: b for name, b in model.named_buffers() if name in keys}
    return values


def _copy_into(wanted: Mapping[str, Tensor], saved: Mapping[str, Tensor], path: Path) -> None:
    if wanted.keys() != saved.keys():
        odd = sorted(wanted.keys() ^ saved.keys())[:3]
        raise UserError(f"{path}: not a checkpoint of this model ({', '.join(odd)} on one side only)")
    for name, value in wanted.items():
        if value.shape != saved[name].shape:
            raise UserError(f"{path}: not a checkpoint of this model ({name} has another shape)")
        value.copy_(saved[name])


def _named(optimizer: Optimizer) -> list[tuple[str, nn.Parameter]]:
    pairs = [zip(group["names"], group["params"], strict=True) for group in optimizer.param_groups]
    return [pair for group in pairs for pair in group]


def _optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in _named(optimizer):
        for key, value in optimizer.state[parameter].items():
            tensors[f"{name}/{key}"] = value.contiguous()
    return tensors


def _prune(folder: Path, final: Path, kept: set[int]) -> None:
    """Drop all checkpoints but `final`, and all but the weights of those after the updates that are kept."""
    of_weights = {_at(folder, update) for update in kept}
    for path in folder.iterdir():
        if path == final:
            continue
        if path in of_weights:
            for name in (OPTIMIZER, STEPPED):
                (path / name).unlink(missing_ok=True)
        else:
            shutil.rmtree(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
