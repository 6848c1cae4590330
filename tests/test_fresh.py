"""A network that nobody has trained learns at other rates than one that is named."""

from __future__ import annotations

import pytest
from conftest import load_recipe

from graftkit.fresh import USUAL, FreshTrainConfig
from graftkit.train import TrainConfig

UNTRAINED = TrainConfig(epochs=9, batch_size=32, lr=3e-3)


@pytest.mark.parametrize("usual", [USUAL, UNTRAINED])
def test_what_is_left_open_is_as_usual_and_what_is_set_stays(usual):
    settled = FreshTrainConfig(lr=0.5, accumulate=2).settle(usual)
    assert (settled.epochs, settled.batch_size, settled.lr) == (usual.epochs, usual.batch_size, 0.5)
    assert settled.accumulate == 2
    assert settled.settle(USUAL) == settled  # a run of several is settled twice
    same_as_default = FreshTrainConfig(epochs=USUAL.epochs).settle(UNTRAINED)
    assert (same_as_default.epochs, same_as_default.lr) == (USUAL.epochs, UNTRAINED.lr)


@pytest.mark.parametrize("name", ["generate", "translate"])
def test_a_checkpoint_that_is_named_gets_the_usual_rates(monkeypatch, name):
    recipe, seen = load_recipe(name), []

    def look(_, config):
        seen.append(config.train)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "open_run", look)
    config = recipe.Config()
    from dataclasses import replace

    for backbone in (config.backbone, replace(config.backbone, name="someone/theirs")):
        with pytest.raises(KeyboardInterrupt):
            recipe.main(replace(config, backbone=backbone))
    own, theirs = seen
    assert theirs.settle(USUAL).lr == USUAL.lr < own.lr
    assert theirs.epochs == USUAL.epochs < own.epochs
