"""What may change?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from graftkit.adapters import add_ia3, add_lora, add_prompt
from graftkit.blocks import find_blocks
from graftkit.config import AtLeastOne, Positive
from graftkit.errors import UserError
from graftkit.heads import Headed, head_modules

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class AdaptConfig:
    """What may change?"""

    strategy: Literal["full", "head", "last", "lora", "ia3", "bitfit"] = "full"
    """what trains: everything, the head, the last blocks and the head, or, each with the head: LoRA, IA3, or all biases
    and norms (bitfit)"""
    blocks: AtLeastOne = 2
    """how many of the last blocks train with strategy last"""
    rank: AtLeastOne = 8
    """rank of LoRA's matrices"""
    alpha: Positive = 16.0
    """scale of LoRA's update, divided by the rank"""
    rslora: bool = False
    """divide the scale of LoRA's update by the root of the rank instead, so that high ranks learn as fast (rsLoRA)"""
    dora: bool = False
    """let LoRA learn the lengths of the weights apart from their directions (DoRA)"""
    targets: list[str] | None = None
    """names of the layers that LoRA or IA3 adapts, such as query,value; by default all linear layers and convolutions
    of the blocks for LoRA, and those of keys, values and feed-forward units for IA3"""
    merge: bool = False
    """save a LoRA or IA3 run as a plain model, its update added to the weights, and the adapter beside it
    (image_classify and pretrain always do)"""
    explain: bool = False
    """print which weights train, from when and at which rate, as a table, and stop"""

    def __post_init__(self) -> None:
        for name, strategies in ONLY_WITH.items():
            usual = getattr(type(self), name, None)  # no setting of all recipes
            if self.strategy not in strategies and getattr(self, name, None) != usual:
                raise UserError(
                    f"--adapt.{name} does nothing with --adapt.strategy {self.strategy}, only with "
                    f"{' or '.join(strategies)}; leave it out"
                )


ONLY_WITH = {
    "blocks": ("last",),
    "rank": ("lora",),
    "alpha": ("lora",),
    "rslora": ("lora",),
    "dora": ("lora",),
    "targets": ("lora", "ia3"),
    "prompt_tokens": ("prompt",),
    "merge": ("lora", "ia3"),
}
"""The strategies that read a setting, where not all do."""


@dataclass(frozen=True)
class ClassifierAdaptConfig(AdaptConfig):
    """What may change?"""

    strategy: Literal["full", "head", "last", "lora", "ia3", "bitfit", "lp_ft"] = "full"
    """what trains: everything, the head, the last blocks and the head, or, each with the head: LoRA, IA3, or all biases
    and norms (bitfit); lp_ft computes the best head first, then everything trains"""
    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    """with strategy head, compute the best last layer at once (lbfgs), or train the head by steps of AdamW, as all
    else is (sgd)"""
    cache: Literal["auto", "off"] = "auto"
    """with head or last, compute once what the frozen part says of each row, and keep it in the cache folder; auto
    does so where rows look the same in every epoch and the files fit into cache_gb"""
    cache_gb: Positive = 10.0
    """most GB (10^9 bytes) of such files in the cache folder; those not used for the longest time go first"""
    views: AtLeastOne | None = None
    """with augmented pictures, how many views of each are kept: epochs see them in turn, and a head that is computed
    sees all"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver == "sgd" and self.strategy != "head":
            why = (
                "it solves the head first"
                if self.strategy == "lp_ft"
                else "nothing is solved, and everything trains so"
            )
            raise UserError(
                f"--adapt.solver sgd does nothing with --adapt.strategy {self.strategy}: {why}; leave it out"
            )
        for name in ("cache", "cache_gb", "views"):
            if getattr(self, name) == getattr(ClassifierAdaptConfig, name):
                continue
            if self.strategy not in (*CACHED, "lp_ft"):
                raise UserError(
                    f"--adapt.{name} does nothing with --adapt.strategy {self.strategy}, only with head, last or "
                    "lp_ft: nothing else says the same in every epoch; leave it out"
                )
            if self.cache == "off" and name != "cache":
                raise UserError(f"--adapt.{name} does nothing with --adapt.cache off; leave one of them out")


CACHED = ("head", "last")
"""The strategies that leave a part of the model as it is, whose activations can be kept."""


@dataclass(frozen=True)
class TextAdaptConfig(ClassifierAdaptConfig):
    """What may change?"""

    strategy: Literal["full", "head", "last", "lora", "ia3", "bitfit", "lp_ft", "prompt"] = "full"
    """what trains: everything, the head, the last blocks and the head, or, each with the head: LoRA, IA3, all biases
    and norms (bitfit), or a prompt before each text; lp_ft computes the best head first, then everything trains"""
    prompt_tokens: AtLeastOne = 20
    """length of the prompt with strategy prompt, in tokens; it takes so many of the model's places from the text"""

    @property
    def places(self) -> int:
        """How many places of the model the prompt takes from the text."""
        return self.prompt_tokens if self.strategy == "prompt" else 0


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

    def own_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters by name, without the copy that PEFT keeps of a head as it began, which nothing reads."""
        named = self.model.named_parameters()
        return [(name, parameter) for name, parameter in named if ".original_module." not in name]

    def facts(self, strategy: str) -> dict[str, Any]:
        """What the run's record keeps."""
        own = [parameter for _, parameter in self.own_parameters()]
        trained = sum(p.numel() for p in own if p.requires_grad)
        total = sum(p.numel() for p in own)
        return {
            "strategy": strategy,
            "description": self.description,
            "trained_parameters": trained,
            "total_parameters": total,
        }


def solves(config: AdaptConfig) -> bool:
    """Whether the head is computed (`solve`), at least before all else trains."""
    if not isinstance(config, ClassifierAdaptConfig):
        return False
    return config.strategy == "lp_ft" or (config.strategy == "head" and config.solver == "lbfgs")


def adapt(headed: Headed, config: AdaptConfig) -> Adapted:
    """Let the chosen part of the model train, and freeze the rest."""
    return STRATEGIES[config.strategy](headed, config)


def _full(headed: Headed, config: AdaptConfig) -> Adapted:
    return Adapted(headed.model, headed.head, "everything trains")


def _lp_ft(headed: Headed, config: AdaptConfig) -> Adapted:
    _check_head(headed, config)
    return Adapted(headed.model, headed.head, "the head is computed, then everything trains")


def _check_head(headed: Headed, config: AdaptConfig) -> None:
    if not headed.head:
        raise UserError(
            f"--adapt.strategy {config.strategy}: {type(headed.model).__name__} brings its head with it, or shares it "
            "with its embeddings, so there is no new one to train; choose last, lora or full"
        )


def _head(headed: Headed, config: AdaptConfig) -> Adapted:
    _check_head(headed, config)
    for name, parameter in headed.model.named_parameters():
        parameter.requires_grad = name in headed.head
    names = ", ".join(head_modules(headed.model, headed.head))
    return Adapted(headed.model, headed.head, f"the head {'is computed' if solves(config) else 'trains'} ({names})")


def _last(headed: Headed, config: AdaptConfig) -> Adapted:
    where, count, depths = find_blocks(headed.model)
    if config.blocks > count:
        raise UserError(f"--adapt.blocks {config.blocks}: {where} has {count} blocks; --adapt.strategy full trains all")
    for name, parameter in headed.model.named_parameters():
        parameter.requires_grad = depths[name] > count - config.blocks or name in headed.head
    blocks = "block trains" if config.blocks == 1 else f"{config.blocks} blocks train"
    description = f"the last {blocks} ({where}, of {count}), with what follows{' and the head' * bool(headed.head)}"
    return Adapted(headed.model, headed.head, description)


def _bitfit(headed: Headed, config: AdaptConfig) -> Adapted:
    """Biases (Ben Zaken et al. 2022), and the norms whole, for networks without biases, too; the plain model is saved.

    A norm is a module named so by its class all of whose parameters are vectors. Batch norms count their statistics
    anew, as with everything training (Frankle et al. 2021).
    """
    norms = _norms(headed.model)
    others = [(name, p) for name, p in headed.model.named_parameters() if name not in headed.head | norms]
    biases = {name for name, p in others if name.rpartition(".")[2].endswith("bias") and p.ndim == 1}
    if not biases | norms:
        raise UserError(f"--adapt.strategy bitfit: {type(headed.model).__name__} has neither biases nor norms")
    for name, parameter in headed.model.named_parameters():
        parameter.requires_grad = name in biases | norms | headed.head
    counted = f"{len(biases)} biases and the norms train" if biases else "the norms train (there are no biases)"
    return Adapted(headed.model, headed.head, counted + (", with the head" if headed.head else ""))


def _norms(model: nn.Module) -> set[str]:
    """Names of the parameters of norms."""
    found = set()
    for path, module in model.named_modules():
        if "norm" in type(module).__name__.lower() and all(p.ndim == 1 for p in module.parameters()):
            found |= {f"{path}.{name}" for name, _ in module.named_parameters()}
    return found


def _lora(headed: Headed, config: AdaptConfig) -> Adapted:
    how = {"rank": config.rank, "alpha": config.alpha, "rslora": config.rslora, "dora": config.dora}
    return Adapted(*add_lora(headed, **how, targets=config.targets))


def _prompt(headed: Headed, config: AdaptConfig) -> Adapted:
    return Adapted(*add_prompt(headed, tokens=config.places))


STRATEGIES: dict[str, Callable[[Headed, AdaptConfig], Adapted]] = {
    "full": _full,
    "head": _head,
    "last": _last,
    "lora": _lora,
    "ia3": lambda headed, config: Adapted(*add_ia3(headed, targets=config.targets)),
    "bitfit": _bitfit,
    "lp_ft": _lp_ft,
    "prompt": _prompt,
}


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
