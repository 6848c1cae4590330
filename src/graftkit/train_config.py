"""What may be set of training?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graftkit.config import AtLeastOne, Fraction, NotNegative, NotZero, Positive, Share
from graftkit.errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    """How does it learn?"""

    epochs: AtLeastOne = 3
    """passes over the training rows"""
    batch_size: AtLeastOne = 16
    """rows per process and forward pass"""
    accumulate: AtLeastOne = 1
    """forward passes per update; rows per update = batch_size x accumulate x processes"""
    lr: Positive | Literal["auto"] = 1e-4
    """highest learning rate of the backbone; auto looks for one, at rates that rise from 1e-7"""
    head_lr: Positive | None = None
    """highest learning rate of the head; by default head_factor x lr"""
    head_factor: Positive = 50.0
    """rate of the head over lr, where head_lr is not set: a new head starts from nothing"""
    weight_decay: NotNegative = 0.01
    """AdamW's decay of matrices; biases and norms have none"""
    warmup: Fraction = 0.1
    """share of the updates in which the rate rises; then it falls linearly to 0"""
    head_first: Fraction = 0.0
    """share of the updates, the first ones, in which a new head trains alone, and what is below it waits"""
    clip: Positive = 1.0
    """longest gradient, as a norm over all parameters"""
    patience: AtLeastOne | None = None
    """stop after so many epochs without a better score on dev; those in which what joins later still waits do not
    count"""
    max_steps: AtLeastOne | None = None
    """stop after so many updates"""
    save_every: AtLeastOne | None = None
    """save a checkpoint after so many updates, besides the one after each epoch"""
    checkpointing: bool = False
    """compute activations again in the backward pass: less memory, more time"""
    layer_decay: NotZero = 1.0
    """rate of each block over that of the next one above; the embeddings or the stem have the lowest"""
    unfreeze_every: AtLeastOne | None = None
    """train a new head alone for so many epochs, and let one more block join it, from the top, after each so many"""
    l2_sp: NotNegative = 0.0
    """pull to where the weights began, in place of weight_decay (L2-SP); a weight hardly goes further than 1 / l2_sp"""
    ema: Share | None = None
    """evaluate and keep a moving average of the weights, with this decay, such as 0.99"""
    soup: Literal["uniform", "greedy"] | None = None
    """keep the average of the weights after each epoch: of all, or of those that do not lower its score on dev"""
    wise_ft: bool = False
    """keep weights between the pretrained and the trained ones: a share of the way, from 0 to 1, chosen on dev"""

    def __post_init__(self) -> None:
        if self.unfreeze_every is not None and self.head_first:
            raise UserError(
                f"--train.unfreeze_every {self.unfreeze_every}: the head trains alone for so many epochs, and "
                f"--train.head_first {self.head_first:g} says otherwise; set --train.head_first 0"
            )
        if self.soup is not None and self.epochs is not None and self.epochs < 2:  # None: not settled yet
            raise UserError(
                f"--train.soup {self.soup} averages the weights after each epoch, and --train.epochs {self.epochs} "
                "leaves but one; train for 2 epochs or more"
            )
        if self.soup is not None and self.max_steps == 1:
            raise UserError(
                f"--train.soup {self.soup} averages the weights after each epoch, and --train.max_steps 1 leaves but "
                "one; allow more"
            )
