"""What does a saved folder hold?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from graftkit.config import differences

LARGE = {"tokenizer.json": ("model", ("vocab", "merges"))}  # of these parts only the size is kept


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, by its path within."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_bytes(folder: Path) -> int:
    """How many bytes the weights of a saved model take: of an adapter without its base."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def settings(folder: Path) -> dict[str, Any]:
    """What the JSON files of a model's folder say, by file; of a vocabulary only how large it is."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        part, names = LARGE.get(path.name, (None, ()))
        for name in names:
            if content.get(part, {}).get(name) is not None:
                content[part][name] = len(content[part][name])
        found[path.name] = content
    return found


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line per setting of a folder that is not what it was: `config.json: hidden_act: 'gelu' -> 'relu'`."""
    lines = []
    for name in before | now:
        if name not in now or name not in before:
            lines.append(f"{name} is {'missing' if name in before else 'new'}")
        else:
            lines += [f"{name}: {line}" for line in differences(before[name], now[name])]
    return lines
