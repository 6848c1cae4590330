"""What may change?"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from graftkit.config import AtLeastOne, Positive
from graftkit.errors import UserError
from graftkit.heads import Headed, head_modules

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class AdaptConfig:
    """What may change?"""

    strategy: Literal["full", "head", "last", "lora"] = "full"
    """what trains: everything, the head, the last blocks and the head, or LoRA and the head"""
    blocks: AtLeastOne = 2
    """how many of the last blocks train with strategy last"""
    rank: AtLeastOne = 8
    """rank of LoRA's matrices"""
    alpha: Positive = 16.0
    """scale of LoRA's update, divided by the rank"""
    targets: list[str] | None = None
    """names of the layers that LoRA adapts, such as query,value; by default all linear layers of the blocks"""
    merge: bool = False
    """save a LoRA run as a plain model, its update added to the weights, instead of an adapter"""


@dataclass(frozen=True)
class Adapted:
    """A model of which the right part trains, and what to say of it."""

    model: nn.Module
    head: set[str]  # names of the head's parameters in `model`
    description: str

    @property
    def architecture(self) -> str:
        """The class of the model, without PEFT around it."""
        plain = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return type(plain).__name__

    def facts(self, strategy: str) -> dict[str, Any]:
        """What the run's record keeps."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.model.parameters())
        return {
            "strategy": strategy,
            "description": self.description,
            "trained_parameters": trained,
            "total_parameters": total,
        }


def adapt(headed: Headed, config: AdaptConfig) -> Adapted:
    """Let the chosen part of the model train, and freeze the rest."""
    return STRATEGIES[config.strategy](headed, config)


def _full(headed: Headed, config: AdaptConfig) -> Adapted:
    return Adapted(headed.model, headed.head, "everything trains")


def _head(headed: Headed, config: AdaptConfig) -> Adapted:
    for name, parameter in headed.model.named_parameters():
        parameter.requires_grad = name in headed.head
    names = ", ".join(head_modules(headed.model, headed.head))
    return Adapted(headed.model, headed.head, f"the head trains ({names})")


def _last(headed: Headed, config: AdaptConfig) -> Adapted:
    path, count = find_blocks(headed.model)
    if config.blocks > count:
        raise UserError(f"--adapt.blocks {config.blocks}: {path} has {count} blocks; --adapt.strategy full trains all")
    first, parent = f"{path}.{count - config.blocks}.", path.rpartition(".")[0]
    beside = f"{parent}." if parent != headed.model.base_model_prefix else None  # an encoder's own, such as positions
    reached = False  # parameters are in the order of the network: those behind the first such block train
    for name, parameter in headed.model.named_parameters():
        reached = reached or name.startswith(first)
        feeds_frozen = beside is not None and name.startswith(beside) and not name.startswith(f"{path}.")
        parameter.requires_grad = (reached and not feeds_frozen) or name in headed.head
    blocks = "block trains" if config.blocks == 1 else f"{config.blocks} blocks train"
    description = f"the last {blocks} ({path}, of {count}), with what follows and the head"
    return Adapted(headed.model, headed.head, description)


def _lora(headed: Headed, config: AdaptConfig) -> Adapted:
    """LoRA (Hu et al. 2022) through PEFT; the head trains, and is saved, whole."""
    from peft import LoraConfig, get_peft_model

    matched = _lora_targets(headed.model, headed.head, config.targets)
    settings = LoraConfig(
        task_type="SEQ_CLS",
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules="|".join(re.escape(name) for name in matched),
        modules_to_save=head_modules(headed.model, headed.head),
        trainable_token_indices=headed.new_tokens or None,
    )
    commit = getattr(headed.model.config, "_commit_hash", None)  # of the base, which the adapter must name
    adapted = get_peft_model(headed.model, settings, revision=commit)
    saved = {name for name, p in adapted.named_parameters() if p.requires_grad and ".modules_to_save." in name}
    kinds = sorted({name.rpartition(".")[2] for name in matched})
    return Adapted(
        adapted, saved, f"LoRA of rank {config.rank} on {len(matched)} layers ({', '.join(kinds)}), and the head"
    )


STRATEGIES: dict[str, Callable[[Headed, AdaptConfig], Adapted]] = {
    "full": _full,
    "head": _head,
    "last": _last,
    "lora": _lora,
}


def find_blocks(model: nn.Module) -> tuple[str, int]:
    """The name and length of the list of blocks that holds most of the model's parameters."""
    from torch import nn

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise UserError(f"{type(model).__name__} has no list of blocks; choose --adapt.strategy full, head or lora")
    name, blocks = max(lists, key=lambda entry: size(entry[1]))
    return name, len(blocks)


def _lora_targets(model: nn.Module, head: set[str], wanted: list[str] | None) -> list[str]:
    """Names of the linear layers to adapt, outside the head. Raises UserError where a wanted name matches none."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    blocks = find_blocks(model)[0] if wanted is None else ""
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(blocks) and f"{name}.weight" not in head
    ]
    if wanted is None:
        return linear
    unmatched = [w for w in wanted if not any(_ends_with(name, w) for name in linear)]
    if unmatched:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise UserError(f"--adapt.targets {','.join(unmatched)}: no such layer; this model has {', '.join(known)}")
    return [name for name in linear if any(_ends_with(name, w) for w in wanted)]


def _ends_with(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def set_training_mode(model: nn.Module) -> None:
    """Training mode for what trains, evaluation mode (no dropout, no moving statistics) for what is frozen.

    A module trains if any of its parameters does. One without parameters, such as dropout, trains unless it stands
    before the first trained layer of the backbone or inside a frozen module.
    """
    model.train()
    backbone = set(model.base_model.modules()) if hasattr(model, "base_model") else set()
    reached = False
    for module in model.modules():  # in the order of the network
        own = list(module.parameters(recurse=False))
        reached = reached or any(parameter.requires_grad for parameter in own)
        held = list(module.parameters())
        frozen = held and not any(parameter.requires_grad for parameter in held)
        childless = next(module.children(), None) is None
        if frozen:
            module.eval()
        elif not held and childless and not reached and module in backbone:
            module.training = False
