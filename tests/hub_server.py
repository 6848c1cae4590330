"""What does a Hub answer? A small stand-in on loopback for the real huggingface_hub client, with faults to switch on.

    with running_hub(folder) as hub:
        hub.fault("commit", "lost")  # the next commit is made, but its answer never comes
        subprocess.run(command, env=os.environ | hub.environment("hf_write_me"))
        assert hub.files("me/my-model")["README.md"] == b"..."

By hand: `python tests/hub_server.py --folder DIR [--port N]`; faults by POST to /_faults. Models only, and no xet: the
client needs HF_HUB_DISABLE_XET=1. Shapes of answers follow the client's source; the texts of errors are near the Hub's.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import codecs
import contextlib
import fnmatch
import hashlib
import json
import re
import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

TOKENS = {"hf_write_me": ("me", "write"), "hf_read_me": ("me", "read"), "hf_write_you": ("you", "write")}
ORGANIZATIONS = {"me": ["team"], "you": []}
KINDS = ("cut", "cut_body", "silent", "lost", "wrong_bytes")  # or the status of an answer: 403, 429, 500, 503
WITH_FILES = ("put", "commit", "resolve", "cdn")  # the steps that carry the bytes of files
LARGE = ("*.bin", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.parquet", "*.pt", "*.pth", "*.safetensors")
ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE).encode()
MODEL = "/api/models/{repo:repo}"
PAGES = {  # what is asked -> the method of Call that answers: the step
    "GET /api/whoami-v2": "whoami",
    "POST /api/repos/create": "create",
    "POST /api/validate-yaml": "validate",
    f"GET {MODEL}": "info",
    f"GET {MODEL}/revision/{{revision}}": "info",
    f"GET {MODEL}/tree/{{revision}}": "tree",
    f"GET {MODEL}/tree/{{revision}}/{{path}}": "tree",
    f"POST {MODEL}/paths-info/{{revision}}": "paths",
    f"GET {MODEL}/refs": "refs",
    f"GET {MODEL}/commits/{{revision}}": "commits",
    f"POST {MODEL}/tag/{{revision}}": "tag",
    f"POST {MODEL}/branch/{{branch}}": "branch",
    f"POST {MODEL}/preupload/{{revision}}": "preupload",
    "POST /{repo:repo}.git/info/lfs/objects/batch": "batch",
    "PUT /objects/{repo:repo}/{sha256}": "put",
    "POST /{repo:repo}.git/info/lfs/objects/verify": "verify",
    f"POST {MODEL}/commit/{{revision}}": "commit",
    "GET /{repo:repo}/resolve/{revision}/{path:path}": "resolve",
    "GET /api/resolve-cache/models/{repo:repo}/{revision}/{path:path}": "resolve",
    "GET /objects/{repo:repo}/{sha256}": "cdn",
}
STEPS = sorted(set(PAGES.values()))


@dataclass
class Fault:
    """What goes wrong at a step, and how many times more (None: for ever)."""

    step: str
    kind: int | str
    times: int | None
    seconds: float


@dataclass
class Repo:
    """Refs point at commits; a commit holds its whole list of files and never changes."""

    id: str
    private: bool = False
    gated: bool = False  # set it on `hub.repos[...]`: then only members may download
    refs: dict[str, str] = field(default_factory=dict)  # refs/heads/main, refs/tags/v1, refs/pr/1 -> commit
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)

    def find(self, revision: str) -> str | None:
        """The commit of a branch, tag, ref or (short) hash."""
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.refs[ref]
        return next((oid for oid in self.commits if len(revision) >= 7 and oid.startswith(revision)), None)


class Refusal(Exception):
    """An answer that is an error; the client picks its exception by the code."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.answer = JSONResponse({"error": message, **body}, status)
        self.answer.headers["X-Error-Message"] = message.encode("ascii", "replace").decode()
        if code is not None:
            self.answer.headers["X-Error-Code"] = code


class Cut(Response):
    """No answer, or half of one; then the connection is closed."""

    def __init__(self, half_of: Response | None = None) -> None:
        super().__init__()
        self.half_of = half_of

    async def __call__(self, scope, receive, send) -> None:
        if (whole := self.half_of) is not None:
            await send({"type": "http.response.start", "status": whole.status_code, "headers": whole.raw_headers})
            await send({"type": "http.response.body", "body": whole.body[: len(whole.body) // 2], "more_body": True})
        scope["state"]["transport"].close()
        while (await receive())["type"] != "http.disconnect":  # else uvicorn would try to answer 500
            pass


class Wire(H11Protocol):
    """uvicorn's protocol; a request can reach the connection that it came by."""

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}
        # asyncio leaves it off for a socket that it was handed; then each body waits 40 ms for the client's ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class RepoName(StringConvertor):
    """`namespace/name`, or a bare name, which is never there."""

    regex = "[^/]+(?:/[^/]+)?"


register_url_convertor("repo", RepoName())


class Hub:
    """Repositories in a folder, and what a test asks and does to them."""

    def __init__(self, folder: Path, endpoint: str, cdn: str) -> None:
        self.folder, self.endpoint, self.cdn = folder, endpoint, cdn
        self.requests: list[tuple[str, str, str]] = []  # method, step, path
        self.faults: list[Fault] = []
        self.secret = uuid.uuid4().hex  # signs the URLs of objects, which are read and written without a token
        self.state = folder / "repos.json"
        kept = json.loads(self.state.read_text("utf-8")) if self.state.exists() else []
        self.repos = {repo["id"]: Repo(**repo) for repo in kept}

    def fault(self, step: str, kind: int | str, times: int | None = 1, seconds: float = 1) -> None:
        """Let a step go wrong: the next `times` requests of it, or all until `clear` (None).

        A request is read to its end before anything goes wrong. `silent` holds for `seconds`, and answers who still
        waits; 429 gives them as Retry-After. `cut_body` and `wrong_bytes` pass over a HEAD, whose answer has no body.
        """
        if step not in STEPS or not (kind in KINDS or kind in range(400, 600)):
            raise ValueError(f"no fault {kind!r} at step {step!r}; steps: {STEPS}, kinds: a status or {KINDS}")
        if kind == "wrong_bytes" and step not in WITH_FILES:
            raise ValueError(f"{step} carries no bytes of files; steps that do: {WITH_FILES}")
        self.faults.append(Fault(step, kind, times, seconds))

    def clear(self) -> None:
        """No more faults, and no requests seen."""
        self.faults.clear()
        self.requests.clear()

    def head(self, repo: str, revision: str = "main") -> str | None:
        """The commit that a revision stands at; None if there is no such repository or revision."""
        return self.repos[repo].find(revision) if repo in self.repos else None

    def commits(self, repo: str, revision: str = "main") -> list[dict[str, Any]]:
        """The commits up to a revision, newest first, each with id, author, title and message."""
        kept, oid, found = self.repos[repo].commits, self.head(repo, revision), []
        while oid is not None:
            found.append({"id": oid, **kept[oid]})
            oid = kept[oid]["parent"]
        return found

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The bytes of each file, as they are stored."""
        entries = self.repos[repo].commits[self.head(repo, revision)]["files"]
        return {path: self.object(repo, entry["sha256"]).read_bytes() for path, entry in entries.items()}

    def add(self, name: str, files: Mapping[str, bytes] | None = None, private: bool = False) -> Repo:
        """A repository, made here rather than by a client; these files are in its second commit."""
        repo = self.repos[name] = Repo(name, private)
        owner, listed = name.split("/")[0], {".gitattributes": self.keep(name, ATTRIBUTES)}
        self.commit(repo, "refs/heads/main", None, listed, owner, "initial commit")
        if files:
            listed |= {path: self.keep(name, data, is_lfs(path, data[:512], len(data))) for path, data in files.items()}
            self.commit(repo, "refs/heads/main", self.head(name), listed, owner, "Upload files")
        return repo

    def environment(self, token: str | None = None, home: Path | None = None) -> dict[str, str]:
        """What points a client at this server, over the variables that it has; its cache is in `home`."""
        home = home or self.folder / "home"
        places = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
        return places | switches | {"HF_TOKEN": token or "", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def object(self, repo: str, sha256: str) -> Path:
        """Where the content with this hash is kept."""
        return self.folder / "objects" / repo / sha256

    def keep(self, repo: str, data: bytes, lfs: bool = False, wrong: bool = False) -> dict[str, Any]:
        """Store content under its hash; what a commit lists for it."""
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.object(repo, sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name("part")
        part.write_bytes(flipped(data) if wrong else data)
        part.replace(path)  # in one step: a test may be reading it
        return listed_lfs(sha256, len(data)) if lfs else {"oid": git_oid(data), "size": len(data), "sha256": sha256}

    def intact(self, repo: str, sha256: str, size: int) -> bool:
        """Is this content here, whole?"""
        path = self.object(repo, sha256)
        data = path.read_bytes() if path.exists() else b""
        return (len(data), hashlib.sha256(data).hexdigest()) == (size, sha256)

    def commit(self, repo: Repo, ref: str, parent: str | None, files: dict, author: str, title: str, message="") -> str:
        """Add a commit, and only then move the ref to it."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        made = {"parent": parent, "author": author, "date": now, "title": title, "message": message, "files": files}
        oid = hashlib.sha1(json.dumps([len(repo.commits), made]).encode()).hexdigest()
        repo.commits[oid] = made
        self.point(repo, ref, oid)
        return oid

    def point(self, repo: Repo, ref: str, oid: str) -> None:
        """Move a ref, or make it, and write the state."""
        repo.refs[ref] = oid
        self.state.write_text(json.dumps([asdict(repo) for repo in self.repos.values()]), "utf-8")

    def object_url(self, repo: str, sha256: str) -> str:
        """The signed URL of an object at the storage, good without a token."""
        path = f"/objects/{repo}/{sha256}"
        return f"{self.cdn}{path}?signature={hashlib.sha256((self.secret + path).encode()).hexdigest()}"

    def take(self, step: str, method: str) -> Fault | None:
        """The fault that this request meets, if any."""
        for fault in self.faults:
            if fault.step == step and not (method == "HEAD" and fault.kind in ("cut_body", "wrong_bytes")):
                fault.times = fault.times and fault.times - 1
                if fault.times == 0:
                    self.faults.remove(fault)
                return fault
        return None

    async def answer(self, step: str, request: Request) -> Response:
        """The answer to a request, or that of the fault that it meets."""
        body = await request.body()
        self.requests.append((request.method, step, unquote(request.url.path)))
        fault = self.take(step, request.method)
        kind = fault.kind if fault else None
        if kind == "cut":
            return Cut()
        if isinstance(kind, int):
            answer = Refusal(kind, "A fault was asked for").answer
            if kind == 429:
                answer.headers["Retry-After"] = str(int(fault.seconds))
            return answer
        if kind == "silent":
            try:
                await asyncio.wait_for(request.receive(), fault.seconds)
                return Cut()  # the client has gone: nothing is done
            except asyncio.CancelledError:  # the server stops
                return Cut()
            except TimeoutError:
                pass
        call = Call(self, request, body, wrong=kind == "wrong_bytes")
        answer = call.answer(step)  # no `await` in there: no other request comes between
        if kind in ("lost", "cut_body"):
            return Cut(answer if kind == "cut_body" else None)
        if call.wrong and request.method == "GET":
            answer.body = flipped(answer.body)
        return answer


class Call:
    """One request, read to its end, and what answers it at each step; what is not a Response goes out as JSON."""

    def __init__(self, hub: Hub, request: Request, body: bytes, wrong: bool) -> None:
        self.hub, self.body, self.wrong = hub, body, wrong
        self.path, self.headers = request.url.path, request.headers
        self.values = dict(request.query_params) | {name: unquote(part) for name, part in request.path_params.items()}
        self.token = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.user, self.role = TOKENS.get(self.token, (None, None))
        self.namespaces = [self.user, *ORGANIZATIONS[self.user]] if self.user else []

    def answer(self, step: str) -> Response:
        """The answer of a step, or its refusal."""
        try:
            if self.token and self.user is None:
                raise Refusal(401, "Invalid credentials in Authorization header")
            answer = getattr(self, step)()
        except Refusal as refusal:
            return refusal.answer
        return answer if isinstance(answer, Response) else JSONResponse(answer)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def readable(self) -> Repo:
        """The repository that is asked for; a private one is not there for others."""
        repo = self.hub.repos.get(self.values["repo"])
        if repo is None or (repo.private and not self.is_member(repo)):
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return repo

    def is_member(self, repo: Repo) -> bool:
        return repo.id.split("/")[0] in self.namespaces

    def writable(self, pull_request: bool = False) -> Repo:
        """The repository that is asked for, if the token may write to it; a pull request may come from anyone."""
        repo = self.readable()
        if self.user is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if self.role != "write":
            raise Refusal(403, "Forbidden: you must use a write token to upload to a repository.")
        if not pull_request and not self.is_member(repo):
            raise Refusal(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    def commit_of(self, repo: Repo, revision: str | None = None) -> tuple[str, dict[str, dict]]:
        """A commit, by default of the revision that is asked for, and its files."""
        revision = revision or self.values.get("revision", "main")
        if (oid := repo.find(revision)) is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid, repo.commits[oid]["files"]

    def whoami(self):
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in ORGANIZATIONS[self.user]]
        token = {"displayName": f"{self.role} token", "role": self.role, "createdAt": "2026-01-01T00:00:00.000Z"}
        user = {"type": "user", "id": f"id-{self.user}", "name": self.user, "email": f"{self.user}@example.org"}
        return user | {"orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}

    def create(self):
        wanted = self.json
        namespace = wanted.get("organization") or self.user
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        if self.role != "write" or namespace not in self.namespaces:
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        if wanted.get("type", "model") != "model":
            raise Refusal(400, "This stand-in keeps models only")
        name = f"{namespace}/{wanted['name']}"
        url = f"{self.hub.endpoint}/{name}"
        if name in self.hub.repos:
            raise Refusal(409, "You already created this model repo", url=url)
        self.hub.add(name, private=wanted.get("visibility") == "private" or wanted.get("private", False))
        return {"url": url, "name": name}

    def validate(self):
        try:
            card = front_matter(self.json["content"]) or {}
            for model in card.get("model-index", []):
                model["name"]
                for result in model["results"]:
                    result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]
                    for metric in result["metrics"]:
                        metric["type"], metric["value"]
        except (yaml.YAMLError, AttributeError, TypeError, KeyError) as wrong:
            message = f"Invalid metadata: {type(wrong).__name__}: {wrong}"
            return JSONResponse({"errors": [{"message": message}], "warnings": []}, 400)
        return {"errors": [], "warnings": [] if card else [{"message": "empty or missing yaml metadata in repo card"}]}

    def info(self):
        repo = self.readable()
        oid, files = self.commit_of(repo)
        siblings, card = [], {}
        for path, file in sorted(files.items()):
            siblings.append({"rfilename": path})
            if "blobs" in self.values:
                siblings[-1] |= {"size": file["size"], "blobId": file["oid"]}
                if "lfs" in file:
                    siblings[-1]["lfs"] = {**file["lfs"], "sha256": file["sha256"]}
        if "README.md" in files:
            with contextlib.suppress(yaml.YAMLError):
                card = front_matter(self.hub.object(repo.id, files["README.md"]["sha256"]).read_text("utf-8")) or {}
        shown = {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        shown |= {"id": repo.id, "modelId": repo.id, "author": repo.id.split("/")[0], "sha": oid, "siblings": siblings}
        shown |= {"private": repo.private, "gated": "auto" if repo.gated else False, "disabled": False, "downloads": 0}
        shown |= {"cardData": card or None, "lastModified": repo.commits[oid]["date"]}
        return shown | {"tags": card.get("tags", []) + [card[key] for key in shown if key in card]}

    def tree(self):
        _, files = self.commit_of(self.readable())
        top = f"{self.values['path']}/" if self.values.get("path") else ""
        inside = {path.removeprefix(top): entry for path, entry in entries(files).items() if path.startswith(top)}
        if top and not inside:
            raise Refusal(404, f"{top} does not exist", "EntryNotFound")
        deep = self.values.get("recursive") == "true"
        return [entry for path, entry in inside.items() if deep or "/" not in path]

    def paths(self):
        shown = entries(self.commit_of(self.readable())[1])
        return [shown[path] for path in parse_qs(self.body.decode()).get("paths", []) if path in shown]

    def refs(self):
        groups: dict[str, list] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        kinds = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
        for ref, oid in self.readable().refs.items():
            _, kind, name = ref.split("/", 2)
            groups[kinds[kind]].append({"name": ref if kind == "pr" else name, "ref": ref, "targetCommit": oid})
        return groups

    def commits(self):
        repo = self.readable()
        made = self.hub.commits(repo.id, self.commit_of(repo)[0])
        keys = ("id", "date", "title", "message")
        return [{key: commit[key] for key in keys} | {"authors": [{"user": commit["author"]}]} for commit in made]

    def tag(self):
        return self.new_ref(f"refs/tags/{self.json['tag']}", None)

    def branch(self):
        return self.new_ref(f"refs/heads/{self.values['branch']}", self.json.get("startingPoint"))

    def new_ref(self, ref: str, revision: str | None):
        repo = self.writable()
        oid, _ = self.commit_of(repo, revision)
        if ref in repo.refs:
            raise Refusal(409, f"Reference already exists: {ref}")
        self.hub.point(repo, ref, oid)
        return {"ref": ref, "targetCommit": oid}

    def preupload(self):
        _, there = self.commit_of(self.writable("create_pr" in self.values))
        files = []
        for file in self.json["files"]:
            mode = "lfs" if is_lfs(file["path"], base64.b64decode(file["sample"]), file["size"]) else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            if (old := there.get(file["path"])) is not None:
                files[-1]["oid"] = old["sha256" if "lfs" in old else "oid"]  # the client leaves out what is the same
        return {"files": files}

    def batch(self):
        repo = self.writable(pull_request=True)
        objects = []
        for wanted in self.json["objects"]:
            objects.append({"oid": wanted["oid"], "size": wanted["size"], "authenticated": True})
            if not self.hub.intact(repo.id, wanted["oid"], wanted["size"]):
                upload = self.hub.object_url(repo.id, wanted["oid"])
                verify = f"{self.hub.endpoint}/{repo.id}.git/info/lfs/objects/verify"
                objects[-1]["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        return {"transfer": "basic", "objects": objects}

    def signed_object(self) -> Path:
        """Where the object of a signed URL is kept; as at S3, a token has no business here."""
        place = self.values["repo"], self.values["sha256"]
        if self.hub.object_url(*place).split("=")[1] != self.values.get("signature"):
            raise Refusal(403, "SignatureDoesNotMatch")
        if self.token:
            raise Refusal(400, "Only one auth mechanism allowed")
        return self.hub.object(*place)

    def put(self):
        if hashlib.sha256(self.body).hexdigest() != self.signed_object().name:
            raise Refusal(400, "The SHA-256 of what was sent is not that of the URL")
        self.hub.keep(self.values["repo"], self.body, wrong=self.wrong)
        return Response()

    def verify(self):
        if not self.hub.intact(self.writable(pull_request=True).id, self.json["oid"], self.json["size"]):
            raise Refusal(422, "The object is not here, or is not what was announced")
        return {}

    def commit(self):
        is_pull_request = "create_pr" in self.values
        repo, revision = self.writable(is_pull_request), self.values["revision"]
        head, _ = self.commit_of(repo)
        header, *changes = (json.loads(line) for line in self.body.splitlines() if line.strip())
        header = header["value"]
        parent, files = self.commit_of(repo, header.get("parentCommit"))
        ref = revision if revision.startswith("refs/pr/") else f"refs/heads/{revision}"
        number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
        if is_pull_request:
            ref = f"refs/pr/{number}"
        elif ref not in repo.refs:
            raise Refusal(404, f"Not a branch: {revision}", "RevisionNotFound")
        elif parent != head:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = self.changed(repo, dict(files), changes)
        oid = self.hub.commit(repo, ref, parent, files, self.user, header["summary"], header["description"])
        url = f"{self.hub.endpoint}/{repo.id}"
        asked = {"pullRequestUrl": f"{url}/discussions/{number}"} if is_pull_request else {}
        return {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}", "hookOutput": ""} | asked

    def changed(self, repo: Repo, files: dict[str, dict], changes: list[dict]) -> dict[str, dict]:
        """The list of files after the changes of a commit, in their order."""
        for change in changes:
            key, value, path = change["key"], change["value"], change["value"]["path"]
            if key == "file":
                files[path] = self.hub.keep(repo.id, base64.b64decode(value["content"]), wrong=self.wrong)
            elif key == "lfsFile":
                if not self.hub.intact(repo.id, value["oid"], value["size"]):
                    raise Refusal(400, f"An LFS pointer pointed to a file that does not exist: {path}")
                files[path] = listed_lfs(value["oid"], value["size"])
            else:
                prefix = {"deletedFile": path, "deletedFolder": path.rstrip("/") + "/"}[key]
                gone = [name for name in files if name == path or (key == "deletedFolder" and name.startswith(prefix))]
                if not gone:
                    raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
                files = {name: file for name, file in files.items() if name not in gone}
        return files

    def resolve(self):
        """A large file is at the storage, any other at the resolve cache, pinned to the commit; there, its bytes."""
        repo = self.readable()
        if repo.gated and not self.is_member(repo):
            raise Refusal(403 if self.user else 401, f"Access to model {repo.id} is restricted.", "GatedRepo")
        oid, files = self.commit_of(repo)
        file = files.get(self.values["path"])
        if file is None:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.answer.headers["X-Repo-Commit"] = oid  # so that the client can remember that it is not there
            raise refusal
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file["oid"]}"'}
        if "lfs" in file:
            headers |= {"X-Linked-Etag": f'"{file["sha256"]}"', "X-Linked-Size": str(file["size"])}
            return Response(b"", 302, headers | {"Location": self.hub.object_url(repo.id, file["sha256"])})
        if self.path.startswith("/api/resolve-cache/"):
            return self.content(self.hub.object(repo.id, file["sha256"]), headers)
        location = f"/api/resolve-cache/models/{repo.id}/{oid}/{quote(self.values['path'])}"
        return Response(b"", 307, headers | {"Location": location})

    def cdn(self):
        path = self.signed_object()
        return self.content(path, {"ETag": f'"{path.name}"'})

    def content(self, path: Path, headers: dict[str, str]) -> Response:
        """The bytes of a file, or those of the range that is asked for."""
        data, headers = path.read_bytes(), headers | {"Accept-Ranges": "bytes"}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if span is None:
            return Response(data, 200, headers, "application/octet-stream")
        start, stop = int(span[1]), min(int(span[2] or len(data)) + 1, len(data))
        if start >= stop:
            return Response(b"", 416, headers | {"Content-Range": f"bytes */{len(data)}"})
        return Response(data[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


def flipped(data: bytes) -> bytes:
    """The same with one bit of its middle byte changed."""
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 1 for byte in data[middle : middle + 1]) + data[middle + 1 :]


def git_oid(data: bytes) -> str:
    """What git calls this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def listed_lfs(sha256: str, size: int) -> dict[str, Any]:
    """What a commit lists for a large file."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    lfs = {"size": size, "pointerSize": len(pointer)}
    return {"oid": git_oid(pointer), "size": size, "sha256": sha256, "lfs": lfs}


def is_lfs(path: str, sample: bytes, size: int) -> bool:
    """Is a file kept apart from git: by .gitattributes, from 10 MiB on, or since its first bytes are no text?"""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)  # the sample may end inside a character
    except UnicodeDecodeError:
        return True
    return size >= 10 * 2**20 or b"\0" in sample or any(fnmatch.fnmatch(path, pattern) for pattern in LARGE)


def front_matter(text: str) -> Any:
    """The metadata at the top of a card; None if it has none."""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    return json.loads(json.dumps(yaml.safe_load(match[1]), default=str)) if match else None


def entries(files: Mapping[str, dict]) -> dict[str, dict]:
    """Files and folders as the API shows them, by path."""
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    shown = {path: {"type": "directory", "oid": git_oid(path.encode()), "size": 0, "path": path} for path in folders}
    for path, file in files.items():
        shown[path] = {"type": "file", "oid": file["oid"], "size": file["size"], "path": path}
        if "lfs" in file:
            shown[path]["lfs"] = {**file["lfs"], "oid": file["sha256"]}
    return dict(sorted(shown.items()))


def application(hub: Hub):
    """The pages of a hub, and `/_faults` for tests in other processes: POST the arguments of `fault`, DELETE clears."""

    def route(asked: str, step: str) -> Route:
        async def answer(request: Request) -> Response:
            return await hub.answer(step, request)

        method, path = asked.split()
        return Route(path, answer, methods=[method])

    async def faults(request: Request) -> Response:
        hub.clear() if request.method == "DELETE" else hub.fault(**await request.json())
        return Response()

    routes = [Route("/_faults", faults, methods=["POST", "DELETE"]), *(route(*page) for page in PAGES.items())]
    starlette = Starlette(debug=True, routes=routes)  # debug: the traceback is in the answer 500

    async def app(scope, receive, send) -> None:
        # The path as it was sent: a revision such as refs%2Fpr%2F1 is one part of it.
        await starlette({**scope, "path": scope["raw_path"].decode()}, receive, send)

    return app


@contextlib.contextmanager
def running_hub(folder: Path, port: int = 0) -> Iterator[Hub]:
    """A Hub that listens in a thread, its state in `folder`; started again on the same folder it has the same repos."""
    folder.mkdir(parents=True, exist_ok=True)
    # The client drops its token only for another origin, so files have a port of their own, as they have a CDN.
    sockets = [socket.create_server(("127.0.0.1", number)) for number in (port, 0)]
    hub = Hub(folder, *(f"http://127.0.0.1:{each.getsockname()[1]}" for each in sockets))
    server = uvicorn.Server(uvicorn.Config(
        application(hub), http=Wire, ws="none", loop="asyncio", lifespan="off", log_config=None, log_level="critical",
        access_log=False, timeout_keep_alive=60,
    ))  # fmt: skip
    thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    thread.start()  # the sockets listen already, so there is nothing to wait for
    try:
        yield hub
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A stand-in Hub on loopback")
    parser.add_argument("--folder", type=Path, required=True, help="where its state is kept")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with running_hub(options.folder, options.port) as hub, contextlib.suppress(KeyboardInterrupt):
        print("\n".join(f"export {name}={value}" for name, value in hub.environment("hf_write_me").items()), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
