"""How does a checkpoint come from the Hub?

The one place that fetches: JSON, text and safetensors of the top folder, whole and checked; never a pickle.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from graftkit.errors import UserError

T = TypeVar("T")
WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
CONFIGS = ("config.json", "adapter_config.json")  # small, and first: who may not read them sees no large file move
TEXTS = (".json", ".txt", ".model", ".jinja")  # settings and vocabularies
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WAITS = (1.0, 3.0)  # seconds before another try of what the client does not try again itself
PATIENCE = 60.0  # seconds after which there is no other try


@dataclass(frozen=True)
class Fetched:
    """A checkpoint on this machine."""

    folder: Path  # where the files lie
    commit: str | None  # the Hub's commit that a name and revision resolved to; None for a folder


@dataclass(frozen=True)
class Origin:
    """What a name and revision stood for on the Hub."""

    repo: str  # its id there, which for timm's names is another than the user's
    commit: str


_pins: dict[tuple[str, str | None], str] = {}  # what names and revisions shall stand for
_commits: dict[tuple[str, str | None], str] = {}  # what ids and revisions stood for when first asked
_origins: dict[tuple[str, str | None], Origin] = {}  # the same of the user's names


def fetch(
    name: str,
    revision: str | None = None,
    flag: str = "--backbone.name",
    *,
    repo: str | None = None,
    weights: str | None = WEIGHTS,
) -> Fetched:
    """Fetch a checkpoint from the Hub, or find it in the cache; every call of a process gives the same commit.

    `repo` is the Hub's id where the user's `name` is another. `weights` is the file to take, or its shards (None: only
    settings). Any number of processes may call it at once. Raises UserError, in one line that begins with `flag` and
    `name`, where nothing can be fetched, or there are no weights in safetensors, or they are damaged.
    """
    from huggingface_hub.errors import HTTPError

    shown, repo = f"{flag} {name}".strip(), repo or name
    try:
        with _considerate():
            fetched = _fetch(shown, repo, _pins.get((name, revision), revision), weights)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{shown}: {_explain(_cause(error), repo, revision)}") from error
    _origins[name, revision] = Origin(repo, fetched.commit)
    return fetched


def pin(name: str, revision: str | None, commit: str) -> None:
    """Let a name and revision stand for a commit in this process, as a run that is resumed had it."""
    _pins[name, revision] = commit


def origin_of(name: str, revision: str | None) -> Origin | None:
    """What this process fetched for a user's name and revision; None for a folder."""
    return _origins.get((name, revision))


@cache
def _fetch(shown: str, repo: str, revision: str | None, weights: str | None) -> Fetched:
    folder = _look_up(repo, _commits.get((repo, revision), revision))
    commit = _commits[repo, revision] = folder.name
    needed = _choose(shown, _listing(repo, folder), weights)
    old = {name for name in needed if (folder / name).exists()}
    _patiently(lambda: _snapshot(repo, commit, needed))
    for name in needed:
        _mend(shown, repo, folder, name, new=name not in old)
    return Fetched(folder, commit)


def _look_up(repo: str, revision: str | None) -> Path:
    """The folder of the commit that a revision stands for, with its settings."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

    try:
        return _patiently(lambda: _snapshot(repo, revision, CONFIGS))
    except HTTPError as error:
        if isinstance(error, HfHubHTTPError):
            raise
        try:  # of a connection that breaks, the client does not think to look into the cache
            return _snapshot(repo, revision, CONFIGS, local_files_only=True)
        except LocalEntryNotFoundError:
            raise error from None


def _snapshot(repo: str, revision: str | None, names: Sequence[str], *, local_files_only: bool = False) -> Path:
    """The folder of a commit, with these files."""
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(name) for name in names]
    return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=local_files_only))


def _listing(repo: str, folder: Path) -> list[str]:
    """Paths of all files of the commit; of those in the cache alone, where an older client filled it."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in get_cached_repo_tree(repo, revision=folder.name)]
    except CachedRepoTreeNotFoundError:
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*")]


def _choose(shown: str, names: list[str], weights: str | None) -> list[str]:
    """What is needed of a repository's files. UserError where it has no weights in safetensors."""
    top = [name for name in names if "/" not in name]  # below lie other formats, and what graftkit pushes beside
    texts = sorted(name for name in top if name.endswith(TEXTS))
    if weights is None:
        return texts
    shard = re.compile(re.escape(weights.removesuffix(".safetensors")) + r"-\d+-of-\d+\.safetensors")
    found = [weights] if weights in names else sorted(name for name in top if shard.fullmatch(name))
    if "adapter_config.json" in top and ADAPTER_WEIGHTS in top:
        found.append(ADAPTER_WEIGHTS)
    if found:
        return texts + found
    pickles = [name for name in top if name.endswith(PICKLES)]
    if pickles:
        raise UserError(
            f"{shown}: holds pickled weights only ({pickles[0]}), which can run code; convert them to safetensors "
            "(such as by the Hub's space safetensors/convert), or take another checkpoint"
        )
    raise UserError(f"{shown}: holds no weights ({weights}); take another checkpoint")


# whole files


def _mend(shown: str, repo: str, folder: Path, name: str, *, new: bool) -> None:
    """Fetch a damaged file again, once. UserError where that does not help."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    fault = _fault(folder / name, new)
    if fault is None:
        return
    try:
        _patiently(lambda: hf_hub_download(repo, name, revision=folder.name, force_download=True))
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{shown}: {name} in the cache is damaged ({fault}), and cannot be fetched again now; connect to the Hub "
            "(and unset HF_HUB_OFFLINE), then try again"
        ) from error
    fault = _fault(folder / name, True)
    if fault is not None:
        raise UserError(f"{shown}: {name} is damaged on the Hub, too ({fault}); take another revision or checkpoint")


def _fault(path: Path, new: bool) -> str | None:
    """What is wrong with a file of the cache, if anything. Large ones are read to their end only when they are new."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return "missing"
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="np"):  # compares the header with the size
                pass
        except (SafetensorError, OSError, ValueError) as error:
            return str(error)
    if (new or path.suffix != ".safetensors") and not _intact(path):
        return "its checksum is wrong"
    if path.suffix == ".json" and any(word in path.name for word in ("config", "token", "vocab", "index")):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            return "no JSON"
    return None


def _intact(path: Path) -> bool:
    """Whether a file has the checksum that its place in the cache is named by: git's, or SHA-256 of a large one."""
    name, size = path.resolve().name, path.stat().st_size
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name):  # a copy, where there are no symbolic links
        return True
    with path.open("rb") as file:
        if len(name) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest() == name
        data = file.read()
    return name in (hashlib.sha1(b"blob %d\0" % size + data).hexdigest(), hashlib.sha1(data).hexdigest())  # a mirror's


# the client


@contextmanager
def _considerate() -> Iterator[None]:
    """No bars and warnings of the client, and no request that waits for ever, as its listings else do."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    def limit(request: Any) -> None:
        limits = request.extensions.get("timeout") or {}
        if not any(limits.values()):
            seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)

    hooks, verbosity = get_session().event_hooks["request"], logging.get_verbosity()
    bars = not are_progress_bars_disabled()
    hooks.append(limit)
    disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        hooks.remove(limit)
        logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


def _patiently(action: Callable[[], T]) -> T:
    """What `action` returns; what may pass is tried again."""
    from huggingface_hub.errors import HTTPError

    start = time.monotonic()
    for wait in WAITS:
        try:
            return action()
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            if not _may_pass(_cause(error)) or time.monotonic() - start > PATIENCE:
                raise
        time.sleep(wait)
    return action()


def _cause(error: Exception) -> Exception:
    """What the client met, where it says only that the cache does not have it either."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wraps = isinstance(error, (LocalEntryNotFoundError, ValueError)) and not isinstance(error, HfHubHTTPError)
    return error.__cause__ if wraps and isinstance(error.__cause__, Exception) else error


def _may_pass(error: Exception) -> bool:
    """Whether another try may go better."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    if isinstance(error, OfflineModeIsEnabled):
        return False
    # RuntimeError: one thread of the client closes what another one is about to use
    broken = isinstance(error, (HTTPError, ConnectionError, TimeoutError, RuntimeError))
    return broken or "Consistency check" in str(error)  # fewer bytes than announced


def _explain(error: Exception, repo: str, revision: str | None) -> str:
    """Why there is no checkpoint, and the way out, in one line."""
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    absent = "no such folder here, and not found on the Hub"
    if isinstance(error, errors.GatedRepoError):
        return f"gated; accept its terms at {constants.ENDPOINT}/{repo}, and log in (hf auth login)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{absent}, or private; check the name, or log in with a token that may read it (hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no branch, tag or commit {revision or 'main'}; set --backbone.revision to one that it has"
    if isinstance(error, errors.HFValidationError):
        return f"{absent} (no name of a repository, such as organisation/model)"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{absent} (HF_HUB_OFFLINE is set, and the cache has no whole copy); unset it, or name a folder"
    if status == 401:
        return "the Hub knows no such token; log in again (hf auth login), or unset HF_TOKEN"
    if status == 429:
        return "the Hub has had too many requests (429); try again in some minutes, or log in (hf auth login)"
    if status is not None and status >= 500:
        return f"the Hub is in trouble ({status}), and the cache has no whole copy; try again in some minutes"
    if status is not None:
        return f"the Hub refuses it ({status}); ask its owner, or log in with another token (hf auth login)"
    return _explain_connection(error)


def _explain_connection(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError

    if isinstance(error, (HTTPError, TimeoutError)) and "Timeout" in type(error).__name__:
        return (
            f"the Hub did not answer in {constants.HF_HUB_DOWNLOAD_TIMEOUT} s, and the cache has no whole copy; try "
            "again, or set HF_HUB_DOWNLOAD_TIMEOUT (seconds)"
        )
    if isinstance(error, (HTTPError, ConnectionError)):
        return (
            f"no connection to the Hub ({constants.ENDPOINT}), or it broke, and the cache has no whole copy; check the "
            "network and try again, or name a folder"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return "the cache has no whole copy; connect to the Hub, or name a folder"
    if isinstance(error, OSError) and error.strerror:
        return f"the cache {constants.HF_HUB_CACHE} cannot be written ({error.strerror}); set HF_HOME to another folder"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"could not be fetched ({line}); try again"
