"""What was a model made from, and what may be said of that?"""

from __future__ import annotations

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
    id, commit = _id_of(run), run["backbone"].get("commit")
    if config.base_id is not None:
        weights = _weights(folder, config.base_id)
        commit = check_files(config.base_id, weights, "--hub.base_id", say)
        id = config.base_id
    if adapter and id is None:
        raise UserError(
            f"the base of this adapter is the folder {run['backbone']['name']}, which only this machine has: set "
            "--hub.base_id to its id on the Hub, or --hub.merge to push a plain model"
        )
    if id is None:
        return Base(None, _license_of_timm(folder), [], relation), None
    facts = read_front_matter(id, say)
    languages = facts.get("language") or []
    licence = facts.get("license") or _license_of_timm(folder)
    return Base(id, licence, [languages] if isinstance(languages, str) else list(languages), relation), commit


def _id_of(run: Mapping[str, Any]) -> str | None:
    """The base's id on the Hub; None where it came from a folder, or nothing of it was used."""
    backbone = run["backbone"]
    if backbone.get("commit") is None or not backbone.get("pretrained", True):
        return None
    name = backbone["name"].removeprefix("hf-hub:")
    return name if "/" in name else f"timm/{name}"


def _weights(folder: Path, base_id: str) -> dict[str, Path]:
    """The files of the base's weights here, by name. UserError where its folder is gone."""
    name = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["backbone"]["name"]
    place = resolve(name.removeprefix("local-dir:"))
    found = {path.name: path for path in sorted(place.glob("*.safetensors"))}
    if not found:
        raise UserError(f"--hub.base_id {base_id}: {name} has no safetensors here to compare with")
    return found


def _license_of_timm(folder: Path) -> str | None:
    """What timm says of the weights that it knows."""
    import json

    path = folder / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return (config.get("pretrained_cfg") or {}).get("license")
