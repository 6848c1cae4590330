"""Are wrong labels found, and right ones left alone?"""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from conftest import ROOT

from graftkit.metrics import label_quality as quality


def clusters(rows: int, classes: int = 4, spread: float = 0.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, 16) around a centre for each class, and the true classes (rows,)."""
    rng = np.random.default_rng(seed)
    truth = np.arange(rows) % classes
    centres = rng.normal(size=(classes, 16))
    return (centres[truth] + spread * rng.normal(size=(rows, 16))).astype(np.float32), truth


def flip(truth: np.ndarray, share: float, classes: int = 4, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a share is wrong, and which these are."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(truth), bool)
    wrong[rng.permutation(len(truth))[: round(share * len(truth))]] = True
    return np.where(wrong, (truth + rng.integers(1, classes, len(truth))) % classes, truth), wrong


def test_flipped_labels_are_found_and_counted():
    features, truth = clusters(400)
    labels, wrong = flip(truth, 0.1)
    probabilities = quality.out_of_fold(features, labels, 4)
    confident = quality.confident_classes(probabilities, labels)
    suspect = (confident >= 0) & (confident != labels)
    joint = quality.estimated_joint(quality.confident_joint(confident, labels, 4), labels)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert set(np.argsort(quality.self_confidence(probabilities, labels))[:40]) == set(np.flatnonzero(wrong))
    assert wrong[suspect].mean() >= 0.95
    assert np.array_equal(confident[suspect & wrong], truth[suspect & wrong])
    assert 1 - np.trace(joint) == pytest.approx(0.1, abs=0.02)


def test_clean_labels_are_left_alone():
    features, truth = clusters(400)
    probabilities = quality.out_of_fold(features, truth, 4)
    confident = quality.confident_classes(probabilities, truth)
    assert not ((confident >= 0) & (confident != truth)).any()


def test_thresholds_and_joint_by_hand():
    """Class 0 is believed from 0.7 (the mean of 0.9, 0.8 and 0.4), class 1 from 0.65 (0.9 and 0.4)."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.1, 0.9], [0.6, 0.4]])
    labels = np.array([0, 0, 0, 1, 1])
    confident = quality.confident_classes(probabilities, labels)
    assert confident.tolist() == [0, 0, -1, 1, -1]
    assert quality.confident_joint(confident, labels, 2).tolist() == [[2, 0], [0, 1]]
    probabilities[4] = [0.8, 0.2]  # now class 1 is believed from 0.55, and the last row is confidently of class 0
    confident = quality.confident_classes(probabilities, labels)
    counts = quality.confident_joint(confident, labels, 2)
    assert confident.tolist() == [0, 0, 1, 1, 0]
    assert counts.tolist() == [[2, 1], [1, 1]]
    assert np.allclose(quality.estimated_joint(counts, labels), [[0.4, 0.2], [0.2, 0.2]])
    assert quality.self_confidence(probabilities, labels).tolist() == [0.9, 0.8, 0.4, 0.9, 0.2]


def test_a_label_without_a_confident_row_is_taken_to_be_right():
    counts, labels = np.array([[3, 1], [0, 0]]), np.array([0, 0, 0, 0, 1])
    assert np.allclose(quality.estimated_joint(counts, labels), [[0.6, 0.2], [0, 0.2]])


def test_a_class_that_no_row_bears_is_never_believed():
    probabilities = np.array([[0.5, 0.1, 0.4], [0.6, 0.1, 0.3]])
    assert quality.confident_classes(probabilities, np.array([0, 0])).tolist() == [-1, 0]


def test_copies_share_a_fold_so_that_no_row_is_judged_by_its_own_copy():
    features, truth = clusters(60, spread=3.0)  # which says little of the class
    twice, groups = np.repeat(features, 2, axis=0), np.repeat(np.arange(60), 2)
    labels, _ = flip(np.repeat(truth, 2), 0.0)
    assigned = quality.fold_numbers(labels, groups, 5, 0)
    assert np.array_equal(assigned[::2], assigned[1::2])
    apart = quality.out_of_fold(twice, labels, 4, groups)
    leaked = quality.out_of_fold(twice, labels, 4)
    right = [(found.argmax(axis=1) == labels).mean() for found in (apart, leaked)]
    assert right[0] + 0.05 < right[1]


def test_folds_hold_each_class_in_its_share():
    labels = np.repeat([0, 1, 2], [50, 25, 10])
    assigned = quality.fold_numbers(labels, np.arange(85), 5, 3)
    counts = np.array([np.bincount(labels[assigned == fold]) for fold in range(5)])
    assert (np.ptp(counts, axis=0) <= 1).all()
    assert not np.array_equal(assigned, quality.fold_numbers(labels, np.arange(85), 5, 4))


def test_a_row_alone_with_its_label_cannot_be_judged():
    features, truth = clusters(41)
    truth[7] = 4
    found = quality.out_of_fold(features, truth, 5)
    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [7]
    assert np.isnan(found[7]).all()


def test_folds_with_a_single_class_left_say_so():
    """Three rows of two labels: what is left to learn from may have one label alone."""
    found = quality.out_of_fold(np.eye(3, dtype=np.float32), np.array([0, 0, 1]), 2, folds=3)
    assert np.isnan(found[2]).all()
    assert np.isfinite(found[:2]).all()


def test_near_duplicates_are_found_across_blocks(monkeypatch):
    monkeypatch.setattr(quality, "BLOCK", 7)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 64)).astype(np.float32) + 5  # as networks do, all point one way
    features[33] = features[4] + 0.02 * rng.normal(size=64)
    features[12] = features[33] + 0.02 * rng.normal(size=64)
    among = np.arange(40) < 30
    near = quality.neighbours(features, among, 0.9)
    assert near.nearest[33] in (4, 12)
    assert near.nearest[4] == 12  # 33 is nearer, but not among those asked for
    assert near.similarity[33] > 0.98
    assert (np.delete(near.similarity, [4, 12, 33]) < 0.9).all()
    assert len({near.groups[place] for place in (4, 12, 33)}) == 1
    assert len(np.unique(near.groups)) == 38
    assert among[near.nearest].all()
    assert (near.nearest != np.arange(40)).all()


def test_rows_that_are_all_alike_are_one_group_and_none_is_its_own_neighbour():
    near = quality.neighbours(np.tile(np.array([[1.0, 2.0], [3.0, 1.0]], np.float32), (6, 1)), np.ones(12, bool), 0.9)
    assert len(np.unique(near.groups)) == 2
    assert (near.nearest != np.arange(12)).all()
    lone = quality.neighbours(np.eye(3, dtype=np.float32), np.array([True, False, False]), 0.9)
    assert lone.nearest.tolist() == [-1, 0, 0]
    assert lone.similarity[0] == -1


@pytest.mark.real
@pytest.mark.slow
def test_flipped_labels_of_real_pictures_are_found():
    """flowers12, 5% flipped: docs/results.md has the figures."""
    benchmark = load_benchmark()
    features, truth, _, _ = benchmark.load("flowers12")
    found = [benchmark.flipped(features, truth, 0.05, seed) for seed in range(3)]
    assert min(one["auroc"] for one in found) >= 0.98
    assert min(one["precision"] for one in found) >= 0.8


def load_benchmark():
    """benchmarks/label_quality.py as a module."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_label_quality", ROOT / "benchmarks/label_quality.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
