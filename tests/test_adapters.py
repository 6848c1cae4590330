from __future__ import annotations

import json
import math
import re

import pyarrow.parquet as pq
import pytest
import torch
from conftest import run_recipe

from graftkit import cli
from graftkit.adapt import AdaptConfig, TextAdaptConfig, adapt, set_training_mode
from graftkit.backbone import BackboneConfig
from graftkit.errors import UserError
from graftkit.export import can_merge, check_saved, load_saved, merge_saved, merge_weights, save_model
from graftkit.fingerprint import weight_bytes
from graftkit.heads import Headed, load_classifier
from graftkit.hub.witness import load_adapter
from graftkit.image_backbone import ImageBackboneConfig, load_image_classifier
from graftkit.images import ImageConfig
from graftkit.optim import make_optimizer
from graftkit.tasks.sequence_to_sequence import load_writer
from graftkit.tasks.text_classification import TextClassification
from graftkit.text import load_tokenizer

LABELS = ["bird", "fruit", "tool"]
WRITERS = ("t5", "bart")
IA3 = {  # the layers that read keys' and values' inputs, and those that read the units of a feed-forward layer
    "bert": (r"attention\.self\.(key|value)", r"\d\.output\.dense"),
    "roberta": (r"attention\.self\.(key|value)", r"\d\.output\.dense"),
    "distilbert": (r"\.[kv]_lin", r"ffn\.lin2"),
    "gpt2": (r"c_attn", r"mlp\.c_proj"),
    "llama": (r"\.[kv]_proj", r"down_proj"),
    "t5": (r"Attention\.[kv]", r"\.wo"),
    "bart": (r"\.[kv]_proj", r"\.fc2"),
    "test_vit": (r"\.qkv", r"mlp\.fc2"),
    "test_convnext": (r"nothing", r"mlp\.fc2"),
    "swin": (r"\.[kv]_proj", r"\.fc2"),
}
BITFIT = {  # norms, and whether there are biases besides
    "bert": ("LayerNorm", True),
    "gpt2": (r"\.ln_", True),
    "llama": ("norm", False),
    "t5": ("layer_norm", False),
    "test_resnet": (r"(^|\.)bn\d|downsample\.2|^conv1\.[14]", False),
    "test_vit": ("norm", True),
}
WAYS = {
    "dora": {"strategy": "lora", "dora": True, "rank": 2},
    "ia3": {"strategy": "ia3"},
    "bitfit": {"strategy": "bitfit"},
    "prompt": {"strategy": "prompt", "prompt_tokens": 5},
}


@pytest.fixture
def headed(checkpoint, image_checkpoint):
    """A tiny network of a kind with a head for three labels, new each time."""

    def make(kind: str) -> Headed:
        if kind.startswith("test_") or kind == "swin":
            config = ImageBackboneConfig(name=str(image_checkpoint(kind)))
            found = load_image_classifier(config, ImageConfig(), LABELS, 0).headed
            for module in found.model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):  # timm lets the last one of a block begin at 0
                    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            return found
        config = BackboneConfig(name=str(checkpoint(kind)))
        return load_writer(config, 0) if kind in WRITERS else load_classifier(config, LABELS, load_tokenizer(config), 0)

    return make


def ask(model, kind):
    """Its logits for two rows, the same each time."""
    draw = torch.Generator().manual_seed(3)
    if kind.startswith("test_") or kind == "swin":
        pixels = torch.randn(2, 3, 64, 64, generator=draw)
        return model(pixel_values=pixels).logits if kind == "swin" else model(pixels)
    ids = torch.randint(5, 60, (2, 9), generator=draw)
    also = {"labels": ids} if kind in WRITERS else {"attention_mask": torch.ones_like(ids)}
    return model(input_ids=ids, **also).logits


def stir(model):
    """Move what trains as if it had trained."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapted_layers(names, part):
    return {name.partition(part)[0].removeprefix("base_model.model.") for name in names if part in name}


@pytest.mark.parametrize("kind", IA3)
def test_ia3_adapts_keys_values_and_what_reads_feed_forward_units(headed, kind):
    found = headed(kind)
    layers = [name for name, module in found.model.named_modules() if getattr(module, "weight", None) is not None]
    keys, units = ({name for name in layers if re.search(f"({pattern})$", name)} for pattern in IA3[kind])
    assert units
    adapted = adapt(found, AdaptConfig(strategy="ia3"))
    names = trained(adapted.model)
    assert adapted_layers(names, ".ia3_l.") == keys | units
    assert {name for name in names if ".ia3_l." not in name} == adapted.head
    scales = {name: module for name, module in adapted.model.named_modules() if hasattr(module, "is_feedforward")}
    assert {name.removeprefix("base_model.model.") for name, m in scales.items() if m.is_feedforward} == units


@pytest.mark.parametrize("kind", BITFIT)
def test_bitfit_trains_biases_norms_and_the_head(headed, kind):
    found = headed(kind)
    norm, biased = BITFIT[kind]
    names = {name for name, _ in found.model.named_parameters()}
    norms = {name for name in names if re.search(norm, name)} - found.head
    biases = {name for name in names if name.endswith(".bias")} - norms - found.head
    assert norms
    assert bool(biases) == biased
    adapted = adapt(found, AdaptConfig(strategy="bitfit"))
    assert trained(adapted.model) == norms | biases | found.head
    said = f"{len(biases)} biases and the norms train" if biased else r"the norms train \(there are no biases\)"
    assert re.match(said + (", with the head" if found.head else "$"), adapted.description)


def test_bitfit_with_neither_biases_nor_norms_is_refused():
    with pytest.raises(UserError, match=r"--adapt.strategy bitfit: Linear has neither biases nor norms"):
        adapt(Headed(torch.nn.Linear(2, 2, bias=False), set()), AdaptConfig(strategy="bitfit"))


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_prompt_and_the_head_train(headed, kind):
    found = headed(kind)
    count = len(found.head)
    adapted = adapt(found, TextAdaptConfig(strategy="prompt", prompt_tokens=5))
    assert trained(adapted.model) == adapted.head | {"prompt_encoder.default.embedding.weight"}
    assert len(adapted.head) == count
    assert adapted.model.prompt_encoder.default.embedding.weight.shape == (5, 32)
    assert adapted.description == "a prompt of 5 tokens before each text, and the head"


def test_lora_is_scaled_by_the_root_of_the_rank_where_that_is_asked(headed):
    for rslora, scale in ((False, 16 / 4), (True, 16 / math.sqrt(4))):
        adapted = adapt(headed("bert"), AdaptConfig(strategy="lora", rank=4, rslora=rslora))
        scalings = [getattr(module, "scaling", None) for module in adapted.model.modules()]
        scales = {scaling["default"] for scaling in scalings if isinstance(scaling, dict)}
        assert scales == {scale}
        assert adapted.description.startswith("rank-stabilised LoRA of rank 4" if rslora else "LoRA of rank 4")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["roberta", "llama", "test_resnet", "test_vit"])
def test_what_is_frozen_stays_and_the_rest_moves(headed, kind, way):
    if (way, kind) == ("ia3", "test_resnet") or (way == "prompt" and kind != "roberta"):
        with pytest.raises(UserError, match=f"--adapt.strategy {way}: "):
            adapt(headed(kind), TextAdaptConfig(**WAYS[way]))
        return
    adapted = adapt(headed(kind), TextAdaptConfig(**WAYS[way]))
    model = adapted.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, adapted.head, 1e-2, 1e-2, 0.1)
    set_training_mode(model)
    for _ in range(3):
        torch.nn.functional.cross_entropy(ask(model, kind), torch.tensor([0, 2])).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    still = trained(model) - moved
    assert moved <= trained(model)
    assert not {name for name in still if "bias" not in name or way != "bitfit"}  # a key's bias changes no answer
    if way == "bitfit" and kind == "test_resnet":  # as with everything training
        assert all(m.training for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("way", ["dora", "ia3"])
@pytest.mark.parametrize("kind", ["roberta", "gpt2", "bart", "test_resnet", "test_efficientnet", "swin"])
def test_what_is_merged_answers_as_its_adapter(headed, kind, way):
    """A network without keys and feed-forward units has layers named for IA3; RoBERTa's head is two layers."""
    targets = {"test_resnet": ["conv1", "conv2"], "test_efficientnet": ["conv_pwl", "conv_head"]}.get(kind)
    more = {"targets": targets} if way == "ia3" else {}
    model = stir(adapt(headed(kind), TextAdaptConfig(**WAYS[way], **more)).model)
    with torch.no_grad():
        said, plain = ask(model, kind), ask(headed(kind).model.eval(), kind)
        assert not torch.allclose(said, plain, atol=1e-4)
        assert can_merge(model)
        merged = merge_weights(model).eval()
        torch.testing.assert_close(ask(merged, kind), said, atol=1e-5, rtol=1e-4)
    assert not any("lora_" in name or "ia3_" in name for name in merged.state_dict())


@pytest.mark.parametrize("kind", ["gpt2", "bert", "test_resnet"])
def test_dora_leaves_out_layers_with_an_output_that_reads_nothing(headed, kind):
    """As real checkpoints have them; the length of its weights is 0, and DoRA divides by it."""
    layers = adapted_layers(trained(adapt(headed(kind), TextAdaptConfig(**WAYS["dora"])).model), ".lora_A")
    dead = sorted(layers)[1]
    found = headed(kind)
    weight = found.model.get_submodule(dead).weight
    with torch.no_grad():
        (weight.T if kind == "gpt2" else weight)[2] = 0  # GPT-2's layers hold outputs last
    adapted = adapt(found, TextAdaptConfig(**WAYS["dora"]))
    assert adapted_layers(trained(adapted.model), ".lora_A") == layers - {dead}
    assert f"not on 1 with an output whose weights are all 0 ({dead})" in adapted.description
    assert torch.isfinite(ask(adapted.model, kind)).all()
    blank = headed(kind)
    for name in layers:
        torch.nn.init.zeros_(blank.model.get_submodule(name).weight)
    with pytest.raises(UserError, match=r"--adapt.dora learns how long .* have an output without any; name others"):
        adapt(blank, TextAdaptConfig(**WAYS["dora"]))


@pytest.mark.parametrize(
    ("kind", "way"),
    [("gpt2", "dora"), ("roberta", "ia3"), ("llama", "bitfit"), ("bert", "prompt"), ("distilbert", "prompt")],
)
def test_what_is_saved_loads_as_anyone_loads_it(checkpoint, headed, tmp_path, kind, way):
    model = stir(adapt(headed(kind), TextAdaptConfig(**WAYS[way])).model)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    tokenizer = load_tokenizer(BackboneConfig(name=str(checkpoint(kind))))
    save_model(tmp_path, model, tokenizer, LABELS)
    loaded = load_saved(tmp_path, TextClassification.auto_class)
    check_saved(model, loaded)
    with torch.no_grad():
        assert torch.equal(ask(loaded, kind), ask(model, kind))
    if way != "bitfit":  # whose weights are the whole model's
        assert 4 * count <= weight_bytes(tmp_path) < 4 * count + 12_000


def test_what_is_saved_can_be_merged_but_for_a_prompt(checkpoint, headed, tmp_path):
    for way, kind in (("ia3", "roberta"), ("prompt", "bert")):
        model = stir(adapt(headed(kind), TextAdaptConfig(**WAYS[way])).model)
        save_model(tmp_path / way, model, load_tokenizer(BackboneConfig(name=str(checkpoint(kind)))), LABELS)
    merge_saved(tmp_path / "ia3", tmp_path / "plain")
    plain, adapter = (load_saved(tmp_path / name, TextClassification.auto_class) for name in ("plain", "ia3"))
    with torch.no_grad():
        torch.testing.assert_close(ask(plain, "roberta"), ask(adapter, "roberta"))
    with pytest.raises(UserError, match=r"--hub.merge: a prompt cannot be added to the weights"):
        merge_saved(tmp_path / "prompt", tmp_path / "other")


def test_factors_and_lengths_do_not_decay(headed):
    for way, part in (("ia3", "ia3_l"), ("dora", "magnitude")):
        for kind in ("bert", "test_efficientnet"):
            more = {"targets": ["conv_pwl"]} if (way, kind) == ("ia3", "test_efficientnet") else {}
            adapted = adapt(headed(kind), TextAdaptConfig(**WAYS[way], **more))
            groups = make_optimizer(adapted.model, adapted.head, 1e-2, 1e-2, 0.1).param_groups
            decays = {group["weight_decay"] for group in groups for name in group["names"] if part in name}
            assert decays == {0.0}


# prompts


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_padding_changes_nothing_behind_a_prompt(headed, kind):
    model = stir(adapt(headed(kind), TextAdaptConfig(strategy="prompt", prompt_tokens=5)).model)
    ids, mask = torch.tensor([[7, 8, 9, 10, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        alone = model(input_ids=ids[:, :4], attention_mask=mask[:, :4]).logits
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, alone)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("gpt2", "PEFT reads the answer of GPT2ForSequenceClassification off the padding of a batch; choose lora, ia3"),
        ("llama", "PEFT reads the answer of LlamaForSequenceClassification off the padding"),
        ("bart", r"for classifiers of texts \(recipes/text_classify.py\); choose lora, ia3 or bitfit here"),
        ("test_vit", "for classifiers of texts"),
    ],
)
def test_a_prompt_that_peft_answers_wrongly_behind_is_refused(headed, kind, why):
    with pytest.raises(UserError, match=f"--adapt.strategy prompt: .*{why}"):
        adapt(headed(kind), TextAdaptConfig(strategy="prompt"))


def test_a_classifier_with_a_decoder_reads_no_prompt(checkpoint):
    config = BackboneConfig(name=str(checkpoint("bart")))
    found = load_classifier(config, LABELS, load_tokenizer(config), 0)
    with pytest.raises(UserError, match="prompt: BartForSequenceClassification finds its answer by a token"):
        adapt(found, TextAdaptConfig(strategy="prompt"))


@pytest.mark.parametrize("strategy", ["ia3", "prompt"])
def test_a_token_that_the_checkpoint_lacks_is_refused(headed, strategy):
    found = Headed(headed("bert").model, set(), [180], "SEQ_CLS")
    with pytest.raises(UserError, match=f"--adapt.strategy {strategy}: the checkpoint has no row for a token"):
        adapt(found, TextAdaptConfig(strategy=strategy))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_prompt_takes_its_places_from_the_text(checkpoint, headed, kind):
    """48 positions, of which RoBERTa counts one for padding."""
    config, asked = BackboneConfig(name=str(checkpoint(kind))), TextAdaptConfig(strategy="prompt")
    assert (TextAdaptConfig().places, asked.places) == (0, 20)
    tokenizer = load_tokenizer(config, places=asked.places)
    assert tokenizer.model_max_length == {"bert": 28, "roberta": 27}[kind]
    model = adapt(headed(kind), asked).model.eval()
    inputs = tokenizer("apple pear " * 40, truncation=True, return_tensors="pt")
    assert model(**inputs).logits.isfinite().all()
    with pytest.raises(UserError, match=r"--adapt.prompt_tokens 46: this checkpoint has 4[78] places"):
        load_tokenizer(config, places=46)


def test_ia3_without_keys_or_feed_forward_units_asks_for_layers(headed):
    with pytest.raises(UserError, match=r"ia3: ResNet has neither keys and values nor .*--adapt.targets"):
        adapt(headed("test_resnet"), AdaptConfig(strategy="ia3"))
    with pytest.raises(UserError, match=r"--adapt.targets qkv: no such layer; this model has .*conv1"):
        adapt(headed("test_resnet"), AdaptConfig(strategy="ia3", targets=["qkv"]))


# runs

RUNS = {"prompt": ("bert", "--train.head_lr", 0.05), "ia3": ("roberta", "--train.batch_size", 8)}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory, checkpoint, data):
    """The folder of a run of a strategy, made once."""
    folder = tmp_path_factory.mktemp("runs")

    def make(strategy):
        kind, *more = RUNS[strategy]
        if not (folder / strategy).exists():
            run_recipe(
                "text_classify", "--data.path", data, "--backbone.name", checkpoint(kind), "--adapt.strategy", strategy,
                "--train.epochs", 2, "--train.lr", 0.01, "--report.calibrate", "false", "--run.precision", "fp32",
                *more, "--run.out", folder / strategy,
            )  # fmt: skip
        return folder / strategy

    return make


RAN = ["prompt", pytest.param("ia3", marks=pytest.mark.slow)]


@pytest.mark.parametrize("strategy", RAN)
def test_a_run_is_saved_for_plain_peft_which_answers_as_its_table_says(run_of, strategy):
    """The lines of `load_adapter` know nothing of graftkit."""
    run = run_of(strategy)
    facts, classify = json.loads((run / "run.json").read_text()), load_adapter(str(run / "model"))
    rows, said = (pq.read_table(run / f"{name}-test.parquet").to_pylist() for name in ("rows", "predictions"))
    for row, record, together in zip(rows, said, classify([[row["text"]] for row in rows]), strict=True):
        (alone,) = classify([[row["text"]]])
        for label in LABELS:
            assert alone[label] == pytest.approx(record[f"probability:{label}"], abs=1e-5)
            assert together[label] == pytest.approx(record[f"probability:{label}"], abs=1e-5)
    weights = facts["saved"]["weight_bytes"]
    assert 4 * facts["adapt"]["trained_parameters"] < weights == weight_bytes(run / "model") < 20_000
    assert "saved, its weights take 0.00" in (run / "report.md").read_text()


@pytest.mark.parametrize("strategy", RAN)
def test_a_run_can_be_asked_and_calibrated(run_of, data, tmp_path, predict, strategy):
    run, out = run_of(strategy), tmp_path / "calibrated"
    answers = predict(run, data / "test.csv")
    said = pq.read_table(run / "predictions-test.parquet").to_pylist()
    assert [answer["label"] for answer in answers] == [record["prediction"] for record in said]
    assert cli.main(["calibrate", str(run), "--out", str(out)]) == 0
    temperature = json.loads((out / "run.json").read_text())["calibration"]["temperature"]
    plain, divided = (load_adapter(str(place / "model"))([["the old robin"]])[0] for place in (run, out))
    gaps = [math.log(one["bird"] / one["tool"]) for one in (plain, divided)]
    assert gaps[0] == pytest.approx(gaps[1] * temperature, rel=1e-3)
