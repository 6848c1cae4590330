"""What survives a crash?

A checkpoint is a folder `checkpoints/update-00000120` with the trained weights, the optimizer's state and a few
numbers, as safetensors and JSON. There is no random state to keep: order and dropout follow from (seed, epoch, update).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
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


@dataclass
class State:
    """Where training stands, between two updates."""

    update: int = 0  # updates done
    stepped: int = 0  # of these, updates that changed the weights (fp16 skips some)
    best_update: int = 0  # after which update the best score on dev was seen
    best_score: float | None = None
    without_gain: int = 0  # evaluations since
    log_size: int = 0  # bytes of log.jsonl
    processes: int = 1
    origin: dict[str, Any] = field(default_factory=dict)  # hashes of the rows, and the precision
    scaler: dict[str, Any] | None = None  # of the loss, in fp16


def save(folder: Path, model: nn.Module, optimizer: Optimizer, state: State) -> Path:
    """Write a checkpoint aside, sync it, rename it; then drop all but the newest and the best.

    Raises UserError where the disk is full; nothing saved before is lost.
    """
    from safetensors.torch import save_file

    final = folder / f"update-{state.update:08d}"
    with explain_disk(folder), aside_then_renamed(final) as aside:
        save_file({name: value.contiguous() for name, value in _trained(model).items()}, aside / WEIGHTS)
        save_file(_optimizer_tensors(optimizer), aside / OPTIMIZER)
        (aside / STATE).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    _prune(folder, final, state.best_update)
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


def load_weights(path: Path, model: nn.Module) -> None:
    """Put a checkpoint's weights into the model that they were saved from."""
    from safetensors.torch import load_file

    _copy_into(_trained(model), load_file(path / WEIGHTS, device="cpu"), path)


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
    return folder / f"update-{state.best_update:08d}"


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that train, and buffers that are part of the model's state."""
    keys = model.state_dict().keys()
    values = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    values |= {name: b for name, b in model.named_buffers() if name in keys}
    return values


def _copy_into(wanted: dict[str, Tensor], saved: dict[str, Tensor], path: Path) -> None:
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


def _prune(folder: Path, final: Path, best_update: int) -> None:
    for path in folder.iterdir():
        if path == final:
            continue
        if path.name == f"update-{best_update:08d}":
            (path / OPTIMIZER).unlink(missing_ok=True)  # the best is kept for its weights
        else:
            shutil.rmtree(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
