"""What may be varied?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from types import ModuleType
from typing import TYPE_CHECKING, Any

from graftkit.adapt import ONLY_WITH, solves
from graftkit.bakeoff.arms import OURS, SHARED
from graftkit.config import parse
from graftkit.errors import UserError
from graftkit.run import READ

if TYPE_CHECKING:
    from optuna.trial import Trial

WIDE = 10  # times the low end, from which a range is searched by its logarithm
DIGITS = 3  # of a number that is drawn, and of its distance from both ends
DECIDING = ("adapt.strategy", "adapt.solver")  # drawn before all others, since they say which of them are read


def rounded(value: float, low: float, high: float) -> float:
    """A number between two ends with no more digits than tell it from them; 0.9996 below 0.9999 has four."""
    least = (low if _is_wide(low, high) else high - low) / 100  # next to an end, as fine as this
    decimals = DIGITS - 1 - math.floor(math.log10(max(min(value - low, high - value), least)))
    return min(max(round(value, decimals), low), high)


def _is_wide(low: float, high: float) -> bool:
    return low > 0 and high / low >= WIDE


@dataclass(frozen=True)
class Choice:
    """One of a few values, as the user writes them."""

    name: str
    values: tuple[str, ...]

    def draw(self, trial: Trial) -> str:
        return trial.suggest_categorical(self.name, self.values)


@dataclass(frozen=True)
class Span:
    """A number from low to high."""

    name: str
    low: float
    high: float
    whole: bool

    @property
    def wide(self) -> bool:
        return _is_wide(self.low, self.high)

    def draw(self, trial: Trial) -> str:
        if self.whole:
            return str(trial.suggest_int(self.name, int(self.low), int(self.high), log=self.wide))
        return repr(trial.suggest_float(self.name, self.low, self.high, log=self.wide))


Space = Sequence[Choice | Span]


def draw_words(space: Space, trial: Trial, flags: Sequence[str], recipe: ModuleType) -> list[str]:
    """A trial's settings, as words for the recipe; what its way of adapting does not read is left out."""
    words = list(flags)
    for one in space:
        if _reads(recipe, words, one.name):
            words += [f"--{one.name}", one.draw(trial)]
    return _without_unread(recipe, words)


def settle(recipe: ModuleType, words: Sequence[str]) -> Any:
    """A recipe's settings. Raises UserError, as the recipe itself would at once, for what cannot run."""
    config = parse(recipe.Config, words)
    recipe.check(config)
    return config


def read_space(specs: Sequence[str], flags: Sequence[str], recipe: ModuleType) -> Space:
    """The settings of `train.lr=1e-5..1e-3` (a range) and `adapt.strategy=full,lora` (choices), in order of drawing.

    `flags` are the settings of all trials. Raises UserError, before anything is run, for a name or a value that the
    recipe does not take, for what no trial would read, and for settings that the search makes itself.
    """
    parts = sorted((_split(spec, flags) for spec in specs), key=lambda part: (*DECIDING, part[0]).index(part[0]))
    names = [name for name, _ in parts]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--vary {name} is given twice; name it once")
    if not set(DECIDING) & set(names):
        _settled(recipe, flags, "")
    return [_read(name, text, recipe, _ways(parts, flags, recipe, name)) for name, text in parts]


def _split(spec: str, flags: Sequence[str]) -> tuple[str, str]:
    name, equals, text = spec.partition("=")
    if not equals or "." not in name or not text:
        raise UserError(f"--vary {spec}: write section.field=low..high or section.field=one,other")
    section = name.partition(".")[0]
    if section in SHARED:
        raise UserError(f"--vary {name}: trials are compared on the same rows and scores, so {section} stays as it is")
    if any(word.partition("=")[0] == f"--{name}" for word in flags):
        raise UserError(f"--vary {name}: --{name} is given for all trials, too; leave one of them out")
    return name, text


def _ways(parts: Sequence[tuple[str, str]], flags: Sequence[str], recipe: ModuleType, besides: str) -> list[list[str]]:
    """The words of each way of adapting that may be drawn beside a setting: those of `flags` and what comes first."""
    first = [[(name, value) for value in _values(name, text)] for name, text in parts if name in DECIDING]
    ways = []
    for drawn in product(*[each for each in first if each[0][0] != besides]):
        words = list(flags)
        for name, value in drawn:
            words += [f"--{name}", value] if _reads(recipe, words, name) else []
        ways.append(words)
    return ways


def _read(name: str, text: str, recipe: ModuleType, ways: Sequence[list[str]]) -> Choice | Span:
    low, dots, high = text.partition("..")
    if not dots:
        values = _values(name, text)
        if any(isinstance(_value(name, value, recipe, ways), list) for value in values):
            raise UserError(f"--vary {name}: it is a list, which is not varied; give it for all trials")
        return Choice(name, values)
    ends = [_value(name, end, recipe, ways) for end in (low, high)]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise UserError(f"--vary {name}={text}: a range is of numbers; name the values, with commas between them")
    if not ends[0] < ends[1]:
        raise UserError(f"--vary {name}={text}: the low end comes first, then two dots, then the high end")
    return Span(name, *ends, whole=all(isinstance(end, int) for end in ends))


def _values(name: str, text: str) -> tuple[str, ...]:
    values = tuple(value.strip() for value in text.split(","))
    if len(set(values)) < max(2, len(values)):
        raise UserError(f"--vary {name}={text}: name two values or more, each once, or a range such as 1..5")
    return values


def _value(name: str, text: str, recipe: ModuleType, ways: Sequence[list[str]]) -> Any:
    """What the recipe makes of a value, in the first way of adapting that takes it; UserError where none does."""
    section, _, field = name.partition(".")
    errors = []
    for way in [way for way in ways if _reads(recipe, way, name)] or ways:
        words = [*way, f"--{name}={text}"]
        try:
            kept = words if section == "train" else _without_unread(recipe, words)
            return getattr(getattr(_settled(recipe, kept, f"--vary {name}={text}: "), section), field)
        except UserError as error:
            errors.append(error)
    raise errors[0]


# what is read


def values_read(space: Space) -> list[str]:
    """The values of what is varied that may name a file or a folder."""
    named = [f"{section}.{name}" for section, names in READ.items() for name in names]
    return [value for one in space if isinstance(one, Choice) and one.name in named for value in one.values]


def _reads(recipe: ModuleType, words: Sequence[str], name: str) -> bool:
    """Whether the way of adapting in these words reads a setting."""
    adapt = _adapt(recipe.Config, tuple(word for part in _settings(words) if _decides(part) for word in part))
    section, _, field = name.partition(".")
    if section == "train":
        return adapt.strategy != "head" or not solves(adapt)
    if name == "adapt.solver":
        return adapt.strategy == "head"
    return section != "adapt" or adapt.strategy in ONLY_WITH.get(field, (adapt.strategy,))


@cache  # it is asked for each setting of each trial
def _adapt(config_class: type, words: Sequence[str]) -> Any:
    return parse(config_class, words).adapt


def _without_unread(recipe: ModuleType, words: Sequence[str]) -> list[str]:
    """The words but for those on training, where the head is computed and refuses them."""
    if _reads(recipe, words, "train."):
        return list(words)
    return [word for part in _settings(words) if not part[0].startswith("--train.") for word in part]


def names_in(words: Sequence[str]) -> list[str]:
    """The names of the settings in the words of a command."""
    return [part[0].partition("=")[0].removeprefix("--") for part in _settings(words)]


def _settings(words: Sequence[str]) -> list[list[str]]:
    """The words of each setting of a command."""
    parts: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not parts:
            parts.append([])
        parts[-1].append(word)
    return parts


def _decides(part: Sequence[str]) -> bool:
    return part[0].partition("=")[0] in ("--config", *(f"--{name}" for name in DECIDING))


def _settled(recipe: ModuleType, words: Sequence[str], why: str) -> Any:
    try:
        config, usual = settle(recipe, words), recipe.Config()
    except UserError as error:
        raise UserError(f"{why}{error}") from error
    for name in OURS:
        section, _, field = name.partition(".")
        given = getattr(getattr(config, section, None), field, None)
        if name != "run.seed" and given != getattr(getattr(usual, section, None), field, None):
            raise UserError(f"--{name} {given}: not with graft search, which says itself where and how trials run")
    return config
