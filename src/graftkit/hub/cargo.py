"""What leaves this machine?

A copy of the model, and of what the run says of it, freed of paths and of the rows of the data.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graftkit.errors import UserError
from graftkit.export import ADAPTER
from graftkit.fingerprint import file_hashes, settings
from graftkit.report import write_report

RUN, CARD, VERIFICATION = "run", "README.md", "verification.json"
KEPT = ("metrics.json", "log.jsonl", "predictions-dev.parquet", "predictions-test.parquet")
ROWS = ("rows-dev.parquet", "rows-test.parquet")
LEFT_OUT = "The texts and pictures of the data are not in this copy of the run; who trained it has them."

PATH = re.compile(r"(?<![\w.~:/\\@+%-])(?:~|[A-Za-z]:)?[/\\](?:[\w.@+%=,-]+[/\\])+[\w.@+%=,-]*")
SECRETS = {
    "a token of the Hub": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "a token of GitHub": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}"),
    "a key of OpenAI or the like": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a key of AWS": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a key of Google": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    "a token of Slack": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*[a-z]{2,}")
VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")  # words, not settings
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
PICKLE = re.compile(rb"\x80[\x02-\x05]")  # how one begins since protocol 2
TABLES = (".safetensors", ".parquet")  # which are read by their own rules, and may begin with any byte
TEXTS = (".json", ".jsonl", ".yaml", ".md", ".txt", ".jinja")


def pack_model(source: Path, place: Path) -> None:
    """Copy a model's folder to the top of what is pushed."""
    shutil.copytree(source, place, dirs_exist_ok=True)


def name_base(place: Path, base_id: str, commit: str | None) -> None:
    """Let a copied adapter name its base by its id on the Hub."""
    path = place / ADAPTER
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": base_id, "revision": commit}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def pack_run(folder: Path, place: Path, run: dict[str, Any], *, with_rows: bool) -> dict[str, Any]:
    """Copy what the run says of the model into `run/`, freed of paths, and make its report again from that.

    `run` is the record as it shall be there; returns it as it is written.
    """
    target = place / RUN
    target.mkdir()
    for name in KEPT:
        shutil.copy2(folder / name, target / name)
    free = path_remover(folder, run)
    if with_rows:
        for name in ROWS:
            _copy_rows(folder, target, name.removeprefix("rows-").removesuffix(".parquet"))
    else:
        run = run | {"notes": [*run["notes"], LEFT_OUT], "rows_left_out": True}
    run = map_texts(free, run)
    files = file_hashes(place)
    run["saved"] |= {"files": {name: files[name] for name in files if "/" not in name}, "settings": settings(place)}
    (target / "run.json").write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (target / "config.yaml").write_text(free((folder / "config.yaml").read_text(encoding="utf-8")), encoding="utf-8")
    write_report(target)
    return run


def _copy_rows(folder: Path, target: Path, split: str) -> None:
    """A table of rows, its paths reduced to the names of files."""
    from graftkit.report.tables import read_rows, write_rows

    found = read_rows(folder, split)
    write_rows(target, split, [row | ({"path": Path(row["path"]).name} if row.get("path") else {}) for row in found])


def path_remover(folder: Path, run: dict[str, Any]) -> Callable[[str], str]:
    """What puts the last part of a path in place of it: the paths that the run knows, and all that start at a folder
    of this machine's root or at somebody's home.
    """
    places = [run["data"].get("path"), *(run["data"].get("sources") or {}).values(), run["backbone"]["name"], folder]
    known = {str(Path(place).expanduser().absolute()) for place in places if place}
    known |= {str(place) for place in places if place and os.path.isabs(place)}
    exact = sorted({path for path in known if path.count(os.sep) > 1}, key=len, reverse=True)

    def free(text: str) -> str:
        for path in exact:
            text = text.replace(path, Path(path).name)
        return PATH.sub(lambda match: _last_part(match[0]) if _is_local(match[0]) else match[0], text)

    return free


def _is_local(path: str) -> bool:
    """Whether it is a path of this machine, or looks like somebody's home; not '/m/02xyz/1', which is a label."""
    if path[0] == "~" or path[1:2] == ":":
        return True
    first = re.split(r"[/\\]", path)[1]
    return first in ("home", "Users", "root", "mnt", "media", "Volumes") or os.path.isdir(os.sep + first)


def _last_part(path: str) -> str:
    return [part for part in re.split(r"[/\\]", path) if part][-1]


def map_texts(change: Callable[[str], str], value: Any) -> Any:
    """A nested record with its texts changed; names stay."""
    if isinstance(value, dict):
        return {name: map_texts(change, item) for name, item in value.items()}
    if isinstance(value, list):
        return [map_texts(change, item) for item in value]
    return change(value) if isinstance(value, str) else value


def inspect(place: Path, *, with_rows: bool) -> None:
    """Raise UserError for what must not leave: pickles, secrets, e-mail addresses, paths of this machine.

    E-mail addresses in rows that the user sends on purpose are theirs to send.
    """
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        name = path.relative_to(place).as_posix()
        if path.suffix in PICKLES or (path.suffix not in TABLES and PICKLE.match(path.read_bytes()[:2])):
            raise UserError(f"{name} is a pickle, which runs code where it is loaded; remove it")
        if path.suffix in TEXTS and path.name not in VOCABULARY:
            rows = with_rows and name.startswith(f"{RUN}/report")
            inspect_text(name, path.read_text(encoding="utf-8"), addresses=rows)


def inspect_text(name: str, text: str, *, addresses: bool = False) -> None:
    """Raise UserError for a secret, a path of this machine or, unless they may be, an e-mail address in a text."""
    for what, pattern in SECRETS.items():
        if found := pattern.search(text):
            raise UserError(f"{name} holds what looks like {what} ({found[0][:6]}...); remove it at its source")
    if not addresses and (found := EMAIL.search(text)):
        raise UserError(f"{name} holds an e-mail address ({found[0]}); remove it at its source")
    for found in PATH.finditer(text):
        if _is_local(found[0]):
            raise UserError(f"{name} holds a path of this machine ({found[0]}); remove it at its source")
