"""How does a network learn that nobody has trained?

Faster than a pretrained one, and for longer. A recipe that starts from such a network (`scratch`) when nothing is named
must not give its rates to a checkpoint that is named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from graftkit.config import AtLeastOne, Positive
from graftkit.train import TrainConfig

USUAL = TrainConfig()


@dataclass(frozen=True)
class FreshTrainConfig(TrainConfig):
    """How does it learn?"""

    epochs: AtLeastOne | None = None
    """passes over the training rows; by default 3, and more for a network that nobody has trained"""
    batch_size: AtLeastOne | None = None
    """rows per process and forward pass; by default 16, and 32 for the network of translate that nobody has trained"""
    lr: Positive | Literal["auto"] | None = None
    """highest rate of the backbone; by default 1e-4, and more for a network that nobody has trained; auto looks
    for one, at rates that rise from 1e-7"""

    def settle(self, usual: TrainConfig) -> FreshTrainConfig:
        """The same, with what the user left open as in `usual`."""
        open_ones = {
            name: getattr(usual, name) for name in ("epochs", "batch_size", "lr") if getattr(self, name) is None
        }
        return replace(self, **open_ones)
