"""How does it go on with a text?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from graftkit.backbone import ON_THIS_MACHINE, BackboneConfig, resolve
from graftkit.config import AtLeastOne, Fraction, NotNegative
from graftkit.errors import UserError
from graftkit.snippets import loading
from graftkit.text import position_limit

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from graftkit.data.turns import Reader


@dataclass(frozen=True)
class GenerateConfig:
    """How are texts drawn, in the report's samples and by whoever loads the model?"""

    temperature: NotNegative = 0.8
    """how freely tokens are drawn: 1 as the model says, less keeps to the likely ones, 0 takes the likeliest"""
    top_p: Fraction = 0.95
    """tokens are drawn from the likeliest that make up so much of the probability; 1 for all"""
    max_new_tokens: AtLeastOne = 60
    """tokens that are drawn at most"""
    samples: AtLeastOne = 4
    """rows of test that the report shows a sample for, before and after training"""

    def __post_init__(self) -> None:
        if self.top_p == 0:
            raise UserError("--generate.top_p 0: leaves no token to draw; choose more than 0, at most 1")

    def settings(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> GenerationConfig:
        """The same as transformers writes it, into generation_config.json; a text is over at any token of `ends`."""
        from transformers import GenerationConfig

        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return GenerationConfig(
            **(drawn if self.temperature else {"do_sample": False}),
            max_new_tokens=self.max_new_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=list(ends) if len(ends) > 1 else ends[0],
            pad_token_id=tokenizer.pad_token_id,
        )


def check_room(generate: GenerateConfig, backbone: BackboneConfig) -> None:
    """Raise UserError where a checkpoint has no positions for all tokens to draw, and one to go on from."""
    from transformers import AutoConfig

    limit = position_limit(AutoConfig.from_pretrained(resolve(backbone.name, backbone.revision), **ON_THIS_MACHINE))
    if generate.max_new_tokens >= limit:
        raise UserError(
            f"--generate.max_new_tokens {generate.max_new_tokens}: this checkpoint has positions for {limit} tokens, "
            f"with those that it goes on from; set {limit // 2}, or {limit - 1} at most"
        )


def find_ends(model: nn.Module, reader: Reader) -> list[int]:
    """The tokens at which a text is over: the reader's, then those that the checkpoint itself names, if it has them."""
    named = plain(model).generation_config.eos_token_id
    named = [named] if isinstance(named, int) else named or []
    return list(dict.fromkeys([*reader.ends, *(id for id in named if id < len(reader.tokenizer))]))


def go_on(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, ids: list[int], settings: GenerationConfig, seed: int
) -> str:
    """What a model writes after these tokens, or after the last of them that leave it room: the same for a seed."""
    import torch

    room = position_limit(plain(model).config) - settings.max_new_tokens
    ids = ids[-max(1, min(tokenizer.model_max_length, room)) :]
    device = next(model.parameters()).device
    inputs = torch.tensor([ids], device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        written = model.eval().generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=settings
        )
    return tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)


def plain(model: nn.Module) -> nn.Module:
    """The model of transformers below an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


# how others load it


def snippet(folder: Path, hub_id: str | None, inputs: str) -> str:
    """Lines of plain transformers (for an adapter, PEFT) that go on from `inputs`, which are lines, too."""
    return SNIPPET.format(load=loading("AutoModelForCausalLM", folder, hub_id), inputs=inputs)


SNIPPET = """\
{load}
{inputs}
print(tokenizer.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""

OF_TEXT = """\
inputs = tokenizer({begin!r} + "Once upon a time", add_special_tokens=False, return_tensors="pt")"""

OF_PROMPT = """\
inputs = tokenizer("a prompt", return_tensors="pt")"""

OF_CHAT = """\
messages = [{"role": "user", "content": "a question"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
