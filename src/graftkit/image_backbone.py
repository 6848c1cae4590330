"""Where do the weights of a network for pictures come from, and how are they kept?

A checkpoint is timm's (by name, Hub id or folder) or a transformers image classifier (by Hub id or folder).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.backbone import ON_THIS_MACHINE, BackboneConfig, check_folder, check_id, explain, first_line, resolve
from graftkit.config import AtLeastOne, Fraction
from graftkit.download import WEIGHTS, fetch
from graftkit.errors import UserError
from graftkit.heads import Headed, with_classifier

if TYPE_CHECKING:
    from torch import Tensor, nn

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
    source = _resolve(config)
    loaded = (_from_timm if source.is_timm else _from_transformers)(source, config, image, labels)
    loaded.headed.model.to(memory_format=torch.channels_last)  # convolutions are quickest so, on CPUs and GPUs
    return loaded


@dataclass(frozen=True)
class Source:
    """What a checkpoint is to timm or to transformers."""

    name: str  # what timm calls it; for transformers, a folder or Hub id
    is_timm: bool
    weights: Path | None = None  # timm's file, if any is wanted


def _resolve(config: ImageBackboneConfig) -> Source:
    """Find a checkpoint, and fetch it if it is not here. Raises UserError."""
    name = config.name.removeprefix("local-dir:")
    if Path(name).expanduser().is_dir():
        return _resolve_folder(Path(name).expanduser().resolve(), config)
    repo = name.removeprefix("hf-hub:")
    if "/" not in repo and repo == config.name:
        return _resolve_registered(config)
    check_id(repo)
    folder = fetch(config.name, config.revision, repo=repo, weights=None).folder
    facts = _facts_of_timm(config.name, check_folder(config.name, folder))
    if facts is None:
        return Source(repo, False)
    weights = _safe_sibling(facts.get("hf_hub_filename"))
    if config.pretrained:
        fetch(config.name, config.revision, repo=repo, weights=weights)
    return Source(f"local-dir:{folder}", True, folder / weights if config.pretrained else None)


def _resolve_folder(folder: Path, config: ImageBackboneConfig) -> Source:
    check_folder(config.name, folder, config.revision)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise UserError(
            f"--backbone.name {config.name}: no weights in safetensors; others are pickles, which can run code. "
            "Convert them"
        )
    if _facts_of_timm(config.name, folder) is None:
        return Source(str(folder), False)
    weights = folder / (WEIGHTS if WEIGHTS in names else names[0])  # timm itself would take some pickles first
    return Source(f"local-dir:{folder}", True, weights if config.pretrained else None)


def _resolve_registered(config: ImageBackboneConfig) -> Source:
    """A network that timm knows by name, with the weights that it lists for it."""
    import timm

    name = config.name
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = timm.list_models(f"*{architecture}*")[:3]
        near = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"--backbone.name {name}: neither a folder nor a network of timm{near}")
    if not config.pretrained:
        if config.revision is not None:
            raise UserError(
                f"--backbone.revision {config.revision}: nothing is fetched of random weights; leave it out"
            )
        return Source(name, True)
    known = [
        tagged for tagged in timm.list_pretrained(f"{architecture}.*") if timm.get_pretrained_cfg(tagged).hf_hub_id
    ]
    instead = f"name {' or '.join(known[:3])}" if known else "take another, or --backbone.pretrained false"
    try:
        facts = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # no such tag
        raise UserError(f"--backbone.name {name}: timm has no such weights; {instead}") from error
    if not facts.hf_hub_id:
        why = f"only at {facts.url}, as a pickle, which can run code" if facts.url else "nowhere"
        raise UserError(f"--backbone.name {name}: its weights are {why}; {instead}")
    weights = _safe_sibling(facts.hf_hub_filename)
    folder = fetch(name, config.revision, repo=facts.hf_hub_id, weights=weights).folder
    return Source(name, True, folder / weights)


def _facts_of_timm(shown: str, folder: Path) -> dict[str, Any] | None:
    """What the config.json of timm says of the weights; None where it is transformers'."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--backbone.name {shown}: its config.json is no JSON ({error})") from error
    return config.get("pretrained_cfg", config) if "architecture" in config else None


def _safe_sibling(filename: str | None) -> str:
    """The file in safetensors that timm takes in place of a pickle on the Hub."""
    usual = {None: WEIGHTS, "pytorch_model.bin": WEIGHTS, "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}
    return usual.get(filename) or str(Path(filename).with_suffix(".safetensors"))


# timm


def _from_timm(source: Source, config: ImageBackboneConfig, image: ImageConfig, labels: list[str]) -> ImageModel:
    from graftkit.images import Preprocessing

    settings: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    settings |= {"in_chans": config.in_chans} if config.in_chans else {}
    model = _create(source, config, settings)
    if image.size is not None and model.pretrained_cfg.get("fixed_input_size"):
        model = _create(source, config, settings | {"img_size": image.size})
    if list(model.pretrained_cfg.get("label_names") or []) != labels or model.num_classes != len(labels):
        model.reset_classifier(len(labels))
    channels = model.pretrained_cfg["input_size"][0] if config.in_chans is None else config.in_chans
    preprocessing = Preprocessing.for_timm(model, image, channels)
    if image.size is not None:
        _check_size(model, preprocessing)
    return ImageModel(Headed(model, _head_of_timm(model)), preprocessing)


def _create(source: Source, config: ImageBackboneConfig, settings: dict[str, Any]) -> nn.Module:
    """A network of timm, with the weights of its file. timm itself fetches nothing, and reads no pickle."""
    import timm
    import torch
    from safetensors import SafetensorError

    overlay = {"file": str(source.weights), "source": None, "custom_load": False} if source.weights else None
    start = torch.get_rng_state()
    try:
        model = timm.create_model(
            source.name, pretrained=source.weights is not None, pretrained_cfg_overlay=overlay, **settings
        ).to(torch.float32)
    except TypeError as error:
        flag = next((flag for word, flag in TIMM_FLAGS.items() if word in str(error)), None)
        if flag is None:
            raise
        raise UserError(f"{flag}: {config.name} has no such setting; leave it out") from error
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"--backbone.name {config.name}: {_why_not_created(error)}") from error
    if source.weights:
        _check_loaded(source, config, settings, model, start)
    return model


def load_whole_timm(config: ImageBackboneConfig) -> nn.Module:
    """A network of timm as its checkpoint has it, head included, in fp32. UserError where any of it would be new."""
    return _create(_resolve(config), config, {})


def _why_not_created(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, KeyError) or lines[0].startswith("Error(s) in loading state_dict"):
        where = lines[min(1, len(lines) - 1)].strip()
        return f"its weights are not those of its architecture ({where[:100]}); take another checkpoint"
    return first_line(error)


def _check_loaded(
    source: Source, config: ImageBackboneConfig, settings: dict[str, Any], model: nn.Module, start: Tensor
) -> None:
    """Raise UserError where parameters are as they were drawn: timm is not strict with every network.

    `start` is the state of chance before the model was made. What the file holds by name and shape was loaded; only
    for others, such as those of a file in another format, the network is drawn again and compared.
    """
    import torch
    from safetensors import safe_open

    with safe_open(source.weights, framework="pt") as file:
        held = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (it is no dict)
    unsure = [(name, p) for name, p in model.named_parameters() if held.get(name) != list(p.shape)]
    if not unsure:
        return
    now = torch.get_rng_state()
    torch.set_rng_state(start)
    drawn = _create(replace(source, weights=None), config, settings)
    torch.set_rng_state(now)
    lacking = [name for name, p in unsure if p.min() != p.max() and torch.equal(p, drawn.get_parameter(name))]
    if lacking:
        raise UserError(
            f"--backbone.name {config.name}: {len(lacking)} parameters are not in its weights, such as {lacking[0]}; "
            "take another checkpoint"
        )


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


def _from_transformers(
    source: Source, config: ImageBackboneConfig, image: ImageConfig, labels: list[str]
) -> ImageModel:
    from transformers import AutoConfig, AutoImageProcessor

    from graftkit.images import Preprocessing

    if config.in_chans is not None:
        raise UserError(f"--backbone.in_chans: for timm checkpoints only, and {config.name} is one of transformers")
    folder = resolve(source.name, config.revision)
    try:
        processor = AutoImageProcessor.from_pretrained(folder, **ON_THIS_MACHINE)
        known = AutoConfig.from_pretrained(folder, **ON_THIS_MACHINE)
    except (OSError, ValueError) as error:
        raise UserError(f"--backbone.name {config.name}: {explain(error, folder)}") from error
    if config.drop_path and not hasattr(known, "drop_path_rate"):
        raise UserError(f"--backbone.drop_path: {config.name} has no such setting; leave it out")
    settings = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    headed = with_classifier(
        BackboneConfig(name=source.name, revision=config.revision),
        "AutoModelForImageClassification",
        labels,
        **settings,
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
        raise UserError(f"--image.size {preprocessing.size[0]}: {first_line(error)}; leave it out") from error


def _draw_anew(module: nn.Module) -> None:
    """Let transformers initialise the module again: it leaves alone what carries this mark."""
    module._is_hf_initialized = False
    for parameter in module.parameters(recurse=False):
        parameter._is_hf_initialized = False
