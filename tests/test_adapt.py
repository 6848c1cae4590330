from __future__ import annotations

import pytest
import torch
from conftest import KINDS

from graftkit.adapt import AdaptConfig, TextAdaptConfig, adapt, find_blocks, set_training_mode
from graftkit.backbone import BackboneConfig
from graftkit.errors import UserError
from graftkit.heads import head_modules, load_classifier
from graftkit.tasks.sequence_to_sequence import load_writer
from graftkit.text import load_tokenizer

LABELS = ["bird", "fruit", "tool"]


def headed(folder, seed=0, labels=LABELS):
    config = BackboneConfig(name=str(folder))
    return load_classifier(config, labels, load_tokenizer(config), seed)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


HEADS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "roberta": {f"classifier.{layer}.{key}" for layer in ("dense", "out_proj") for key in ("weight", "bias")},
    "distilbert": {f"{layer}.{key}" for layer in ("pre_classifier", "classifier") for key in ("weight", "bias")},
    "gpt2": {"score.weight"},
    "llama": {"score.weight"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_head_is_what_the_headless_model_lacks(checkpoint, kind):
    found = headed(checkpoint(kind))
    assert found.head == HEADS[kind]
    assert head_modules(found.model, found.head) == sorted({name.split(".")[0] for name in HEADS[kind]}, reverse=True)
    adapted = adapt(found, AdaptConfig(strategy="head"))
    assert trained(adapted.model) == HEADS[kind]


def test_a_pooler_that_the_checkpoint_lacks_belongs_to_the_head(checkpoint, tmp_path):
    import transformers as t

    folder = checkpoint("bert")
    config = t.AutoConfig.from_pretrained(folder)
    t.BertForMaskedLM(config).save_pretrained(tmp_path)
    t.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    found = headed(tmp_path)
    assert found.head == HEADS["bert"] | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    adapted = adapt(found, AdaptConfig(strategy="lora"))
    assert {name for name in trained(adapted.model) if "pooler" in name} == {
        f"base_model.model.bert.pooler.modules_to_save.default.dense.{key}" for key in ("weight", "bias")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_last_trains_the_top_blocks_and_what_follows(checkpoint, kind):
    found = headed(checkpoint(kind))
    path, count, depths = find_blocks(found.model)
    assert count == 3
    assert set(depths.values()) == {0, 1, 2, 3, 4}
    adapted = adapt(found, AdaptConfig(strategy="last", blocks=1))
    frozen = {name for name, _ in adapted.model.named_parameters()} - trained(adapted.model)
    assert {name for name in trained(adapted.model) if name.startswith(path)} == {
        name for name, _ in adapted.model.named_parameters() if name.startswith(f"{path}.2.")
    }
    assert all(name.startswith((f"{path}.0.", f"{path}.1.")) or "embed" in name or ".w" in name for name in frozen)
    after = {"gpt2": "transformer.ln_f.weight", "llama": "model.norm.weight", "bert": "bert.pooler.dense.weight"}
    assert after.get(kind, next(iter(found.head))) in trained(adapted.model)


@pytest.mark.parametrize(("kind", "where", "last_norm"), [("t5", "decoder.block", True), ("bart", "layers", False)])
def test_the_last_blocks_of_a_writer_are_its_decoders(checkpoint, kind, where, last_norm):
    """Also where the encoder has more of them (BART here); what is named after an embedding feeds them."""
    found = load_writer(BackboneConfig(name=str(checkpoint(kind))), 0)
    path, count, depths = find_blocks(found.model)
    assert path.endswith(where)
    assert "decoder" in path
    assert count == 2
    names = trained(adapt(found, AdaptConfig(strategy="last", blocks=1)).model)
    assert {name for name in names if not name.startswith(f"{path}.1.")} == {
        "decoder.final_layer_norm.weight" for _ in range(last_norm)
    }
    assert not any("embed" in name or "encoder.l" in name for name in names)
    assert depths["shared.weight" if kind == "t5" else "model.shared.weight"] == 0


@pytest.mark.parametrize(("kind", "layers"), [("t5", 2 * 6 + 2 * 10), ("bart", 3 * 6 + 2 * 10)])
def test_lora_adapts_encoder_and_decoder(checkpoint, kind, layers):
    adapted = adapt(load_writer(BackboneConfig(name=str(checkpoint(kind))), 0), AdaptConfig(strategy="lora", rank=4))
    assert sum("lora_A" in name for name in trained(adapted.model)) == layers


def test_more_blocks_than_there_are_is_an_error(checkpoint):
    with pytest.raises(UserError, match=r"--adapt.blocks 4: bert.encoder.layer has 3 blocks"):
        adapt(headed(checkpoint("bert")), AdaptConfig(strategy="last", blocks=4))


@pytest.mark.parametrize("kind", KINDS)
def test_lora_trains_its_matrices_and_the_head(checkpoint, kind):
    adapted = adapt(headed(checkpoint(kind)), AdaptConfig(strategy="lora", rank=4))
    names = trained(adapted.model)
    assert {name for name in names if "lora_" not in name} == adapted.head
    assert len(adapted.head) == len(HEADS[kind])
    per_block = {"bert": 6, "roberta": 6, "distilbert": 6, "gpt2": 4, "llama": 7}[kind]
    assert sum("lora_A" in name for name in names) == 3 * per_block, sorted(names)


UNREAD = [
    ({"strategy": "head", "blocks": 1}, "--adapt.blocks does nothing with --adapt.strategy head, only with last"),
    ({"rank": 4}, "--adapt.rank does nothing with --adapt.strategy full, only with lora"),
    ({"strategy": "ia3", "alpha": 8.0}, "--adapt.alpha does nothing with --adapt.strategy ia3"),
    ({"strategy": "bitfit", "rslora": True}, "--adapt.rslora does nothing with --adapt.strategy bitfit"),
    ({"dora": True}, "--adapt.dora does nothing with --adapt.strategy full"),
    ({"strategy": "last", "targets": ["query"]}, "--adapt.targets does nothing .* last, only with lora or ia3"),
    ({"strategy": "lora", "prompt_tokens": 5}, "--adapt.prompt_tokens does nothing with --adapt.strategy lora"),
    ({"strategy": "prompt", "merge": True}, "--adapt.merge does nothing .* prompt, only with lora or ia3; leave it"),
    ({"strategy": "bitfit", "merge": True}, "--adapt.merge does nothing with --adapt.strategy bitfit"),
]


@pytest.mark.parametrize(("settings", "why"), UNREAD)
def test_a_setting_that_the_strategy_does_not_read_is_refused(settings, why):
    with pytest.raises(UserError, match=why):
        TextAdaptConfig(**settings)
    if "prompt_tokens" not in settings:
        with pytest.raises(UserError, match=why):
            AdaptConfig(**settings)


def test_the_copy_that_peft_keeps_of_a_head_is_not_counted(checkpoint):
    plain = adapt(headed(checkpoint("roberta")), AdaptConfig()).facts("full")["total_parameters"]
    adapted = adapt(headed(checkpoint("roberta")), AdaptConfig(strategy="lora"))
    assert any(".original_module." in name for name, _ in adapted.model.named_parameters())
    added = sum(p.numel() for name, p in adapted.model.named_parameters() if "lora_" in name)
    assert adapted.facts("lora")["total_parameters"] == plain + added
    assert adapted.facts("lora")["trained_parameters"] < plain


def test_lora_takes_the_named_layers_and_lists_those_that_exist(checkpoint):
    adapted = adapt(headed(checkpoint("bert")), AdaptConfig(strategy="lora", targets=["query", "value"]))
    assert "6 layers (query, value)" in adapted.description
    with pytest.raises(
        UserError, match=r"--adapt.targets q_proj: no such layer; this model has dense, key, query, value"
    ):
        adapt(headed(checkpoint("bert")), AdaptConfig(strategy="lora", targets=["query", "q_proj"]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["head", "last", "lora"])
def test_the_frozen_part_does_not_drop(checkpoint, kind, strategy):
    """The output of the last frozen layer is the same every time; with everything training it is not."""
    blocks = {"blocks": 1} if strategy == "last" else {}
    adapted = adapt(headed(checkpoint(kind, dropout=0.3)), AdaptConfig(strategy=strategy, **blocks))
    model = adapted.model
    set_training_mode(model)
    seen = []
    boundary = {"head": -1, "last": 1, "lora": 0}[strategy]
    plain = model.get_base_model() if strategy == "lora" else model
    path, _, _ = find_blocks(plain)
    block = plain.get_submodule(path)[boundary]
    hook = block.register_forward_pre_hook if strategy == "lora" else block.register_forward_hook
    hook(lambda module, inputs, *rest: seen.append((inputs[0] if strategy == "lora" else _hidden(rest[0])).detach()))
    ids = torch.randint(5, 60, (2, 9))
    for _ in range(2):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(*seen)
    for parameter in model.parameters():
        parameter.requires_grad = True
    set_training_mode(model)
    seen.clear()
    for _ in range(2):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert kind == "llama" or not torch.equal(*seen)  # llama drops in attention only, where sdpa may not


def _hidden(output):
    return output[0] if isinstance(output, tuple) else output


def test_the_head_of_another_task_starts_anew_and_that_of_the_same_labels_stays(checkpoint, tmp_path):
    found = headed(checkpoint("roberta"), labels=["x", "y", "z"])
    found.model.save_pretrained(tmp_path)
    load_tokenizer(BackboneConfig(name=str(checkpoint("roberta")))).save_pretrained(tmp_path)
    kept, anew = headed(tmp_path, labels=["x", "y", "z"]), headed(tmp_path, seed=1)
    for name in HEADS["roberta"]:
        source = found.model.get_parameter(name)
        assert torch.equal(kept.model.get_parameter(name), source)
        assert name.endswith("bias") or not torch.equal(anew.model.get_parameter(name), source)
    assert torch.equal(anew.model.get_input_embeddings().weight, found.model.get_input_embeddings().weight)
