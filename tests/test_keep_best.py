"""Which update is the best so far, where more of a score is better, and where less is?"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from graftkit.checkpoint import State
from graftkit.train import _keep_best


@pytest.mark.parametrize(("lower", "kept"), [(False, 2), (True, 4)])
def test_the_best_is_the_highest_or_the_lowest_and_the_first_of_equals(lower, kept):
    run = SimpleNamespace(headline="it", lower=lower, log=lambda event: None)
    progress = SimpleNamespace(write=lambda line: None, mean_loss=lambda: 0.0, rows_per_second=1.0)
    state = State(processes=1, origin={})
    for update, score in enumerate([0.5, 0.9, 0.9, 0.0, 0.0], start=1):
        state.update = update
        _keep_best(run, {"it": score}, state, update, progress)
    assert state.best_update == kept
    assert state.without_gain == 5 - kept


def test_of_equals_the_one_with_less_loss_is_kept_but_that_is_no_gain():
    run = SimpleNamespace(headline="it", lower=False, log=lambda event: None)
    progress = SimpleNamespace(write=lambda line: None, mean_loss=lambda: 0.0, rows_per_second=1.0)
    state, kept = State(processes=1, origin={}), []
    for update, (score, loss) in enumerate([(0.5, 0.9), (1.0, 0.7), (1.0, 0.4), (1.0, 0.6), (0.9, 0.1)], start=1):
        state.update = update
        _keep_best(run, {"it": score, "log_loss": loss}, state, update, progress)
        kept.append(state.best_update)
    assert kept == [1, 2, 3, 3, 3]
    assert (state.best_score, state.best_loss, state.without_gain) == (1.0, 0.4, 3)


def test_epochs_in_which_something_waits_are_not_counted():
    run = SimpleNamespace(headline="it", lower=False, log=lambda event: None)
    progress = SimpleNamespace(write=lambda line: None, mean_loss=lambda: 0.0, rows_per_second=1.0)
    state, counted = State(processes=1, origin={}), []
    for update, waits in enumerate([True, True, True, False, False], start=1):
        state.update = update
        _keep_best(run, {"it": 0.5}, state, update, progress, waits=waits)
        counted.append(state.without_gain)
    assert counted == [0, 0, 0, 1, 2]
    assert state.best_update == 1
