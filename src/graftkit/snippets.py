"""Which lines load a saved folder?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from graftkit.export import ADAPTER, LABELLED, UNLABELLED


def loading(auto_class: str, folder: Path, hub_id: str | None = None, also: Sequence[str] = ()) -> str:
    """The lines of plain transformers, or PEFT, that load a saved `model` and its `tokenizer`; as `load_saved` does.

    They load from `folder`, or the same from the Hub; `also` names what later lines need of transformers besides.
    """
    here = repr(hub_id or str(folder))
    if (folder / ADAPTER).exists():
        return _loading_adapter(auto_class, here, hub_id is not None, also)
    return LOAD.format(
        imports=f"from transformers import {', '.join([auto_class, 'AutoTokenizer', *also])}",
        folder=here,
        model=f'model = {auto_class}.from_pretrained(folder, dtype="float32")',
    )


def _loading_adapter(auto_class: str, here: str, on_hub: bool, also: Sequence[str]) -> str:
    """Those of an adapter; one with labels reads what PEFT does not store from a file, which the Hub brings first."""
    labelled = auto_class in LABELLED
    auto = auto_class.replace("AutoModel", "AutoPeftModel")
    settings = "".join(f", {name}={value}" for name, value in UNLABELLED.get(auto_class, {}).items())
    model = f'model = {auto}.from_pretrained(folder, dtype="float32"{settings})'
    mend, *needed = AFTER_PEFT.get(auto_class, ("",))
    return LOAD.format(
        imports="\n".join([
            *(["import json", ""] if labelled else []),
            *(["from huggingface_hub import snapshot_download"] if labelled and on_hub else []),
            f"from peft import {auto}",
            f"from transformers import {', '.join(dict.fromkeys(['AutoTokenizer', *needed, *also]))}",
        ]),
        folder=f"snapshot_download({here})" if labelled and on_hub else here,
        model=(LOAD_LABELLED.format(labels=LABELS_OF[auto_class], auto=auto) if labelled else model) + mend,
    )  # fmt: skip


LOAD = """\
{imports}

folder = {folder}
{model}
tokenizer = AutoTokenizer.from_pretrained(folder)"""

LABELS_OF = {
    "AutoModelForSequenceClassification": """\
saved = json.load(open(f"{folder}/labels.json", encoding="utf-8"))
labels = dict(enumerate(saved["labels"]))""",
    "AutoModelForTokenClassification": """\
labels = dict(enumerate(json.load(open(f"{folder}/labels.json", encoding="utf-8"))["labels"]))""",
}
"""The lines that read the labels of an adapter of each class that is `LABELLED`."""

LOAD_LABELLED = """\
{labels}
model = {auto}.from_pretrained(
    folder, dtype="float32", ignore_mismatched_sizes=True,
    num_labels=len(labels), id2label=labels, label2id={{label: i for i, label in labels.items()}},
)"""

AFTER_PEFT = {
    "AutoModelForSequenceClassification": ('\nmodel.config.pad_token_id = saved["pad_token_id"]',),
    "AutoModelForCausalLM": (
        "\nmodel.generation_config = model.get_base_model().generation_config = "
        "GenerationConfig.from_pretrained(folder)",
        "GenerationConfig",
    ),
}
"""What PEFT leaves as the base has it: the line that mends that, and what it needs of transformers."""


# those that ask a classifier


def classifying(
    folder: Path, hub_id: str | None = None, ask: tuple[str, str] | None = None, *, pairs: bool = False
) -> str:
    """The lines of Python that load a saved model, or the same from the Hub, and classify a text, or one of `pairs`.

    `ask` are the lines of a task whose answer is no choice of one label: all of them for a plain model, and for an
    adapter those that follow once it has `inputs`.
    """
    plain, told = ask or (PLAIN, TOLD)
    if not (folder / ADAPTER).exists():
        return plain.replace(TEXT, TEXT_AND_PAIR if pairs else TEXT).format(folder=hub_id or str(folder))
    inputs = INPUTS.replace(TEXT, f'{TEXT}, ["its pair"]' if pairs else TEXT)
    return "\n".join([loading("AutoModelForSequenceClassification", folder, hub_id), inputs, told])


TEXT, TEXT_AND_PAIR = '["a text"]', '[{{"text": "a text", "text_pair": "its pair"}}]'

PLAIN = """\
from transformers import pipeline

classify = pipeline("text-classification", {folder!r}, dtype="float32")
print(classify(["a text"], truncation=True, top_k=None))"""

INPUTS = 'inputs = tokenizer(["a text"], truncation=True, padding=True, return_tensors="pt")'

TOLD = """\
for row in model(**inputs).logits.softmax(-1).tolist():
    print({labels[i]: probability for i, probability in enumerate(row)})"""
