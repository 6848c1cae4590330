"""Where do the weights of a network for pictures come from, and how are they kept?

A checkpoint is timm's (by name, Hub id or folder) or a transformers image classifier (by Hub id or folder).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.backbone import BackboneConfig
from graftkit.config import AtLeastOne, Fraction
from graftkit.errors import UserError
from graftkit.heads import Headed, with_classifier

if TYPE_CHECKING:
    from torch import nn

    from graftkit.images import ImageConfig, Preprocessing


TIMM_FLAGS = {
    "drop_path_rate": "--backbone.drop_path",
    "img_size": "--image.size",
    "in_chans": "--backbone.in_chans",
}  # what timm calls them


@dataclass(frozen=True)
class ImageBackboneConfig:
    """Where do the weights come from?"""

    name: str = "demo"
    """timm name (mobilenetv3_small_100.lamb_in1k), Hub id or folder; demo is a small network that learns digits 0-4"""
    revision: str | None = None
    """branch, tag or commit of a Hub id"""
    pretrained: bool = True
    """start from the checkpoint's weights; false takes random ones, to see what transfer is worth"""
    in_chans: AtLeastOne | None = None
    """colour channels to read, 1 (grey) or 3; by default what the checkpoint reads (timm only)"""
    drop_path: Fraction = 0.0
    """highest rate of stochastic depth: whole blocks are skipped at random (where the network has it)"""


@dataclass(frozen=True)
class ImageModel:
    """A network for pictures with a head for the labels, and what its pictures must look like."""

    headed: Headed
    preprocessing: Preprocessing


def load_image_classifier(config: ImageBackboneConfig, image: ImageConfig, labels: list[str], seed: int) -> ImageModel:
    """A checkpoint with a head for `labels`; a head that it brings stays only if its labels are these, in this order.

    Raises UserError where there is no such checkpoint, or where it cannot do what the settings ask.
    """
    import torch

    torch.manual_seed(seed)
    if config.in_chans not in (None, 1, 3):
        raise UserError(f"--backbone.in_chans {config.in_chans}: pictures are read with 1 channel (grey) or 3")
    name, is_timm = _resolve(config)
    loaded = (_from_timm if is_timm else _from_transformers)(name, config, image, labels)
    loaded.headed.model.to(memory_format=torch.channels_last)  # convolutions are quickest so, on CPUs and GPUs
    return loaded


def _resolve(config: ImageBackboneConfig) -> tuple[str, bool]:
    """The name that timm or transformers takes, and whether it is timm's."""
    import timm

    name = config.name.removeprefix("local-dir:")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _resolve_folder(folder, config.name)
    if name.startswith(("hf-hub:", "timm/")):
        revision = f"@{config.revision}" if config.revision else ""
        return f"hf-hub:{name.removeprefix('hf-hub:')}{revision}", True
    if "/" not in name:
        if timm.is_model(name.partition(".")[0]):
            return name, True
        close = timm.list_models(f"*{name.partition('.')[0]}*")[:3]
        near = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"--backbone.name {config.name}: neither a folder nor a network of timm{near}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"--backbone.name {config.name}: no such folder")
    return _resolve_id(name, config)


def _resolve_folder(folder: Path, shown: str) -> tuple[str, bool]:
    if not (folder / "config.json").exists():
        raise UserError(f"--backbone.name {shown}: the folder holds no checkpoint (no config.json)")
    if not list(folder.glob("*.safetensors")):
        raise UserError(
            f"--backbone.name {shown}: no weights in safetensors; others are pickles, which can run code. Convert them"
        )
    try:
        is_timm = "architecture" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--backbone.name {shown}: its config.json is no JSON ({error})") from error
    return (f"local-dir:{folder.resolve()}" if is_timm else str(folder.resolve())), is_timm


def _resolve_id(name: str, config: ImageBackboneConfig) -> tuple[str, bool]:
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(name, "config.json", revision=config.revision)
    except (OSError, ValueError) as error:
        raise UserError(f"--backbone.name {config.name}: {_first_line(error)}") from error
    is_timm = "architecture" in json.loads(Path(path).read_text(encoding="utf-8"))
    revision = f"@{config.revision}" if config.revision else ""
    return (f"hf-hub:{name}{revision}" if is_timm else name), is_timm


# timm


def _from_timm(name: str, config: ImageBackboneConfig, image: ImageConfig, labels: list[str]) -> ImageModel:
    from graftkit.images import Preprocessing

    settings: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    settings |= {"in_chans": config.in_chans} if config.in_chans else {}
    model = _create(name, config, settings)
    if image.size is not None and model.pretrained_cfg.get("fixed_input_size"):
        model = _create(name, config, settings | {"img_size": image.size})
    if list(model.pretrained_cfg.get("label_names") or []) != labels or model.num_classes != len(labels):
        model.reset_classifier(len(labels))
    channels = model.pretrained_cfg["input_size"][0] if config.in_chans is None else config.in_chans
    preprocessing = Preprocessing.for_timm(model, image, channels)
    if image.size is not None:
        _check_size(model, preprocessing)
    return ImageModel(Headed(model, _head_of_timm(model)), preprocessing)


def _create(name: str, config: ImageBackboneConfig, settings: dict[str, Any]) -> nn.Module:
    import timm
    import torch

    try:
        return timm.create_model(name, pretrained=config.pretrained, **settings).to(torch.float32)
    except TypeError as error:
        flag = next((flag for word, flag in TIMM_FLAGS.items() if word in str(error)), None)
        if flag is None:
            raise
        raise UserError(f"{flag}: {config.name} has no such setting; leave it out") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--backbone.name {config.name}: {_first_line(error)}") from error


def _head_of_timm(model: nn.Module) -> set[str]:
    """Names of the parameters that the same network without a classifier does not have."""
    from copy import deepcopy

    headless = deepcopy(model)
    headless.reset_classifier(0)
    kept = {name for name, _ in headless.named_parameters()}
    return {name for name, _ in model.named_parameters() if name not in kept}


def save_timm(folder: Path, model: nn.Module, labels: list[str], preprocessing: Preprocessing) -> None:
    """Write a folder that timm loads as `local-dir:`, and transformers' pipeline too: safetensors and config.json.

    timm writes `num_classes` into `model_args` besides, on which transformers' wrapper then fails: it is dropped.
    """
    import torch
    from timm.models import save_for_hf

    plain = model.to(memory_format=torch.contiguous_format)  # safetensors takes no other
    save_for_hf(plain, str(folder), model_config={"label_names": labels}, safe_serialization=True)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)
    config["label_names"] = labels  # timm's older versions write only those that they know
    config["pretrained_cfg"] |= preprocessing.timm_settings()
    for name in ("label_names", "label_descriptions"):  # of the source task
        config["pretrained_cfg"].pop(name, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_timm(folder: Path) -> nn.Module:
    """A saved timm folder as anyone loads it, in fp32 and evaluation mode."""
    import timm
    import torch

    return timm.create_model(f"local-dir:{folder}", pretrained=True).to(torch.float32).eval()


# transformers


def save_transformers(folder: Path, model: nn.Module, preprocessing: Preprocessing) -> None:
    """Write a folder of transformers: the model and its image processor."""
    model.save_pretrained(folder)
    preprocessing.processor.save_pretrained(folder)


def load_transformers(folder: Path) -> nn.Module:
    """A saved folder of transformers as anyone loads it, in fp32 and evaluation mode."""
    import torch
    from transformers import AutoModelForImageClassification

    return AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()


def _from_transformers(name: str, config: ImageBackboneConfig, image: ImageConfig, labels: list[str]) -> ImageModel:
    from transformers import AutoConfig, AutoImageProcessor

    from graftkit.images import Preprocessing

    if config.in_chans is not None:
        raise UserError(f"--backbone.in_chans: for timm checkpoints only, and {config.name} is one of transformers")
    try:
        processor = AutoImageProcessor.from_pretrained(name, revision=config.revision)
        known = AutoConfig.from_pretrained(name, revision=config.revision)
    except (OSError, ValueError) as error:
        raise UserError(f"--backbone.name {config.name}: {_first_line(error)}") from error
    if config.drop_path and not hasattr(known, "drop_path_rate"):
        raise UserError(f"--backbone.drop_path: {config.name} has no such setting; leave it out")
    settings = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    headed = with_classifier(
        BackboneConfig(name=name, revision=config.revision), "AutoModelForImageClassification", labels, **settings
    )
    if not config.pretrained:
        headed.model.apply(_draw_anew)
        headed.model.init_weights()
    preprocessing = Preprocessing.for_transformers(processor, image)
    if image.size is not None:
        _check_size(headed.model, preprocessing)
    return ImageModel(headed, preprocessing)


def _check_size(model: nn.Module, preprocessing: Preprocessing) -> None:
    """Raise UserError where the network reads no pictures of this size."""
    import torch

    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, preprocessing.channels, *preprocessing.size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"--image.size {preprocessing.size[0]}: {_first_line(error)}; leave it out") from error


def _draw_anew(module: nn.Module) -> None:
    """Let transformers initialise the module again: it leaves alone what carries this mark."""
    module._is_hf_initialized = False
    for parameter in module.parameters(recurse=False):
        parameter._is_hf_initialized = False


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
