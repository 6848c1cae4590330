"""Which ways are tried?"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from graftkit.config import parse
from graftkit.errors import UserError
from graftkit.learn import check_ways

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
    solved: bool = False  # in closed form: it has no epochs, and the seed changes nothing

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
    """A recipe as a module. Raises UserError where there is none."""
    if not path.is_file():
        beside = sorted(f"{each}" for each in path.parent.glob("*.py"))
        there = f"; there is {', '.join(beside)}" if beside else ""
        raise UserError(f"{path}: no such recipe{there}")
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no recipe: name a Python file, such as recipes/text_classify.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "Config") or not hasattr(module.Config(), "adapt"):
        raise UserError(f"{path} is no recipe: it has no Config with a section adapt")
    return module


def parse_arms(text: str, flags: Sequence[str], config_class: type) -> list[Arm]:
    """The arms of `head,lora:adapt.rank=16:train.lr=3e-4`: strategies, each with settings of its own after colons.

    `flags` are the settings of all arms. Raises UserError for what the recipe does not take, before anything is run.
    """
    for word in flags:
        if word.partition("=")[0] == "--adapt.strategy":
            raise UserError("--adapt.strategy differs between arms: name the strategies in --arms")
    arms = [_parse_arm(name.strip(), flags, config_class) for name in text.split(",")]
    slugs = [arm.slug for arm in arms]
    for arm in arms:
        if slugs.count(arm.slug) > 1:
            raise UserError(f"--arms {text}: {arm.name} is given twice; name each arm once")
    if len(arms) < 2:
        raise UserError(f"--arms {text}: name two arms or more, with commas between them, such as head,lora,full")
    return arms


def _parse_arm(name: str, flags: Sequence[str], config_class: type) -> Arm:
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

    if solved := strategy == "head" and _is_solved(config_class, [*flags, *words]):
        flags = _without_training(flags)

    def settled(*more: str) -> Any:
        try:
            config = parse(config_class, [*flags, *words, *more])
            check_ways(config.adapt, config.train)
            return config
        except UserError as error:
            raise UserError(f"--arms {name}: {error}") from error

    config = settled()
    _check_ours(config, config_class())
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


def _is_solved(config_class: type, words: Sequence[str]) -> bool:
    """Whether the head is computed in closed form, by the words on adapting alone."""
    chosen = [word for word in words if word.startswith("--adapt.solver")]
    given = any("sgd" in (word, word.rpartition("=")[2]) for word in words)
    return getattr(config_class().adapt, "solver", None) == "lbfgs" and not (chosen and given)


def _without_training(flags: Sequence[str]) -> list[str]:
    """The flags but for those on training, which a head that is solved has no use for, and refuses."""
    kept, keeps = [], True
    for word in flags:
        if word.startswith("--"):
            keeps = not word.startswith("--train.")
        if keeps:
            kept.append(word)
    return kept


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
