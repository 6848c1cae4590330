"""Which way of adapting? The rounds with a clock and runs that are made up, then one bakeoff with real runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, finish, load_recipe

from graftkit import cli, search
from graftkit.bakeoff import contest, page, runs, sources
from graftkit.bakeoff.arms import Arm, parse_arms, parse_budget
from graftkit.bakeoff.arms import load_recipe as load_at
from graftkit.bakeoff.halving import Halving, Outcome, Standing, Trial, epochs_of, sizes
from graftkit.compare.difference import Difference
from graftkit.config import parse
from graftkit.errors import UserError
from graftkit.metrics.intervals import Interval
from graftkit.report.reading import read_folder
from graftkit.run import check_until
from graftkit.several import check_several, several_asked

TEXT = ROOT / "recipes" / "text_classify.py"


# what the user writes


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("1h30m", 5400), ("1.5m", 90)])
def test_a_budget_is_a_time(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "-5m", "10 m", "10d", "0s", "", "10m5"])
def test_what_is_no_time_is_no_budget(text):
    with pytest.raises(UserError, match=f"--budget {text}: write a time such as 90s, 10m or 1h30m"):
        parse_budget(text)


def arms(text: str, *flags: str) -> list[Arm]:
    return parse_arms(text, flags, load_recipe("text_classify"))


def test_an_arm_is_a_strategy_with_settings_of_its_own():
    head, lora = arms("last,lora:adapt.rank=16:train.epochs=5", "--data.path", "x.csv")
    assert (head.name, head.epochs, head.max_steps) == ("last", 3, None)
    assert head.words == ("--data.path", "x.csv", "--adapt.strategy", "last", "--data.seed", "0")
    assert lora.words[2:8] == ("--adapt.strategy", "lora", "--adapt.rank", "16", "--train.epochs", "5")
    assert (lora.epochs, lora.slug) == (5, "lora_adapt.rank=16_train.epochs=5")


def test_a_head_that_is_solved_gets_no_settings_of_training():
    flags = ("--train.lr", "1e-3", "--data.path", "x.csv", "--train.clip=2")
    head, full = arms("head,full", *flags)
    assert head.solved
    assert head.words[:4] == ("--data.path", "x.csv", "--adapt.strategy", "head")
    assert full.words[:5] == flags
    trained = arms("head:adapt.solver=sgd,full", *flags)[0]
    assert (trained.solved, trained.words[:5]) == (False, flags)


def test_a_solved_head_does_without_the_training_of_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {lr: 0.001, clip: 2}\n")
    flags = ("--config", str(tmp_path / "mine.yaml"), "--train.epochs", "2")
    module = load_recipe("text_classify")
    head, full = parse_arms("head,full", flags, module)
    assert head.solved
    assert parse(module.Config, head.words).train == module.Config().train
    assert parse(module.Config, full.words).train.lr == 1e-3
    (tmp_path / "mine.yaml").write_text("train: {lr: 0.001}\nadapt: {strategy: head, solver: sgd}\n")
    head, _ = parse_arms("head,head:train.lr=1e-4", flags, module)
    assert not head.solved
    assert parse(module.Config, head.words).train.lr == 1e-3


def test_an_arm_of_pictures_is_checked_as_its_recipe_does():
    with pytest.raises(UserError, match=r"--arms head:image.mixup=0.2: --image.mixup mixes labels"):
        parse_arms("head:image.mixup=0.2,full", [], load_recipe("image_classify"))


def test_a_solved_head_does_without_what_changes_pictures_in_training(tmp_path):
    (tmp_path / "mine.yaml").write_text("image: {crop: 0.5, size: 64}\n")
    flags = ("--image.mixup", "0.2", "--image.flip=true", "--config", str(tmp_path / "mine.yaml"))
    module = load_recipe("image_classify")
    head, views, full = (
        parse(module.Config, arm.words).image for arm in parse_arms("head,head:adapt.views=2,full", flags, module)
    )
    assert [(one.mixup, one.flip, one.crop, one.size) for one in (head, views, full)] == [
        (0.0, None, module.Config().image.crop, 64),
        (0.0, True, 0.5, 64),
        (0.2, True, 0.5, 64),
    ]


@pytest.mark.parametrize(
    ("recipe", "text", "flags", "said"),
    [
        ("generate", "full,lora", ("--backbone.quantize", "4bit"), "full: --backbone.quantize 4bit: weights of 4 bits"),
        ("generate", "last,full:train.l2_sp=1", (), "full:train.l2_sp=1: --train.l2_sp stays near the checkpoint, and"),
        ("translate", "last,full", ("--run.keep_rows", "false"), "last: --run.keep_rows false: scores follow"),
        ("translate", "last,full:train.wise_ft=true", (), "full:train.wise_ft=true: --train.wise_ft stays near"),
        ("answer", "last,full", ("--run.keep_rows", "false"), "last: --run.keep_rows false: scores follow"),
        ("pretrain", "full,head:train.head_first=0.5", (), "head:train.head_first=0.5: --train.head_first 0.5 does"),
        ("token_classify", "full,head:train.head_first=0.5", (), "head:train.head_first=0.5: --train.head_first 0.5"),
    ],
)
def test_an_arm_that_its_recipe_would_refuse_is_refused_before_anything_runs(recipe, text, flags, said):
    with pytest.raises(UserError, match=f"--arms {said}"):
        parse_arms(text, flags, load_recipe(recipe))


def test_a_list_in_an_arm_has_commas_of_its_own():
    lora, full = arms("lora:adapt.targets=query,value:adapt.rank=4,full")
    assert (lora.name, full.name) == ("lora:adapt.targets=query,value:adapt.rank=4", "full")
    assert parse(load_recipe("text_classify").Config, lora.words).adapt.targets == ["query", "value"]
    with pytest.raises(UserError, match=r"--arms value: --adapt.strategy must be one of"):
        arms("lora:adapt.rank=4,value,full")


def test_the_cut_of_the_rows_is_the_users_where_there_is_one():
    words = arms("last,full", "--data.seed", "7")[0].words
    assert words.count("--data.seed") == 1


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("last,lorra", (), "--arms lorra: --adapt.strategy must be one of .*; did you mean 'lora'"),
        (
            "last,lora:adapt.rnk=4",
            (),
            "--arms lora:adapt.rnk=4: unknown setting --adapt.rnk; did you mean --adapt.rank",
        ),
        ("last,lora:adapt.rank=0", (), "--arms lora:adapt.rank=0: --adapt.rank must be a whole number from 1 up"),
        ("last,lora:adapt.rank", (), "'adapt.rank' is no setting; write section.field=value"),
        ("last,lora:data.path=x", (), "data.path must be the same for all arms; give --data.path x beside them"),
        ("last,full,last", (), "last is given twice"),
        ("last", (), "name two arms or more"),
        ("last,full", ("--train.lrr", "1"), "unknown setting --train.lrr"),
        ("last,full", ("--run.seed", "3"), "--run.seed 3: leave it out; --seeds says"),
        ("last,full", ("--run.until", "dev"), "--run.until dev: leave it out; test is asked"),
        ("last,full", ("--data.folds", "3"), "--data.folds 3: leave it out"),
        ("last,full", ("--adapt.strategy", "full"), "name the strategies in --arms"),
        ("head,", (), "--arms head,: name a strategy before and after each comma"),
        (
            "head:train.lr=1e-3,full",
            (),
            "--arms head:train.lr=1e-3: --train.lr does nothing with --adapt.strategy head",
        ),
        ("last,full", ("--adapt.views", "2"), "--arms last: --adapt.views does nothing with texts"),
        ("last,full", ("--data.task", "regression", "--train.focal", "2"), "--arms last: --train.focal 2.0: not with"),
        ("last,full", ("--adapt.explain",), "--adapt.explain True: leave it out; it prints a table and trains nothing"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(text, flags, said):
    with pytest.raises(UserError, match=said):
        arms(text, *flags)


def test_a_file_that_is_no_recipe_is_named(tmp_path):
    with pytest.raises(UserError, match=r"recipes/text_clasify.py: no such recipe; there is .*text_classify.py"):
        load_at(ROOT / "recipes" / "text_clasify.py")
    (tmp_path / "other.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="is no recipe: it has no Config"):
        load_at(tmp_path / "other.py")
    (tmp_path / "old.py").write_text(RECIPE.replace("def check(", "def look("))
    with pytest.raises(UserError, match=r"old.py has no check\(config\), which refuses"):
        load_at(tmp_path / "old.py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ndef main(:\n", r"broken.py, line 2: invalid syntax"),
        ("import os\nimport no_such_package\n", r"broken.py, line 2: No module named 'no_such_package'"),
        ("import sys\n\nsys.exit(3)\n", r"broken.py, line 3: it ends with SystemExit\(3\)"),
        ("x = y\n", r"broken.py, line 1: name 'y' is not defined"),
    ],
)
def test_a_recipe_that_cannot_be_loaded_is_told_with_its_line(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text(text)
    with pytest.raises(UserError, match=said):
        load_at(Path("broken.py"))


def test_the_recipe_is_not_looked_for_among_the_settings(recipe, tmp_path):
    words = ["--budget", "1m", "--arms", "full,last", "--data.path", "data"]
    with pytest.raises(UserError, match="arguments are required: RECIPE"):
        cli.bakeoff([*words, str(recipe)])


def test_a_share_of_a_schedule_has_as_many_epochs_as_its_settings_need():
    assert [epochs_of(Arm("full", epochs=8), share) for share in (0.25, 0.5, 1)] == [2, 4, None]
    assert [epochs_of(Arm("full", epochs=3), share) for share in (0.25, 0.5, 1)] == [1, 2, None]
    assert epochs_of(Arm("full", epochs=8, least_epochs=3), 0.25) == 3
    assert epochs_of(Arm("head", epochs=8, solved=True), 0.25) is None
    soup = arms("last,full:train.soup=uniform")[1]
    assert soup.least_epochs == 2


# the rounds


@dataclass
class World:
    """Runs that take the seconds that they are said to, on a clock of their own."""

    score: dict[str, float]
    speed: dict[str, float] = field(default_factory=dict)  # seconds of an update, by arm
    overhead: float = 5.0
    fails: tuple[str, ...] = ()
    chance: bool = False  # whether a head that is computed differs by its seed
    late: tuple[str, ...] = ()  # that take twice what they seem to
    per_epoch: int = 100
    now: float = 0.0
    trials: list[Trial] = field(default_factory=list)

    def run(self, trial: Trial) -> Outcome:
        self.trials.append(trial)
        name = trial.arm.name
        assert trial.limit > 0
        if name in self.fails:
            self.now += 2
            return Outcome("failed", 2, "it broke")
        updates = (trial.arm.epochs if trial.epochs is None else trial.epochs) * self.per_epoch
        updates = min(updates, trial.max_steps or updates)
        per_update = 0.0 if trial.arm.solved else self.speed.get(name, 0.1)
        known = {"per_epoch": self.per_epoch, "per_update": None if trial.arm.solved else per_update}
        known["facts"] = {"any_seed": trial.arm.solved and not self.chance}
        seconds = self.overhead + updates * per_update
        if seconds > trial.limit:  # seen after a few updates
            self.now += (spent := self.overhead + 5 * per_update)
            return Outcome("stopped", spent, "too slow", overhead=self.overhead, **known)
        if name in self.late:
            self.now += trial.limit
            return Outcome("stopped", trial.limit, "its time was up")
        self.now += seconds
        gain = self.score[name] * (1 - 0.5 ** (updates / self.per_epoch)) + trial.seed / 1000
        return Outcome("done", seconds, "", gain, updates, overhead=self.overhead, ending=self.overhead, **known)


@pytest.mark.parametrize(("chance", "seeds"), [(False, 1), (True, 3)])
def test_a_computed_head_runs_with_several_seeds_where_chance_has_a_part_in_it(chance, seeds):
    halving = compete(World({"head": 0.9, "full": 0.7, "last": 0.6}, chance=chance), "head,full,last", 10_000)
    assert {each.arm.name: len(each.runs) for each in halving.standings} == {"head": seeds, "full": 3, "last": 1}


def compete(world: World, names: str, budget: float, seeds: int = 3) -> Halving:
    given = [Arm(name, epochs=4, solved=name == "head") for name in names.split(",")]
    halving = Halving(given, seeds, budget, world.run, lambda: world.now)
    halving.go()
    assert world.now <= budget
    return halving


FIVE = {"head": 0.7, "full": 0.9, "last": 0.6, "lora": 0.8, "lp_ft": 0.95}


def states(halving: Halving) -> dict[str, str]:
    return {each.arm.name: each.state for each in halving.standings}


def test_half_of_the_arms_go_on_until_there_are_two():
    assert [sizes(count) for count in (2, 3, 4, 5, 8)] == [[2], [3, 2], [4, 2], [5, 3, 2], [8, 4, 2]]


def runs_of(world: World) -> list[tuple[int, str, int, int | None]]:
    return [(trial.round, trial.arm.name, trial.seed, trial.epochs) for trial in world.trials]


def test_where_time_is_short_the_better_half_goes_on_with_more():
    world = World(FIVE)
    halving = compete(world, "full,head,last,lora,lp_ft", 170)  # 45 s a whole run
    assert halving.rounds == [5, 3, 2]
    ran = [run for run, trial in zip(runs_of(world), world.trials, strict=True) if trial.round > 1]
    assert ran == [(2, "lp_ft", 0, 2), (2, "full", 0, 2), (3, "full", 0, None)]  # the head is solved, and not run again
    assert states(halving) == {
        "full": "won",
        "lp_ft": "finalist",
        "head": "out in round 2",
        "lora": "out in round 1",
        "last": "out in round 1",
    }
    assert [each.arm.name for each in halving.standings if each.whole] == ["full", "head"]


@pytest.mark.parametrize(("budget", "whole"), [(200, 3), (250, 4), (300, 5), (10_000, 5)])
def test_no_arm_is_out_while_there_is_time_for_all_of_its_training(budget, whole):
    world = World(FIVE)
    halving = compete(world, "full,head,last,lora,lp_ft", budget)
    assert halving.rounds == [5, whole]
    assert runs_of(world)[:5] == [
        (1, name, 0, 1 if name != "head" else None) for name in ("head", "full", "last", "lora", "lp_ft")
    ]
    assert runs_of(world)[5 : 4 + whole] == [
        (2, name, 0, None) for name in ("lp_ft", "full", "lora", "last")[: whole - 1]
    ]
    assert sum(each.whole for each in halving.standings) == whole
    assert list(states(halving).values()).count("finalist") == whole - 1


def test_the_best_two_have_several_seeds():
    world = World(FIVE)
    halving = compete(world, "full,head,last,lora,lp_ft", 10_000)
    assert runs_of(world)[9:] == [(2, name, seed, None) for seed in (1, 2) for name in ("lp_ft", "full")]
    assert {each.arm.name: len(each.runs) for each in halving.standings} == {
        **dict.fromkeys(("head", "last", "lora"), 1),
        **dict.fromkeys(("lp_ft", "full"), 3),
    }


def test_an_arm_that_begins_slowly_may_still_win():
    world = World({"full": 0.9, "last": 0.8, "lora": 0.85})
    run = world.run

    def slow_to_begin(trial: Trial) -> Outcome:
        found = run(trial)
        return replace(found, rank=found.rank / 10) if trial.arm.name == "full" and trial.epochs == 1 else found

    world.run = slow_to_begin
    assert states(compete(world, "full,last,lora", 10_000))["full"] == "won"


@pytest.mark.parametrize("budget", [90, 150, 300, 1000])
def test_no_run_is_started_that_cannot_end_within_the_budget(budget):
    world = World(FIVE, {"full": 1.0, "lora": 0.8, "last": 0.3, "lp_ft": 1.0})
    halving = compete(world, "head,full,last,lora,lp_ft", budget)
    assert world.now <= budget * (1 - 0.06) + 1e-6  # and what test needs is left
    assert "won" in states(halving).values()


def test_a_run_that_cannot_end_in_its_share_is_made_shorter():
    world = World({"full": 0.9, "last": 0.4}, {"full": 1.0, "last": 0.1})
    halving = compete(world, "full,last", 300, seeds=1)
    first, again = [trial for trial in world.trials if trial.arm.name == "full"]
    assert (first.max_steps, first.epochs) == (None, None)
    assert 50 < again.max_steps < 400
    assert states(halving) == {"full": "won", "last": "finalist"}


def test_where_runs_take_long_to_begin_some_arms_are_scored_rather_than_none():
    world = World({"full": 0.9, "last": 0.6, "lora": 0.8, "ia3": 0.5}, dict.fromkeys(FIVE, 0.01), overhead=40)
    run = world.run

    def begins_late(trial: Trial) -> Outcome:
        if trial.most < world.overhead:
            world.trials.append(trial)
            world.now += trial.most
            return Outcome("stopped", trial.most, "its time was up before it could be scored")
        return run(replace(trial, limit=trial.most))

    world.run = begins_late
    halving = compete(world, "full,last,lora,ia3", 150)
    assert [state for state in states(halving).values() if state in ("won", "finalist")]
    assert "no time" in states(halving).values()


def test_a_solved_head_whose_time_is_up_says_nothing_of_how_the_others_begin():
    world = World(FIVE, dict.fromkeys(FIVE, 0.01), late=("head",))
    assert states(compete(world, "head,full,last", 100))["full"] == "won"


def test_fewer_seeds_are_run_where_time_allows_no_more():
    world = World({"full": 0.9, "last": 0.6})  # 45 s a run
    halving = compete(world, "full,last", 240)
    assert [len(each.runs) for each in halving.standings] == [2, 2]


def test_a_failed_arm_is_told_and_the_others_go_on():
    world = World(FIVE, fails=("lora", "last", "full"))
    halving = compete(world, "head,full,last,lora,lp_ft", 10_000)
    found = states(halving)
    assert [found[name] for name in ("full", "last", "lora")] == ["failed"] * 3
    assert (found["lp_ft"], found["head"]) == ("won", "finalist")
    assert halving.standings[1].why == "round 1: it broke"


def test_an_arm_whose_time_is_up_counts_with_what_it_did_before():
    world = World({"full": 0.9, "last": 0.6, "lora": 0.5})
    run = world.run

    def slower(trial: Trial) -> Outcome:
        world.late = ("full",) if trial.round == 2 else ()
        return run(trial)

    world.run = slower
    halving = compete(world, "full,last,lora", 2000, seeds=1)
    full = halving.standings[0]
    assert (full.round, full.runs[0][0].round, full.why) == (2, 1, "round 2: its time was up")


def test_where_all_fail_nobody_wins():
    halving = compete(World(FIVE, fails=("full", "last")), "full,last", 100)
    assert set(states(halving).values()) == {"failed"}


def test_less_may_be_better():
    """Ranks are higher for the better: `read_outcome` turns the sign of such a score."""
    assert Standing(Arm("x"), [(None, Outcome("done", 1, rank=-2.0)), (None, Outcome("done", 1, rank=-4.0))]).rank == -3


def test_what_was_kept_counts_as_spent():
    world = World({"full": 0.9, "last": 0.6})
    run = world.run

    def kept(trial: Trial) -> Outcome:
        outcome, world.now = run(trial), 0.0
        return replace(outcome, kept=trial)

    halving = Halving([Arm("full", epochs=4), Arm("last", epochs=4)], 3, 240, kept, lambda: world.now)
    halving.go()
    assert halving.elapsed() == pytest.approx(180)
    assert [len(each.runs) for each in halving.standings] == [2, 2]


# what is told


def row(arm: str, value: float, low: float, high: float, seconds: float, **more) -> dict:
    headline = {"name": "macro_f1", "value": value, "low": low, "high": high, "level": 0.95, "method": "bca"}
    known = {"arm": arm, "headline": headline, "rows": 120, "seconds": seconds, "seeds": 1, "any_seed": arm == "head"}
    known["training"] = seconds - 2  # it took 2 to begin and end
    known |= {"round": 2, "whole": True, "parameters": 22_700_000, "bytes": 91_000_000, "state": "won", "why": ""}
    return known | more


def difference(shown: bool) -> Difference:
    return Difference(Interval(-0.01, -0.03, 0.01, 0.95, "bca"), 0.0, 0.0, 0.01 if shown else 0.4, None)


def test_a_quick_arm_that_cannot_be_told_from_the_best_is_named():
    rows = [
        row("lp_ft", 0.91, 0.89, 0.93, 60, seeds=3),
        row("head", 0.9, 0.88, 0.92, 10),
        row("last", 0.7, 0.6, 0.8, 9),
    ]
    said = page.recommend(rows, {"head": difference(False), "last": difference(True)}, lower=False)
    assert said == (
        "lp_ft is best on dev: macro F1 0.91 (0.89 to 0.93), the mean of 3 seeds, in 1 min 0 s a run. It is better "
        "than last by more than chance explains. But head is within what chance alone can do: 0.90 (0.88 to 0.92). "
        "head trains in 8.0 s, and lp_ft in 58 s: take head if time matters."
    )


def test_of_an_arm_that_was_out_early_no_more_is_said_than_it_showed():
    rows = [
        row("lp_ft", 0.91, 0.89, 0.93, 60),
        row("last", 0.7, 0.6, 0.8, 30),
        row("full", 0.4, 0.3, 0.5, 20, whole=False),
    ]
    said = page.recommend(rows, {"last": difference(True), "full": difference(True)}, lower=False)
    assert "It is better than last by more than chance explains." in said
    assert "full is behind after a part of its training: what the rest would bring, this does not say." in said
    assert "(no test is made of this score: the intervals lie apart)" not in said
    said = page.recommend([rows[0], rows[2]], {}, lower=False)
    assert "behind after a part of its training (no test is made of this score: the intervals lie apart)" in said


def test_what_an_arm_shows_it_shows_of_its_whole_schedule_or_of_a_part():
    one_epoch, limited, longer = Arm("a", epochs=1), Arm("b", epochs=4, max_steps=50), Arm("c", epochs=4)
    ran = [(one_epoch, None, None), (limited, None, 50), (limited, 1, 25), (longer, 2, None), (longer, None, 70)]
    trials = [Trial(arm, 1, 0, epochs, steps, 9.0, 9.0) for arm, epochs, steps in ran]
    standings = [Standing(trial.arm, [(trial, Outcome("done", 1))], round=1) for trial in trials]
    assert [each.whole for each in standings] == [True, True, False, False, False]
    assert Standing(Arm("head", solved=True), [(trials[3], Outcome("done", 1))]).whole


def test_seconds_to_begin_are_no_reason_to_take_an_arm():
    rows = [row("full", 0.91, 0.89, 0.93, 58, training=4.0), row("last", 0.9, 0.88, 0.92, 26, training=2.0)]
    assert "time matters" not in page.recommend(rows, {"last": difference(False)}, lower=False)


@pytest.mark.parametrize(("other", "models"), [("head", 1), ("full", 3)])
def test_arms_are_compared_with_as_many_models_as_both_have(other, models, monkeypatch):
    truth = np.arange(30) % 2
    read = {"any_seed": np.array([truth]), "three seeds": np.array([truth, 1 - truth, truth])}
    known = {"head": "any_seed", "full": "three seeds"}
    rows = [row("head", 0.9, 0.8, 1, 5), row(other, 0.8, 0.7, 0.9, 5, seeds=models) | {"arm": f"{other}-2"}]
    monkeypatch.setattr(
        page, "_read", lambda of, folder: ((range(30), ("a", "b"), truth, None), read[known[of["arm"][:4]]])
    )
    seen = []
    for name in ("between_models", "between_seeds"):
        note = lambda one, two, *_, kind=name: seen.append((kind, len(one.said), len(two.said))) or {}  # noqa: E731
        monkeypatch.setattr(page, name, note)
    monkeypatch.setattr(page, "raise_for_several", lambda found: [{"macro_f1": each} for each in found])
    page.compare(rows, Path(), "text-classification")
    assert seen == [("between_models" if models == 1 else "between_seeds", models, models)]


def test_it_says_so_where_nothing_can_be_told_apart():
    rows = [row("full", 0.91, 0.89, 0.93, 60), row("last", 0.9, 0.88, 0.92, 50), row("head", 0.9, 0.88, 0.92, 50)]
    said = page.recommend(rows, {"last": difference(False), "head": difference(False)}, lower=False)
    assert "last and head are within what chance alone can do" in said
    assert "nothing here can be told apart on 120 dev rows" in said
    assert "It ran with one seed" in said
    assert "sooner" not in said


def test_a_lone_arm_is_not_called_the_best():
    lone = [row("head", 0.9, 0.88, 0.92, 50), {"arm": "full", "state": "no time", "why": "too slow"}]
    assert page.recommend(lone, {}, lower=False) == (
        "head is the only arm that could be scored: macro F1 0.90 (0.88 to 0.92), in 50 s a run. Of full this says "
        "nothing: without a score, for the reason below the table."
    )


@pytest.mark.parametrize(("lower", "shown"), [(False, True), (True, False)])
def test_scores_without_a_test_are_told_apart_by_their_intervals(lower, shown):
    said = page.recommend([row("full", 0.9, 0.85, 0.95, 5), row("last", 0.7, 0.6, 0.8, 5)], {}, lower=lower)
    assert ("better than last" in said) == shown


def test_the_table_fits_a_terminal():
    rows = [
        row("lora:adapt.rank=16:train.lr=3e-4", 0.91234, 0.9, 0.92, 1234.5, state="out in round 1"),
        row("lora:adapt.rank=16:train.lr=1e-4", 0.91234, 0.9, 0.92, 1234.5, state="out in round 1"),
        {"arm": "full", "state": "failed", "why": "round 1: it broke"},
    ]
    lines = page.text(rows, 3, 120).splitlines()
    cells = "lora:adapt.ra… (1)  2/3  1  0.91 (0.90 to 0.92)  1234  22.7M  91 MB  out in round 1"
    assert lines[1].split() == cells.split()
    assert lines[4:] == [
        "(1) lora:adapt.rank=16:train.lr=3e-4",
        "(2) lora:adapt.rank=16:train.lr=1e-4",
        "full: round 1: it broke",
    ]
    narrow = page.text(rows, 3, 80).splitlines()
    assert max(map(len, narrow)) <= 80
    assert " ".join(narrow[1].split()) == "lora:adapt.ra… (1) 2/3 1 0.91 (0.90 to 0.92) 1234 out in round 1"


def test_what_is_said_is_wrapped():
    said = page.wrapped("full is best on dev, and " * 10 + "runs/a-folder-with-a-name", 60).splitlines()
    assert max(map(len, said)) <= 60
    assert said[-1].endswith("runs/a-folder-with-a-name")


# runs


def a_trial(limit: float, most: float) -> Trial:
    return Trial(Arm("full"), 1, 0, None, None, limit, most)


@pytest.mark.parametrize(
    ("now", "trained", "to_go", "late"),
    [
        (20, None, None, False),  # still begins
        (101, None, None, True),
        (20, 10, 25, False),
        (20, 10, 35, True),  # 55 of 50 seconds, and it began after 10
        (45, 5, 30, False),  # 75 seconds, but it took 40 to begin
        (45, 5, 40, True),
        (99, 50, 0, False),  # is saved
        (101, 50, 0, True),
    ],
)
def test_a_run_is_late_once_it_cannot_end_in_time(now, trained, to_go, late):
    pace = None if trained is None else {"trained": trained, "to_go": to_go}
    assert runs.is_late(now, pace, a_trial(limit=50, most=100)) == late


RECIPE = """
import json, time
from dataclasses import dataclass, field
from pathlib import Path
from graftkit.adapt import AdaptConfig
from graftkit.config import start
from graftkit.data.config import RowsConfig
from graftkit.errors import UserError
from graftkit.run import RunConfig
from graftkit.train import TrainConfig

@dataclass(frozen=True)
class Config:
    data: RowsConfig = field(default_factory=RowsConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)

def check(config):
    pass

def main(config):
    folder, steps = Path(config.run.out), config.train.max_steps or 600
    plan = {"plan": {"updates": steps, "updates_per_epoch": 200}}
    if config.adapt.strategy == "last":
        raise UserError("this network has no blocks")
    headline = {"name": "rmse", "value": 1.0 + len(config.adapt.strategy) + config.run.seed / 10, "low": 0.5,
                "high": 9.0, "level": 0.95, "method": "bca", "lower_is_better": True}
    if config.run.resume:
        (folder / "metrics.json").write_text(json.dumps({"test": {"headline": headline, "rows": 7}}))
        return (folder / "report.html").write_text("done")
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(bytes(1000))
    (folder / "run.json").write_text(json.dumps(plan))
    begun = time.perf_counter()
    for update in range(1, steps + 1):
        time.sleep(0.5 if config.adapt.strategy == "lora" else 0.0005)
        with open(folder / "timing.jsonl", "a") as file:
            file.write(json.dumps({"update": update, "seconds": time.perf_counter() - begun}) + "\\n")
    (folder / "run.json").write_text(json.dumps(plan | {
        "dev": {"headline": headline, "rows": 7}, "task": "text-regression", "adapt": {"trained_parameters": 12},
        "seconds": {"train": time.perf_counter() - begun, "evaluate": 0.1}, "training": {"updates": steps},
        "backbone": {"name": "demo", "commit": None}, "hardware": {"cpu": "x", "cores": 1},
        "data": {"splits": {"dev": {"rows": 7, "sha256": "a"}, "test": {"rows": 7, "sha256": "b"}}}}))

if __name__ == "__main__":
    start(main, Config)
"""


@pytest.fixture
def recipe(tmp_path):
    """A recipe that trains nothing: full and head end well, last fails, and lora is slow."""
    path = tmp_path / "made_up.py"
    path.write_text(RECIPE)
    return path


def call(recipe, *words: object) -> int:
    return cli.main(["bakeoff", *map(str, (recipe, *words))])


def test_a_bakeoff_ends_with_a_table_and_keeps_its_runs(recipe, tmp_path, capsys):
    words = ["--budget", "2m", "--arms", "full,last", "--seeds", 1, "--out", tmp_path / "out"]
    assert call(recipe, *words) == 0
    said = capsys.readouterr().out
    assert "full, round 1, seed 0: starts, with" in said
    assert "last, round 1, seed 0: failed after" in said
    assert "last: round 1: this network has no blocks" in said
    assert call(recipe, *words[2:], "--budget", "90s") == 0  # another budget goes on from what is there
    again = capsys.readouterr().out
    assert "full, round 1, seed 0: dev RMSE 5 (" in again
    assert again.count("as it was made before") == 1
    assert call(recipe, *words, "--train.lr", "1") == 2
    assert "holds a bakeoff with other settings: flags" in capsys.readouterr().err


def test_runs_that_read_something_else_are_made_anew(recipe, tmp_path, capsys):
    rows, out = tmp_path / "rows.csv", tmp_path / "out"
    rows.write_text("text,label\na,b\nc,d\n")
    words = ["--budget", "2m", "--arms", "full,last", "--seeds", 1, "--out", out, "--data.path", rows]
    assert call(recipe, *words) == 0
    rows.write_text("text,label\na,b\n")
    capsys.readouterr()
    assert call(recipe, *words) == 0
    said = capsys.readouterr().out
    assert f"{rows} changed since; what was made before is made anew" in said
    assert "as it was made before" not in said
    assert call(recipe, *words) == 0
    assert "as it was made before" in capsys.readouterr().out


def test_a_search_does_not_go_on_with_other_data(tmp_path):
    (tmp_path / "rows.csv").write_text("text\na\n")
    settings = {"recipe": "r.py"}
    before = sources.stamps([tmp_path / "rows.csv"], tmp_path / "out")
    (tmp_path / "rows.csv").write_text("text\nb\n")
    now = sources.stamps([tmp_path / "rows.csv"], tmp_path / "out")
    assert sources.changed(before, before) == []
    assert sources.changed(before, now) == [str(tmp_path / "rows.csv")]
    (tmp_path / "out").mkdir()
    search._claim_kept(tmp_path / "out", settings | {"read": before})
    with pytest.raises(UserError, match=r"holds a search of other data: .*rows.csv changed since; name another folder"):
        search._claim_kept(tmp_path / "out", settings | {"read": now})


def test_a_folder_is_known_by_its_files_but_for_those_of_the_bakeoff(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "x.bin").write_bytes(b"123")
    before = sources.stamps([tmp_path], tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "bakeoff.yaml").write_text("")
    assert sources.stamps([tmp_path], tmp_path / "out") == before
    (tmp_path / "part" / "x.bin").write_bytes(b"1234")
    assert sources.stamps([tmp_path], tmp_path / "out") != before


def test_what_runs_read_is_what_their_settings_name(recipe, tmp_path):
    (tmp_path / "rows.csv").write_text("")
    (tmp_path / "mine.yaml").write_text("")
    flags = ["--data.path", str(tmp_path / "rows.csv"), "--config", str(tmp_path / "mine.yaml")]
    module = load_at(recipe)
    read = sources.named(recipe, flags, [parse(module.Config, [*flags, "--run.out", str(tmp_path)])])
    assert set(read) == {recipe, tmp_path / "rows.csv", tmp_path / "mine.yaml"}


def test_runs_of_other_rows_or_weights_are_not_compared(tmp_path):
    def done(**made_of):
        return Standing(Arm("x"), [(None, Outcome("done", 1, rank=0.5, facts={"made_of": made_of}))])

    contest.check_alike([done(rows="a", weights={"bert": "1"}), done(rows="a", weights={"gpt2": "2"})], tmp_path)
    for other in ({"rows": "b", "weights": {}}, {"rows": "a", "weights": {"bert": "2"}}):
        with pytest.raises(UserError, match="did not read the same"):
            contest.check_alike([done(rows="a", weights={"bert": "1"}), done(**other)], tmp_path)


@pytest.mark.slow
def test_the_better_arm_is_asked_about_test_and_the_slow_one_made_shorter(recipe, tmp_path, capsys):
    words = ["--budget", "80s", "--arms", "full,head,last,lora", "--seeds", 2, "--out", tmp_path / "out"]
    assert call(recipe, *words) == 0
    whole = json.loads((tmp_path / "out" / "bakeoff.json").read_text())
    found = {each["arm"]: each for each in whole["arms"]}
    assert whole["seconds"] <= 80
    assert [found[name]["state"] for name in ("full", "head", "last")] == ["won", "finalist", "failed"]
    assert found["full"]["headline"]["value"] == pytest.approx(5.05)  # over seeds 0 and 1; less is better
    assert (found["full"]["seeds"], found["full"]["bytes"], found["full"]["parameters"]) == (2, 1000, 12)
    assert whole["test"]["value"] == 5.0  # of the better seed
    assert found["lora"].get("updates", 0) < 200
    assert "updates at 0.5 s did not fit in its share of the budget" in capsys.readouterr().out
    tested = [path.parent.parent.name for path in (tmp_path / "out").glob("*/run/report.html")]
    assert tested == ["full-round2-seed0"]
    assert "| full | 2/2 | 2 |" in (tmp_path / "out" / "bakeoff.md").read_text()


def test_an_interrupt_is_one_line_and_keeps_what_is_done(recipe, tmp_path):
    out = tmp_path / "out"
    words = [str(recipe), "--budget", "10m", "--arms", "full,lora", "--out", str(out)]
    command = [sys.executable, "-c", "import sys; from graftkit.cli import main; sys.exit(main())", "bakeoff", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (out / "lora-round1-seed0" / "run" / "timing.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = finish(process, code=130)
    assert said.splitlines()[-1] == (
        f"stopped by SIGINT; the runs that ended are kept: give the same command with --out {out} to go on"
    )
    assert (out / "full-round1-seed0" / "outcome.json").exists()
    assert not (out / "lora-round1-seed0" / "outcome.json").exists()
    written = (out / "lora-round1-seed0" / "run" / "timing.jsonl").read_text()
    time.sleep(0.8)
    assert written == (out / "lora-round1-seed0" / "run" / "timing.jsonl").read_text()  # it has stopped, too


@pytest.mark.parametrize(
    ("before", "now", "kept"),
    [
        ((3, None), (3, None), True),
        ((None, None), (None, 50), True),  # as long as it may be
        ((3, 90), (3, 100), True),
        ((3, 50), (3, 100), False),
        ((3, 50), (3, None), False),
    ],
)
def test_a_run_is_kept_unless_there_is_time_for_a_longer_one(before, now, kept, tmp_path):
    known = {"state": "done", "seconds": 9, "kept": dict(zip(("epochs", "max_steps"), before, strict=True))}
    (tmp_path / "outcome.json").write_text(json.dumps(known))
    trial = replace(a_trial(50, 100), epochs=now[0], max_steps=now[1])
    outcome = runs.read_kept(tmp_path, trial)
    assert (outcome is not None) == kept
    if kept:
        assert (outcome.kept.epochs, outcome.kept.max_steps) == before


def test_a_folder_with_something_else_is_left_alone(recipe, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty; name another folder"):
        contest.claim(tmp_path, {}, {})


# one until dev


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--hub.push_to", "me/x"), "--hub.push_to me/x needs scores of test; leave out --run.until dev"),
        (("--run.seeds", "0", "1"), "--run.until dev with --run.seeds: what several models say together is of test"),
        (("--data.folds", "3"), "--run.until dev with --data.folds"),
    ],
)
def test_until_dev_is_refused_where_test_is_needed(words, said):
    config = parse(load_recipe("text_classify").Config, ["--run.until", "dev", *words])
    with pytest.raises(UserError, match=said):
        (check_several if several_asked(config) else check_until)(config)


def test_a_run_that_was_on_test_does_not_go_back_to_dev(tmp_path):
    (tmp_path / "report.html").write_text("")
    words = ["--run.until", "dev", "--run.out", str(tmp_path), "--run.resume"]
    with pytest.raises(UserError, match=r"went on to test before; name another --run\.out"):
        check_until(parse(load_recipe("text_classify").Config, words))


@pytest.mark.slow
def test_arms_compete_for_real(checkpoint, data, tmp_path, capsys):
    words = ["--budget", "10m", "--arms", "head,full:train.epochs=3", "--seeds", 2, "--out", tmp_path / "out"]
    words += [
        "--backbone.name",
        checkpoint("bert"),
        "--data.path",
        data,
        "--train.lr",
        "1e-3",
        "--run.precision",
        "fp32",
    ]
    assert call(TEXT, *words) == 0
    whole = json.loads((tmp_path / "out" / "bakeoff.json").read_text())
    found = {each["arm"]: each for each in whole["arms"]}
    assert {each["state"] for each in found.values()} == {"won", "finalist"}
    assert found["full:train.epochs=3"]["seeds"] == 2
    assert (found["head"]["any_seed"], found["full:train.epochs=3"]["any_seed"]) == (True, False)
    assert found["full:train.epochs=3"]["parameters"] > found["head"]["parameters"] == 99
    assert len(whole["differences"]) == 1
    assert len(list((tmp_path / "out").glob("*/run/predictions-test.parquet"))) == 1
    assert "On test, of which no choice was made" in capsys.readouterr().out


def test_a_run_that_ended_at_dev_is_told_how_to_go_on(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"task": "text-classification", "dev": {"rows": 7}}))
    with pytest.raises(UserError, match=f"ended at dev.*give its command again with --run.out {tmp_path} --run.resume"):
        read_folder(tmp_path, ("dev", "test"))
