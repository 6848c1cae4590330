"""What are the weights on average?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from graftkit.checkpoint import trained_weights

if TYPE_CHECKING:
    from torch import Tensor, nn


class Average:
    """An exponential moving average of what training changes: trained weights, and buffers such as batch norm's.

    Polyak and Juditsky 1992; here as in TensorFlow and timm, with a decay that rises from a small one: the average of
    few steps must not be the start. Without a decay there is no average, and nothing is done.
    """

    def __init__(self, model: nn.Module, decay: float | None):
        self.decay = decay
        self.stepped = {} if decay is None else trained_weights(model)  # the model's own tensors
        self.values: dict[str, Tensor] = {name: value.clone() for name, value in self.stepped.items()}

    def follow(self, steps: int) -> None:
        """Take in the weights after so many steps, this one included; whole numbers, such as counts, as they are."""
        decay = min(self.decay or 0.0, (1 + steps) / (10 + steps))
        for name, value in self.stepped.items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model hold the average within the block, and what was stepped again after it, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, value in self.stepped.items():
            held = value.clone()
            value.copy_(self.values[name])
            self.values[name].copy_(held)
