"""The folder of a run, and what a user can get wrong about it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from conftest import finish, launch, run_recipe

from graftkit.errors import UserError
from graftkit.machine import processes_asked_for
from graftkit.run import once


@pytest.fixture
def words(checkpoint, data):
    return ["--backbone.name", checkpoint("bert"), "--data.path", data, "--train.max_steps", 1]


def test_a_folder_that_is_not_empty_is_refused_and_stays(tmp_path, words):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match=r"is not empty; set --run.resume, --run.overwrite or another"):
        run_recipe("text_classify", *words, "--run.out", tmp_path)
    with pytest.raises(UserError, match="holds no run of graftkit, so nothing in it is deleted"):
        run_recipe("text_classify", *words, "--run.out", tmp_path, "--run.overwrite")
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_model_in_shards_is_refused(tmp_path, words, monkeypatch, kind):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(UserError, match=rf"{kind}: not supported.*distributed_type to MULTI_GPU"):
        run_recipe("text_classify", *words, "--run.out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_overwriting_waits_until_the_data_are_found_good(tmp_path, words):
    out = tmp_path / "run"
    run_recipe("text_classify", *words, "--run.out", out)
    before = (out / "metrics.json").read_bytes()
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        run_recipe("text_classify", *words, "--data.path", "nowhere.csv", "--run.out", out, "--run.overwrite")
    assert (out / "metrics.json").read_bytes() == before
    run_recipe("text_classify", *words, "--run.seed", 3, "--run.out", out, "--run.overwrite")
    assert (out / "metrics.json").read_bytes() != before


@pytest.mark.parametrize(("flag", "place"), [("backbone.name", "model"), ("data.path", "rows"), ("train.teacher", "")])
def test_a_run_does_not_overwrite_what_it_reads(tmp_path, words, data, flag, place):
    out, link = tmp_path / "run", tmp_path / "link"
    (out / "model").mkdir(parents=True)
    (out / "config.yaml").write_text("run: {}\n")
    (out / "model" / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    (out / "rows").mkdir()
    link.symlink_to(out)
    for given in (out / place, link / place):
        with pytest.raises(
            UserError, match=rf"--run.overwrite would delete .*run, in which --{flag} .* lies; name"
        ) as e:
            run_recipe("text_classify", *words, f"--{flag}", given, "--run.out", out, "--run.overwrite")
        assert "\n" not in str(e.value)
    assert (out / "model" / "config.json").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--run.resume",), "--run.resume needs --run.out"),
        (("--run.resume", "--run.out", "nowhere"), "nowhere holds no run"),
        (("--run.resume", "--run.overwrite", "--run.out", "x"), "exclude each other"),
        (("--run.headline", "log_loss"), "this task has macro_f1, accuracy"),
        (("--run.trackers", "tensorbord"), "--run.trackers tensorbord: not installed, or no tracker"),
        (("--run.precision", "fp16"), "fp16 needs a CUDA GPU"),
        (("--backbone.name", "./nowhere"), "--backbone.name ./nowhere: no such folder"),
        (("--backbone.max_length", 4000), "this checkpoint reads at most"),
        (("--backbone.max_length", 2), "2 are special tokens"),
    ],
)
def test_a_mistake_is_a_line_that_names_the_way_out(words, more, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as error:
        run_recipe("text_classify", *words, *more)
    assert "\n" not in str(error.value)


def test_a_mistake_exits_with_2_and_no_traceback(words):
    said = finish(launch("text_classify", *words, "--train.lr", "-1"), code=2)
    assert said == "error: --train.lr must be a number above 0 or auto, not -1.0\n"


def test_a_pickle_is_not_read(tmp_path, checkpoint, words):
    import shutil

    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(checkpoint("bert"), folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds pickled weights \(.bin\) only, which can run code"):
        run_recipe("text_classify", *words, "--backbone.name", folder, "--run.out", tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (("accelerate", "launch", "recipe.py"), {}, 7),
        (("accelerate", "launch", "recipe.py"), {"OMP_NUM_THREADS": "1"}, 1),
        (("accelerate", "launch", "--num_cpu_threads_per_process", "1", "recipe.py"), {}, 1),
        (("bash",), {}, 1),
    ],
)
def test_accelerate_launch_leaves_no_core_idle(monkeypatch, words, environment, expected):
    import psutil
    import torch

    from graftkit.machine import use_all_cores

    given = []
    fake = type("Fake", (), {"cmdline": lambda self: list(words), "environ": lambda self: environment})
    monkeypatch.setattr(psutil, "Process", lambda pid: fake())
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 7)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    use_all_cores()
    assert given == ([7] if expected == 7 else [])


def test_fewer_processes_than_asked_for_are_noticed(monkeypatch):
    import psutil

    def parent(*words):
        fake = type("Fake", (), {"__init__": lambda self, pid: None, "cmdline": lambda self: list(words)})
        monkeypatch.setattr(psutil, "Process", fake)

    parent(sys.executable, "accelerate", "launch", "--cpu", "--num_processes", "2", "recipe.py")
    assert processes_asked_for() == 2
    parent(sys.executable, "accelerate", "launch", "--num_processes=4", "recipe.py")
    assert processes_asked_for() == 4
    parent(sys.executable, "accelerate", "launch", "recipe.py")
    assert processes_asked_for() is None
    parent("bash")
    assert processes_asked_for() is None


@pytest.mark.parametrize("others", [False, True])
def test_a_kept_run_is_made_once_and_never_seen_half(tmp_path, monkeypatch, others):
    """Also where another program finishes the same run in the meantime."""
    from dataclasses import dataclass, field
    from pathlib import Path

    from graftkit.run import RunConfig, kept_run

    @dataclass(frozen=True)
    class Config:
        run: RunConfig = field(default_factory=RunConfig)

    made = []

    def main(config):
        mine = Path(config.run.out)
        mine.mkdir(parents=True)
        (mine / "metrics.json").write_text("mine")
        made.append(mine)
        if others:
            folder = mine.with_suffix("")
            folder.mkdir()
            (folder / "metrics.json").write_text("theirs")

    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path))
    folder = kept_run(Config(), main)
    assert kept_run(Config(), main) == folder
    assert len(made) == 1
    assert not made[0].exists()
    assert (folder / "metrics.json").read_text() == ("theirs" if others else "mine")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (UserError("no such column"), UserError("no such column")),
        (KeyError("x"), RuntimeError("the main process failed: KeyError")),
    ],
)
def test_only_the_mistakes_of_the_user_are_told_as_such_by_the_other_processes(monkeypatch, raised, told):
    sent = []

    def broadcast(outcome):
        outcome[:] = sent or outcome  # the other process gets what the main one sent
        sent[:] = outcome

    def fail():
        raise raised

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", broadcast)
    with pytest.raises(type(raised)):
        once(SimpleNamespace(is_main_process=True), fail)
    with pytest.raises(type(told), match=str(told)):
        once(SimpleNamespace(is_main_process=False), fail)
