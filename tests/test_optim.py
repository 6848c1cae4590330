from __future__ import annotations

import itertools
import re

import pytest
import torch
from test_adapt import headed
from torch import nn

from graftkit.adapt import AdaptConfig, Adapted, adapt
from graftkit.averaging import Average
from graftkit.backbone import BackboneConfig
from graftkit.blocks import Depths, depths_of
from graftkit.errors import UserError
from graftkit.image_backbone import ImageBackboneConfig, load_image_classifier
from graftkit.images import ImageConfig
from graftkit.optim import (
    begin_from_the_top,
    find_statistics,
    hold_statistics,
    leave_waiting,
    make_optimizer,
    pull_to_start,
    remember_start,
    set_lr,
    wait_for_head,
)
from graftkit.tasks.sequence_to_sequence import load_writer
from graftkit.train import TrainConfig
from graftkit.turns import optimizer_of

# rates by depth

PLACES = {
    "bert": (3, r"bert\.embeddings\.", r"bert\.encoder\.layer\.(\d)\.", r"bert\.pooler\."),
    "gpt2": (3, r"transformer\.w[tp]e\.", r"transformer\.h\.(\d)\.", r"transformer\.ln_f\."),
    "test_vit": (6, r"cls_token|pos_embed|patch_embed", r"blocks\.(\d)\.", None),
    "test_resnet": (4, r"conv1|bn1", r"layer(\d)\.", None),
}  # blocks, and what their parameters are called: what feeds them, each, what follows them


def load(kind, checkpoint, image_checkpoint):
    if kind.startswith("test_"):
        config = ImageBackboneConfig(name=str(image_checkpoint(kind)))
        return load_image_classifier(config, ImageConfig(size=64, workers=0), ["x", "y", "z"], 0).headed
    return headed(checkpoint(kind))


def place(kind, name):
    """The depth of a parameter, read off its name; none for the head."""
    blocks, below, block, above = PLACES[kind]
    name = name.removeprefix("base_model.model.")
    if re.match(below, name):
        return 0
    if found := re.match(block, name):
        return int(found[1]) + (kind != "test_resnet")
    if kind == "test_vit" and name.startswith("norm."):
        return blocks  # timm's own matcher puts the last norm there
    return blocks + 1 if above and re.match(above, name) else None


@pytest.mark.parametrize("strategy", ["full", "lora"])
@pytest.mark.parametrize("kind", PLACES)
def test_each_depth_has_its_rate(checkpoint, image_checkpoint, kind, strategy):
    adapted = adapt(load(kind, checkpoint, image_checkpoint), AdaptConfig(strategy=strategy))
    optimizer = optimizer_of(adapted, TrainConfig(lr=1e-3, head_lr=7e-3, layer_decay=0.5))
    rates = {name: group["peak_lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates.keys() == {name for name, p in adapted.model.named_parameters() if p.requires_grad}
    top, found = PLACES[kind][0] + 1, set()
    for name, rate in rates.items():
        depth = place(kind, name)
        assert (depth is None) == (name in adapted.head), name
        assert rate == (7e-3 if depth is None else 1e-3 * 0.5 ** (top - depth)), name
        found.add(depth)
    blocks = set(range(1, top))
    above = {top} if PLACES[kind][3] else set()
    assert found == blocks | {None} | (above | {0} if strategy == "full" else set())


def test_without_a_decay_groups_are_as_they_were(checkpoint):
    adapted = adapt(headed(checkpoint("bert")), AdaptConfig())
    groups = optimizer_of(adapted, TrainConfig(lr=1e-3)).param_groups
    assert sorted((group["peak_lr"], group["weight_decay"]) for group in groups) == [
        (1e-3, 0), (1e-3, 0.01), (5e-2, 0), (5e-2, 0.01),
    ]  # fmt: skip


@pytest.mark.parametrize(("rate", "expected"), [({"head_factor": 10.0}, 1e-2), ({"head_lr": 3e-3}, 3e-3)])
def test_the_head_learns_at_its_share_of_the_rate_or_at_its_own(checkpoint, rate, expected):
    adapted = adapt(headed(checkpoint("bert")), AdaptConfig())
    groups = optimizer_of(adapted, TrainConfig(lr=1e-3, **rate)).param_groups
    assert {group["peak_lr"] for group in groups if group["in_head"]} == {expected}


@pytest.mark.parametrize("setting", [{"layer_decay": 0.9}, {"unfreeze_every": 1}])
def test_a_network_without_one_line_of_blocks_has_no_depths(checkpoint, setting):
    flag = "--train." + " ".join(str(word) for pair in setting.items() for word in pair)
    writer = adapt(load_writer(BackboneConfig(name=str(checkpoint("t5"))), 0), AdaptConfig())
    with pytest.raises(UserError, match=f"{flag}: T5.* reads with an encoder and writes with a decoder.*leave it out"):
        optimizer_of(writer, TrainConfig(**setting))
    with pytest.raises(UserError, match=f"{flag}: Linear has no blocks to tell apart; leave it out"):
        optimizer_of(Adapted(nn.Linear(2, 2), {"bias"}, ""), TrainConfig(**setting))


def test_a_prompt_of_peft_feeds_the_blocks(checkpoint):
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(
        headed(checkpoint("bert")).model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    )
    where, blocks, depths = depths_of(model)
    assert (where, blocks) == ("bert.encoder.layer", 3)
    assert depths["prompt_encoder.default.embedding.weight"] == 0
    assert depths["base_model.bert.encoder.layer.2.output.dense.weight"] == 3


# groups that begin later

NAMES = ("below", "one", "two", "three", "above", "head")
DEPTHS = Depths("", 3, {f"{name}.{kind}": depth for depth, name in enumerate(NAMES[:5]) for kind in ("weight", "bias")})
BEGINS = {"below": 8, "one": 6, "two": 4, "three": 2, "above": 2, "head": 0}


def tower():
    torch.manual_seed(0)
    model = nn.Sequential()
    for name in NAMES:
        model.add_module(name, nn.Linear(3, 3))
    return model, {"head.weight", "head.bias"}


def test_a_group_is_frozen_to_the_bit_until_it_begins_and_then_starts_fresh():
    model, head = tower()
    optimizer = make_optimizer(model, head, 1e-2, 1e-1, 0.1, DEPTHS)
    begin_from_the_top(optimizer, every=2, blocks=3)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    alone = {}  # what AdamW's first step does, by the group: the sign of the gradient, at the first rate
    for update in range(10):
        factor = set_lr(optimizer, update, 10, 0.25)
        rates = {name.partition(".")[0]: group["lr"] for group in optimizer.param_groups for name in group["names"]}
        for name, begins in BEGINS.items():
            assert (rates[name] == 0) == (update < begins), (name, update)
        assert rates["three"] == pytest.approx(1e-2 * factor)
        model(torch.ones(2, 3)).square().sum().backward()
        whole = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]))
        leave_waiting(optimizer, update)
        counted = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
        assert (counted < whole) == (update < 8)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        signs = {name: p.grad.sign() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        optimizer.zero_grad()
        for name, parameter in model.named_parameters():
            begins = BEGINS[name.partition(".")[0]]
            assert torch.equal(parameter, start[name]) == (update < begins), (name, update)
            state = optimizer.state[parameter]
            assert bool(state) == (update >= begins)
            if update == begins:
                assert int(state["step"]) == 1
                decay = 0.1 if parameter.ndim > 1 else 0.0
                rate = rates[name.partition(".")[0]]
                alone[name] = before[name] * (1 - rate * decay) - rate * signs[name]
                torch.testing.assert_close(parameter.detach(), alone[name], atol=1e-6, rtol=0)
    assert len(alone) == 12


def test_each_group_warms_up_from_when_it_begins():
    model, head = tower()
    optimizer = make_optimizer(model, head, 1e-2, 1e-1, 0.1, DEPTHS)
    plain = make_optimizer(*tower(), 1e-2, 1e-1, 0.1)
    begin_from_the_top(optimizer, every=20, blocks=3)
    for update in range(100):
        set_lr(optimizer, update, 100, 0.1)
        for group in optimizer.param_groups:
            begins = group["begins"]
            expected = set_lr(plain, update - begins, 100 - begins, 0.1) if update >= begins else 0.0
            assert group["lr"] == pytest.approx(group["peak_lr"] * expected)


def test_moving_statistics_wait_with_their_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    optimizer = make_optimizer(model, {"3.weight", "3.bias"}, 1e-2, 1e-1, 0.1)
    assert find_statistics(model, optimizer) == []
    wait_for_head(optimizer, 3)
    waiting = find_statistics(model, optimizer)
    start = model[1].running_mean.clone()
    for update in range(6):
        model.train()
        hold_statistics(waiting, update)
        assert model[2].training
        model(torch.randn(5, 3))
        assert torch.equal(model[1].running_mean, start) == (update < 3)


def test_only_groups_that_train_take_a_turn():
    model, head = tower()
    for name in ("below", "one", "above"):
        model.get_submodule(name).requires_grad_(requires_grad=False)
    optimizer = make_optimizer(model, head, 1e-2, 1e-1, 0.1, DEPTHS)
    begin_from_the_top(optimizer, every=5, blocks=3)
    assert {group["names"][0]: group["begins"] for group in optimizer.param_groups} == {
        "two.weight": 10, "two.bias": 10, "three.weight": 5, "three.bias": 5, "head.weight": 0, "head.bias": 0,
    }  # fmt: skip


# the way back to the start


@pytest.mark.parametrize("strength", [0.5, 20.0, 1e6])
def test_without_a_gradient_weights_go_back_as_the_formula_says(strength):
    model, head = tower()
    optimizer = make_optimizer(model, head, 1e-2, 1e-1, 0.0, l2_sp=strength)
    start = remember_start(optimizer)
    origin = {name: p.detach().clone() for name, p in model.named_parameters()}
    away = {name: torch.randn_like(value) for name, value in origin.items()}
    for name, parameter in model.named_parameters():
        parameter.detach().add_(away[name])
    shrunk = 1.0
    for update in range(5):
        shrunk /= 1 + 1e-2 * set_lr(optimizer, update, 5, 0.4) * strength
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        pull_to_start(optimizer, start)
        for name, parameter in model.named_parameters():
            left = away[name] * (1.0 if name in head else shrunk)
            torch.testing.assert_close(parameter.detach() - origin[name], left, atol=1e-6, rtol=1e-5)


def test_what_is_pulled_to_its_start_does_not_decay_to_nothing():
    optimizer = make_optimizer(*tower(), 1e-2, 1e-1, 0.1, l2_sp=1.0)
    found = {(group["in_head"], group["weight_decay"], group["pull"]) for group in optimizer.param_groups}
    assert found == {(False, 0.0, 1.0), (True, 0.1, 0.0), (True, 0.0, 0.0)}
    assert not any(remember_start(make_optimizer(*tower(), 1e-2, 1e-1, 0.1)))


def test_a_weight_hardly_goes_further_than_the_inverse_of_the_pull():
    """AdamW goes about lr a step, the pull takes lr x pull of the way back: they meet at 1 / pull."""
    weight = nn.Parameter(torch.zeros(4))
    model = nn.ParameterDict({"weight": weight})
    optimizer = make_optimizer(model, set(), 1e-2, 1e-2, 0.0, l2_sp=20.0)
    start = remember_start(optimizer)
    for _ in range(200):
        set_lr(optimizer, 0, 10, 0.0)
        weight.grad = torch.tensor([1e-3, 1.0, -1.0, 50.0])
        optimizer.step()
        pull_to_start(optimizer, start)
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.05, -0.05, 0.05, -0.05]), atol=2e-3, rtol=0)


# the average of the weights


def test_the_average_is_the_one_by_hand():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].bias.requires_grad = False
    optimizer = make_optimizer(model, set(), 1e-2, 1e-2, 0.1)
    average = Average(model, 0.8)
    hand = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(1, 61):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.follow(step)
        decay = min(0.8, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            floats = value.is_floating_point()
            hand[name] = decay * hand[name] + (1 - decay) * value if floats else value.clone()
    assert "2.bias" not in average.values
    for name, value in average.values.items():
        torch.testing.assert_close(value, hand[name], msg=name)
    assert int(average.values["1.num_batches_tracked"]) == 60
    stepped = {name: value.clone() for name, value in model.state_dict().items()}
    with average.in_place():
        for name, value in average.values.items():
            torch.testing.assert_close(model.state_dict()[name], hand[name])
            assert torch.equal(value, stepped[name])
    assert all(torch.equal(value, stepped[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(average.values["0.weight"], hand["0.weight"])


def test_without_a_decay_there_is_no_average():
    model = nn.Linear(2, 2)
    average = Average(model, None)
    before = [p.detach().clone() for p in model.parameters()]
    average.follow(1)
    with average.in_place():
        pass
    assert average.values == {}
    assert all(itertools.starmap(torch.equal, zip(before, model.parameters(), strict=True)))
