"""How does a pushed run come back?"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from graftkit.checkpoint import aside_then_renamed
from graftkit.errors import UserError
from graftkit.hub import cargo, gate
from graftkit.hub.reading import bring


def pull(repo_id: str, revision: str | None, out: Path, say: Callable[[str], None]) -> str:
    """Bring what a push of graftkit sent into a run's folder, `out`, each file with the bytes that were sent.

    Returns the commit. Raises UserError where the repository is missing, hidden, or holds no run, and leaves no folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; name another folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with aside_then_renamed(out) as aside:
        whole = aside / "model"
        commit = bring(repo_id, revision, whole, say)
        run = whole / cargo.RUN
        for path in [*(run.iterdir() if run.is_dir() else []), whole / cargo.VERIFICATION]:
            shutil.move(path, aside / path.name)
        shutil.rmtree(run, ignore_errors=True)
        try:
            gate.check_files(aside, gate.read_record(aside))
        except UserError as error:
            raise UserError(f"{repo_id} holds no whole run of graftkit; `graft evaluate` scores any model") from error
    return commit
