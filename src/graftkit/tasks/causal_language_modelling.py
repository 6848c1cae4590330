"""What comes next?

A row is read as tokens (`data.turns`), and a row that is longer than the model reads in windows, so that every token
that counts is foreseen exactly once. Windows of several rows are packed into one line of the batch: positions begin
anew with each, there is no attention mask, and no cache is used. From the positions alone transformers then keeps them
apart; a model that does not (`try_packing`) gets a line for each window, padded, with a mask.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.config import AtLeastOne, Fraction, NotNegative
from graftkit.data.turns import IGNORED, Reader, Window, windows
from graftkit.errors import UserError
from graftkit.export import ADAPTER, load_saved, save_model
from graftkit.metrics import language, sums
from graftkit.task import Baseline, Batch, Kept, Record, Row
from graftkit.text import text_hash

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import GenerationConfig, PreTrainedTokenizerBase

LOGITS = 2**25  # of an evaluation that are held at once: 128 MiB in fp32
POSITIONS = 1024  # whose logits are made fp32 probabilities at a time
APART = 1e-4  # in spreads of the logits: how far a document's may be moved by those that it is packed with

LOAD_PLAIN = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder}
model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")"""

LOAD_ADAPTER = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, GenerationConfig

folder = {folder}
model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="float32")
model.generation_config = model.get_base_model().generation_config = GenerationConfig.from_pretrained(folder)"""

SNIPPET = """\
{load}
tokenizer = AutoTokenizer.from_pretrained(folder)
{inputs}
print(tokenizer.decode(model.generate(**inputs)[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""

OF_TEXT = """\
inputs = tokenizer({begin!r} + "Once upon a time", add_special_tokens=False, return_tensors="pt")"""

OF_PROMPT = """\
inputs = tokenizer("a prompt", return_tensors="pt")"""

OF_CHAT = """\
messages = [{"role": "user", "content": "a question"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""


@dataclass(frozen=True)
class GenerateConfig:
    """How are texts drawn, in the report's samples and by whoever loads the model?"""

    temperature: NotNegative = 0.8
    """how freely tokens are drawn: 1 as the model says, less keeps to the likely ones, 0 takes the likeliest"""
    top_p: Fraction = 0.95
    """tokens are drawn from the likeliest that make up so much of the probability; 1 for all"""
    max_new_tokens: AtLeastOne = 60
    """tokens that are drawn at most"""
    samples: AtLeastOne = 4
    """rows of test that the report shows a sample for, before and after training"""

    def __post_init__(self) -> None:
        if self.top_p == 0:
            raise UserError("--generate.top_p 0: leaves no token to draw; choose more than 0, at most 1")

    def settings(self, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
        """The same as transformers writes it, into generation_config.json."""
        from transformers import GenerationConfig

        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return GenerationConfig(
            **(drawn if self.temperature else {"do_sample": False}),
            max_new_tokens=self.max_new_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )


class CausalLanguageModelling:
    """Each token from those before it: cross-entropy over the vocabulary at every token that counts."""

    name = "text-generation"
    headline = language.HEADLINES[0]
    headlines = language.HEADLINES
    lower = language.LOWER
    calibrates = False
    decides = False
    cuts = False
    workers = 0
    auto_class = "AutoModelForCausalLM"

    def __init__(self, reader: Reader, columns: Sequence[str], generate: GenerateConfig):
        self.reader = reader
        self.tokenizer = reader.tokenizer
        self.labels: list[str] = []
        self.columns = [name for name in ("text", "chat", "prompt", "completion") if name in columns]
        self.generate = generate
        self.length = self.tokenizer.model_max_length
        self.packs = True

    def try_packing(self, model: nn.Module) -> bool:
        """See whether the model keeps packed documents apart, and do without packing where it does not.

        UserError for a model that cannot be one that writes.
        """
        rows = model.get_input_embeddings().num_embeddings
        if len(self.tokenizer) > rows:
            raise UserError(f"--backbone.name: its tokenizer has {len(self.tokenizer)} tokens, the network only {rows}")
        if reads_ahead(model, min(8, self.length), rows):
            raise UserError(
                f"--backbone.name: {type(model).__name__} reads a text from both sides, and would see what it is to "
                "foresee; take a GPT-style checkpoint"
            )
        self.packs = keeps_apart(model, min(8, self.length // 2), rows)
        return self.packs

    def lengths(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens that are read of each row, in all its windows, (rows,) int32."""
        if isinstance(rows, Windows):
            return np.array([len(window.inputs) for window in rows.windows], dtype=np.int32)
        return np.array([sum(len(w.inputs) for w in self._windows(row)[0]) for row in rows], dtype=np.int32)

    def in_windows(self, rows: Sequence[Row]) -> Windows:
        """Rows to train on: each window by itself, so that an update of long documents is no longer than another."""
        ids, found = [], []
        for row in rows:
            here, _ = self._windows(row)
            ids += [row["id"] if len(here) == 1 else f"{row['id']}, window {place + 1}" for place in range(len(here))]
            found += [Window(*(np.array(side, np.int32) for side in window)) for window in here]  # smaller than lists
        return Windows(ids, found)

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """The windows of a row, and the bytes of the text that its targets write."""
        if "windows" in row:
            return {"id": row["id"], "windows": row["windows"], "bytes": 0}  # bytes are for records
        found, size = self._windows(row)
        return {"id": row["id"], "windows": found, "bytes": size}

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Inputs (lines, tokens) int64: ids, and positions where windows are packed, else a mask.

        Targets, (lines, tokens) int64: `next`, what follows each token, or IGNORED, and `row`, of which row it is; and
        of each row `bytes`. Where windows are packed, what fills a line up is one more of them, without targets.
        """
        import torch

        owners = [(row, window) for row, example in enumerate(examples) for window in example["windows"]]
        sizes = [len(window.inputs) for _, window in owners]
        lines = pack(sizes, self.length) if self.packs else [[place] for place in range(len(owners))]
        width = max(sum(sizes[place] for place in line) for line in lines)
        ids = np.full((len(lines), width), self.tokenizer.pad_token_id, dtype=np.int64)
        following = np.full((len(lines), width), IGNORED, dtype=np.int64)
        rows, positions, mask = (np.zeros((len(lines), width), dtype=np.int64) for _ in range(3))
        for i, line in enumerate(lines):
            start = 0
            for row, window in (owners[place] for place in line):
                stop = start + len(window.inputs)
                ids[i, start:stop], following[i, start:stop] = window.inputs, window.targets
                rows[i, start:stop], positions[i, start:stop] = row, np.arange(stop - start)
                start = stop
            positions[i, start:] = np.arange(width - start)
            mask[i, :start] = 1
        told = {"position_ids": positions} if self.packs else {"attention_mask": mask}
        return Batch(
            [example["id"] for example in examples],
            {name: torch.from_numpy(values) for name, values in ({"input_ids": ids} | told).items()},
            {
                "next": torch.from_numpy(following),
                "row": torch.from_numpy(rows),
                "bytes": [example["bytes"] for example in examples],
            },
        )

    def count(self, batch: Batch) -> Tensor:
        """Tokens that count."""
        return (batch.targets["next"] != IGNORED).sum().float()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, summed over the tokens that count."""
        return summed_loss(model(**batch.inputs, use_cache=False).logits, batch.targets["next"])

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """Of each row its loss in nats, the tokens and bytes that it is of, and how many tokens were the likeliest.

        A few lines of the batch at a time, so that the logits of all of them are never held.
        """
        following = batch.targets["next"]
        found = np.zeros((len(batch.ids), 3))  # loss, tokens, right
        for lines in self._few_lines(model, batch):
            logits = model(**{name: values[lines] for name, values in batch.inputs.items()}, use_cache=False).logits
            for of, losses, right in told(logits.detach(), following[lines], batch.targets["row"][lines]):
                np.add.at(found, of, np.stack([losses, np.ones_like(losses), right], axis=1))
        return [
            {"id": id, "loss": float(loss), "tokens": int(tokens), "right": int(right), "bytes": size}
            for id, (loss, tokens, right), size in zip(batch.ids, found, batch.targets["bytes"], strict=True)
        ]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores of `metrics.language`."""
        return sums.score(language.CAUSAL, records)

    def digest(self, row: Row) -> str:
        """Of the text, the chat, or the prompt and its completion."""
        return text_hash(*(row[name] for name in self.columns))

    def overlong(self, rows: Sequence[Row]) -> None:
        """Nothing is cut, and a record of a row says all of it."""

    def kept(self, row: Row) -> Kept:
        """The row's texts; its tokens, those that count, and the windows."""
        tokens, found = self.reader.read(row), self._windows(row)[0]
        measures = {
            "tokens": float(len(tokens.ids)),
            "counted_tokens": float(sum(tokens.counted)),
            "windows": float(len(found)),
        }
        return Kept({name: row[name] for name in self.columns}, measures)

    def baselines(self, train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
        """Each token by how often it stands in train, one added to each (Laplace): its loss of each row."""
        started = time.perf_counter()
        counts = np.ones(len(self.tokenizer))
        for targets in self._targets(train):
            np.add.at(counts, targets, 1)
        cost = np.log(counts.sum()) - np.log(counts)
        given = [float(cost[targets].sum()) for targets in self._targets(test)]
        facts = {"rows": len(train), "of": len(train), "seconds": round(time.perf_counter() - started, 2)}
        return {"unigram": Baseline(given, facts)}

    def save(self, folder: Path, model: nn.Module) -> None:
        """A folder of transformers, or of PEFT where the model is an adapter, with generation_config.json."""
        settings = self.generate.settings(self.tokenizer)
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        plain.generation_config = settings
        save_model(folder, model, self.tokenizer)
        settings.save_pretrained(folder)

    def load(self, folder: Path) -> nn.Module:
        """Through transformers, or PEFT for an adapter."""
        return load_saved(folder, self.auto_class)

    def snippet(self, folder: Path, hub_id: str | None = None) -> str:
        """Lines of plain transformers (for an adapter, PEFT) that go on from a text, or answer."""
        load = LOAD_ADAPTER if (folder / ADAPTER).exists() else LOAD_PLAIN
        if self.columns == ["text"]:
            inputs = OF_TEXT.format(begin=self.tokenizer.convert_ids_to_tokens(self.reader.begin))
        else:
            inputs = OF_CHAT if self.reader.template else OF_PROMPT
        return SNIPPET.format(load=load.format(folder=repr(hub_id or str(folder))), inputs=inputs)

    def write(self, model: nn.Module, row: Row, seed: int) -> tuple[str, str]:
        """What a row begins with, and how the model goes on: the same for the same seed."""
        begun, ids = self.reader.start(row)
        return begun, self.go_on(model, ids, seed)

    def go_on(self, model: nn.Module, ids: list[int], seed: int) -> str:
        """What a model writes after these tokens, or after the last of them that leave it room: the same for a seed."""
        import torch

        ids = ids[-max(1, self.length - self.generate.max_new_tokens) :]
        device = next(model.parameters()).device
        inputs = torch.tensor([ids], device=device)
        settings = self.generate.settings(self.tokenizer)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(seed)
            written = model.eval().generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=settings
            )
        return self.tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)

    def _windows(self, row: Row) -> tuple[list[Window], int]:
        tokens = self.reader.read(row)
        return windows(tokens, self.length), tokens.bytes

    def _targets(self, rows: Sequence[Row]) -> Iterator[np.ndarray]:
        """The tokens of each row that count."""
        for row in rows:
            ids, counted, _ = self.reader.read(row)
            yield np.array(ids)[np.array(counted, bool)]

    def _few_lines(self, model: nn.Module, batch: Batch) -> Iterator[slice]:
        """So many lines at a time that their logits are at most LOGITS; one at least."""
        lines, width = batch.targets["next"].shape
        each = max(1, LOGITS // (width * model.get_input_embeddings().num_embeddings))
        for start in range(0, lines, each):
            yield slice(start, start + each)


@dataclass(frozen=True)
class Windows:
    """Rows of one window each, encoded once for all epochs."""

    ids: list[str]
    windows: list[Window]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": self.ids[index], "windows": [self.windows[index]]}


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


def reads_ahead(model: nn.Module, size: int, vocabulary: int) -> bool:
    """Whether what a token is followed by changes what the model says of it."""
    import torch

    device, was = next(model.parameters()).device, model.training
    ids = torch.arange(size, device=device)[None].repeat(2, 1) % vocabulary
    ids[1, -1] = (ids[1, -1] + 1) % vocabulary
    model.eval()
    with torch.no_grad():
        one, other = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :-1].float()
    model.train(was)
    return bool((one - other).abs().max() > APART * one.std()) if size > 1 else False


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

    def logits(ids: Tensor, positions: Tensor) -> Tensor:
        return model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, -size:].float()

    model.eval()
    with torch.no_grad():
        alone = logits(second, places)
        packed = logits(torch.cat([first, second], 1), torch.cat([places, places], 1))
        joined = logits(torch.cat([first, second], 1), torch.arange(2 * size, device=device)[None])
    model.train(was)
    bearable = APART * alone.std()
    return bool((packed - alone).abs().max() <= bearable < (joined - alone).abs().max())


def summed_loss(logits: Tensor, following: Tensor) -> Tensor:
    """Cross-entropy summed over the targets; in training, of `logits` (lines, tokens, vocabulary) in any precision.

    Probabilities are made in fp32 for POSITIONS tokens at a time, and again in the backward pass, so that they are
    never held for all.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.checkpoint import checkpoint

    def of_part(part: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(part.float(), targets, ignore_index=IGNORED, reduction="sum")

    parts = zip(logits.flatten(0, 1).split(POSITIONS), following.flatten().split(POSITIONS), strict=True)
    losses = [checkpoint(of_part, part, targets, use_reentrant=False) for part, targets in parts]
    return torch.stack(losses).sum()


def told(logits: Tensor, following: Tensor, rows: Tensor) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of the tokens that count, POSITIONS at a time: their rows, their losses float64, and if likeliest."""
    from torch.nn.functional import cross_entropy

    flat = (values.flatten(0, 1).split(POSITIONS) for values in (logits, following, rows))
    for part, targets, owners in zip(*flat, strict=True):
        counts = targets != IGNORED
        if counts.any():
            part, targets = part[counts].float(), targets[counts]
            losses = cross_entropy(part, targets, reduction="none").double()
            right = part.argmax(dim=-1) == targets
            yield owners[counts].cpu().numpy(), losses.cpu().numpy(), right.double().cpu().numpy()
