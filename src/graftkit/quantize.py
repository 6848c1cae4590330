"""In how few bits are the frozen weights held?"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from graftkit.backbone import BackboneConfig
from graftkit.errors import UserError


@dataclass(frozen=True)
class QuantizedBackboneConfig(BackboneConfig):
    """Where do the weights come from, and how are they held?"""

    quantize: Literal["none", "4bit"] = "none"
    """hold the frozen weights in 4 bits while LoRA trains (QLoRA): for --adapt.strategy lora on a CUDA GPU, with the
    package bitsandbytes"""


def quantization(config: QuantizedBackboneConfig, strategy: str, *, merge: bool, dora: bool) -> dict[str, Any]:
    """What transformers is told when it loads the checkpoint: 4-bit NormalFloat, doubly quantised (Dettmers
    et al. 2023).

    UserError where this cannot be, before anything is read.
    """
    if config.quantize == "none":
        return {}
    import torch

    flag = f"--backbone.quantize {config.quantize}"
    if strategy != "lora":
        raise UserError(f"{flag}: weights of 4 bits cannot be trained; set --adapt.strategy lora")
    if merge:
        raise UserError(f"{flag}: an update cannot be added to weights of 4 bits; leave --adapt.merge out")
    if dora:
        raise UserError(
            f"{flag}: the lengths of weights of 4 bits are not those that others load; leave --adapt.dora out"
        )
    if not torch.cuda.is_available():
        raise UserError(f"{flag}: needs a CUDA GPU, and there is none; leave it out")
    if find_spec("bitsandbytes") is None:
        raise UserError(f"{flag}: needs the package bitsandbytes (pip install bitsandbytes); or leave it out")
    return four_bits(torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


def four_bits(compute: Any) -> dict[str, Any]:
    """The same settings, whatever the machine; products are computed in the dtype `compute`."""
    from transformers import BitsAndBytesConfig

    how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": compute}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **how)}
