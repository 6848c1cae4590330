"""What is there to start from, where no pretrained checkpoint is at hand?

Small networks that nobody has trained, built on the spot with a tokenizer learnt from the demo's own training texts:
they let a recipe run with no arguments and no network. Whoever has a checkpoint names it instead.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from graftkit.machine import cache_folder

MAKERS: dict[str, Callable[[Path], None]] = {}
"""By name, what writes such a checkpoint, config, weights and tokenizer, into an empty folder: the same each time."""


def build(name: str) -> Path:
    """The folder of a checkpoint that nobody trained, made in the cache folder where it is not there yet."""
    import os
    import tempfile

    import tokenizers
    import transformers

    versions = json.dumps([transformers.__version__, tokenizers.__version__])
    folder = cache_folder() / "scratch" / f"{name}-{_short_hash(versions + Path(__file__).read_text(encoding='utf-8'))}"
    if not (folder / "config.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent))
        MAKERS[name](aside)
        try:
            os.replace(aside, folder)
        except OSError:  # another process was first
            shutil.rmtree(aside)
    return folder


def _short_hash(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:12]
