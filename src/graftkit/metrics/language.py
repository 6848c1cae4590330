"""How well does it foresee text?

A record holds of one row `loss`, in nats over its counted tokens, `tokens`, how many these are, `right`, how many of
them were held the likeliest, and `bytes`, of the text that they write, in UTF-8. Perplexity is e to the mean loss of a
token: a model of perplexity 20 is as unsure as one that draws from 20 tokens. It depends on how a tokenizer cuts words;
per byte, models with different tokenizers can be compared (Gao et al. 2020, arXiv:2101.00027, section 3.1).
"""

from __future__ import annotations

import math

import numpy as np

from graftkit.metrics.sums import Records, Scoring

HEADLINES = ("perplexity", "bits_per_byte", "log_loss")
MASKED_HEADLINES = ("perplexity", "log_loss")
MOST = 700.0  # nats, beyond which e to them is no finite number: no model but a broken one is so wrong


def sums(records: Records) -> np.ndarray:
    """What each row adds, (rows, 4): loss, tokens, right tokens, bytes (0 where the task counts none)."""
    return np.array(
        [[one["loss"], one["tokens"], one["right"], one.get("bytes", 0)] for one in records], dtype=np.float64
    )


def _e_to(nats: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(nats, MOST))


def _per(totals: np.ndarray, column: int, unit: int) -> np.ndarray:
    """A sum for each token or byte, (n,); what is left without one of a few rows may have none."""
    return totals[:, column] / np.maximum(totals[:, unit], 1)


PER_TOKEN = {
    "perplexity": lambda totals: _e_to(_per(totals, 0, 1)),
    "log_loss": lambda totals: _per(totals, 0, 1),
    "token_accuracy": lambda totals: _per(totals, 2, 1),
}
PER_BYTE = {
    "bits_per_byte": lambda totals: _per(totals, 0, 3) / math.log(2),
    "perplexity_per_byte": lambda totals: _e_to(_per(totals, 0, 3)),
}
LOWER = frozenset({"perplexity", "log_loss", "bits_per_byte", "perplexity_per_byte"})

CAUSAL = Scoring(sums, PER_TOKEN | PER_BYTE, lower=LOWER)
"""Of a model that foresees every token, and so every byte."""

MASKED = Scoring(sums, PER_TOKEN, lower=LOWER & PER_TOKEN.keys())
"""Of one that fills gaps, whose tokens are the hidden ones: they write no whole text."""
