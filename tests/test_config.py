"""Does the user get what they set, and one clear line where they slip?"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import pytest

from graftkit.config import (
    AtLeastOne,
    Fraction,
    NotNegative,
    NotNegativeInt,
    Positive,
    differences,
    parse,
    start,
    to_dict,
    to_yaml,
)
from graftkit.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """Which rows?"""

    path: str = "support"
    """Hub id, file or folder"""
    text: str | None = None
    """column of the text"""
    max_rows: AtLeastOne | None = None
    """at most so many rows"""


@dataclass(frozen=True)
class AdaptConfig:
    """What may change?"""

    strategy: Literal["full", "head", "last", "lora"] = "full"
    """which weights train"""
    blocks: NotNegativeInt = 0
    """how many of the top blocks train"""
    targets: list[str] | None = None
    """modules that LoRA adapts"""

    def __post_init__(self) -> None:
        if self.strategy == "head" and self.blocks:
            raise ValueError("--adapt.blocks needs\n--adapt.strategy last")
        if self.strategy == "full" and self.blocks:
            raise UserError("--adapt.blocks is not for full")


@dataclass(frozen=True)
class TrainConfig:
    """How does it learn?"""

    epochs: AtLeastOne = 3
    """passes over the training rows"""
    lr: Positive = 1e-4
    """step size, as in
    100% of the papers"""
    head_lr: Positive | None = None
    """step size of the head"""
    weight_decay: NotNegative = 0.01
    """pull towards zero"""
    warmup: Fraction = 0.1
    """share of the steps"""
    clip: float | Literal["auto"] = "auto"
    """largest gradient norm"""


@dataclass(frozen=True)
class RunConfig:
    """Where does this run live?"""

    out: str | None = None
    """folder of the run"""
    overwrite: bool = False
    """empty the folder first"""


@dataclass(frozen=True)
class Config:
    data: DataConfig = DataConfig()
    adapt: AdaptConfig = AdaptConfig()
    train: TrainConfig = field(default_factory=lambda: TrainConfig(lr=2e-5))  # a recipe's own default
    run: RunConfig = RunConfig()


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.fixture
def yaml_file(tmp_path, monkeypatch):
    """Write text to run.yaml in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> list[str]:
        (tmp_path / "run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["--config", "run.yaml"]

    return write


def setting(config, name):
    section, _, field_name = name.partition(".")
    return getattr(getattr(config, section), field_name)


def message(argv) -> str:
    with pytest.raises(UserError) as caught:
        parse(Config, argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_those_of_the_config_not_of_the_section():
    assert parse(Config, []) == Config()
    assert parse(Config, ["--train.epochs", "4"]).train == TrainConfig(epochs=4, lr=2e-5)


READ = [
    ("train.lr", "1e-3", 0.001),
    ("train.lr", "1", 1.0),
    ("train.epochs", "7", 7),
    ("train.head_lr", "1e-3", 0.001),
    ("train.head_lr", "null", None),
    ("train.weight_decay", "0", 0.0),
    ("train.warmup", "1", 1.0),
    ("train.clip", "1e-3", 0.001),
    ("train.clip", "-2", -2.0),
    ("train.clip", "auto", "auto"),
    ("data.path", "null", "null"),
    ("data.text", "null", None),
    ("data.text", "01", "01"),
    ("data.text", "no", "no"),
    ("data.text", "2024-05-01", "2024-05-01"),
    ("data.max_rows", "10", 10),
    ("adapt.blocks", "0", 0),
    ("adapt.strategy", "lora", "lora"),
    ("adapt.targets", "query", ["query"]),
    ("adapt.targets", "query, value", ["query", "value"]),
    ("adapt.targets", "[query, value]", ["query", "value"]),
    ("adapt.targets", "null", None),
    ("run.overwrite", "true", True),
    ("run.overwrite", "false", False),
]


@pytest.mark.parametrize(("name", "text", "expected"), READ)
def test_a_value_reads_the_same_from_flag_and_yaml(name, text, expected, yaml_file):
    section, _, field_name = name.partition(".")
    sources = [[f"--{name}", text], [f"--{name}={text}"]]
    if not (name == "data.path" and text == "null"):  # in YAML null is no text
        sources.append(yaml_file(f"{section}:\n  {field_name}: {text}\n"))
    for argv in sources:
        value = setting(parse(Config, argv), name)
        assert value == expected
        assert type(value) is type(expected)


def test_a_bare_boolean_is_true_wherever_it_stands():
    assert parse(Config, ["--run.overwrite"]).run.overwrite
    assert parse(Config, ["--run.overwrite", "--train.epochs", "2"]) == parse(
        Config, ["--train.epochs", "2", "--run.overwrite"]
    )


def test_flags_win_over_yaml_over_defaults_and_the_last_of_each_wins(yaml_file):
    files = yaml_file("train: {lr: 0.5, epochs: 9}\ndata:\nrun: {}\n")
    config = parse(Config, ["--train.lr", "0.1", *files, "--train.lr", "0.2"])
    assert config.train == TrainConfig(epochs=9, lr=0.2)
    assert parse(Config, yaml_file("")) == Config()


def test_yaml_lists_hold_text(yaml_file):
    assert parse(Config, yaml_file("adapt:\n  targets: [query, 1, no]")).adapt.targets == ["query", "1", "no"]


ALL = "(all settings: --help)"
FLAG_ERRORS = [
    (["--train.learning_rate", "1"], f"unknown setting --train.learning_rate; did you mean --train.lr? {ALL}"),
    (["--train.epoch=1"], f"unknown setting --train.epoch; did you mean --train.epochs? {ALL}"),
    (["--train.weight-decay=1"], f"unknown setting --train.weight-decay; did you mean --train.weight_decay? {ALL}"),
    (["--trian.warmup", "1"], f"unknown setting --trian.warmup; did you mean --train.warmup? {ALL}"),
    (["--trian", "1"], f"unknown setting --trian; did you mean --train? {ALL}"),
    (["--lr", "1"], f"unknown setting --lr; did you mean --train.lr? {ALL}"),
    (["--confg", "x"], f"unknown setting --confg; did you mean --config? {ALL}"),
    (["--data.tex", "x"], f"unknown setting --data.tex; did you mean --data.text? {ALL}"),
    (["--max_blocks"], f"unknown setting --max_blocks; did you mean --adapt.blocks or --data.max_rows? {ALL}"),
    (["--train.zzz"], f"unknown setting --train.zzz {ALL}"),
    (["--run", "x"], "--run is a section, not a setting; it holds --run.out, --run.overwrite"),
    (["--train.lr", "abc"], "--train.lr must be a number above 0, not 'abc'"),
    (["--train.lr", "-1"], "--train.lr must be a number above 0, not -1.0"),
    (["--train.lr", "0"], "--train.lr must be a number above 0, not 0.0"),
    (["--train.lr", ".nan"], "--train.lr must be a number above 0, not nan"),
    (["--train.lr", ".inf"], "--train.lr must be a number above 0, not inf"),
    (["--train.lr", "true"], "--train.lr must be a number above 0, not 'true'"),
    (["--train.lr="], "--train.lr must be a number above 0, not ''"),
    (["--train.head_lr", "-1"], "--train.head_lr must be a number above 0 or null, not -1.0"),
    (["--train.epochs", "0"], "--train.epochs must be a whole number from 1 up, not 0"),
    (["--train.epochs", "1.5"], "--train.epochs must be a whole number from 1 up, not '1.5'"),
    (["--train.weight_decay", "-0.1"], "--train.weight_decay must be a number from 0 up, not -0.1"),
    (["--train.warmup", "1.1"], "--train.warmup must be a number from 0 to 1, not 1.1"),
    (["--train.clip", "auot"], "--train.clip must be a number or auto, not 'auot'; did you mean 'auto'?"),
    (["--adapt.blocks", "-1"], "--adapt.blocks must be a whole number from 0 up, not -1"),
    (["--data.max_rows", "0"], "--data.max_rows must be a whole number from 1 up or null, not 0"),
    (
        ["--adapt.strategy", "lroa"],
        "--adapt.strategy must be one of full, head, last, lora, not 'lroa'; did you mean 'lora'?",
    ),
    (["--adapt.targets", "[a"], "--adapt.targets must be a list such as a,b or null, not '[a'"),
    (["--run.overwrite", "maybe"], "--run.overwrite must be true or false, not 'maybe'"),
    (["--train.lr"], "--train.lr needs a value: a number above 0"),
    (["--train.lr", "--run.overwrite"], "--train.lr needs a value: a number above 0"),
    (["--config"], "--config needs a value: text"),
    (["data.csv"], f"'data.csv' is no setting; write --section.field value {ALL}"),
    (["-x"], f"'-x' is no setting; write --section.field value {ALL}"),
    (["--config", "none.yaml"], "--config cannot read none.yaml: No such file or directory"),
    (["--adapt.blocks", "1", "--adapt.strategy", "head"], "--adapt.blocks needs --adapt.strategy last"),
    (["--adapt.blocks", "1"], "--adapt.blocks is not for full"),
]


@pytest.mark.parametrize(("argv", "expected"), FLAG_ERRORS)
def test_a_wrong_flag_is_one_line(argv, expected):
    assert message(argv) == expected


YAML_ERRORS = [
    ("train: {lr: -1}", "--train.lr must be a number above 0, not -1.0 (from run.yaml)"),
    ("train: {lr: abc}", "--train.lr must be a number above 0, not 'abc' (from run.yaml)"),
    ("train: {lr: }", "--train.lr must be a number above 0, not null (from run.yaml)"),
    ("train: {lr: {}}", "--train.lr must be a number above 0, not {} (from run.yaml)"),
    ("data: {path: null}", "--data.path must be text, not null (from run.yaml)"),
    ("data: {path: [a]}", "--data.path must be text, not ['a'] (from run.yaml)"),
    ("adapt: {targets: [[a]]}", "--adapt.targets must be a list such as a,b or null, not [['a']] (from run.yaml)"),
    ("train: {epoch: 1}", f"unknown setting --train.epoch (from run.yaml); did you mean --train.epochs? {ALL}"),
    ("trian: {epochs: 1}", f"unknown setting --trian.epochs (from run.yaml); did you mean --train.epochs? {ALL}"),
    ("lr: 1", f"unknown setting --lr (from run.yaml); did you mean --train.lr? {ALL}"),
    ("config: x.yaml", f"unknown setting --config (from run.yaml) {ALL}"),
    ("run: here", "--run (from run.yaml) is a section, not a setting; it holds --run.out, --run.overwrite"),
    ("run:\n  out: a\nrun:\n  out: b\n", "run.yaml, line 3: 'run' is given twice; keep one"),
    ("train:\n  lr: [1\n", "run.yaml, line 3: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    ("[a]", "run.yaml must hold sections of settings, such as 'train: {lr: 0.001}', not ['a']"),
    ("hello", "run.yaml must hold sections of settings, such as 'train: {lr: 0.001}', not 'hello'"),
    ("adapt: {blocks: 1}", "--adapt.blocks is not for full"),
]


@pytest.mark.parametrize(("text", "expected"), YAML_ERRORS)
def test_a_wrong_yaml_is_one_line(text, expected, yaml_file):
    assert message(yaml_file(text)) == expected


def test_bytes_that_are_no_text_are_one_line(yaml_file):
    assert message(yaml_file(b"train: \xff")).startswith("run.yaml: not valid YAML: ")


def test_help_lists_each_field_with_its_line_range_and_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Config, ["--train.lr", "bad", "--help"], description="Is it spam?\n\nMeasured: 95%.")
    lines = capsys.readouterr().out.splitlines()
    shown = " ".join(" ".join(lines).split())
    assert stopped.value.code == 0
    assert "Is it spam?" in lines
    for name, line in [
        ("train.epochs", "passes over the training rows (a whole number from 1 up) (default: 3)"),
        ("train.lr", "step size, as in 100% of the papers (a number above 0) (default: 2e-05)"),
        ("data.text", "column of the text (text or null) (default: null)"),
        ("adapt.strategy", "which weights train (one of full, head, last, lora) (default: full)"),
        ("run.overwrite", "empty the folder first (true or false) (default: False)"),
    ]:
        assert f"--{name} {line}" in shown
    for section, values in to_dict(Config()).items():
        assert all(f"--{section}.{name} " in shown for name in values)
    assert "How does it learn?" in shown


AWKWARD = [
    "null",
    "~",
    "",
    "01",
    "1e-3",
    "no",
    "a,b",
    "[x]",
    "{a: b}",
    "# x",
    " é\n ",
    "'q'",
    "--x",
    "2024-05-01",
    "!!int",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_yaml_reads_back_as_an_equal_config(text, yaml_file):
    config = Config(
        DataConfig(text, text, 5),
        AdaptConfig("lora", targets=[text, "b"]),
        TrainConfig(lr=1e-5, clip=1e22),
        RunConfig(overwrite=True),
    )
    assert parse(Config, yaml_file(to_yaml(config))) == config


def test_yaml_keeps_the_order_and_leaves_out_what_it_is_told(yaml_file):
    config = replace(Config(), run=RunConfig(out="runs/a", overwrite=True), data=DataConfig("données"))
    text = to_yaml(config, leave_out=["run.out", "run.overwrite", "train.epochs"])
    assert [line for line in text.splitlines() if not line.startswith(" ")] == ["data:", "adapt:", "train:", "run: {}"]
    assert text.index("lr:") < text.index("head_lr:") < text.index("weight_decay:")
    assert "epochs" not in text
    assert "out" not in text
    assert "path: données" in text
    assert parse(Config, yaml_file(text)) == replace(config, run=RunConfig())
    with pytest.raises(KeyError):
        to_yaml(config, leave_out=["run.nothing"])


def test_differences_name_each_changed_setting():
    old = {"train": {"lr": 0.0001, "epochs": 3, "clip": 1}, "run": {"out": None, "old": "x"}}
    new = {"train": {"lr": 0.001, "epochs": 3, "clip": 1.0}, "run": {"out": "a"}, "data": {"new": True}}
    assert differences(old, new) == [
        "train.lr: 0.0001 -> 0.001",
        "run.out: null -> 'a'",
        "run.old: 'x' -> null",
        "data.new: null -> true",
    ]
    assert differences(to_dict(Config()), to_dict(Config())) == []


def test_start_hands_the_config_to_main(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--train.epochs", "2"])
    assert start(seen.append, Config) == 0
    assert seen[0].train.epochs == 2


def raising(error):
    def main(config):
        raise error

    return main


RANKS = [({}, True), ({"RANK": "0"}, True), ({"RANK": "1", "LOCAL_RANK": "0"}, False), ({"LOCAL_RANK": "1"}, False)]


@pytest.mark.parametrize(("ranks", "speaks"), RANKS)
@pytest.mark.parametrize(
    ("error", "line", "code"),
    [(UserError("no such column"), "error: no such column\n", 2), (KeyboardInterrupt(), "interrupted\n", 130)],
)
def test_start_ends_with_one_line_from_process_0(ranks, speaks, error, line, code, monkeypatch, capsys):
    for name, rank in ranks.items():
        monkeypatch.setenv(name, rank)
    with pytest.raises(SystemExit) as stopped:
        start(raising(error), Config, [])
    assert stopped.value.code == code
    assert capsys.readouterr().err == (line if speaks else "")


def test_start_reports_a_wrong_setting_and_shows_help_once(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        start(raising(AssertionError), Config, ["--train.lr", "abc"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --train.lr must be a number above 0, not 'abc'\n"
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stopped:
        start(raising(AssertionError), Config, ["--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == ""


def test_start_lets_a_bug_keep_its_traceback():
    with pytest.raises(ZeroDivisionError):
        start(raising(ZeroDivisionError("a bug")), Config, [])


def test_import_is_light():
    code = "import sys; import graftkit.config; print({'torch', 'numpy', 'jsonargparse'} & set(sys.modules))"
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - began)
        assert done.stdout == "set()\n"
    assert min(seconds) < 0.5


@dataclass(frozen=True)
class Base:
    """What all have."""

    path: str = "here"
    """where it lies"""
    size: int = 1
    """how large"""
    fixed: ClassVar[int] = 3


@dataclass(frozen=True)
class More(Base):
    """One of them."""

    size: int = 2
    """how large this one is"""
    name: str = "none"
    """what it is called"""


@dataclass(frozen=True)
class Built:
    rows: More = field(default_factory=More)


def test_a_section_that_builds_on_another_has_its_settings_and_their_help(capsys):
    assert parse(Built, ["--rows.path", "there", "--rows.size", "5"]).rows == More("there", 5)
    with pytest.raises(SystemExit):
        parse(Built, ["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "where it lies" in said
    assert "how large this one is" in said
    assert "what it is called" in said
    with pytest.raises(UserError, match=r"rows\.fixed"):
        parse(Built, ["--rows.fixed", "1"])
