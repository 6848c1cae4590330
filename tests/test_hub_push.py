"""From a finished run to a repository that plain libraries load, and back."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import run_recipe
from hub_server import Hub

from graftkit import cli
from graftkit.errors import UserError
from graftkit.fingerprint import file_hashes
from graftkit.hub import cargo, gate
from graftkit.report.markdown import escape

TRAIN = ("--train.epochs", 4, "--train.lr", 5e-3, "--train.head_lr", 5e-3, "--run.precision", "fp32")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, checkpoint, image_checkpoint, data, pictures) -> dict[str, Path]:
    """A text run, an adapter of one, and a LoRA run on a network of timm."""
    folder = tmp_path_factory.mktemp("runs")
    texts = ("--backbone.name", checkpoint("bert"), "--data.path", data, *TRAIN)
    run_recipe("text_classify", *texts, "--run.out", folder / "text")
    run_recipe("text_classify", *texts, "--adapt.strategy", "lora", "--run.out", folder / "adapter")
    images = ("--backbone.name", image_checkpoint("test_resnet"), "--data.path", pictures, *TRAIN)
    run_recipe("image_classify", *images, "--adapt.strategy", "lora", "--run.out", folder / "pictures")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def once(monkeypatch) -> None:
    """The fresh process is asked once about the same files: it takes seconds, and `test_hub_gate` is about it."""

    def verify(folder: Path, place: Path, *words, **options) -> dict:
        hashes = {name: sha256 for name, sha256 in file_hashes(folder).items() if not name.startswith(".")}
        key = json.dumps([file_hashes(place), hashes, words, options], default=str)
        if key not in VERIFIED:
            VERIFIED[key] = gate_verify(folder, place, *words, **options)
        return VERIFIED[key]

    monkeypatch.setattr(gate, "verify", verify)


VERIFIED: dict[str, dict] = {}
gate_verify = gate.verify


def graft(capsys, *words: object, code: int = 0) -> str:
    """What the command prints to standard error."""
    capsys.readouterr()
    assert cli.main([str(word) for word in words]) == code
    printed = capsys.readouterr()
    return printed.err if code or not printed.out else printed.err + printed.out


def python(hub: Hub, tmp_path: Path, script: str, token: str | None = "hf_write_me") -> str:
    """What a script prints in a process without graftkit, with this Hub and an empty cache."""
    environment = os.environ | hub.environment(token, tmp_path / "stranger")
    script = f"import sys; sys.modules['graftkit'] = None\n{script}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def snippet(card: bytes) -> str:
    """The lines of Python in a card."""
    return re.search(r"```python\n(.*?)```", card.decode(), re.DOTALL)[1]


def rows(run: Path) -> list[dict]:
    return pq.read_table(run / "rows-test.parquet").to_pylist()


def table(run: Path) -> list[dict]:
    return pq.read_table(run / "predictions-test.parquet").to_pylist()


def test_a_text_model_is_loaded_by_the_lines_of_its_card(hub, runs, tmp_path, capsys):
    said = graft(capsys, "push", runs["text"], "me/texts", "--hub.private", "--hub.tag", "v1")
    assert "pushed" in said
    files = hub.files("me/texts")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "verification.json"} <= files.keys()
    assert {"run/run.json", "run/report.md", "run/metrics.json", "run/predictions-test.parquet"} <= files.keys()
    assert len(hub.commits("me/texts")) == 2  # the Hub's first, and one push
    text = rows(runs["text"])[0]["text"]
    lines = snippet(files["README.md"]).replace("a text", text)
    answer = eval(python(hub, tmp_path, lines))[0]  # the repr of a list
    for entry in answer:
        assert entry["score"] == pytest.approx(table(runs["text"])[0][f"probability:{entry['label']}"], abs=1e-4)
    unseen = f"try:\n    exec({lines!r})\nexcept OSError as error:\n    print('hidden')"
    shutil.rmtree(tmp_path / "stranger")
    assert "hidden" in python(hub, tmp_path, unseen, token=None)


def test_nothing_of_the_data_and_of_this_machine_leaves(hub, runs, tmp_path, capsys):
    graft(capsys, "push", runs["text"], "me/bare")
    graft(capsys, "push", runs["text"], "me/rows", "--hub.with_rows")
    texts = [row["text"] for row in rows(runs["text"])]
    graft(capsys, "push", runs["pictures"], "me/seen")
    assert not [path for path in hub.files("me/seen") if path.startswith(("run/rows", "run/report/"))]
    for name, with_rows in (("me/bare", False), ("me/rows", True), ("me/seen", False)):
        files = hub.files(name)
        shown = "\n".join(content.decode() for path, content in files.items() if path.endswith(cargo.TEXTS))
        if name == "me/seen":
            texts = [Path(row["path"]).name for row in rows(runs["pictures"])]
        assert str(tmp_path.parent) not in shown
        assert not [path for path in cargo.PATH.findall(shown) if cargo.is_local(path)]
        assert any(text in shown for text in texts) is with_rows
        assert ("run/rows-test.parquet" in files) is with_rows
        assert (cargo.LEFT_OUT in shown) is not with_rows


def test_a_network_of_timm_is_loaded_by_timm_and_by_a_pipeline(hub, runs, tmp_path, capsys):
    graft(capsys, "push", runs["pictures"], "me/pictures")
    path = rows(runs["pictures"])[0]["path"]
    script = f"""
import json, timm, torch
from PIL import Image
from transformers import pipeline
model = timm.create_model("hf-hub:me/pictures", pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.no_grad():
    chances = model(prepare(Image.open({path!r}))[None]).softmax(-1)[0].tolist()
piped = pipeline("image-classification", "me/pictures")({path!r}, top_k=None)
print(json.dumps([dict(zip(model.pretrained_cfg["label_names"], chances)), {{a["label"]: a["score"] for a in piped}}]))
"""
    truth = table(runs["pictures"])[0]
    for answer in json.loads(python(hub, tmp_path, script)):
        assert len(answer) == 3
        for label, chance in answer.items():
            assert chance == pytest.approx(truth[f"probability:{label}"], abs=1e-4)


@pytest.mark.slow
def test_an_adapter_needs_a_base_that_others_have(hub, runs, checkpoint, data, tmp_path, capsys):
    said = graft(capsys, "push", runs["adapter"], "me/adapter", code=2)
    assert "--hub.base_id to its id on the Hub, or --hub.merge" in said
    files = {path.name: path.read_bytes() for path in checkpoint("bert").iterdir()}
    hub.add("you/base", files)
    hub.add("you/other", files | {"model.safetensors": files["model.safetensors"][:-1] + b"\1"})
    said = graft(capsys, "push", runs["adapter"], "me/adapter", "--hub.base_id", "you/other", code=2)
    assert "its model.safetensors is not the file that this run loaded" in said
    assert "me/adapter" not in hub.repos
    graft(capsys, "push", runs["adapter"], "me/adapter", "--hub.base_id", "you/base")
    config = json.loads(hub.files("me/adapter")["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("you/base", hub.head("you/base"))
    text = rows(runs["adapter"])[0]["text"]
    answer = eval(python(hub, tmp_path, snippet(hub.files("me/adapter")["README.md"]).replace("a text", text)))
    for label, chance in answer.items():
        assert chance == pytest.approx(table(runs["adapter"])[0][f"probability:{label}"], abs=1e-4)
    graft(capsys, "pull", "me/adapter", "--out", tmp_path / "pulled")
    assert "nothing changed since" in graft(capsys, "push", tmp_path / "pulled", "me/adapter", "--data.path", data)


@pytest.mark.slow
def test_a_base_that_answers_otherwise_is_found(hub, runs, checkpoint, capsys):
    """The same weights under another setting: what is pushed is asked, with its base from the Hub."""
    files = {path.name: path.read_bytes() for path in checkpoint("bert").iterdir()}
    config = json.loads(files["config.json"]) | {"layer_norm_eps": 0.5}
    hub.add("you/eps", files | {"config.json": json.dumps(config).encode()})
    said = graft(capsys, "push", runs["adapter"], "me/eps", "--hub.base_id", "you/eps", code=2)
    assert "does not answer as its table says: other probabilities" in said
    assert "me/eps" not in hub.repos


@pytest.mark.slow
def test_a_merged_adapter_is_a_plain_model(hub, runs, data, tmp_path, capsys):
    graft(capsys, "push", runs["adapter"], "me/merged", "--hub.merge")
    files = hub.files("me/merged")
    assert "adapter_config.json" not in files
    text = rows(runs["adapter"])[0]["text"]
    answer = eval(python(hub, tmp_path, snippet(files["README.md"]).replace("a text", text)))[0]
    for entry in answer:
        assert entry["score"] == pytest.approx(table(runs["adapter"])[0][f"probability:{entry['label']}"], abs=1e-4)
    graft(capsys, "pull", "me/merged", "--out", tmp_path / "pulled")
    graft(capsys, "push", tmp_path / "pulled", "me/merged-again", "--data.path", data)
    assert "pipeline" in snippet(hub.files("me/merged-again")["README.md"])


def test_a_model_that_is_not_the_runs_is_not_pushed(hub, runs, tmp_path, capsys):
    run = Path(shutil.copytree(runs["text"], tmp_path / "run"))
    config = run / "model" / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    said = graft(capsys, "push", run, "me/broken", code=2)
    assert "is not the one that the run tested: config.json: hidden_act: 'gelu' -> 'relu'" in said
    assert "The run is whole in" in said
    assert "me/broken" not in hub.repos


def test_the_same_push_again_makes_no_commit(hub, runs, capsys):
    graft(capsys, "push", runs["text"], "me/again")
    head = hub.head("me/again")
    assert "nothing changed since" in graft(capsys, "push", runs["text"], "me/again")
    assert hub.head("me/again") == head


def test_a_pulled_run_is_a_run(hub, runs, data, tmp_path, capsys):
    graft(capsys, "push", runs["text"], "me/round")
    head = hub.head("me/round")
    out = tmp_path / "pulled"
    assert f"me/round at {head[:8]} is in {out}" in graft(capsys, "pull", "me/round", "--out", out)
    assert table(out) == table(runs["text"])
    assert (out / "metrics.json").read_bytes() == (runs["text"] / "metrics.json").read_bytes()
    assert (out / "model" / "model.safetensors").read_bytes() == (
        runs["text"] / "model" / "model.safetensors"
    ).read_bytes()
    (tmp_path / "new.txt").write_text("a saw\n")
    ask = ("predict", tmp_path / "new.txt")
    assert graft(capsys, ask[0], out, ask[1]) == graft(capsys, ask[0], runs["text"], ask[1]) != ""
    assert "is not empty" in graft(capsys, "pull", "me/round", "--out", out, code=2)
    said = graft(capsys, "push", out, "me/round", code=2)
    assert "Set --data.path to where they lie" in said
    head = hub.head("me/round")
    assert "nothing changed since" in graft(capsys, "push", out, "me/round", "--data.path", data)
    assert hub.head("me/round") == head
    graft(capsys, "push", out, "me/other-round", "--data.path", data)
    assert hub.files("me/other-round")["model.safetensors"] == hub.files("me/round")["model.safetensors"]


BAD = {
    "no folder": (("runs/none", "me/x"), "is no run's folder"),
    "no namespace": (("{text}", "x"), "lacks its namespace"),
    "no name": (("{text}", "me/"), "no name of a repository"),
    "somebody else's": (("{text}", "you/x"), "not you"),
    "not ours": (("{text}", "me/gpt2"), "holds what graftkit did not push"),
    "no id": (("{text}",), "say what to push, and where to"),
    "a flag that is none": (("{text}", "me/x", "--hub.privat"), "unknown setting --hub.privat"),
    "a card that is none": (("{text}", "me/x", "--hub.card", "{text}/none.md"), "cannot be read"),
    "a token in the card": (("{text}", "me/x", "--hub.card", "{notes}/token.md"), "holds what looks like a token"),
    "an address in the card": (("{text}", "me/x", "--hub.card", "{notes}/address.md"), "holds an e-mail address"),
    "a broken card": (("{text}", "me/x", "--hub.card", "{notes}/broken.md"), "not valid YAML"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_sent(hub, runs, tmp_path, capsys, case):
    (tmp_path / "token.md").write_text("hf_" + "a" * 34)
    (tmp_path / "address.md").write_text("Ask ana@example.org.")
    (tmp_path / "broken.md").write_text("---\nlicense: [\n---\nnotes")
    hub.add("me/gpt2", {"config.json": b"{}"})
    words, expected = BAD[case]
    places = {"text": runs["text"], "notes": tmp_path}
    said = graft(capsys, "push", *(word.format(**places) for word in words), code=2)
    assert said.count("\n") == 1
    assert expected in said
    assert "me/x" not in hub.repos
    assert set(hub.files("me/gpt2")) == {".gitattributes", "config.json"}


def test_the_way_to_try_again_is_the_same_push(hub, runs, capsys):
    """Above all, it must not make public what was to be private."""
    hub.fault("create", 403)
    words = ("push", runs["text"], "me/x", "--hub.private", "--hub.tag", "v1", "--hub.message", "two words")
    said = graft(capsys, *words, code=2)
    again = f"to try again: graft push {runs['text']} me/x --hub.private --hub.tag v1 --hub.message 'two words'"
    assert again in said
    assert "me/x" not in hub.repos


HOME = "/home/somebody"
KEPT = ["https://example.org/home/page", "and/or", "/m/02xyz/1", "../data/x.csv", "3/4 of 5/6"]


def test_paths_are_taken_out_and_nothing_else(tmp_path):
    run = {
        "data": {"path": "/srv/my data/reviews.csv", "sources": {}},
        "backbone": {"name": f"local-dir:{HOME}/ckpt"},
    }
    free = cargo.path_remover(tmp_path, run | {"root_folders": ["gpfs"]})
    given = "--data.path '/srv/my data/reviews.csv' --x local-dir:" + f"{HOME}/ckpt"
    assert free(given) == "--data.path 'reviews.csv' --x ckpt"
    assert free("~/a/b ~ana/a/c C:\\Users\\ana\\d /gpfs/ana/e") == "b c d e"
    assert [free(text) for text in KEPT] == KEPT
    for text in (f"local-dir:{HOME}/x", "see /gpfs/ana/e", f"file:{HOME}/y"):
        with pytest.raises(UserError, match="holds a path of a machine"):
            cargo.inspect_text("it", text, roots=["gpfs"])
    for text in KEPT:
        cargo.inspect_text("it", text)


def test_labels_are_what_they_are():
    labels = ["/home/garden/tools", "support@example.com", "*a|b*@example.com"]
    cargo.inspect_text("it", " | ".join([*labels, *map(escape, labels)]), labels)
    with pytest.raises(UserError, match=r"an e-mail address \(Ana@EXAMPLE.org\)"):
        cargo.inspect_text("it", "support@example.com, Ana@EXAMPLE.org, icon@2x.png", labels)
    cargo.inspect_text("it", "icon@2x.png")


def test_the_token_in_use_is_found(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    with pytest.raises(UserError, match="holds your token"):
        cargo.inspect_secrets("it", "x a-token-of-no-known-form x")


def test_files_that_may_run_code_do_not_leave(tmp_path):
    for name in ("model.bin", "modeling.py", "notes"):
        (tmp_path / name).write_text("x")
        with pytest.raises(UserError, match=f"{name} is of a kind that is not pushed"):
            cargo.inspect(tmp_path, [], [], "", with_rows=False)
        (tmp_path / name).unlink()


def test_a_run_that_did_not_finish_is_not_pushed(hub, runs, tmp_path, capsys):
    run = Path(shutil.copytree(runs["text"], tmp_path / "run"))
    shutil.rmtree(run / "model")
    assert "this run did not finish" in graft(capsys, "push", run, "me/x", code=2)


def test_a_token_that_may_only_read_is_found_before_training(hub, tmp_path, checkpoint, data, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_read_me")
    words = ("--backbone.name", checkpoint("bert"), "--data.path", data, "--run.out", tmp_path / "run")
    with pytest.raises(UserError, match="may only read"):
        run_recipe("text_classify", *words, "--hub.push_to", "me/x")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_recipe_pushes_what_it_trained(hub, tmp_path, image_checkpoint, pictures, capsys):
    words = ("--backbone.name", image_checkpoint("test_resnet"), "--data.path", pictures, "--train.epochs", 1)
    words += ("--run.out", tmp_path / "run", "--hub.push_to", "me/trained", "--hub.private")
    run_recipe("image_classify", *words)
    assert hub.repos["me/trained"].private
    assert hub.files("me/trained")["model.safetensors"] == (tmp_path / "run/model/model.safetensors").read_bytes()
    assert "hub" not in json.loads((tmp_path / "run" / "run.json").read_text())["backbone"]
