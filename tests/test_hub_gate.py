"""Is a folder that is not the trained model found out, whatever was done to it? And is one that is, left alone?

Hashes of files, which would find any change, are not asked here: answers and settings must tell by themselves.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import IMAGE_KINDS, KINDS, make_checkpoint, run_recipe
from safetensors.torch import load_file, save_file

from graftkit.errors import UserError
from graftkit.hub import gate
from graftkit.report.tables import read_rows, write_rows

TEXT = ("--train.epochs", 16, "--train.batch_size", 8, "--train.lr", 5e-3, "--train.head_lr", 5e-3)
PICTURES = ("--train.epochs", 2, "--train.batch_size", 8, "--train.lr", 2e-3, "--train.head_lr", 1e-2)
LORA = ("--adapt.strategy", "lora", "--adapt.merge", "false")


@pytest.fixture(scope="module")
def train(tmp_path_factory, checkpoint, image_checkpoint, data, pictures) -> Callable[..., Path]:
    """Makes a run of a tiny checkpoint, once."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def make(kind: str, *words: object) -> Path:
        if (kind, *words) not in made:
            out = folder / f"{len(made)}-{kind}"
            same = ("--run.precision", "fp32", "--run.out", out, *words)
            if kind in KINDS:
                run_recipe("text_classify", "--backbone.name", checkpoint(kind), "--data.path", data, *TEXT, *same)
            else:
                where = ("--backbone.name", image_checkpoint(kind), "--data.path", pictures, "--image.workers", 0)
                run_recipe("image_classify", *where, *PICTURES, *same)
            shutil.rmtree(out / "checkpoints")
            made[(kind, *words)] = out
        return made[(kind, *words)]

    return make


RUNS = {
    "bert": (),
    "gpt2": (),
    "bert lora": LORA,
    "test_resnet": (),
    "test_efficientnet": ("--adapt.strategy", "lora"),
    "vit": (),
}


# --- faults: each changes a copy of a model's folder ------------------------------------------------------------------


def edit(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change a file of settings."""

    def do(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return do


def put(name: str, *path: str, value: object) -> Callable[[Path], None]:
    """Set one entry of a file of settings to something else."""

    def change(content: dict) -> None:
        for part in path[:-1]:
            content = content[part]
        assert content.get(path[-1]) != value
        content[path[-1]] = value

    return edit(name, change)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Change the tensors."""

    def do(folder: Path) -> None:
        file = next(folder.glob("*.safetensors"))
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return do


def drop(tensors: dict, part: str) -> None:
    names = [name for name in tensors if part in name]
    assert names
    for name in names:
        del tensors[name]


def swap(tensors: dict, one: str, other: str) -> None:
    for name in [name for name in tensors if one in name]:
        pair = name.replace(one, other)
        tensors[name], tensors[pair] = tensors[pair].clone(), tensors[name].clone()


def zero(tensors: dict, name: str) -> None:
    assert tensors[name].any()
    tensors[name].zero_()


def flip(tensors: dict, name: str) -> None:
    tensors[name] = tensors[name].flip(0)


def overflow(tensors: dict) -> None:
    """As a cast to float16 without a look at the range."""
    for name, value in tensors.items():
        tensors[name] = (value * 3e5).half() if "classifier.weight" in name else value.half()


def reset_batch_norms(tensors: dict) -> None:
    for name in tensors:
        if name.endswith("running_mean"):
            tensors[name].zero_()
        if name.endswith("running_var"):
            tensors[name].fill_(1)


def permute_labels(config: dict) -> None:
    first, second = config["id2label"]["0"], config["id2label"]["1"]
    config["id2label"]["0"], config["id2label"]["1"] = second, first


def permute_names(config: dict) -> None:
    config["label_names"] = config["label_names"][1:] + config["label_names"][:1]


def permute_vocabulary(tokenizer: dict) -> None:
    """As the tokenizer of another model has it: the same pieces under other numbers."""
    vocab = tokenizer["model"]["vocab"]
    kept = {entry["content"] for entry in tokenizer["added_tokens"]}
    words = [word for word in vocab if word not in kept]
    numbers = [vocab[word] for word in words]
    vocab.update(zip(words, numbers[7:] + numbers[:7], strict=True))


def another_base(folder: Path) -> None:
    """An adapter on the base of the same shape that it was not trained on."""
    other = make_checkpoint(folder.parent / f"{folder.name}-base", "bert")
    tensors = load_file(other / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, value in tensors.items():
        tensors[name] = value + 0.05 * torch.randn(value.shape, generator=generator)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    put("adapter_config.json", "base_model_name_or_path", value=str(other))(folder)


def shorten_positions(folder: Path) -> None:
    put("tokenizer_config.json", "model_max_length", value=20)(folder)


TOKENIZER, CONFIG, PROCESSOR = "tokenizer_config.json", "config.json", "preprocessor_config.json"
SETTING, ANSWER = "->", "probabilities"  # what a finding says: a setting is another, or an answer is

FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "head dropped": ("bert", weights(lambda t: drop(t, "classifier")), ANSWER),
    "labels permuted": ("bert", edit(CONFIG, permute_labels), "labels changed places"),
    "a label renamed": ("bert", put(CONFIG, "id2label", "0", value="LABEL_0"), "other labels"),
    "labels lost": ("bert", edit(CONFIG, lambda c: c.pop("id2label")), "does not load"),
    "one tensor zeroed": ("bert", weights(lambda t: zero(t, "bert.encoder.layer.1.output.dense.weight")), ANSWER),
    "a bias zeroed": ("bert", weights(lambda t: zero(t, "classifier.bias")), ANSWER),
    "two layers swapped": ("bert", weights(lambda t: swap(t, "layer.0.", "layer.1.")), ANSWER),
    "float16 overflow": ("bert", weights(overflow), ANSWER),
    "another activation": ("bert", put(CONFIG, "hidden_act", value="relu"), ANSWER),
    "sigmoid for softmax": ("bert", put(CONFIG, "problem_type", value="multi_label_classification"), ANSWER),
    "another norm epsilon": ("bert", put(CONFIG, "layer_norm_eps", value=0.1), ANSWER),
    "tokenizer of another model": ("bert", edit("tokenizer.json", permute_vocabulary), ANSWER),
    "letters kept as they are": ("bert", put("tokenizer.json", "normalizer", value=None), SETTING),
    "truncation side": ("bert", put(TOKENIZER, "truncation_side", value="left"), "longer than the model reads"),
    "shorter texts": ("bert", shorten_positions, "longer than the model reads"),
    "another padding token": ("bert", put(TOKENIZER, "pad_token", value="[UNK]"), SETTING),
    "padding id of another model": ("gpt2", put(CONFIG, "pad_token_id", value=7), "padded"),
    "padding token forgotten": ("gpt2", edit(TOKENIZER, lambda c: c.pop("pad_token")), SETTING),
    "positions shuffled": ("gpt2", weights(lambda t: flip(t, "transformer.wpe.weight")), ANSWER),
    "adapter without head": ("bert lora", weights(lambda t: drop(t, "classifier")), "does not load"),
    "adapter scaled": ("bert lora", put("adapter_config.json", "lora_alpha", value=1), ANSWER),
    "base model swapped": ("bert lora", another_base, ANSWER),
    "adapter's labels permuted": ("bert lora", edit("labels.json", lambda c: c["labels"].reverse()), "labels changed"),
    "adapter without labels": ("bert lora", lambda folder: (folder / "labels.json").unlink(), "does not load"),
    "wrong mean": ("test_resnet", put(CONFIG, "pretrained_cfg", "mean", value=[0.1, 0.1, 0.1]), ANSWER),
    "wrong crop": ("test_resnet", put(CONFIG, "pretrained_cfg", "crop_pct", value=0.6), ANSWER),
    "wrong interpolation": ("test_resnet", put(CONFIG, "pretrained_cfg", "interpolation", value="nearest"), ANSWER),
    "batch norm reset": ("test_resnet", weights(reset_batch_norms), ANSWER),
    "names of labels permuted": ("test_resnet", edit(CONFIG, permute_names), "labels changed places"),
    "another architecture": ("test_resnet", put(CONFIG, "architecture", value="test_vit"), "does not load"),
    "weights missing": ("test_efficientnet", lambda folder: (folder / "model.safetensors").unlink(), "does not load"),
    "head of timm zeroed": ("test_efficientnet", weights(lambda t: zero(t, "classifier.weight")), ANSWER),
    "pixels not scaled": ("vit", put(PROCESSOR, "do_rescale", value=False), ANSWER),
    "another size": ("vit", put(PROCESSOR, "size", value={"height": 32, "width": 32}), "does not load"),
    "processor's mean": ("vit", put(PROCESSOR, "image_mean", value=[0.0, 0.0, 0.0]), ANSWER),
}  # fmt: skip


@pytest.fixture(scope="module")
def judged(train, tmp_path_factory) -> dict[str, tuple[list[str], list[str]]]:
    """What is found in every faulty folder, and in the folders left as they are: one fresh process for all."""
    place, questions = tmp_path_factory.mktemp("faults"), {}
    for name, words in RUNS.items():
        questions[name] = gate.make_question(train(name.split()[0], *words), train(name.split()[0], *words) / "model")
    for name, (of, fault, _) in FAULTS.items():
        run = train(of.split()[0], *RUNS[of])
        folder = Path(shutil.copytree(run / "model", place / name.replace(" ", "-")))
        fault(folder)
        questions[name] = gate.make_question(run, folder)
    answers, _ = gate.ask(list(questions.values()))
    return {name: found(q, answer) for (name, q), answer in zip(questions.items(), answers, strict=True)}


def found(question: gate.Question, answer: dict) -> tuple[list[str], list[str]]:
    """What the settings say of a folder, and what its answers say."""
    return gate.changed_settings(question.run["saved"]["settings"], question.folder), gate.judge(question, answer)[0]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(judged, name):
    settings, answers = judged[name]
    expected = FAULTS[name][2]
    assert expected in "; ".join(settings if expected == SETTING else answers)


def test_most_faults_show_in_the_answers(judged):
    assert len(FAULTS) >= 30
    assert len([name for name in FAULTS if judged[name][1]]) >= 25


@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_found_in_what_was_saved(judged, name):
    assert judged[name] == ([], [])


def test_what_a_check_says(train):
    run = train("bert")
    found = gate.verify(run, run / "model")  # by a process of its own
    assert found["rows"] == 19  # all of test
    assert found["max_difference"] < 1e-5
    assert found["padded_batch"]["rows"] == 16
    assert found["padded_batch"]["max_difference"] < 1e-5
    assert found["beyond_max_length"]["max_difference"] < 1e-5
    assert found["headline"]["run"] == found["headline"]["fresh"] > 0.3
    assert set(found["versions"]) == {"torch", "transformers", "timm", "peft"}


@pytest.mark.parametrize("change", ["changed", "missing", "was not saved"])
def test_a_file_that_is_not_the_runs_is_refused(train, tmp_path, change):
    folder = Path(shutil.copytree(train("bert") / "model", tmp_path / "model"))
    file = folder / TOKENIZER
    if change == "changed":
        file.write_text(file.read_text() + " ")  # the same settings in other bytes
    elif change == "missing":
        file.unlink()
    else:
        (folder / "notes.txt").write_text("mine")
    run = Path(shutil.copytree(train("bert"), tmp_path / "run", ignore=lambda *_: ["model"]))
    folder.rename(run / "model")
    with pytest.raises(UserError, match=f"is not the one that the run tested: .*{change}"):
        gate.check_files(run, gate.read_record(train("bert")))
    gate.check_files(train("bert"), gate.read_record(train("bert")))


def test_the_sample_has_the_longest_row_and_few_others(train, monkeypatch):
    monkeypatch.setattr(gate, "ROWS", 5)
    question = gate.make_question(train("bert"), train("bert") / "model")
    lengths = [len(row["text"]) for row in gate.rows.rows_of_test(train("bert"), question.run)]
    assert len(question.asked) in (5, 6)
    assert len(question.asked[0][0]) == max(lengths)
    assert sorted(question.batch) == list(range(len(question.asked)))


def test_rows_that_were_not_kept_are_read_from_the_data_again(train, data, tmp_path):
    run = train("bert", "--run.keep_rows", "false")
    assert gate.make_question(run, run / "model").asked == gate.make_question(train("bert"), run / "model").asked
    moved = Path(shutil.copytree(run, tmp_path / "run"))
    settings = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(settings.replace(str(data), str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"the rows that .*run was tested on are needed to check its model: .*gone"):
        gate.verify(moved, moved / "model")
    other = Path(shutil.copytree(data, tmp_path / "gone"))
    lines = (other / "test.csv").read_text().splitlines()
    (other / "test.csv").write_text("\n".join([lines[0], "a saw," + lines[1].rpartition(",")[2], *lines[2:]]))
    with pytest.raises(UserError, match="holds other test rows than"):
        gate.verify(moved, moved / "model")
    assert gate.make_question(moved, moved / "model", str(data)).asked == gate.make_question(run, run / "model").asked
    changed = Path(shutil.copytree(train("bert"), tmp_path / "changed"))
    rows = read_rows(changed, "test")
    write_rows(changed, "test", [rows[0] | {"text": "a saw"}, *rows[1:]])
    with pytest.raises(UserError, match="is not what the run read"):
        gate.make_question(changed, changed / "model")


def test_a_picture_that_plain_libraries_read_otherwise_is_drawn_anew():
    import io

    from PIL import Image

    from graftkit.pictures import open_picture

    def png(picture) -> bytes:
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()

    rng = np.random.default_rng(0)
    plain = Image.fromarray(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (8, 9), dtype=np.uint16))
    clear = plain.convert("RGBA")
    clear.putalpha(100)
    images = {"input_size": [3, 64, 64], "size": [4, 4]}
    assert gate.as_plain_libraries_read(png(plain), images) == png(plain)
    for picture in (deep, clear):
        redrawn = gate.as_plain_libraries_read(png(picture), images)
        assert redrawn != png(picture)
        with Image.open(io.BytesIO(redrawn)) as seen:
            assert seen.convert("RGB").tobytes() == open_picture(png(picture)).tobytes()
    long = plain.resize((50, 2))
    with Image.open(io.BytesIO(gate.as_plain_libraries_read(png(long), images))) as seen:
        assert seen.size == (8, 2)


STRATEGIES = {
    "full": (),
    "head": ("--adapt.strategy", "head", "--adapt.solver", "sgd"),
    "last": ("--adapt.strategy", "last", "--adapt.blocks", 1),
    "lora": ("--adapt.strategy", "lora"),
}


@pytest.mark.slow
def test_no_alarm_in_fifty_clean_runs(train):
    """All tiny models, strategies and seeds: one process checks them all."""
    cases = [(kind, words) for kind in (*KINDS, *IMAGE_KINDS) for words in STRATEGIES.values()]
    cases += [("bert", (*words, "--run.seed", 1)) for words in STRATEGIES.values()]
    assert len(cases) >= 50
    runs = [train(kind, *words) for kind, words in cases]
    questions = [gate.make_question(run, run / "model") for run in runs]
    answers, _ = gate.ask(questions)
    alarms = {run.name: found(q, a) for run, q, a in zip(runs, questions, answers, strict=True)}
    assert {name: said for name, said in alarms.items() if said != ([], [])} == {}
    for run in runs:
        gate.check_files(run, gate.read_record(run))
