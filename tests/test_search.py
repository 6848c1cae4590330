"""Does a search try what was asked for, keep what it found, and say which settings are best?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from conftest import ROOT, load_recipe

from graftkit import cli
from graftkit.errors import UserError
from graftkit.search import run_command, search
from graftkit.search_space import Choice, Span, draw_words, read_space, rounded

RECIPE = ROOT / "recipes" / "text_classify.py"
RATES = "train.lr=1e-5..1e-3"


@pytest.mark.parametrize(
    ("spec", "expected", "wide"),
    [
        (RATES, Span("train.lr", 1e-5, 1e-3, whole=False), True),
        ("train.warmup=0..0.2", Span("train.warmup", 0.0, 0.2, whole=False), False),
        ("train.lr=1..2", Span("train.lr", 1.0, 2.0, whole=False), False),
        ("train.epochs=1..5", Span("train.epochs", 1, 5, whole=True), False),
        ("train.epochs=1..10", Span("train.epochs", 1, 10, whole=True), True),
        ("adapt.strategy=full,lora", Choice("adapt.strategy", ("full", "lora")), None),
        ("train.lr=auto,1e-4", Choice("train.lr", ("auto", "1e-4")), None),
        ("train.checkpointing=true,false", Choice("train.checkpointing", ("true", "false")), None),
    ],
)
def test_a_setting_is_varied_in_a_range_or_among_values(spec, expected, wide):
    (read,) = read_space([spec], [], load_recipe("text_classify"))
    assert read == expected
    assert wide is None or read.wide == wide


@pytest.mark.parametrize(
    ("specs", "flags", "match"),
    [
        (["train.leaning_rate=1..2"], [], r"--vary train.leaning_rate=1: unknown setting .*did you mean --train.lr\?"),
        (["train.lr=-1..1"], [], "--train.lr must be a number above 0 or auto, not -1.0"),
        (["train.lr=1..1"], [], "the low end comes first"),
        (["train.lr=auto..1"], [], "a range is of numbers"),
        (["train.checkpointing=false..true"], [], "a range is of numbers"),
        (["train.lr"], [], "write section.field=low..high"),
        (["train.lr=1e-4"], [], "name two values or more, each once"),
        (["train.lr=1,1"], [], "name two values or more, each once"),
        (["adapt.strategy=full,lra"], [], "did you mean 'lora'"),
        (["adapt.targets=query,value"], ["--adapt.strategy", "lora"], "it is a list"),
        (["run.seed=1..3"], [], "the same rows and scores, so run stays as it is"),
        (["data.dev=0.1,0.2"], [], "so data stays as it is"),
        ([RATES, "train.lr=1,2"], [], "given twice"),
        ([RATES], ["--train.lr", "1"], "leave one of them out"),
        ([RATES], ["--train.lr=1"], "leave one of them out"),
        ([RATES], ["--run.out", "x"], "--run.out x: not with graft search"),
        ([RATES], ["--run.seeds", "0", "1"], "not with graft search"),
        ([RATES], ["--trin.epochs", "1"], "unknown setting --trin.epochs"),
        ([RATES], ["--adapt.strategy", "head"], "--train.lr does nothing with --adapt.strategy head"),
        (["adapt.cache=auto,off"], ["--adapt.strategy", "head", "--train.epochs", "2"], "--train.epochs does nothing"),
        (["adapt.rank=4,8", "adapt.strategy=full,last"], [], "--adapt.rank does nothing with --adapt.strategy full"),
        (["adapt.solver=lbfgs,sgd"], [], "--adapt.solver sgd does nothing with --adapt.strategy full"),
        ([RATES], ["--data.task", "regression", "--train.focal", "2"], "--train.focal"),
        (["adapt.strategy=full,head"], ["--adapt.rank", "4"], "--adapt.rank does nothing with --adapt.strategy full"),
    ],
)
def test_what_the_recipe_does_not_take_is_refused_before_anything_runs(specs, flags, match):
    with pytest.raises(UserError, match=match):
        read_space(specs, flags, load_recipe("text_classify"))


def test_what_pictures_would_never_see_is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"--vary image.mixup=0.2: --image.mixup mixes labels"):
        read_space(["image.mixup=0.2,0.4"], ["--adapt.strategy", "head"], load_recipe("image_classify"))


class Low:
    """A trial that draws the first of all values, or the one it is told to."""

    def __init__(self, **chosen):
        self.chosen, self.drawn = chosen, []

    def suggest_categorical(self, name, values):
        self.drawn.append(name)
        return self.chosen.get(name.partition(".")[2], values[0])

    def suggest_float(self, name, low, high, log):
        self.drawn.append(name)
        return low

    suggest_int = suggest_float


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"strategy": "full"}, "--train.epochs 2 --adapt.strategy full --train.lr 1e-05"),
        ({"strategy": "lora"}, "--train.epochs 2 --adapt.strategy lora --train.lr 1e-05 --adapt.rank 4"),
        ({"strategy": "head"}, "--adapt.strategy head --adapt.solver lbfgs"),
        (
            {"strategy": "head", "solver": "sgd"},
            "--train.epochs 2 --adapt.strategy head --adapt.solver sgd --train.lr 1e-05",
        ),
    ],
)
def test_a_trial_has_what_its_way_of_adapting_reads(chosen, expected):
    recipe, flags = load_recipe("text_classify"), ["--train.epochs", "2"]
    specs = [RATES, "adapt.rank=4..8", "adapt.solver=lbfgs,sgd", "adapt.strategy=full,head,lora"]
    trial = Low(**chosen)
    assert " ".join(draw_words(read_space(specs, flags, recipe), trial, flags, recipe)) == expected
    assert all(f"--{name}" in expected for name in trial.drawn)


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (0.99961234, 0.9, 0.9999, 0.999612),
        (0.99988, 0.05, 0.9999, 0.99988),
        (0.0371234, 0.0, 0.2, 0.0371),
        (2.34567e-5, 1e-5, 1e-3, 2.35e-5),
        (1.00012e-5, 1e-5, 1e-3, 1.0001e-5),
        (1.2349, 1.2345, 2.0, 1.2349),
        (0.99999999, 0.9, 0.99999999, 0.99999999),
        (-0.5678, -1.0, 1.0, -0.568),
    ],
)
def test_a_number_has_the_digits_that_tell_it_from_both_ends(value, low, high, expected):
    assert rounded(value, low, high) == expected
    assert low <= rounded(value, low, high) <= high


def test_words_of_the_command_and_settings_of_the_recipe_are_told_apart(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr("graftkit.search.search", lambda *given, **named: seen.update(named, given=given))
    words = ["search", str(RECIPE), "--data.path", "a.csv", "--vary", RATES, "--run.precision=fp32", "--trials", "3"]
    assert cli.main([*words, "--time", "1h30m", "--adapt.targets", "a", "b", "--config", "c.yaml"]) == 0
    flags = ["--data.path", "a.csv", "--run.precision=fp32", "--adapt.targets", "a", "b", "--config", "c.yaml"]
    assert seen["given"] == (RECIPE, [RATES], flags)
    assert (seen["trials"], seen["seconds"], seen["out"]) == (3, 5400, Path("runs/search-text_classify"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vary", RATES, "--trials", "0"], "'0' is no whole number from 1 up"),
        (["--vary", RATES, "--time", "soon"], "--time soon: write a time such as 90s"),
        ([], "--vary"),
    ],
)
def test_a_wrong_word_of_the_command_is_one_line(capsys, words, said):
    assert cli.main(["search", str(RECIPE), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# searches whose trials are played


class Player:
    """Plays runs: their dev score after each epoch follows from the rate, by default best at 1e-4."""

    def __init__(self, lower: bool = False, dies_at: int | None = None, fails: bool = False, best: float = 1e-4):
        self.commands, self.lower, self.dies_at, self.fails, self.best = [], lower, dies_at, fails, best

    def __call__(self, command, output, done):
        self.commands.append(list(command))
        words = dict(zip(command[2::2], command[3::2], strict=False))
        folder = Path(words["--run.out"])
        output.write_text("starts\nerror: it broke\n")
        if self.dies_at == len(self.commands):
            folder.mkdir()
            (folder / "config.yaml").write_text("")
            raise KeyboardInterrupt
        if self.fails:
            return 2
        import math

        score = 1 / (1 + abs(math.log10(float(words.get("--train.lr", 1)) / self.best)))
        shown = 1 - score if self.lower else score
        folder.mkdir(exist_ok=True)
        headline = {"name": "f1", "value": shown, "low": shown - 0.01, "high": shown + 0.01, "level": 0.95}
        headline |= {"method": "bootstrap", "lower_is_better": self.lower}
        record = {"headline": "f1", "lower_is_better": self.lower, "dev": {"headline": headline}}
        (folder / "run.json").write_text(json.dumps(record))
        if "--run.until" not in command:  # the best goes on
            (folder / "metrics.json").write_text(json.dumps({"test": {"rows": 256, "headline": headline}}))
            (folder / "report.html").write_text("")
            return 0
        (folder / "config.yaml").write_text("")
        for name in ("checkpoints", "model"):
            (folder / name).mkdir(exist_ok=True)
        with open(folder / "log.jsonl", "w") as log:
            for epoch in (1,) if "head" in command else (1, 2, 3):  # a head that is computed has one event
                log.write(json.dumps({"update": epoch, "dev": {"f1": shown}}) + "\n")
                log.flush()
                if done():
                    return 143
        return 0


def play(out: Path, player: Player, trials: int = 8, specs=(RATES,), **more):
    search(RECIPE, list(specs), [], trials=trials, seconds=None, seed=0, out=out, run=player, **more)
    return (out / "search.md").read_text()


def drawn(player: Player) -> list[str]:
    return [command[command.index("--train.lr") + 1] for command in player.commands]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A folder of a search of seven trials, its player and its text."""
    out, player = tmp_path_factory.mktemp("played") / "search", Player()
    return out, player, play(out, player, trials=7)


def test_the_best_on_dev_alone_goes_on_to_test_and_keeps_its_weights(played):
    out, player, text = played
    assert len(player.commands) == 8
    *tried, last = player.commands
    assert all(command[-2:] == ["--run.until", "dev"] for command in tried)
    rates = [float(rate) for rate in drawn(player)]
    assert min(rates[:-1], key=lambda rate: abs(rate / 1e-4 - 1)) == rates[-1]
    assert "--run.until" not in last
    assert "--run.resume" in last
    kept = sorted(path.parent.name for path in out.glob("trial-*/model"))
    assert kept == [Path(last[last.index("--run.out") + 1]).name]
    assert "**Trial" in text
    assert "partly so by luck" in text
    assert f"--train.lr {drawn(player)[-1]}" in text
    assert text.count("\n| ") == 2 + 7


def test_less_of_an_error_is_better(tmp_path, capsys):
    player = Player(lower=True)
    text = play(tmp_path / "search", player, trials=2)
    first, second, best = (abs(float(rate) / 1e-4 - 1) for rate in drawn(player))
    assert best == min(first, second)
    assert text in capsys.readouterr().out


def test_a_trial_that_falls_behind_is_stopped_after_the_epoch_that_shows_it(played):
    _, _, text = played
    assert "stopped after epoch 1: it fell behind" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert all(
        "fell behind" not in line for line in lines[:5]
    )  # the first ones are drawn by chance, and measured against


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, capsys):
    whole, first, second = Player(), Player(dies_at=2), Player()
    expected = play(tmp_path / "whole", whole, trials=2)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "parts", first, trials=2)
    assert "the same command goes on" in capsys.readouterr().err
    text = play(tmp_path / "parts", second, trials=2)
    assert drawn(first)[:1] + drawn(second) == drawn(whole)
    assert drawn(first)[1] == drawn(second)[0]
    assert "--run.resume" in second.commands[0]
    strip = [str(tmp_path / "whole"), str(tmp_path / "parts")]
    plain = [[line.split(" | ")[:3] for line in each.splitlines()] for each in (expected, text)]
    assert [line for line in plain[0] if strip[0] not in line[0]] == [
        line for line in plain[1] if strip[1] not in line[0]
    ]


def test_more_trials_may_be_asked_for_later_but_nothing_else_changed(tmp_path):
    assert "rows of test, asked once, it has" in play(tmp_path / "search", Player(), trials=1)
    player = Player(best=7e-5)
    text = play(tmp_path / "search", player, trials=3)
    assert len(player.commands) == 3  # two more, and test, as one of them is the best
    best = 2 + ("trial-002" in " ".join(player.commands[-1]))
    assert f"asked 2 times (of trials 1 and {best}, as the best changed when more trials were asked for)" in text
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "search.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="holds no settings of a search"):
        play(tmp_path / "list", player)
    with pytest.raises(UserError, match=r"holds a search with others: vary: .*; name another folder"):
        play(tmp_path / "search", player, specs=["train.lr=1e-6..1e-3"])
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something that is no search"):
        play(tmp_path / "else", player)


def test_a_search_does_not_go_on_where_a_value_that_is_a_folder_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "other", "last"):  # two backbones, and what only has the name of a strategy
        Path(name).mkdir()
        Path(name, "config.json").write_text("{}")
    specs = [RATES, "backbone.name=one,other", "adapt.strategy=full,last"]
    play(tmp_path / "search", Player(), trials=1, specs=specs)
    Path("last", "config.json").write_text('{"changed": 1}')
    play(tmp_path / "search", Player(), trials=2, specs=specs)
    Path("other", "config.json").write_text('{"changed": 1}')
    with pytest.raises(UserError, match="holds a search of other data: other changed since; name another folder"):
        play(tmp_path / "search", Player(), trials=3, specs=specs)


def test_one_search_at_a_time_is_at_work_in_a_folder(tmp_path):
    class Second(Player):
        def __call__(self, *given):
            with pytest.raises(UserError, match="another graft search is at work in it"):
                play(tmp_path / "search", Player(), trials=1)
            return super().__call__(*given)

    play(tmp_path / "search", Second(), trials=1)
    play(tmp_path / "search", Player(), trials=1)  # it was let go


def test_a_trial_whose_head_is_computed_is_told_apart_and_measured_to_its_end(tmp_path):
    specs = [RATES, "adapt.strategy=full,head"]
    player = Player()
    text = play(tmp_path / "search", player, trials=4, specs=specs)
    heads = [command for command in player.commands if "head" in command]
    assert heads
    assert all("--train.lr" not in command for command in heads)
    lines = [line for line in text.splitlines() if line.startswith("| ") and " head |" in line]
    assert all("; not read in it, and left out: train.lr |" in line for line in lines)
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 'search' / 'search.db'}")
    told = {f"{trial.params['train.lr']!r}" for trial in study.trials if "train.lr" in trial.params}
    assert told == {command[command.index("--train.lr") + 1] for command in player.commands if "--train.lr" in command}
    assert all(not trial.intermediate_values for trial in study.trials if trial.params["adapt.strategy"] == "head")


def test_trials_that_all_fail_end_the_search_with_the_reason(tmp_path):
    player = Player(fails=True)
    with pytest.raises(UserError, match="the first 3 trials failed, the last with: it broke"):
        play(tmp_path / "search", player)
    assert len(player.commands) == 3


def test_settings_that_do_not_go_together_fail_without_a_process(tmp_path):
    player = Player()
    specs = [RATES, "train.soup=uniform,null", "train.epochs=1..2"]
    search(RECIPE, specs, [], trials=3, seconds=None, seed=0, out=tmp_path / "search", run=player)
    text = (tmp_path / "search" / "search.md").read_text()
    assert "failed: --train.soup uniform averages" in text.replace("\\", "")
    assert len(player.commands) < 4


def test_no_trial_begins_when_time_is_up(tmp_path):
    with pytest.raises(UserError, match="no trial has ended"):
        search(RECIPE, [RATES], [], trials=3, seconds=0, seed=0, out=tmp_path / "search", run=Player())


def test_without_optuna_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'graftkit\[search\]'"):
        play(tmp_path / "search", Player())
    assert not (tmp_path / "search").exists()


def test_a_command_is_asked_to_stop_once_and_its_exit_code_told(tmp_path):
    sleeps = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(60)"
    )
    output = tmp_path / "out.txt"
    code = run_command([sys.executable, "-c", sleeps], output, lambda: output.read_text().startswith("up"))
    assert code == 7
    assert run_command([sys.executable, "-c", "raise SystemExit(3)"], output, lambda: False) == 3


@pytest.mark.slow
def test_a_search_end_to_end(tmp_path, checkpoint, data):
    graft = "import sys; from graftkit.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", graft, "search", RECIPE, "--vary", "train.lr=1e-4..1e-2", "--trials", 3]
    words += ["--out", tmp_path / "search", "--backbone.name", checkpoint("bert"), "--data.path", data]
    words += ["--train.epochs", 2, "--run.precision", "fp32"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "search" / "search.md").read_text()
    assert text in done.stdout
    assert len(list((tmp_path / "search").glob("trial-00*/report.html"))) == 1
    assert len(list((tmp_path / "search").glob("trial-00*/predictions-test.parquet"))) == 1
    assert text.count("scored") >= 2
