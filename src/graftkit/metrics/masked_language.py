"""How well are hidden words filled in?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graftkit.metrics.sums import Scoring

HEADLINES = ("perplexity", "log_loss")


def _sums(records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Loss, hidden tokens, and those of them that are filled in right, of each row: (rows, 3)."""
    return np.array([(record["loss"], record["masked"], record["right"]) for record in records], dtype=np.float64)


def _mean(totals: np.ndarray, column: int) -> np.ndarray:
    """A sum over hidden tokens for each of them, (n,); a resample may have none."""
    return totals[:, column] / np.maximum(totals[:, 1], 1)


SCORING = Scoring(
    sums=_sums,
    statistics={
        "perplexity": lambda totals: np.exp(_mean(totals, 0)),
        "accuracy": lambda totals: _mean(totals, 2),
        "log_loss": lambda totals: _mean(totals, 0),
    },
    lower=frozenset({"perplexity", "log_loss"}),
)
"""Scores of all hidden tokens of a split together: a row with more of them counts more."""
