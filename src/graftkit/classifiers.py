"""Which classifier lies in a folder, or on the Hub?

Ours or not: a sequence classifier of transformers, a PEFT adapter of one, an image classifier of transformers or timm.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.backbone import ON_THIS_MACHINE, explain, first_line
from graftkit.download import ADAPTER_WEIGHTS, fetch
from graftkit.errors import UserError
from graftkit.export import ADAPTER, LABELS
from graftkit.image_backbone import ImageBackboneConfig, load_whole_timm
from graftkit.images import ImageConfig, Preprocessing, reading_processes
from graftkit.tasks.image_classification import ImageClassification
from graftkit.tasks.text_classification import TextClassification
from graftkit.text import position_limit

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from graftkit.task import Task

CONFIG = "config.json"


@dataclass(frozen=True)
class Located:
    """A classifier by its files, of which only small ones are read yet, and no library is loaded."""

    name: str  # as the user named it
    revision: str | None
    folder: Path
    commit: str | None  # of the Hub; None for a folder
    kind: str  # one of TEXTS or PICTURES
    settings: dict[str, Any]  # its config.json, or adapter_config.json
    run: dict[str, Any]  # the record of the run that made it, where that lies beside it

    @property
    def reads_texts(self) -> bool:
        """Whether its rows are texts, and not pictures."""
        return self.kind in TEXTS

    @property
    def columns(self) -> dict[str, str | None]:
        """What its run read, by role; empty where that is not known."""
        return (self.run.get("data") or {}).get("columns") or {}


@dataclass(frozen=True)
class Found(Located):
    """A classifier by its settings; its weights are not read yet."""

    labels: list[str]  # the model's own, in its order


@dataclass(frozen=True)
class Classifier:
    """A model in fp32 and evaluation mode, and the task that asks it."""

    task: Task
    model: nn.Module
    architecture: str  # the class of the model, without PEFT around it


def find_classifier(name: str, revision: str | None = None) -> Found:
    """A classifier by the folder of a run or of a model, or by its Hub id; of the latter only settings are fetched.

    Raises UserError where there is none, or where it does not name its labels.
    """
    return read_labels(locate(name, revision))


def locate(name: str, revision: str | None = None) -> Located:
    """The first half of `find_classifier`, which takes no time."""
    folder, commit = Path(name).expanduser(), None
    if not folder.exists():
        fetched = fetch(name, revision, flag="", weights=None)
        folder, commit = fetched.folder, fetched.commit
    elif revision is not None:
        raise UserError(f"--backbone.revision {revision}: only a Hub id has one, and {name} is a folder; leave it out")
    record = folder / "run.json"
    if record.exists() and (run := _read(name, record)).get("recipe") == "evaluate":
        raise UserError(f"{name} is an evaluation of {run['backbone']['name']}, and holds no model; name that")
    if record.exists() and (several := (run := _read(name, record)).get("seeds") or run.get("folds")):
        raise UserError(f"{name} holds {len(several)} models; name one of them, such as {folder / several[0]['name']}")
    files = [place / file for place in (folder, folder / "model") for file in (ADAPTER, CONFIG)]
    file = next((file for file in files if file.exists()), None)
    if file is None and (folder / "config.yaml").exists():
        raise UserError(f"{name}: this run did not finish (no model/); go on with --run.out {name} --run.resume")
    if file is None:
        raise UserError(f"{name} holds neither a run nor a model (no model/, {CONFIG} or {ADAPTER})")
    settings = _read(name, file)
    record = file.parent.parent / "run.json"
    run = _read(name, record) if file.parent.name == "model" and record.exists() else {}
    return Located(name, revision, file.parent, commit, _kind(name, file, settings), settings, run)


def read_labels(located: Located) -> Found:
    """The second half of `find_classifier`: transformers reads what it wrote, which takes seconds to import."""
    read = LABELS_OF[located.kind]
    labels = [str(label) for label in read(located.name, located.folder, located.settings)]
    _check_labels(located.name, labels)
    return Found(**vars(located), labels=labels)


def load_classifier(found: Found, image: ImageConfig, processes: int = 1) -> Classifier:
    """The model with all of its weights, and its task; `processes` are those on this machine that read pictures.

    Raises UserError where it cannot be loaded, or where any of its parameters would be drawn by chance.
    """
    if found.commit is not None and found.kind != "timm":
        fetch(found.name, found.revision, flag="")
    if found.reads_texts:
        model, tokenizer = TEXTS[found.kind](found)
        task = TextClassification(_ready(found, tokenizer, model), found.labels)
    else:
        model, preprocessing = PICTURES[found.kind](found, image)
        task = ImageClassification(preprocessing, found.labels, [], reading_processes(image, processes))
    plain = model.get_base_model() if found.kind == "adapter" else model
    return Classifier(task, model.eval(), type(plain).__name__)


# what it is


def _read(name: str, file: Path) -> dict[str, Any]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{name}: its {file.name} is no JSON ({error})") from error
    if not isinstance(settings, dict):
        raise UserError(f"{name}: its {file.name} holds no settings")
    return settings


def _kind(name: str, file: Path, settings: dict[str, Any]) -> str:
    if file.name == ADAPTER:
        if settings.get("task_type") == "TOKEN_CLS":
            raise UserError(f"{name} tags words, which this command cannot do yet; its run.json has lines that load it")
        if settings.get("task_type") != "SEQ_CLS":
            raise UserError(f"{name} is an adapter, but of no text classifier (task_type {settings.get('task_type')})")
        return "adapter"
    if "architecture" in settings:
        return "timm"
    architectures = settings.get("architectures") or []
    for architecture in architectures:
        if architecture.endswith("ForSequenceClassification"):
            return "text"
        if "ForImageClassification" in architecture:
            return "pictures"
    if any(architecture.endswith("ForTokenClassification") for architecture in architectures):
        raise UserError(f"{name} tags words, which this command cannot do yet; its run.json has lines that load it")
    said = ", ".join(architectures) or "its config.json names no architecture"
    raise UserError(f"{name} classifies neither texts nor pictures ({said}); name a model with a classification head")


def _labels_of_transformers(name: str, folder: Path, settings: dict[str, Any]) -> list[str]:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, **ON_THIS_MACHINE)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{name}: {explain(error, folder)}") from error
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise UserError(f"{name}: this model does not choose one of several labels")
    if sorted(config.id2label) != list(range(config.num_labels)):
        raise UserError(f"{name}: the labels in its config.json (id2label) are not numbered from 0")
    return [config.id2label[i] for i in range(config.num_labels)]


def _labels_of_adapter(name: str, folder: Path, settings: dict[str, Any]) -> list[str]:
    """What graftkit wrote beside it, or else what a config.json beside it says, or that of its base."""
    if (folder / LABELS).exists():
        return _read(name, folder / LABELS).get("labels") or []
    place = folder if (folder / CONFIG).exists() else _base_of(name, settings, weights=False)
    return _labels_of_transformers(name, place, settings)


def _labels_of_timm(name: str, folder: Path, settings: dict[str, Any]) -> list[str]:
    facts = settings.get("pretrained_cfg") or {}
    names = settings.get("label_names") or facts.get("label_names")
    if not isinstance(names, list):
        raise UserError(
            f"{name} does not name its labels; take one that does, or add label_names, a list, to its config.json"
        )
    return names


LABELS_OF = {
    "text": _labels_of_transformers,
    "pictures": _labels_of_transformers,
    "adapter": _labels_of_adapter,
    "timm": _labels_of_timm,
}


def _check_labels(name: str, labels: list[str]) -> None:
    if len(labels) < 2:
        raise UserError(f"{name}: this model does not choose one of several labels")
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UserError(f"{name} has more than one label of the name {twice!r}, so its answers cannot be told apart")


# its weights


def _from_transformers(name: str, folder: Path, auto_class: str, **settings: Any) -> tuple[nn.Module, set[str]]:
    """A model, and the names of what its weights lack, which was drawn by chance."""
    import torch
    import transformers
    from safetensors import SafetensorError

    how = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(folder, **ON_THIS_MACHINE, **how, **settings)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: weights of another shape
        raise UserError(f"{name} cannot be loaded: {explain(error, folder)}") from error
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]}
    return model, set(info["missing_keys"]) | mismatched


def _refuse_chance(name: str, lacking: set[str]) -> None:
    if lacking:
        raise UserError(
            f"{name}: {len(lacking)} of its parameters are not in its weights, such as {min(lacking)}, and would be "
            "drawn by chance; take a model that was trained and saved with its head"
        )


def _load_text(found: Found) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    model, lacking = _from_transformers(found.name, found.folder, TextClassification.auto_class)
    _refuse_chance(found.name, lacking)
    return model, _tokenizer(found, found.folder)


def _load_adapter(found: Found) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """An adapter on its base, which is loaded as transformers does, and from safetensors alone."""
    from safetensors import SafetensorError, safe_open

    weights = found.folder / ADAPTER_WEIGHTS
    if not weights.exists():
        raise UserError(f"{found.name} cannot be loaded: no {ADAPTER_WEIGHTS} (a pickle, .bin, is never read)")
    try:
        with safe_open(weights, framework="np") as file:
            held = set(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{found.name} cannot be loaded: {ADAPTER_WEIGHTS}: {first_line(error)}") from error
    base, names = _base_of(found.name, found.settings), dict(enumerate(found.labels))
    named = {"num_labels": len(names), "id2label": names, "label2id": {label: i for i, label in names.items()}}
    model, lacking = _from_transformers(
        found.name, base, TextClassification.auto_class, ignore_mismatched_sizes=True, **named
    )
    _refuse_chance(found.name, {name for name in lacking if f"base_model.model.{name}" not in held})
    tokenizer = _tokenizer(found, found.folder if (found.folder / "tokenizer_config.json").exists() else base)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:  # the adapter brings the new rows
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return _with_adapter(found, model), tokenizer


def _with_adapter(found: Found, base: nn.Module) -> nn.Module:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")  # which would be drawn by chance
        try:
            return PeftModel.from_pretrained(base, found.folder)
        except (OSError, ValueError, RuntimeError, KeyError, UserWarning) as error:
            raise UserError(f"{found.name} cannot be loaded on its base: {first_line(error)}") from error


def _base_of(name: str, settings: dict[str, Any], *, weights: bool = True) -> Path:
    """The folder of an adapter's base."""
    base = settings.get("base_model_name_or_path") or ""
    if base and Path(base).is_dir():
        return Path(base)
    flag, revision = f"{name}: its base", settings.get("revision")
    return (fetch(base, revision, flag) if weights else fetch(base, revision, flag, weights=None)).folder


def _tokenizer(found: Found, folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, **ON_THIS_MACHINE)
    except (OSError, ValueError) as error:
        raise UserError(f"{found.name}: no tokenizer could be loaded ({explain(error, folder)})") from error


def _ready(found: Found, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> PreTrainedTokenizerBase:
    """The tokenizer, that cuts to what the model reads; both pad with the same token, by which GPT-style ones go."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, position_limit(model.config))
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise UserError(f"{found.name}: its tokenizer has no padding token; set pad_token in tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _load_pictures(found: Found, image: ImageConfig) -> tuple[nn.Module, Preprocessing]:
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(found.folder, **ON_THIS_MACHINE)
    except (OSError, ValueError) as error:
        raise UserError(f"{found.name}: {explain(error, found.folder)}") from error
    model, lacking = _from_transformers(found.name, found.folder, "AutoModelForImageClassification")
    _refuse_chance(found.name, lacking)
    return model, Preprocessing.for_transformers(processor, image)


def _load_timm(found: Found, image: ImageConfig) -> tuple[nn.Module, Preprocessing]:
    name = str(found.folder) if found.commit is None else f"hf-hub:{found.name}"
    model = load_whole_timm(ImageBackboneConfig(name=name, revision=found.revision))
    if model.num_classes != len(found.labels):
        raise UserError(
            f"{found.name} names {len(found.labels)} labels in its config.json (label_names), and its head has "
            f"{model.num_classes}"
        )
    return model, Preprocessing.for_timm(model, image)


TEXTS = {"text": _load_text, "adapter": _load_adapter}
"""For each kind, what loads a model and its tokenizer."""
PICTURES = {"pictures": _load_pictures, "timm": _load_timm}
"""For each kind, what loads a model and the preprocessing of its pictures."""
