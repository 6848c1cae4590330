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
    """save a LoRA run as a plain model, its update added to the weights, and the adapter beside it (pictures and
    backbones always)"""


@dataclass(frozen=True)
class ClassifierAdaptConfig(AdaptConfig):
    """What may change?"""


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
    if not headed.head:
        raise UserError(
            f"--adapt.strategy head: {type(headed.model).__name__} brings its head with it, or shares it with its "
            "embeddings, so there is no new one to train; choose last, lora or full"
        )
    for name, parameter in headed.model.named_parameters():
        parameter.requires_grad = name in headed.head
    names = ", ".join(head_modules(headed.model, headed.head))
    return Adapted(headed.model, headed.head, f"the head trains ({names})")


def _last(headed: Headed, config: AdaptConfig) -> Adapted:
    where, count, depths = find_blocks(headed.model)
    if config.blocks > count:
        raise UserError(f"--adapt.blocks {config.blocks}: {where} has {count} blocks; --adapt.strategy full trains all")
    for name, parameter in headed.model.named_parameters():
        parameter.requires_grad = depths[name] > count - config.blocks or name in headed.head
    blocks = "block trains" if config.blocks == 1 else f"{config.blocks} blocks train"
    description = f"the last {blocks} ({where}, of {count}), with what follows{' and the head' * bool(headed.head)}"
    return Adapted(headed.model, headed.head, description)


def _lora(headed: Headed, config: AdaptConfig) -> Adapted:
    """LoRA (Hu et al. 2022) through PEFT; the head trains, and is saved, whole."""
    from peft import LoraConfig, get_peft_model

    matched, skipped = _lora_targets(headed.model, headed.head, config.targets)
    settings = LoraConfig(
        task_type=headed.peft_task,
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules="|".join(re.escape(name) for name in matched),
        modules_to_save=head_modules(headed.model, headed.head) or None,
        trainable_token_indices=headed.new_tokens or None,
    )
    commit = getattr(getattr(headed.model, "config", None), "_commit_hash", None)  # of the base, for the adapter
    adapted = get_peft_model(headed.model, settings, revision=commit)
    saved = {name for name, p in adapted.named_parameters() if p.requires_grad and ".modules_to_save." in name}
    kinds = sorted({name.rpartition(".")[2] for name in matched})
    left = f", not on {len(skipped)} that PEFT cannot merge ({_some(skipped)})" if skipped else ""
    with_head = ", and the head" if headed.head else ""
    description = f"LoRA of rank {config.rank} on {len(matched)} layers ({_some(kinds)}){left}{with_head}"
    return Adapted(adapted, saved, description)


STRATEGIES: dict[str, Callable[[Headed, AdaptConfig], Adapted]] = {
    "full": _full,
    "head": _head,
    "last": _last,
    "lora": _lora,
}


def find_blocks(model: nn.Module) -> tuple[str, int, dict[str, int]]:
    """What the model's blocks are called, how many there are, and the depth of each parameter by name.

    Depth 0 is what feeds the blocks, 1 the first block, and one more than there are blocks what follows the last one.
    timm's models say so themselves (`group_matcher`); in others the blocks are the list of modules that holds most
    parameters; of a network with an encoder and a decoder those of the decoder, which the encoder feeds. Raises
    UserError where there is none.
    """
    names = [name for name, _ in model.named_parameters()]
    if hasattr(model, "group_matcher"):
        return _blocks_by_matcher(model)
    from torch import nn

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    writes = _has_decoder(model)
    if writes:  # the blocks of its decoder come last, also where the encoder has more of them
        inside = {id(module) for module in model.get_decoder().modules()}
        lists = [(name, module) for name, module in lists if id(module) in inside]
    if not lists:
        raise UserError(f"{type(model).__name__} has no list of blocks; choose --adapt.strategy full or head")
    path, blocks = max(lists, key=lambda entry: sum(parameter.numel() for parameter in entry[1].parameters()))
    count, parent = len(blocks), path.rpartition(".")[0]
    beside = f"{parent}." if parent != model.base_model_prefix else None  # an encoder's own, such as positions
    depths, reached = {}, False  # parameters are in the order of the network
    for name in names:
        if name.startswith(f"{path}."):
            depths[name], reached = int(name[len(path) + 1 :].partition(".")[0]) + 1, True
        else:
            feeds = not reached or (beside is not None and name.startswith(beside))
            if writes:  # the decoder's last norm stands in it, and is named after no embedding
                feeds = not reached or "embed" in name
            depths[name] = 0 if feeds else count + 1
    return path, count, depths


def _has_decoder(model: nn.Module) -> bool:
    """Whether the network reads one text with an encoder and writes another with a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _blocks_by_matcher(model: nn.Module) -> tuple[str, int, dict[str, int]]:
    """timm's own groups: the first is the stem, the last what no group knows, which is the head and what is near it."""
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    count = max(groups.values()) - 1
    if count < 1:
        raise UserError(f"{type(model).__name__} has no blocks that timm knows; choose --adapt.strategy full or head")
    return type(model).__name__, count, groups


def _lora_targets(model: nn.Module, head: set[str], wanted: list[str] | None) -> tuple[list[str], list[str]]:
    """Names of the layers to adapt, outside the head, and of those that are skipped since PEFT cannot merge them.

    By default all layers of the blocks are adapted, those of an encoder too.
    Raises UserError where a wanted name matches none, or one of those.
    """
    layers, grouped = _layers(model, head)
    if wanted is None:
        _, count, depths = find_blocks(model)

        def in_blocks(names: list[str]) -> list[str]:
            return [name for name in names if 1 <= depths[f"{name}.weight"] <= count or _in_encoder(model, name)]

        return in_blocks(layers), in_blocks(grouped)
    unmatched = [w for w in wanted if not any(_ends_with(name, w) for name in layers)]
    if unmatched:
        known = sorted({name.rpartition(".")[2] for name in layers})
        refused = [w for w in unmatched if any(_ends_with(name, w) for name in grouped)]
        why = "a kind of layer that PEFT cannot merge (in groups, or standardised)" if refused else "no such layer"
        raise UserError(f"--adapt.targets {','.join(refused or unmatched)}: {why}; this model has {', '.join(known)}")
    chosen, left = ([n for n in names if any(_ends_with(n, w) for w in wanted)] for names in (layers, grouped))
    return chosen, left


def _in_encoder(model: nn.Module, name: str) -> bool:
    """Whether a layer stands in a block of the encoder of a network that has a decoder, too: blocks have numbers."""
    return _has_decoder(model) and bool(re.search(r"(^|\.)encoder\..*\.\d+\.", f"{name}."))


def _layers(model: nn.Module, head: set[str]) -> tuple[list[str], list[str]]:
    """Names of the linear layers and convolutions outside the head: those that LoRA can adapt, and those it cannot.

    PEFT cannot merge into convolutions in groups, and would merge wrongly into kinds that change their weight before
    they use it, such as weight standardisation. A layer that shares its weight with the embeddings is neither.
    """
    from timm.layers import Conv2dSame
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    found: tuple[list[str], list[str]] = ([], [])
    own = {name for name, _ in model.named_parameters()} - head  # each weight by its first name alone
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D | nn.Conv2d) and f"{name}.weight" in own:
            plain = type(module) in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear, Conv1D, nn.Conv2d)
            plain |= type(module).__name__ == "Linear4bit"  # of bitsandbytes, for QLoRA
            can = (plain or isinstance(module, Conv2dSame)) and getattr(module, "groups", 1) == 1
            found[not can].append(name)
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _ends_with(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def set_training_mode(model: nn.Module) -> None:
    """Training mode for what trains, evaluation mode (no dropout, no moving statistics) for what is frozen.

    A module trains if any of its parameters does. One without parameters, such as dropout, trains unless it stands
    inside a frozen module, or before a frozen one and any that trains.
    """
    model.train()
    modules = list(model.modules())  # in the order of the network
    own = [[parameter.requires_grad for parameter in module.parameters(recurse=False)] for module in modules]
    first_trained = next((i for i, trains in enumerate(own) if any(trains)), len(own))
    last_frozen = max((i for i, trains in enumerate(own[:first_trained]) if trains), default=-1)
    for i, module in enumerate(modules):
        held = [parameter.requires_grad for parameter in module.parameters()]
        if held and not any(held):
            module.eval()
        elif not held and next(module.children(), None) is None and i < last_frozen:
            module.training = False
