from __future__ import annotations

import errno
import json

import pytest
import torch
from torch import nn

from graftkit import checkpoint
from graftkit.checkpoint import State, aside_then_renamed
from graftkit.errors import UserError
from graftkit.optim import make_optimizer, set_lr


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def step(model, optimizer, seed):
    torch.manual_seed(seed)
    model(torch.randn(6, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def optimizer_of(model):
    return make_optimizer(model, {"2.weight", "2.bias"}, 1e-2, 1e-1, 0.1)


def test_weights_buffers_and_optimizer_come_back_bit_for_bit(tmp_path):
    model, other = network(), network(seed=1)
    optimizer, second = optimizer_of(model), optimizer_of(other)
    for seed in range(3):
        step(model, optimizer, seed)
    path = checkpoint.save(tmp_path, model, optimizer, State(update=3))
    checkpoint.load_weights(path, other)
    checkpoint.load_optimizer(path, second)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(other, second, seed)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_only_what_trains_is_kept_and_another_model_is_refused(tmp_path):
    model = network()
    model[0].weight.requires_grad = False
    path = checkpoint.save(tmp_path, model, optimizer_of(model), State(update=1))
    from safetensors.torch import load_file

    assert "0.weight" not in load_file(path / checkpoint.WEIGHTS)
    with pytest.raises(UserError, match="not a checkpoint of this model"):
        checkpoint.load_weights(path, network())


def test_the_newest_and_the_best_are_kept(tmp_path):
    model = network()
    optimizer = optimizer_of(model)
    step(model, optimizer, 0)
    for update in range(1, 6):
        checkpoint.save(tmp_path, model, optimizer, State(update=update, best_update=2 if update > 1 else 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-00000002", "update-00000005"]
    assert checkpoint.newest(tmp_path).name == "update-00000005"
    assert checkpoint.read_state(tmp_path / "update-00000005").best_update == 2


def test_the_weights_of_every_epoch_are_kept_where_a_soup_is_asked_for(tmp_path):
    model = network()
    optimizer, epochs = optimizer_of(model), []
    assert checkpoint.of_epochs(tmp_path) == []
    for update in range(1, 8):
        step(model, optimizer, update)
        epochs += [update] * (update % 2 == 0)
        checkpoint.save(tmp_path, model, optimizer, State(update=update, best_update=2, epochs=list(epochs)))
        if update == 4:
            fourth = {name: value.clone() for name, value in model.state_dict().items()}
    paths = checkpoint.of_epochs(tmp_path)
    assert [path.name for path in paths] == ["update-00000002", "update-00000004", "update-00000006"]
    assert {file.name for path in paths for file in path.iterdir()} == {checkpoint.WEIGHTS, checkpoint.STATE}
    assert len(list(tmp_path.iterdir())) == 4  # with the newest, to go on from
    weights = checkpoint.read_weights(paths[1])
    assert all(torch.equal(value, fourth[name]) for name, value in weights.items())


def test_an_average_is_the_model_and_what_was_stepped_comes_back_for_training(tmp_path):
    model, other = network(), network(seed=1)
    optimizer = optimizer_of(model)
    step(model, optimizer, 0)
    average = {name: value * 0.5 for name, value in model.state_dict().items() if value.is_floating_point()}
    average |= {name: value for name, value in model.state_dict().items() if not value.is_floating_point()}
    path = checkpoint.save(tmp_path, model, optimizer, State(update=1, best_update=1), average)
    found = {name: torch.zeros_like(value) for name, value in average.items()}
    checkpoint.load_stepped(path, other, found)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in found.items())
    checkpoint.load_weights(path, other)
    assert torch.equal(other[0].weight, model[0].weight * 0.5)
    checkpoint.save(tmp_path, model, optimizer, State(update=2, best_update=1), average)
    assert {file.name for file in path.iterdir()} == {checkpoint.WEIGHTS, checkpoint.STATE}  # the best, for its weights


def test_no_file_is_a_pickle(tmp_path):
    model = network()
    optimizer = optimizer_of(model)
    step(model, optimizer, 0)
    path = checkpoint.save(tmp_path, model, optimizer, State(update=1))
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    json.loads((path / checkpoint.STATE).read_text())


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path, monkeypatch, after):
    import safetensors.torch

    model = network()
    optimizer = optimizer_of(model)
    step(model, optimizer, 0)
    checkpoint.save(tmp_path, model, optimizer, State(update=1, best_update=1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    whole, calls = safetensors.torch.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) > after:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(UserError, match=r"the disk is full.*--run.resume"):
        checkpoint.save(tmp_path, model, optimizer, State(update=2, best_update=2))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_reader_never_sees_half_a_folder(tmp_path):
    final = tmp_path / "model"
    with aside_then_renamed(final) as aside:
        (aside / "a").write_text("old")

    def stop_half_way():
        with aside_then_renamed(final) as aside:
            (aside / "a").write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_half_way()
    assert (final / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(("updates", "warmup"), [(10, 0.0), (100, 0.1), (1, 0.5), (7, 1.0)])
def test_the_rate_rises_then_falls_and_never_is_zero(updates, warmup):
    optimizer = optimizer_of(network())
    factors = [set_lr(optimizer, update, updates, warmup) for update in range(updates)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert peak == round(updates * warmup) - (warmup == 1.0)
    heads = {group["peak_lr"]: group["lr"] for group in optimizer.param_groups}
    assert heads[1e-1] == pytest.approx(10 * heads[1e-2])


def test_vectors_do_not_decay_and_the_head_has_its_own_rate():
    optimizer = optimizer_of(network())
    groups = {name: group for group in optimizer.param_groups for name in group["names"]}
    decays = {name: group["weight_decay"] for name, group in groups.items()}
    assert decays == {"0.weight": 0.1, "0.bias": 0, "1.weight": 0, "1.bias": 0, "2.weight": 0.1, "2.bias": 0}
    rates = {name: group["peak_lr"] for name, group in groups.items()}
    assert {name for name, rate in rates.items() if rate == 1e-1} == {"2.weight", "2.bias"}
