"""What every task must hold to: a table with one row per task."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import KINDS, SHAPES, draw, texts, write_csv
from test_multi_label_classify import messages
from test_question_answering import questions
from test_sequence_to_sequence import pairs, writer
from test_token_classification import sentences

from graftkit.adapt import AdaptConfig, adapt, set_training_mode
from graftkit.backbone import BackboneConfig
from graftkit.data import DataConfig, ImageDataConfig, load_label_sets, load_numbers, load_pictures, load_splits
from graftkit.data.answer_rows import AnswersDataConfig, load_answers
from graftkit.data.chats import GenerateDataConfig, load_to_generate
from graftkit.data.documents import DocumentsConfig, load_documents
from graftkit.data.parallel_rows import ParallelDataConfig, load_parallel
from graftkit.data.tagged_rows import TaggedDataConfig, load_tagged
from graftkit.data.turns import Reader
from graftkit.errors import UserError
from graftkit.generation import GenerateConfig
from graftkit.heads import (
    load_answerer,
    load_classifier,
    load_headless,
    load_masked_language_model,
    load_token_classifier,
)
from graftkit.image_backbone import ImageBackboneConfig, load_image_classifier
from graftkit.images import ImageConfig
from graftkit.masking import MaskConfig
from graftkit.optim import make_optimizer
from graftkit.task import Task
from graftkit.tasks.causal_language_modelling import CausalLanguageModelling
from graftkit.tasks.image_classification import ImageClassification
from graftkit.tasks.masked_language_modelling import MaskedLanguageModelling
from graftkit.tasks.multi_label_classification import MultiLabelClassification
from graftkit.tasks.question_answering import QuestionAnswering
from graftkit.tasks.sequence_to_sequence import load_writer
from graftkit.tasks.text_classification import TextClassification
from graftkit.tasks.text_regression import TextRegression
from graftkit.tasks.token_classification import TokenClassification
from graftkit.text import load_tokenizer


@dataclass(frozen=True)
class Made:
    """A task with its model and rows."""

    task: Task
    headed: Any
    rows: Any
    first_loss: float  # per target, of a head that knows nothing
    truth: str | None = "label"  # the column that holds it, where records have it as `label`
    drawn: float = 0.15  # how far, in shares, the head's random weights may lead from it
    said: Callable[[Any], Any] = lambda record: record["logits"]  # the numbers of a record
    perfect: float | None = 1.0  # the headline of a task that knows its rows by heart; None where chance is left
    updates: int = 80  # in which eight rows are learnt by heart; T5 begins with large weights, and is slower
    strategies: tuple[str, ...] = ("head", "last", "lora")  # those that it can be adapted by, beside full


def text_classification(folder: Path, checkpoint: Callable[..., Path], kind: str) -> Made:
    """The task over 47 sentences and a tiny checkpoint."""
    splits = load_splits(DataConfig(path=str(write_csv(folder / "rows.csv", texts(60)))), 0)
    backbone = BackboneConfig(name=str(checkpoint(kind)))
    tokenizer = load_tokenizer(backbone)
    headed = load_classifier(backbone, splits.labels, tokenizer, 0)
    return Made(TextClassification(tokenizer, splits.labels), headed, splits.train, math.log(3))


def image_classification(folder: Path, checkpoint: Callable[..., Path], kind: str) -> Made:
    """The task over 24 drawn shapes, of sizes of their own, and a tiny checkpoint."""
    for i in range(36):
        (folder / SHAPES[i % 3]).mkdir(exist_ok=True)
        draw(SHAPES[i % 3], i, (70 + i, 90 - i)).save(folder / SHAPES[i % 3] / f"{i}.png")
    splits = load_pictures(ImageDataConfig(path=str(folder)), 0)
    model = load_image_classifier(ImageBackboneConfig(name=str(checkpoint(kind))), ImageConfig(), splits.labels, 0)
    task = ImageClassification(model.preprocessing, splits.labels, splits.train, 0)
    return Made(task, model.headed, splits.train, math.log(3), drawn=0.25)


def token_classification(folder: Path, checkpoint: Callable[..., Path], kind: str) -> Made:
    """The task over 48 sentences with things as entities, some longer than the model reads, and a tiny checkpoint."""
    rows = [*sentences(52), *sentences(8, seed=1, longest=60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = load_tagged(TaggedDataConfig(path=str(folder / "rows.jsonl")), 0)
    backbone = BackboneConfig(name=str(checkpoint(kind)))
    tokenizer = load_tokenizer(backbone)
    headed = load_token_classifier(backbone, splits.labels, tokenizer, 0)
    task = TokenClassification(tokenizer, splits.labels)
    return Made(task, headed, splits.train, math.log(len(splits.labels)), truth="tags")


def fill_mask(folder: Path, checkpoint: Callable[..., Path], kind: str) -> Made:
    """The task over 48 texts, some longer than the model reads, and a tiny checkpoint that cannot fill gaps yet."""
    rows = [text for text, _ in texts(52)] + [" ".join(text for text, _ in texts(9, seed=i)) for i in range(8)]
    path = write_csv(folder / "rows.csv", [(row,) for row in rows], ["text"])
    splits = load_documents(DocumentsConfig(path=str(path)), 0)
    backbone = BackboneConfig(name=str(checkpoint(kind)))
    task = MaskedLanguageModelling(load_tokenizer(backbone), MaskConfig())
    unsure = math.log(180)  # words in the vocabulary of the checkpoint
    return Made(
        task,
        load_masked_language_model(backbone, 0)[0],
        splits.train,
        unsure,
        truth=None,
        said=lambda record: record["loss"] / record["tokens"] / unsure,
    )


def text_regression(folder: Path, checkpoint: Callable[..., Path], kind: str) -> Made:
    """The task over 48 sentences with a number by what they name, and a tiny checkpoint."""
    worth = {"fruit": -1.0, "tool": 0.25, "bird": 1.5}
    rows = [(text, str(worth[label])) for text, label in texts(60)]
    splits = load_numbers(DataConfig(path=str(write_csv(folder / "rows.csv", rows)), task="regression"), 0)
    backbone = BackboneConfig(name=str(checkpoint(kind)))
    tokenizer = load_tokenizer(backbone)
    headed = load_classifier(backbone, splits.labels, tokenizer, 0, TextRegression.problem_type)
    task = TextRegression.of(tokenizer, splits)
    start = task.mean if kind == "bert" else 0.0  # of a last layer without a bias
    first_loss = float(np.mean((np.array(splits.train["label"][:24]) - start) ** 2)) / task.sd**2
    said = {"said": lambda record: record["prediction"], "drawn": 0.25}
    return Made(task, headed, splits.train, first_loss, **said)


def text_generation(folder: Path, checkpoint: Callable[..., Path], kind: str) -> Made:
    """The task over 48 sentences that are each asked for the kind of thing that they name, and a tiny checkpoint."""
    path = write_csv(folder / "rows.csv", texts(60), ("prompt", "completion"))
    backbone = BackboneConfig(name=str(checkpoint(kind)))
    tokenizer = load_tokenizer(backbone)
    splits = load_to_generate(GenerateDataConfig(path=str(path)), 0, Reader(tokenizer), tokenizer.model_max_length)
    task = CausalLanguageModelling(Reader(tokenizer), splits.train.column_names, GenerateConfig())
    headed = load_headless(backbone, "AutoModelForCausalLM", "CAUSAL_LM", 0)
    tied = ("last", "lora") if kind == "gpt2" else ("head", "last", "lora")
    return Made(
        task, headed, splits.train, math.log(180), truth=None, strategies=tied,
        said=lambda record: record["loss"] / record["tokens"],
    )  # fmt: skip


def multi_label_classification(folder: Path, checkpoint: Callable[..., Path], kind: str) -> Made:
    """The task over 48 texts of none to three labels and a tiny checkpoint."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages(60, longest=6)))
    splits = load_label_sets(DataConfig(path=str(folder / "rows.jsonl"), task="multi"), 0)
    backbone = BackboneConfig(name=str(checkpoint(kind)))
    tokenizer = load_tokenizer(backbone)
    headed = load_classifier(backbone, splits.labels, tokenizer, 0, MultiLabelClassification.problem_type)
    task = MultiLabelClassification(tokenizer, splits.labels)
    return Made(task, headed, splits.train, math.log(2), truth="labels")


def sequence_to_sequence(folder: Path, checkpoint: Callable[..., Path], kind: str) -> Made:
    """The task over 48 sentences of which the kind and the thing are to be written, and a tiny checkpoint."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(60)))
    splits = load_parallel(ParallelDataConfig(path=str(folder / "rows.jsonl")), 0)
    task = writer(checkpoint(kind), beams=2)
    task.bound(task.counts(splits.train)[1])
    headed = load_writer(BackboneConfig(name=str(checkpoint(kind))), 0)
    first_loss, said = math.log(180), lambda record: record["loss"] / record["tokens"]
    how = {"perfect": 0.0, "updates": 160, "strategies": ("last", "lora")}
    return Made(task, headed, splits.train, first_loss, "target", 0.3, said, **how)


def question_answering(folder: Path, checkpoint: Callable[..., Path], kind: str) -> Made:
    """The task over 48 questions on texts of their own, each fifth without an answer, and a tiny checkpoint."""
    rows = [row | {"answer": (row["answers"] or [None])[0], "answer_start": (row["starts"] or [None])[0]}
            for row in questions(60)]  # fmt: skip
    names = ("context", "question", "answer", "answer_start")
    lines = [json.dumps({name: row[name] for name in names}) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines))
    splits = load_answers(AnswersDataConfig(path=str(folder / "rows.jsonl")), 0)
    backbone = BackboneConfig(name=str(checkpoint(kind)))
    tokenizer = load_tokenizer(backbone)
    task = QuestionAnswering(tokenizer, no_answer=True)
    may = [sum(end - first + 1 for first, end, _ in task.encode(row, None)["pieces"]) for row in splits.train]
    first_loss = float(np.log(may[:24]).mean())
    headed, said = load_answerer(backbone, tokenizer, 0), lambda record: [record["score"], record["null_gap"]]
    return Made(task, headed, splits.train, first_loss, truth="answers", said=said)


TASKS = [pytest.param(text_classification, kind, id=f"text-classification-{kind}") for kind in KINDS]
TASKS += [pytest.param(token_classification, kind, id=f"token-classification-{kind}") for kind in KINDS]
TASKS += [pytest.param(question_answering, kind, id=f"question-answering-{kind}") for kind in ("bert", "gpt2")]
TASKS += [pytest.param(fill_mask, kind, id=f"fill-mask-{kind}") for kind in ("bert", "roberta", "distilbert")]
TASKS += [pytest.param(text_regression, kind, id=f"text-regression-{kind}") for kind in ("bert", "gpt2")]
TASKS += [pytest.param(text_generation, kind, id=f"text-generation-{kind}") for kind in ("gpt2", "llama")]
TASKS += [pytest.param(sequence_to_sequence, kind, id=f"sequence-to-sequence-{kind}") for kind in ("t5", "bart")]
TASKS += [pytest.param(multi_label_classification, kind, id=f"multi-label-{kind}") for kind in ("bert", "gpt2")]
TASKS += [
    pytest.param(image_classification, kind, id=f"image-classification-{kind}")
    for kind in ("test_efficientnet", "test_vit", "vit")
]


@pytest.fixture
def made(request, tmp_path, checkpoint, image_checkpoint) -> Made:
    make, kind = request.param
    return make(tmp_path, image_checkpoint if make is image_classification else checkpoint, kind)


def pytest_generate_tests(metafunc):
    if "made" in metafunc.fixturenames:
        metafunc.parametrize("made", [p.values for p in TASKS], ids=[p.id for p in TASKS], indirect=True)


def batch_of(made: Made, indices) -> Any:
    return made.task.collate([made.task.encode(made.rows[int(i)], None) for i in indices])


def predictions(made: Made, batches) -> dict[str, np.ndarray]:
    made.headed.model.eval()
    with torch.no_grad():
        records = [
            record for batch in batches for record in made.task.predict(made.headed.model, batch_of(made, batch))
        ]
    return {record["id"]: made.said(record) for record in records}


def test_padding_changes_no_prediction(made):
    alone = predictions(made, [[i] for i in range(12)])
    together = predictions(made, [range(12)])
    lengths = made.task.lengths(made.rows)
    assert lengths is None or len(set(lengths[:12].tolist())) > 3
    for id, logits in alone.items():
        np.testing.assert_allclose(together[id], logits, atol=2e-6)


def test_the_first_loss_is_that_of_knowing_nothing(made):
    batch = batch_of(made, range(24))
    made.headed.model.eval()
    loss = made.task.loss(made.headed.model, batch) / made.task.count(batch)
    assert loss.item() == pytest.approx(made.first_loss, rel=made.drawn)


def test_the_loss_is_a_sum_over_targets(made):
    made.headed.model.eval()
    parts = [batch_of(made, part) for part in (range(3), range(3, 8))]
    whole = batch_of(made, range(8))
    total = sum(made.task.loss(made.headed.model, part).item() for part in parts)
    assert made.task.loss(made.headed.model, whole).item() == pytest.approx(total, rel=1e-5)
    assert made.task.count(whole).item() == sum(made.task.count(part).item() for part in parts)


def test_it_overfits_eight_rows(made):
    adapted = adapt(made.headed, AdaptConfig())
    optimizer = make_optimizer(adapted.model, adapted.head, 5e-3, 5e-3, 0.0)
    batch = batch_of(made, range(8))
    set_training_mode(adapted.model)
    for _ in range(made.updates):
        loss = made.task.loss(adapted.model, batch) / made.task.count(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    records = made.task.predict(adapted.model.eval(), batch)
    if made.perfect is not None:
        assert made.task.score(records)[made.task.headline] == pytest.approx(made.perfect, abs=0.05)


def test_records_are_the_rows_in_order_with_truth_and_prediction(made):
    batch = batch_of(made, [5, 2, 9])
    records = made.task.predict(made.headed.model.eval(), batch)
    assert [record["id"] for record in records] == [made.rows[i]["id"] for i in (5, 2, 9)]
    if made.truth is not None:
        assert [record["label"] for record in records] == [made.rows[i][made.truth] for i in (5, 2, 9)]
    total = made.task.loss(made.headed.model, batch).item()
    assert sum(record["loss"] for record in records) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("strategy", ["head", "last", "lora"])
def test_what_is_frozen_stays(made, strategy):
    if strategy not in made.strategies:
        with pytest.raises(UserError, match=r"--adapt\.strategy"):
            adapt(made.headed, AdaptConfig(strategy=strategy))
        return
    before = {name: p.detach().clone() for name, p in made.headed.model.named_parameters()}
    adapted = adapt(made.headed, AdaptConfig(strategy=strategy, **({"blocks": 1} if strategy == "last" else {})))
    optimizer = make_optimizer(adapted.model, adapted.head, 1e-2, 1e-2, 0.1)
    set_training_mode(adapted.model)
    for _ in range(3):
        made.task.loss(adapted.model, batch_of(made, range(8))).backward()
        optimizer.step()
        optimizer.zero_grad()
    frozen = {id(p) for p in adapted.model.parameters() if not p.requires_grad}
    after = adapted.model.get_base_model() if strategy == "lora" else adapted.model
    seen, moved = set(), 0
    for name, parameter in after.named_parameters():
        source = name
        for part in (".token_adapter", ".base_layer", ".original_module", ".modules_to_save.default"):  # PEFT's
            source = source.replace(part, "")
        assert source in before or "lora_" in source or "trainable_tokens" in source, name
        if id(parameter) in frozen:
            assert torch.equal(parameter, before[source]), name
        elif source in before:
            moved += not torch.equal(parameter, before[source])
        elif "lora_B" in source:  # it starts as zero
            moved += bool(parameter.any())
        seen.add(source)
    assert seen >= before.keys()
    assert frozen
    assert moved > 0
    assert all(torch.isfinite(p).all() for p in adapted.model.parameters())
