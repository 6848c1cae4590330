"""What sits on top?"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from graftkit.backbone import ON_THIS_MACHINE, BackboneConfig, load_model, resolve
from graftkit.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from graftkit.run import Run


@dataclass(frozen=True)
class Headed:
    """A backbone with a head on top."""

    model: nn.Module
    head: set[str]  # names of the head's parameters in `model`
    new_tokens: list[int] = field(default_factory=list)  # rows of the embedding that the checkpoint lacks
    peft_task: str | None = None  # what PEFT calls the task, where it has a class that loads such an adapter


def load_classifier(
    config: BackboneConfig,
    labels: list[str],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    problem_type: str = "single_label_classification",
) -> Headed:
    """A text checkpoint with a classification head for `labels`, and a row in its embedding for every token.

    `problem_type` is what the config of transformers says that the outputs are.
    """
    auto_class, settings = "AutoModelForSequenceClassification", {"problem_type": problem_type}
    return _load_for_texts(config, auto_class, "SEQ_CLS", labels, tokenizer, seed, **settings)


def load_token_classifier(
    config: BackboneConfig, labels: list[str], tokenizer: PreTrainedTokenizerBase, seed: int
) -> Headed:
    """Likewise with a head that gives each token one of `labels`."""
    return _load_for_texts(config, "AutoModelForTokenClassification", "TOKEN_CLS", labels, tokenizer, seed)


def load_headless(config: BackboneConfig, auto_class: str, peft_task: str | None, seed: int, **settings: Any) -> Headed:
    """A text checkpoint of an Auto class of transformers that knows no labels; `settings` go into its config.

    Its head is what the checkpoint lacks: nothing, where it brings all, as a language model does.
    """
    import torch

    torch.manual_seed(seed)
    model, new = load_model(config, auto_class, **settings)
    outside = _outside_backbone(model)
    _check_fit(config, model, new - outside)
    return Headed(model, new & outside, peft_task=peft_task)


def load_masked_language_model(config: BackboneConfig, seed: int) -> tuple[Headed, dict[str, Tensor]]:
    """A BERT-style checkpoint that fills gaps, with a new head where it brings none; and what else its backbone holds.

    That is what the headless class has and the one with this head drops, the pooler, by its name in the headless class:
    other recipes want it back. Nothing where the checkpoint lacks it. UserError for a checkpoint of another kind.
    """
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig

    kind = AutoConfig.from_pretrained(resolve(config.name, config.revision), **ON_THIS_MACHINE)
    if type(kind) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise UserError(
            f"--backbone.name {config.name}: a checkpoint of {kind.model_type} fills no gaps; name a BERT-style one, "
            "or train a GPT-style one on texts by recipes/generate.py"
        )
    headed = load_headless(config, "AutoModelForMaskedLM", None, seed)
    whole, new = load_model(config, "AutoModel")
    held = headed.model.base_model.state_dict()
    return headed, {name: value for name, value in whole.state_dict().items() if name not in held and name not in new}


def logits_at(model: nn.Module, inputs: Mapping[str, Tensor], windows: Tensor, places: Tensor) -> Tensor:
    """The logits at these places of these windows, (places, vocabulary).

    The head sees only these: over a vocabulary of tens of thousands it costs as much as the rest of a small network,
    and at 15% of the tokens, what the backbone says there is cut out before it reaches the head.
    """
    from transformers import PreTrainedModel

    def cut_out(module: nn.Module, given: Any, output: Any) -> Any:
        output["last_hidden_state"] = output[0][windows, places][None]  # (1, places, width)
        return output

    plain = next(module for module in model.modules() if isinstance(module, PreTrainedModel))  # within DDP and PEFT
    hook = plain.base_model.register_forward_hook(cut_out)
    try:
        return model(**inputs).logits[0]
    finally:
        hook.remove()


def say_whose_head(run: Run, headed: Headed) -> None:
    """Say whether the checkpoint brings the head that fills gaps, and what of it is the embeddings."""
    if not headed.head:
        return
    first, last = headed.model.get_input_embeddings(), headed.model.get_output_embeddings()
    shared = ", but for its last matrix, which is that of the embeddings" if last.weight is first.weight else ""
    run.say(f"the checkpoint fills no gaps yet: it has no masked-language head, so a new one is trained{shared}")


def load_answerer(config: BackboneConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> Headed:
    """A text checkpoint with a head of two outputs for each token, as the start and as the end of an answer."""
    headed = load_headless(config, "AutoModelForQuestionAnswering", "QUESTION_ANS", seed, num_labels=2)
    return replace(headed, new_tokens=_add_rows(headed.model, tokenizer))


def _load_for_texts(
    config: BackboneConfig,
    auto_class: str,
    peft_task: str,
    labels: list[str],
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    **settings: Any,
) -> Headed:
    import torch

    torch.manual_seed(seed)
    headed = with_classifier(config, auto_class, labels, **settings)
    return replace(headed, new_tokens=_add_rows(headed.model, tokenizer), peft_task=peft_task)


def _add_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Give the embedding a row for each token of the tokenizer; returns the new ones."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id  # not before: it may be the new row
    return list(range(rows, len(tokenizer)))


def with_classifier(config: BackboneConfig, auto_class: str, labels: list[str], **settings: Any) -> Headed:
    """A checkpoint of transformers with a classification head for `labels`; `settings` go into its config.

    A head that the checkpoint brings is kept only if its labels are these, in this order; else it starts anew, as one
    that tells a number always does: in which unit, nobody knows.
    """
    model, new = load_model(
        config,
        auto_class,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        **({"problem_type": "single_label_classification"} | settings),
    )
    outside = _outside_backbone(model)
    _check_fit(config, model, new - outside)
    other = settings.get("problem_type") == "regression" or _source_labels(config) != labels
    if outside - new and other:
        _start_anew(model, outside - new)
    return Headed(model, outside | new)


def _check_fit(config: BackboneConfig, model: PreTrainedModel, new: set[str]) -> None:
    """Raise UserError where most of the backbone, or any of a block, is not in the checkpoint but drawn by chance."""
    backbone = model.base_model
    total = sum(parameter.numel() for parameter in backbone.parameters())
    lacking = sum(model.get_parameter(name).numel() for name in new)
    if 2 * lacking > total or any(re.search(r"\.\d+\.", name) for name in new):  # blocks have numbers
        raise UserError(
            f"--backbone.name {config.name}: its weights do not fit its config.json ({type(model).__name__}): "
            f"{lacking / total:.0%} of the backbone is not in them, such as {min(new)}. Take another checkpoint"
        )


def _outside_backbone(model: PreTrainedModel) -> set[str]:
    """Names of the parameters that the headless model does not have: no list of names that heads go by is needed."""
    backbone = {id(parameter) for parameter in model.base_model.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) not in backbone}


def _source_labels(config: BackboneConfig) -> list[str]:
    """The labels of the head that a checkpoint brings."""
    from transformers import AutoConfig

    names = AutoConfig.from_pretrained(resolve(config.name, config.revision), **ON_THIS_MACHINE).id2label
    return [names[i] for i in sorted(names)]


def _start_anew(model: PreTrainedModel, names: set[str]) -> None:
    """Draw these parameters again, as the model's class draws them."""
    for path, module in model.named_modules():
        own = {f"{path}.{name}" if path else name: p for name, p in module.named_parameters(recurse=False)}
        if own and own.keys() <= names:
            for parameter in own.values():
                parameter._is_hf_initialized = False  # transformers draws nothing that carries this mark
            model._init_weights(module)


def head_modules(model: nn.Module, head: set[str]) -> list[str]:
    """The outermost modules that hold nothing but the head's parameters, by name."""
    found: list[str] = []
    for path, module in model.named_modules():
        own = {f"{path}.{name}" for name, _ in module.named_parameters()}
        if path and own and own <= head and not any(path.startswith(f"{outer}.") for outer in found):
            found.append(path)
    return found


def recompute_activations(model: nn.Module) -> None:
    """Let the model compute activations again in the backward pass (Chen et al. 2016). UserError where it cannot."""
    if hasattr(model, "set_grad_checkpointing"):  # timm
        model.set_grad_checkpointing(True)
    elif getattr(model, "supports_gradient_checkpointing", False):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        raise UserError(
            "--train.checkpointing: this network cannot; leave it out, and set a smaller --train.batch_size"
        )
