"""Is any classifier scored as a run scores its own, and is what cannot be scored refused in one line?"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import draw, finish, launch_script, run_recipe, texts, write_csv

from graftkit import classifiers, cli
from graftkit.download import Fetched
from graftkit.report import write_report

TABLES = ("predictions-test.parquet", "rows-test.parquet", "measures-test.parquet")
LONG = ("the old red file is here again " * 12, "tool")  # more tokens than any tiny checkpoint reads
BIRDS = ["bird", "fruit", "tool"]


@pytest.fixture
def evaluate(tmp_path, capsys):
    """Runs `graft evaluate` in this process; the folder that it leaves."""

    def call(*words, out="evaluation") -> Path:
        assert cli.main(["evaluate", *map(str, words), "--run.out", str(tmp_path / out)]) == 0, capsys.readouterr().err
        return tmp_path / out

    return call


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs `graft evaluate` in this process; the one line that it refuses with, leaving no folder."""

    def call(*words) -> str:
        assert cli.main(["evaluate", *map(str, words), "--run.out", str(tmp_path / "refused")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert error.startswith("error: ")
        assert not (tmp_path / "refused").exists()
        return error

    return call


@pytest.fixture(scope="module")
def long_data(tmp_path_factory, data):
    """The data, with a test row that is longer than the model reads."""
    folder = shutil.copytree(data, tmp_path_factory.mktemp("long") / "data")
    write_csv(folder / "test.csv", [*texts(19, 3), LONG])
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, checkpoint, image_checkpoint, long_data, pictures):
    """Makes a run of a kind, once: its folder."""
    made: dict[str, Path] = {}
    folder = tmp_path_factory.mktemp("runs")
    text = ("text_classify", "--data.path", long_data, "--train.epochs", 2, "--train.lr", 5e-3, "--backbone.name")
    image = ("image_classify", "--data.path", pictures, "--train.epochs", 1, "--train.lr", 5e-3, "--backbone.name")
    words = {
        "bert": lambda: (*text, checkpoint("bert"), "--backbone.max_length", 8, "--run.headline", "accuracy"),
        "gpt2-lora": lambda: (*text, checkpoint("gpt2"), "--adapt.strategy", "lora"),
        "timm": lambda: (*image, image_checkpoint("test_efficientnet")),
        "timm-grey": lambda: (*image, image_checkpoint("test_vit"), "--backbone.in_chans", 1, "--image.size", 96),
        "transformers": lambda: (*image, image_checkpoint("convnext"), "--image.workers", 0),
    }

    def make(kind: str) -> Path:
        if kind not in made:
            run_recipe(*words[kind](), "--train.batch_size", 8, "--run.out", folder / kind)
            made[kind] = folder / kind
        return made[kind]

    return make


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, checkpoint):
    """Makes a classifier that no run made, whose answers differ from text to text, with these labels."""
    import torch
    from transformers import AutoModelForSequenceClassification

    def make(kind: str = "bert", labels=BIRDS, **settings) -> Path:
        folder = shutil.copytree(checkpoint(kind), tmp_path_factory.mktemp(kind) / "model")
        torch.manual_seed(0)
        named = {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
        model = AutoModelForSequenceClassification.from_pretrained(folder, **named, **settings)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter *= 8
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, stranger):
    """An adapter as plain PEFT saves it, without our labels.json, on a base with a head and labels of its own."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(stranger())
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "classifier" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def change(file: Path, **settings) -> None:
    """Change settings in a JSON file; None takes one out."""
    config = json.loads(file.read_text()) | settings
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def table(folder: Path) -> list[dict]:
    return pq.read_table(folder / "predictions-test.parquet").to_pylist()


def check_answers(folder: Path, model, tokenizer, labels=BIRDS) -> None:
    """The table holds what the model says of each text by itself, with no padding, and these answers differ."""
    import torch

    rows = pq.read_table(folder / "rows-test.parquet").to_pylist()
    with torch.no_grad():
        inputs = [tokenizer(row["text"], truncation=True, max_length=40, return_tensors="pt") for row in rows]
        expected = np.array([model(**each).logits.softmax(-1)[0].tolist() for each in inputs])
    found = np.array([[row[f"probability:{label}"] for label in labels] for row in table(folder)])
    assert np.ptp(expected, axis=0).max() > 0.02
    np.testing.assert_allclose(found, expected, atol=1e-4)


# a run's own rows


@pytest.mark.parametrize("kind", ["bert", "gpt2-lora"])
def test_a_run_of_texts_is_scored_as_it_scored_itself(runs, long_data, evaluate, kind):
    run = runs(kind)
    found = evaluate(run, "--data.path", long_data)
    for name in TABLES:
        assert (found / name).read_bytes() == (run / name).read_bytes()
    ours, theirs = (json.loads((place / "metrics.json").read_text()) for place in (found, run))
    assert ours["test"] == theirs["test"]  # the headline is the run's own, too
    split = record(found)["data"]["splits"]["test"]
    assert split == record(run)["data"]["splits"]["test"]
    cut = evaluate(run / "model", "--data.path", long_data / "test.csv", out="again")
    assert (cut / TABLES[0]).read_bytes() == (run / TABLES[0]).read_bytes()
    assert "1 longer text was cut" in (cut / "report.md").read_text() or kind == "bert"  # which reads 8 tokens


@pytest.mark.parametrize("kind", ["timm", "timm-grey", "transformers"])
def test_a_run_of_pictures_is_scored_as_it_scored_itself(runs, pictures, evaluate, kind):
    run = runs(kind)
    found = evaluate(run, "--data.path", pictures, "--image.workers", 1)
    for name in TABLES:
        assert (found / name).read_bytes() == (run / name).read_bytes()
    alone = evaluate(run, "--data.path", pictures / "test", "--image.workers", 0, out="alone")
    assert (alone / TABLES[0]).read_bytes() == (run / TABLES[0]).read_bytes()
    images = record(found)["images"]
    assert {name: images[name] for name in images if name != "workers"}.items() <= record(run)["images"].items()
    assert list((found / "report").glob("*.jpg"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "timm"])
def test_two_processes_give_the_same_table(runs, long_data, pictures, tmp_path, kind):
    script = tmp_path / "graft.py"
    script.write_text("import sys\nfrom graftkit.cli import main\nsys.exit(main())\n")
    path = pictures if kind == "timm" else long_data
    words = ("evaluate", runs(kind), "--data.path", path, "--run.out", tmp_path / kind)
    finish(launch_script(script, *words, processes=2))
    assert (tmp_path / kind / TABLES[0]).read_bytes() == (runs(kind) / TABLES[0]).read_bytes()
    assert record(tmp_path / kind)["processes"] == 2


def test_the_folder_holds_what_it_says_and_makes_itself_again(runs, long_data, evaluate):
    found = evaluate(runs("bert"), "--data.path", long_data)
    names = {"config.yaml", "run.json", "metrics.json", "report.html", "report.md", *TABLES}
    assert {path.name for path in found.iterdir()} == names
    facts = record(found)
    assert (facts["recipe"], facts["task"], facts["labels"]) == ("evaluate", "text-classification", BIRDS)
    assert facts["backbone"]["architecture"] == "BertForSequenceClassification"
    assert facts["precision"] == "fp32"
    report = (found / "report.md").read_text()
    assert "not recorded" not in report.replace("Git commit: not recorded", "")
    for word in ("| Dev |", "Training", "Adapting", "Weights kept", "not trained on", "Load the model"):
        assert word not in report
    assert write_report(found) == json.loads((found / "metrics.json").read_text())
    assert (found / "report.md").read_text() == report
    again = evaluate("--config", found / "config.yaml", out="again")
    assert (again / TABLES[0]).read_bytes() == (found / TABLES[0]).read_bytes()
    assert (again / "config.yaml").read_text() == (found / "config.yaml").read_text()


def test_a_run_reads_its_own_columns(stranger, tmp_path, evaluate, refused):
    """Both texts of a pair, as the run's record names them, though other columns look like the text."""
    folder = stranger()
    columns = {"text": "premise", "text_pair": "claim", "label": "truth"}
    (folder.parent / "run.json").write_text(json.dumps({"data": {"columns": columns}}))
    pairs = [(a, b, label) for (a, label), (b, _) in zip(texts(9), texts(9, 4), strict=True)]
    named = write_csv(tmp_path / "a.csv", [(*pair, "x", "y") for pair in pairs], (*columns.values(), "text", "label"))
    told = write_csv(tmp_path / "b.csv", pairs, ("text", "more", "label"))
    by_run = evaluate(folder.parent, "--data.path", named, out="by-run")
    by_user = evaluate(folder.parent, "--data.path", told, "--data.text_pair", "more", out="by-user")
    alone = evaluate(folder, "--data.path", told, "--data.text_pair", "more", out="alone")
    assert record(by_run)["data"]["columns"] == columns
    assert table(by_run) == table(by_user) == table(alone)
    assert "no column 'claim' in" in refused(folder.parent, "--data.path", told)


def test_rows_that_the_run_was_trained_on_are_told(runs, long_data, evaluate):
    found = evaluate(runs("bert"), "--data.path", long_data, "--data.test", "train")
    [warning] = record(found)["warnings"]
    assert "was trained on rows of" in warning
    assert "**Warning:**" in (found / "report.md").read_text()


# models of others


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_model_of_others_answers_as_it_does_by_itself(stranger, data, evaluate, kind):
    """GPT-2's tokenizer here has no padding token; labels stand in the model's order."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labels = ["tool", "unused", "bird", "fruit"]
    folder = stranger(kind, labels)
    found = evaluate(folder, "--data.path", data)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    check_answers(found, model, AutoTokenizer.from_pretrained(folder), labels)
    assert record(found)["labels"] == labels
    assert record(found)["data"]["splits"]["test"]["classes"]["unused"] == 0


def test_an_adapter_of_others_answers_as_it_does_by_itself(adapter, data, evaluate):
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    model = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=3).eval()
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    found = evaluate(adapter, "--data.path", data)
    check_answers(found, model, AutoTokenizer.from_pretrained(base))
    assert record(found)["backbone"]["architecture"] == "BertForSequenceClassification"


def test_labels_without_names_go_by_number(stranger, tmp_path, evaluate, refused):
    folder = stranger(labels=["LABEL_0", "LABEL_1", "LABEL_2"])
    numbered = [(text, str(BIRDS.index(label))) for text, label in texts(9)]
    rows = write_csv(tmp_path / "rows.csv", numbered)
    found = evaluate(folder, "--data.path", rows)
    assert [row["label"] for row in table(found)] == [f"LABEL_{label}" for _, label in numbered]
    assert any("does not name its labels: 1 in the data is its LABEL_1" in note for note in record(found)["notes"])
    line = refused(folder, "--data.path", write_csv(tmp_path / "more.csv", [*numbered, ("a", "3")]))
    assert "a label that the model does not have ('3'; it has 'LABEL_0', 'LABEL_1', 'LABEL_2') in row 10" in line
    line = refused(folder, "--data.path", write_csv(tmp_path / "names.csv", texts(9)))
    assert "none of its labels ('bird', 'fruit', 'tool') is one of the model's ('LABEL_0', " in line
    assert "write the labels as numbers from 0" in line
    line = refused(stranger(), "--data.path", rows)  # names are never numbers
    assert "none of its labels ('0', '1', '2') is one of the model's ('bird', 'fruit', 'tool')" in line


def test_labels_that_the_model_lacks_are_named_or_dropped(stranger, tmp_path, evaluate, refused):
    rows = write_csv(tmp_path / "rows.csv", [*texts(6), ("the gull", "fish"), ("", "bird"), ("a wren", "bird")])
    line = refused(stranger(), "--data.path", rows)
    assert "empty or missing text in row 8" in line
    rows = write_csv(tmp_path / "rows.csv", [*texts(6), ("the gull", "fish"), ("a wren", "bird")])
    line = refused(stranger(), "--data.path", rows)
    assert "a label that the model does not have ('fish'; it has 'bird', 'fruit', 'tool') in row 7. Mend" in line
    found = evaluate(stranger(), "--data.path", rows, "--data.bad_rows", "drop")
    assert [row["id"] for row in table(found)] == [f"test-{i}" for i in (1, 2, 3, 4, 5, 6, 8)]
    assert record(found)["data"]["dropped"] == {"test": {"a label that the model does not have": 1}}
    assert "1 x a label that the model does not have" in (found / "report.md").read_text()


def test_one_row_is_enough(stranger, tmp_path, evaluate):
    found = evaluate(stranger(), "--data.path", write_csv(tmp_path / "rows.csv", texts(1)))
    assert "On 1 test row, this model" in (found / "report.md").read_text()


def test_a_model_from_the_hub_is_named_by_its_commit(stranger, data, evaluate, monkeypatch):
    """What `fetch` does is tested with a server, in test_download.py."""
    folder, asked = stranger(), []

    def fetch(name, revision=None, flag="", *, weights="all"):
        asked.append((name, revision, weights))
        return Fetched(folder, "c0ffee")

    monkeypatch.setattr(classifiers, "fetch", fetch)
    found = evaluate("me/model", "--backbone.revision", "v1", "--data.path", data)
    assert asked == [("me/model", "v1", None), ("me/model", "v1", "all")]  # weights only when the data are good
    facts = {"name": "me/model", "revision": "v1", "commit": "c0ffee", "architecture": "BertForSequenceClassification"}
    assert record(found)["backbone"] == facts
    assert "me/model, revision v1, BertForSequenceClassification, commit c0ffee" in (found / "report.md").read_text()


# which rows


@pytest.mark.parametrize(
    ("files", "words", "expected"),
    [
        (("train.csv", "test.csv"), ("--data.path", "d"), "d/test.csv"),
        (("train.csv", "test.csv"), ("--data.path", "d", "--data.test", "train"), "d/train.csv"),
        (("train.csv", "test.csv"), ("--data.path", "d", "--data.test", "train.csv"), "d/train.csv"),
        (("train.csv", "test.csv"), ("--data.path", "d/train.csv"), "d/train.csv"),
        (("train.csv", "test.csv"), ("--data.test", "d/train.csv"), "d/train.csv"),
        (("dev.csv",), ("--data.path", "d"), "d/dev.csv"),
        (("new.csv",), ("--data.path", "d"), "d/new.csv"),
    ],
)
def test_which_rows_are_scored(stranger, tmp_path, monkeypatch, evaluate, files, words, expected):
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    for name in files:
        write_csv(Path("d", name), texts(6))
    found = evaluate(stranger(), *words)
    assert record(found)["data"]["sources"] == {"test": expected}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "which rows? Set --data.path"),
        (("--data.path", "d"), "no test split in d; found 'a', 'b'. Set --data.test to one of them"),
        (("--data.path", "d", "--data.test", "c"), "no split 'c' in d; found 'a', 'b'. Set --data.test"),
        (("--data.path", "d", "--data.test", "c.csv"), "no such file: c.csv"),
        (("--data.path", "nothing.csv"), "no such file or folder: nothing.csv"),
        (("--data.path", "d/a.csv", "--data.test", "d/b.csv"), "--data.test names a file. Leave it out"),
        (("--data.path", "d/a.csv", "--data.subset", "x"), "--data.subset x is for data sets on the Hub"),
        (("--data.path", "d/a.csv", "--data.label", "stars"), "no column 'stars' in d/a.csv; found 'text', 'label'"),
        (("--data.path", "d/a.csv", "--data.image", "text"), "--data.image text does nothing"),
        (("--data.path", "d/a.csv", "--image.workers", "0"), "--image.workers 0 does nothing"),
        (("--data.path", "d/a.csv", "--data.train", "d/b.csv"), "unknown setting --data.train"),
        (("--data.path", "d/a.csv", "--run.headline", "loss"), "--run.headline loss: this task has macro_f1"),
        (("--data.path", "empty.csv",), "empty.csv is empty"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_scored(stranger, tmp_path, monkeypatch, refused, words, expected):
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    for name in ("a.csv", "b.csv"):
        write_csv(Path("d", name), texts(6))
    Path("empty.csv").write_text("text,label\n")
    assert expected in refused(stranger(), *words)


def test_pictures_that_cannot_be_read_are_named_or_dropped(runs, tmp_path, evaluate, refused):
    for i, shape in enumerate(("disc", "square", "disc")):
        (tmp_path / "new" / shape).mkdir(parents=True, exist_ok=True)
        draw(shape, i).save(tmp_path / "new" / shape / f"{i}.png")
    broken = tmp_path / "new" / "disc" / "broken.png"
    broken.write_bytes(b"no picture")
    assert "disc/broken.png" in refused(runs("timm"), "--data.path", tmp_path / "new")
    found = evaluate(runs("timm"), "--data.path", tmp_path / "new", "--data.bad_rows", "drop")
    assert len(table(found)) == 3
    assert "--data.text body does nothing" in refused(runs("timm"), "--data.path", "x", "--data.text", "body")


def test_texts_can_stay_out_of_the_folder_and_a_folder_is_kept_unless_told(stranger, data, evaluate, tmp_path, capsys):
    model = stranger()
    found = evaluate(model, "--data.path", data, "--run.keep_rows", "false", "--run.headline", "accuracy")
    assert pq.read_table(found / "rows-test.parquet").column_names == ["id", "sha256"]
    assert json.loads((found / "metrics.json").read_text())["test"]["headline"]["name"] == "accuracy"
    words = ["evaluate", str(model), "--data.path", str(data), "--run.out", str(found)]
    assert cli.main(words) == 2
    assert "is not empty; set --run.overwrite or another folder" in capsys.readouterr().err
    evaluate(model, "--data.path", data, "--run.overwrite")
    assert "text" in pq.read_table(found / "rows-test.parquet").column_names


# models that cannot be scored


def test_words_that_make_no_sense(refused, stranger, data):
    assert "say which one model to score: graft evaluate MODEL" in refused("--data.path", data)
    assert "say which one model to score" in refused("a", "b", "--data.path", data)
    assert "say which one model to score" in refused("a", "--backbone.name", "b", "--data.path", data)
    line = refused(stranger(), "--backbone.revision", "main", "--data.path", data)
    assert "--backbone.revision main: only a Hub id has one" in line


def test_places_without_a_model(refused, evaluate, stranger, data, tmp_path, checkpoint):
    rows = ("--data.path", data)
    assert "no such folder here, and not found on the Hub" in refused("no/such", *rows)
    assert "no such folder here, and not found on the Hub" in refused("./no/such/folder", *rows)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds neither a run nor a model" in refused(empty, *rows)
    (empty / "config.yaml").write_text("")
    assert f"this run did not finish (no model/); go on with --run.out {empty} --run.resume" in refused(empty, *rows)
    (empty / "config.json").write_text("{")
    assert "its config.json is no JSON" in refused(empty, *rows)
    assert "classifies neither texts nor pictures (BertModel)" in refused(checkpoint("bert"), *rows)
    found = evaluate(stranger(), *rows)
    assert f"{found} is an evaluation of" in refused(found, *rows)


def drop_tensors(file: Path, part: str) -> None:
    """Save a file of weights again without some of its tensors."""
    from safetensors.torch import load_file, save_file

    kept = {name: tensor for name, tensor in load_file(file).items() if part not in name}
    save_file(kept, file, metadata={"format": "pt"})


def test_weights_that_are_not_whole(refused, stranger, adapter, data, tmp_path):
    rows = ("--data.path", data)
    headless = stranger()
    drop_tensors(headless / "model.safetensors", "classifier")
    assert "2 of its parameters are not in its weights, such as classifier.bias" in refused(headless, *rows)
    broken = stranger()
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert f"{broken} cannot be loaded" in refused(broken, *rows)
    (broken / "model.safetensors").unlink()
    (broken / "pytorch_model.bin").write_bytes(b"a pickle")
    assert "holds pickled weights (.bin) only" in refused(broken, *rows)
    wide = stranger()
    change(wide / "config.json", hidden_size=64)
    assert f"{wide} cannot be loaded" in refused(wide, *rows)
    bare = shutil.copytree(adapter, tmp_path / "bare")
    drop_tensors(bare / "adapter_model.safetensors", "query")
    assert "cannot be loaded on its base: Found missing adapter keys" in refused(bare, *rows)


def test_adapters_that_are_not_whole(refused, adapter, checkpoint, data, tmp_path):
    rows = ("--data.path", data)
    other = shutil.copytree(adapter, tmp_path / "other")
    change(other / "adapter_config.json", task_type="CAUSAL_LM")
    assert "is an adapter, but of no text classifier (task_type CAUSAL_LM)" in refused(other, *rows)
    change(other / "adapter_config.json", task_type="SEQ_CLS", base_model_name_or_path="no/such")
    assert f"{other}: its base no/such: no such folder here, and not found on the Hub" in refused(other, *rows)
    change(other / "adapter_config.json", base_model_name_or_path=str(checkpoint("bert")))  # no head, nor labels
    line = refused(other, "--data.path", write_csv(tmp_path / "rows.csv", [(text, "1") for text, _ in texts(4)]))
    assert "cannot be loaded on its base" in line  # 3 labels in the adapter, 2 by default
    (other / "labels.json").write_text(json.dumps({"labels": BIRDS, "pad_token_id": 0}))
    drop_tensors(other / "adapter_model.safetensors", "classifier")
    assert "2 of its parameters are not in its weights, such as classifier.bias" in refused(other, *rows)
    (other / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in refused(other, *rows)


@pytest.mark.parametrize(
    ("labels", "settings", "expected"),
    [
        (["a"], {}, "does not choose one of several labels"),
        (["a", "b"], {"problem_type": "multi_label_classification"}, "does not choose one of several labels"),
        (["a", "b", "a"], {}, "has more than one label of the name 'a'"),
    ],
)
def test_models_that_choose_no_label(stranger, data, refused, labels, settings, expected):
    assert expected in refused(stranger(labels=labels, **settings), "--data.path", data)


def test_networks_of_timm_that_cannot_be_scored(runs, pictures, tmp_path, refused):
    rows = ("--data.path", pictures)
    folder = shutil.copytree(runs("timm") / "model", tmp_path / "timm")
    change(folder / "config.json", label_names=["disc", "square"])
    assert "a label that the model does not have ('stripes'; it has 'disc', 'square') in" in refused(folder, *rows)
    change(folder / "config.json", label_names=["disc", "square", "stripes", "star"])
    assert "names 4 labels in its config.json (label_names), and its head has 3" in refused(folder, *rows)
    change(folder / "config.json", label_names=None)
    assert "does not name its labels; take one that does, or add label_names" in refused(folder, *rows)
    change(folder / "config.json", label_names=["disc", "square", "stripes"])
    drop_tensors(folder / "model.safetensors", "classifier")
    assert "its weights are not those of its architecture" in refused(folder, *rows)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no weights in safetensors" in refused(folder, *rows)


def test_networks_of_transformers_that_cannot_be_scored(runs, pictures, tmp_path, refused):
    folder = shutil.copytree(runs("transformers") / "model", tmp_path / "convnext")
    drop_tensors(folder / "model.safetensors", "classifier")
    line = refused(folder, "--data.path", pictures)
    assert "2 of its parameters are not in its weights, such as classifier.bias" in line
    (folder / "preprocessor_config.json").unlink()
    assert f"error: {folder}: " in refused(folder, "--data.path", pictures)
