"""Which model lies in a folder, or on the Hub, and for which task?

Ours or not: a model of transformers with a head, a PEFT adapter of one, an image classifier of transformers or timm.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.backbone import ON_THIS_MACHINE, explain, first_line
from graftkit.calibrate import ANSWERING, THRESHOLDS
from graftkit.download import ADAPTER_WEIGHTS, fetch
from graftkit.errors import UserError
from graftkit.export import ADAPTER, LABELS
from graftkit.image_backbone import ImageBackboneConfig, load_whole_timm
from graftkit.images import ImageConfig, Preprocessing, reading_processes
from graftkit.tasks.image_classification import ImageClassification
from graftkit.tasks.text_classification import TextClassification
from graftkit.tasks.token_classification import TokenClassification
from graftkit.text import LONGEST, position_limit

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from graftkit.task import Task

CONFIG = "config.json"
CLASSIFIERS = ("text-classification", "image-classification")
HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForConditionalGeneration": "text2text-generation",
    "MarianMTModel": "text2text-generation",
    "ForCausalLM": "text-generation",
    "LMHead": "text-generation",
    "ForMaskedLM": "fill-mask",
}
"""By what stands in the name of an architecture, the task that its head is for."""
PEFT_TASKS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "CAUSAL_LM": "text-generation",
}
"""The same, by the task_type of an adapter."""
DOES = {
    "token-classification": "tags words",
    "text-regression": "gives texts a number",
    "multi-label-classification": "gives texts any number of labels",
    "question-answering": "answers questions",
    "text2text-generation": "writes a text for each text",
    "text-generation": "goes on with texts",
    "fill-mask": "fills in words that are masked",
}
"""What a model of a task does, where it does not choose a label, as messages say it."""


@dataclass(frozen=True)
class Located:
    """A model by its files, of which only small ones are read yet, and no library is loaded."""

    name: str  # as the user named it
    revision: str | None
    folder: Path
    commit: str | None  # of the Hub; None for a folder
    task: str  # that its head is for
    kind: str  # of its files: "transformers", "adapter" or "timm"
    settings: dict[str, Any]  # its config.json, or adapter_config.json
    run: dict[str, Any]  # the record of the run that made it, where that lies beside it

    @property
    def reads_texts(self) -> bool:
        """Whether its rows are made of texts, and not pictures."""
        return self.task != "image-classification"

    @property
    def columns(self) -> dict[str, str | None]:
        """What its run read, by role; empty where that is not known."""
        return (self.run.get("data") or {}).get("columns") or {}

    @property
    def prefix(self) -> str:
        """What its run put before each text."""
        return (self.run.get("data") or {}).get("prefix") or ""


@dataclass(frozen=True)
class Found(Located):
    """A model by its settings; its weights are not read yet."""

    labels: list[str]  # the model's own, in its order; none where its task has none


@dataclass(frozen=True)
class Classifier:
    """A model in fp32 and evaluation mode, and the task that asks it."""

    task: Task
    model: nn.Module
    architecture: str  # the class of the model, without PEFT around it


def find_classifier(name: str, revision: str | None = None, tasks: Sequence[str] = CLASSIFIERS) -> Found:
    """A model of one of `tasks` by the folder of a run or of a model, or by its Hub id.

    Of the latter only settings are fetched. Raises UserError where there is none, or where it does not name its labels.
    """
    located = locate(name, revision)
    if located.task in tasks:
        return read_labels(located)
    if located.run:
        does = DOES[located.task]
        raise UserError(f"{name} {does}, which this command cannot do yet; its run.json has lines that load it")
    if located.task in LABELLED:
        raise UserError(f"{name}: this model does not choose one of several labels for a text")
    raise _no_classifier(name, located.settings)


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
    kind, task = _kind(name, file, settings)
    return Located(name, revision, file.parent, commit, run.get("task") or task, kind, settings, run)


def read_labels(located: Located) -> Found:
    """The second half of `find_classifier`: transformers reads what it wrote, which takes seconds to import."""
    if located.task not in LABELLED:
        return Found(**vars(located), labels=[])
    labels = [str(label) for label in LABELS_OF[located.kind](located)]
    _check_labels(located, labels)
    return Found(**vars(located), labels=labels)


def load_classifier(found: Found, image: ImageConfig, processes: int = 1) -> Classifier:
    """The model with all of its weights, and its task; `processes` are those on this machine that read pictures.

    Raises UserError where it cannot be loaded, or where any of its parameters would be drawn by chance.
    """
    if found.commit is not None and found.kind != "timm":
        fetch(found.name, found.revision, flag="")
    if found.reads_texts:
        made = TEXTS[found.task]
        model, tokenizer = LOADERS[found.kind](found, made.auto_class)
        task = made.task(found, _ready(found, tokenizer, model), model)
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


def read_note(located: Located, name: str) -> Any:
    """What was chosen on dev, and stands under this name in the settings of a model; None where there is nothing."""
    place = located.folder / (LABELS if located.kind == "adapter" else CONFIG)
    return _read(located.name, place).get(name) if place.exists() else None


def _kind(name: str, file: Path, settings: dict[str, Any]) -> tuple[str, str]:
    """Whose files these are, and the task that the head is for."""
    if file.name == ADAPTER:
        if (task := PEFT_TASKS.get(settings.get("task_type"))) is None:
            raise _no_classifier(name, settings)
        beside = [place for place in (file.parent / LABELS, file.parent / CONFIG) if place.exists()]
        return "adapter", _of_outputs(_read(name, beside[0])) if task == CLASSIFIERS[0] and beside else task
    if "architecture" in settings:
        return "timm", "image-classification"
    for architecture in settings.get("architectures") or []:
        task = next((task for head, task in HEADS.items() if head in architecture), None)
        if task is not None:
            return "transformers", _of_outputs(settings) if task == CLASSIFIERS[0] else task
    raise _no_classifier(name, settings)


def _of_outputs(settings: dict[str, Any]) -> str:
    """What the outputs of a sequence classifier are, by its config.json or labels.json."""
    problem, labels = settings.get("problem_type"), settings.get("labels", settings.get("id2label"))
    if problem == "multi_label_classification" or THRESHOLDS in settings:
        return "multi-label-classification"
    alone = (labels is not None and len(labels) == 1) or settings.get("num_labels") == 1
    return "text-regression" if problem == "regression" or (problem is None and alone) else "text-classification"


def _no_classifier(name: str, settings: dict[str, Any]) -> UserError:
    if "peft_type" in settings:
        return UserError(f"{name} is an adapter, but of no text classifier (task_type {settings.get('task_type')})")
    said = ", ".join(settings.get("architectures") or []) or f"no architecture in its {CONFIG}"
    return UserError(f"{name} classifies neither texts nor pictures ({said}); name a model with a classification head")


def _labels_of_transformers(located: Located) -> list[str]:
    return _labels_in(located.name, located.folder)


def _labels_in(name: str, folder: Path) -> list[str]:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, **ON_THIS_MACHINE)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{name}: {explain(error, folder)}") from error
    if sorted(config.id2label) != list(range(config.num_labels)):
        raise UserError(f"{name}: the labels in its config.json (id2label) are not numbered from 0")
    return [config.id2label[i] for i in range(config.num_labels)]


def _labels_of_adapter(located: Located) -> list[str]:
    """What graftkit wrote beside it, or else what a config.json beside it says, or that of its base."""
    name, folder = located.name, located.folder
    if (folder / LABELS).exists():
        return _read(name, folder / LABELS).get("labels") or []
    return _labels_in(name, folder if (folder / CONFIG).exists() else _base_of(name, located.settings, weights=False))


def _labels_of_timm(located: Located) -> list[str]:
    facts = located.settings.get("pretrained_cfg") or {}
    names = located.settings.get("label_names") or facts.get("label_names")
    if not isinstance(names, list):
        raise UserError(
            f"{located.name} does not name its labels; take one that does, or add label_names, a list, to its "
            "config.json"
        )
    return names


LABELLED = (*CLASSIFIERS, "token-classification", "multi-label-classification", "text-regression")
"""The tasks whose head has an output with a name for each label; a number goes by one name."""
LABELS_OF = {"transformers": _labels_of_transformers, "adapter": _labels_of_adapter, "timm": _labels_of_timm}


def _check_labels(located: Located, labels: list[str]) -> None:
    name = located.name
    if located.task == "text-regression":
        if len(labels) != 1:
            raise UserError(f"{name}: this model gives {len(labels)} numbers at once; take one that gives a single one")
    elif len(labels) < (1 if located.task == "multi-label-classification" else 2):
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


def _load_text(found: Found, auto_class: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    model, lacking = _from_transformers(found.name, found.folder, auto_class)
    _refuse_chance(found.name, lacking)
    return model, _tokenizer(found, found.folder)


def _load_adapter(found: Found, auto_class: str) -> tuple[nn.Module, PreTrainedTokenizerBase]:
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
    how = named if names else {}
    model, lacking = _from_transformers(found.name, base, auto_class, ignore_mismatched_sizes=True, **how)
    held |= {name.replace("base_model.", "base_model.model.", 1) for name in held}  # beside a prompt, PEFT says less
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
    places = found.settings.get("num_virtual_tokens") or 0  # of a prompt
    tokenizer.model_max_length = min(tokenizer.model_max_length, position_limit(model.config) - places)
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


LOADERS = {"transformers": _load_text, "adapter": _load_adapter}
"""For each kind of files, what loads a model of texts and its tokenizer."""
PICTURES = {"transformers": _load_pictures, "timm": _load_timm}
"""For each kind of files, what loads a model and the preprocessing of its pictures."""


# the task that asks it


def _tag_words(found: Found, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Task:
    if not tokenizer.is_fast:
        raise UserError(f"{found.name}: its tokenizer has no fast version (tokenizer.json), so words have no places")
    return TokenClassification(tokenizer, found.labels)


def _classify_texts(found: Found, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Task:
    return TextClassification(tokenizer, found.labels, pairs=found.columns.get("text_pair") is not None)


def _give_number(found: Found, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Task:
    from graftkit.tasks.text_regression import TextRegression

    return TextRegression(tokenizer, found.labels[0], mean=0.0, sd=1.0, folded=True)


def _give_labels(found: Found, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Task:
    from graftkit.tasks.multi_label_classification import MultiLabelClassification

    task = MultiLabelClassification(tokenizer, found.labels)
    chosen = read_note(found, THRESHOLDS) or {}  # without any, each is 0.5
    task.thresholds = np.array(
        [chosen.get(label, half) for label, half in zip(found.labels, task.thresholds, strict=True)]
    )
    return task


def _answer_questions(found: Found, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Task:
    from graftkit.tasks.question_answering import AnswerConfig, QuestionAnswering

    chosen = read_note(found, ANSWERING) or {}  # without any, some span is always given
    threshold = chosen.get("threshold")
    return QuestionAnswering(
        tokenizer,
        no_answer=threshold is not None,
        max_tokens=chosen.get("max_tokens", AnswerConfig.max_tokens),
        threshold=threshold or 0.0,
    )


def _write_texts(found: Found, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Task:
    from graftkit.tasks.sequence_to_sequence import GenerateConfig, SequenceToSequence, TargetConfig

    settings = _generation(found, model)
    how = GenerateConfig(settings.num_beams or 1, settings.max_new_tokens, settings.max_time)
    return SequenceToSequence(tokenizer, found.prefix, TargetConfig(), how)


def _go_on(found: Found, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Task:
    from graftkit.data.turns import Reader
    from graftkit.tasks.causal_language_modelling import CausalLanguageModelling

    return CausalLanguageModelling(Reader(tokenizer), [], Saved(_generation(found, model)))


def _generation(found: Found, model: nn.Module) -> GenerationConfig:
    """How a model writes, as its folder says it; bounded, where that says nothing of a length."""
    from transformers import GenerationConfig

    plain = model.get_base_model() if found.kind == "adapter" else model
    if (found.folder / "generation_config.json").exists():
        plain.generation_config = GenerationConfig.from_pretrained(found.folder)
    settings = plain.generation_config
    if settings.max_new_tokens is None:
        settings.max_new_tokens = min(settings.max_length or LONGEST, position_limit(plain.config))
    settings.max_length = None
    return settings


@dataclass(frozen=True)
class Saved:
    """How a saved model draws texts, in place of what a recipe is told of that."""

    config: GenerationConfig

    @property
    def max_new_tokens(self) -> int:
        """Tokens that are drawn at most."""
        return self.config.max_new_tokens

    def settings(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> GenerationConfig:
        """All of it."""
        return self.config


@dataclass(frozen=True)
class Made:
    """What a task of texts is made of."""

    auto_class: str  # of transformers, that loads its model
    task: Callable[[Found, PreTrainedTokenizerBase, nn.Module], Task]


TEXTS = {
    "text-classification": Made(TextClassification.auto_class, _classify_texts),
    "token-classification": Made(TokenClassification.auto_class, _tag_words),
    "text-regression": Made(TextClassification.auto_class, _give_number),
    "multi-label-classification": Made(TextClassification.auto_class, _give_labels),
    "question-answering": Made("AutoModelForQuestionAnswering", _answer_questions),
    "text2text-generation": Made("AutoModelForSeq2SeqLM", _write_texts),
    "text-generation": Made("AutoModelForCausalLM", _go_on),
}
"""For each task of texts, how a model of it is loaded and asked."""
