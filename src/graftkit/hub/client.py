"""How does it get there whole?

One commit by the real client, with a parent that it must have; tried again while there is hope, never made twice; and
read back and compared with what was sent.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from graftkit.errors import UserError
from graftkit.fingerprint import file_hashes, hash_file
from graftkit.hub.config import HubConfig

T = TypeVar("T")
PATIENCE = 600.0  # seconds of trouble, with nothing new achieved, before a push is given up
HASTE = 20.0  # the same before training, when nothing can be lost yet
SILENCE = 60.0  # seconds without a byte before a connection counts as lost
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between two tries, doubled from one to the next
RECENT = 10  # pull requests that are looked through for one of ours
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write (from huggingface.co/settings/tokens)"


@dataclass(frozen=True)
class Remote:
    """A repository as it stands on the branch that is pushed to."""

    head: str | None
    """commit of the branch; None where there is no repository, or no such branch"""
    files: list[str]
    card: str | None
    """text of README.md"""
    manifest: dict[str, Any] | None
    """what verification.json says: its "files" are {path: sha256} of what an earlier push sent"""
    start: str | None = None
    """commit of main, where a branch has to be made: it starts from there, and files, card and manifest are main's"""


@dataclass(frozen=True)
class Sent:
    """What became of a push."""

    commit: str
    url: str
    unchanged: bool
    """all of it was there already, and no commit was made"""


class Arrived(UserError):
    """The commit is made, and something after it failed."""


@dataclass(frozen=True)
class Mishap:
    """What went wrong with a call, in words, and whether there is hope."""

    reason: str
    passing: bool
    wait: float = 0
    """seconds that the server asks to wait"""


def unheard(line: str) -> None:
    """For callers that tell nobody of the tries."""


def check_ready(config: HubConfig, say: Callable[[str], None] = unheard) -> None:
    """Raise UserError where a push could not work, before anything is trained.

    That is: a name that is none or lacks its namespace, no network, no token, one that is wrong or may not write there.
    """
    _check_name(config)
    if config.tag and config.create_pr:
        raise UserError("--hub.tag with --hub.create_pr: a pull request has no commit to tag before it is merged")
    with talk_with(config.push_to, HASTE, say) as talk:
        token_owner = talk.ask(f"asking {talk.api.endpoint} whose token this is", talk.api.whoami)
        _check_rights(token_owner, config)
        info = get_info(talk, None)
        if info is None and config.create_pr:
            raise UserError(f"{talk.repo} is missing or hidden from this token: there is nothing to open a request at")
        _check_privacy(info, config)


def look(config: HubConfig, say: Callable[[str], None] = unheard) -> Remote:
    """The repository as it stands; one that is missing, or hidden from the token, is no error."""
    _check_name(config)
    with talk_with(config.push_to, PATIENCE, say, token_needed=False) as talk:
        info, start = get_info(talk, config.revision), None
        if info is None and config.revision and (info := get_info(talk, None)):
            start = info.sha
        if info is None:
            return Remote(None, [], None, None)
        files = [sibling.rfilename for sibling in info.siblings or []]
        card, manifest = (read_text(talk, path, info.sha) for path in ("README.md", "verification.json"))
    return Remote(None if start else info.sha, files, card, read_manifest(manifest), start)


def send(folder: Path, config: HubConfig, remote: Remote, title: str, say: Callable[[str], None] = unheard) -> Sent:
    """Put every file under a folder into one commit on top of `remote`, and compare what arrived.

    What an earlier push sent and the folder no longer has is deleted by the same commit; files that others added stay.
    Raises UserError with the reason: the repository is then as it was, or has the whole commit.
    """
    _check_name(config)
    hashes = file_hashes(folder)
    with talk_with(config.push_to, PATIENCE, say) as talk:
        parent = _make_place(talk, config, remote)
        there = get_tree(talk, parent)
        changed = [path for path in hashes if not same_file(there.get(path), folder / path, hashes[path])]
        listed = (remote.manifest or {}).get("files")
        stale = [path for path in listed or () if path in there and path not in hashes]
        _check_refs(talk, config, parent if not (changed or stale) else None)
        sent = Sent(parent, _page(talk, config), unchanged=True)
        if changed or stale:
            mark = _mark(parent, hashes, stale)
            sent = _commit(talk, config, _operations(folder, changed, stale), parent, config.message or title, mark)
        try:
            _compare(talk, hashes, sent.commit)
            if config.tag:
                _tag(talk, config.tag, sent.commit)
        except UserError as error:
            raise Arrived(str(error)) from error
    return sent


# -- before anything is sent -------------------------------------------------------------------------------------------


def _check_name(config: HubConfig) -> None:
    """Refuse what cannot be a repository's name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = config.push_to or ""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name!r} is no name of a repository: {' '.join(str(error).split())}") from error
    if "/" not in name:
        raise UserError(f"{name!r} lacks its namespace: name the repository USER/{name}, or ORGANISATION/{name}")


def _check_rights(owner: Mapping[str, Any], config: HubConfig) -> None:
    """Refuse a token that may not write to the repository, by what `whoami` says of it."""
    token = owner.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise UserError(f"the token of {owner['name']} may only read: {LOGIN}")
    if config.create_pr:  # anybody may propose
        return
    namespace = config.push_to.split("/")[0]
    roles = {owner["name"]: None} | {org["name"]: org.get("roleInOrg") for org in owner.get("orgs", [])}
    if namespace not in roles:
        raise UserError(f"{config.push_to}: the token is {owner['name']}'s, for {', '.join(roles)}, not {namespace}")
    if roles[namespace] == "read":
        raise UserError(f"{config.push_to}: {owner['name']} may only read in {namespace}: ask its admins for more")
    scopes = token.get("fineGrained", {}).get("scoped", [])
    writable = {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}
    if token.get("role") == "fineGrained" and not writable & {namespace, config.push_to}:
        raise UserError(f"{config.push_to}: the token's permissions lack `repo.write` for {namespace}: {LOGIN}")


def _check_privacy(info: Any, config: HubConfig) -> None:
    """Refuse to show the world what was to be private."""
    if config.private and info is not None and not info.private:
        raise UserError(
            f"{config.push_to} is public, and --hub.private is set: make it private in its settings, or push elsewhere"
        )


def _make_place(talk: Talk, config: HubConfig, remote: Remote) -> str:
    """The commit to build on, of a repository and a branch that are there, or are made, and are as they were seen."""
    what, expected = f"making {talk.repo}", remote.head or remote.start
    if expected is None:  # an organisation may have private as its default: then leave it so
        private = config.private or None
        talk.ask(what, lambda: talk.api.create_repo(talk.repo, private=private, exist_ok=True))
        info = talk.ask(what, lambda: talk.api.model_info(talk.repo))
        if {sibling.rfilename for sibling in info.siblings or []} - {".gitattributes"}:  # of another push
            raise UserError(f"{talk.repo} was made meanwhile by another: push again")
        expected = info.sha
    if remote.head is None and config.revision:
        what = f"making the branch {config.revision} of {talk.repo}"
        branch = {"branch": config.revision, "revision": expected, "exist_ok": True}
        talk.ask(what, lambda: talk.api.create_branch(talk.repo, **branch))
    info = talk.ask(f"looking at {talk.repo}", lambda: talk.api.model_info(talk.repo, revision=config.revision))
    _check_privacy(info, config)
    if info.sha != expected:
        raise _moved(talk, info.sha)
    return expected


def _check_refs(talk: Talk, config: HubConfig, commit: str | None) -> None:
    """Refuse a tag that is at another commit than this (None: one that is yet to be made), and no branch as one."""
    if not (config.tag or config.revision):
        return
    refs = talk.ask(f"reading the branches of {talk.repo}", lambda: talk.api.list_repo_refs(talk.repo))
    branches = [branch.name for branch in refs.branches]
    if config.revision and config.revision not in branches and not config.revision.startswith("refs/"):
        raise UserError(f"{config.revision} of {talk.repo} is a tag or a commit: name a branch ({', '.join(branches)})")
    for tag in refs.tags:
        if tag.name == config.tag and tag.target_commit != commit:
            raise UserError(f"{talk.repo} has a tag {tag.name}, at {tag.target_commit[:8]}: choose another --hub.tag")


def same_file(listed: Any, path: Path, sha256: str) -> bool:
    """Is a local file what the tree of the repository lists?"""
    if listed is None or listed.size != path.stat().st_size:
        return False
    if listed.lfs:
        return listed.lfs.sha256 == sha256
    data = path.read_bytes()
    return listed.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


# -- the commit --------------------------------------------------------------------------------------------------------


def _mark(parent: str, hashes: Mapping[str, str], stale: list[str]) -> str:
    """A line that tells this push from all others: the same contents on the same parent."""
    content = json.dumps([parent, sorted(hashes.items()), sorted(stale)])
    return f"graftkit-push: {hashlib.sha256(content.encode()).hexdigest()}"


def _operations(folder: Path, changed: list[str], stale: list[str]) -> list[Any]:
    """What the commit does to files."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    added = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=folder / path) for path in changed]
    return added + [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in stale]


def _commit(talk: Talk, config: HubConfig, operations: list[Any], parent: str, title: str, mark: str) -> Sent:
    """Make the commit, once: before each try, see whether an earlier one went through and only its answer was lost."""
    where = {"revision": config.revision, "create_pr": config.create_pr, "parent_commit": parent}
    tried = []

    def attempt() -> Sent:
        made = _find_request(talk, mark) if config.create_pr else _find_commit(talk, config, mark, parent)
        if made is not None:
            return replace(made, unchanged=not tried)
        tried.append(True)
        # What the operations know of an earlier try, such as files that are there by now, is used again.
        commit = talk.api.create_commit(talk.repo, operations, commit_message=title, commit_description=mark, **where)
        return Sent(commit.oid, commit.pr_url or _page(talk, config), unchanged=False)

    return talk.ask(f"the commit to {talk.repo}", attempt)


def _page(talk: Talk, config: HubConfig) -> str:
    """Where a person sees the branch."""
    return f"{talk.api.endpoint}/{talk.repo}" + (f"/tree/{config.revision}" if config.revision else "")


def _find_commit(talk: Talk, config: HubConfig, mark: str, parent: str) -> Sent | None:
    """The commit with this mark, if the branch is no longer at its parent; UserError if another's commit is there."""
    head = talk.api.model_info(talk.repo, revision=config.revision).sha
    if head == parent:
        return None
    for commit in talk.api.list_repo_commits(talk.repo, revision=config.revision):
        if mark in commit.message:
            return Sent(commit.commit_id, _page(talk, config), unchanged=False)
    raise _moved(talk, head)


def _find_request(talk: Talk, mark: str) -> Sent | None:
    """The commit of a recent pull request with this mark, and its page."""
    refs = talk.api.list_repo_refs(talk.repo, include_pull_requests=True).pull_requests or []
    numbers = sorted((int(ref.ref.rsplit("/", 1)[1]) for ref in refs), reverse=True)
    for number in numbers[:RECENT]:
        for commit in talk.api.list_repo_commits(talk.repo, revision=f"refs/pr/{number}"):
            if mark in commit.message:
                page = f"{talk.api.endpoint}/{talk.repo}/discussions/{number}"
                return Sent(commit.commit_id, page, unchanged=False)
    return None


def _moved(talk: Talk, head: str) -> UserError:
    return UserError(f"{talk.repo} has moved meanwhile, to {head[:8]} of another: push again, on top of that")


# -- after the commit --------------------------------------------------------------------------------------------------


def _compare(talk: Talk, hashes: Mapping[str, str], commit: str) -> None:
    """Download what was sent, each file into an empty cache, and compare hashes."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    made = f"{talk.repo} has the commit {commit[:8]}"
    for path, sha256 in hashes.items():
        with tempfile.TemporaryDirectory() as cache:
            where = {"filename": path, "revision": commit, "cache_dir": cache}
            what, missing = f"{made}; reading {path} back", (RemoteEntryNotFoundError,)
            try:
                local = talk.ask(what, lambda w=where: talk.api.hf_hub_download(talk.repo, **w), through=missing)
            except missing as error:
                raise UserError(
                    f"{made}, without {path}: does a .gitignore there name it? Mend it, push again"
                ) from error
            if hash_file(Path(local)) != sha256:
                raise UserError(
                    f"{made}, but {path} came back with other bytes than were sent: push again, which compares again; "
                    f"if it differs still, delete {path} there first"
                )


def _tag(talk: Talk, tag: str, commit: str) -> None:
    """Tag the commit; a tag of that name that somebody else made meanwhile is an error."""
    what = f"{talk.repo} has the commit {commit[:8]}; tagging it {tag}"
    talk.ask(what, lambda: talk.api.create_tag(talk.repo, tag=tag, revision=commit, exist_ok=True))
    refs = talk.ask(what, lambda: talk.api.list_repo_refs(talk.repo))
    if (tag, commit) not in [(found.name, found.target_commit) for found in refs.tags]:
        raise UserError(f"{what} failed: somebody made that tag meanwhile, at another commit: choose another --hub.tag")


# -- patience ----------------------------------------------------------------------------------------------------------


class Talk:
    """What is asked of one repository through huggingface_hub, and how long trouble may last.

    The client tries uploads and downloads again by itself, with no end in sight: it sets no timeouts there, and sleeps
    for as long as a server says. It tells nobody of that, so each of its requests is watched: `watch`. What it does
    not try again (who a token belongs to, making a repository, the commit) is tried again here: `ask`. One clock is
    for both: it runs from the first failure, and stops when something new is achieved.
    """

    def __init__(self, repo: str, token: str | None, limit: float, say: Callable[[str], None]):
        from huggingface_hub import HfApi

        self.repo, self.token, self.limit, self.say = repo, token, limit, say
        self.api = HfApi(token=token or False)
        self.what, self.reason = "", ""  # what is being done, and why it failed last
        self.since: float | None = None  # when trouble began
        self.failing: set[tuple] = set()  # requests that have not been answered well yet
        self.done: set[tuple] = set()  # requests that were

    def ask(self, what: str, call: Callable[[], T], through: tuple[type[Exception], ...] = ()) -> T:
        """The answer to a call, tried again while there is hope; UserError otherwise. `through` is for the caller."""
        from huggingface_hub.errors import HTTPError

        self.what, wait = what, FIRST_WAIT
        while True:
            try:
                answer = call()
            except through:
                raise
            except (HTTPError, OSError, RuntimeError, ValueError) as error:
                mishap = self.diagnose(error)
                if not mishap.passing:
                    raise UserError(f"{what} failed: {mishap.reason}") from error
                pause = max(wait, mishap.wait)
                if self.trouble(mishap.reason) + pause > self.limit:
                    raise self.verdict(mishap.reason, mishap.wait) from error
            else:
                self.since = None
                self.failing.clear()
                return answer
            self.say(f"{what}: {mishap.reason}; trying again in {pause:.0f} s")
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)

    def watch(self, client: Any) -> Any:
        """A client of huggingface_hub that gives up on silence, and on trouble that lasts."""
        from huggingface_hub.errors import HTTPError

        send = client.send

        def send_watched(request: Any, **how: Any) -> Any:
            given = request.extensions.get("timeout") or {}  # None is for ever
            names = ("connect", "read", "write", "pool")
            request.extensions["timeout"] = {name: min(given.get(name) or SILENCE, SILENCE) for name in names}
            key, started = (request.method, request.url.host, request.url.path), time.monotonic()
            if self.since is not None and started - self.since > self.limit:
                raise self.verdict(self.reason)
            try:
                response = send(request, **how)
            except HTTPError as error:
                self.trouble(describe_silence(error, self.plain(error)), key, started)
                raise
            if not is_passing(response.status_code):
                self.achieved(key)
            elif self.trouble(describe(response), key, started) + asked_to_wait(response.headers) > self.limit:
                response.close()
                raise self.verdict(self.reason, asked_to_wait(response.headers))
            return response

        client.send = send_watched
        return client

    def trouble(self, reason: str, key: tuple = (), started: float | None = None) -> float:
        """Note a failure; seconds since trouble began."""
        self.reason, now = reason, time.monotonic()
        self.failing.add(key)
        # A request that took so long was not silent: its bytes moved, and until then all was well.
        if self.since is None or (started is not None and now - started > 3 * SILENCE):
            self.since = now
        return now - self.since

    def achieved(self, key: tuple) -> None:
        """Note that a request was answered well."""
        self.failing.discard(key)
        if key not in self.done or not self.failing:
            self.since = None
        self.done.add(key)

    def verdict(self, reason: str, wait: float = 0) -> UserError:
        """The error of patience that has come to its end, or is asked for more than there is."""
        if wait > self.limit:
            return UserError(f"{self.what} failed: {reason}, and asks to wait {wait:.0f} s")
        return UserError(f"{self.what} failed, and did so for {self.limit:.0f} s: {reason}")

    def diagnose(self, error: BaseException) -> Mishap:
        """What an error of the client means: the first one in its chain of causes that tells."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

        cause: BaseException | None = error
        while cause is not None:
            text = self.plain(cause)
            if isinstance(cause, UserError):
                raise cause
            if isinstance(cause, OfflineModeIsEnabled):
                return Mishap("HF_HUB_OFFLINE is set: unset it, with a network", passing=False)
            if isinstance(cause, HfHubHTTPError):
                mishap = self.diagnose_answer(cause)
                if cause is not error and isinstance(
                    error, RuntimeError
                ):  # "Error while uploading 'a.bin' to the Hub."
                    return replace(mishap, reason=f"{self.plain(error)} {mishap.reason}")
                if cause is not error and isinstance(error, ValueError):  # "Invalid metadata in README.md. - ..."
                    return replace(mishap, reason=self.plain(error))
                return mishap
            if isinstance(cause, HTTPError):
                return Mishap(describe_silence(cause, text), passing=True)
            if isinstance(cause, json.JSONDecodeError):  # the page of a proxy that says 503 in HTML
                return Mishap("the answer is not JSON", passing=True)
            broken = ("client has been closed", "Consistency check failed")  # by another thread; cut short
            if isinstance(cause, (ConnectionError, TimeoutError)) or any(words in text for words in broken):
                refused = re.search(r"HTTP status client error \(4(?!08|29)", text)  # xet has one class for all
                return Mishap(text, passing=not refused)
            cause = cause.__cause__
        return Mishap(self.plain(error), passing=False)

    def diagnose_answer(self, error: Any) -> Mishap:
        """What an answer that is an error means."""
        from huggingface_hub.errors import RepositoryNotFoundError

        status, words = error.response.status_code, self.plain(error.server_message or "")
        reason = describe(error.response) + (f" ({words})" if words else "")
        if is_passing(status):
            return Mishap(reason, passing=True, wait=asked_to_wait(error.response.headers))
        if isinstance(error, RepositoryNotFoundError):
            reason += f": {self.repo} is missing, or hidden from this token: {LOGIN}"
        elif status in (401, 403) and str(error.response.request.url).startswith(self.api.endpoint):
            reason += f": the token is wrong, or may not do that: {LOGIN}"
        return Mishap(reason, passing=False)

    def plain(self, text: object) -> str:
        """A text in one line, without the token and the signatures of URLs."""
        line = re.sub(r"(https?://[^\s?]+)\?\S*", r"\1", " ".join(str(text).split()))
        return (line.replace(self.token, "***") if self.token else line)[:300]


def is_passing(status: int) -> bool:
    """Is an answer of this status worth another try?

    409 and 412 say that another is at work, or has moved the branch: the next try looks whether that was us.
    """
    return status in (408, 409, 412, 429) or status >= 500


def asked_to_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait: Retry-After, or the rest of a window that is used up (`"api";r=0;t=55`)."""
    seconds = headers.get("retry-after", "")
    window = re.search(r"\br=0;\s*t=(\d+)", headers.get("ratelimit", ""))
    return float(seconds) if seconds.isdigit() else float(window[1]) if window else 0


def describe(response: Any) -> str:
    """An answer that is an error, in words."""
    return f"{response.request.url.host} answered {response.status_code} {response.reason_phrase}".rstrip()


def describe_silence(error: Any, text: str) -> str:
    """An answer that never came, in words."""
    name, host = type(error).__name__, error.request.url.host
    if "Timeout" in name:
        return f"nothing from {host} for {SILENCE:.0f} s"
    return f"no connection to {host} ({text})" if "Connect" in name else f"the connection to {host} broke ({name})"


@contextmanager
def talk_with(repo_id: str, limit: float, say: Callable[[str], None], token_needed: bool = True) -> Iterator[Talk]:
    """A talk with the Hub, during which huggingface_hub shows no bars and warnings of its own."""
    from huggingface_hub import get_token, set_client_factory
    from huggingface_hub.utils import (
        _http,
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    token = get_token()
    if token_needed and not token:
        raise UserError(f"no token for {repo_id}: {LOGIN}")
    if token and not re.fullmatch(r"[!-~]+", token):  # the client's error would show it
        raise UserError(f"the token for {repo_id} has characters that no token has: {LOGIN}")
    talk = Talk(repo_id, token, limit, say)
    # There is no public way to ask for the factory; a user's own, such as one with a proxy, is kept.
    factory, loud, bars = _http._GLOBAL_CLIENT_FACTORY, logging.get_verbosity(), not are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        disable_progress_bars()
        set_client_factory(lambda: talk.watch(factory()))
        try:
            yield talk
        finally:
            set_client_factory(factory)
            logging.set_verbosity(loud)
            if bars:
                enable_progress_bars()


def get_info(talk: Talk, revision: str | None) -> Any:
    """What the Hub says of the repository at a branch; None where there is none, or none that the token may see."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    missing = (RepositoryNotFoundError, RevisionNotFoundError)
    try:
        return talk.ask(
            f"looking at {talk.repo}", lambda: talk.api.model_info(talk.repo, revision=revision), through=missing
        )
    except missing:
        return None


def get_tree(talk: Talk, commit: str) -> dict[str, Any]:
    """The files of a commit, by path, as the Hub lists them: with sizes and hashes."""
    from huggingface_hub.hf_api import RepoFile

    listed = talk.ask(
        f"listing the files of {talk.repo}",
        lambda: list(talk.api.list_repo_tree(talk.repo, recursive=True, revision=commit)),
    )
    return {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}


def read_text(talk: Talk, path: str, commit: str) -> str | None:
    """The text of a file of a commit; None if it has none of that name."""
    what, where = f"reading {path} of {talk.repo}", {"revision": commit}
    listed = talk.ask(what, lambda: talk.api.get_paths_info(talk.repo, [path], **where))
    if not listed:
        return None
    with tempfile.TemporaryDirectory() as cache:
        local = Path(talk.ask(what, lambda: talk.api.hf_hub_download(talk.repo, path, cache_dir=cache, **where)))
        if not same_file(listed[0], local, hash_file(local)):  # the client looks at sizes only
            raise UserError(f"{what} failed: it came with other bytes than are there; try again")
        return local.read_bytes().decode("utf-8", errors="replace")  # its ends of lines as they are


def read_manifest(text: str | None) -> dict[str, Any] | None:
    """What verification.json says; None where that is not what a push writes."""
    try:
        manifest = json.loads(text or "null")
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None
