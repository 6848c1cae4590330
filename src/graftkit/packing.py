"""Which documents share a line?

Windows of several documents are packed into one line of a batch: positions begin anew with each, there is no attention
mask, and no cache is used. From the positions alone transformers then keeps them apart. With a model that does not,
each window has a line of its own, padded, with a mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.data.turns import IGNORED, Window
from graftkit.errors import UserError
from graftkit.task import Row

if TYPE_CHECKING:
    from torch import Tensor, nn

TRIED = 8  # tokens of each document that a model is tried with
APART = 1e-4  # in spreads of the logits: how far a document's may be moved by those that it is packed with
ROUNDINGS = 16  # in steps of a coarser dtype, how far instead
LEAKED = 0.1  # of how far they are moved where the document goes on from the other: what is no rounding


@dataclass(frozen=True)
class Windows:
    """Rows of one window each, encoded once for all epochs."""

    ids: list[str]
    windows: list[Window]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": self.ids[index], "windows": [self.windows[index]]}


def in_windows(rows: Sequence[Row], windows_of: Callable[[Row], Sequence[Window]]) -> Windows:
    """Each window of the rows by itself."""
    ids, found = [], []
    for row in rows:
        here = windows_of(row)
        ids += [row["id"] if len(here) == 1 else f"{row['id']}, window {place + 1}" for place in range(len(here))]
        found += [Window(*(np.array(side, np.int32) for side in window)) for window in here]  # smaller than lists
    return Windows(ids, found)


def pack(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Lines of at most `length` tokens, as few and as even as a simple rule makes them: the places of their windows.

    The longest first, each to the line that holds least (Graham 1969); a line more where one overflows.
    """
    order = sorted(range(len(sizes)), key=lambda place: -sizes[place])  # stable
    for count in range(-(-sum(sizes) // length), len(sizes) + 1):
        lines: list[list[int]] = [[] for _ in range(count)]
        held = [0] * count
        for place in order:
            line = held.index(min(held))
            lines[line].append(place)
            held[line] += sizes[place]
        if max(held) <= length:
            return [sorted(line) for line in lines]
    raise ValueError(f"a window longer than a line of {length} tokens")


def lay_out(
    owned: Sequence[tuple[int, Window]], length: int, padding: int, *, packs: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Inputs and targets, (lines, tokens) int64 each, of windows with their rows.

    Inputs are ids, and positions where windows are packed, else a mask; targets are `next`, what follows each token, or
    IGNORED, and `row`, of which row it is. Where windows are packed, what fills a line up is one more of them, without
    targets.
    """
    sizes = [len(window.inputs) for _, window in owned]
    lines = pack(sizes, length) if packs else [[place] for place in range(len(owned))]
    shape = (len(lines), max(sum(sizes[place] for place in line) for line in lines))
    ids, following = np.full(shape, padding, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    rows, positions, mask = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    for i, line in enumerate(lines):
        start = 0
        for row, window in (owned[place] for place in line):
            stop = start + len(window.inputs)
            ids[i, start:stop], following[i, start:stop] = window.inputs, window.targets
            rows[i, start:stop], positions[i, start:stop] = row, np.arange(stop - start)
            start = stop
        positions[i, start:] = np.arange(shape[1] - start)
        mask[i, :start] = 1
    parted = {"position_ids": positions} if packs else {"attention_mask": mask}
    return {"input_ids": ids} | parted, {"next": following, "row": rows}


# what a model makes of it


def can_pack(model: nn.Module, tokens: int, length: int) -> bool:
    """Whether a model that reads `length` tokens at once keeps packed documents apart.

    UserError for one that cannot be a model that writes, with a tokenizer of so many `tokens`.
    """
    rows = model.get_input_embeddings().num_embeddings
    if tokens > rows:
        raise UserError(f"--backbone.name: its tokenizer has {tokens} tokens, the network only {rows}")
    if reads_ahead(model, min(TRIED, length), rows):
        raise UserError(
            f"--backbone.name: {type(model).__name__} reads a text from both sides, and would see what it is to "
            "foresee; take a GPT-style checkpoint"
        )
    return keeps_apart(model, min(TRIED, length // 2), rows)


def reads_ahead(model: nn.Module, size: int, vocabulary: int) -> bool:
    """Whether what a token is followed by changes what the model says of it."""
    import torch

    device, was = next(model.parameters()).device, model.training
    ids = torch.arange(size, device=device)[None].repeat(2, 1) % vocabulary
    ids[1, -1] = (ids[1, -1] + 1) % vocabulary
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :-1]
    model.train(was)
    one, other = logits.float()
    return bool((one - other).abs().max() > _rounding(model, logits) * one.std()) if size > 1 else False


def keeps_apart(model: nn.Module, size: int, vocabulary: int) -> bool:
    """Whether a document's logits are the same packed behind another as alone, and would differ if it went on from it.

    A network in which they would not differ, since it is blank, cannot be judged, and counts as one that mixes.
    """
    import torch

    if "position_ids" not in inspect.signature(model.forward).parameters or size < 2:
        return False
    device, was = next(model.parameters()).device, model.training
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randint(vocabulary, (2, 1, size), generator=draw).to(device)
    places = torch.arange(size, device=device)[None]

    def ask(ids: Tensor, positions: Tensor) -> Tensor:
        return model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, -size:]

    model.eval()
    with torch.no_grad():
        alone = ask(second, places)
        packed = ask(torch.cat([first, second], 1), torch.cat([places, places], 1))
        joined = ask(torch.cat([first, second], 1), torch.arange(2 * size, device=device)[None])
    model.train(was)
    moved, would = ((other.float() - alone.float()).abs().max() for other in (packed, joined))
    bearable = _rounding(model, alone) * alone.float().std()
    return bool(moved <= bearable < would and moved <= LEAKED * would)


def _rounding(model: nn.Module, logits: Tensor) -> float:
    """In spreads of the logits, what may be the rounding of the coarsest dtype that the model computes in."""
    import torch

    dtypes = {logits.dtype, *(one.dtype for one in model.parameters() if one.is_floating_point())}
    if getattr(model, "is_quantized", False):  # its weights are integers, and the products in half precision
        dtypes.add(torch.bfloat16)
    dtypes.discard(torch.float32)
    return max([APART, *(ROUNDINGS * torch.finfo(dtype).eps for dtype in dtypes)])
