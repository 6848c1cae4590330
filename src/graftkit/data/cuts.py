"""Which rows make up a split that is not there?"""

from __future__ import annotations

import numpy as np


def stratified_order(classes: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, int]:
    """All groups of rows in a seeded order of which any stretch holds the classes in their shares, to a row or so.

    `classes` (rows,) and `groups` (rows,) are numbered from 0 without gaps; a group goes by its first row's class.
    At the end of the order, and past the count that is returned with it, stand groups that together hold a row of
    every class: who takes from the front and leaves those takes no class's last row.
    """
    rng = np.random.default_rng(seed)
    leaders = classes[np.unique(groups, return_index=True)[1]]  # (groups,) class
    shuffled = rng.permutation(len(leaders))
    by_class = shuffled[np.argsort(leaders[shuffled], kind="stable")]
    sizes = np.bincount(leaders, minlength=classes.max() + 1)
    within = np.arange(len(leaders)) - (np.cumsum(sizes) - sizes)[leaders[by_class]]
    place = np.empty(len(leaders))  # in (0, 1): each class lies evenly over the whole, from a start of its own
    place[by_class] = (within + rng.random(len(sizes))[leaders[by_class]]) / sizes[leaders[by_class]]
    row_order = np.lexsort((place[groups], classes))
    last_rows = row_order[np.cumsum(np.bincount(classes)) - 1]  # (classes,)
    place[groups[last_rows]] += 1
    return np.argsort(place, kind="stable"), int((place < 1).sum())


def cut_tenths(classes: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, np.ndarray] | None:
    """Two stratified tenths, one for test and one for dev, as masks (rows,); None where there are too few rows.

    Each is the same whether or not the other is used. Rows of one group stay together, so that a tenth is counted in
    groups; some row of every class is in neither.
    """
    order, free = stratified_order(classes, groups, seed)
    tenth = max(1, round(len(order) / 10))
    if 2 * tenth > free:
        return None
    return {"test": np.isin(groups, order[:tenth]), "dev": np.isin(groups, order[tenth : 2 * tenth])}


def cut_folds(classes: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each row, from 0, (rows,): each holds the classes in their shares, counted in groups, to a group.

    Groups are dealt out class by class, in a seeded order; rows of one group stay together.
    """
    leaders = classes[np.unique(groups, return_index=True)[1]]  # (groups,) class
    shuffled = np.random.default_rng(seed).permutation(len(leaders))
    fold_of_group = np.empty(len(leaders), np.int64)
    fold_of_group[shuffled[np.argsort(leaders[shuffled], kind="stable")]] = np.arange(len(leaders)) % folds
    return fold_of_group[groups]


def join_groups(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Numbers from 0 without gaps, (rows,): the same for rows that either numbering holds together, or a chain of both.

    `one` and `other` (rows,) are numbered from 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first = int(one.max()) + 1
    size = first + int(other.max()) + 1
    links = coo_array((np.ones(len(one)), (one, first + other)), shape=(size, size))
    return np.unique(connected_components(links, directed=False)[1][one], return_inverse=True)[1]


def cut_rows(classes: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """A stratified sample of so many rows, at least one of each class, as a mask (rows,).

    A smaller sample by the same seed is part of a larger one.
    """
    order, _ = stratified_order(classes, np.arange(len(classes)), seed)
    kept = np.zeros(len(classes), bool)
    kept[order[-rows:]] = True
    return kept
