"""How are weights stepped?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from graftkit.blocks import Depths

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


def make_optimizer(
    model: nn.Module,
    head: set[str],
    lr: float,
    head_lr: float,
    weight_decay: float,
    depths: Depths | None = None,
    layer_decay: float = 1.0,
    l2_sp: float = 0.0,
) -> Optimizer:
    """Fused AdamW (Loshchilov and Hutter 2019) over what trains: the head at its own rate, no decay on vectors.

    Vectors are biases and the scales of norms. `head` holds the names of the head's parameters. With `depths` each
    depth has a rate of its own, lr * layer_decay ** (blocks + 1 - depth): what follows the last block has lr, that
    block lr * layer_decay, and what feeds the first the lowest (ULMFiT, Howard and Ruder 2018, arXiv 1801.06146;
    counted as in BEiT and timm). With `l2_sp` all but the head is pulled to where it began, and not decayed to 0.
    """
    import torch

    groups: dict[tuple[bool, int | None, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            depth = None if depths is None or name in head else depths.of[name]
            groups.setdefault((name in head, depth, _is_matrix(name, parameter)), []).append((name, parameter))
    settings = [
        {
            "params": [parameter for _, parameter in members],
            "names": [name for name, _ in members],
            "peak_lr": head_lr if in_head else lr * _share(depth, depths, layer_decay),
            "in_head": in_head,
            "depth": depth,
            "begins": 0,
            "pull": 0.0 if in_head else l2_sp,
            "weight_decay": weight_decay if decays and (in_head or not l2_sp) else 0.0,
        }
        for (in_head, depth, decays), members in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=lr, fused=True)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Not so the factors of IA3 and the lengths of DoRA, whatever shape PEFT gives them."""
    return parameter.ndim > 1 and not any(part in name for part in (".ia3_l.", ".lora_magnitude_vector."))


def _share(depth: int | None, depths: Depths | None, layer_decay: float) -> float:
    return 1.0 if depth is None or depths is None else layer_decay ** (depths.blocks + 1 - depth)


# when a group begins


def wait_for_head(optimizer: Optimizer, updates: int) -> None:
    """Let all but the head begin after so many updates."""
    for group in optimizer.param_groups:
        group["begins"] = 0 if group["in_head"] else updates


def begin_from_the_top(optimizer: Optimizer, every: int, blocks: int) -> None:
    """Gradual unfreezing (ULMFiT): the head begins, and after `every` updates each the next group from the top joins.

    A group is a block; what follows the blocks joins with the last one, and what feeds them last. Only groups of which
    something trains are counted.
    """
    below = [group for group in optimizer.param_groups if not group["in_head"]]
    order = sorted({min(group["depth"], blocks) for group in below}, reverse=True)
    for group in below:
        group["begins"] = every * (1 + order.index(min(group["depth"], blocks)))


def set_lr(optimizer: Optimizer, update: int, updates: int, warmup: float) -> float:
    """Set the rates for an update (counted from 0): linear warm-up, then linear decay to 0. Returns their factor.

    A group has no rate before the update at which it `begins`, and then a warm-up of its own. The factor is that of the
    first to begin below the head. A function of the update alone, so that there is no schedule to save, to resume or to
    step too often.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * _factor(update, updates, warmup, group["begins"])
    first = min((group["begins"] for group in optimizer.param_groups if not group["in_head"]), default=0)
    return _factor(update, updates, warmup, first)


def _factor(update: int, updates: int, warmup: float, begins: int) -> float:
    if update < begins:
        return 0.0
    update, updates = update - begins, updates - begins
    rising = round(updates * warmup)
    return (update + 1) / (rising + 1) if update < rising else (updates - update) / max(1, updates - rising)


def leave_waiting(optimizer: Optimizer, update: int) -> None:
    """Drop the gradients of groups that have not begun: AdamW then neither steps them nor learns how large these are.

    So they count for nothing in the norm that is clipped, and a group that begins has a fresh state.
    """
    for group in optimizer.param_groups:
        if update < group["begins"]:
            for parameter in group["params"]:
                parameter.grad = None


def find_statistics(model: nn.Module, optimizer: Optimizer) -> list[tuple[nn.Module, int]]:
    """The modules that keep moving statistics, such as batch norms, whose weights wait, and when these begin."""
    begins = {id(parameter): group["begins"] for group in optimizer.param_groups for parameter in group["params"]}
    found = []
    for module in model.modules():
        own = [begins[id(parameter)] for parameter in module.parameters(recurse=False) if id(parameter) in begins]
        if own and min(own) and next(module.buffers(recurse=False), None) is not None:
            found.append((module, min(own)))
    return found


def hold_statistics(waiting: Sequence[tuple[nn.Module, int]], update: int) -> None:
    """Leave moving statistics as they came until the weights beside them begin. Dropout is as in all of training."""
    for module, begins in waiting:
        module.train(update >= begins)


# the way back to the start


def remember_start(optimizer: Optimizer) -> list[list[Tensor]]:
    """A copy of the weights of each group as they are, of those that are pulled back to them; else an empty list."""
    return [
        [parameter.detach().clone() for parameter in group["params"]] if group["pull"] else []
        for group in optimizer.param_groups
    ]


def pull_to_start(optimizer: Optimizer, start: Sequence[Sequence[Tensor]]) -> None:
    """After a step, draw the weights back to where they began: L2-SP (Li, Grandvalet, Davoine 2018, arXiv 1802.01483).

    The penalty pull / 2 * ||w - start||^2 is decoupled from AdamW, as its weight decay is, and as RecAdam (Chen et al.
    2020, arXiv 2004.12651) does it. w - start is divided by 1 + lr * pull, the penalty's proximal step: no strength
    makes it overshoot.
    """
    for group, begun in zip(optimizer.param_groups, start, strict=True):
        strength = group["lr"] * group["pull"]
        for parameter, origin in zip(group["params"] if begun else [], begun, strict=True):
            parameter.detach().lerp_(origin, strength / (1 + strength))
