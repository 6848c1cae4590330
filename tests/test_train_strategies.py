"""Gradual unfreezing, rates by depth, L2-SP and the average of the weights, in training from end to end."""

from __future__ import annotations

import json
import re

import pytest
import torch
from conftest import finish, launch, load_recipe, run_recipe
from safetensors import safe_open
from safetensors.torch import load_file
from test_recipe_contract import same_files, stop_after

from graftkit import checkpoint as checkpoints
from graftkit.adapt import AdaptConfig, Adapted
from graftkit.config import parse
from graftkit.errors import Stopped, UserError
from graftkit.feed import Feed
from graftkit.learn import check_turns
from graftkit.train import TrainConfig
from graftkit.turns import take_turns

FIVE_EPOCHS = ("--train.epochs", 5, "--train.batch_size", 12, "--train.lr", 1e-2, "--train.head_lr", 1e-2)
FREEZING = ("--train.unfreeze_every", 1, "--train.soup", "uniform", "--train.l2_sp", 20)
AVERAGED = ("--train.ema", 0.9, "--train.layer_decay", 0.8, "--train.save_every", 2)
UPDATES = 4  # an epoch


@pytest.fixture(scope="module")
def words(checkpoint, data):
    """What runs the text recipe on a tiny BERT with dropout."""
    return ("--backbone.name", checkpoint("bert", dropout=0.1), "--data.path", data, "--run.precision", "fp32")


def train(out, *words) -> None:
    """The text recipe until the end of training; what follows is not run."""
    recipe = load_recipe("text_classify")
    recipe.finish, recipe.share = lambda *_, **__: {}, lambda *_: None
    recipe.main(parse(recipe.Config, [str(word) for word in (*words, "--run.out", out)]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, words):
    """Runs that were not stopped: of gradual unfreezing with L2-SP, and of an average with rates by depth."""
    folder = tmp_path_factory.mktemp("whole")
    for name, flags in (("freezing", FREEZING), ("averaged", AVERAGED)):
        train(folder / name, *words, *FIVE_EPOCHS, *flags)
    return folder


def files_of(run) -> list[str]:
    """All files of a run's checkpoints."""
    return sorted(str(path.relative_to(run)) for path in (run / "checkpoints").rglob("*.*"))


def names_in(path) -> set[str]:
    with safe_open(path, "pt") as file:
        return set(file.keys())


def group_of(name: str) -> int:
    """How many epochs pass before a parameter of BERT with 3 blocks begins."""
    if name.startswith("classifier."):
        return 0
    if "pooler" in name:
        return 1
    block = re.search(r"layer\.(\d)\.", name)
    return 4 if block is None else 3 - int(block[1])


def test_groups_train_from_their_epoch_on_and_not_before(whole, words):
    paths = checkpoints.of_epochs(whole / "freezing" / "checkpoints")
    assert [path.name for path in paths] == [f"update-{UPDATES * epoch:08d}" for epoch in range(1, 6)]
    source = {f"bert.{name}": value for name, value in load_file(words[1] / "model.safetensors").items()}
    weights = [checkpoints.read_weights(path) for path in paths]
    for name, value in source.items():
        same = [torch.equal(epoch[name], value) for epoch in weights]
        assert same == [epoch <= group_of(name) for epoch in range(1, 6)], name
        assert max(float((epoch[name] - value).abs().max()) for epoch in weights) < 2 / 20  # L2-SP at 20
    assert len({group_of(name) for name in source}) == 4
    events = [json.loads(line) for line in (whole / "freezing" / "log.jsonl").open()]
    rates = [event["lr"] for event in events if "lr" in event]
    assert rates[:UPDATES] == [0.0] * UPDATES
    assert min(rates[UPDATES:]) > 0
    heads = [event["head_lr"] for event in events if "lr" in event]
    assert len(heads) == len(rates)
    assert min(heads) > 0
    notes = " ".join(json.loads((whole / "freezing" / "run.json").read_text())["notes"])
    assert "trains alone for 1 epoch (4 updates); then a group joins it" in notes
    assert "after epoch 4 everything trains" in notes
    assert re.search(r"pulled to where they began: a copy of 0.1 MiB", notes)


@pytest.mark.parametrize(("name", "flags"), [("freezing", FREEZING), ("averaged", AVERAGED)])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, whole, words, monkeypatch, name, flags):
    out = tmp_path / "parts"
    with monkeypatch.context() as patched:
        stop_after(9, patched)  # some updates into the third epoch
        with pytest.raises(Stopped, match=r"after update \d+, which is saved"):
            train(out, *words, *FIVE_EPOCHS, *flags)
    newest = checkpoints.newest(out / "checkpoints")
    update = checkpoints.read_state(newest).update
    assert 2 * UPDATES < update < 3 * UPDATES
    stepped = {key.rpartition("/")[0] for key in names_in(newest / checkpoints.OPTIMIZER)}
    weights = names_in(newest / checkpoints.WEIGHTS)
    begun = {key for key in weights if name == "averaged" or group_of(key) <= 2}
    assert stepped == begun
    assert (newest / checkpoints.STEPPED).exists() == (name == "averaged")
    train(out, *words, *FIVE_EPOCHS, *flags, "--run.resume")
    assert files_of(out) == files_of(whole / name)
    same_files(out, whole / name, [file for file in files_of(out) if "state.json" not in file] + ["log.jsonl"])


def test_what_is_kept_is_the_average(whole):
    path = checkpoints.newest(whole / "averaged" / "checkpoints")
    average, stepped = load_file(path / checkpoints.WEIGHTS), load_file(path / checkpoints.STEPPED)
    assert average.keys() == stepped.keys()
    assert sum(not torch.equal(value, stepped[name]) for name, value in average.items()) >= len(average) - 1
    notes = " ".join(json.loads((whole / "averaged" / "run.json").read_text())["notes"])
    assert "a moving average of the weights is evaluated and kept: a copy of 0.1 MiB" in notes


def test_the_average_is_of_weights_that_were_pulled_back(tmp_path, words):
    """A pull without end leaves them where they began, and so their average."""
    flags = ("--train.max_steps", 2, "--train.ema", 0.5, "--train.l2_sp", 1e12, "--train.warmup", 0)
    train(tmp_path / "run", *words, *FIVE_EPOCHS, *flags)
    average = load_file(checkpoints.newest(tmp_path / "run" / "checkpoints") / checkpoints.WEIGHTS)
    for name, value in load_file(words[1] / "model.safetensors").items():
        torch.testing.assert_close(average[f"bert.{name}"], value, atol=1e-6, rtol=0)


def test_patience_counts_from_when_all_trains(tmp_path, words):
    """At such rates no score is ever better than the first."""
    still = ("--train.lr", 1e-300, "--train.head_lr", 1e-300, "--train.weight_decay", 0)
    flags = ("--train.epochs", 7, "--train.unfreeze_every", 1, "--train.patience", 1)
    train(tmp_path / "run", *words, "--train.batch_size", 12, *still, *flags)
    [*_, last] = (tmp_path / "run" / "log.jsonl").open()
    assert json.loads(last)["update"] == 5 * UPDATES  # the last group joined in the fifth epoch


def test_statistics_of_what_waits_stay_in_training(tmp_path, image_checkpoint, pictures):
    recipe = load_recipe("image_classify")
    recipe.finish, recipe.share = lambda *_, **__: {}, lambda *_: None
    for first in (1.0, 0.0):
        words = ["--backbone.name", image_checkpoint("test_resnet"), "--data.path", pictures, "--image.workers", 0]
        words += ["--image.size", 32, "--train.max_steps", 2, "--train.head_first", first, "--run.precision", "fp32"]
        recipe.main(parse(recipe.Config, [str(word) for word in (*words, "--run.out", tmp_path / str(first))]))
        path = checkpoints.newest(tmp_path / str(first) / "checkpoints") / checkpoints.WEIGHTS
        source = load_file(image_checkpoint("test_resnet") / "model.safetensors")
        found = {name: value for name, value in load_file(path).items() if "running_" in name}
        assert found
        assert {torch.equal(value, source[name]) for name, value in found.items()} == {first == 1.0}


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, checkpoint, data):
    """Gradual unfreezing under DDP, with the pull and the average: the same weights but for rounding."""
    words = ("--backbone.name", checkpoint("bert"), "--data.path", data, "--run.precision", "fp32")
    words += ("--train.epochs", 6, "--train.lr", 2e-3, "--train.head_lr", 2e-3, "--train.unfreeze_every", 1)
    words += ("--train.l2_sp", 5, "--train.ema", 0.9, "--train.layer_decay", 0.9)
    for processes, batch_size in ((1, 8), (2, 4)):
        out = ("--train.batch_size", batch_size, "--run.out", tmp_path / str(processes))
        finish(launch("text_classify", *words, *out, processes=processes))
    alone, together = (checkpoints.newest(tmp_path / str(i) / "checkpoints") for i in (1, 2))
    for file in (checkpoints.WEIGHTS, checkpoints.STEPPED):
        others = load_file(together / file)
        for name, value in load_file(alone / file).items():
            torch.testing.assert_close(others[name], value, atol=1e-4, rtol=0, msg=f"{file} {name}")


# the table of groups


def test_the_table_says_what_trains_when_and_at_which_rate(tmp_path, words, capsys):
    out = tmp_path / "run"
    flags = ("--adapt.explain", "--train.unfreeze_every", 1, "--train.layer_decay", 0.5, "--train.lr", 1e-3)
    groups = run_recipe("text_classify", *words, *FIVE_EPOCHS[:4], *flags, "--run.out", out)["groups"]
    assert not out.exists()
    assert [group["name"] for group in groups] == [
        "embeddings", "block 1", "block 2", "block 3", "what follows", "head",
    ]  # fmt: skip
    assert [group["lr"] for group in groups] == [1e-3 * 0.5**i for i in (4, 3, 2, 1, 0)] + [5e-2]
    assert [group["begins"] for group in groups] == [4 * UPDATES, 3 * UPDATES, 2 * UPDATES, UPDATES, UPDATES, 0]
    assert sum(group["parameters"] for group in groups) == sum(group["trained"] for group in groups) == 34211
    table = capsys.readouterr().out.partition("group  ")[2].splitlines()[1:8]
    assert max(map(len, table)) <= 80
    assert table[0].split() == ["embeddings", "7,424", "7,424", "6.3e-05", "0.01", "5", "17"]
    assert table[-1].split() == ["all", "34,211", "34,211"]


def test_the_table_of_a_network_for_pictures_and_of_lora(tmp_path, image_checkpoint, pictures, capsys):
    words = ("--backbone.name", image_checkpoint("test_vit"), "--data.path", pictures, "--image.workers", 0)
    flags = ("--adapt.explain", "--adapt.strategy", "lora", "--train.epochs", 1, "--data.folds", 3)
    found = run_recipe("image_classify", *words, *flags, "--run.out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    groups = {group["name"]: group for group in found["groups"]}
    assert list(groups) == ["stem", *(f"block {i}" for i in range(1, 7)), "head"]
    assert groups["stem"]["trained"] == 0
    assert groups["stem"]["lr"] is None
    assert groups["block 1"]["trained"] > 0
    trained = sum(group["trained"] for group in found["groups"])
    total = sum(group["parameters"] for group in found["groups"])
    assert f"{trained:,} of {total:,} parameters" in capsys.readouterr().out


def test_a_head_that_is_computed_has_no_rate(tmp_path, words, capsys):
    flags = ("--adapt.explain", "--adapt.strategy", "head", "--run.out", tmp_path / "run")
    groups = run_recipe("text_classify", *words, *flags)["groups"]
    assert [group["lr"] for group in groups] == [None] * 6
    assert [group["trained"] for group in groups] == [0] * 5 + [99]
    assert "the head is computed at once, so it has no rate" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--adapt.explain", "--run.dry_run"])
def test_the_demo_of_pictures_trains_nothing_to_say_what_it_would_do(tmp_path, monkeypatch, flag):
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe("image_classify")
    monkeypatch.setattr(recipe, "kept_run", None)  # is not called
    words = [flag, "--image.workers", 0, "--train.max_steps", 4, "--run.out", tmp_path / "run"]
    assert recipe.main(parse(recipe.Config, [str(word) for word in words]))["updates"] == 4
    assert not (tmp_path / "run").exists()


# what makes no sense


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--train.unfreeze_every 1 --train.head_first 0.2", r"unfreeze_every 1: .* set --train.head_first 0"),
        (
            "--train.unfreeze_every 1 --adapt.strategy head --adapt.solver sgd",
            r"unfreeze_every 1 does nothing .*trains nothing that could",
        ),
        ("--train.layer_decay 0.9 --adapt.strategy prompt", r"layer_decay 0.9 does nothing .*trains no blocks"),
        ("--train.l2_sp 1 --adapt.strategy lora", r"l2_sp 1.0 does nothing .*leaves the weights of the checkpoint"),
        ("--train.layer_decay 1.1", r"train.layer_decay.*a number above 0 and at most 1"),
        ("--train.ema 1", r"train.ema.*a number between 0 and 1"),
        ("--train.unfreeze_every 1 --adapt.strategy lp_ft", r"trains a new head alone first, and .* computes it"),
        (
            "--train.head_first 0.2 --adapt.strategy head --adapt.solver sgd",
            r"head_first 0.2 does nothing .*trains nothing that could",
        ),
        ("--train.head_factor 9 --train.head_lr 1", r"head_factor 9 does nothing beside --train.head_lr"),
        ("--train.head_factor 9 --adapt.strategy lp_ft", r"head_factor 9 does nothing .*set --train.head_lr"),
        ("--adapt.cache off", r"adapt.cache does nothing with --adapt.strategy full, only with head, last or lp_ft"),
        ("--train.soup greedy --train.max_steps 1", r"--train.max_steps 1 leaves but one; allow more"),
        ("--adapt.explain --train.lr auto", r"--train.lr auto finds its own in training; set a number"),
        ("--adapt.explain --run.resume --run.out x", r"so --run.resume does nothing; leave it out"),
        ("--adapt.explain --run.dry_run", r"so --run.dry_run does nothing; leave it out"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_data_are_read(flags, said):
    with pytest.raises(UserError, match=said):
        run_recipe("text_classify", "--data.path", "nowhere.csv", *flags.split())


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("image_classify", "--backbone.name resnet10t --backbone.pretrained false --train.l2_sp 1"),
        ("generate", "--backbone.name demo-gpt --train.l2_sp 1"),
        ("translate", "--backbone.name demo-t5 --train.wise_ft"),
    ],
)
def test_nothing_stays_near_random_weights(recipe, flags):
    with pytest.raises(UserError, match=r"(l2_sp|wise_ft) stays near the checkpoint, .* random weights; leave it out"):
        run_recipe(recipe, "--data.path", "nowhere.csv", *flags.split())


@pytest.mark.parametrize("recipe", ["image_classify", "token_classify", "answer", "generate", "translate", "pretrain"])
def test_a_prompt_is_for_classifiers_of_texts_alone(recipe):
    with pytest.raises(UserError, match=r"--adapt.strategy must be .*not 'prompt'"):
        run_recipe(recipe, "--data.path", "nowhere.csv", "--adapt.strategy", "prompt")


@pytest.mark.parametrize("strategy", ["full", "last"])
def test_what_goes_together_is_not_refused(strategy):
    check_turns(AdaptConfig(strategy=strategy), TrainConfig(layer_decay=0.9, unfreeze_every=1, l2_sp=1.0, ema=0.9))


def test_unfreezing_needs_a_new_head_and_enough_epochs(tmp_path, words, capsys):
    class Hours(Feed):
        updates_per_epoch = 4

    feed = Hours(None, [], None, 1, 1, 0, None)
    config = TrainConfig(unfreeze_every=1, epochs=3)
    with pytest.raises(UserError, match=r"unfreeze_every 1: the head is not new.*leave it out"):
        take_turns(None, Adapted(torch.nn.Linear(1, 1), set(), ""), feed, config)
    short = TrainConfig(unfreeze_every=3, epochs=3)
    with pytest.raises(UserError, match=r"unfreeze_every 3: training ends after 3 epochs, before anything joins"):
        take_turns(None, Adapted(torch.nn.Linear(1, 1), {"bias"}, ""), feed, short)
    for more, cure in (
        ({"epochs": 9, "max_steps": 4}, "or --train.max_steps 5 or more"),
        ({"epochs": 1}, "or --train.epochs 2 or more"),
        ({"epochs": 1, "max_steps": 3}, "or --train.epochs 2 and --train.max_steps 5 or more"),
    ):
        with pytest.raises(UserError, match=f"set a smaller number, {cure}"):
            take_turns(None, Adapted(torch.nn.Linear(1, 1), {"bias"}, ""), feed, TrainConfig(unfreeze_every=1, **more))
    with pytest.raises(UserError, match=r"head_first 0.2: the head is not new.*leave it out"):
        take_turns(None, Adapted(torch.nn.Linear(1, 1), set(), ""), feed, TrainConfig(head_first=0.2))
    train(tmp_path / "run", *words, "--train.epochs", 2, "--train.batch_size", 12, "--train.unfreeze_every", 1)
    said = "3 of the 4 groups below the head never train in 2 epochs: for all, set --train.epochs 5 or more"
    assert said in capsys.readouterr().out
    assert said in json.loads((tmp_path / "run" / "run.json").read_text())["warnings"][-1]
