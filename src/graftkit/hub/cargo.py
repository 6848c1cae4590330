"""What leaves this machine?

A copy of the model, and of what the run says of it, freed of paths and of the rows of the data.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from graftkit.errors import UserError
from graftkit.export import ADAPTER
from graftkit.fingerprint import file_hashes, settings
from graftkit.report import write_report
from graftkit.report.markdown import escape
from graftkit.report.tables import BASELINES, copy_measures, table_hashes

RUN, CARD, VERIFICATION = "run", "README.md", "verification.json"
KEPT = ("metrics.json", "log.jsonl", "predictions-dev.parquet", "predictions-test.parquet")
SPLITS = ("dev", "test")
LEFT_OUT = "The texts and pictures of the data are not in this copy of the run; who trained it has them."

PATH = re.compile(r"(?<![\w.~/\\@+%-])(?:~\w*|[A-Za-z]:)?[/\\](?:[\w.@+%=,-]+[/\\])+[\w.@+%=,-]*")
SECRETS = {
    "a token of the Hub": re.compile(r"\bhf_\w{16,}|\bapi_org_\w{16,}"),
    "a token of GitHub": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}"),
    "a key of OpenAI or the like": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a key of AWS": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a key of Google": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    "a token of Slack": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.(?!(?:png|jpe?g|gif|svg|webp)\b)[a-z]{2,}\b", re.IGNORECASE)
PICTURE = re.compile(r"base64,[A-Za-z0-9+/=]+")  # in a page: any letters may stand there by chance
VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")  # words, not settings
TEXTS = (".json", ".jsonl", ".yaml", ".md", ".txt", ".jinja", ".html", ".svg")
OTHERS = (".safetensors", ".parquet", ".model", ".jpg", ".png")  # which run no code where they are loaded
HOMES = ("home", "Users", "root", "mnt", "media", "Volumes")  # where people's files lie, here or elsewhere


def pack_model(source: Path, place: Path) -> None:
    """Copy a model's folder to the top of what is pushed; its weights are not written twice where that can be."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        target = place / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.suffix != ".safetensors":
                raise OSError  # a link would be the same file, and settings are written to
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)


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
    run, free = dict(run), path_remover(folder, run)
    run.pop("root_folders", None)
    if (folder / BASELINES).exists():
        shutil.copy2(folder / BASELINES, target / BASELINES)
    for split in SPLITS:
        copy_measures(folder, target, split, with_columns=with_rows)
    if with_rows:
        if not (folder / "rows-test.parquet").exists():
            raise UserError(f"--hub.with_rows: {folder} holds no rows; leave it out")
        for split in SPLITS:
            _copy_rows(folder, target, split)
    else:
        run |= {"notes": [*(note for note in run["notes"] if note != LEFT_OUT), LEFT_OUT], "rows_left_out": True}
    labels = run["labels"]
    run = map_texts(free, run) | {"labels": labels}
    files = file_hashes(place)
    run["saved"] |= {"files": {name: files[name] for name in files if "/" not in name}, "settings": settings(place)}
    run["tables"] = table_hashes(target)
    (target / "run.json").write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    config = map_texts(free, yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
    config["backbone"]["name"] = run["backbone"]["name"]
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (target / "config.yaml").write_text(text, encoding="utf-8")
    write_report(target)
    return run


def _copy_rows(folder: Path, target: Path, split: str) -> None:
    """A table of rows, its paths reduced to the names of files."""
    from graftkit.report.tables import read_rows, write_rows

    found = read_rows(folder, split)
    write_rows(target, split, [row | ({"path": Path(row["path"]).name} if row.get("path") else {}) for row in found])


def path_remover(folder: Path, run: dict[str, Any]) -> Callable[[str], str]:
    """What puts the last part of a path in place of it: the paths that the run knows, and all that start at a folder
    that stands at the root of this machine or of the one that trained, or at somebody's home.
    """
    name = run["backbone"]["name"].removeprefix("local-dir:")
    places = [run["data"].get("path"), *(run["data"].get("sources") or {}).values(), name, folder]
    known = {str(Path(place).expanduser().absolute()) for place in places if place}
    known |= {str(place) for place in places if place and os.path.isabs(place)}
    exact = sorted({path for path in known if path.count(os.sep) > 1}, key=len, reverse=True)
    roots = run.get("root_folders") or []

    def free(text: str) -> str:
        text = text.replace("local-dir:", "")
        for path in exact:
            text = text.replace(path, Path(path).name)
        return PATH.sub(lambda match: _last_part(match[0]) if is_local(match[0], roots) else match[0], text)

    return free


def is_local(path: str, roots: Sequence[str] = ()) -> bool:
    """Whether it is a path of a machine, which has these folders at its root; not '/m/02xyz/1', which is a label."""
    if path[0] == "~" or path[1:2] == ":":
        return True
    first = re.split(r"[/\\]", path)[1]
    return first in HOMES or first in roots or os.path.isdir(os.sep + first)


def _last_part(path: str) -> str:
    return [part for part in re.split(r"[/\\]", path) if part][-1]


def map_texts(change: Callable[[str], str], value: Any) -> Any:
    """A nested record with its texts changed; names stay."""
    if isinstance(value, dict):
        return {name: map_texts(change, item) for name, item in value.items()}
    if isinstance(value, list):
        return [map_texts(change, item) for item in value]
    return change(value) if isinstance(value, str) else value


def inspect(place: Path, labels: Sequence[str], roots: Sequence[str], card: str, *, with_rows: bool) -> None:
    """Raise UserError for what must not leave: files that may run code, secrets, e-mail addresses, paths of machines.

    `card` is our part of the page: what its owner wrote there is public already. Labels are what they are, and
    addresses and paths in rows that the user sends on purpose are theirs to send. `roots`: see `is_local`.
    """
    inspect_text(CARD, card, labels, roots)
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        name = path.relative_to(place).as_posix()
        if path.suffix not in TEXTS + OTHERS:
            raise UserError(f"{name} is of a kind that is not pushed: it may run code where it is loaded; remove it")
        if path.suffix in TEXTS and path.name not in VOCABULARY and name != CARD:
            text = PICTURE.sub("", path.read_text(encoding="utf-8"))
            inspect_secrets(name, text)
            if not (with_rows and name.startswith(f"{RUN}/report")):
                inspect_text(name, text, labels, roots)


def inspect_secrets(name: str, text: str) -> None:
    """Raise UserError where a text holds a token or key."""
    from huggingface_hub import get_token

    if (token := get_token()) and token in text:
        raise UserError(f"{name} holds your token of the Hub; remove it at its source, and make a new one")
    for what, pattern in SECRETS.items():
        if found := pattern.search(text):
            raise UserError(f"{name} holds what looks like {what} ({found[0][:6]}...); remove it at its source")


def inspect_text(name: str, text: str, labels: Sequence[str] = (), roots: Sequence[str] = ()) -> None:
    """Raise UserError where a text holds a secret, an e-mail address or a path of a machine, but for labels."""
    inspect_secrets(name, text)
    for label in labels:
        if EMAIL.search(label) or PATH.search(label):
            text = text.replace(label, "").replace(escape(label), "")
    if found := EMAIL.search(text):
        raise UserError(f"{name} holds an e-mail address ({found[0]}); remove it at its source")
    for found in PATH.finditer(text):
        if is_local(found[0], roots):
            raise UserError(f"{name} holds a path of a machine ({found[0]}); remove it at its source")
