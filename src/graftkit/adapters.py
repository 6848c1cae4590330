"""What may be added?

The ways that leave every weight of the backbone as it is, and train something small beside them, through PEFT. Each
returns the model with PEFT around it, the names of the head's parameters in it, and what there is to say of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from graftkit.blocks import find_blocks, has_decoder
from graftkit.errors import UserError
from graftkit.heads import Headed, head_modules

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

KEYS_AND_VALUES = {"k", "v", "kv", "qkv", "wqkv", "key", "value", "keys", "values"}
"""Parts of the names of layers that make them, alone or with the queries; shapes do not tell them from queries."""


def add_lora(
    headed: Headed, *, rank: int, alpha: float, rslora: bool, dora: bool, targets: list[str] | None
) -> tuple[nn.Module, set[str], str]:
    """LoRA (Hu et al. 2022); the head trains, and is saved, whole.

    With `rslora` the update is divided by the root of the rank (Kalajdzievski 2023), with `dora` the length of what
    each output reads is learned apart from its direction (Liu et al. 2024). What reads nothing has no direction, and
    would make the loss no number, so a layer with such an output is left out.
    """
    from peft import LoraConfig

    matched, skipped = _lora_targets(headed.model, headed.head, targets)
    dead = [name for name in matched if dora and _reads_nothing(headed.model.get_submodule(name))]
    matched = [name for name in matched if name not in dead]
    if dead and not matched:
        raise UserError(
            f"--adapt.dora learns how long each output's weights are, and all of {_some(dead)} have an output without "
            "any; name others with --adapt.targets, or leave --adapt.dora out"
        )
    settings = LoraConfig(
        task_type=headed.peft_task,
        r=rank,
        lora_alpha=alpha,
        use_rslora=rslora,
        use_dora=dora,
        target_modules=_exactly(matched),
        modules_to_save=head_modules(headed.model, headed.head) or None,
        trainable_token_indices=headed.new_tokens or None,
    )
    left = f", not on {len(skipped)} that PEFT cannot merge ({_some(skipped)})" if skipped else ""
    left += f", not on {len(dead)} with an output whose weights are all 0 ({_some(dead)})" if dead else ""
    way = f"{'rank-stabilised ' * rslora}{'DoRA' if dora else 'LoRA'}"
    return *_wrap(headed, settings), f"{way} of rank {rank} on {_layers_named(matched)}{left}{_and_head(headed)}"


def add_ia3(headed: Headed, *, targets: list[str] | None) -> tuple[nn.Module, set[str], str]:
    """IA3 (Liu et al. 2022): one factor for each key, each value and each unit of the feed-forward layers.

    The factors of the latter stand before the layer that reads the units. With `targets`, these layers instead, each
    with a factor per output, or per input where it reads units of a feed-forward layer.
    """
    from peft import IA3Config

    _refuse_new_tokens(headed, "ia3")
    if targets is None:
        matched = _keys_and_values(headed) + _readers_of_units(headed)
    else:
        matched, _ = _lora_targets(headed.model, headed.head, targets)
    if not matched:
        raise UserError(
            f"--adapt.strategy ia3: {type(headed.model).__name__} has neither keys and values nor feed-forward layers "
            "in its blocks; name layers with --adapt.targets, or choose lora, bitfit or last"
        )
    readers = [name for name in _readers_of_units(headed) if name in matched]
    settings = IA3Config(
        task_type=headed.peft_task,
        target_modules=_exactly(matched),
        feedforward_modules=_exactly(readers) if readers else [],
        fan_in_fan_out=any(type(headed.model.get_submodule(name)).__name__ == "Conv1D" for name in matched),
        modules_to_save=head_modules(headed.model, headed.head) or None,
    )
    return *_wrap(headed, settings), f"IA3 on {_layers_named(matched)}{_and_head(headed)}"


def add_prompt(headed: Headed, *, tokens: int) -> tuple[nn.Module, set[str], str]:
    """Prompt tuning (Lester et al. 2021): rows of an embedding that stand before every text, first those of tokens
    drawn from the vocabulary.

    UserError where PEFT cannot: its models for other tasks than to classify whole texts give an answer for the prompt's
    places, too, and of a GPT-style classifier it reads the answer off the last place of a batch, padding or not.
    """
    from peft import PromptTuningConfig

    flag = "--adapt.strategy prompt"
    if headed.peft_task != "SEQ_CLS":
        raise UserError(f"{flag}: for classifiers of texts (recipes/text_classify.py); choose lora, ia3 or bitfit here")
    _refuse_new_tokens(headed, "prompt")
    name = type(headed.model).__name__
    if has_decoder(headed.model):
        raise UserError(
            f"{flag}: {name} finds its answer by a token, and reads no prompt before it; choose lora or ia3"
        )
    settings = PromptTuningConfig(
        task_type=headed.peft_task,
        num_virtual_tokens=tokens,
        token_dim=headed.model.get_input_embeddings().embedding_dim,
        num_layers=headed.model.config.num_hidden_layers,  # PEFT knows these by the names of some networks alone
        num_attention_heads=headed.model.config.num_attention_heads,
        prompt_tuning_init="SAMPLE_VOCAB",
        modules_to_save=head_modules(headed.model, headed.head) or None,
    )
    model, head = _wrap(headed, settings)
    if not _same_when_padded(model):
        raise UserError(
            f"{flag}: behind a prompt, PEFT reads the answer of {name} off the padding of a batch; choose lora, ia3 or "
            "bitfit, or take a BERT-style checkpoint"
        )
    return model, head, f"a prompt of {tokens} tokens before each text{_and_head(headed)}"


def _wrap(headed: Headed, settings: PeftConfig) -> tuple[nn.Module, set[str]]:
    """The model with PEFT around it, and the names of the head's parameters, which train whole."""
    from peft import get_peft_model

    commit = getattr(getattr(headed.model, "config", None), "_commit_hash", None)  # of the base, for the adapter
    model = get_peft_model(headed.model, settings, revision=commit)
    return model, {name for name, p in model.named_parameters() if p.requires_grad and ".modules_to_save." in name}


def _refuse_new_tokens(headed: Headed, strategy: str) -> None:
    if headed.new_tokens:
        raise UserError(
            f"--adapt.strategy {strategy}: the checkpoint has no row for a token of its tokenizer, and PEFT saves new "
            "rows with LoRA alone; choose lora or full"
        )


def _same_when_padded(model: nn.Module) -> bool:
    """Whether a text has the same logits alone as with padding after it, as in a batch."""
    import torch

    padding = model.config.pad_token_id or 0
    real = [i for i in range(1, 6) if i != padding][:4]
    ids = torch.tensor([real + [padding] * 3])
    mask = torch.tensor([[1] * 4 + [0] * 3])
    model.eval()
    with torch.no_grad():
        alone = model(input_ids=ids[:, :4], attention_mask=mask[:, :4]).logits
        padded = model(input_ids=ids, attention_mask=mask).logits
    return torch.allclose(alone, padded, rtol=1e-3, atol=1e-4)


# which layers


def _lora_targets(model: nn.Module, head: set[str], wanted: list[str] | None) -> tuple[list[str], list[str]]:
    """Names of the layers to adapt, outside the head, and of those that are skipped since PEFT cannot merge them.

    By default all layers of the blocks are adapted, those of an encoder too.
    Raises UserError where a wanted name matches none, or one of those.
    """
    layers, grouped = _layers(model, head)
    if wanted is None:
        return _in_blocks(model, layers), _in_blocks(model, grouped)
    unmatched = [w for w in wanted if not any(_ends_with(name, w) for name in layers)]
    if unmatched:
        known = sorted({name.rpartition(".")[2] for name in layers})
        refused = [w for w in unmatched if any(_ends_with(name, w) for name in grouped)]
        why = "a kind of layer that PEFT cannot merge (in groups, or standardised)" if refused else "no such layer"
        raise UserError(f"--adapt.targets {','.join(refused or unmatched)}: {why}; this model has {', '.join(known)}")
    chosen, left = ([n for n in names if any(_ends_with(n, w) for w in wanted)] for names in (layers, grouped))
    return chosen, left


def _reads_nothing(layer: nn.Module) -> bool:
    """Whether all weights of some output of a layer are 0, as pruning and long weight decay leave them."""
    weight = layer.weight.detach()
    if not weight.is_floating_point():  # in 4 bits, where nothing is 0 for sure
        return False
    each = weight.T if type(layer).__name__ == "Conv1D" else weight.flatten(1)
    return bool((each.norm(dim=1) == 0).any())


def _keys_and_values(headed: Headed) -> list[str]:
    """Names of the layers in the blocks that make keys or values.

    A layer that makes three times what it reads within attention makes both, and the queries (GPT-2's c_attn).
    """
    found = []
    for name in _in_blocks(headed.model, _layers(headed.model, headed.head)[0]):
        place, _, leaf = name.rpartition(".")
        if width := _widths(headed.model.get_submodule(name)):
            fused = width[1] == 3 * width[0] and "att" in place.lower()
            if fused or KEYS_AND_VALUES & set(leaf.lower().split("_")):
                found.append(name)
    return found


def _readers_of_units(headed: Headed) -> list[str]:
    """Names of the layers in the blocks that read the units of a feed-forward layer.

    They undo, in their block, what another one widens; one with a gate widens to twice as many.
    """
    layers = _in_blocks(headed.model, _layers(headed.model, headed.head)[0])
    widths = {name: width for name in layers if (width := _widths(headed.model.get_submodule(name)))}
    blocks = {name: re.match(r"(.*\.\d+\.)?", name).group() for name in widths}  # blocks have numbers
    wide = {(blocks[name], reads, gives) for name, (reads, gives) in widths.items() if gives > reads}
    return [
        name
        for name, (reads, gives) in widths.items()
        if reads > gives and {(blocks[name], gives, reads), (blocks[name], gives, 2 * reads)} & wide
    ]


def _widths(layer: nn.Module) -> tuple[int, int] | None:
    """How many numbers a linear layer reads and gives; None for a convolution."""
    if layer.weight.ndim != 2:
        return None
    gives, reads = layer.weight.shape
    return (gives, reads) if type(layer).__name__ == "Conv1D" else (reads, gives)  # Conv1D holds it the other way


def _in_blocks(model: nn.Module, names: list[str]) -> list[str]:
    """Those of these layers that stand in a block, of an encoder too where there is a decoder."""
    _, count, depths = find_blocks(model)
    return [name for name in names if 1 <= depths[f"{name}.weight"] <= count or _in_encoder(model, name)]


def _in_encoder(model: nn.Module, name: str) -> bool:
    """Whether a layer stands in a block of the encoder of a network that has a decoder, too: blocks have numbers."""
    return has_decoder(model) and bool(re.search(r"(^|\.)encoder\..*\.\d+\.", f"{name}."))


def _layers(model: nn.Module, head: set[str]) -> tuple[list[str], list[str]]:
    """Names of the linear layers and convolutions outside the head: those that PEFT can adapt, and those it cannot.

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


def _exactly(names: list[str]) -> str:
    """The pattern by which PEFT finds these modules and no others."""
    return "|".join(re.escape(name) for name in names)


def _layers_named(names: list[str]) -> str:
    return f"{len(names)} layers ({_some(sorted({name.rpartition('.')[2] for name in names}))})"


def _and_head(headed: Headed) -> str:
    return ", and the head" if headed.head else ""


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _ends_with(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")
