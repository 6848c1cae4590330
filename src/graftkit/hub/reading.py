"""What does a repository hold that others made, or that a push of graftkit made?"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from graftkit.errors import UserError
from graftkit.fingerprint import hash_file
from graftkit.hub import cargo, client

MANIFEST = "verification.json"


def check_files(repo_id: str, files: Mapping[str, Path], flag: str, say: Callable[[str], None]) -> str:
    """Compare files here with those of the same names on the Hub, by the hashes that it lists; nothing is downloaded.

    Returns the commit. Raises UserError, which begins with `flag`, where one is missing there or is another.
    """
    with client.talk_with(repo_id, client.PATIENCE, say, token_needed=False) as talk:
        info = client.get_info(talk, None)
        if info is None:
            raise UserError(f"{flag} {repo_id}: no such repository on the Hub, or hidden from this token")
        there = client.get_tree(talk, info.sha)
    for name, path in files.items():
        if not client.same_file(there.get(name), path, hash_file(path)):
            raise UserError(f"{flag} {repo_id}: its {name} is not the file that this run loaded ({path}); name another")
    return info.sha


def read_front_matter(repo_id: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The metadata of a repository's card; empty where there is no repository, no card, or no metadata in it."""
    from huggingface_hub import ModelCard

    try:
        with client.talk_with(repo_id, client.PATIENCE, say, token_needed=False) as talk:
            info = client.get_info(talk, None)
            text = None if info is None else client.read_text(talk, "README.md", info.sha)
    except UserError:
        return {}  # what the base's card says is good to have, and no more
    if text is None:
        return {}
    try:
        return ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, TypeError, yaml.YAMLError):
        return {}


def bring(repo_id: str, revision: str | None, place: Path, say: Callable[[str], None]) -> str:
    """Download what a push of graftkit sent, each file with the hash that verification.json states; returns the commit.

    Raises UserError where there is no such repository, where no push made it, or where a file is not what was sent.
    """
    with client.talk_with(repo_id, client.PATIENCE, say, token_needed=False) as talk:
        info = client.get_info(talk, revision)
        if info is None:
            at = f" at {revision}" if revision else ""
            raise UserError(f"{repo_id}{at}: no such repository on the Hub, or hidden from this token")
        manifest = client.read_manifest(client.read_text(talk, MANIFEST, info.sha))
        if manifest is None:
            raise UserError(f"{repo_id} holds no run that graftkit pushed; `graft evaluate` scores any model")
        for name, sha256 in manifest["files"].items():
            _bring_file(talk, name, info.sha, sha256, place)
        (place / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return info.sha


def _bring_file(talk: client.Talk, name: str, commit: str, sha256: str, place: Path) -> None:
    from huggingface_hub.errors import RemoteEntryNotFoundError

    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{talk.repo}: its {MANIFEST} names {name}, outside of the repository")
    if path.suffix not in cargo.TEXTS + cargo.OTHERS:
        raise UserError(f"{talk.repo}: its {MANIFEST} names {name}, which may run code where it is loaded")
    with tempfile.TemporaryDirectory() as cache:
        where = {"filename": name, "revision": commit, "cache_dir": cache}
        missing = (RemoteEntryNotFoundError,)
        try:
            local = talk.ask(
                f"downloading {name}", lambda: talk.api.hf_hub_download(talk.repo, **where), through=missing
            )
        except missing as error:
            raise UserError(f"{talk.repo} lacks {name}, which was pushed; push it again") from error
        if hash_file(Path(local)) != sha256:
            raise UserError(f"{talk.repo}: {name} is not the file that was pushed and checked; push it again")
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(local, place / name)
