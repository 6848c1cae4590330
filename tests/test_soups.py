"""Which weights are kept: between the pretrained and the trained ones, or an average of several?"""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import finish, launch, run_recipe
from safetensors.torch import load_file
from test_recipe_contract import TABLES, same_files, stop_after
from torch import nn

from graftkit import cli
from graftkit.adapt import AdaptConfig, Adapted
from graftkit.checkpoint import of_epochs
from graftkit.errors import Stopped, UserError
from graftkit.hub.gate import make_question
from graftkit.soups import (
    ALPHAS,
    average,
    check_choice,
    go_between,
    greedy,
    interpolate,
    keep_start,
    put,
    soup,
    whole,
)
from graftkit.train import TrainConfig


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# weights alone


def some_weights(seed: int) -> dict[str, torch.Tensor]:
    """A matrix, a half-precision vector, and a count as batch norm keeps it."""
    torch.manual_seed(seed)
    return {"w": torch.randn(3, 4), "h": torch.randn(5).half(), "n": torch.tensor(seed)}


def test_the_ends_of_the_line_are_what_was_given_and_between_is_linear():
    start, end = some_weights(1), some_weights(2)
    assert same(interpolate(start, end, 0.0), start)
    assert same(interpolate(start, end, 1.0), end)
    between = interpolate(start, end, 0.3)
    torch.testing.assert_close(between["w"], 0.7 * start["w"] + 0.3 * end["w"])
    assert (between["h"].dtype, between["n"].item()) == (torch.float16, 1)
    assert interpolate(start, end, 0.7)["n"].item() == 2


def test_the_average_is_the_mean_in_fp32_and_counts_are_the_first():
    several = [some_weights(seed) for seed in (1, 2, 3)]
    several[0]["h"] = torch.tensor([60000.0]).half()
    several[1]["h"] = several[2]["h"] = torch.tensor([50000.0]).half()  # their sum is more than fp16 holds
    made = average(several)
    torch.testing.assert_close(made["w"], sum(one["w"] for one in several) / 3)
    torch.testing.assert_close(made["h"], torch.tensor([53333.0]).half())
    assert made["n"].item() == 1
    assert same(average(several[:1]), several[0])


def test_a_greedy_soup_takes_what_does_no_harm():
    """b alone is best; with c it is as good, with a worse, and with c and d better."""
    scores = {"b": 0.8, "bc": 0.8, "ab": 0.7, "abc": 0.7, "bcd": 0.9}
    asked = []

    def score(chosen):
        asked.append("".join(sorted(chosen)))
        return scores[asked[-1]]

    assert greedy("bcad", score) == ["b", "c", "d"]
    assert asked == ["b", "bc", "abc", "bcd"]


@pytest.mark.parametrize(
    ("kind", "lower", "kept", "best"),
    [("uniform", False, [0, 1, 2], 0.9), ("greedy", False, [1, 2], 0.9), ("greedy", True, [0], 0.2)],
)
def test_a_soup_says_what_is_in_it_and_leaves_it_in_the_model(kind, lower, kept, best):
    values, asked = [0.2, 0.9, 0.9], []

    def ask(chosen):
        asked.append(sorted(chosen))
        return sum(values[place] for place in chosen) / len(chosen)

    facts = soup(["x", "y", "z"], ask, kind, lower=lower)
    assert [place for place, one in enumerate(facts["members"]) if one["kept"]] == kept == asked[-1]
    assert [(one["name"], one["score"]) for one in facts["members"]] == [("x", 0.2), ("y", 0.9), ("z", 0.9)]
    assert (facts["best"], facts["score"]) == (best, pytest.approx(sum(values[i] for i in kept) / len(kept)))


class Tied(nn.Module):
    """Two layers that share a matrix, and batch norm; `head` starts from chance."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 2)


def trained_from(seed: int, *, solved: bool = False):
    """A model, the start that was kept of it, and its state before and after it was trained."""
    torch.manual_seed(seed)
    model = Tied()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    head = {"head.weight", "head.bias"}
    start = keep_start(Adapted(model, head, ""), TrainConfig(wise_ft=True), solved=solved)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1) if value.is_floating_point() else value.fill_(7)
    return model, start, before, {name: value.clone() for name, value in model.state_dict().items()}


def choose(model, start, scores, *, lower=False):
    """What is kept, where the model has these scores at the alphas."""
    said, places = [], iter(scores)
    run = SimpleNamespace(headline="accuracy", lower=lower, say=said.append)
    return go_between(run, model, start, lambda: next(places)), said


RISING = [step / 20 for step in range(11)]


def test_at_one_the_model_is_the_trained_one_and_at_zero_the_pretrained_one_under_the_trained_head():
    model, start, before, after = trained_from(1)
    assert "second.weight" not in start
    assert not any(name.startswith("head") for name in start)
    facts, said = choose(model, start, RISING)
    assert facts["alpha"] == 1.0
    assert same(model.state_dict(), after)
    assert "1 of the way" in said[-1]
    assert "stays as it was trained" in said[-1]
    facts, _ = choose(model, start, RISING[::-1])
    now = model.state_dict()
    assert facts["alpha"] == 0.0
    assert facts["head_stays"]
    assert all(torch.equal(now[name], (after if name.startswith("head") else before)[name]) for name in now)
    assert now["norm.num_batches_tracked"].item() == 0
    assert now["norm.running_mean"].eq(0).all()


def test_a_solved_head_is_interpolated_too():
    model, start, before, _ = trained_from(1, solved=True)
    facts, _ = choose(model, start, RISING[::-1])
    assert not facts["head_stays"]
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("scores", "lower", "alpha"),
    [
        ([0.1, 0.2, 0.9, 0.3, 0.3, 0.3, 0.9, 0.3, 0.3, 0.3, 0.3], False, 0.6),  # of equal ones the nearer to trained
        ([0.1, 0.2, 0.9, 0.3, 0.3, 0.3, 0.9, 0.3, 0.3, 0.3, 0.3], True, 0.0),
        ([float("nan")] * 10 + [0.1], False, 1.0),
    ],
)
def test_the_best_on_dev_is_kept(scores, lower, alpha):
    model, start, before, after = trained_from(2)
    facts, said = choose(model, start, scores, lower=lower)
    assert facts["alpha"] == alpha
    assert len(facts["table"]) == len(ALPHAS) == 11
    expected = interpolate(before, after, alpha)
    assert torch.equal(model.first.weight, expected["first.weight"])
    assert model.second.weight is model.first.weight
    assert "0.1:" in said[0]


def test_nothing_is_kept_of_the_start_where_nobody_asked():
    assert keep_start(Adapted(Tied(), set(), ""), TrainConfig(), solved=False) == {}


def test_shared_weights_are_put_once():
    model = Tied()
    put(whole(model), average([whole(Tied()), whole(Tied())]))
    assert model.second.weight is model.first.weight


# refusals


@pytest.mark.parametrize("strategy", ["head", "lora"])
def test_wise_ft_is_refused_where_nothing_of_the_checkpoint_trains(strategy):
    with pytest.raises(UserError, match=rf"--train.wise_ft with --adapt.strategy {strategy}: .*nothing between"):
        check_choice(AdaptConfig(strategy=strategy), TrainConfig(wise_ft=True))
    check_choice(AdaptConfig(strategy=strategy), TrainConfig())


def test_a_soup_needs_two_epochs(tmp_path, checkpoint, data):
    with pytest.raises(UserError, match=r"--train.soup greedy averages .* --train.epochs 1 leaves but one"):
        TrainConfig(soup="greedy", epochs=1)
    words = ("--data.path", data, "--backbone.name", checkpoint("bert"), "--run.out", tmp_path / "run")
    with pytest.raises(UserError, match=r"--train.max_steps 2 leaves but one \(3 updates an epoch\)"):
        run_recipe("text_classify", *words, "--train.soup", "uniform", "--train.max_steps", 2)


# runs


def words_of(data, checkpoint, out, *more, epochs=2):
    usual = ("--train.epochs", epochs, "--train.batch_size", 4, "--train.lr", "5e-3", "--train.head_lr", "5e-3")
    usual += ("--run.precision", "fp32", "--run.out", out)
    return ("--data.path", data, "--backbone.name", checkpoint, *usual, *more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, checkpoint, data):
    """A run whose epochs were averaged, and one between pretrained and trained weights; neither is calibrated."""
    folder, start = tmp_path_factory.mktemp("runs"), checkpoint("bert")
    for name, how in (("epochs", ("--train.soup", "uniform")), ("between", ("--train.wise_ft", "true"))):
        words = words_of(data, start, folder / name, *how, "--report.calibrate", "false", epochs=8)
        run_recipe("text_classify", *words)
    return folder


def record(folder):
    return json.loads((folder / "run.json").read_text())


def dev_score(folder):
    return json.loads((folder / "metrics.json").read_text())["dev"]["scores"]["macro_f1"]


def test_a_uniform_soup_of_a_run_is_the_mean_of_its_epochs(runs):
    folder = runs / "epochs"
    paths = of_epochs(folder / "checkpoints")
    assert len(paths) == 8
    made = average([load_file(path / "weights.safetensors") for path in paths])
    saved = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in made.items() if name in saved)
    facts = record(folder)["soup"]
    assert [one["kept"] for one in facts["members"]] == [True] * 8
    assert facts["score"] == pytest.approx(dev_score(folder))
    told = (folder / "report.md").read_text()
    assert "Soup (uniform): the average of the weights of 8 updates (12, 24, " in told
    assert "Best epoch" in told


def test_what_is_kept_between_has_the_score_of_the_table(runs):
    facts = record(runs / "between")["wise_ft"]
    scores = [one["score"] for one in facts["table"]]
    assert len(set(scores)) > 3
    assert facts["score"] == max(scores) == pytest.approx(dev_score(runs / "between"))
    assert facts["alpha"] == max(one["alpha"] for one in facts["table"] if one["score"] == max(scores))
    told = (runs / "between" / "report.md").read_text()
    assert f"{facts['alpha']:g} of the way is kept" in told
    assert "The head is new" in told


def blended(*words):
    return cli.main(["soup", *map(str, words)])


def test_graft_soup_averages_what_the_runs_were_before_they_were_calibrated(runs, tmp_path, capsys):
    out, warm = tmp_path / "soup", tmp_path / "between"
    assert cli.main(["calibrate", str(runs / "between"), "--out", str(warm)]) == 0, capsys.readouterr().err
    assert blended(runs / "epochs", warm, "--kind", "uniform", "--out", out) == 0, capsys.readouterr().err
    one, other, made = (
        load_file(folder / "model" / "model.safetensors") for folder in (runs / "epochs", runs / "between", out)
    )
    for name, value in made.items():
        torch.testing.assert_close(value, (one[name] + other[name]) / 2, rtol=1e-5, atol=1e-6)
    facts = record(out)
    assert facts["soup"]["score"] == pytest.approx(dev_score(out))
    assert facts["seed"] == [0, 0]
    assert [part["name"] for part in facts["soup"]["members"]] == ["epochs", "between"]
    assert "training" not in facts
    assert "wise_ft" not in facts
    assert facts["saved"]["overlong"]
    told = (out / "report.md").read_text()
    assert "the average of the weights of 2 runs (epochs, between)" in told
    assert "none of its own" in told
    again = ("evaluate", out, "--data.path", facts["data"]["path"], "--run.out", tmp_path / "again")
    assert cli.main([str(word) for word in again]) == 0
    same_files(out, tmp_path / "again", ["predictions-test.parquet"])


def test_a_greedy_soup_of_runs_is_no_worse_on_dev_than_each(runs, tmp_path):
    assert blended(runs / "epochs", runs / "between", "--out", tmp_path / "soup") == 0
    facts = record(tmp_path / "soup")["soup"]
    assert facts["kind"] == "greedy"
    assert facts["score"] >= facts["best"] == max(one["score"] for one in facts["members"])
    assert facts["score"] == pytest.approx(dev_score(tmp_path / "soup"))


def copied(source, target, **changes):
    """A run's folder without its model, with other facts in its record."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("checkpoints", "model"))
    (target / "model").mkdir()
    (target / "run.json").write_text(json.dumps(record(source) | changes))
    return target


def test_runs_that_have_no_average_are_refused_in_a_line(runs, tmp_path, capsys):
    first, facts = runs / "epochs", record(runs / "epochs")
    backbone, splits = facts["backbone"], facts["data"]["splits"]
    other_rows = facts["data"] | {"splits": splits | {"dev": splits["dev"] | {"sha256": "0"}}}
    adapter = copied(first, tmp_path / "adapter")
    (adapter / "model" / "adapter_config.json").write_text("{}")
    folds = tmp_path / "folds"
    folds.mkdir()
    (folds / "run.json").write_text(json.dumps({"folds": [{"name": "fold-1"}]}))
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    names = ({"name": "../adapter"}, {"name": "../adapter"})
    (seeds / "run.json").write_text(json.dumps({"seeds": names}))
    shorter = facts["lengths"] | {"max_length": facts["lengths"]["max_length"] - 1}
    other_network = copied(first, tmp_path / "network", backbone=backbone | {"architecture": "GPT2"})
    refused = {
        "is one run, and there is nothing to average": (first,),
        "is named twice": (first, runs / "between", first),
        "has not the rows of": (first, copied(first, tmp_path / "rows", data=other_rows)),
        "has not the pretrained model of": (first, other_network),
        "is an adapter": (first, adapter),
        "adapter is an adapter": (seeds,),
        "has not the length of texts (--backbone.max_length) of": (
            first,
            copied(first, tmp_path / "shorter", lengths=shorter),
        ),
        "holds folds": (folds,),
        "which graft soup cannot read yet": (first, copied(first, tmp_path / "task", task="text-generation")),
        "exists; name another folder": (first, runs / "between", "--out", runs),
    }
    for words, named in refused.items():
        capsys.readouterr()
        assert blended(*named) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert not (runs / "epochs-soup").exists()


def test_a_soup_of_seeds_goes_by_their_folder_and_can_be_pushed(runs, tmp_path, capsys):
    (runs / "run.json").write_text(json.dumps({"seeds": [{"name": "epochs"}, {"name": "between"}]}))
    assert blended(runs, "--out", tmp_path / "soup") == 0, capsys.readouterr().err
    question = make_question(tmp_path / "soup", tmp_path / "soup" / "model")
    assert question.overlong is not None


@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_keeps_the_same_weights(tmp_path, checkpoint, data, monkeypatch):
    more = ("--train.soup", "greedy", "--train.wise_ft", "true", "--train.ema", 0.9)
    start = checkpoint("bert", dropout=0.1)
    run_recipe("text_classify", *words_of(data, start, tmp_path / "whole", *more))
    with monkeypatch.context() as patched:
        stop_after(5, patched)
        with pytest.raises(Stopped):
            run_recipe("text_classify", *words_of(data, start, tmp_path / "parts", *more))
    run_recipe("text_classify", *words_of(data, start, tmp_path / "parts", *more), "--run.resume")
    same_files(tmp_path / "whole", tmp_path / "parts", ["model/model.safetensors", *TABLES, "log.jsonl"])
    for name in ("soup", "wise_ft"):
        assert record(tmp_path / "whole")[name] == record(tmp_path / "parts")[name]


@pytest.mark.slow
def test_every_process_keeps_the_same_weights(tmp_path, image_checkpoint, pictures):
    """Each compares what it holds with what was saved, batch norm's statistics too."""
    more = ("--train.soup", "uniform", "--train.wise_ft", "true", "--image.workers", 0)
    words = words_of(pictures, image_checkpoint("test_resnet"), tmp_path / "run", *more)
    finish(launch("image_classify", *words, processes=2))
    facts = record(tmp_path / "run")
    assert facts["wise_ft"]["score"] == pytest.approx(dev_score(tmp_path / "run"))
    assert len(facts["soup"]["members"]) == facts["processes"] == 2


@pytest.mark.slow
def test_runs_on_pictures_are_averaged_with_the_statistics_of_batch_norm(tmp_path, image_checkpoint, pictures):
    places = [tmp_path / str(seed) for seed in (0, 1)]
    for seed, place in enumerate(places):
        more = ("--run.seed", seed, "--image.workers", 0, "--report.calibrate", "false")
        run_recipe("image_classify", *words_of(pictures, image_checkpoint("test_resnet"), place, *more))
    assert blended(*places, "--kind", "uniform", "--out", tmp_path / "soup") == 0
    one, other, made = (load_file(folder / "model" / "model.safetensors") for folder in (*places, tmp_path / "soup"))
    means = [name for name in made if name.endswith("running_mean")]
    assert means
    for name in means:
        torch.testing.assert_close(made[name], (one[name] + other[name]) / 2)
    assert record(tmp_path / "soup")["soup"]["score"] == pytest.approx(dev_score(tmp_path / "soup"))
