"""Where are a network's blocks?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from graftkit.errors import UserError

if TYPE_CHECKING:
    from torch import nn


class Depths(NamedTuple):
    """What a network's blocks are called, how many there are, and how deep each parameter stands.

    Depth 0 is what feeds the blocks, 1 the first block, and one more than there are blocks what follows the last one.
    """

    where: str
    blocks: int
    of: Mapping[str, int]  # by the parameter's name


def find_blocks(model: nn.Module) -> Depths:
    """The blocks of a plain network.

    timm's models say so themselves (`group_matcher`); in others the blocks are the list of modules that holds most
    parameters; of a network with an encoder and a decoder those of the decoder, which the encoder feeds. Raises
    UserError where there is none.
    """
    names = [name for name, _ in model.named_parameters()]
    if hasattr(model, "group_matcher"):
        return _blocks_by_matcher(model)
    from torch import nn

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    writes = has_decoder(model)
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
    return Depths(path, count, depths)


def has_decoder(model: nn.Module) -> bool:
    """Whether the network reads one text with an encoder and writes another with a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _blocks_by_matcher(model: nn.Module) -> Depths:
    """timm's own groups: the first is the stem, the last what no group knows, which is the head and what is near it."""
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    count = max(groups.values()) - 1
    if count < 1:
        raise UserError(f"{type(model).__name__} has no blocks that timm knows; choose --adapt.strategy full or head")
    return Depths(type(model).__name__, count, groups)


def depths_of(model: nn.Module) -> Depths:
    """The same for a model that PEFT may have wrapped. What it adds outside the network, a prompt, feeds the blocks."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    where, blocks, depths = find_blocks(plain)
    deep = {id(parameter): depths[name] for name, parameter in plain.named_parameters()}
    return Depths(where, blocks, {name: deep.get(id(parameter), 0) for name, parameter in model.named_parameters()})
