"""Nothing is lost: a run that was killed, and resumed, is the run that never stopped. Real processes, real signals."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import finish, launch, run_recipe, texts, write_csv

from graftkit.errors import UserError

SAME = ("log.jsonl", "model/model.safetensors", "predictions-test.parquet", "predictions-dev.parquet", "metrics.json")


def words(checkpoint, data) -> list[object]:
    return [
        "--backbone.name", checkpoint("bert", dropout=0.1), "--data.path", data, "--train.epochs", 6,
        "--train.batch_size", 2, "--train.accumulate", 2, "--train.save_every", 2, "--train.lr", 1e-3,
        "--run.precision", "fp32",
    ]  # fmt: skip


def updates(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_text().count('"loss"') if log.exists() else 0


def wait_for(process: subprocess.Popen, run: Path, update: int) -> bool:
    """Wait until a run logged so many updates; False if it ended before."""
    while updates(run) < update:
        if process.poll() is not None:
            return False
        time.sleep(0.003)
    return True


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory, checkpoint, data):
    """The run without a stop, by the number of processes."""
    runs: dict[int, Path] = {}

    def get(processes: int) -> Path:
        if processes not in runs:
            runs[processes] = tmp_path_factory.mktemp(f"whole-{processes}") / "run"
            launched = launch(
                "text_classify", *words(checkpoint, data), "--run.out", runs[processes], processes=processes
            )
            finish(launched)
        return runs[processes]

    return get


def assert_same(run: Path, whole: Path) -> None:
    for name in SAME:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL a process and all that it started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate(timeout=60)


def kill_and_resume(run: Path, command: list[object], processes: int, kills: int, rng: random.Random) -> None:
    """Kill a run with SIGKILL at random updates, resume it each time, and let it end."""
    command = [*command, "--run.out", run]
    total = 72 // processes
    for kill in range(kills):
        process = launch("text_classify", *command, *["--run.resume"][: min(kill, 1)], processes=processes)
        assert wait_for(process, run, updates(run) + rng.randint(1, total // (kills + 1)))
        kill_all(process)
        assert not (run / "model").exists()
    said = finish(launch("text_classify", *command, "--run.resume", processes=processes))
    assert "resumed after update" in said or f"{total} updates to go" in said


@pytest.mark.parametrize(("processes", "kills"), [pytest.param(1, 2, marks=pytest.mark.slow), (2, 1)])
def test_a_killed_run_ends_as_if_it_had_never_stopped(tmp_path, checkpoint, data, never_stopped, processes, kills):
    run = tmp_path / "run"
    kill_and_resume(run, words(checkpoint, data), processes, kills, random.Random(processes))
    assert_same(run, never_stopped(processes))


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, 15), (2, 10)])
def test_a_run_killed_many_times_ends_the_same(tmp_path, checkpoint, data, never_stopped, processes, kills):
    run = tmp_path / "run"
    kill_and_resume(run, words(checkpoint, data), processes, kills, random.Random(7))
    assert_same(run, never_stopped(processes))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, checkpoint, data, never_stopped, number):
    run = tmp_path / "run"
    process = launch("text_classify", *words(checkpoint, data), "--run.out", run)
    assert wait_for(process, run, 5)
    process.send_signal(number)
    said = finish(process, code=128 + number)
    assert re.search(
        rf"stopped by {number.name} after update \d+, which is saved; .*--run.out {run} --run.resume", said
    )
    assert "Traceback" not in said
    said = finish(launch("text_classify", *words(checkpoint, data), "--run.out", run, "--run.resume"))
    assert "resumed after update" in said
    assert_same(run, never_stopped(1))


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both(tmp_path, checkpoint, data, never_stopped):
    """The launcher of a cluster sends SIGTERM to processes, in any order: all save the same update and end."""
    run = tmp_path / "run"
    process = launch("text_classify", *words(checkpoint, data), "--run.out", run, processes=2)
    assert wait_for(process, run, 5)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "text_classify" in str(p.cmdline())]
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert len(re.findall(r"stopped by SIGTERM after update \d+, which is saved", said)) == 1
    said = finish(launch("text_classify", *words(checkpoint, data), "--run.out", run, "--run.resume", processes=2))
    assert "resumed after update" in said
    assert_same(run, never_stopped(2))


def test_a_changed_setting_on_resume_is_an_error_that_lists_it(tmp_path, checkpoint, data, never_stopped):
    changed = [*words(checkpoint, data), "--train.lr", "5e-4", "--run.seed", "3"]
    with pytest.raises(UserError, match=r"settings differ .*train.lr: 0.001 -> 0.0005; run.seed: 0 -> 3"):
        run_recipe("text_classify", *changed, "--run.out", never_stopped(1), "--run.resume")


def test_another_number_of_processes_on_resume_is_an_error(tmp_path, checkpoint, data, never_stopped):
    with pytest.raises(UserError, match="started with 2 processes, this one has 1"):
        run_recipe("text_classify", *words(checkpoint, data), "--run.out", never_stopped(2), "--run.resume")


def test_a_loss_that_is_not_finite_names_update_and_rows(tmp_path, checkpoint, data):
    words_ = [*words(checkpoint, data), "--train.lr", "1e38", "--train.clip", "1e30", "--run.out", tmp_path / "run"]
    with pytest.raises(UserError, match=r"the loss of update \d+ is (nan|inf); its rows: train-\d+, .*--train.lr"):
        run_recipe("text_classify", *words_)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "NaN" not in log
    assert "Infinity" not in log


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path, checkpoint, data, monkeypatch):
    """The loss is fine, its gradient is not: the newest checkpoint must be from before."""
    from graftkit import train
    from graftkit.checkpoint import WEIGHTS, newest

    whole, calls = train.accumulate_gradients, []

    def spoil(accelerator, task, model, update):
        loss = whole(accelerator, task, model, update)
        calls.append(update)
        if len(calls) == 6:
            next(model.parameters()).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(train, "accumulate_gradients", spoil)
    run = tmp_path / "run"
    command = [*words(checkpoint, data), "--train.save_every", "1", "--run.out", run]
    with pytest.raises(UserError, match=r"the gradient of update 6 is (nan|inf); its rows: train-\d+"):
        run_recipe("text_classify", *command)
    from safetensors.torch import load_file

    path = newest(run / "checkpoints")
    assert path.name == "update-00000005"
    assert all(value.isfinite().all() for value in load_file(path / WEIGHTS).values())


def test_a_step_that_loss_scaling_skips_is_noticed():
    """As on a GPU in fp16: one gradient overflows, the weights stay, and the schedule must not step."""
    import types

    import torch

    from graftkit.train import skips_step

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    accelerator = types.SimpleNamespace(scaler=scaler)
    for factor, expected in ((1.0, False), (float("inf"), True)):
        before = weight.detach().clone()
        scaler.scale(weight.sum() * 2).backward()
        weight.grad.mul_(factor)
        scaler.unscale_(optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_([weight], 1.0))
        assert skips_step(accelerator, 1.0, norm) is expected
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, weight) is expected
        optimizer.zero_grad()
    assert not skips_step(types.SimpleNamespace(scaler=None), 1.0, float("inf"))


def test_rows_that_changed_under_a_stopped_run_are_an_error(tmp_path, checkpoint):
    path = write_csv(tmp_path / "rows.csv", texts(60))
    run = tmp_path / "run"
    command = ["--backbone.name", checkpoint("bert"), "--data.path", path, "--train.epochs", 1, "--run.out", run]
    run_recipe("text_classify", *command)
    write_csv(path, [("another text", "tool"), *texts(60)[1:]])
    with pytest.raises(UserError, match=r"not what the run was started with: .*rows"):
        run_recipe("text_classify", *command, "--run.resume")


def test_a_finished_run_that_is_resumed_gives_the_same(tmp_path, checkpoint, data):
    run = tmp_path / "run"
    first = run_recipe("text_classify", *words(checkpoint, data), "--run.out", run)
    weights = (run / "model/model.safetensors").read_bytes()
    assert run_recipe("text_classify", *words(checkpoint, data), "--run.out", run, "--run.resume") == first
    assert (run / "model/model.safetensors").read_bytes() == weights


def test_gradient_checkpointing_computes_twice_and_changes_nothing(tmp_path, checkpoint, data, monkeypatch):
    from transformers.models.bert.modeling_bert import BertIntermediate

    forward, calls = BertIntermediate.forward, []
    monkeypatch.setattr(BertIntermediate, "forward", lambda *inputs: calls.append(1) or forward(*inputs))
    counts, scores = [], []
    for name, flag in (("plain", "false"), ("saving", "true")):
        calls.clear()
        command = [*words(checkpoint, data), "--train.max_steps", 8, "--train.checkpointing", flag]
        scores.append(run_recipe("text_classify", *command, "--run.out", tmp_path / name)["test"]["scores"])
        counts.append(len(calls))
    assert counts[1] - counts[0] == 8 * 2 * 3  # once more for each update, micro-batch and block
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_max_steps_ends_within_an_epoch(tmp_path, checkpoint, data):
    metrics = run_recipe("text_classify", *words(checkpoint, data), "--train.max_steps", 7, "--run.out", tmp_path / "r")
    assert updates(tmp_path / "r") == 7
    assert metrics["test"]["rows"] == 19
