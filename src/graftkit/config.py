"""What may the user set?"""

from __future__ import annotations

import ast
import errno
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from itertools import pairwise
from math import inf
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from graftkit.errors import Stopped, UserError

ConfigClass = TypeVar("ConfigClass")


@dataclass(frozen=True)
class Range:
    """The numbers that a field takes: in words that follow `must be`, and as a test."""

    words: str
    holds: Callable[[float], bool]


AtLeastTwo = Annotated[int, Range("a whole number from 2 up", lambda number: number >= 2)]
AtLeastOne = Annotated[int, Range("a whole number from 1 up", lambda number: number >= 1)]
NotNegativeInt = Annotated[int, Range("a whole number from 0 up", lambda number: number >= 0)]
NotNegative = Annotated[float, Range("a number from 0 up", lambda number: 0 <= number < inf)]
Positive = Annotated[float, Range("a number above 0", lambda number: 0 < number < inf)]
Fraction = Annotated[float, Range("a number from 0 to 1", lambda number: 0 <= number <= 1)]
NotZero = Annotated[float, Range("a number above 0 and at most 1", lambda number: 0 < number <= 1)]
Share = Annotated[float, Range("a number between 0 and 1", lambda number: 0 < number < 1)]

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list[str]: "a list such as a,b",
    list[int]: "a list such as 0,1,2",
    NoneType: "null",
}


def parse(
    config_class: type[ConfigClass], argv: Sequence[str] | None = None, *, description: str = "", command: str = ""
) -> ConfigClass:
    """The config that the user asks for: defaults < YAML (`--config FILE`) < `--section.field value`.

    `config_class` is a frozen dataclass of sections, themselves frozen dataclasses; every field has a default.
    `command` is what stands before the settings, in `--help`; by default the program. A mistake is a UserError of one
    line.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    defaults = config_class()
    hints = {
        f"{section}.{field}": hint
        for section, values in vars(defaults).items()
        for field, hint in get_type_hints(type(values), include_extras=True).items()
        if field in vars(values)  # not what a section says of all of its kind (ClassVar)
    }
    if "-h" in words or "--help" in words:
        _print_help(defaults, hints, description, command)
        raise SystemExit(0)
    flags = list(_read_flags(words, {"config": str, **hints}))
    files = [text for name, text in flags if name == "config"]
    settings = [(name, value, f" (from {file})") for file in files for name, value in _read_yaml(file)]
    settings += [(name, text, "") for name, text in flags if name != "config"]
    given: dict[str, dict[str, Any]] = {section: {} for section in vars(defaults)}
    for name, value, origin in settings:
        hint = _find(name, hints, origin)
        section, _, field = name.partition(".")
        given[section][field] = _read_value(name, hint, value, origin)
    try:
        return replace(defaults, **{name: replace(getattr(defaults, name), **values) for name, values in given.items()})
    except (UserError, ValueError) as error:  # what a __post_init__ raises
        raise UserError(" ".join(str(error).split())) from error


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested plain values, ready for YAML or JSON."""
    return asdict(config)


def to_yaml(config: Any, leave_out: Collection[str] = ()) -> str:
    """YAML that `--config` reads back as an equal config, but for the settings to leave out (such as `run.out`)."""
    tree = to_dict(config)
    for name in leave_out:
        section, _, field = name.partition(".")
        del tree[section][field]
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line per setting that differs between nested dicts, `train.lr: 0.0001 -> 0.001`; an absent one is null."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    return [
        f"{name}: {_show(before.get(name))} -> {_show(after.get(name))}"
        for name in before | after
        if before.get(name) != after.get(name)
    ]


def start(
    main: Callable[[ConfigClass], Any],
    config_class: type[ConfigClass],
    argv: Sequence[str] | None = None,
    description: str = "",
) -> int:
    """Run a recipe: 0 when done; a user's mistake is one line and exit code 2, an interrupt one line and 130."""
    try:
        main(parse(config_class, argv, description=description))
    except UserError as error:
        _exit(f"error: {error}", 2, everywhere=error.everywhere)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _exit("error: the disk is full; what was saved is whole. Free space, then --run.resume", 2, everywhere=True)
    except Stopped as stopped:
        _exit(str(stopped), stopped.code)
    except KeyboardInterrupt:
        _exit("interrupted", 130)
    return 0


def _exit(line: str, code: int, *, everywhere: bool = False) -> NoReturn:
    if everywhere or is_first_process():
        print(line, file=sys.stderr)
    raise SystemExit(code)


def is_first_process() -> bool:
    """Whether to speak for all processes: before the accelerator exists, only the launcher's variables can tell."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def _read_flags(words: list[str], hints: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Name and text of each `--name value` or `--name=value`; a bare boolean is true, `null` is None if that may be.

    A list may also be several words, `--name a b`, as if there were commas between them.
    """
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UserError(f"{word!r} is no setting; write --section.field value (all settings: --help)")
        hint = _find(name, hints)
        if not equals and words and not words[0].startswith("--"):
            text = words.pop(0)
            while _is_list(hint) and words and not words[0].startswith("--"):
                text += "," + words.pop(0)
        elif not equals and bool in _kinds(hint):
            text = "true"
        elif not equals:
            raise UserError(f"--{name} needs a value: {_describe(hint)}")
        yield name, None if text == "null" and NoneType in _kinds(hint) else text


def _read_yaml(file: str) -> Iterator[tuple[str, Any]]:
    """Name and value of each setting in a file."""
    try:
        with open(file, "rb") as stream:
            root = yaml.compose(stream, yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"--config cannot read {file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)  # absent where a byte is no text
        reason = getattr(error, "problem", None) or error
        place = f"{file}, line {mark.line + 1}" if mark else file
        raise UserError(f"{place}: not valid YAML: {' '.join(str(reason).split())}") from error
    tree = _plain(root) if root else {}
    if not isinstance(tree, dict):
        raise UserError(f"{file} must hold sections of settings, such as 'train: {{lr: 0.001}}', not {_show(tree)}")
    return _flatten({section: settings for section, settings in tree.items() if settings not in (None, {})})


def _plain(node: yaml.Node) -> Any:
    """A YAML node as Python values; scalars stay text (`01`, `no`, `1e-3`), since the field's type decides."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == "tag:yaml.org,2002:null" else node.value
    tree: dict[str, Any] = {}
    for key, value in node.value:
        name, mark = str(_plain(key)), key.start_mark
        if name in tree:
            raise UserError(f"{mark.name}, line {mark.line + 1}: {name!r} is given twice; keep one")
        tree[name] = _plain(value)
    return tree


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"train": {"lr": 1}}` as pairs ("train.lr", 1)."""
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _find(name: str, hints: dict[str, Any], origin: str = "") -> Any:
    """The type of a setting."""
    if name in hints:
        return hints[name]
    inside = [f"--{known}" for known in hints if known.startswith(f"{name}.")]
    if inside:
        raise UserError(f"--{name}{origin} is a section, not a setting; it holds {', '.join(inside)}")
    sections = [] if "." in name else [known.partition(".")[0] for known in hints]
    nearest = _did_you_mean(name, [*dict.fromkeys([*hints, *sections])], "--{}")
    raise UserError(f"unknown setting --{name}{origin}{nearest} (all settings: --help)")


def _read_value(name: str, hint: Any, value: Any, origin: str) -> Any:
    """Text, None or a list of texts as the field's type, in its range."""
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser

    kinds = _kinds(hint)
    if (value is None and NoneType in kinds) or (isinstance(value, str) and str in kinds):
        return value
    if isinstance(value, str) and _is_list(hint) and not value.startswith("["):
        value = [item.strip() for item in value.split(",") if item.strip()]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        read = parser.parse_object({"value": value})["value"]
    except ArgumentError:
        read = None
    ranges = [get_args(kind)[1] for kind in kinds if get_origin(kind) is Annotated]
    if isinstance(read, str | list) or (read is not None and all(allowed.holds(read) for allowed in ranges)):
        return read
    wrong = value if read is None else read
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    nearest = _did_you_mean(str(wrong), choices, "{!r}")
    raise UserError(f"--{name} must be {_describe(hint)}, not {_show(wrong)}{origin}{nearest}")


def _is_list(hint: Any) -> bool:
    return any(get_origin(kind) is list for kind in _kinds(hint))


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a type: of `float | None`, float and NoneType."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _describe(hint: Any) -> str:
    """What a field takes, to follow `must be`."""

    def words(kind: Any) -> str:
        if get_origin(kind) is Annotated:
            return get_args(kind)[1].words
        if get_origin(kind) is Literal:
            choices = ", ".join(get_args(kind))
            return f"one of {choices}" if ", " in choices else choices
        return WORDS[kind]

    return " or ".join(map(words, _kinds(hint)))


def _show(value: Any) -> str:
    """The value as the user would write it, text in quotes."""
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))


def _did_you_mean(word: str, names: list[str], form: str) -> str:
    """The up to three names whose last part is most like that of `word`; `lr` for learning_rate."""
    field = word.rpartition(".")[2]
    initials = "".join(part[:1] for part in field.split("_"))

    def likeness(name: str) -> float:
        known = name.rpartition(".")[2]
        return 1.0 if known == initials else SequenceMatcher(None, field, known).ratio()

    ranked = sorted(names, key=likeness, reverse=True)[:3]
    nearest = [form.format(name) for name in ranked if likeness(name) >= max(0.5, likeness(ranked[0]) - 0.1)]
    return f"; did you mean {' or '.join(nearest)}?" if nearest else ""


def _print_help(defaults: Any, hints: dict[str, Any], description: str, command: str) -> None:
    from argparse import RawDescriptionHelpFormatter

    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
        pass

    usage = f"{command or '%(prog)s'} [--config FILE] [--section.field value ...]"
    parser = ArgumentParser(description=description, usage=usage, formatter_class=Formatter)
    parser.add_argument("--config", metavar="FILE", help="YAML of sections and their settings; flags win over it")
    for section, values in vars(defaults).items():
        docs = _field_docs(type(values))
        group = parser.add_argument_group(section, description=type(values).__doc__)
        for field, default in vars(values).items():
            text = f"{docs.get(field, '')} ({_describe(hints[f'{section}.{field}'])})"
            group.add_argument(f"--{section}.{field}", metavar="", default=default, help=text)
    if is_first_process():
        parser.print_help()


def _field_docs(section_class: type) -> dict[str, str]:
    """The docstring under each field, as one line; a section's own wins over that of the section it builds on."""
    bodies = [ast.parse(inspect.getsource(each)).body[0].body for each in section_class.__mro__[-2::-1]]
    return {
        field.target.id: " ".join(doc.value.value.split())
        for body in bodies
        for field, doc in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
    }
