"""Is what is kept always what the network would say now?"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, finish, launch_script, run_recipe
from safetensors.torch import load_file
from test_activations import Made, cache, farthest, learn, of_pictures, of_texts  # noqa: F401 (cache is a fixture)
from test_images import spoil
from test_recipe_contract import TABLES, same_files, stop_after

from graftkit.activation_cache import _Stored, check_views
from graftkit.adapt import Adapted, ClassifierAdaptConfig
from graftkit.errors import Stopped, UserError
from graftkit.feed import load_batches
from graftkit.images import ImageConfig

SGD = ("--adapt.strategy", "head", "--adapt.solver", "sgd")


def keep(made: Made, adapted: Adapted | None = None, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """The task that reads what is kept, and what the record says of it."""
    run = made.run()
    made.run = lambda: run
    with made.cached(adapted or made.adapted("head"), **settings) as task:
        return task, run.record["cache"]


def files(folder: Path) -> list[Path]:
    """What lies in the cache folder."""
    return sorted((folder / "activations").glob("*"))


def weigh(made: Made) -> None:
    """Change one weight a little."""
    with torch.no_grad():
        made.headed.model.bert.encoder.layer[2].output.dense.weight[3, 4] += 1e-6


def set_up(made: Made) -> None:
    """Change a setting of the network that is no weight."""
    made.headed.model.config.layer_norm_eps = 0.1


def cut(made: Made) -> None:
    """Let the tokenizer cut texts sooner."""
    made.task.tokenizer.model_max_length = 9
    made.lengths = {name: np.minimum(lengths, 9) for name, lengths in made.lengths.items()}


def lower(made: Made) -> None:
    """Let the tokenizer read letters as they are."""
    from tokenizers import normalizers

    made.task.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("q", "k")


def cut_before(made: Made) -> None:
    """Let the tokenizer cut the beginning."""
    made.task.tokenizer.truncation_side = "left"


def reword(made: Made) -> None:
    """Change one word of a row of the same length."""
    rows = made.splits.train.map(lambda row: {"text": row["text"].replace(" the ", " a ")})
    made.splits = SimpleNamespace(train=rows, dev=made.splits.dev)


def reorder(made: Made) -> None:
    """Turn the rows round."""
    last = len(made.splits.train) - 1
    made.splits = SimpleNamespace(train=made.splits.train.select(range(last, -1, -1)), dev=made.splits.dev)
    made.lengths = made.lengths | {"train": made.lengths["train"][::-1]}


@pytest.mark.parametrize("change", [None, weigh, set_up, cut, cut_before, lower, reword, reorder])
def test_what_is_kept_of_texts_is_made_again_where_its_numbers_would_be_others(checkpoint, cache, change):  # noqa: F811
    assert keep(of_texts(checkpoint, "bert"))[1]["found"] is False
    before = len(files(cache))
    made = of_texts(checkpoint, "bert")
    if change is not None:
        change(made)
    task, facts = keep(made)
    assert facts["found"] is (change is None)
    assert (len(files(cache)) > before) is (change is not None)
    check_kept(task, made)


@pytest.mark.parametrize("change", [{"mean": (0.4, 0.5, 0.5)}, {"crop_pct": 0.5}, {"interpolation": "bicubic"}, {}])
def test_what_is_kept_of_pictures_follows_how_they_are_read(image_checkpoint, cache, change):  # noqa: F811
    assert keep(of_pictures(image_checkpoint, "test_resnet"))[1]["found"] is False
    made = of_pictures(image_checkpoint, "test_resnet")
    made.task.preprocessing = replace(made.task.preprocessing, **change)
    task, facts = keep(made)
    assert facts["found"] is (not change)
    check_kept(task, made)


def check_kept(task: Any, made: Made) -> None:
    """What is kept is what the network says of each row alone."""
    model = made.adapted("head").model.eval()
    with torch.no_grad():
        batch = next(load_batches(task, made.splits.train, [np.arange(len(made.splits.train))], None))
        found = [record["logits"] for record in task.predict(model, batch)]
        alone = [made.task.collate([made.task.encode(row, None)]) for row in made.splits.train]
        wanted = [made.task.predict(model, batch)[0]["logits"] for batch in alone]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("change", [{"workers": 2}, {"cache": True}, {"augment": "none", "flip": None, "erase": 0.5}])
def test_what_evaluation_sees_does_not_follow_from_how_training_reads(image_checkpoint, cache, change):  # noqa: F811
    made = of_pictures(image_checkpoint, "test_resnet", CROPS)
    keep(made)
    made = of_pictures(image_checkpoint, "test_resnet", CROPS)
    made.task.preprocessing = replace(made.task.preprocessing, config=replace(CROPS, **change))
    assert keep(made)[1]["found"] is True


def test_a_network_of_timm_goes_by_how_it_was_made(image_checkpoint, cache):  # noqa: F811
    keep(of_pictures(image_checkpoint, "test_resnet"))
    made = of_pictures(image_checkpoint, "test_resnet")
    layer = next(module for module in made.headed.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    layer.eps = 0.1
    assert keep(made)[1]["found"] is False


@pytest.mark.parametrize("how", ["cut short", "only begun", "foreign", "of another key"])
def test_what_is_no_whole_file_is_made_again(checkpoint, cache, how):  # noqa: F811
    keep(of_texts(checkpoint, "bert"))
    spoil(files(cache)[0], how)
    made = of_texts(checkpoint, "bert")
    task, facts = keep(made)
    assert facts["found"] is False
    check_kept(task, made)


@pytest.mark.parametrize("strategy", ["head", "last"])
def test_numbers_that_the_network_does_not_say_are_made_again(checkpoint, cache, strategy):  # noqa: F811
    """Such as those of a library of the same version that was mended by hand."""
    made = of_texts(checkpoint, "bert")
    keep(made, made.adapted(strategy), strategy=strategy)
    for path in files(cache):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:4096] + bytes(400) + content[4496:])
    made = of_texts(checkpoint, "bert")
    assert keep(made, made.adapted(strategy), strategy=strategy)[1]["found"] is False
    made = of_texts(checkpoint, "bert")
    assert keep(made, made.adapted(strategy), strategy=strategy)[1]["found"] is True


def test_a_head_of_another_seed_reads_the_same_file(checkpoint):
    keep(of_texts(checkpoint, "bert"))
    made = of_texts(checkpoint, "bert", seed=1)
    torch.nn.init.normal_(made.headed.model.classifier.weight)
    assert keep(made)[1]["found"] is True


# --- views ----------------------------------------------------------------------------------------------------------

CROPS = ImageConfig(size=64, augment="trivial", flip=True)


def test_augmented_pictures_are_kept_only_as_views(image_checkpoint):
    made = of_pictures(image_checkpoint, "test_resnet", CROPS)
    assert keep(made, solver="sgd")[0] is made.task
    assert "--adapt.views 5 keeps so many views of each" in made.said[0]


def test_epochs_see_the_views_in_turn_as_they_would_be_drawn(image_checkpoint, cache):  # noqa: F811
    made = of_pictures(image_checkpoint, "test_resnet", CROPS)
    adapted = made.adapted("head")
    task, facts = keep(made, adapted, solver="sgd", views=2)
    assert facts["rows"] == [26, 4]
    places = np.array([4, 9, 2])
    rows = made.splits.train

    def said(one: Any, chance: tuple[int, int] | None, numbers: np.ndarray = places) -> np.ndarray:
        batch = next(load_batches(one, rows, [numbers], chance))
        with torch.no_grad():
            return np.stack([record["logits"] for record in one.predict(adapted.model.eval(), batch)])

    views = [said(made.task, (0, epoch)) for epoch in range(2)]
    assert np.abs(views[0] - views[1]).max() > 1e-3
    for epoch in range(4):
        np.testing.assert_allclose(said(task, (0, epoch)), views[epoch % 2], atol=1e-5)
    again = places + len(rows)  # drawn a second time in an epoch
    np.testing.assert_allclose(said(task, (0, 0), again), views[1], atol=1e-5)
    np.testing.assert_allclose(said(task, None), said(made.task, None), atol=1e-6)  # none is kept: the plain way
    seen = [learn(one, made.adapted("head"), rows, 6) for one in (task, made.task)]
    assert farthest(*seen) < 1e-6
    made = of_pictures(
        image_checkpoint,
        "test_resnet",
        CROPS,
    )
    assert keep(made, solver="sgd", views=2)[1]["found"] is True
    for change in ({"seed": 1}, {"seed": 0, "crop": 0.9}):
        made = of_pictures(image_checkpoint, "test_resnet", replace(CROPS, crop=change.get("crop", CROPS.crop)))
        made.seed = change["seed"]
        assert keep(made, solver="sgd", views=2)[1]["found"] is False


# --- where it lies --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_not_kept(checkpoint, cache):  # noqa: F811
    made = of_texts(checkpoint, "bert")
    assert keep(made, cache_gb=1e-6)[0] is made.task
    assert made.said == ["not cached: 4 kB of activations; --adapt.cache_gb is 1e-06"]
    assert files(cache) == []


def test_what_cannot_be_written_is_not_kept(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "file"))
    made = of_texts(checkpoint, "bert")
    assert keep(made)[0] is made.task
    assert "nothing can be written to" in made.said[-1]
    assert "set GRAFTKIT_CACHE to another folder" in made.said[-1]


@pytest.mark.parametrize("when", ["before", "while it is written"])
def test_a_full_disk_ends_no_run_and_leaves_nothing(checkpoint, cache, monkeypatch, when):  # noqa: F811
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    if when == "before":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    else:
        monkeypatch.setattr(os, "pwrite", full)
    made = of_texts(checkpoint, "bert")
    assert keep(made)[0] is made.task
    assert ("0 kB are free" if when == "before" else "No space left") in made.said[-1]
    assert files(cache) == []


def test_a_run_that_ends_early_leaves_nothing(checkpoint, cache, monkeypatch):  # noqa: F811
    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        keep(of_texts(checkpoint, "bert"))
    assert files(cache) == []


def test_the_folder_holds_no_more_than_it_may(checkpoint, cache):  # noqa: F811
    keep(of_texts(checkpoint, "bert"))
    first = files(cache)
    for path in first:
        os.utime(path, (1, 1))
    made = of_texts(checkpoint, "bert")
    weigh(made)
    keep(made, cache_gb=15e-6)
    assert len(files(cache)) == 2
    assert not set(first) & set(files(cache))


def refuse(*given: Any, **named: Any) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_a_folder_of_another_user_is_read(checkpoint, cache, monkeypatch):  # noqa: F811
    keep(of_texts(checkpoint, "bert"))
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    (cache / "activations" / "old.rows").write_bytes(b"0" * 10_000)
    os.symlink(cache / "gone", cache / "activations" / "removed.rows")  # as if between the listing and the look
    assert keep(of_texts(checkpoint, "bert"), cache_gb=5e-6)[1]["found"] is True


def test_a_file_that_may_not_be_read_is_made_again(checkpoint, cache, monkeypatch):  # noqa: F811
    keep(of_texts(checkpoint, "bert"))
    first, plain = files(cache)[0], Path.open
    before = first.stat().st_ino
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *given, **named: refuse() if path.stat().st_ino == before else plain(path, *given, **named),
    )
    made = of_texts(checkpoint, "bert")
    task, facts = keep(made)
    assert facts["found"] is False
    check_kept(task, made)


@pytest.mark.parametrize("times", [1, 9])
def test_a_file_that_another_run_removes_meanwhile_is_made_again(checkpoint, cache, monkeypatch, times):  # noqa: F811
    made = of_texts(checkpoint, "bert")
    plain, left = _Stored.make, [times]

    def make(stored: Any, path: Path, plan: Any) -> str | None:
        why = plain(stored, path, plan)
        left[0] -= 1
        if left[0] >= 0:
            path.unlink()
        return why

    monkeypatch.setattr(_Stored, "make", make)
    run = made.run()
    made.run = lambda: run
    with made.cached(made.adapted("head")) as task:
        assert (task is made.task) is (times == 9)
    assert ("set GRAFTKIT_CACHE to a folder of your own" in made.said[-1]) is (times == 9)
    if times == 1:
        check_kept(task, made)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"strategy": "full", "views": 3}, r"--adapt\.views does nothing with --adapt\.strategy full"),
        ({"strategy": "lora", "cache_gb": 3}, r"--adapt\.cache_gb does nothing with --adapt\.strategy lora"),
        ({"strategy": "head", "cache": "off", "cache_gb": 3}, "cache_gb does nothing with --adapt.cache off"),
        ({"strategy": "last", "cache": "off", "views": 3}, "views does nothing with --adapt.cache off"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings, why):
    with pytest.raises(UserError, match=why):
        ClassifierAdaptConfig(**settings)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (None, "does nothing with texts"),
        (ImageConfig(mixup=0.2), "each epoch mixes others"),
        (ImageConfig(augment="none"), r"does nothing with --image\.augment none"),
        (ImageConfig(), None),
        (ImageConfig(augment="none", erase=0.5), None),
    ],
)
def test_views_need_pictures_that_are_augmented(image, why):
    config = ClassifierAdaptConfig(strategy="last", views=3)
    if why is None:
        check_views(config, image)
        return
    with pytest.raises(UserError, match=why):
        check_views(config, image)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def words(checkpoint, data) -> Callable[..., list[str]]:
    """What runs text_classify on a tiny checkpoint."""

    def make(dropout: float = 0.0) -> list[str]:
        start = checkpoint("bert", dropout=dropout)
        plain = ["--backbone.name", start, "--data.path", data, "--run.precision", "fp32", "--train.epochs", 2]
        return [str(word) for word in [*plain, "--train.batch_size", 8, "--train.lr", 1e-3]]

    return make


HALF = ("--run.precision", "bf16", "--adapt.strategy")
TRAINED = ("--train.epochs", "2", "--train.lr", "1e-3")


@pytest.mark.parametrize(
    "given",
    [
        ("head",),
        pytest.param(("last", "--adapt.blocks", "1", *TRAINED), marks=pytest.mark.slow),
        pytest.param(("lp_ft", *TRAINED, "--train.wise_ft"), marks=pytest.mark.slow),
        ("head", "--adapt.solver", "sgd", "--train.soup", "greedy", *TRAINED),
    ],
)
def test_half_precision_is_kept_and_read_as_the_network_computes_it(checkpoint, data, tmp_path, given):
    plain = ["--backbone.name", checkpoint("bert"), "--data.path", data, *HALF, *given]
    for cached in ("auto", "off"):
        run_recipe("text_classify", *plain, "--adapt.cache", cached, "--run.out", tmp_path / cached)
    logs = [(tmp_path / cached / "log.jsonl").read_text().splitlines() for cached in ("auto", "off")]
    ends = [json.loads(lines[-1])["dev"] for lines in logs]
    assert ends[0] == pytest.approx(ends[1], abs=0.1)
    record = json.loads((tmp_path / "auto" / "run.json").read_text())
    assert record["precision"] == "bf16"
    assert record["cache"]["rows"] == [47, 13]


@pytest.mark.parametrize(
    "given",
    [
        ("head",),
        pytest.param(("head", "--adapt.solver", "sgd", "--train.soup", "uniform", *TRAINED), marks=pytest.mark.slow),
    ],
)
def test_half_precision_of_pictures(image_checkpoint, pictures, tmp_path, given):
    plain = ["--backbone.name", image_checkpoint("test_resnet"), "--data.path", pictures, "--image.workers", "0"]
    run_recipe("image_classify", *plain, "--image.augment", "none", *HALF, *given, "--run.out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["cache"]["rows"] == [31, 10]


def test_with_adamw_a_cached_run_answers_as_a_plain_one(words, tmp_path):
    for cached in ("auto", "off"):
        run_recipe("text_classify", *words(), *SGD, "--adapt.cache", cached, "--run.out", tmp_path / cached)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("auto", "off")]
    assert weights[0].keys() == weights[1].keys()
    far = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    for split in ("dev", "test"):
        tables = [pq.read_table(tmp_path / name / f"predictions-{split}.parquet") for name in ("auto", "off")]
        answers = [table.column("prediction").to_pylist() for table in tables]
        assert sum(one != other for one, other in zip(*answers, strict=True)) <= 1, f"weights differ by {far:.2g}"
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("auto", "off")]
    assert records[0]["cache"]["rows"] == [47, 13]
    assert records[0]["cache"]["form"] == "one vector"
    assert "cache" not in records[1]


def test_a_cached_run_that_was_stopped_goes_on_as_if_it_had_not_been(words, tmp_path, monkeypatch):
    given = [*words(dropout=0.1), "--adapt.strategy", "last", "--adapt.blocks", "1"]
    run_recipe("text_classify", *given, "--run.out", tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_after(3, patched)
        with pytest.raises(Stopped):
            run_recipe("text_classify", *given, "--run.out", tmp_path / "parts")
    run_recipe("text_classify", *given, "--run.out", tmp_path / "parts", "--run.resume")
    same_files(tmp_path / "whole", tmp_path / "parts", ["model/model.safetensors", *TABLES, "log.jsonl"])
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["cache"]["found"] is True


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [("head", "--adapt.solver", "sgd"), ("last", "--adapt.blocks", "1")])
def test_two_processes_write_the_file_that_one_writes(words, tmp_path, strategy, monkeypatch):
    given = [*words(), "--adapt.strategy", *strategy]
    kept = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        monkeypatch.setenv("GRAFTKIT_CACHE", str(folder / "cache"))
        recipe = ROOT / "recipes" / "text_classify.py"
        said = finish(launch_script(recipe, *given, "--run.out", folder / "run", processes=processes))
        assert "the frozen part runs once" in said
        kept.append({path.name: path.read_bytes() for path in files(folder / "cache")})
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2
