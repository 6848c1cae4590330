"""Does a push get there whole, whatever goes wrong on the way?"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Clock
from hub_server import TOKENS, Hub

from graftkit.errors import UserError
from graftkit.hub import client
from graftkit.hub.config import HubConfig

OLD = {"README.md": b"---\nlicense: mit\n---\nold\n", "config.json": b"{}", "model.safetensors": b"\0old" * 500}
NEW = {
    "README.md": b"---\nlicense: mit\n---\nnew\n", "config.json": b'{"a": 1}', "model.safetensors": b"\0new" * 600,
    "adapter/model.safetensors": b"\0adapter" * 90, "report.md": "häuser\n".encode(),
}  # fmt: skip
STEPS = (
    "create",
    "info",
    "paths",
    "tree",
    "validate",
    "preupload",
    "batch",
    "put",
    "verify",
    "commit",
    "resolve",
    "cdn",
)
KINDS = (500, 503, 429, 403, "cut", "cut_body", "silent", "lost", "wrong_bytes")
ARRIVED = ("resolve", "cdn")  # steps after the commit


def write(folder: Path, files: dict[str, bytes], manifest: bool = True) -> Path:
    """A folder of these files, and the manifest that a push puts beside them."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    if manifest:
        listed = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        (folder / "verification.json").write_text(json.dumps({"files": listed}))
    return folder


def push(folder: Path, name: str = "me/model", look: client.Remote | None = None, **options) -> client.Sent:
    """Look and send; lines, logs and errors on the way are one line each, and name no token."""
    config, lines = HubConfig(push_to=name, **options), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        return client.send(folder, config, look or client.look(config, lines.append), "title", lines.append)
    except UserError as error:
        lines.append(str(error))
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        assert not [line for line in lines for token in TOKENS if token in line or "signature=" in line or "\n" in line]


def stored(hub: Hub, name: str = "me/model", revision: str = "main") -> dict[str, bytes]:
    """The files of a repository, without what the Hub itself and a push put there."""
    files = hub.files(name, revision)
    return {path: data for path, data in files.items() if path not in (".gitattributes", "verification.json")}


def asked(hub: Hub, step: str) -> int:
    """How often a step was asked for."""
    return sum(step == seen for _, seen, _ in hub.requests)


def test_a_push_is_one_commit_and_the_next_one_none(hub: Hub, tmp_path: Path):
    folder = write(tmp_path / "new", NEW)
    sent = push(folder, message="mine")
    assert stored(hub) == NEW
    assert (sent.commit, sent.unchanged) == (hub.head("me/model"), False)
    assert sent.url == f"{hub.endpoint}/me/model"
    made = hub.commits("me/model")
    assert [commit["title"] for commit in made] == ["mine", "initial commit"]
    assert made[0]["message"].startswith("graftkit-push: ")
    hub.clear()
    assert push(folder) == client.Sent(sent.commit, sent.url, unchanged=True)
    assert len(hub.commits("me/model")) == 2
    assert asked(hub, "create") == asked(hub, "commit") == asked(hub, "put") == 0
    assert asked(hub, "cdn") == 2  # what is there is compared all the same


def test_the_client_is_left_as_it_was(hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture):
    """A factory that the user set is used, and is there again; so are bars and warnings. Nothing is printed."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http, are_progress_bars_disabled, enable_progress_bars, get_session, logging

    used, before = [], _http._GLOBAL_CLIENT_FACTORY

    def factory():
        used.append(before())
        return used[-1]

    set_client_factory(factory)
    enable_progress_bars()
    logging.set_verbosity_info()
    hub.fault("put", 503)
    try:
        push(write(tmp_path / "new", NEW))
        assert used
        assert _http._GLOBAL_CLIENT_FACTORY is factory
        assert not are_progress_bars_disabled()
        assert logging.get_verbosity() == logging.INFO
        assert get_session().send.__name__ == "send"  # not watched any more
    finally:
        set_client_factory(before)
        logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")


def test_files_of_an_earlier_push_go_and_those_of_others_stay(hub: Hub, tmp_path: Path):
    push(write(tmp_path / "old", OLD | {"old.txt": b"old", "gone.txt": b"gone"}))
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    theirs = [CommitOperationAdd("picture.png", b"\0png"), CommitOperationDelete("gone.txt")]
    HfApi(token="hf_write_me").create_commit("me/model", theirs, commit_message="by hand")
    remote = client.look(HubConfig(push_to="me/model"))
    assert remote.head == hub.head("me/model")
    assert remote.card == OLD["README.md"].decode()
    assert set(remote.manifest["files"]) == {*OLD, "old.txt", "gone.txt"}
    assert set(remote.files) == {*OLD, "old.txt", "picture.png", ".gitattributes", "verification.json"}
    push(write(tmp_path / "new", NEW), look=remote)
    assert stored(hub) == NEW | {"picture.png": b"\0png"}
    assert len(hub.commits("me/model")) == 4


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"files": ["README.md"]}', b"\xff"])
def test_a_manifest_that_is_none_deletes_nothing(hub: Hub, tmp_path: Path, content: bytes):
    hub.add("me/model", OLD | {"verification.json": content})
    assert client.look(HubConfig(push_to="me/model")).manifest is None
    push(write(tmp_path / "new", {"a.txt": b"a"}))
    assert stored(hub) == OLD | {"a.txt": b"a"}


def test_a_branch_is_made_and_starts_from_main(hub: Hub, tmp_path: Path):
    push(write(tmp_path / "old", OLD | {"old.txt": b"old"}))
    config = HubConfig(push_to="me/model", revision="dev")
    remote = client.look(config)
    assert (remote.head, remote.start, remote.card) == (None, hub.head("me/model"), OLD["README.md"].decode())
    sent = push(write(tmp_path / "new", NEW), revision="dev")
    assert sent.url.endswith("/me/model/tree/dev")
    assert stored(hub, revision="dev") == NEW
    assert stored(hub) == OLD | {"old.txt": b"old"}
    assert push(tmp_path / "new", revision="dev").unchanged
    assert push(tmp_path / "new", "me/other", revision="dev").commit == hub.head("me/other", "dev")
    assert stored(hub, "me/other", "dev") == NEW
    assert stored(hub, "me/other") == {}


def test_a_tag_is_set_and_never_moved(hub: Hub, tmp_path: Path):
    folder = write(tmp_path / "new", NEW)
    sent = push(folder, tag="v1")
    assert hub.head("me/model", "v1") == sent.commit
    assert push(folder, tag="v1").unchanged
    assert push(folder, tag="v2").unchanged
    assert hub.head("me/model", "v2") == sent.commit
    with pytest.raises(UserError, match=r"has a tag v1, at .*choose another --hub.tag"):
        push(write(tmp_path / "old", OLD), tag="v1")
    with pytest.raises(UserError, match=r"v1 of me/model is a tag or a commit: name a branch \(main\)"):
        push(tmp_path / "old", revision="v1")
    assert stored(hub) == NEW
    hub.fault("tag", "lost")
    assert push(folder, tag="v3").unchanged
    assert hub.head("me/model", "v3") == sent.commit


@pytest.mark.parametrize("fault", [None, "lost", pytest.param(500, marks=pytest.mark.slow)])
def test_a_pull_request_is_opened_once(hub: Hub, tmp_path: Path, fault: str | int | None):
    hub.add("you/model", OLD)
    head = hub.head("you/model")
    folder = write(tmp_path / "new", NEW)
    if fault:
        hub.fault("commit", fault)
    sent = push(folder, "you/model", create_pr=True)
    assert sent.url == f"{hub.endpoint}/you/model/discussions/1"
    assert not sent.unchanged
    assert hub.head("you/model") == head
    assert stored(hub, "you/model", "refs/pr/1") == NEW
    again = push(folder, "you/model", create_pr=True)
    assert (again.commit, again.url, again.unchanged) == (sent.commit, sent.url, True)
    assert hub.head("you/model", "refs/pr/2") is None


def check_fault(hub: Hub, tmp_path: Path, step: str, kind: int | str, times: int | None) -> None:
    """Push with a fault; the branch must hold all of the old or all of the new, after one commit at most."""
    if step != "create":
        hub.add("me/model", OLD)
    before = 1 if step == "create" else 2
    folder = write(tmp_path / "new", NEW)
    remote = client.look(HubConfig(push_to="me/model")) if step in ARRIVED else None
    hub.fault(step, kind, times, seconds=0 if kind == 429 else 30)
    try:
        push(folder, look=remote)
        done = True
    except UserError:
        done = False
    hub.clear()
    made = len(hub.commits("me/model")) if "me/model" in hub.repos else before
    kept_wrong = (step, kind) == ("commit", "wrong_bytes")  # whole, but for one bit of a regular file
    expected = NEW if made > before else {} if step == "create" else OLD
    assert kept_wrong or "me/model" not in hub.repos or stored(hub) == expected
    assert made - before == (done or kept_wrong or step in ARRIVED)
    # Done, but the answer is always lost: that is seen, so the answer is not needed.
    needless = times is None and (step == "verify" or (kind == "lost" and step in ("put", "commit")))
    assert needless or done is not (times is None or kind in (403, "wrong_bytes"))
    if not kept_wrong:  # what is typed to try again mends it, without a second commit
        assert push(folder).unchanged is (made > before)
        assert stored(hub) == NEW
        assert len(hub.commits("me/model")) == before + 1


def cells(kinds: tuple, quick: Callable) -> list:
    """One case for each step and kind of fault that it can have."""
    pairs = [(step, kind) for step in STEPS for kind in kinds]
    pairs = [(step, kind) for step, kind in pairs if kind != "wrong_bytes" or step in ("put", "commit", *ARRIVED)]
    return [pytest.param(*pair, marks=() if quick(*pair) else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(
    ("step", "kind"),
    cells(KINDS, lambda step, kind: step == "commit" or kind in ("wrong_bytes", 503) or (step, kind) == ("put", 403)),
)
def test_a_fault_is_outlived_or_told(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, kind: int | str
):
    if kind == "silent":
        monkeypatch.setattr(client, "SILENCE", 1.0)
    check_fault(hub, tmp_path, step, kind, times=1)


LASTING = [("commit", 500), ("commit", "lost"), ("commit", "silent"), ("put", 500), ("cdn", "cut")]


@pytest.mark.parametrize(
    ("step", "kind"), cells((500, 429, "cut", "silent", "lost"), lambda *pair: pair in LASTING)
)  # fmt: skip
def test_trouble_that_lasts_is_told_in_bounded_time(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, step: str, kind: int | str
):
    if kind == "silent":
        monkeypatch.setattr(client, "PATIENCE", 5.0)
        monkeypatch.setattr(client, "SILENCE", 1.0)
    start = clock.monotonic()
    check_fault(hub, tmp_path, step, kind, times=None)
    # the patience, once for the trouble, and the client's own last tries within
    assert clock.monotonic() - start < 2 * client.PATIENCE + 60


def test_a_card_that_comes_wrong_is_not_merged(hub: Hub):
    """The client looks at the size of what it downloads only."""
    hub.add("me/model", OLD)
    hub.fault("resolve", "wrong_bytes")
    with pytest.raises(UserError, match=r"reading README.md of me/model failed: it came with other bytes"):
        client.look(HubConfig(push_to="me/model"))


def test_a_server_that_asks_to_wait_is_waited_for(hub: Hub, tmp_path: Path, clock: Clock):
    """Retry-After counts where the client does not look at it; one that is too long ends the push at once."""
    folder, lines = write(tmp_path / "new", NEW), []
    hub.fault("create", 429, seconds=77)
    client.send(folder, HubConfig(push_to="me/model"), client.Remote(None, [], None, None), "title", lines.append)
    assert clock.slept == [77]
    assert lines == ["making me/model: 127.0.0.1 answered 429 Too Many Requests (A fault was asked for); "
                     "trying again in 77 s"]  # fmt: skip
    for step in ("create", "put"):  # the client itself would sleep for an hour
        hub.fault(step, 429, seconds=3600)
        with pytest.raises(UserError, match=r"failed: .*127.0.0.1 answered 429 .*, and asks to wait 3600 s$"):
            push(folder, f"me/{step}")
    assert clock.slept == [77]
    hub.fault("put", 503, times=None)
    with pytest.raises(UserError, match=r"failed, and did so for 600 s: .*127.0.0.1 answered 503 Service Unavailable"):
        push(folder, "me/put")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0),
        ({"ratelimit": '"api";r=0;t=55'}, 55),
        ({"ratelimit": '"api";r=10;t=55'}, 0),
        ({}, 0),
    ],
)
def test_how_long_a_server_asks_to_wait(headers: dict[str, str], seconds: float):
    assert client.asked_to_wait(headers) == seconds


def chained(*errors: Exception) -> Exception:
    """The first error, caused by the second, and so on."""
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize(
    ("error", "tries", "words"),
    [
        (json.JSONDecodeError("no", "<html>", 0), 2, "not JSON"),  # the 503 of a proxy, to validate-yaml
        (ConnectionError("xet: reset"), 2, "xet: reset"),
        (OSError("Consistency check failed: size 5 but has 3"), 2, "Consistency"),
        (chained(RuntimeError("Error while uploading 'a'"), RuntimeError("the client has been closed.")), 2, "closed"),
        (chained(RuntimeError("Error while uploading 'a'"), TimeoutError("slow")), 2, "slow"),
        (RuntimeError("Error while uploading 'a'"), 1, "Error while uploading 'a'"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (PermissionError("xet: 403"), 1, "xet: 403"),
        (ConnectionError("HTTP status client error (404 Not Found), domain: xet-write-token"), 1, "404 Not Found"),
        (ConnectionError("HTTP status client error (429 Too Many Requests)"), 2, "429"),
        (
            ValueError("LFS batch API returned errors:\nhf_write_me https://cdn/x?signature=abc d"),
            1,
            r"\*\*\* .*cdn/x d",
        ),
        (chained(RuntimeError("Error while uploading 'a'"), UserError("enough")), 1, "^enough$"),
    ],
)
def test_which_errors_are_worth_another_try(hub: Hub, error: Exception, tries: int, words: str):
    seen, lines = [], []

    def call() -> str:
        seen.append(1)
        if len(seen) == 1:
            raise error
        return "done"

    talk = client.Talk("me/model", "hf_write_me", 600, lines.append)
    if tries == 1:
        with pytest.raises(UserError, match=words):
            talk.ask("the commit", call)
    else:
        assert talk.ask("the commit", call) == "done"
        assert re.search(words, lines[0])
    assert len(seen) == tries


def test_another_commit_in_between_is_told_and_nothing_is_mixed(hub: Hub, tmp_path: Path, monkeypatch):
    """Before the push, and at the last moment; a commit on top of ours, whose answer was lost, is no conflict."""
    from huggingface_hub import HfApi

    push(write(tmp_path / "old", OLD))
    early = client.look(HubConfig(push_to="me/model"))
    push(write(tmp_path / "new", NEW))
    with pytest.raises(UserError, match=r"me/model has moved meanwhile, .*: push again"):
        push(write(tmp_path / "third", {"c.txt": b"c"}), look=early)
    assert stored(hub) == NEW
    create_commit, theirs = HfApi.create_commit, hub.repos["me/model"].commits[hub.head("me/model")]["files"]

    def theirs_first(*args, **how):
        if hub.head("me/model") == how["parent_commit"]:
            hub.commit(hub.repos["me/model"], "refs/heads/main", how["parent_commit"], theirs, "you", "theirs")
        return create_commit(*args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "create_commit", theirs_first)
        with pytest.raises(UserError, match="has moved meanwhile"):
            push(tmp_path / "third")
    assert stored(hub) == NEW
    assert hub.commits("me/model")[0]["title"] == "theirs"

    def theirs_on_top(*args, **how):
        made = create_commit(*args, **how)
        hub.commit(hub.repos["me/model"], "refs/heads/main", made.oid, theirs, "you", "on top")
        raise ConnectionResetError("lost")

    monkeypatch.setattr(HfApi, "create_commit", theirs_on_top)
    sent = push(tmp_path / "third")
    assert [commit["title"] for commit in hub.commits("me/model")][:3] == ["on top", "title", "theirs"]
    assert (sent.commit, sent.unchanged) == (hub.commits("me/model")[1]["id"], False)


def test_a_card_that_the_hub_refuses_is_told_before_a_file_is_sent(hub: Hub, tmp_path: Path):
    with pytest.raises(
        UserError, match=r"^the commit to me/model failed: Invalid metadata in README.md\. - "
    ) as caught:
        push(write(tmp_path / "new", NEW | {"README.md": b"---\ntags: [\n---\n"}))
    assert str(caught.value).count("ParserError") == 1
    assert stored(hub) == {}
    assert asked(hub, "put") == 0


def test_two_that_make_the_repository_do_not_mix(hub: Hub, tmp_path: Path):
    nothing = client.look(HubConfig(push_to="me/model"))
    assert nothing == client.Remote(None, [], None, None)
    push(write(tmp_path / "new", NEW), look=nothing)
    with pytest.raises(UserError, match="me/model was made meanwhile by another: push again"):
        push(write(tmp_path / "old", OLD), look=nothing)
    assert stored(hub) == NEW


def test_private_stays_private(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is not there for others, and a push that does not ask for it changes nothing; a public one is refused."""
    folder = write(tmp_path / "new", NEW)
    push(folder, private=True)
    assert hub.repos["me/model"].private
    push(write(tmp_path / "old", OLD))
    assert hub.repos["me/model"].private
    assert stored(hub) == OLD
    hub.add("me/public", OLD)
    for call in (client.check_ready, lambda config: push(folder, "me/public", private=True)):
        with pytest.raises(UserError, match=r"me/public is public, and --hub.private is set"):
            call(HubConfig(push_to="me/public", private=True))
    for token in ("hf_write_you", None):
        monkeypatch.setenv("HF_TOKEN", token or "")
        assert client.look(HubConfig(push_to="me/model")) == client.Remote(None, [], None, None)
        with pytest.raises(UserError, match="missing, or hidden" if token else "no token for me/model"):
            push(folder, look=client.Remote("0" * 40, [], None, None))


@pytest.mark.parametrize(
    ("token", "name", "options", "words"),
    [
        ("hf_write_me", "me/model", {}, None),
        ("hf_write_me", "team/model", {"tag": "v1"}, None),
        ("hf_write_me", "you/public", {"create_pr": True}, None),
        ("hf_write_me", "you/public", {}, "you/public: the token is me's, for me, team, not you"),
        ("hf_write_me", "you/none", {"create_pr": True}, "you/none is missing or hidden"),
        ("hf_write_me", "me/model", {"create_pr": True, "tag": "v1"}, "--hub.tag with --hub.create_pr"),
        ("hf_write_me", "model", {}, "'model' lacks its namespace: name the repository USER/model"),
        ("hf_write_me", "me/a/b", {}, "'me/a/b' is no name of a repository"),
        ("hf_write_me", "me/a--b", {}, "'me/a--b' is no name"),
        ("hf_write_me", "", {}, "'' is no name"),
        ("hf_read_me", "me/model", {}, "the token of me may only read: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "me/model", {}, "answered 401 .*the token is wrong, or may not do that: log in"),
        ("hf_wröng", "me/model", {}, "has characters that no token has: log in"),
        ("", "me/model", {}, "no token for me/model: log in with `hf auth login`, or set HF_TOKEN"),
    ],
)
def test_a_push_that_cannot_work_is_found_before(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str, name: str, options: dict, words: str | None
):
    hub.add("you/public")
    monkeypatch.setenv("HF_TOKEN", token)
    if words is None:
        client.check_ready(HubConfig(push_to=name, **options))
    else:
        with pytest.raises(UserError, match=words) as caught:
            client.check_ready(HubConfig(push_to=name, **options))
        assert "\n" not in str(caught.value)
        assert not token or token not in str(caught.value)
    assert {step for _, step, _ in hub.requests} <= {"whoami", "info"}


def test_what_a_token_may_write_is_read_from_its_scopes(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import HfApi

    def whoami(*args, **how):
        scope = {"entity": {"type": "org", "name": "team"}, "permissions": ["repo.content.read", "repo.write"]}
        token = {"role": "fineGrained", "fineGrained": {"global": [], "scoped": [scope]}}
        orgs = [{"name": "team", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]
        return {"name": "me", "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}

    monkeypatch.setattr(HfApi, "whoami", whoami)
    client.check_ready(HubConfig(push_to="team/model"))
    with pytest.raises(UserError, match=r"me/model: the token's permissions lack `repo.write` for me"):
        client.check_ready(HubConfig(push_to="me/model"))
    with pytest.raises(UserError, match="readers/model: me may only read in readers"):
        client.check_ready(HubConfig(push_to="readers/model"))


def test_no_network_is_found_before(hub: Hub, monkeypatch: pytest.MonkeyPatch, clock: Clock):
    from conftest import free_port
    from huggingface_hub import constants

    lines, start, config = [], clock.monotonic(), HubConfig(push_to="me/model")
    hub.fault("whoami", 503)
    client.check_ready(config, lines.append)
    assert [line.split(": ")[-1] for line in lines] == ["127.0.0.1 answered 503 Service Unavailable (A fault was "
                                                        "asked for); trying again in 1 s"]  # fmt: skip
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match=r"whose token this is failed, .* for 20 s: no connection to 127.0.0.1"):
        client.check_ready(config)
    assert clock.monotonic() - start < 40
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: unset it"):
        client.check_ready(config)


SCRIPT = """
import sys
from pathlib import Path
from graftkit.errors import UserError
from graftkit.hub import client
from graftkit.hub.config import HubConfig
config = HubConfig(push_to="me/model")
try:
    print(client.send(Path(sys.argv[1]), config, client.look(config), "title"))
except UserError as error:
    print(error)
"""


def start_push(hub: Hub, folder: Path) -> subprocess.Popen:
    """A push in a process of its own."""
    environment = os.environ | hub.environment("hf_write_me", folder.parent / "home")
    return subprocess.Popen([sys.executable, "-c", SCRIPT, folder], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("step", "left"), [("put", 1), pytest.param("commit", 0, marks=pytest.mark.slow)])
def test_a_push_that_is_killed_goes_on_where_it_was(hub: Hub, tmp_path: Path, step: str, left: int):
    """kill -9 while a file is on its way, or the commit: main is old, and only what is missing is sent again."""
    hub.add("me/model", OLD)
    hub.fault(step, "silent", seconds=60)
    process = start_push(hub, write(tmp_path / "new", NEW))
    while not asked(hub, step) or asked(hub, "verify") < 2 - left:  # the other large file is there
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert stored(hub) == OLD
    hub.clear()
    push(tmp_path / "new")
    assert stored(hub) == NEW
    assert asked(hub, "put") == left
    assert len(hub.commits("me/model")) == 3


@pytest.mark.slow
def test_two_processes_push_at_the_same_time(hub: Hub, tmp_path: Path):
    """Each is there wholly, or is told that the other was first."""
    hub.add("me/model", OLD)
    for round in range(3):
        sides = [{f"{side}.txt": b"%d" % round, "model.safetensors": b"\0" + side.encode() * 999} for side in "ab"]
        folders = [write(tmp_path / f"{side}{round}", files) for side, files in zip("ab", sides, strict=True)]
        running = [start_push(hub, folder) for folder in folders]
        said = [process.communicate(timeout=120)[0] for process in running]
        assert all("Sent(" in line or "moved meanwhile" in line for line in said)
        assert "Sent(" in "".join(said)
        kept = {path: data for path, data in stored(hub).items() if path not in ("README.md", "config.json")}
        assert kept in sides
