"""Does the stand-in Hub answer the real client as the Hub would, and do its faults bite?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, running_hub

START = """
import json, os, pathlib, sys, time, warnings
warnings.simplefilter("ignore")
real_sleep, time.sleep = time.sleep, lambda seconds: real_sleep(min(seconds, 0.01))  # the client's own waits
from huggingface_hub import *
from huggingface_hub.errors import *
from huggingface_hub.utils import disable_progress_bars, get_session, logging
disable_progress_bars()
logging.set_verbosity(logging.CRITICAL)
api, home, said = HfApi(), pathlib.Path(os.environ["HF_HOME"]), {}

def add(**files):
    return [CommitOperationAdd(name.replace("_", "."), data) for name, data in files.items()]

def failure(call, *args, **kwargs):  # the name of the exception and the status, or None
    try:
        call(*args, **kwargs)
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)]
"""
CARD = "---\nlicense: mit\nlibrary_name: timm\npipeline_tag: image-classification\ntags: [tiny]\n---\n# Hello\n"
WEIGHTS = bytes(range(256)) * 8


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running_hub(tmp_path / "hub") as hub:
        yield hub


def client(hub: Hub, script: str, token: str | None = "hf_write_me", **environment: str):
    """What a script that runs in a process of its own, with the real client, leaves in `said`."""
    script = f"{START}\nCARD, WEIGHTS = {CARD!r}, {WEIGHTS!r}\n{script}\nprint(json.dumps(said))"
    variables = os.environ | hub.environment(token) | environment
    done = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_push_is_one_commit_and_comes_back_whole(hub: Hub):
    """Regular and large files, in and out: each step is asked once, and the bytes and the hashes are the same."""
    said = client(
        hub,
        """
said["who"] = whoami()
said["url"] = create_repo("me/m", private=True)
create_repo("me/m", exist_ok=True)
files = add(README_md=CARD.encode(), config_json=b"{}", model_safetensors=WEIGHTS)
made = create_commit("me/m", files, commit_message="Push it", commit_description="all of it")
said["oid"], said["again"] = made.oid, create_commit("me/m", add(config_json=b"{}"), commit_message="Same").oid
create_tag("me/m", tag="v1", tag_message="first")
said["tags"] = [ref.name for ref in list_repo_refs("me/m").tags]
info = model_info("me/m", files_metadata=True)
said["info"] = [info.sha, info.private, info.tags, info.pipeline_tag, info.card_data["license"]]
said["sizes"] = {file.rfilename: [file.size, file.lfs and file.lfs.sha256] for file in info.siblings}
said["listed"] = list_repo_files("me/m")
said["log"] = [[commit.title, commit.message, commit.authors] for commit in list_repo_commits("me/m")]
said["paths"] = [info.path for info in api.get_paths_info("me/m", ["config.json", "none"])]
said["one"] = pathlib.Path(hf_hub_download("me/m", "config.json", revision="v1")).read_text()
folder = pathlib.Path(snapshot_download("me/m", cache_dir=home / "other"))
said["whole"] = (folder / "model.safetensors").read_bytes() == WEIGHTS and folder.name == made.oid
said["wrong"] = api.verify_repo_checksums("me/m", cache_dir=home / "other").mismatches
""",
    )
    assert said["who"]["name"] == "me"
    assert said["who"]["auth"]["accessToken"]["role"] == "write"
    assert [org["name"] for org in said["who"]["orgs"]] == ["team"]
    assert said["url"] == f"{hub.endpoint}/me/m"
    assert said["oid"] == said["again"] == hub.head("me/m") == hub.head("me/m", "v1") == said["info"][0]
    assert said["info"][1:] == [True, ["tiny", "timm", "image-classification"], "image-classification", "mit"]
    assert said["log"] == [["Push it", "all of it", ["me"]], ["initial commit", "", ["me"]]]
    assert said["listed"] == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert said["sizes"]["config.json"] == [2, None]
    assert said["sizes"]["model.safetensors"][0] == 2048
    assert len(said["sizes"]["model.safetensors"][1]) == 64
    assert (said["tags"], said["paths"], said["one"], said["whole"]) == (["v1"], ["config.json"], "{}", True)
    assert said["wrong"] == []
    assert [commit["title"] for commit in hub.commits("me/m")] == ["Push it", "initial commit"]
    assert hub.files("me/m")["model.safetensors"] == WEIGHTS
    steps = [step for _, step, _ in hub.requests]
    assert [steps.count(step) for step in ("batch", "put", "verify", "commit", "cdn")] == [1, 1, 1, 1, 1]


def test_branches_pull_requests_and_parents(hub: Hub):
    """A pull request leaves main; a parent that main has left is refused, so is a branch that is not there."""
    hub.add("me/m", {"config.json": b"{}", "old/a.bin": b"a"})
    hub.add("you/m", {"config.json": b"{}"})
    start = hub.head("me/m")
    said = client(
        hub,
        """
head = model_info("me/m").sha
create_branch("me/m", branch="next")
create_commit("me/m", add(config_json=b"1"), commit_message="x", revision="next", parent_commit=head)
asked = create_commit("you/m", add(model_safetensors=WEIGHTS), commit_message="y", create_pr=True)
said["pull"] = [asked.pr_revision, asked.pr_num]
create_commit("me/m", add(config_json=b"2") + [CommitOperationDelete("old/")], commit_message="z", parent_commit=head)
said["files"] = list_repo_files("me/m", revision="refs/heads/main".split("/")[-1])
said["stale"] = failure(create_commit, "me/m", add(config_json=b"3"), commit_message="w", parent_commit=head)
said["branch"] = failure(create_commit, "me/m", add(config_json=b"3"), commit_message="w", revision="none")
said["theirs"] = failure(create_commit, "you/m", add(config_json=b"3"), commit_message="w")
said["twice"] = failure(create_branch, "me/m", branch="next")
pulled = hf_hub_download("you/m", "model.safetensors", revision="refs/pr/1")
said["pulled"] = pathlib.Path(pulled).read_bytes() == WEIGHTS
""",
    )
    assert said["pull"] == ["refs/pr/1", 1]
    assert said["files"] == [".gitattributes", "config.json"]
    assert said["stale"] == ["HfHubHTTPError", 412]
    assert said["branch"] == ["RevisionNotFoundError", 404]
    assert said["theirs"] == ["HfHubHTTPError", 403]
    assert said["twice"] == ["HfHubHTTPError", 409]
    assert said["pulled"]
    assert len(hub.commits("you/m")) == 2
    assert hub.files("you/m", "refs/pr/1")["model.safetensors"] == WEIGHTS
    assert (hub.files("me/m")["config.json"], hub.files("me/m", "next")["config.json"]) == (b"2", b"1")
    assert hub.commits("me/m")[1]["id"] == start


def test_who_may_do_what(hub: Hub):
    """Private and missing repos look the same; a gated one says so; read tokens write nothing."""
    hub.add("me/secret", {"config.json": b"{}"}, private=True)
    hub.add("team/open", {"config.json": b"{}", "deep/er/a.txt": b"a"})
    hub.add("you/gated", {"config.json": b"{}"}).gated = True
    said = client(
        hub,
        """
def get(repo, token, file="config.json", **more):
    return failure(hf_hub_download, repo, file, token=token, **more)
said["unseen"] = [get("me/secret", token) for token in (False, "hf_write_you")]
said["absent"] = [get(repo, token) for repo in ("me/none", "gpt2") for token in (False, "hf_write_me")]
said["seen"] = [get("me/secret", token) for token in ("hf_write_me", "hf_read_me")]
said["gated"] = [get("you/gated", token) for token in (False, "hf_write_me", "hf_write_you")]
said["token"] = [get("team/open", "hf_none"), failure(whoami, "hf_none")]
said["entry"] = [get("team/open", None, "none.json"), get("team/open", None, revision="none")]
said["folder"] = failure(lambda: list(list_repo_tree("team/open", "none")))
said["tree"] = [entry.path for entry in list_repo_tree("team/open", "deep")]
said["create"] = [failure(create_repo, "me/new", token="hf_read_me"), failure(create_repo, "you/new")]
said["exists"] = failure(create_repo, "team/open")
create_repo("team/new")
said["commit"] = failure(create_commit, "team/open", add(config_json=b"1"), commit_message="x", token="hf_read_me")
card = "---\\nmodel-index:\\n- name: x\\n  results:\\n  - task: {type: y}\\n---\\n"
for text in (CARD.replace("[tiny]", "["), card, "no card"):
    said[text] = failure(create_commit, "team/new", add(README_md=text.encode()), commit_message="x")
said["unsigned"] = get_session().get(os.environ["HF_ENDPOINT"] + "/objects/me/secret/0").status_code
""",
    )
    gone = "RepositoryNotFoundError"
    assert said["unseen"] == [[gone, 401], [gone, 404]]
    assert said["absent"] == [[gone, 401], [gone, 404]] * 2
    assert said["seen"] == [None, None]
    assert said["gated"] == [["GatedRepoError", 401], ["GatedRepoError", 403], None]
    assert said["token"] == [["HfHubHTTPError", 401]] * 2
    assert said["entry"] == [["RemoteEntryNotFoundError", 404], ["RevisionNotFoundError", 404]]
    assert (said["folder"], said["tree"]) == (["RemoteEntryNotFoundError", 404], ["deep/er"])
    assert said["create"] == [["HfHubHTTPError", 403]] * 2
    assert said["exists"] == ["HfHubHTTPError", 409]
    assert said["commit"] == ["HfHubHTTPError", 403]
    assert [error for text, error in said.items() if "---" in text] == [["ValueError", None]] * 2
    assert (said["no card"], said["unsigned"]) == (None, 403)
    assert "team/new" in hub.repos


RETRIED = ("preupload", "batch", "put", "verify")


def test_a_fault_while_pushing_leaves_main_whole(hub: Hub):
    """At each step, each fault: the client retries or fails as measured; main has all of the old or all of the new."""
    said = client(
        hub,
        f"""
control = os.environ["HF_ENDPOINT"] + "/_faults"
cases = [(step, kind) for step in ("create", *{RETRIED}, "commit") for kind in (503, "cut", "lost")]
for i, (step, kind) in enumerate([*cases, ("whoami", 503), ("validate", 503), ("put", 403), ("commit", "cut_body"),
                                  ("create", 429)]):
    def push():
        whoami()
        create_repo("me/m", exist_ok=True)
        files = add(README_md=CARD.encode() + b"%d" % i, model_safetensors=WEIGHTS * (i + 2))
        create_commit("me/m", files, commit_message=f"{{step}} {{kind}}")
    get_session().post(control, json={{"step": step, "kind": kind, "seconds": 0}})
    said[f"{{step}} {{kind}}"] = failure(push)
    get_session().delete(control)
""",
    )
    landed = [commit["title"] for commit in hub.commits("me/m")]
    for case, error in said.items():
        step, kind = case.split()
        retried = step in RETRIED and kind != "403"
        assert (error is None) == retried, (case, error)
        assert (case in landed) == (retried or case in ("commit lost", "commit cut_body")), case
        if not retried:
            named = {"403": 403, "429": 429, "503": 503}.get(kind)
            expected = (
                "RuntimeError" if step in ("put", "verify") else "HfHubHTTPError" if named else "RemoteProtocolError"
            )
            assert error[0] == expected, (case, error)
    assert len(set(landed)) == len(landed)
    sizes = {len(hub.files("me/m", commit["id"])) for commit in hub.commits("me/m")[:-1]}
    assert sizes == {3}, "a commit holds the card, the weights and .gitattributes"


def test_wrong_bytes_are_stored_or_served(hub: Hub):
    """What is stored wrong is refused by verify; what is served wrong the client accepts: only a checksum tells."""
    hub.add("me/m", {"config.json": b"{}", "model.safetensors": WEIGHTS, "none.txt": b""})
    head = hub.head("me/m")
    for step in ("put", "cdn", "resolve"):
        hub.fault(step, "wrong_bytes", times=1 if step == "put" else None)
    said = client(
        hub,
        """
said["push"] = failure(create_commit, "me/m", add(model_safetensors=WEIGHTS * 2), commit_message="x")
snapshot_download("me/m")
said["wrong"] = sorted(file["path"] for file in api.verify_repo_checksums("me/m").mismatches)
get_session().delete(os.environ["HF_ENDPOINT"] + "/_faults")
said["push again"] = failure(create_commit, "me/m", add(model_safetensors=WEIGHTS * 2), commit_message="x")
""",
    )
    assert said["push"] == ["RuntimeError", None]
    assert said["wrong"] == [".gitattributes", "config.json", "model.safetensors"]
    assert said["push again"] is None
    assert hub.commits("me/m")[1]["id"] == head
    assert hub.files("me/m")["model.safetensors"] == WEIGHTS * 2


def test_faults_while_pulling(hub: Hub):
    """A cut download goes on; a silent one is asked again; a lookup that fails is an error."""
    hub.add("me/m", {"config.json": b"{}", "model.safetensors": os.urandom(100_000)})
    said = client(
        hub,
        """
control, FAULTS = os.environ["HF_ENDPOINT"] + "/_faults", ("cut_body", "cut", "silent", 500, 429)
for step, kind in [("info", 503), ("tree", 503), ("resolve", 503), *(("cdn", kind) for kind in FAULTS)]:
    get_session().post(control, json={"step": step, "kind": kind, "seconds": 3 if kind == "silent" else 0})
    folder = home / f"{step}-{kind}"
    said[f"{step} {kind}"] = failure(snapshot_download, "me/m", cache_dir=folder)
    if said[f"{step} {kind}"] is None:
        assert not api.verify_repo_checksums("me/m", cache_dir=folder).mismatches
    get_session().delete(control)
""",
        HF_HUB_DOWNLOAD_TIMEOUT="1",
    )
    assert {case for case, error in said.items() if error} == {"info 503", "cdn 500"}


def test_silence_ends_and_what_was_not_waited_for_is_not_done(hub: Hub):
    """A client that gives up in a silence finds nothing done; one that waits is answered."""
    hub.add("me/m")
    hub.fault("commit", "silent", times=2, seconds=0.6)
    said = client(
        hub,
        """
import httpx2
from huggingface_hub import set_client_factory
push = lambda: create_commit("me/m", add(config_json=b"{}"), commit_message="x")
said["waited"] = failure(push)
set_client_factory(lambda: httpx2.Client(timeout=0.2))
said["gave up"] = failure(lambda: create_commit("me/m", add(config_json=b"1"), commit_message="y"))
real_sleep(0.6)
""",
    )
    assert said == {"waited": None, "gave up": ["ReadTimeout", None]}
    assert [commit["title"] for commit in hub.commits("me/m")] == ["x", "initial commit"]


def test_it_starts_at_once_stops_in_a_silence_and_keeps_its_repos(tmp_path: Path):
    """State is in the folder: a server that went away comes back with the same commits."""
    import http.client
    import threading

    begun = time.monotonic()
    with running_hub(tmp_path) as hub:
        hub.add("me/m", {"config.json": b"{}"})
        head, port = hub.head("me/m"), int(hub.endpoint.rsplit(":", 1)[1])
        hub.fault("info", "silent", seconds=60)

        def ask() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/api/models/me/m")
            with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
                connection.getresponse()

        thread = threading.Thread(target=ask)
        thread.start()
        while not hub.requests:
            time.sleep(0.01)
    thread.join()
    with running_hub(tmp_path, port) as hub:
        assert (hub.head("me/m"), hub.files("me/m")["config.json"]) == (head, b"{}")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("step", "kind"), [("none", 503), ("commit", "none"), ("commit", 200), ("info", "wrong_bytes")]
)
def test_a_fault_that_cannot_be_is_an_error(tmp_path: Path, step: str, kind: int | str):
    with pytest.raises(ValueError, match="steps"):
        Hub(tmp_path, "", "").fault(step, kind)
