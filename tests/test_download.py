"""Checkpoints from the Hub: the real client against the stand-in, whole or not at all.

The client reads its settings when it is imported, so the cases with a Hub run in a process of their own, one after the
other, each with repositories of its own: `python tests/test_download.py fetching FOLDER` says what failed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import make_checkpoint, make_image_checkpoint, pytest_configure, run_recipe, texts, write_csv
from hub_server import Hub, running_hub

from graftkit import download
from graftkit.errors import UserError

Case = Callable[[Hub], None]
FETCHING: list[Case] = []
LOADING: list[Case] = []


@pytest.mark.parametrize("kind", ["fetching", pytest.param("loading", marks=pytest.mark.slow)])
def test_with_a_hub(kind, tmp_path):
    done = subprocess.run([sys.executable, __file__, kind, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == "all is well"
    assert kind == "loading" or done.stderr == ""  # no bars, and no warnings of the client


def test_nothing_is_made_up_for_what_a_folder_lacks(tmp_path, checkpoint, image_checkpoint):
    from safetensors.torch import load_file, save_file

    text, net = (
        shutil.copytree(source, tmp_path / source.name)
        for source in (checkpoint("bert"), image_checkpoint("test_resnet"))
    )
    tensors = load_file(text / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if ".layer.2." not in name}, text / "model.safetensors")
    assert "its weights do not fit its config.json (BertForSequenceClassification)" in refused(load_text, str(text))
    (net / "model.safetensors").rename(net / "own.safetensors")
    (net / "pytorch_model.bin").write_bytes(b"not to be read")  # timm itself would
    expected = load_file(net / "own.safetensors")
    assert load_picture(str(net)).conv1[0].weight.equal(expected["conv1.0.weight"])
    (net / "own.safetensors").write_bytes(weights_of("test_vit", num_classes=7))
    assert "its weights are not those of its architecture (" in refused(load_picture, str(net))
    (net / "config.json").write_bytes(edited(net, model_args={"num_classes": 5}))  # so that timm is not strict
    assert "parameters are not in its weights, such as conv1.0.weight; take another" in refused(load_picture, str(net))


def run(kind: str, folder: Path) -> int:
    """Run the cases of a kind; prints what failed."""
    cases, failed = {"fetching": FETCHING, "loading": LOADING}[kind], 0
    real = time.sleep
    time.sleep = lambda seconds: real(min(seconds, 0.02))  # of the client's retries, and ours
    with running_hub(folder / "hub") as hub:
        limits = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
        os.environ.update(hub.environment(home=folder / "home") | limits)
        if kind == "loading":
            pytest_configure(None)  # quiet
        for case in cases:
            hub.clear()
            forget()
            try:
                case(hub)
            except BaseException:
                failed += 1
                print(f"{case.__name__}: {traceback.format_exc()}\n{hub.requests}", flush=True)
    print("all is well" if not failed else f"{failed} of {len(cases)} failed")
    return min(failed, 1)


def fetching(case: Case) -> Case:
    FETCHING.append(case)
    return case


def loading(case: Case) -> Case:
    LOADING.append(case)
    return case


# what the cases need


def forget() -> None:
    """What this process has fetched, as if another one came."""
    download._fetch.cache_clear()
    download._commits.clear()
    download._origins.clear()
    download._pins.clear()


def weights(**arrays: list[float]) -> bytes:
    import numpy as np
    from safetensors.numpy import save

    return save({name: np.array(values, np.float32) for name, values in (arrays or {"a": [1.0, 2.0]}).items()})


def advance(hub: Hub, name: str, **files: bytes) -> None:
    """Another commit on main."""
    head, repo = hub.head(name), hub.repos[name]
    listed = repo.commits[head]["files"] | {
        path.replace("_json", ".json"): hub.keep(name, files[path]) for path in files
    }
    hub.commit(repo, "refs/heads/main", head, listed, "me", "more")


def steps(hub: Hub) -> list[str]:
    return [step for _, step, _ in hub.requests]


def refused(*words: object, asked: int = 2, **settings: object) -> str:
    """The one line of a UserError; asked twice, since a failure must not be remembered as a success."""
    call, *rest = words if callable(words[0]) else (download.fetch, *words)
    lines = set()
    for _ in range(asked):
        with pytest.raises(UserError) as error:
            call(*rest, **settings)
        lines.add(str(error.value))
    (line,) = lines
    assert "\n" not in line
    return line


@contextmanager
def client(**settings: object) -> Iterator[None]:
    """Other settings of the client for a while, such as HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    before = {name: getattr(constants, name) for name in settings}
    for name, value in settings.items():
        setattr(constants, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(constants, name, value)


@contextmanager
def token(value: str) -> Iterator[None]:
    os.environ["HF_TOKEN"] = value
    try:
        yield
    finally:
        os.environ["HF_TOKEN"] = ""


# fetching


@fetching
def only_what_is_needed_comes_and_all_of_one_commit(hub):
    kept = {"config.json", "tokenizer.json", "vocab.txt", "spiece.model", "chat_template.jinja", "model.safetensors"}
    left = {
        "consolidated.safetensors", "pytorch_model.bin", "training_args.bin", "tf_model.h5", "onnx/a.onnx", "README.md",
        "modeling_much.py", "run/config.json", "run/model.safetensors", "adapter/adapter_config.json",
    }  # fmt: skip
    hub.add("me/much", dict.fromkeys(kept | left, b"{}") | {"model.safetensors": weights()})
    commit = hub.head("me/much")
    found = download.fetch("me/much")
    assert found == download.Fetched(found.folder, commit)
    names = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*")}
    assert names == kept
    assert download.origin_of("me/much", None) == download.Origin("me/much", commit)
    assert download.origin_of("elsewhere", None) is None
    assert steps(hub).count("info") == steps(hub).count("tree") == steps(hub).count("cdn") == 1
    asked = len(hub.requests)
    advance(hub, "me/much", config_json=b'{"new": 1}')
    assert download.fetch("me/much") is not None
    assert download.fetch("me/much", weights=None).commit == commit
    assert len(hub.requests) == asked
    forget()
    assert download.fetch("me/much").commit == hub.head("me/much") != commit
    assert steps(hub).count("cdn") == 1  # the weights are the same
    asked = len(hub.requests)
    assert download.fetch("me/much", commit).commit == commit
    assert len(hub.requests) == asked  # a whole commit needs no look-up


@fetching
def a_revision_is_a_branch_a_tag_or_a_commit(hub):
    hub.add("me/tagged", {"config.json": b"{}", "model.safetensors": weights()})
    first = hub.head("me/tagged")
    hub.point(hub.repos["me/tagged"], "refs/tags/v1", first)
    hub.point(hub.repos["me/tagged"], "refs/pr/1", first)
    advance(hub, "me/tagged", config_json=b'{"new": 1}')
    for revision in ("v1", "refs/pr/1", first):
        forget()
        assert download.fetch("me/tagged", revision).commit == first
    assert download.fetch("me/tagged").commit == hub.head("me/tagged")
    assert download.origin_of("me/tagged", "v1") is None
    assert "--backbone.name me/tagged: has no branch, tag or commit v2; set --backbone.revision" in refused(
        "me/tagged", "v2"
    )
    assert "has no branch, tag or commit" in refused("me/tagged", "0" * 40)


@fetching
def a_run_that_is_resumed_keeps_its_commit(hub):
    hub.add("me/moved", {"config.json": b"{}", "model.safetensors": weights()})
    first = hub.head("me/moved")
    advance(hub, "me/moved", config_json=b'{"new": 1}')
    download.pin("me/moved", None, first)
    assert download.fetch("me/moved").commit == first == download.origin_of("me/moved", None).commit
    assert download.fetch("me/moved", "main").commit == hub.head("me/moved")


@fetching
def shards_adapters_and_other_names_of_weights(hub):
    index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode()
    files = {f"model-0000{i}-of-00002.safetensors": weights() for i in (1, 2)}
    hub.add(
        "me/shards",
        {"config.json": b"{}", "model.safetensors.index.json": index, "a-00001-of-00002.safetensors": b"", **files},
    )
    assert {path.name for path in download.fetch("me/shards").folder.glob("*.safetensors")} == set(files)
    hub.add("me/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": weights(), "other.safetensors": b""})
    assert [path.name for path in download.fetch("me/lora").folder.glob("*.safetensors")] == [
        "adapter_model.safetensors"
    ]
    hub.add("me/clip", {"config.json": b"{}", "open_clip_model.safetensors": weights()})
    assert refused("me/clip", flag="").startswith("me/clip: holds no weights (model.safetensors); take another")
    assert (
        download.fetch("me/clip", weights="open_clip_model.safetensors").folder / "open_clip_model.safetensors"
    ).exists()
    assert download.fetch("mine", repo="me/shards").commit == hub.head("me/shards")
    assert download.origin_of("mine", None).repo == "me/shards"


@fetching
def pickles_are_refused_before_anything_large_moves(hub):
    hub.add("me/pickled", {"config.json": b"{}", "pytorch_model.bin": b"x" * 9999, "run/model.safetensors": weights()})
    line = refused("me/pickled")
    assert line.startswith(
        "--backbone.name me/pickled: holds pickled weights only (pytorch_model.bin), which can run code;"
    )
    assert "or take another checkpoint" in line
    assert "cdn" not in steps(hub)


@fetching
def each_refusal_is_a_line_with_the_way_out(hub):
    files = {"config.json": b"{}", "model.safetensors": weights()}
    hub.add("me/gated", files).gated = True
    hub.add("me/private", files, private=True)
    absent = "no such folder here, and not found on the Hub"
    assert f"--backbone.name me/nothing: {absent}, or private; check the name, or log in" in refused("me/nothing")
    assert f"nothing: {absent}" in refused("nothing", flag="")
    assert f"./nothing: {absent} (no name of a repository" in refused("./nothing")
    assert f"me/gated: gated; accept its terms at {hub.endpoint}/me/gated, and log in (hf auth login)" in refused(
        "me/gated"
    )
    assert f"me/private: {absent}, or private; check the name, or log in" in refused("me/private")
    with token("hf_write_you"):
        assert "me/gated: gated; accept its terms" in refused("me/gated")
        assert f"me/private: {absent}, or private" in refused("me/private")
    with token("hf_wrong"):
        assert "the Hub knows no such token; log in again (hf auth login), or unset HF_TOKEN" in refused("me/private")
    with token("hf_read_me"):
        assert download.fetch("me/private").commit == hub.head("me/private")
        assert download.fetch("me/gated").commit == hub.head("me/gated")


@fetching
def what_does_not_pass_is_a_line_and_what_passes_is_not_seen(hub):
    said = {
        503: "the Hub is in trouble (503), and the cache has no whole copy; try again in some minutes",
        429: "too many requests (429); try again in some minutes",
        403: "the Hub refuses it (403)",
        "cut": "or it broke, and the cache has no whole copy; check the network and try again",
        "silent": "the Hub did not answer in 0.2 s, and the cache has no whole copy; try again",
    }
    for step in ("info", "tree", "resolve", "cdn"):
        for kind, line in said.items() if step == "info" else [(503, said[503]), ("cut", said["cut"])]:
            name = f"me/{step}-{kind}"
            hub.add(name, {"config.json": b"{}", "model.safetensors": weights()})
            hub.fault(step, kind, times=None)
            with client(HF_HUB_DOWNLOAD_TIMEOUT=0.2):
                found = refused(name, asked=1)
                assert found.startswith(f"--backbone.name {name}: "), found
                assert line in found, found
                hub.clear()
                if kind != 403:
                    hub.fault(step, kind)
                assert download.fetch(name).commit == hub.head(name)


@fetching
def a_silent_listing_does_not_hang(hub):
    hub.add("me/silent", {"config.json": b"{}", "model.safetensors": weights()})
    hub.fault("tree", "silent", times=1, seconds=30)
    start = time.monotonic()
    with client(HF_HUB_DOWNLOAD_TIMEOUT=0.2):
        assert download.fetch("me/silent").commit == hub.head("me/silent")
    assert time.monotonic() - start < 10


@fetching
def wrong_bytes_are_fetched_again_once(hub):
    for number, times in enumerate((1, 2)):
        name = f"me/wrong{number}"
        hub.add(name, {"config.json": b"{}", "model.safetensors": weights(a=[1.0] * 99)})
        hub.fault("cdn", "wrong_bytes", times=times)
        if times == 2:
            with pytest.raises(
                UserError, match=r"model.safetensors is damaged on the Hub, too \(its checksum is wrong\); t"
            ):
                download.fetch(name)
            continue
        assert (download.fetch(name).folder / "model.safetensors").read_bytes() == weights(a=[1.0] * 99)
        assert steps(hub).count("cdn") == 2
    hub.add("me/text", {"config.json": b'{"a": 1}', "model.safetensors": weights()})
    hub.fault("resolve", "wrong_bytes")
    assert (download.fetch("me/text").folder / "config.json").read_bytes() == b'{"a": 1}'


@fetching
def files_that_are_broken_on_the_hub(hub):
    hub.add("me/broken1", {"config.json": b"{}", "model.safetensors": weights()[:-1]})
    assert "model.safetensors is damaged on the Hub, too (" in refused("me/broken1")
    hub.add("me/broken2", {"config.json": b"{}", "tokenizer.json": b"{", "model.safetensors": weights()})
    assert "tokenizer.json is damaged on the Hub, too (no JSON); take another revision" in refused("me/broken2")
    hub.add("me/lines", {"config.json": b"{}", "scores.json": b"{}\n{}\n", "model.safetensors": weights()})
    assert download.fetch("me/lines").commit  # nobody reads that one


@fetching
def a_damaged_cache_is_mended(hub):
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1])

    def zero(path: Path) -> None:
        path.write_bytes(bytes(path.stat().st_size))

    ways = {"cut": cut, "zero": zero, "empty": lambda path: path.write_bytes(b""), "lost": lambda path: path.unlink()}
    for file in ("model.safetensors", "config.json", "vocab.txt"):
        for way, harm in ways.items():
            name = f"me/{way}-{file.partition('.')[0]}"
            hub.add(name, {"config.json": b'{"a": 1}', "vocab.txt": b"word", "model.safetensors": weights()})
            folder = download.fetch(name).folder
            whole = (folder / file).read_bytes()
            harm((folder / file).resolve())
            forget()
            with client(HF_HUB_OFFLINE=True):
                line = refused(name)
                here = "the cache has no whole copy" if way == "lost" else f"{file} in the cache is damaged ("
                assert here.removeprefix("the ") in line, line
                assert "HF_HUB_OFFLINE" in line
            hub.clear()
            assert download.fetch(name).folder == folder
            assert (folder / file).read_bytes() == whole
            assert {path.rpartition("/")[2] for _, step, path in hub.requests if step == "resolve"} == {file}


@fetching
def what_is_in_the_cache_needs_no_network(hub):
    hub.add("me/here", {"config.json": b"{}", "model.safetensors": weights()})
    hub.add("me/half", {"config.json": b"{}", "model.safetensors": weights()})
    commit = download.fetch("me/here").commit
    download.fetch("me/half", weights=None)
    nowhere, template = "http://127.0.0.1:9", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    off = "(HF_HUB_OFFLINE is set, and the cache has no whole copy); unset it, or name a folder"
    for settings, said in (
        ({"HF_HUB_OFFLINE": True}, off),
        ({"ENDPOINT": nowhere, "HUGGINGFACE_CO_URL_TEMPLATE": template}, f"no connection to the Hub ({nowhere})"),
    ):
        with client(**settings):
            forget()
            assert download.fetch("me/here").commit == commit
            assert said in refused("me/half", asked=1)
            assert said in refused("me/absent", asked=1)
            assert said in refused("me/here", "v1", asked=1)
    for kind in ("cut", 503):
        forget()
        hub.clear()
        hub.fault("info", kind, times=None)
        assert download.fetch("me/here").commit == commit
    hub.clear()
    assert download.fetch("me/half").commit == hub.head("me/half")


@fetching
def the_client_is_as_it_was(hub):
    from huggingface_hub import get_session
    from huggingface_hub.utils import are_progress_bars_disabled, logging

    logging.set_verbosity_info()
    before = len(get_session().event_hooks["request"])
    refused("me/absent")
    assert logging.get_verbosity() == logging.INFO
    assert len(get_session().event_hooks["request"]) == before
    assert not are_progress_bars_disabled()
    logging.set_verbosity_warning()


@fetching
def several_processes_fetch_at_once(hub):
    hub.add("me/shared", {"config.json": b"{}", "model.safetensors": weights(a=[1.0] * 100_000)})
    code = "from graftkit.download import fetch; print(fetch('me/shared').folder)"
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=60) for process in started}
    assert answers == {(f"{download.fetch('me/shared').folder}\n", "")}


@fetching
def a_cache_that_cannot_be_written(hub):
    hub.add("me/full", {"config.json": b"{}", "model.safetensors": weights()})
    file = Path(os.environ["HF_HOME"]) / "a-file"
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    with client(HF_HUB_CACHE=str(file / "hub")):
        assert "cannot be written (Not a directory); set HF_HOME to another folder" in refused("me/full")


# loading


def upload(hub: Hub, name: str, folder: Path, **changed: bytes | None) -> dict[str, bytes]:
    """A repository with the files of a folder; the config, say, as in `config="..."`, or without `model=None`."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    names = {
        "config": "config.json",
        "model": "model.safetensors",
        "pickle": "pytorch_model.bin",
        "code": "modeling_own.py",
    }
    files |= {names[key]: content for key, content in changed.items()}
    hub.add(name, {path: content for path, content in files.items() if content is not None})
    return files


def edited(folder: Path, **settings: object) -> bytes:
    """The config.json of a folder with other settings."""
    return json.dumps(json.loads((folder / "config.json").read_text()) | settings).encode()


def here(hub: Hub, name: str) -> Path:
    return hub.folder / "made" / name


def load_text(name: str, revision: str | None = None):
    from graftkit.backbone import BackboneConfig
    from graftkit.heads import load_classifier
    from graftkit.text import load_tokenizer

    config = BackboneConfig(name=name, revision=revision)
    return load_classifier(config, ["a", "b"], load_tokenizer(config), 0)


def load_picture(name: str, revision: str | None = None, seed: int = 5, **settings: object):
    from graftkit.image_backbone import ImageBackboneConfig, load_image_classifier
    from graftkit.images import ImageConfig

    config = ImageBackboneConfig(name=name, revision=revision, **settings)
    return load_image_classifier(config, ImageConfig(), ["a", "b"], seed).headed.model


def same(ours, theirs, head: str) -> bool:
    """Whether all tensors but those of the head are equal."""
    import torch

    ours, theirs = ours.state_dict(), theirs.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items() if head not in name)


@loading
def a_text_checkpoint_loads_from_one_commit_and_remembers_where_it_is_from(hub):
    from graftkit.adapt import AdaptConfig, adapt

    folder = make_checkpoint(here(hub, "bert"), "bert")
    upload(hub, "me/bert", folder, pickle=b"not to be read")
    first = hub.head("me/bert")
    hub.point(hub.repos["me/bert"], "refs/tags/v1", first)
    headed = load_text("me/bert")
    assert same(headed.model.base_model, load_text(str(folder)).model.base_model, "-")
    assert steps(hub).count("info") == steps(hub).count("tree") == 1
    assert headed.model.name_or_path == "me/bert"
    headed.model.save_pretrained(folder.parent / "saved")
    assert str(hub.folder) not in (folder.parent / "saved" / "config.json").read_text()
    advance(hub, "me/bert", config_json=b"{}")
    forget()
    adapted = adapt(load_text("me/bert", "v1"), AdaptConfig(strategy="lora")).model
    adapted.save_pretrained(folder.parent / "adapter")
    settings = json.loads((folder.parent / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("me/bert", first)
    assert str(hub.folder) not in json.dumps(settings)
    assert "--backbone.revision v1: only a Hub id has one" in refused(load_text, str(folder), "v1")
    assert "write --backbone.name me/bert --backbone.revision v1" in refused(load_text, "me/bert@v1")


@loading
def no_text_checkpoint_is_made_up(hub):
    folder = make_checkpoint(here(hub, "bert2"), "bert")
    other = (make_checkpoint(here(hub, "gpt2"), "gpt2") / "model.safetensors").read_bytes()
    from safetensors.torch import load, save

    tensors = load((folder / "model.safetensors").read_bytes())
    part = {name: value for name, value in tensors.items() if "layer.2." not in name}
    cases = {
        "gone": ({"model": None}, "holds no weights (model.safetensors)"),
        "pickled": ({"model": None, "pickle": b"0"}, "holds pickled weights only (pytorch_model.bin)"),
        "other": ({"model": other}, "its weights do not fit its config.json"),
        "part": ({"model": save(part)}, "its weights do not fit its config.json"),
        "wide": ({"config": edited(folder, intermediate_size=128)}, "its weights do not fit its config.json"),
        "cut": ({"model": save(tensors)[:-9]}, "model.safetensors is damaged on the Hub"),
        "bare": ({"config": None}, "no config.json"),
    }
    for name, (changed, said) in cases.items():
        upload(hub, f"me/text-{name}", folder, **changed)
        line = refused(load_text, f"me/text-{name}", asked=1)
        assert line.startswith(f"--backbone.name me/text-{name}: "), line
        assert said in line, line


@loading
def no_code_of_a_checkpoint_runs(hub):
    folder = make_checkpoint(here(hub, "own"), "bert")
    ran = hub.folder / "ran"
    code = f"open({str(ran)!r}, 'w')\nclass OwnConfig: pass\nclass OwnModel: pass\n".encode()
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForSequenceClassification": "modeling_own.OwnModel"}
    upload(hub, "me/own", folder, config=edited(folder, model_type="own", auto_map=auto), code=code)
    line = refused(load_text, "me/own")
    assert "needs code of its own, which is never run here; take a checkpoint that transformers knows by itself" in line
    picture = make_image_checkpoint(here(hub, "own-vit"), "vit")
    auto = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForImageClassification": "modeling_own.OwnModel"}
    upload(hub, "me/own-vit", picture, config=edited(picture, model_type="own", auto_map=auto), code=code)
    assert "needs code of its own, which is never run here" in refused(load_picture, "me/own-vit")
    assert not ran.exists()


@loading
def a_timm_checkpoint_loads_as_timm_itself_loads_it(hub):
    import timm
    import torch

    folder = make_image_checkpoint(here(hub, "net"), "test_efficientnet")
    upload(hub, "me/net", folder, pickle=b"not to be read")
    theirs = timm.create_model("hf-hub:me/net", pretrained=True)
    hub.clear()
    for name in ("me/net", "hf-hub:me/net"):
        ours = load_picture(name)
        assert same(ours, theirs, "classifier")
        sources = {"file", "source", "hf_hub_id"}
        facts = [{k: v for k, v in model.pretrained_cfg.items() if k not in sources} for model in (ours, theirs)]
        assert facts[0] == facts[1]
        assert download.origin_of(name, None) == download.Origin("me/net", hub.head("me/net"))
    assert steps(hub).count("info") == 1
    assert not same(load_picture("me/net", pretrained=False), theirs, "classifier")
    theirs = timm.create_model("hf-hub:me/net", pretrained=True, in_chans=1)
    assert torch.equal(load_picture("me/net", in_chans=1).conv_stem.weight, theirs.conv_stem.weight)
    registered = timm.get_pretrained_cfg("test_efficientnet")
    upload(hub, registered.hf_hub_id, folder, model=weights_of("test_efficientnet", num_classes=1000))
    ours = load_picture("test_efficientnet")
    assert same(ours, timm.create_model("test_efficientnet", pretrained=True), "classifier")
    assert ours.pretrained_cfg["tag"] == registered.tag
    assert download.origin_of("test_efficientnet", None).repo == registered.hf_hub_id
    clip = json.loads((folder / "config.json").read_text())
    clip["pretrained_cfg"]["hf_hub_filename"] = "open_clip_pytorch_model.bin"
    files = {"config.json": json.dumps(clip).encode(), "open_clip_pytorch_model.bin": b"0"}
    hub.add("me/clip-net", {**files, "open_clip_model.safetensors": (folder / "model.safetensors").read_bytes()})
    assert same(load_picture("me/clip-net"), load_picture("me/net"), "classifier")
    hub.add("me/clip-bin", files)
    assert "holds pickled weights only (open_clip_pytorch_model.bin)" in refused(load_picture, "me/clip-bin")


def weights_of(name: str, **settings: object) -> bytes:
    """Weights of a network of timm, by chance, but the same each time."""
    import timm
    import torch
    from safetensors.torch import save

    torch.manual_seed(7)
    return save({key: value.contiguous() for key, value in timm.create_model(name, **settings).state_dict().items()})


@loading
def no_network_for_pictures_is_made_up(hub):
    folder, other = make_image_checkpoint(here(hub, "res"), "test_resnet"), weights_of("test_vit", num_classes=7)
    vit = make_image_checkpoint(here(hub, "vit"), "vit")
    swin = (make_image_checkpoint(here(hub, "swin"), "swin") / "model.safetensors").read_bytes()
    fewer = edited(folder, num_classes=7, model_args={"num_classes": 5})
    cases = {
        "gone": (folder, {"model": None}, "holds no weights (model.safetensors)"),
        "pickled": (folder, {"model": None, "pickle": b"0"}, "holds pickled weights only (pytorch_model.bin)"),
        "other": (folder, {"model": other}, "its weights are not those of its architecture ("),
        "lax": (folder, {"model": other, "config": fewer}, "parameters are not in its weights, such as conv1.0.weight"),
        "unknown": (folder, {"config": edited(folder, architecture="test_nothing")}, "Unknown model (test_nothing)"),
        "bare": (folder, {"config": None}, "no config.json"),
        "vit-gone": (vit, {"model": None}, "holds no weights (model.safetensors)"),
        "vit-pickled": (vit, {"model": None, "pickle": b"0"}, "holds pickled weights only (pytorch_model.bin)"),
        "vit-other": (vit, {"model": swin}, "its weights do not fit its config.json"),
    }
    for name, (source, changed, said) in cases.items():
        upload(hub, f"me/{name}", source, **changed)
        line = refused(load_picture, f"me/{name}", asked=1)
        assert line.startswith(f"--backbone.name me/{name}: "), line
        assert said in line, line
    upload(hub, "me/whole-vit", vit)
    assert same(load_picture("me/whole-vit"), load_picture(str(vit)), "classifier")
    assert "--backbone.name test_vit: no such folder here, and not found on the Hub" in refused(
        load_picture, "test_vit"
    )
    assert "its weights are only at https://" in refused(load_picture, "gcvit_base")
    assert "timm has no such weights; name test_vit." in refused(load_picture, "test_vit.nothing")
    assert "its weights are nowhere; take another, or --backbone.pretrained false" in refused(
        load_picture, "vit_giant_patch14_224"
    )
    assert "nothing is fetched of random weights" in refused(load_picture, "test_vit", "v1", pretrained=False)
    hub.clear()
    assert load_picture("test_vit", pretrained=False) is not None
    assert hub.requests == []


@loading
def the_commit_is_in_the_record_of_a_run(hub):
    import contextlib
    import io

    from graftkit.classifiers import find_classifier, load_classifier
    from graftkit.images import ImageConfig

    upload(hub, "me/base", make_checkpoint(here(hub, "base"), "bert"))
    path, out = write_csv(hub.folder / "rows.csv", texts(60)), hub.folder / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        run_recipe(
            "text_classify", "--backbone.name", "me/base", "--data.path", path, "--run.out", out, "--train.max_steps", 1
        )
    record = json.loads((out / "run.json").read_text())
    assert record["backbone"]["commit"] == hub.head("me/base")
    assert record["backbone"]["name"] == "me/base"
    upload(hub, "me/mine", out / "model")
    found = find_classifier("me/mine")
    assert load_classifier(found, ImageConfig()).architecture == "BertForSequenceClassification"
    fetched = found.folder / "model.safetensors"
    assert fetched.read_bytes() == (out / "model/model.safetensors").read_bytes()
    line = refused(find_classifier, "me/not-mine")
    assert line.startswith("me/not-mine: no such folder here, and not found on the Hub")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], Path(sys.argv[2])))
