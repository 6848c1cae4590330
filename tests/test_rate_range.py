"""Is the learning rate that is found a good one, does looking for it change nothing, and does the report show it?"""

from __future__ import annotations

import json
import math
import signal
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from conftest import finish, launch, load_recipe, run_recipe, texts, write_csv

from graftkit import rate_range
from graftkit.adapt import AdaptConfig
from graftkit.config import parse, to_yaml
from graftkit.errors import Stopped, UserError
from graftkit.rate_range import FEWEST, HIGHEST, LOWEST, MOST, check_rate, rising, smooth, suggest
from graftkit.report.curves import additions
from graftkit.report.sections import model
from graftkit.stop import Stop
from graftkit.train import TrainConfig

SAME = ("log.jsonl", "model/model.safetensors", "predictions-test.parquet")


@pytest.mark.parametrize(("planned", "count"), [(1, FEWEST), (FEWEST + 5, FEWEST + 5), (10_000, MOST)])
def test_rates_rise_in_equal_ratios_as_often_as_training_has_updates(planned, count):
    rates = rising(planned)
    ratios = [after / before for before, after in pairwise(rates)]
    assert len(rates) == count
    assert (rates[0], rates[-1]) == pytest.approx((LOWEST, HIGHEST))
    assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_running_means_begin_at_the_first_loss_and_forget():
    assert smooth([3.0]) == pytest.approx([3.0])
    assert smooth([3.0] * 20) == pytest.approx([3.0] * 20)
    means = smooth([4.0] * 10 + [0.0] * 100)
    assert means[9] == pytest.approx(4.0)
    assert 0 < means[-1] < 1e-3
    assert all(after <= before + 1e-12 for before, after in pairwise(means))


def curve(falls_from: float, rises_from: float, low: float = 0.5) -> tuple[list[float], list[float]]:
    """A loss that falls in the logarithm of the rate from one rate on, and rises steeply from another on."""
    rates = rising(MOST)
    span = math.log(rises_from / falls_from)
    losses = [2 - (2 - low) * min(1, max(0, math.log(rate / falls_from) / span)) for rate in rates]
    return rates, [loss + max(0, rate / rises_from - 1) for rate, loss in zip(rates, losses, strict=True)]


@pytest.mark.parametrize("rises_from", [1e-4, 1e-3, 1e-2])
def test_the_rate_taken_lies_below_that_of_least_loss(rises_from):
    rates, losses = curve(rises_from / 100, rises_from)
    found = suggest(rates, losses)
    assert found == pytest.approx(rises_from / rate_range.BELOW, rel=0.15)
    assert found == float(f"{found:.1e}")  # what is told is what is used


def test_a_loss_that_falls_at_no_rate_has_no_rate_to_find():
    rates = rising(MOST)
    with pytest.raises(
        UserError, match=r"--train.lr auto: the loss of train fell at no rate from 1e-07 .*set --train.lr"
    ):
        suggest(rates, [2.0 + 0.001 * math.sin(place) + rate for place, rate in enumerate(rates)])


@pytest.mark.parametrize(
    ("adapt", "config", "match"),
    [
        (AdaptConfig("head"), TrainConfig(lr="auto", head_lr=1e-3), "only the head trains, at --train.head_lr"),
        (SimpleNamespace(strategy="head", solver="lbfgs"), TrainConfig(lr="auto"), "set --adapt.solver sgd"),
    ],
)
def test_where_there_is_no_rate_to_find_it_is_refused_at_once(adapt, config, match):
    with pytest.raises(UserError, match=match):
        check_rate(adapt, config)
    check_rate(adapt, TrainConfig(head_lr=1e-3))
    check_rate(AdaptConfig("full"), config)


class Looked(Exception):
    """The test of rates has ended."""


@pytest.mark.slow
def test_weights_statistics_and_accelerator_are_what_they_were(tmp_path, image_checkpoint, pictures, monkeypatch):
    seen, try_rates = {}, rate_range.try_rates

    def look(run, task, adapted, feed, config):
        before = {name: value.clone() for name, value in adapted.model.state_dict().items()}
        _, losses = try_rates(run, task, adapted, feed, config)
        after = adapted.model.state_dict()
        seen.update(same={name: torch.equal(value, after[name]) for name, value in before.items()}, losses=losses)
        seen.update(grads=[p.grad for p in adapted.model.parameters()], held=run.accelerator._models)
        seen.update(prepared=hasattr(adapted.model, "_is_accelerate_prepared"))
        raise Looked

    monkeypatch.setattr(rate_range, "try_rates", look)
    words = ["--backbone.name", image_checkpoint("test_resnet"), "--data.path", pictures, "--run.precision", "bf16"]
    words += ["--image.workers", 0, "--image.size", 32, "--train.lr", "auto", "--train.head_lr", "null"]
    with pytest.raises(Looked):
        run_recipe("image_classify", *words, "--run.out", tmp_path / "run")
    assert any("running_mean" in name for name in seen["same"])
    assert all(seen["same"].values())
    assert seen["grads"] == [None] * len(seen["grads"])
    assert not seen["held"]
    assert not seen["prepared"]  # training would else leave out mixed precision
    assert len(set(seen["losses"])) > 10  # it did learn


@pytest.mark.parametrize(("head_lr", "expected"), [(None, [0.02, 0.5]), (1e-3, [0.02, 1e-3])])
def test_each_group_has_its_share_of_a_rate_and_a_head_the_rate_that_was_set(head_lr, expected):
    groups = [{"in_head": False, "peak_lr": 2.0, "lr": 0.0}, {"in_head": True, "peak_lr": 50.0, "lr": 0.0}]
    rate_range._set_rate(SimpleNamespace(param_groups=groups), 0.01, head_lr)
    assert [group["lr"] for group in groups] == expected


# a run that finds its rate


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Eight rows to learn, which a network that knows nothing can learn by heart."""
    folder = tmp_path_factory.mktemp("few")
    for split, count, seed in (("train", 8, 0), ("dev", 10, 1), ("test", 10, 2)):
        write_csv(folder / f"{split}.csv", texts(count, seed))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _short():
    """In so few updates the loss of such a network hardly falls."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rate_range, "FELL", 1e-3)
        yield


def words(checkpoint, data, lr: object) -> list[object]:
    return [
        "--backbone.name", checkpoint("bert", dropout=0.1), "--data.path", data, "--train.epochs", 4,
        "--train.batch_size", 8, "--train.lr", lr, "--run.precision", "fp32",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory, checkpoint, few):
    """A run with --train.lr auto."""
    out = tmp_path_factory.mktemp("found") / "run"
    run_recipe("text_classify", *words(checkpoint, few, "auto"), "--run.out", out)
    return out


def record(run) -> dict:
    return json.loads((run / "run.json").read_text())


def test_a_run_with_the_found_rate_is_the_same_run(tmp_path, checkpoint, few, found):
    lr = record(found)["rate_range"]["lr"]
    run_recipe("text_classify", *words(checkpoint, few, lr), "--run.out", tmp_path / "run")
    for name in SAME:
        assert (found / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_the_report_shows_the_rate_and_the_curve(found):
    lr = record(found)["rate_range"]["lr"]
    assert f"Learning rate: {lr:g}, found in " in (found / "report.md").read_text()
    page = (found / "report.html").read_text()
    assert 'id="rates"' in page
    assert f"<b>Which learning rate?</b> {lr:g}" in page
    assert ">1e-7<" in page
    assert f"--train.lr auto: {lr:g}, found in" in page  # among the remarks


def test_a_resumed_run_takes_the_rate_that_its_first_part_found(tmp_path, checkpoint, few, found, monkeypatch):
    def agreed(self, accelerator):
        asked.append(None)
        if len(asked) == 3:
            self.signal = signal.SIGINT
        return len(asked) == 3

    asked, command = [], [*words(checkpoint, few, "auto"), "--run.out", tmp_path / "run"]
    with monkeypatch.context() as patched:
        patched.setattr(Stop, "agreed", agreed)
        with pytest.raises(Stopped):
            run_recipe("text_classify", *command)
    monkeypatch.setattr(rate_range, "try_rates", lambda *given: pytest.fail("it was looked for anew"))
    run_recipe("text_classify", *command, "--run.resume")
    assert record(tmp_path / "run")["rate_range"] == record(found)["rate_range"]
    for name in SAME:
        assert (found / name).read_bytes() == (tmp_path / "run" / name).read_bytes(), name


def test_a_run_that_was_given_a_rate_says_nothing_of_finding_one():
    run = {"task": "text-classification", "training": {"updates": 3}}
    assert "Learning rate" not in model(run)
    assert additions({"test": {"headline": {"name": "f1"}}}, run, []) == {}


@pytest.mark.parametrize("recipe", ["generate", "translate"])
def test_recipes_whose_rate_is_settled_later_take_auto(recipe):
    config = parse(load_recipe(recipe).Config, ["--train.lr", "auto"])
    assert config.train.settle(TrainConfig(lr=0.5)).lr == "auto"


def test_auto_is_kept_in_yaml_and_nothing_like_it_taken(tmp_path):
    config_class = load_recipe("token_classify").Config
    (tmp_path / "run.yaml").write_text(to_yaml(parse(config_class, ["--train.lr", "auto"])))
    assert parse(config_class, ["--config", str(tmp_path / "run.yaml")]).train.lr == "auto"
    with pytest.raises(
        UserError, match=r"--train.lr must be a number above 0 or auto, not 'aut'; did you mean 'auto'\?"
    ):
        parse(config_class, ["--train.lr", "aut"])


def test_a_dry_run_says_that_it_looks_for_no_rate(checkpoint, few, capsys):
    run_recipe("text_classify", *words(checkpoint, few, "auto"), "--run.dry_run")
    assert (
        f"--train.lr auto is not looked for now; when the run trains, up to {FEWEST} updates" in capsys.readouterr().out
    )


@pytest.mark.slow
def test_two_processes_find_the_same_rate(tmp_path, checkpoint, few):
    ranges = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        command = ["--backbone.name", checkpoint("bert"), "--data.path", few, "--train.batch_size", 8 // processes]
        command += ["--train.epochs", 80, "--train.lr", "auto", "--run.precision", "fp32", "--run.out", out]
        finish(launch("text_classify", *command, processes=processes))
        ranges[processes] = record(out)["rate_range"]
    assert ranges[2]["lr"] == ranges[1]["lr"]
    assert ranges[2]["losses"] == pytest.approx(ranges[1]["losses"], rel=1e-2)
