"""Which ways are tried?"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

from graftkit.adapt import solves
from graftkit.config import parse
from graftkit.errors import UserError
from graftkit.solve import CHANGES, MIXES, sees_no_views

UNITS = {"s": 1, "m": 60, "h": 3600}
SHARED = ("data", "run", "report", "hub")  # sections that are the same for all arms
OURS = {
    "run.out": "--out FOLDER says where all runs go",
    "run.seed": "--seeds says how many there are",
    "run.seeds": "--seeds says how many there are",
    "run.resume": "the same command goes on by itself",
    "run.overwrite": "remove the folder, or name another with --out",
    "run.dry_run": "the budget holds whatever an arm costs",
    "run.until": "test is asked of the recommended arm alone",
    "data.folds": "all arms are compared on one dev split",
    "adapt.explain": "it prints a table and trains nothing",
    "hub.push_to": "push the recommended run with graft push",
}
"""Settings that a bakeoff makes itself, and what to do instead."""


@dataclass(frozen=True)
class Arm:
    """A way of adapting, and how long a run of it is by its settings."""

    name: str  # as the user wrote it
    words: tuple[str, ...] = ()  # for the recipe
    epochs: int | None = 3  # None where the recipe settles them
    max_steps: int | None = None
    least_epochs: int = 1  # with which its other settings still make sense
    solved: bool = False  # a head that is computed: it has no epochs

    @property
    def slug(self) -> str:
        """The name as a part of the name of a folder."""
        return re.sub(r"[^\w.=-]+", "_", self.name)


def parse_budget(text: str, flag: str = "--budget") -> float:
    """Seconds of `90s`, `10m`, `1h` or `1h30m`. Raises UserError for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise UserError(f"{flag} {text}: write a time such as 90s, 10m or 1h30m")
    return seconds


def load_recipe(path: Path) -> ModuleType:
    """A recipe as a module. Raises UserError where there is none, or it cannot be loaded."""
    if not path.is_file():
        beside = sorted(f"{each}" for each in path.parent.glob("*.py"))
        there = f"; there is {', '.join(beside)}" if beside else ""
        raise UserError(f"{path}: no such recipe{there}")
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no recipe: name a Python file, such as recipes/text_classify.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a file of the user's may raise
        raise UserError(_where(path, error)) from error
    if not hasattr(module, "Config") or not hasattr(module.Config(), "adapt"):
        raise UserError(f"{path} is no recipe: it has no Config with a section adapt")
    if not hasattr(module, "check"):
        raise UserError(f"{path} has no check(config), which refuses settings that do not go together; write one")
    return module


def _where(path: Path, error: BaseException) -> str:
    """Why a file cannot be loaded, with its line."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    said = f"it ends with {error!r}, outside of main" if isinstance(error, SystemExit) else " ".join(str(error).split())
    return f"{path}, line {lines[-1]}: {said}" if lines else f"{path}: {said}"


def parse_arms(text: str, flags: Sequence[str], recipe: ModuleType) -> list[Arm]:
    """The arms of `head,lora:adapt.rank=16:train.lr=3e-4`: strategies, each with settings of its own after colons.

    `flags` are the settings of all arms. Raises UserError for what the recipe does not take, before anything is run:
    its `check(config)` is asked of each arm.
    """
    for word in flags:
        if word.partition("=")[0] == "--adapt.strategy":
            raise UserError("--adapt.strategy differs between arms: name the strategies in --arms")
    arms = [_parse_arm(name, flags, recipe) for name in _names(text, recipe.Config)]
    slugs = [arm.slug for arm in arms]
    for arm in arms:
        if slugs.count(arm.slug) > 1:
            raise UserError(f"--arms {text}: {arm.name} is given twice; name each arm once")
    if len(arms) < 2:
        raise UserError(f"--arms {text}: name two arms or more, with commas between them, such as head,lora,full")
    return arms


def _names(text: str, config_class: type) -> list[str]:
    """The arms as they are written. A part that is no strategy goes on with a list of the one before it:
    `lora:adapt.targets=query,value`.
    """
    defaults, names = config_class(), []
    strategies = get_args(get_type_hints(type(defaults.adapt))["strategy"])
    for part in map(str.strip, text.split(",")):
        if not part:
            raise UserError(f"--arms {text}: name a strategy before and after each comma, such as head,lora,full")
        if part.partition(":")[0] not in strategies and names and _ends_in_list(names[-1], defaults):
            names[-1] += f",{part}"
        else:
            names.append(part)
    return names


def _ends_in_list(name: str, defaults: Any) -> bool:
    """Whether the last setting of an arm takes several values."""
    field, equals, _ = name.rpartition(":")[2].partition("=")
    section, _, field = field.partition(".")
    hint = get_type_hints(type(getattr(defaults, section, None))).get(field) if equals and section else None
    return any(getattr(kind, "__origin__", None) is list for kind in (hint, *get_args(hint)))


def _parse_arm(name: str, flags: Sequence[str], recipe: ModuleType) -> Arm:
    config_class = recipe.Config
    strategy, *settings = name.split(":")
    flags = list(flags)
    words = ["--adapt.strategy", strategy]
    for setting in settings:
        field, equals, value = setting.partition("=")
        section = field.partition(".")[0]
        if not equals or not value:
            raise UserError(f"--arms {name}: {setting!r} is no setting; write section.field=value, as adapt.rank=16")
        if section in SHARED:
            raise UserError(f"--arms {name}: {field} must be the same for all arms; give --{field} {value} beside them")
        if field == "adapt.strategy":
            raise UserError(f"--arms {name}: an arm begins with its strategy; leave {setting} out")
        words += [f"--{field}", value]

    def parsed(*more: str) -> Any:
        try:
            return parse(config_class, [*flags, *words, *more])
        except UserError as error:
            raise UserError(f"--arms {name}: {error}") from error

    def settled(*more: str) -> Any:
        config = parsed(*more)
        try:
            recipe.check(config)
        except UserError as error:
            raise UserError(f"--arms {name}: {error}") from error
        return config

    config = parsed()
    _check_ours(config, config_class())
    if solved := strategy == "head" and solves(config.adapt):
        idle = {"train": [*vars(config.train)], "image": [*MIXES, *(CHANGES if sees_no_views(config.adapt) else ())]}
        flags = _without(idle, flags, config_class)
    config = settled()
    if config.data.seed is None:  # which would be --run.seed, and so other rows for each seed
        words += ["--data.seed", "0"]
    epochs = config.train.epochs
    return Arm(
        name,
        (*flags, *words),
        epochs,
        config.train.max_steps,
        1 if epochs is None else next(few for few in range(1, epochs + 1) if _holds(settled, few, epochs)),
        solved,
    )


def _without(idle: Mapping[str, Sequence[str]], flags: Sequence[str], config_class: type) -> list[str]:
    """The flags but for those, by section, that a head that is solved has no use for, and refuses; what files of
    settings say of them is put back.
    """
    kept, keeps = [], True
    for word in flags:
        if word.startswith("--"):
            section, _, name = word[2:].partition("=")[0].partition(".")
            keeps = name not in idle.get(section, ())
        if keeps:
            kept.append(word)
    usual, now = config_class(), parse(config_class, kept)
    for section in (section for section in idle if hasattr(usual, section)):
        was, given = (vars(getattr(config, section)) for config in (usual, now))
        for name in idle[section]:
            if given[name] != was[name]:
                kept += [f"--{section}.{name}", _written(was[name])]
    return kept


def _written(value: Any) -> str:
    """A value as a flag has it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _holds(settled: Any, few: int, epochs: int) -> bool:
    """Whether the other settings make sense with so few epochs; averaging those of one does not."""
    if few == epochs:
        return True
    try:
        settled("--train.epochs", str(few))
    except UserError:
        return False
    return True


def _check_ours(config: Any, defaults: Any) -> None:
    """Raise UserError for a setting that the bakeoff makes itself."""
    for name, instead in OURS.items():
        section, _, field = name.partition(".")
        given = getattr(getattr(config, section, None), field, None)
        if given != getattr(getattr(defaults, section, None), field, None):
            raise UserError(f"--{name} {given}: leave it out; {instead}")
