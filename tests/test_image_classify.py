"""The recipe for pictures, end to end, on tiny checkpoints and drawn pictures."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import draw, finish, launch, launch_script, load_recipe, run_recipe

from graftkit.errors import UserError
from graftkit.task import Row

ASK = """
import sys
sys.modules["graftkit"] = None
import json
from transformers import pipeline
def ask(folder):
    classify = pipeline("image-classification", folder)
    return [{a["label"]: a["score"] for a in answers} for answers in classify(sys.argv[2:], top_k=None)]
print(json.dumps([ask(folder) for folder in json.loads(sys.argv[1])]))
"""


def words(checkpoint, data, *more):
    return [
        "--backbone.name", checkpoint, "--data.path", data, "--train.epochs", 2, "--train.batch_size", 8,
        "--train.lr", 2e-3, "--train.head_lr", 1e-2, "--run.precision", "fp32", "--image.workers", 0, *more,
    ]  # fmt: skip


def train(out, checkpoint, data, *more):
    return run_recipe("image_classify", *words(checkpoint, data, *more), "--run.out", out)


def table(run: Path, split: str = "test") -> list[dict]:
    return pq.read_table(run / f"predictions-{split}.parquet").to_pylist()


RUNS = {
    "test_resnet": (),
    "test_efficientnet": ("--adapt.strategy", "lora"),
    "test_vit": ("--adapt.strategy", "last", "--adapt.blocks", 1, "--image.size", 96),
    "test_convnext": ("--adapt.strategy", "head", "--adapt.solver", "sgd"),
    "vit": (),
    "convnext": ("--adapt.strategy", "lora"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory, image_checkpoint, pictures) -> dict[str, tuple[Path, list[dict[str, float]]]]:
    """A run of each kind, and what a pipeline says of its test files in a process that cannot import graftkit."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, more in RUNS.items():
        train(folder / kind, image_checkpoint(kind), pictures, *more)
    files = [row["path"] for row in pq.read_table(folder / "vit" / "rows-test.parquet").to_pylist()]
    command = [sys.executable, "-c", ASK, json.dumps([str(folder / kind / "model") for kind in RUNS]), *files]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout
    return {kind: (folder / kind, found) for kind, found in zip(RUNS, json.loads(said), strict=True)}


@pytest.mark.parametrize("kind", RUNS)
def test_a_saved_model_answers_raw_files_as_the_table_says(answers, kind):
    """From JPEG files, through a plain pipeline."""
    run, found = answers[kind]
    assert len(found) == 13
    for row, answer in zip(table(run), found, strict=True):
        assert answer == pytest.approx({label: row[f"probability:{label}"] for label in answer}, abs=1e-4)
    assert np.ptp([row["probability:disc"] for row in table(run)]) > 1e-3
    assert not [p for p in run.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert (run / "adapter" / "adapter_model.safetensors").exists() == ("lora" in RUNS[kind])


def test_the_adapter_beside_the_model_gives_the_same_answers(answers, image_checkpoint):
    import timm
    import torch
    from peft import PeftModel

    run, _ = answers["test_efficientnet"]
    base = timm.create_model(f"local-dir:{image_checkpoint('test_efficientnet')}", pretrained=True, num_classes=3)
    adapted = PeftModel.from_pretrained(base, run / "adapter").eval()
    merged = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(adapted(pixels), merged(pixels), atol=1e-4, rtol=1e-4)


def test_it_learns_and_the_folder_holds_what_it_says(tmp_path, image_checkpoint, pictures):
    run = tmp_path / "run"
    metrics = train(run, image_checkpoint("test_resnet"), pictures, "--train.epochs", 12, "--image.augment", "none")
    assert metrics["test"]["scores"]["accuracy"] > 0.6  # chance: 0.38
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml", "run.json", "log.jsonl", "timing.jsonl", "model", "predictions-test.parquet", "metrics.json",
        "baselines-test.parquet", "measures-test.parquet", "measures-dev.parquet",
        "predictions-dev.parquet", "rows-test.parquet", "rows-dev.parquet", "report.md", "checkpoints",
    }  # fmt: skip
    record = json.loads((run / "run.json").read_text())
    assert record["task"] == "image-classification"
    assert record["images"]["size"] == [64, 64]
    rows = pq.read_table(run / "rows-test.parquet").to_pylist()
    assert rows[0]["thumbnail"][:2] == b"\xff\xd8"  # a JPEG
    assert "pictures" in (run / "report.md").read_text()


def test_pictures_can_stay_out_of_the_folder(tmp_path, image_checkpoint, pictures):
    run = tmp_path / "run"
    train(run, image_checkpoint("test_resnet"), pictures, "--run.keep_rows", "false", "--train.epochs", 1)
    assert pq.read_table(run / "rows-test.parquet").column_names == ["id", "sha256"]
    assert not (run / "report").exists() or not list((run / "report").iterdir())


SAME = ("log.jsonl", "model/model.safetensors", "predictions-test.parquet", "predictions-dev.parquet", "metrics.json")
AUGMENTED = ("--image.augment", "trivial", "--image.mixup", 0.2, "--image.cutmix", 1, "--image.erase", 0.3)


@pytest.mark.slow
def test_workers_change_nothing_and_neither_does_a_stop(tmp_path, image_checkpoint, pictures):
    """A row's picture follows from (seed, epoch, row): the same with 0 and with 2 workers, and after a resume.

    The network has convolutions in channels-last memory, whose optimizer state must come back so, and batch norms.
    """
    command = words(
        image_checkpoint("test_efficientnet"), pictures, *AUGMENTED, "--train.epochs", 6, "--train.save_every", 1
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run_recipe("image_classify", *command, "--run.out", whole)
    command += ["--image.workers", 2]
    process = launch("image_classify", *command, "--run.out", stopped)
    while (stopped / "log.jsonl").exists() is False or (stopped / "log.jsonl").read_text().count('"loss"') < 5:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finish(launch("image_classify", *command, "--run.out", stopped, "--run.resume"))
    for name in SAME:
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_signal_to_all_processes_of_a_run_saves(tmp_path, image_checkpoint, pictures):
    """As a cluster stops a job: the processes that read pictures get it too, and must not take the update along."""
    command = words(image_checkpoint("test_resnet"), pictures, "--train.epochs", 30, "--image.workers", 2)
    run = tmp_path / "run"
    process = launch("image_classify", *command, "--run.out", run, start_new_session=True)
    while not (run / "log.jsonl").exists() or (run / "log.jsonl").read_text().count('"loss"') < 6:
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    said = finish(process, code=128 + signal.SIGTERM)
    update = int(re.search(r"stopped by SIGTERM after update (\d+), which is saved", said)[1])
    assert (run / "checkpoints" / f"update-{update:08d}").exists()


@pytest.mark.slow
def test_tables_are_byte_identical_for_one_and_two_processes(tmp_path, image_checkpoint, pictures):
    """From the same saved weights: at a rate at which nothing moves."""
    still = ("--train.lr", 1e-300, "--train.head_lr", 1e-300, "--train.weight_decay", 0, "--train.epochs", 1)
    for processes in (1, 2):
        command = [*words(image_checkpoint("test_vit"), pictures, *still), "--run.out", tmp_path / str(processes)]
        finish(launch("image_classify", *command, processes=processes))
    for name in SAME[1:]:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_the_cache_gives_the_same_evaluation_and_is_used(tmp_path, image_checkpoint, pictures, monkeypatch):
    from graftkit.tasks import image_classification

    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    command = ("--image.augment", "none")
    train(tmp_path / "plain", image_checkpoint("test_resnet"), pictures, *command)
    opened, read = [], image_classification.read
    monkeypatch.setattr(image_classification, "read", lambda row, *more: opened.append(row["id"]) or read(row, *more))
    train(tmp_path / "cached", image_checkpoint("test_resnet"), pictures, *command, "--image.cache")
    assert not [id for id in opened if id.startswith("train")]
    for name in SAME:
        assert (tmp_path / "cached" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    assert "cache of 31 pictures" in (tmp_path / "cached" / "report.md").read_text()


def test_a_worker_that_dies_names_its_picture(tmp_path, image_checkpoint, pictures):
    script = tmp_path / "dying.py"
    recipe = Path(load_recipe("image_classify").__file__)
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(recipe.parent)!r})\n"
        "import image_classify\n"
        "from graftkit.config import start\n"
        "from graftkit.tasks import image_classification\n"
        "read = image_classification.read\n"
        "def dies(row, *more):\n"
        "    if row['path'].endswith('stripes/05.jpg'): os._exit(9)\n"
        "    return read(row, *more)\n"
        "image_classification.read = dies\n"
        "start(image_classify.main, image_classify.Config)\n"
    )
    command = [*words(image_checkpoint("test_resnet"), pictures), "--image.workers", 1, "--run.out", tmp_path / "run"]
    said = finish(launch_script(script, *command), code=2)
    assert "a process that reads rows died" in said
    assert "train/stripes/05.jpg" in said
    assert "Traceback" not in said


def test_a_picture_that_breaks_after_the_check_is_one_line(tmp_path, image_checkpoint, pictures, monkeypatch):
    """The file was fine when the data were checked, and is not when it is read."""
    from graftkit.tasks.image_classification import ImageClassification

    folder = tmp_path / "data"
    shutil.copytree(pictures, folder)
    broken, encode = folder / "train" / "disc" / "00.jpg", ImageClassification.encode

    def spoil(self: ImageClassification, row: Row, rng) -> dict:
        broken.write_bytes(broken.read_bytes()[:300])
        return encode(self, row, rng)

    monkeypatch.setattr(ImageClassification, "encode", spoil)
    with pytest.raises(UserError, match=r"train/disc/00.jpg: .*mend or remove it") as error:
        train(tmp_path / "run", image_checkpoint("test_resnet"), folder, "--image.workers", 1)
    assert "\n" not in str(error.value)


def test_a_class_that_dev_lacks_shifts_no_other(tmp_path, image_checkpoint, pictures):
    """timm numbers the classes of each split by itself: without discs in dev, squares would be discs there."""
    folder = tmp_path / "data"
    shutil.copytree(pictures, folder)
    shutil.rmtree(folder / "dev" / "disc")
    run = tmp_path / "run"
    metrics = train(run, image_checkpoint("test_resnet"), folder, "--train.epochs", 12, "--image.augment", "none")
    assert {row["label"] for row in table(run, "dev")} == {"square", "stripes"}
    assert metrics["dev"]["scores"]["accuracy"] > 0.8  # numbered by themselves, both would be wrong


def test_grey_and_turned_pictures_train(tmp_path, image_checkpoint):
    from PIL import Image

    for i in range(24):
        folder = tmp_path / "data" / ("train" if i < 20 else "test") / ("disc", "square")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shape = folder.name
        picture = draw(shape, i).convert("L" if i % 3 else "CMYK")
        if i % 4 == 0:
            exif = Image.Exif()
            exif[0x0112] = 6
            picture.save(folder / f"{i}-exif.jpg", exif=exif)
        else:
            picture.save(folder / f"{i}.jpg")
    metrics = train(tmp_path / "run", image_checkpoint("test_resnet"), tmp_path / "data", "--backbone.in_chans", 1)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"][0] == 1
    assert metrics["test"]["rows"] == 4
    rows = pq.read_table(tmp_path / "run" / "rows-test.parquet").to_pylist()
    plain = [i for i, row in enumerate(rows) if Image.open(row["path"]).mode == "L" and "exif" not in row["path"]]
    for i in plain[:1]:  # of others, the snippet leaves out what CMYK and EXIF would need
        snippet = json.loads((tmp_path / "run" / "run.json").read_text())["snippet"]
        snippet = snippet.replace("a picture.jpg", rows[i]["path"])
        said = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True).stdout
        answer, expected = ast.literal_eval(said), table(tmp_path / "run")[i]
        assert answer == pytest.approx({label: expected[f"probability:{label}"] for label in answer}, abs=1e-4)
    assert len(plain) == 2


@pytest.mark.slow
def test_two_processes_see_the_pictures_that_one_sees(tmp_path, image_checkpoint, pictures):
    """Augmented, mixed and erased by (seed, epoch, row): the losses of all updates agree to rounding."""
    losses = []
    for processes, batch_size in ((1, 8), (2, 4)):
        run = tmp_path / str(processes)
        command = words(image_checkpoint("test_vit"), pictures, *AUGMENTED, "--train.batch_size", batch_size)
        finish(launch("image_classify", *command, "--run.out", run, processes=processes))
        events = map(json.loads, (run / "log.jsonl").read_text().splitlines())
        losses.append([event["loss"] for event in events if "loss" in event])
    assert len(set(losses[0])) == len(losses[0]) > 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_merge_that_changes_the_answers_is_refused(tmp_path, image_checkpoint, pictures, monkeypatch):
    """As a layer would that PEFT merges wrongly: the adapter stays, and no model is written."""
    from peft.tuners.lora import Conv2d

    right = Conv2d.get_delta_weight
    monkeypatch.setattr(Conv2d, "get_delta_weight", lambda self, name: right(self, name) * 5)
    command = words(image_checkpoint("test_efficientnet"), pictures, "--adapt.strategy", "lora", "--train.lr", 0.05)
    with pytest.raises(RuntimeError, match=r"the merged model is not the trained one: .* The adapter is whole"):
        run_recipe("image_classify", *command, "--run.out", tmp_path / "run")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "run" / "model").exists()
