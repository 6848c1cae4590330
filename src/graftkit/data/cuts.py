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


def cut_rows(classes: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """A stratified sample of so many rows, at least one of each class, as a mask (rows,).

    A smaller sample by the same seed is part of a larger one.
    """
    order, _ = stratified_order(classes, np.arange(len(classes)), seed)
    kept = np.zeros(len(classes), bool)
    kept[order[-rows:]] = True
    return kept
