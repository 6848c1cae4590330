"""Which words stand where the model points?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.task import Row


def first_answer(row: Row) -> tuple[int, int] | None:
    """The first and the end letter of the answer that is learnt, without blanks around it; None where there is none."""
    if not row["answers"]:
        return None
    text, start = row["answers"][0], row["starts"][0]
    first = start + len(text) - len(text.lstrip())
    return first, first + len(text.strip())


def pieces_of(letters: np.ndarray, answer: tuple[int, int] | None) -> tuple[int, int] | None:
    """The first and last piece of an answer in a window; None where the window has not all of it.

    `letters`, (pieces, 2): where each piece begins and ends in the context.
    """
    if answer is None or not len(letters):
        return None
    begin, end = answer
    if begin < letters[0, 0] or end > letters[-1, 1]:
        return None
    first, last = np.flatnonzero(letters[:, 1] > begin), np.flatnonzero(letters[:, 0] < end)
    return (int(first[0]), int(last[-1])) if len(first) and len(last) and first[0] <= last[-1] else None


def best_spans(logits: Tensor, context: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The score, first and last token of the best span of each window, (windows,) each; float64 and int64.

    `logits`, (2, windows, tokens): of each token as start and as end; `context`, (windows, tokens) bool: which tokens
    are candidates; `most`: tokens of a span. Of several that are as good, the shortest, and of these the first. The
    score is -inf where there is no candidate.
    """
    import torch

    starts, ends = logits.double().masked_fill(~context, float("-inf"))
    windows, width = starts.shape
    best = starts.new_full((windows,), float("-inf"))
    first = last = torch.zeros(windows, dtype=torch.int64, device=starts.device)
    for more in range(min(most, width)):
        score, place = (starts[:, : width - more] + ends[:, more:]).max(dim=1)
        ahead = score > best
        best = torch.where(ahead, score, best)
        first, last = torch.where(ahead, place, first), torch.where(ahead, place + more, last)
    return best, first, last


def sums_at(logits: Tensor, places: Tensor) -> Tensor:
    """(2, windows, tokens) -> (windows,) float64: start and end of one place of each window."""
    return logits.double().gather(2, places.expand(2, -1)[:, :, None])[:, :, 0].sum(dim=0)


def cut_out(context: str, letters: np.ndarray, begins: int, first: int, last: int) -> tuple[str, int | None]:
    """The letters of a span of tokens, as they stand in the context without blanks around them, and where they begin.

    `begins`: the token that is the window's first piece of the context. Nothing, and None, for a window that holds
    nothing of the context: it has no pieces at all.
    """
    if not len(letters):
        return "", None
    start, end = int(letters[first - begins, 0]), int(letters[last - begins, 1])
    text = context[start:end]
    return text.strip(), start + len(text) - len(text.lstrip())
