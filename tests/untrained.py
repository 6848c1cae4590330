"""Run a recipe but for its training, so that any number of processes ends with the same weights."""

from __future__ import annotations

import sys

import torch
from conftest import load_recipe

from graftkit.config import parse


def keep_as_it_is(run, task, adapted, splits, lengths, config):
    """In place of `train`: the model with its new head."""
    run.record["training"] = {}
    return adapted.model.to(run.accelerator.device).eval()


torch.set_num_threads(1)
recipe = load_recipe(sys.argv[1])
recipe.train = keep_as_it_is
recipe.main(parse(recipe.Config, sys.argv[2:]))
