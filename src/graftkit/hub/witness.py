"""What does a stranger's process make of a saved folder?

Run by path, in a process of its own, with plain transformers, timm and PEFT: nothing of graftkit can be imported here.

    python -P witness.py questions.json answers.json
"""

import io
import json
import sys
from importlib.metadata import version

BATCH = 16  # rows that are padded together
PACKAGES = ("torch", "transformers", "timm", "peft")


def main(questions: str, answers: str) -> None:
    """Answer every question of a file; what one of them raises is its answer."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with open(questions, encoding="utf-8") as file:
        asked = json.load(file)
    found = []
    for question in asked:
        try:
            found.append(ASK[question["kind"]](question))
        except Exception as error:  # whatever it is, the folder is not what it should be
            found.append({"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"})
    with open(answers, "w", encoding="utf-8") as file:
        json.dump({"answers": found, "versions": {name: version(name) for name in PACKAGES}}, file)


def ask_text(question: dict) -> dict:
    """Each text by itself; those of a batch padded together; the overlong one."""
    classify = load_adapter(question["folder"]) if question["adapter"] else load_pipeline(question["folder"])
    texts, batch, overlong = question["rows"], question["batch"], question["overlong"]
    return {
        "alone": [classify([text])[0] for text in texts],
        "batch": classify([texts[i] for i in batch]),
        "overlong": classify([overlong])[0] if overlong else None,
    }


def load_pipeline(folder: str):
    """What gives the probability of each label of some texts, or pairs of texts: transformers' pipeline."""
    from transformers import pipeline

    pipe = pipeline("text-classification", folder, dtype="float32")

    def classify(texts):
        rows = [{"text": one, **({"text_pair": pair[0]} if pair else {})} for one, *pair in texts]
        said = pipe(rows, truncation=True, top_k=None, batch_size=BATCH)
        return [{entry["label"]: entry["score"] for entry in entries} for entries in said]

    return classify


def load_adapter(folder: str):
    """The same for an adapter, as the lines say that graftkit prints."""
    import torch
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    with open(f"{folder}/labels.json", encoding="utf-8") as file:
        saved = json.load(file)
    labels = dict(enumerate(saved["labels"]))
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        folder,
        dtype="float32",
        ignore_mismatched_sizes=True,
        num_labels=len(labels),
        id2label=labels,
        label2id={label: i for i, label in labels.items()},
    ).eval()
    model.config.pad_token_id = saved["pad_token_id"]
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def classify(texts):
        columns = [list(column) for column in zip(*texts, strict=True)]
        inputs = tokenizer(*columns, truncation=True, padding=True, return_tensors="pt")
        with torch.no_grad():
            said = model(**inputs).logits.softmax(-1).tolist()
        return [{labels[i]: probability for i, probability in enumerate(row)} for row in said]

    return classify


def ask_picture(question: dict) -> dict:
    """Each file by itself, and those of a batch together, through transformers' pipeline where it reads three channels.

    A folder of timm is asked through timm as well.
    """
    files = [read(path) for path in question["rows"]]
    batch = [files[i] for i in question["batch"]]
    found = {}
    if question["timm"]:
        classify = load_timm(question["folder"], question["channels"])
        found = {"alone": [classify([file])[0] for file in files], "batch": classify(batch)}
    if question["channels"] == 3:
        classify = load_image_pipeline(question["folder"])
        pair = {"alone": [classify([file])[0] for file in files], "batch": classify(batch)}
        found = pair | ({"timm": found["alone"] + found["batch"]} if found else {})
    return found | {"overlong": None}


def read(path: str):
    """The picture in a file's bytes."""
    from PIL import Image

    with open(path, "rb") as file:
        return Image.open(io.BytesIO(file.read()))


def load_image_pipeline(folder: str):
    """What gives the probability of each label of some pictures: transformers' pipeline."""
    from transformers import pipeline

    pipe = pipeline("image-classification", folder)

    def classify(pictures):
        said = pipe(pictures, top_k=None, batch_size=BATCH)
        return [{entry["label"]: entry["score"] for entry in entries} for entries in said]

    return classify


def load_timm(folder: str, channels: int):
    """The same through timm."""
    import timm
    import torch
    from PIL import ImageOps

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    labels = model.pretrained_cfg["label_names"]

    def classify(pictures):
        upright = [ImageOps.exif_transpose(picture).convert("RGB" if channels == 3 else "L") for picture in pictures]
        with torch.no_grad():
            said = model(torch.stack([prepare(picture) for picture in upright])).softmax(-1).tolist()
        return [dict(zip(labels, row, strict=True)) for row in said]

    return classify


ASK = {"text": ask_text, "picture": ask_picture}

if __name__ == "__main__":
    sys.modules["graftkit"] = None  # an import of it fails
    main(*sys.argv[1:])
