"""What comes next?

A row is read as tokens (`data.turns`), and a row that is longer than the model reads in windows, so that every token
that counts is foreseen exactly once. Windows of several rows share a line of the batch (`packing`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.cross_entropy import few_at_a_time, summed_loss, token_losses
from graftkit.data.turns import IGNORED, Reader, Window, windows
from graftkit.export import load_saved, save_model
from graftkit.generation import OF_CHAT, OF_PROMPT, OF_TEXT, find_ends, go_on, plain, snippet
from graftkit.metrics import language, sums
from graftkit.packing import Windows, can_pack, in_windows, lay_out
from graftkit.task import Baseline, Batch, Kept, Record, Row
from graftkit.text import text_hash

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import GenerationConfig

    from graftkit.generation import GenerateConfig


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
        self.packs = can_pack(model, len(self.tokenizer), self.length)
        return self.packs

    def lengths(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens that are read of each row, in all its windows, (rows,) int32."""
        if isinstance(rows, Windows):
            return np.array([len(window.inputs) for window in rows.windows], dtype=np.int32)
        return np.array([sum(len(w.inputs) for w in self._windows(row)[0]) for row in rows], dtype=np.int32)

    def in_windows(self, rows: Sequence[Row]) -> Windows:
        """Rows to train on: each window by itself, so that an update of long documents is no longer than another."""
        return in_windows(rows, lambda row: self._windows(row)[0])

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """The windows of a row, and the bytes of the text that its targets write."""
        if "windows" in row:
            return {"id": row["id"], "windows": row["windows"], "bytes": 0}  # bytes are for records
        found, size = self._windows(row)
        return {"id": row["id"], "windows": found, "bytes": size}

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Inputs and targets (lines, tokens) int64, as `packing.lay_out` says; and of each row `bytes`."""
        import torch

        owned = [(row, window) for row, example in enumerate(examples) for window in example["windows"]]
        inputs, targets = (
            {name: torch.from_numpy(values) for name, values in side.items()}
            for side in lay_out(owned, self.length, self.tokenizer.pad_token_id, packs=self.packs)
        )
        sizes = [example["bytes"] for example in examples]
        return Batch([example["id"] for example in examples], inputs, targets | {"bytes": sizes})

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
        count, width = following.shape
        for lines in few_at_a_time(count, width * model.get_input_embeddings().num_embeddings):
            logits = model(**{name: values[lines] for name, values in batch.inputs.items()}, use_cache=False).logits
            for of, losses, right in token_losses(logits.detach(), following[lines], batch.targets["row"][lines]):
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
        settings = self._settings(model)
        plain(model).generation_config = settings
        save_model(folder, model, self.tokenizer)
        settings.save_pretrained(folder)

    def load(self, folder: Path) -> nn.Module:
        """Through transformers, or PEFT for an adapter."""
        return load_saved(folder, self.auto_class)

    def snippet(self, folder: Path, hub_id: str | None = None) -> str:
        """Lines of plain transformers (for an adapter, PEFT) that go on from a text, or answer."""
        if self.columns == ["text"]:
            inputs = OF_TEXT.format(begin=self.tokenizer.convert_ids_to_tokens(self.reader.begin))
        else:
            inputs = OF_CHAT if self.reader.template else OF_PROMPT
        return snippet(folder, hub_id, inputs)

    def write(self, model: nn.Module, row: Row, seed: int) -> tuple[str, str]:
        """What a row begins with, and how the model goes on: the same for the same seed."""
        begun, ids = self.reader.start(row)
        return begun, self.go_on(model, ids, seed)

    def go_on(self, model: nn.Module, ids: list[int], seed: int) -> str:
        """What a model writes after these tokens, or after the last of them that leave it room: the same for a seed."""
        return go_on(model, self.tokenizer, ids, self._settings(model), seed)

    def _settings(self, model: nn.Module) -> GenerationConfig:
        return self.generate.settings(self.tokenizer, find_ends(model, self.reader))

    def _windows(self, row: Row) -> tuple[list[Window], int]:
        tokens = self.reader.read(row)
        return windows(tokens, self.length), tokens.bytes

    def _targets(self, rows: Sequence[Row]) -> Iterator[np.ndarray]:
        """The tokens of each row that count."""
        for row in rows:
            ids, counted, _ = self.reader.read(row)
            yield np.array(ids)[np.array(counted, bool)]
