"""What can others load?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

UNUSED = (".original_module.", ".token_adapter.base_layer.")  # what PEFT keeps beside the trained copy
ADAPTER, LABELS = "adapter_config.json", "labels.json"
LABELLED = ("AutoModelForSequenceClassification", "AutoModelForTokenClassification")  # whose head depends on them
UNLABELLED = {"AutoModelForQuestionAnswering": {"num_labels": 2}}  # start and end, whatever an adapter's base has
HUB_ID = "NAMESPACE/NAME"  # of a repository, in what a run keeps for the day that it has one


def can_merge(model: nn.Module) -> bool:
    """Whether PEFT is around the model, with an update that can be added to its weights: a prompt cannot."""
    return hasattr(model, "merge_and_unload")


def merge_weights(model: nn.Module) -> nn.Module:
    """The plain model, with the adapter's update added to its weights; what was there before is used up.

    PEFT 0.21 cannot merge IA3 beside a head of several layers (RoBERTa's), so the head is put in its place first.
    """
    from peft.utils import ModulesToSaveWrapper

    wrapped = [(path, module) for path, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    for path, module in wrapped:
        place, _, name = path.rpartition(".")
        setattr(model.get_submodule(place), name, module.modules_to_save[module.active_adapters[0]])
    return model.merge_and_unload()


def save_model(
    folder: Path,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    labels: list[str] | None = None,
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model folder for plain transformers, or for plain PEFT where the model is an adapter.

    Safetensors, the tokenizer, and for an adapter `labels.json` with what PEFT does not store, where there are labels.
    `beside` are weights of the backbone, by their names in it, that this class lacks and the headless one has.
    """
    if beside:
        others = {f"{model.base_model_prefix}.{name}": value for name, value in beside.items()}
        model.save_pretrained(folder, state_dict=model.state_dict() | others)
    else:
        model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's, of blanks to fill in
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()  # tokenizer.json would keep the last call's
        tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    if (folder / ADAPTER).exists() and labels is not None:
        settings = {"labels": labels, "pad_token_id": tokenizer.pad_token_id}
        (folder / LABELS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_adapter(folder: Path, model: nn.Module) -> None:
    """Write an adapter by itself, in PEFT's format."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def load_saved(folder: Path, auto_class: str) -> nn.Module:
    """A saved model as anyone loads it, in fp32 and evaluation mode: through transformers, or PEFT for an adapter."""
    import torch
    import transformers

    if (folder / ADAPTER).exists():
        import peft  # takes a second, which a plain model need not wait for

        auto = getattr(peft, auto_class.replace("AutoModel", "AutoPeftModel"))
        settings = adapter_settings(folder) if auto_class in LABELLED else dict(UNLABELLED.get(auto_class, {}))
        padding = settings.pop("pad_token_id", None)
        model = auto.from_pretrained(
            folder, dtype=torch.float32, ignore_mismatched_sizes=True, use_safetensors=True, **settings
        ).eval()
        if padding is not None:
            model.config.pad_token_id = padding  # not before: PEFT adds the row of a new token after loading the base
        return model
    return getattr(transformers, auto_class).from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What PEFT does not store, and needs to build the base with a head of the right size."""
    try:
        saved = json.loads((folder / LABELS).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder}: an adapter without {LABELS}, so the names of its labels are not known") from error
    labels = saved["labels"]
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "pad_token_id": saved["pad_token_id"],
    }


def check_saved(trained: nn.Module, saved: nn.Module) -> None:
    """Compare a reloaded model with the one that was saved, tensor by tensor, bit for bit.

    Raises RuntimeError where they differ: that is a fault of this toolkit or of a library, not of the user.
    """
    import torch

    ours, theirs = (
        {name: value for name, value in model.state_dict().items() if not any(part in name for part in UNUSED)}
        for model in (trained, saved)
    )
    if getattr(trained, "is_quantized", False):  # whoever loads the adapter has its base in full
        ours, theirs = ({name: one[name] for name in one if ".lora_" in name} for one in (ours, theirs))
    for name in ours.keys() | theirs.keys():
        if name not in ours or name not in theirs or not torch.equal(ours[name].cpu(), theirs[name].cpu()):
            raise RuntimeError(f"the saved model is not the trained one: {name} differs")


def merge_saved(source: Path, place: Path) -> None:
    """Write a saved adapter of a text classifier as a plain model: its update added to the weights of its base.

    UserError where it is a prompt.
    """
    from transformers import AutoTokenizer

    labels = list(adapter_settings(source)["id2label"].values())
    model = load_saved(source, "AutoModelForSequenceClassification")
    if not can_merge(model):
        raise UserError("--hub.merge: a prompt cannot be added to the weights; leave it out")
    save_model(place, merge_weights(model), AutoTokenizer.from_pretrained(source), labels)
