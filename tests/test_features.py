"""Does the frozen backbone say the same of a row, whatever stands beside it?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import texts
from datasets import Dataset
from torch import nn

from graftkit.backbone import BackboneConfig
from graftkit.errors import UserError
from graftkit.features import entering_head, pool, pooled_features
from graftkit.heads import load_classifier
from graftkit.image_backbone import ImageBackboneConfig, load_image_classifier
from graftkit.images import ImageConfig
from graftkit.tasks.image_classification import ImageClassification
from graftkit.tasks.text_classification import TextClassification
from graftkit.text import load_tokenizer

LABELS = ["bird", "fruit", "tool"]


def load(folder, count: int = 11):
    """A task, a headed model and rows of texts."""
    config = BackboneConfig(name=str(folder))
    tokenizer = load_tokenizer(config)
    rows = [{"id": f"train-{i}", "text": text, "label": label} for i, (text, label) in enumerate(texts(count))]
    return TextClassification(tokenizer, LABELS), load_classifier(config, LABELS, tokenizer, 0), Dataset.from_list(rows)


def by_hand(task, headed, row, how: str) -> np.ndarray:
    """The features of one row alone, by the plain backbone."""
    with torch.no_grad():
        said = headed.model.eval().base_model(**task.collate([task.encode(row, None)]).inputs)
    states = said.last_hidden_state[0].numpy()  # (tokens, features)
    if how == "pooler":
        return said.pooler_output[0].numpy()
    return {"mean": states.mean(axis=0), "first": states[0], "last": states[-1]}[how]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("bert", "pooler"),  # what the checkpoint's own pooler makes of the first token
        ("roberta", "mean"),  # its head is given all tokens
        ("distilbert", "first"),
        ("gpt2", "last"),
        ("llama", "last"),
    ],
)
def test_padding_changes_no_feature(checkpoint, kind, expected):
    task, headed, rows = load(checkpoint(kind))
    headed.model.train()
    found = pooled_features(Accelerator(cpu=True), task, headed, rows, task.lengths(rows))
    assert found.shape == (11, 32)
    assert found.dtype == np.float32
    for place, row in enumerate(rows):
        alone = pooled_features(Accelerator(cpu=True), task, headed, [row], None)
        np.testing.assert_allclose(found[place], alone[0], atol=1e-5)
        np.testing.assert_allclose(found[place], by_hand(task, headed, row, expected), atol=1e-5)
    assert np.ptp(found, axis=0).max() > 1e-3  # rows do differ


@pytest.mark.parametrize("kind", ["test_resnet", "test_efficientnet", "test_vit", "test_convnext", "vit", "swin"])
def test_a_picture_has_the_features_that_its_head_reads(image_checkpoint, pictures, kind):
    paths = sorted((pictures / "test").rglob("*.jpg"))[:5]
    rows = [{"id": str(path), "path": str(path), "bytes": None, "label": "a"} for path in paths]
    loaded = load_image_classifier(ImageBackboneConfig(name=str(image_checkpoint(kind))), ImageConfig(), ["a", "b"], 0)
    task = ImageClassification(loaded.preprocessing, ["a", "b"], rows, 0)
    found = pooled_features(Accelerator(cpu=True), task, loaded.headed, rows, None)
    model = loaded.headed.model
    layer = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        logits = task.predict(model, task.collate([task.encode(row, None) for row in rows]))
        from_features = layer(torch.from_numpy(found)).numpy()
    np.testing.assert_allclose(from_features, np.stack([record["logits"] for record in logits]), atol=1e-5)


def test_maps_are_averaged_over_places_wherever_their_channels_stand():
    head, maps = nn.Linear(6, 2), torch.randn(3, 6, 4, 5)
    expected = maps.mean((2, 3))
    assert torch.allclose(pool(head, maps, None), expected)
    assert torch.allclose(pool(head, maps.permute(0, 2, 3, 1), None), expected)


def test_only_real_tokens_count():
    tokens, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    deep = nn.Sequential(nn.Linear(3, 2))
    assert torch.allclose(pool(deep, tokens, mask)[0], tokens[0, :2].mean(0))
    assert torch.equal(pool(nn.Linear(3, 2), tokens, mask), torch.stack([tokens[0, 1], tokens[1, 3]]))
    assert torch.allclose(pool(deep, tokens, None), tokens.mean(1))


def test_nothing_stays_hooked_and_a_head_must_be_a_module(checkpoint):
    task, headed, rows = load(checkpoint("bert"), 3)
    pooled_features(Accelerator(cpu=True), task, headed, rows, None)
    assert not any(module._forward_pre_hooks for module in headed.model.modules())
    with pytest.raises(UserError, match="no module for its head"), entering_head(headed.model, set()):
        pass
