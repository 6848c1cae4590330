"""Where does what is frozen end?

What the frozen part of a network says of a row is the same in every epoch, so it need be said once. Where that part
ends, and how little of what it says the rest reads (the pooled output, the first token, the mean over places ...), is
found by trying on a few rows: no list of architectures is needed. The model's own forward runs from there: in it,
frozen modules return at once, and the last one returns what was kept. What is tried is right where the loss and all
gradients are those of the plain forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.blocks import find_blocks
from graftkit.errors import UserError
from graftkit.evaluate import full_precision
from graftkit.task import Batch, Keepable, Row

if TYPE_CHECKING:
    from torch import Tensor, nn

TENSOR = "tensor"  # in the place of one, in the shape of what a module gives
PROBED = 6  # rows to try on: the longest, the shortest, and others


@dataclass(frozen=True)
class Form:
    """What of a tensor (rows, ...) that leaves the frozen part is kept of each row."""

    name: str
    fits: Callable[[Tensor, bool], bool]  # whether the tensor has it; the flag says whether rows are texts
    take: Callable[[Tensor, Tensor | None], Tensor]  # the tensor and, of texts, the tokens of each row (rows,)
    whole: bool = False  # all tokens of a text, and not one for all
    by_id: bool = False  # the last token is the last one whose id is not that of padding, wherever a text ends


def _last_tokens(states: Tensor, tokens: Tensor | None) -> Tensor:
    import torch

    return states[torch.arange(len(states), device=states.device), tokens.to(states.device) - 1][:, None]


FORMS = (  # the smallest first
    Form("one vector", lambda x, texts: x.ndim == 2 or (x.ndim == 4 and x.shape[2:] == (1, 1)), lambda x, tokens: x),
    Form("the first token", lambda x, texts: x.ndim == 3, lambda x, tokens: x[:, :1]),
    Form("the last token", lambda x, texts: x.ndim == 3 and texts, _last_tokens, by_id=True),
    Form("the token at the end", lambda x, texts: x.ndim == 3 and texts, _last_tokens),
    Form("the mean of the tokens", lambda x, texts: x.ndim == 3 and not texts, lambda x, tokens: x.mean(1, True)),
    Form("the mean over places", lambda x, texts: x.ndim == 4, lambda x, tokens: x.mean((2, 3), True)),
    Form("the mean over places", lambda x, texts: x.ndim == 4, lambda x, tokens: x.mean((1, 2), True)),
    Form("all tokens", lambda x, texts: x.ndim == 3, lambda x, tokens: x, whole=True),
    Form("the whole map", lambda x, texts: x.ndim == 4, lambda x, tokens: x, whole=True),
)


@dataclass(frozen=True)
class Boundary:
    """Where the frozen part of a model ends, and what is kept there."""

    at: str  # the module whose output is kept
    parts: Mapping[Any, Any]  # its output's parts, by key; `TENSOR` in the place of tensors
    kind: Any  # the type of that output
    slot: Any  # the key of the part that is kept
    form: Form
    skipped: Mapping[str, Callable[..., Any]]  # by module before it, what that gives without computing

    def take(self, task: Any, model: nn.Module, batch: Batch, tokens: Tensor | None) -> Tensor:
        """What is kept of each row, (rows, ...); of a text with `form.whole`, padded like the batch.

        `tokens` says how many each row has, (rows,). What follows the boundary is not computed.
        """
        import torch

        def stop(module: nn.Module, given: Any, output: Any) -> None:
            raise _Reached(_parts(output)[self.slot])

        hook = _plain(model).get_submodule(self.at).register_forward_hook(stop)
        try:
            with torch.no_grad():
                task.predict(model, batch)
        except _Reached as reached:
            return self.form.take(reached.tensor, count_tokens(task, batch) if self.form.by_id else tokens)
        finally:
            hook.remove()
        raise RuntimeError(f"{self.at} was not called")

    @contextmanager
    def entered(self, model: nn.Module, kept: Tensor) -> Iterator[None]:
        """Inside, the model's forward begins with what was kept of the rows of its batch."""

        def give(*given: Any, **named: Any) -> Any:
            before, whole = True, kept.clone()  # what follows may work in place
            parts = {}
            for key, part in self.parts.items():
                if key == self.slot:
                    part, before = whole, False
                elif isinstance(part, str) and part == TENSOR:
                    part = whole if before else None  # some ask for an output by its number
                parts[key] = part
            return _joined(self.kind, parts)

        plain = _plain(model)
        stubs = {plain.get_submodule(path): stub for path, stub in {**self.skipped, self.at: give}.items()}
        own = {module: module.__dict__.get("forward") for module in stubs}
        try:
            for module, stub in stubs.items():
                module.__dict__["forward"] = stub
            yield
        finally:
            for module, forward in own.items():
                if forward is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.__dict__["forward"] = forward


def count_tokens(task: Any, batch: Batch) -> Tensor:
    """Tokens of each text up to the last one whose id is not that of padding, (rows,): GPT-style models read that one.

    It is not the last of a text that ends in the token that also pads.
    """
    import torch

    ids = batch.inputs["input_ids"]
    return (torch.arange(ids.shape[1], device=ids.device) * (ids != task.tokenizer.pad_token_id)).argmax(1) + 1


class _Reached(Exception):
    """Ends a forward pass at the boundary."""

    def __init__(self, tensor: Tensor):
        super().__init__()
        self.tensor = tensor


def find_boundary(
    task: Keepable, model: nn.Module, rows: Sequence[Row], tokens: np.ndarray | None
) -> tuple[Boundary | None, str]:
    """The boundary of a model, and what is kept there; or None, and why there is none.

    `rows` are a few to try on, `tokens` how many tokens each has, (rows,), where they are texts.
    """
    import torch

    device = next(model.parameters()).device
    examples = [task.encode(row, None) for row in rows]
    if tokens is not None:
        rows, tokens = [*rows, rows[-1]], np.append(tokens, tokens[-1])
        examples.append(_ending_in_padding(task, examples[-1]))
    batch = task.collate(examples).to(device)
    counts = None if tokens is None else torch.from_numpy(tokens.astype(np.int64))
    model.eval()
    with full_precision(), torch.enable_grad():
        with _watching(model) as calls:
            wanted = _loss_and_gradients(task, model, batch)
        before = [call for call in calls if not call.trains and sum(call.path == other.path for other in calls) == 1]
        held = [place for place, call in enumerate(before) if call.holds]
        if not held:
            return None, "no frozen module comes before what trains"
        last, before = before[held[-1]], before[: held[-1]]
        if counts is not None and _feeds_only(model, last.path):
            return None, "only what feeds the blocks is frozen"
        skipped = {call.path: stub for call in before if (stub := _stub(call, len(rows), counts is not None))}
        for form, slot, tensor in _choices(last.output, len(rows), counts is not None):
            boundary = Boundary(last.path, _plain_parts(last.output), type(last.output), slot, form, skipped)
            kept = form.take(tensor, count_tokens(task, batch) if form.by_id else counts)
            given = batch
            if tokens is None or not form.whole:  # one token stands for all, or one pixel
                given = task.collate([task.stand_in(row, 1) for row in rows]).to(device)
            try:
                with boundary.entered(model, kept):
                    found = _loss_and_gradients(task, model, given)
            except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
                continue  # this network reads more than that
            if _alike(wanted, found):
                return boundary, f"{form.name} of {last.path}"
    return None, f"{type(_plain(model)).__name__} reads more than the output of {last.path}"


def _ending_in_padding(task: Any, example: Mapping[str, Any]) -> dict[str, Any]:
    """The same text but for its last word, which has the id of padding, as where the token that ends a text pads."""
    ids = list(example["input_ids"])
    words = [place for place, token in enumerate(ids) if token not in task.tokenizer.all_special_ids]
    for place in words[-1:]:
        ids[place] = task.tokenizer.pad_token_id
    return {**example, "input_ids": ids}


def probes(lengths: np.ndarray | None, rows: int) -> list[int]:
    """The places of a few rows to try on: from the shortest to the longest."""
    order = np.arange(rows) if lengths is None else np.argsort(lengths, kind="stable")
    return order[np.unique(np.linspace(0, rows - 1, PROBED).round().astype(int))].tolist()


@dataclass
class _Call:
    """One call of a frozen module."""

    path: str
    entered: Tensor | None  # the first tensor of numbers that it was given
    output: Any
    holds: bool  # whether it has parameters
    trains: bool  # whether something before it trains


@contextmanager
def _watching(model: nn.Module) -> Iterator[list[_Call]]:
    """A list of the calls of the outermost frozen modules, in the order in which they end."""
    calls: list[_Call] = []

    def note(path: str, module: nn.Module, given: Any, named: Any, output: Any) -> None:
        parts = _parts(output)
        tensors = {key: part for key, part in parts.items() if _is_tensor(part)}
        trains = not tensors or any(tensor.requires_grad for tensor in tensors.values())
        holds = next(module.parameters(), None) is not None
        if tensors:  # what follows may work in place
            output = _joined(type(output), parts | {key: part.detach().clone() for key, part in tensors.items()})
        calls.append(_Call(path, _first_tensor(given, named), output, holds, trains))

    hooks = []
    for path, module in _frozen(model):

        def hook(module: nn.Module, given: Any, named: Any, output: Any, path: str = path) -> None:
            note(path, module, given, named, output)

        hooks.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _frozen(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules of which nothing trains, by path; lists of modules are never called."""
    from torch import nn

    for name, module in model.named_children():
        below = f"{path}.{name}" if path else name
        trains = any(parameter.requires_grad for parameter in module.parameters())
        if trains or isinstance(module, nn.ModuleList | nn.ModuleDict):
            yield from _frozen(module, below)
        else:
            yield below, module


def _feeds_only(model: nn.Module, path: str) -> bool:
    """Whether a module stands before all blocks, as embeddings do: to keep what they say saves nothing."""
    try:
        depths = find_blocks(model)[2]
    except UserError:
        return False  # no blocks that are known
    return all(depth == 0 for name, depth in depths.items() if name.startswith(f"{path}."))


def _stub(call: _Call, rows: int, texts: bool) -> Callable[..., Any] | None:
    """What a module before the boundary gives at once; None where it has to run.

    In a network for texts, a block gives what enters it, as wide and as long as the batch. In one for pictures, whose
    shapes are known, a module gives one row of zeros, which nobody reads.
    """

    kind, parts = type(call.output), _parts(call.output)
    tensors = [key for key, part in parts.items() if _is_tensor(part)]
    if not texts:
        zeros = {
            key: part.new_zeros((1, *part.shape[1:])) if part.ndim and len(part) == rows else part
            for key, part in parts.items()
            if _is_tensor(part)
        }
        output = _joined(kind, _plain_parts(call.output) | zeros)
        return lambda *given, **named: output
    if call.entered is None or parts[tensors[0]].shape != call.entered.shape:
        return None
    others = {key: None if _is_tensor(part) else part for key, part in _plain_parts(call.output).items()}
    others |= dict.fromkeys(tensors)
    return lambda *given, **named: _joined(kind, others | {tensors[0]: _first_tensor(given, named)})


def _choices(output: Any, rows: int, texts: bool) -> Iterator[tuple[Form, Any, Tensor]]:
    """What may be kept of an output, the smallest first."""
    for form in FORMS:
        for slot, part in _parts(output).items():
            if _is_tensor(part) and part.ndim and len(part) == rows and form.fits(part, texts):
                yield form, slot, part


def _loss_and_gradients(task: Any, model: nn.Module, batch: Batch) -> list[Tensor | None]:
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = task.loss(model, batch)
    return [loss.detach(), *torch.autograd.grad(loss, trained, allow_unused=True)]


def _alike(wanted: list[Tensor | None], found: list[Tensor | None]) -> bool:
    """Whether loss and gradients are the same but for rounding."""
    noise = 1e-6 * max(float(one.abs().max()) for one in wanted if one is not None)
    for one, other in zip(wanted, found, strict=True):
        if (one is None) != (other is None):
            return False
        if one is not None and not float((one - other).abs().max()) <= 1e-4 * float(one.abs().max()) + noise:
            return False
    return True


def _first_tensor(given: Any, named: Any) -> Tensor | None:
    return next((one for one in (*given, *named.values()) if _is_tensor(one) and one.is_floating_point()), None)


def _parts(output: Any) -> dict[Any, Any]:
    """What a module gave, by key: an output of transformers, a tuple, or a tensor alone."""
    if _is_tensor(output):
        return {None: output}
    if isinstance(output, Mapping):
        return dict(output.items())
    return dict(enumerate(output)) if isinstance(output, tuple | list) else {}


def _plain_parts(output: Any) -> dict[Any, Any]:
    """The same with `TENSOR` for tensors, and None for what is neither one nor plain, such as a cache of keys."""

    def plain(part: Any) -> Any:
        if _is_tensor(part):
            return TENSOR
        numbers = isinstance(part, tuple) and all(isinstance(one, int) for one in part)
        return part if numbers or isinstance(part, bool | int | float) else None

    return {key: plain(part) for key, part in _parts(output).items()}


def _joined(kind: Any, parts: dict[Any, Any]) -> Any:
    if issubclass(kind, Mapping):
        return kind(**parts)
    if issubclass(kind, tuple | list):
        return kind(*parts.values()) if hasattr(kind, "_fields") else kind(parts.values())
    return parts[None]


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _plain(model: nn.Module) -> nn.Module:
    """The model without what is around it for several processes."""
    from torch.nn.parallel import DistributedDataParallel

    return model.module if isinstance(model, DistributedDataParallel) else model
