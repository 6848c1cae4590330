"""What answers cost: against torch's own, by hand, and however the rows are split."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div

from graftkit.batches import epoch_updates, number_repeats
from graftkit.errors import UserError
from graftkit.learn import ClassifierTrainConfig
from graftkit.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    balanced_weights,
    check_fits,
    choose_loss,
    choose_loss_of_sets,
    draw_weights,
    rarity,
    softened_divergence,
)

WEIGHTS = (0.5, 2.0, 1.25, 4.0)
TARGETS = torch.tensor([0, 3, 1, 1, 2, 0, 3, 2])


def logits(seed: int = 0, rows: int = 8) -> torch.Tensor:
    """(rows, 4), some rows sure and some not."""
    drawn = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn * torch.linspace(0.1, 6, rows, dtype=torch.float64)[:, None]


def soft_targets() -> torch.Tensor:
    drawn = torch.rand(8, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return drawn / drawn.sum(-1, keepdim=True)


ALL = [
    CrossEntropy(),
    CrossEntropy(label_smoothing=0.1),
    CrossEntropy(weights=WEIGHTS),
    CrossEntropy(focal=2.0),
    CrossEntropy(label_smoothing=0.2, weights=WEIGHTS, focal=1.5, temperature=3.0, teacher_share=0.3),
]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("targets", [TARGETS, soft_targets()])
def test_the_plain_and_the_smoothed_cost_are_torchs(smoothing, targets):
    mine = CrossEntropy(label_smoothing=smoothing)(logits(), targets)
    assert mine == cross_entropy(logits(), targets, label_smoothing=smoothing, reduction="sum")


def test_class_weights_without_smoothing_are_torchs():
    criterion = CrossEntropy(weights=WEIGHTS)
    weights = torch.tensor(WEIGHTS, dtype=torch.float64)
    assert criterion(logits(), TARGETS) == pytest.approx(cross_entropy(logits(), TARGETS, weights, reduction="sum"))
    mean = criterion(logits(), TARGETS) / criterion.count(TARGETS)
    assert mean == pytest.approx(cross_entropy(logits(), TARGETS, weights).item())
    soft = cross_entropy(logits(), soft_targets(), weights, reduction="sum")
    assert criterion(logits(), soft_targets()) == pytest.approx(soft.item())


def test_smoothing_leaves_the_weight_of_a_row_as_it_is():
    rows = cross_entropy(logits(), TARGETS, label_smoothing=0.1, reduction="none")
    wanted = (rows * torch.tensor(WEIGHTS, dtype=torch.float64)[TARGETS]).sum()
    assert CrossEntropy(label_smoothing=0.1, weights=WEIGHTS)(logits(), TARGETS) == pytest.approx(wanted.item())


@pytest.mark.parametrize("focal", [0.5, 1.0, 2.0])
def test_focal_loss_is_the_formula_of_the_paper(focal):
    chance = logits().softmax(-1).gather(1, TARGETS[:, None])
    wanted = (-((1 - chance) ** focal) * chance.log()).sum()
    assert CrossEntropy(focal=focal)(logits(), TARGETS) == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("criterion", [CrossEntropy(focal=2.0), *ALL[-1:], CrossEntropy(focal=0.5)])
@pytest.mark.parametrize("targets", [TARGETS, soft_targets()])
def test_gradients_are_those_of_the_cost(criterion, targets):
    student, teacher = logits().requires_grad_(), logits(1)
    assert torch.autograd.gradcheck(lambda given: criterion(given, targets, teacher), (student,))


def test_a_row_that_is_certain_has_a_finite_gradient():
    for focal in (0.3, 1.0, 2.0):
        student = torch.tensor([[300.0, 0.0], [300.0, 0.0]], requires_grad=True)
        CrossEntropy(label_smoothing=0.1, focal=focal)(student, torch.tensor([0, 1])).backward()
        assert torch.isfinite(student.grad).all()
        student = torch.tensor([[300.0, -300.0]], requires_grad=True)
        BinaryCrossEntropy(focal=focal)(student, torch.tensor([[1.0, 1.0]])).backward()
        assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("criterion", ALL)
@pytest.mark.parametrize("targets", [TARGETS, soft_targets().float()])
@pytest.mark.parametrize("teacher", [None, logits(1).float()])
def test_sum_over_count_does_not_depend_on_how_rows_are_split(criterion, targets, teacher):
    student = logits().float()

    def mean(bounds):
        parts = [slice(a, b) for a, b in pairwise(bounds)]
        costs = [criterion(student[p], targets[p], None if teacher is None else teacher[p]) for p in parts]
        return (sum(costs) / sum(criterion.count(targets[p]) for p in parts)).item()

    whole = mean([0, 8])
    assert whole > 0
    assert mean([0, 2, 4, 6, 8]) == pytest.approx(whole, rel=1e-6)
    assert mean([0, 3, 8]) == pytest.approx(whole, rel=1e-6)


def test_a_soft_target_of_one_label_costs_what_the_label_does():
    certain = torch.eye(4, dtype=torch.float64)[TARGETS]
    for criterion in ALL:
        assert criterion(logits(), certain) == pytest.approx(criterion(logits(), TARGETS).item())
        assert criterion.count(certain.float()) == pytest.approx(criterion.count(TARGETS).item())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_divergence_from_a_teacher_is_torchs(temperature):
    student, teacher = logits(), logits(1)
    wanted = kl_div(
        (student / temperature).log_softmax(-1),
        (teacher / temperature).log_softmax(-1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    found = softened_divergence(student, teacher, temperature)
    assert torch.allclose(found, temperature**2 * wanted)
    assert torch.allclose(softened_divergence(teacher, teacher, temperature), torch.zeros(8, dtype=torch.float64))
    criterion = CrossEntropy(temperature=temperature, teacher_share=0.3)
    mixed = 0.7 * cross_entropy(student, TARGETS, reduction="sum") + 0.3 * found.sum()
    assert criterion(student, TARGETS, teacher) == pytest.approx(mixed.item())
    assert criterion(student, TARGETS) == cross_entropy(student, TARGETS, reduction="sum")


def test_a_rows_weight_is_that_of_what_the_teacher_says_of_it_too():
    """By hand: the student says 1/2 and 1/2; of the first row the teacher says 3/4 and 1/4, of the other the same."""
    student, teacher = torch.zeros(2, 2), torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    criterion = CrossEntropy(weights=(3.0, 0.5), temperature=1.0, teacher_share=0.4)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # 0.1308
    wanted = 3 * (0.6 * math.log(2) + 0.4 * divergence) + 0.5 * 0.6 * math.log(2)
    assert wanted == pytest.approx(1.61258, abs=1e-5)
    assert criterion(student, torch.tensor([0, 1]), teacher).item() == pytest.approx(wanted)
    assert criterion(student, torch.eye(2), teacher).item() == pytest.approx(wanted)


@pytest.mark.parametrize(("calibrate", "sets", "mended"), [(True, False, 1), (False, False, 0), (True, True, 0)])
def test_a_temperature_is_told_only_where_one_is_chosen(calibrate, sets, mended):
    said = []
    run = SimpleNamespace(config={"report": {"calibrate": calibrate}}, record={}, say=said.append)
    train = {"labels": [["a"], ["b"], ["a"]]} if sets else {"label": ["a", "b", "a"]}
    choose = choose_loss_of_sets if sets else choose_loss
    choose(run, ClassifierTrainConfig(focal=2.0), SimpleNamespace(train=train, labels=["a", "b"]))
    assert sum("no longer shares of rows" in note for note in said) == 1
    assert sum("The temperature" in note for note in said) == mended


HAS = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float64)


def test_many_questions_cost_what_torch_says():
    asked, weights = logits(rows=3), torch.tensor(WEIGHTS, dtype=torch.float64)
    assert BinaryCrossEntropy()(asked, HAS) == binary_cross_entropy_with_logits(asked, HAS, reduction="sum")
    assert BinaryCrossEntropy().count(HAS) == 12
    weighted = BinaryCrossEntropy(WEIGHTS)
    wanted = binary_cross_entropy_with_logits(asked, HAS, pos_weight=weights, reduction="sum")
    assert weighted(asked, HAS) == pytest.approx(wanted.item())
    assert weighted.count(HAS) == 9 + 0.5 + 4 + 2
    chance = torch.where(HAS == 1, asked.sigmoid(), 1 - asked.sigmoid())
    wanted = (-((1 - chance) ** 2) * chance.log()).sum()
    assert BinaryCrossEntropy(focal=2.0)(asked, HAS) == pytest.approx(wanted.item())
    both = BinaryCrossEntropy(WEIGHTS, 2.0)
    assert torch.autograd.gradcheck(lambda given: both(given, HAS), (asked.requires_grad_(),))


def test_balanced_weights_are_scikit_learns_and_have_mean_one():
    from sklearn.utils.class_weight import compute_class_weight

    rows = [0] * 3 + [1] * 40 + [2] * 7
    weights = balanced_weights([3, 40, 7])
    assert weights == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=rows))
    assert np.mean([weights[row] for row in rows]) == pytest.approx(1)
    assert balanced_weights([5, 0, 5]) == (1, 0, 1)
    assert rarity([3, 0], [9, 12]) == (3, 1)


# which rows are drawn

LABELS = ["rare"] * 20 + ["usual"] * 900 + ["some"] * 80
LENGTHS = np.random.default_rng(0).integers(3, 60, 1000).astype(np.int32)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_each_label_is_drawn_equally_often(lengths):
    chances = draw_weights(LABELS)
    assert chances.sum() == pytest.approx(1)
    updates = [update for epoch in range(5) for update in epoch_updates(1000, lengths, 32, 0, epoch, chances)]
    assert len(updates) == 5 * 32
    drawn = np.concatenate(updates) % 1000
    assert len(drawn) == 5000
    for label in set(LABELS):
        share = np.mean([LABELS[row] == label for row in drawn])
        assert share == pytest.approx(1 / 3, abs=0.03)  # 4.5 standard errors
    rare = drawn[drawn < 20]
    assert min(np.bincount(rare, minlength=20)) > 40  # of 83: within a label, all rows alike
    if lengths is not None:
        padded = sum(lengths[update % 1000].max() * len(update) for update in updates)
        assert lengths[drawn].sum() / padded > 0.9


def test_what_is_drawn_is_a_function_of_seed_and_epoch():
    chances = draw_weights(LABELS)

    def drawn(seed, epoch):
        return np.concatenate(epoch_updates(1000, LENGTHS, 32, seed, epoch, chances)).tolist()

    assert drawn(0, 0) == drawn(0, 0)
    assert drawn(0, 0) != drawn(0, 1)
    assert drawn(0, 0) != drawn(1, 0)
    assert len(set(drawn(0, 0))) == 1000  # a row that is drawn again goes by another number


def test_repeats_are_numbered_in_the_order_in_which_they_are_drawn():
    drawn = np.array([3, 1, 3, 3, 0, 1])
    assert number_repeats(drawn, 10).tolist() == [3, 1, 13, 23, 0, 11]


# what does not go together

NOT_TOGETHER = [
    ({"class_weights": "balanced", "sampling": "balanced"}, "twice"),
    ({"temperature": 3.0}, "--train.temperature does nothing without --train.teacher"),
    ({"teacher_share": 0.9}, "--train.teacher_share does nothing without"),
    ({"teacher": "large", "teacher_share": 1.0, "focal": 2.0}, "--train.focal does nothing with"),
]


@pytest.mark.parametrize(("settings", "words"), NOT_TOGETHER)
def test_settings_that_do_nothing_together_are_refused(settings, words):
    with pytest.raises(UserError, match=words) as caught:
        ClassifierTrainConfig(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "settings", "refused"),
    [
        ("multi", {"label_smoothing": 0.1}, True),
        ("multi", {"sampling": "balanced"}, True),
        ("multi", {"teacher": "large"}, True),
        ("multi", {"class_weights": "balanced", "focal": 2.0}, False),
        ("regression", {"class_weights": "balanced"}, True),
        ("regression", {"focal": 2.0}, True),
        ("regression", {}, False),
    ],
)
def test_what_is_not_for_a_kind_of_rows_is_refused(rows, settings, refused):
    config = ClassifierTrainConfig(**settings)
    if not refused:
        check_fits(config, rows)
        return
    with pytest.raises(UserError, match=f"--train.{next(iter(settings))} .*not with --data.task {rows}"):
        check_fits(config, rows)
