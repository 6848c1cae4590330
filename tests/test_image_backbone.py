"""Networks for pictures: where they come from, what of them trains, and what others load."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch
from conftest import IMAGE_KINDS

from graftkit.adapt import AdaptConfig, adapt, find_blocks, set_training_mode
from graftkit.errors import UserError
from graftkit.failures import check_reached
from graftkit.heads import Headed, head_modules, recompute_activations
from graftkit.image_backbone import ImageBackboneConfig, load_image_classifier, load_timm, save_timm
from graftkit.images import ImageConfig

LABELS = ["daisy", "rose", "tulip"]


def load(folder, labels=LABELS, seed=0, image=None, **settings):
    return load_image_classifier(
        ImageBackboneConfig(name=str(folder), **settings), image or ImageConfig(), labels, seed
    )


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


HEADS = {
    "test_resnet": {"fc.weight", "fc.bias"},
    "test_efficientnet": {"classifier.weight", "classifier.bias"},
    "test_vit": {"head.weight", "head.bias"},
    "test_convnext": {"head.fc.weight", "head.fc.bias"},
    "vit": {"classifier.weight", "classifier.bias"},
    "swin": {"classifier.weight", "classifier.bias"},
    "convnext": {"classifier.weight", "classifier.bias"},
}


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_the_head_is_what_the_headless_network_lacks(image_checkpoint, kind):
    found = load(image_checkpoint(kind)).headed
    assert found.head == HEADS[kind]
    adapted = adapt(found, AdaptConfig(strategy="head"))
    assert trained(adapted.model) == HEADS[kind]
    assert len(head_modules(found.model, found.head)) == 1


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_a_checkpoint_gives_its_own_weights_and_the_seed_the_head(image_checkpoint, kind):
    first, again, other = (load(image_checkpoint(kind), seed=seed).headed.model for seed in (0, 0, 1))
    scratch = load(image_checkpoint(kind), seed=5, pretrained=False).headed.model  # tiny ones are made with seed 0
    for name, parameter in first.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)
        if name not in HEADS[kind]:
            assert torch.equal(other.get_parameter(name), parameter)
            constant = parameter.min() == parameter.max()
            assert constant or not torch.equal(scratch.get_parameter(name), parameter), name
        elif name.endswith("weight"):
            assert not torch.equal(other.get_parameter(name), parameter)


def test_a_head_with_the_same_labels_stays(tmp_path, image_checkpoint):
    model = load(image_checkpoint("test_resnet"))
    torch.nn.init.constant_(model.headed.model.fc.bias, 3.0)
    save_timm(tmp_path, model.headed.model, LABELS, model.preprocessing)
    assert (load(tmp_path).headed.model.fc.bias == 3).all()
    assert not (load(tmp_path, labels=["rose", "daisy", "tulip"]).headed.model.fc.bias == 3).any()
    assert load(tmp_path, labels=["a", "b"]).headed.model.fc.bias.shape == (2,)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_last_trains_the_top_blocks_and_what_follows(image_checkpoint, kind):
    found = load(image_checkpoint(kind)).headed
    _, count, depths = find_blocks(found.model)
    assert set(depths.values()) == set(range(count + 2)) or kind in ("convnext", "swin", "vit")
    adapted = adapt(found, AdaptConfig(strategy="last", blocks=1))
    names = trained(adapted.model)
    assert {depths[name] for name in names} == {count, count + 1}
    assert names == {name for name, depth in depths.items() if depth >= count}
    with pytest.raises(UserError, match=rf"--adapt.blocks {count + 1}: .* has {count} blocks"):
        adapt(found, AdaptConfig(strategy="last", blocks=count + 1))


LAST = {
    "test_resnet": ("layer4.", ["conv1.", "bn1.", "layer3."]),
    "test_efficientnet": ("blocks.", ["conv_stem", "bn1.", "blocks.0."]),
    "test_vit": ("blocks.", ["patch_embed.", "pos_embed", "blocks.0."]),
}


@pytest.mark.parametrize("kind", LAST)
def test_the_stem_and_the_lower_blocks_are_frozen(image_checkpoint, kind):
    adapted = adapt(load(image_checkpoint(kind)).headed, AdaptConfig(strategy="last", blocks=1))
    inside, below = LAST[kind]
    assert any(name.startswith(inside) for name in trained(adapted.model))
    assert not any(name.startswith(tuple(below)) for name in trained(adapted.model))


@pytest.mark.parametrize("strategy", ["head", "last", "lora"])
@pytest.mark.parametrize("kind", ["test_resnet", "test_efficientnet"])
def test_a_frozen_batch_norm_does_not_move(image_checkpoint, kind, strategy):
    blocks = {"blocks": 1} if strategy == "last" else {}
    adapted = adapt(load(image_checkpoint(kind)).headed, AdaptConfig(strategy=strategy, **blocks))
    model = adapted.model
    norms = {name: m for name, m in model.named_modules() if hasattr(m, "running_mean") and m.weight is not None}
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    set_training_mode(model)
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    moved = {name for name, norm in norms.items() if not torch.equal(norm.running_mean, before[name])}
    assert moved == {name for name, norm in norms.items() if norm.weight.requires_grad}
    assert bool(moved) == (strategy == "last")
    for parameter in model.parameters():
        parameter.requires_grad = True
    set_training_mode(model)
    model(torch.randn(4, 3, 64, 64))
    assert all(not torch.equal(norm.running_mean, before[name]) for name, norm in norms.items())


def test_lora_adapts_pointwise_convolutions_and_names_the_depthwise_ones_that_it_leaves(image_checkpoint):
    adapted = adapt(load(image_checkpoint("test_efficientnet")).headed, AdaptConfig(strategy="lora", rank=2))
    adapters = {name.partition(".lora_A")[0] for name in trained(adapted.model) if ".lora_A" in name}
    plain = adapted.model.get_base_model()
    assert adapters
    assert all(adapted.model.get_submodule(name).base_layer.groups == 1 for name in adapters)
    depthwise = [name for name, m in plain.named_modules() if getattr(m, "groups", 1) > 1]
    assert depthwise
    assert f"not on {len(depthwise)} that PEFT cannot merge ({depthwise[0]}" in adapted.description
    assert {name for name in trained(adapted.model) if "lora_" not in name} == adapted.head
    leaf = depthwise[0].rpartition(".")[2]
    with pytest.raises(UserError, match=rf"--adapt.targets {leaf}: a kind of layer that PEFT cannot merge"):
        adapt(load(image_checkpoint("test_efficientnet")).headed, AdaptConfig(strategy="lora", targets=[leaf]))


def test_lora_leaves_standardised_convolutions(image_checkpoint):
    """PEFT would add its update to the raw weight, which the layer standardises afterwards."""
    adapted = adapt(load("test_nfnet", pretrained=False).headed, AdaptConfig(strategy="lora", rank=2))
    adapters = [m for name, m in adapted.model.named_modules() if name.endswith("base_layer")]
    assert adapters
    assert not [m for m in adapters if "Std" in type(m).__name__]
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        pixels = torch.randn(2, 3, 64, 64)
        before = adapted.model.eval()(pixels)
        torch.testing.assert_close(adapted.model.merge_and_unload().eval()(pixels), before, atol=1e-4, rtol=1e-3)


def test_lora_on_layers_that_are_read_past_is_refused():
    """Swin v2 calls no qkv layer, but computes with its weight: PEFT's layer around it does nothing."""
    small = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
    model = timm.create_model("swinv2_tiny_window8_256", num_classes=3, **small)
    adapted = adapt(Headed(model, {"head.fc.weight", "head.fc.bias"}), AdaptConfig(strategy="lora", rank=2))
    adapted.model(torch.randn(2, 3, 64, 64)).sum().backward()
    with pytest.raises(UserError, match=r"LoRA on qkv does nothing: .*set --adapt.targets"):
        check_reached(adapted.model)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_activations_can_be_computed_again(image_checkpoint, kind):
    model = load(image_checkpoint(kind)).headed.model
    if kind == "convnext":
        with pytest.raises(UserError, match=r"--train.checkpointing: this network cannot"):
            recompute_activations(model)
        return
    recompute_activations(model)
    assert any(
        getattr(m, "grad_checkpointing", False) or getattr(m, "gradient_checkpointing", False) for m in model.modules()
    )


@pytest.mark.parametrize("kind", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"])
def test_a_saved_folder_is_plain_timm(tmp_path, image_checkpoint, kind):
    model = load(image_checkpoint(kind), image=ImageConfig(size=64 if kind != "test_vit" else 96))
    save_timm(tmp_path, model.headed.model, LABELS, model.preprocessing)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["label_names"] == LABELS
    assert "num_classes" not in config.get("model_args", {})
    saved = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(saved)
    assert tuple(data["input_size"][1:]) == model.preprocessing.size
    pixels = torch.randn(2, 3, *model.preprocessing.size)
    with torch.no_grad():
        torch.testing.assert_close(saved(pixels), model.headed.model.eval()(pixels))
    assert load_timm(tmp_path).num_classes == 3


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("resnet1O", {}, "--backbone.name resnet1O: neither a folder nor a network of timm"),
        ("mobilenetv3_smal", {}, "did you mean mobilenetv3_small"),
        ("./nowhere", {}, "--backbone.name ./nowhere: no such folder"),
        ("test_resnet", {"in_chans": 2}, "--backbone.in_chans 2: pictures are read with 1 channel"),
        ("test_resnet", {"drop_path": 0.1, "pretrained": False}, None),
        ("test_byobnet", {"drop_path": 0.1, "pretrained": False}, None),
        ("vgg11", {"drop_path": 0.1, "pretrained": False}, "--backbone.drop_path: vgg11 has no such setting"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_line(name, settings, said):
    if said is None:
        model = load(name, **settings).headed.model
        assert any(type(module).__name__ == "DropPath" for module in model.modules())
        return
    with pytest.raises(UserError) as error:
        load(name, **settings)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_pickled_weights_are_refused(tmp_path, image_checkpoint):
    source = image_checkpoint("test_resnet")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no weights in safetensors"):
        load(tmp_path)


def test_grey_pictures_where_asked(image_checkpoint):
    model = load(image_checkpoint("test_resnet"), in_chans=1)
    assert model.headed.model.conv1[0].in_channels == 1
    assert model.preprocessing.channels == 1
    assert len(model.preprocessing.mean) == 1
    with pytest.raises(UserError, match=r"--backbone.in_chans: for timm checkpoints only"):
        load(image_checkpoint("vit"), in_chans=1)


def test_another_size_of_a_vision_transformer(image_checkpoint):
    model = load(image_checkpoint("test_vit"), image=ImageConfig(size=96))
    with torch.no_grad():
        assert model.headed.model.eval()(torch.randn(1, 3, 96, 96)).shape == (1, 3)
    with pytest.raises(UserError, match=r"--image.size 96: .*leave it out"):
        load(image_checkpoint("vit"), image=ImageConfig(size=96))
    assert load(image_checkpoint("convnext"), image=ImageConfig(size=96)).preprocessing.size == (96, 96)


def test_loading_imports_nothing_heavy_before_it_must():
    heavy = "[name for name in ('torch', 'timm', 'transformers', 'PIL', 'torchvision') if name in sys.modules]"
    code = f"import sys; import graftkit.image_backbone, graftkit.images, graftkit.image_cache; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
