"""What do the runs read, and is it what it was?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from graftkit.fingerprint import hash_file

OURS = ("run", "hub")  # sections that name what is written
WHOLE = 2**26  # bytes up to which a file is known by its content; a larger one, by its size and when it was changed


def named(recipe: Path, flags: Sequence[str], configs: Iterable[Any], values: Iterable[str] = ()) -> list[Path]:
    """The recipe, the files of settings, and all files and folders of this machine that settings, or `values`, name."""
    words = [after for before, after in pairwise(flags) if before == "--config"]
    words += [word.partition("=")[2] for word in flags if word.startswith("--config=")]
    words += [*(text for config in configs for text in _texts(config)), *values]
    paths = [Path(word).expanduser() for word in dict.fromkeys(words) if word]
    return [recipe, *(path for path in paths if os.path.exists(path))]  # False, too, for what is too long for a path


def _texts(config: Any) -> Iterator[str]:
    for section, values in vars(config).items():
        for value in vars(values).values() if section not in OURS else ():
            yield from (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))


def stamps(paths: Iterable[Path], out: Path) -> dict[str, str]:
    """By path, a word that is another where a file, or one in a folder, was changed; what lies in `out` does not count.

    Of a name on the Hub there is none: what that stood for is in the record of a run.
    """
    return {str(path): _stamp(path, out.resolve()) for path in paths}


def _stamp(path: Path, out: Path) -> str:
    if path.is_file():
        return hash_file(path)[:16] if path.stat().st_size <= WHOLE else _state(path)
    inside = (file for file in sorted(path.rglob("*")) if file.is_file() and out not in file.resolve().parents)
    lines = [f"{file.relative_to(path)} {_state(file)}" for file in inside]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _state(file: Path) -> str:
    found = file.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The paths that are not what they were, or were not there."""
    return [path for path in {**before, **now} if before.get(path) != now.get(path)]
