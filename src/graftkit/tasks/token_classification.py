"""Which tag does each word have?

A word is told by its first piece. A sentence that is longer than the model reads is read in windows of pieces, as the
tokenizer cuts them, each of which repeats the last quarter of the one before it. A word that stands in several windows
counts in the one where its first piece lies farthest from either end, the earlier of two alike: so each word has one
tag, in training and afterwards. That holds of a word with more pieces than a window, too, of which only the first
matters; a word that gives no piece (a sign that the tokenizer drops) is read as the unknown token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graftkit.baselines import tag_baselines
from graftkit.batches import some_windows
from graftkit.export import load_saved, save_model
from graftkit.metrics import tagging
from graftkit.snippets import loading
from graftkit.task import Baseline, Batch, Kept, Record, Row
from graftkit.text import pad, text_hash

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

OVERLAP = 4  # a window shares one of so many parts with the one before it

SNIPPET = """\
{load}
words = ["Ada", "Lovelace", "lived", "in", "London", "."]
read = [word if tokenizer.tokenize(word) else {unknown!r} for word in {words}]
windows = {{"truncation": True, "max_length": {length}, "stride": {overlap}, "return_overflowing_tokens": True}}
inputs = tokenizer(read, is_split_into_words=True, padding=True, padding_side="right", return_tensors="pt", **windows)
inputs.pop("overflow_to_sample_mapping")
found = {{}}
for window, logits in enumerate(model(**inputs).logits):
    pieces = [(place, word) for place, word in enumerate(inputs.word_ids(window)) if word is not None]
    for i, (place, word) in enumerate(pieces):
        if i == 0 or pieces[i - 1][1] != word:
            tag = model.config.id2label[logits[place].argmax().item()]
            found.setdefault(word, []).append((min(i, len(pieces) - 1 - i), tag))
print([(word, max(found[i], key=lambda one: one[0])[1]) for i, word in enumerate(words)])"""

PLAIN_WORDS, SPACED_WORDS = "words", '[words[0], *(" " + word for word in words[1:])]'


class TokenClassification:
    """One tag per word of a sentence: cross-entropy over the logits of a token classifier at first pieces."""

    name = "token-classification"
    lower = frozenset({"log_loss"})
    calibrates = False
    decides = False
    cuts = False
    workers = 0
    auto_class = "AutoModelForTokenClassification"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, labels: list[str]):
        self.tokenizer = tokenizer
        self.labels = labels
        self.index = {label: i for i, label in enumerate(labels)}
        self.headlines = tagging.headlines(labels)
        self.headline = self.headlines[0]
        room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
        self.overlap = room // OVERLAP
        self.unknown = next(
            token for token in (tokenizer.unk_token, tokenizer.eos_token, tokenizer.pad_token) if token is not None
        )
        self.spaced = _needs_blanks(tokenizer)

    def lengths(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens that are read of each row, in all its windows, (rows,) int32."""
        return np.array([sum(map(len, self._windows(row["words"])["input_ids"])) for row in rows], dtype=np.int32)

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """The inputs of each window; of each word, the window and the place that tell it, and the index of its tag."""
        windows = self._windows(row["words"])
        names = [name for name in self.tokenizer.model_input_names if name in windows]
        each = [{name: windows[name][i] for name in names} for i in range(len(windows["input_ids"]))]
        told_at = _told_at([windows.word_ids(i) for i in range(len(each))])
        return {"id": row["id"], "windows": each, "at": told_at, "tags": [self.index[tag] for tag in row["tags"]]}

    def collate(self, examples: list[dict[str, Any]]) -> Batch:
        """Inputs (windows, tokens) int64, of all rows one after the other and padded on the right to the longest.

        Targets of all words: their tags and where they are told, (words,) int64; and how many words each row has.
        """
        import torch

        counts = [len(example["windows"]) for example in examples]
        first = np.cumsum([0, *counts]).tolist()  # each row's first window
        at = [(start + window, place) for e, start in zip(examples, first, strict=False) for window, place in e["at"]]
        windows, places = torch.tensor(at).T
        targets = {
            "tags": torch.tensor([tag for example in examples for tag in example["tags"]]),
            "windows": windows,
            "places": places,
            "words": [len(example["tags"]) for example in examples],
        }
        inputs = pad(self.tokenizer, [window for example in examples for window in example["windows"]])
        return Batch([example["id"] for example in examples], inputs, targets)

    def count(self, batch: Batch) -> Tensor:
        """Words."""
        import torch

        return torch.tensor(float(sum(batch.targets["words"])))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, summed over the words."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(_told(model(**batch.inputs).logits, batch).float(), batch.targets["tags"], reduction="sum")

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """The likeliest tag of each word of each row, with its logits and probabilities, (words, labels) float32.

        `label` and `prediction` are lists of tags; `loss` is that of all words of the row together.
        """
        import torch
        from torch.nn.functional import cross_entropy

        with torch.no_grad():
            windows = torch.cat([model(**inputs).logits for inputs in some_windows(batch.inputs)])
        logits = _told(windows, batch).float()  # (words, labels)
        losses = cross_entropy(logits, batch.targets["tags"], reduction="none").double().cpu().numpy()
        ends = np.cumsum(batch.targets["words"])[:-1]
        by_word = (batch.targets["tags"], logits.argmax(dim=-1), logits, logits.softmax(dim=-1))
        by_row = [np.split(values.cpu().numpy(), ends) for values in by_word]
        return [
            {
                "id": id,
                "label": [self.labels[i] for i in truth],
                "prediction": [self.labels[i] for i in predicted],
                "logits": row,
                "probabilities": probabilities,
                "loss": float(loss.sum()),
            }
            for id, truth, predicted, row, probabilities, loss in zip(
                batch.ids, *by_row, np.split(losses, ends), strict=True
            )
        ]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores of `metrics.tagging`."""
        return tagging.score_records(records, self.labels)

    def digest(self, row: Row) -> str:
        """Of the words."""
        return text_hash(*row["words"])

    def overlong(self, rows: Sequence[Row]) -> Row:
        """The words of the first rows, joined until they fill more than two windows, over and over if need be."""
        words: list[str] = []
        joined, read = 0, 0
        while read <= 2 * self.tokenizer.model_max_length:
            row = rows[joined % len(rows)]
            words, joined = words + row["words"], joined + 1
            read += sum(map(len, self._windows(row["words"])["input_ids"]))
        return {"id": "overlong", "joined": joined, "words": words, "tags": [self.labels[0]] * len(words)}

    def kept(self, row: Row) -> Kept:
        """The words, as a JSON list; how many they are, their tokens, those that are unknown, and the windows."""
        windows = self._windows(row["words"])
        pieces = self.tokenizer(self._read(row["words"]), is_split_into_words=True, add_special_tokens=False)
        ids = pieces["input_ids"]
        measures = {
            "words": float(len(row["words"])),
            "tokens": float(len(ids)),
            "unknown_tokens": float(ids.count(self.tokenizer.unk_token_id)),
            "windows": float(len(windows["input_ids"])),
        }
        return Kept({"words": json.dumps(row["words"], ensure_ascii=False)}, measures)

    def baselines(self, train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
        """The most frequent tag of each word."""
        return tag_baselines(self.labels, train, test)

    def save(self, folder: Path, model: nn.Module) -> None:
        """A folder of transformers, or of PEFT where the model is an adapter."""
        save_model(folder, model, self.tokenizer, self.labels)

    def load(self, folder: Path) -> nn.Module:
        """Through transformers, or PEFT for an adapter."""
        return load_saved(folder, self.auto_class)

    def snippet(self, folder: Path, hub_id: str | None = None) -> str:
        """Lines of plain transformers (for an adapter, PEFT) that tag words as this task does, however many."""
        return SNIPPET.format(
            load=loading(self.auto_class, folder, hub_id),
            unknown=self.unknown,
            words=SPACED_WORDS if self.spaced else PLAIN_WORDS,
            length=self.tokenizer.model_max_length,
            overlap=self.overlap,
        )

    def _read(self, words: Sequence[str]) -> list[str]:
        """The words as the tokenizer gets them."""
        return [words[0], *(f" {word}" for word in words[1:])] if self.spaced else list(words)

    def _windows(self, words: Sequence[str]) -> Any:
        """The tokenizer's windows of a sentence, each of whose words has a piece in them: a BatchEncoding."""
        read = self._read(words)
        windows = self._cut(read)
        there = {word for i in range(len(windows["input_ids"])) for word in windows.word_ids(i)}
        if len(there - {None}) == len(words):
            return windows
        return self._cut([text if place in there else self.unknown for place, text in enumerate(read)])

    def _cut(self, read: list[str]) -> Any:
        return self.tokenizer(
            read,
            is_split_into_words=True,
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            stride=self.overlap,
            return_overflowing_tokens=True,
        )


def _told(logits: Tensor, batch: Batch) -> Tensor:
    """Of (windows, tokens, labels) those that tell each word, (words, labels)."""
    return logits[batch.targets["windows"], batch.targets["places"]]


def _told_at(windows: Sequence[Sequence[int | None]]) -> list[tuple[int, int]]:
    """The window and the place in it that tell each word, (words, 2), from the word of each piece of each window.

    A window may begin within a word, whose first piece then lies in the one before; but there it is at least as far
    from the ends as this piece, which is at one.
    """
    best: dict[int, tuple[int, int, int]] = {}  # word -> how far from the ends, window, place
    for window, words in enumerate(windows):
        for word, distance, place in _first_pieces(words):
            if word not in best or distance > best[word][0]:
                best[word] = (distance, window, place)
    return [best[word][1:] for word in sorted(best)]


def _first_pieces(words: Sequence[int | None]) -> Iterator[tuple[int, int, int]]:
    """Each word of a window, how far its first piece is from the nearer end, and the place of that piece."""
    pieces = [(place, word) for place, word in enumerate(words) if word is not None]
    before = None
    for i, (place, word) in enumerate(pieces):
        if word != before:
            yield word, min(i, len(pieces) - 1 - i), place
        before = word


def _needs_blanks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words must come with the blank before them, to give the pieces that they give in running text.

    So it is with tokenizers of bytes (RoBERTa, GPT-2, Llama 3) unless they add it by themselves (`add_prefix_space`).
    """

    def ids(words: list[str]) -> list[int]:
        return tokenizer(words, is_split_into_words=True, add_special_tokens=False)["input_ids"]

    running = tokenizer("a a", add_special_tokens=False)["input_ids"]
    return ids(["a", "a"]) != running == ids(["a", " a"])
