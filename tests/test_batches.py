from __future__ import annotations

import numpy as np
import pytest

from graftkit.batches import epoch_updates, fixed_batches, shares, some_windows, updates_per_epoch

LENGTHS = np.random.default_rng(0).integers(3, 200, 1003).astype(np.int32)


@pytest.mark.parametrize("rows_per_update", [1, 7, 32, 2000])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_an_epoch_sees_every_row_once(rows_per_update, lengths):
    updates = epoch_updates(1003, lengths, rows_per_update, seed=0, epoch=0)
    assert sorted(np.concatenate(updates)) == list(range(1003))
    assert len(updates) == updates_per_epoch(1003, rows_per_update)
    sizes = {len(update) for update in updates}
    assert max(sizes) <= rows_per_update
    assert max(sizes) - min(sizes) <= 1


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate(epoch_updates(1003, LENGTHS, 32, seed, epoch)).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_updates_hold_rows_of_like_length_in_random_order():
    updates = epoch_updates(1003, LENGTHS, 32, 0, 0)
    padded = sum(LENGTHS[update].max() * len(update) for update in updates)
    assert LENGTHS.sum() / padded > 0.95
    longest = [int(LENGTHS[update].max()) for update in updates]
    assert longest != sorted(longest)


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (1, 4), (2, 2), (3, 1), (2, 8)])
@pytest.mark.parametrize("size", [1, 7, 8])
def test_an_update_has_the_same_rows_however_it_is_split(processes, accumulate, size):
    update = np.arange(size) * 3
    parts = [shares(update, process, processes, accumulate) for process in range(processes)]
    assert {len(part) for part in parts} == {accumulate}
    assert sorted(np.concatenate([rows for part in parts for rows in part])) == update.tolist()


def test_evaluation_batches_follow_from_the_split_and_bound_tokens():
    batches = fixed_batches(LENGTHS, 1003, most_rows=64, most_tokens=1000)
    assert sorted(np.concatenate(batches)) == list(range(1003))
    assert all(len(b) * LENGTHS[b].max() <= 1000 or len(b) == 1 for b in batches)
    assert LENGTHS[batches[0]].max() == LENGTHS.max()
    assert [len(b) for b in fixed_batches(None, 130)] == [64, 64, 2]


@pytest.mark.parametrize(("most", "sizes"), [(4, [1] * 7), (5, [1] * 7), (14, [2, 2, 2, 1]), (35, [7]), (99, [7])])
def test_windows_come_in_order_some_at_a_time(most, sizes):
    import torch

    inputs = {"input_ids": torch.arange(35).reshape(7, 5), "attention_mask": torch.ones(7, 5)}
    parts = list(some_windows(inputs, most))
    assert [len(part["attention_mask"]) for part in parts] == sizes
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), inputs["input_ids"])
