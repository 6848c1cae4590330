"""Is a network that begins where its frozen part ends the same network?"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import KINDS, SHAPES, draw, spread_batch_norms, texts
from datasets import Dataset

from graftkit.activation_cache import KEPT, CachedTask, cached
from graftkit.adapt import Adapted, ClassifierAdaptConfig, adapt, set_training_mode
from graftkit.backbone import BackboneConfig
from graftkit.feed import load_batches
from graftkit.heads import load_classifier
from graftkit.image_backbone import ImageBackboneConfig, load_image_classifier
from graftkit.images import ImageConfig
from graftkit.tasks.image_classification import ImageClassification
from graftkit.tasks.text_classification import TextClassification
from graftkit.text import load_tokenizer
from graftkit.train import seed_dropout

LABELS = ["bird", "fruit", "tool"]
PICTURES = ("vit", "swin", "convnext", "test_resnet", "test_vit", "test_convnext", "test_efficientnet")
QUICK = ("bert", "gpt2", "test_resnet", "vit", "mobilenetv3_small_050")
MADE = ("mobilenetv2_035", "mobilenetv3_small_050", "resnet10t")  # of timm, by name, with random weights


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("GRAFTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass
class Made:
    """A task and a model for it, with rows of train and dev."""

    task: Any
    headed: Any
    splits: Any
    lengths: Any
    said: list[str] = field(default_factory=list)
    seed: int = 0

    def run(self) -> Any:
        """As much of a run as keeping activations asks for."""
        AcceleratorState._reset_state()  # a run before may have had another precision
        facts = {"accelerator": Accelerator(cpu=True), "main": True, "record": {"precision": "fp32"}}
        return SimpleNamespace(**facts, seed=self.seed, say=self.said.append, once=lambda action: action())

    def adapted(self, strategy: str, blocks: int | None = None) -> Adapted:
        """A copy of the model of which the right part trains."""
        headed = copy.deepcopy(self.headed)
        more = {} if blocks is None else {"blocks": blocks}
        return adapt(headed, ClassifierAdaptConfig(strategy=strategy, **more))

    def cached(self, adapted: Adapted, strategy: str = "head", **settings: Any) -> Any:
        """The task that reads what is kept."""
        config = ClassifierAdaptConfig(strategy=strategy, **settings)
        return cached(self.run(), self.task, adapted, self.splits, self.lengths, config)


def of_texts(checkpoint, kind: str, dropout: float = 0.0, end: str = "", **more: Any) -> Made:
    """Texts of 3 to 14 words, of which some end in `end`, and a tiny network for them."""
    config = BackboneConfig(name=str(checkpoint(kind, dropout=dropout)))
    tokenizer = load_tokenizer(config)
    task = TextClassification(tokenizer, LABELS)
    said = [(text + end * (i in (8, 9)), label) for i, (text, label) in enumerate(texts(30))]
    rows = [{"id": f"row-{i}", "text": text, "label": label} for i, (text, label) in enumerate(said)]
    splits = SimpleNamespace(train=Dataset.from_list(rows[:23]), dev=Dataset.from_list(rows[23:]))
    lengths = {name: task.lengths(getattr(splits, name)) for name in ("train", "dev")}
    return Made(task, load_classifier(config, LABELS, tokenizer, 0), splits, lengths, **more)


def of_pictures(image_checkpoint, kind: str, image: ImageConfig | None = None, **more: Any) -> Made:
    """Drawn shapes, and a tiny network for them."""
    image = ImageConfig(size=64, augment="none") if image is None else image
    named = {"name": kind, "pretrained": False} if kind in MADE else {"name": str(image_checkpoint(kind))}
    loaded = load_image_classifier(ImageBackboneConfig(**named, **more), image, LABELS, 0)
    spread_batch_norms(loaded.headed.model)
    import io

    rows = []
    for i in range(17):
        file = io.BytesIO()
        draw(SHAPES[i % 3], i).save(file, "PNG")
        facts = {"path": None, "bytes": file.getvalue(), "sha256": f"{i:064d}"}
        rows.append({"id": f"row-{i}", **facts, "label": LABELS[i % 3]})
    splits = SimpleNamespace(train=Dataset.from_list(rows[:13]), dev=Dataset.from_list(rows[13:]))
    task = ImageClassification(loaded.preprocessing, LABELS, splits.train, 0)
    return Made(task, loaded.headed, splits, {"train": None, "dev": None})


@pytest.fixture
def made(request, checkpoint, image_checkpoint):
    """A task and a model of a kind."""
    kind = request.param
    return of_texts(checkpoint, kind) if kind in (*KINDS, "bart") else of_pictures(image_checkpoint, kind)


def learn(task, adapted: Adapted, rows, steps: int, seed: int = 0) -> list[torch.Tensor]:
    """The parameters after so many steps of plain SGD, dropout and all."""
    model = adapted.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    set_training_mode(model)
    for step in range(steps):
        places = np.random.default_rng([seed, step]).permutation(len(rows))[:8]
        batch = next(load_batches(task, rows, [places], (seed, 0)))
        seed_dropout(seed, step, 0)
        (task.loss(model, batch) / 8).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def farthest(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference of any weight."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("strategy", ["head", "last"])
@pytest.mark.parametrize(
    "made",
    [
        kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow)
        for kind in (*KINDS, "bart", *PICTURES, *MADE)
    ],
    indirect=True,
)
def test_what_is_kept_gives_the_answers_and_the_weights_of_the_plain_network(made, strategy):
    adapted = made.adapted(strategy, 1 if strategy == "last" else None)
    start = [parameter.detach().clone() for parameter in adapted.model.parameters()]
    blocks = {} if strategy == "head" else {"blocks": 1}
    with made.cached(adapted, strategy, **blocks) as task:
        assert isinstance(task, CachedTask), made.said
        adapted.model.eval()
        with torch.no_grad():
            for rows in (made.splits.train, made.splits.dev):
                kept = task.predict(adapted.model, next(load_batches(task, rows, [np.arange(len(rows))], None)))
                plain = [made.task.collate([made.task.encode(row, None)]) for row in rows]  # alone: no padding
                plain = [made.task.predict(adapted.model, batch)[0] for batch in plain]
                assert [record["id"] for record in kept] == [record["id"] for record in plain]
                logits = [np.stack([record["logits"] for record in records]) for records in (kept, plain)]
                np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)
        weights = learn(task, adapted, made.splits.train, 10)
    plain = learn(made.task, made.adapted(strategy, 1 if strategy == "last" else None), made.splits.train, 10)
    assert farthest(weights, plain) < 1e-6
    assert farthest(weights, start) > 1e-3
    assert not any("forward" in vars(module) for module in adapted.model.modules())


@pytest.mark.parametrize("strategy", ["head", "last"])
def test_a_text_that_ends_in_the_token_that_pads_is_read_as_the_network_reads_it(checkpoint, strategy):
    mark = " " + load_tokenizer(BackboneConfig(name=str(checkpoint("gpt2")))).pad_token
    made = of_texts(checkpoint, "gpt2", end=mark)
    adapted, rows = made.adapted(strategy), made.splits.train
    pad = made.task.tokenizer.pad_token_id
    assert [made.task.encode(rows[i], None)["input_ids"][-1] == pad for i in (7, 8, 9)] == [False, True, True]
    with made.cached(adapted, strategy) as task, torch.no_grad():
        assert isinstance(task, CachedTask), made.said
        batches = [next(load_batches(one, rows, [np.arange(len(rows))], None)) for one in (task, made.task)]
        model = adapted.model.eval()
        kept, plain = (one.predict(model, batch) for one, batch in zip((task, made.task), batches, strict=True))
    for one, other in zip(kept, plain, strict=True):
        np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-5)


@pytest.mark.parametrize(("strategy", "kept"), [("head", "one vector"), ("last", "all tokens")])
def test_dropout_behind_the_boundary_draws_what_it_would_draw(checkpoint, strategy, kept):
    made = of_texts(checkpoint, "bert", dropout=0.2)
    adapted = made.adapted(strategy)
    with made.cached(adapted, strategy) as task:
        assert task.boundary.form.name == kept
        weights = learn(task, adapted, made.splits.train, 10)
    assert farthest(weights, learn(made.task, made.adapted(strategy), made.splits.train, 10)) < 1e-6
    assert farthest(weights, learn(made.task, made.adapted(strategy), made.splits.train, 10, seed=1)) > 1e-3


def test_a_new_pooler_is_trained_from_the_first_token(checkpoint):
    made = of_texts(checkpoint, "bert")
    made.headed.head.update(name for name, _ in made.headed.model.named_parameters() if ".pooler." in name)
    adapted = made.adapted("head")
    with made.cached(adapted) as task:
        assert (task.boundary.at, task.boundary.form.name) == ("bert.encoder", "the first token")
        weights = learn(task, adapted, made.splits.train, 10)
    assert farthest(weights, learn(made.task, made.adapted("head"), made.splits.train, 10)) < 1e-6


@pytest.mark.parametrize(
    ("kind", "strategy", "blocks", "why"),
    [
        ("bert", "last", 3, "only what feeds the blocks is frozen"),
        ("gpt2", "last", 3, "only what feeds the blocks is frozen"),
    ],
)
def test_where_nothing_can_be_kept_the_run_says_why(checkpoint, kind, strategy, blocks, why):
    made = of_texts(checkpoint, kind)
    with made.cached(
        made.adapted(strategy, blocks), strategy, **({} if blocks is None else {"blocks": blocks})
    ) as task:
        assert task is made.task
    assert made.said == [f"not cached: {why}"]


@pytest.mark.parametrize("wrong", ["reads the pads", "reads the words"])
def test_a_network_that_reads_more_than_what_is_kept_is_found_out(checkpoint, wrong):
    made = of_texts(checkpoint, "bert")
    adapted = made.adapted("head")
    plain = adapted.model.forward

    def forward(input_ids, attention_mask, **more):
        output = plain(input_ids=input_ids, attention_mask=attention_mask, **more)
        seen = attention_mask.shape[1] if wrong == "reads the pads" else input_ids.float().mean()
        output.logits = output.logits + 0.1 * seen * torch.arange(3)
        return output

    adapted.model.forward = forward
    with made.cached(adapted) as task:
        assert task is made.task
    assert "reads more" in made.said[0]


def test_an_error_leaves_the_model_as_it_was(checkpoint):
    made = of_texts(checkpoint, "bert")
    adapted = made.adapted("last")
    with made.cached(adapted, "last") as task:
        batch = next(load_batches(task, made.splits.train, [np.arange(3)], (0, 0)))
        batch.targets["labels"] = torch.tensor([7, 8, 9])  # no such label
        with pytest.raises(IndexError):
            task.loss(adapted.model, batch)
    assert not any("forward" in vars(module) for module in adapted.model.modules())


def test_a_batch_may_be_asked_again(image_checkpoint):
    """A network that works in place must not change what is kept."""
    made = of_pictures(image_checkpoint, "mobilenetv3_small_050")
    adapted = made.adapted("head")
    with made.cached(adapted) as task, torch.no_grad():
        batch = next(load_batches(task, made.splits.train, [np.arange(3)], (0, 0)))
        assert task.loss(adapted.model, batch) == task.loss(adapted.model, batch)


def test_a_task_around_another_passes_on_what_is_kept(checkpoint):
    class Around:
        def __init__(self, task):
            self.task = task

        def __getattr__(self, name):
            return getattr(self.task, name)

    made = of_texts(checkpoint, "bert")
    with made.cached(made.adapted("head")) as task:
        assert KEPT in next(load_batches(Around(task), made.splits.train, [np.arange(3)], None)).targets


def test_rows_that_are_not_kept_go_the_plain_way(checkpoint):
    made = of_texts(checkpoint, "bert")
    adapted = made.adapted("head")
    others = Dataset.from_list([{"id": "other", "text": "a red plum", "label": "fruit"}])
    with made.cached(adapted) as task, torch.no_grad():
        batch = next(load_batches(task, others, [np.array([0])], None))
        assert batch.inputs["input_ids"].shape == (1, 5)
        found, wanted = (one.predict(adapted.model.eval(), batch)[0]["logits"] for one in (task, made.task))
    np.testing.assert_array_equal(found, wanted)
