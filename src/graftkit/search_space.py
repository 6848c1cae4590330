"""What may be varied?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftkit.bakeoff.arms import OURS, SHARED
from graftkit.config import parse
from graftkit.errors import UserError
from graftkit.learn import check_ways

if TYPE_CHECKING:
    from optuna.trial import Trial

WIDE = 10  # times the low end, from which a range is searched by its logarithm
DIGITS = 3  # of a number that is drawn


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
        return self.low > 0 and self.high / self.low >= WIDE

    def draw(self, trial: Trial) -> str:
        if self.whole:
            return str(trial.suggest_int(self.name, int(self.low), int(self.high), log=self.wide))
        return f"{trial.suggest_float(self.name, self.low, self.high, log=self.wide):.{DIGITS}g}"


Space = Sequence[Choice | Span]


def read_space(specs: Sequence[str], flags: Sequence[str], config_class: type) -> Space:
    """The settings of `train.lr=1e-5..1e-3` (a range) and `adapt.strategy=full,lora` (choices).

    `flags` are the settings of all trials. Raises UserError, before anything is run, for a name or a value that the
    recipe does not take, and for settings that the search makes itself.
    """
    _settled(config_class, flags, "")
    space = [_read(spec, flags, config_class) for spec in specs]
    names = [one.name for one in space]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--vary {name} is given twice; name it once")
    return space


def _read(spec: str, flags: Sequence[str], config_class: type) -> Choice | Span:
    name, equals, text = spec.partition("=")
    if not equals or "." not in name or not text:
        raise UserError(f"--vary {spec}: write section.field=low..high or section.field=one,other")
    section = name.partition(".")[0]
    if section in SHARED:
        raise UserError(f"--vary {name}: trials are compared on the same rows and scores, so {section} stays as it is")
    if any(word.partition("=")[0] == f"--{name}" for word in flags):
        raise UserError(f"--vary {name}: --{name} is given for all trials, too; leave one of them out")
    low, dots, high = text.partition("..")
    if not dots:
        return _choice(name, text, flags, config_class)
    ends = [_value(name, end, flags, config_class) for end in (low, high)]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
        raise UserError(f"--vary {spec}: a range is of numbers; name the values, with commas between them")
    if not ends[0] < ends[1]:
        raise UserError(f"--vary {spec}: the low end comes first, then two dots, then the high end")
    return Span(name, *ends, whole=all(isinstance(end, int) for end in ends))


def _choice(name: str, text: str, flags: Sequence[str], config_class: type) -> Choice:
    values = tuple(value.strip() for value in text.split(","))
    if len(set(values)) < max(2, len(values)):
        raise UserError(f"--vary {name}={text}: name two values or more, each once, or a range such as 1..5")
    for value in values:
        if isinstance(_value(name, value, flags, config_class), list):
            raise UserError(f"--vary {name}: it is a list, which is not varied; give it for all trials")
    return Choice(name, values)


def _value(name: str, text: str, flags: Sequence[str], config_class: type) -> Any:
    """What the recipe makes of a value."""
    config = _settled(config_class, [*flags, f"--{name}={text}"], f"--vary {name}={text}: ")
    section, _, field = name.partition(".")
    return getattr(getattr(config, section), field)


def _settled(config_class: type, words: Sequence[str], why: str) -> Any:
    try:
        config, usual = parse(config_class, words), config_class()
        check_ways(config.adapt, config.train)
    except UserError as error:
        raise UserError(f"{why}{error}") from error
    for name in (*OURS, "adapt.explain"):
        section, _, field = name.partition(".")
        given = getattr(getattr(config, section, None), field, None)
        if name != "run.seed" and given != getattr(getattr(usual, section, None), field, None):
            raise UserError(f"--{name} {given}: not with graft search, which says itself where and how trials run")
    return config
