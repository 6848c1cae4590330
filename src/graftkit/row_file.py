"""Which arrays need not be computed again?

A row file is a header (JSON, padded to a page), the arrays of all rows, and an index (npy) of where each row starts and
how large it is. It is written aside and renamed, so that what bears the name is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HEADER = 4096  # bytes before the arrays, a page, so that they begin on one
ABANDONED = 86400  # seconds after which a file that somebody began to write is nobody's


def begin(path: Path) -> Path:
    """An empty file beside `path`, to be written into; sweeps away what killed runs left long ago. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f"{path.stem}.", suffix=".part", dir=path.parent)
    os.close(handle)
    for old in path.parent.glob("*.part"):
        with contextlib.suppress(OSError):  # another process may sweep too, and some are another user's
            if time.time() - old.stat().st_mtime > ABANDONED:
                old.unlink()
    return Path(part)


def seal(part: Path, path: Path, key: str, index: np.ndarray) -> None:
    """Add the index and, last, the header, which says that the file is whole; then give it its name."""
    with part.open("r+b") as file:
        header = {"key": key, "index": file.seek(0, os.SEEK_END)}
        np.save(file, index)
        header["bytes"] = file.tell()
        file.seek(0)
        file.write(json.dumps(header).encode().ljust(HEADER))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def keep_within(used: Sequence[Path], most: int) -> None:
    """Remove what was not used for the longest time from the folder of these files, until it holds `most` bytes.

    A run that reads a file that is removed goes on: its map of it stays.
    """
    for path in used:
        with contextlib.suppress(OSError):  # another user's, or removed by another run
            os.utime(path)
    held = []
    for path in used[0].parent.glob(f"*{used[0].suffix}"):
        with contextlib.suppress(OSError):
            facts = path.stat()
            held.append((facts.st_mtime, facts.st_size, path))
    total = sum(size for _, size, _ in held)
    for _, size, path in sorted(held):
        if total > most and path not in used:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                total -= size


def read_index(path: Path, key: str) -> np.ndarray | None:
    """The index of a whole file with this key; None where there is none that may be read."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(HEADER))
            if not isinstance(header, dict) or header.get("key") != key or header["bytes"] != path.stat().st_size:
                return None
            file.seek(header["index"])
            return np.load(file, allow_pickle=False)
    except (OSError, ValueError):  # ValueError: foreign, no JSON
        return None
