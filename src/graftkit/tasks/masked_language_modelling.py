"""What stood where words are hidden?

The model says it from what is left on both sides (Devlin et al. 2019, BERT); which words are hidden: `masking`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.export import load_saved, save_model
from graftkit.heads import logits_at
from graftkit.masking import MaskConfig, Masking
from graftkit.metrics import sums
from graftkit.metrics.language import MASKED, MASKED_HEADLINES
from graftkit.task import Baseline, Batch, Kept, Record, Row
from graftkit.text import pad, text_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

TOKENS, LOGITS = 4096, 2**26  # that evaluation computes at a time: 256 MiB of logits in fp32

SNIPPET = """\
from transformers import pipeline

fill = pipeline("fill-mask", {folder!r}, dtype="float32")
print(fill(f"a text with one {{fill.tokenizer.mask_token}} hidden."))

# as the backbone of another recipe: python recipes/text_classify.py --backbone.name {folder}"""


class MaskedLanguageModelling:
    """Cross-entropy over the vocabulary at the pieces of hidden words; `beside`: what the saved folder holds besides.

    `beside` are weights of the backbone that its class with a masked-language head drops, by name: its pooler. Without
    `keep_words` no word of a document stands in its record.
    """

    name = "fill-mask"
    headline = MASKED_HEADLINES[0]
    headlines = MASKED_HEADLINES
    lower = MASKED.lower
    calibrates = False
    decides = False
    cuts = False
    workers = 0
    auto_class = "AutoModelForMaskedLM"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mask: MaskConfig,
        beside: Mapping[str, Tensor] | None = None,
        *,
        keep_words: bool = True,
    ):
        self.tokenizer = tokenizer
        self.labels: list[str] = []
        self.masking = Masking(tokenizer, mask)
        self.beside = beside
        self.keep_words = keep_words

    def lengths(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens that are read of each row, in all its windows, (rows,) int32. UserError for a row without any."""
        return self.masking.lengths(rows)

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """The inputs of each window; of each piece that is asked for, its window and place, and what stood there.

        `words` says how many pieces each hidden word has, in the order of the pieces.
        """
        return {"id": row["id"], **self.masking.hide(row, rng)}

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Inputs (windows, tokens) int64, of all rows one after the other and padded on the right to the longest.

        Targets of all pieces that are asked for: what stood there, and where, (pieces,) int64; and the pieces of each
        hidden word of each row.
        """
        import torch

        counts = [len(example["windows"]) for example in examples]
        first = np.cumsum([0, *counts]).tolist()  # each row's first window
        at = [(start + window, place) for e, start in zip(examples, first, strict=False) for window, place in e["at"]]
        windows, places = torch.tensor(at).T
        targets = {
            "truth": torch.tensor([piece for example in examples for piece in example["truth"]]),
            "windows": windows,
            "places": places,
            "words": [example["words"] for example in examples],
        }
        inputs = pad(self.tokenizer, [window for example in examples for window in example["windows"]])
        return Batch([example["id"] for example in examples], inputs, targets)

    def count(self, batch: Batch) -> Tensor:
        """Pieces that are asked for."""
        import torch

        return torch.tensor(float(len(batch.targets["truth"])))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, summed over the pieces that are asked for."""
        from torch.nn.functional import cross_entropy

        logits = logits_at(model, batch.inputs, batch.targets["windows"], batch.targets["places"])
        return cross_entropy(logits.float(), batch.targets["truth"], reduction="sum")

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """How well each row's hidden words are filled in.

        `loss`, summed over the `tokens` that are hidden, and how many of them are `right`; of each hidden word
        what it is, what it was filled with (None and None without `keep_words`), and its loss.
        """
        losses, filled = self._fill(model, batch)
        truth = batch.targets["truth"].cpu().numpy()
        records, start = [], 0
        for id, words in zip(batch.ids, batch.targets["words"], strict=True):
            ends = start + np.cumsum(words)
            pieces = [slice(end - count, end) for end, count in zip(ends, words, strict=True)]
            row, start = slice(start, int(ends[-1])), int(ends[-1])
            record = {
                "id": id,
                "loss": float(losses[row].sum()),
                "tokens": row.stop - row.start,
                "right": int((filled[row] == truth[row]).sum()),
                "words": [self._write(truth[word]) for word in pieces] if self.keep_words else None,
                "filled": [self._write(filled[word]) for word in pieces] if self.keep_words else None,
                "losses": [float(losses[word].sum()) for word in pieces],
            }
            records.append(record)
        return records

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores of `metrics.language`."""
        return sums.score(MASKED, records)

    def digest(self, row: Row) -> str:
        """Of the text."""
        return text_hash(row["text"])

    def overlong(self, rows: Sequence[Row]) -> None:
        """Nothing is cut."""

    def kept(self, row: Row) -> Kept:
        """The text, and as a JSON list where its hidden words begin and end; its words, tokens and windows."""
        read = self.masking.read(row)
        spans = self.masking.hidden_spans(row, read)
        measures = {
            "words": float(sum(map(len, read.windows))),
            "tokens": float(len(read.ids)),
            "unknown_tokens": float(read.ids.count(self.tokenizer.unk_token_id)),
            "windows": float(len(read.windows)),
            "hidden_words": float(len(spans)),
        }
        return Kept({"text": row["text"], "hidden": json.dumps(spans)}, measures)

    def baselines(self, train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
        """The loss of each row by how often each token stands in train, each counted once more than it does."""
        started = time.perf_counter()
        counts = np.ones(len(self.tokenizer))
        for row in train:
            np.add.at(counts, self.masking.read(row).ids, 1)
        cost = -np.log(counts / counts.sum())
        given = [float(cost[self.encode(row, None)["truth"]].sum()) for row in test]
        facts = {"rows": len(train), "of": len(train), "seconds": round(time.perf_counter() - started, 2)}
        return {"frequent_tokens": Baseline(given, facts)}

    def save(self, folder: Path, model: nn.Module) -> None:
        """A folder of transformers, for the class with the head and the one without."""
        save_model(folder, model, self.tokenizer, beside=self.beside)

    def load(self, folder: Path) -> nn.Module:
        """Through transformers."""
        return load_saved(folder, self.auto_class)

    def snippet(self, folder: Path, hub_id: str | None = None) -> str:
        """Lines of plain transformers that fill a gap, and the line that trains a classifier on this backbone."""
        return SNIPPET.format(folder=hub_id or str(folder))

    def _write(self, ids: np.ndarray) -> str:
        return self.tokenizer.decode(ids.tolist()).strip()

    def _fill(self, model: nn.Module, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Of each piece that is asked for its loss, float64, and the likeliest token, int64: (pieces,).

        Some windows at a time: all logits of a long document would not fit into memory.
        """
        from torch.nn.functional import cross_entropy

        windows, places, truth = (batch.targets[name] for name in ("windows", "places", "truth"))
        count, width = batch.inputs["input_ids"].shape
        most = int(windows.bincount().max()) * len(self.tokenizer)  # logits of a window
        step = max(1, min(TOKENS // width, LOGITS // most))
        losses, filled = [], []
        for start in range(0, count, step):
            here = (windows >= start) & (windows < start + step)
            inputs = {name: values[start : start + step] for name, values in batch.inputs.items()}
            logits = logits_at(model, inputs, windows[here] - start, places[here]).detach().float()
            losses.append(cross_entropy(logits, truth[here], reduction="none").double().cpu().numpy())
            filled.append(logits.argmax(dim=-1).cpu().numpy())
        return np.concatenate(losses), np.concatenate(filled)
