"""Between what does a score lie?"""

from __future__ import annotations

from math import inf

SHARE = (0.0, 1.0)
SCALES = {
    **dict.fromkeys(("matthews", "pearson", "spearman"), (-1.0, 1.0)),
    **dict.fromkeys(("bleu", "chrf", "rouge_1", "rouge_2", "rouge_l"), (0.0, 100.0)),
    **dict.fromkeys(("rmse", "mae", "log_loss", "bits_per_byte"), (0.0, inf)),
    **dict.fromkeys(("perplexity", "perplexity_per_byte"), (1.0, inf)),
    "r2": (-inf, 1.0),
}
"""The least and the most that a score can be, by its name, where that is not 0 and 1."""


def scale(name: str) -> tuple[float, float]:
    """The least and the most that a score can be."""
    return SCALES.get(name, SHARE)


def perfect(name: str) -> float:
    """The best that a score can be: the finite end of its scale, or the upper one where both are."""
    least, most = scale(name)
    return least if most == inf else most
