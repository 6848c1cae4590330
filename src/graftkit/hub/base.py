"""What was a model made from, and what may be said of that?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from graftkit.backbone import resolve
from graftkit.errors import UserError
from graftkit.export import ADAPTER
from graftkit.hub.card import Base
from graftkit.hub.config import HubConfig
from graftkit.hub.reading import check_files, read_front_matter


def find_base(
    folder: Path, run: Mapping[str, Any], config: HubConfig, say: Callable[[str], None]
) -> tuple[Base, str | None]:
    """The base of a run's model, and its commit on the Hub where that is known.

    `--hub.base_id` counts only where its weights have the hashes of those that the run loaded; UserError otherwise, and
    for an adapter whose base nobody else has.
    """
    adapter = (folder / "model" / ADAPTER).exists() and not config.merge
    relation = "adapter" if adapter else "finetune"
    backbone = run["backbone"]
    started = backbone.get("pretrained", True)  # from its weights, not from random ones
    id, commit = (backbone.get("hub_id"), backbone.get("commit")) if started else (None, None)
    if config.base_id is not None:
        if not started:
            raise UserError("--hub.base_id: this run started from random weights; leave it out")
        weights = _weights(folder, run, config.base_id)
        commit = check_files(config.base_id, weights, "--hub.base_id", say)
        id = config.base_id
    if adapter and id is None:
        raise UserError(
            f"the base of this adapter is the folder {backbone['name']}, which only this machine has: set "
            "--hub.base_id to its id on the Hub, or --hub.merge to push a plain model"
        )
    if id is None:
        return Base(None, _license_of_timm(folder), [], relation), None
    facts = read_front_matter(id, say)
    languages = facts.get("language") or []
    licence = facts.get("license") or _license_of_timm(folder)
    return Base(id, licence, [languages] if isinstance(languages, str) else list(languages), relation), commit


def _weights(folder: Path, run: Mapping[str, Any], base_id: str) -> dict[str, Path]:
    """The files of the base's weights here, by name. UserError where its folder is gone."""
    name = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["backbone"]["name"]
    if name == "demo" and run["task"] == "image-classification":
        raise UserError(
            f"--hub.base_id {base_id}: the base of this run was made here, and is nobody else's; leave it out"
        )
    place = resolve(name.removeprefix("local-dir:"))
    found = {path.name: path for path in sorted(place.glob("*.safetensors"))}
    if not found:
        raise UserError(f"--hub.base_id {base_id}: {name} has no safetensors here to compare with")
    return found


def _license_of_timm(folder: Path) -> str | None:
    """What timm says of the weights that it knows."""
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return (config.get("pretrained_cfg") or {}).get("license")
