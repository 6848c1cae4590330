"""How are weights stepped?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


def make_optimizer(model: nn.Module, head: set[str], lr: float, head_lr: float, weight_decay: float) -> Optimizer:
    """Fused AdamW (Loshchilov and Hutter 2019) over what trains: the head at its own rate, no decay on vectors.

    Vectors are biases and the scales of norms. `head` holds the names of the head's parameters.
    """
    import torch

    groups: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in head, parameter.ndim > 1), []).append((name, parameter))
    settings = [
        {
            "params": [parameter for _, parameter in members],
            "names": [name for name, _ in members],
            "peak_lr": head_lr if in_head else lr,
            "in_head": in_head,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (in_head, decays), members in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=lr, fused=True)


def set_lr(optimizer: Optimizer, update: int, updates: int, warmup: float, head_alone: int = 0) -> float:
    """Set the rates for an update (counted from 0): linear warm-up, then linear decay to 0. Returns their factor.

    In the first `head_alone` updates only the head has a rate; then the rest begins, with a warm-up of its own, whose
    factor is returned. A function of the update alone, so that there is no schedule to save, to resume or to step too
    often.
    """
    rest = 0.0 if update < head_alone else _factor(update - head_alone, updates - head_alone, warmup)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * (_factor(update, updates, warmup) if group["in_head"] else rest)
    return rest


def _factor(update: int, updates: int, warmup: float) -> float:
    rising = round(updates * warmup)
    return (update + 1) / (rising + 1) if update < rising else (updates - update) / max(1, updates - rising)


def leave_to_head(optimizer: Optimizer) -> None:
    """Drop the gradients of all but the head: AdamW then neither steps them nor learns how large they usually are."""
    for group in optimizer.param_groups:
        if not group["in_head"]:
            for parameter in group["params"]:
                parameter.grad = None
