"""Which words were hidden?

A share of a document's words is hidden, and the model says what stood there, from what is left on both sides (Devlin
et al. 2019, BERT). A word is hidden whole, since some of its pieces would give the others away. In training each piece
that is asked for becomes the mask token, a random token, or stays as it is, as chance has it; in evaluation all become
the mask token, since what can be read off says nothing of the model, and which words are hidden follows from the
document's content alone: the same ones for every run, seed and machine.

A document that is longer than the model reads is read in windows of like size, without overlap and never cut within a
word, so that each word can be asked for once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graftkit.config import Fraction, Share
from graftkit.errors import UserError
from graftkit.export import load_saved, save_model
from graftkit.metrics import sums
from graftkit.metrics.masked_language import HEADLINES, SCORING
from graftkit.task import Baseline, Batch, Kept, Record, Row
from graftkit.text import pad, text_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datasets import Dataset
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from graftkit.data.splits import Splits
    from graftkit.heads import Headed
    from graftkit.run import Run

LONG_WORD = 8  # pieces: what has more (a link, a sentence in a script without blanks) is hidden piece by piece
TOKENS, LOGITS = 4096, 2**26  # that evaluation computes at a time: 256 MiB of logits in fp32

SNIPPET = """\
from transformers import pipeline

fill = pipeline("fill-mask", {folder!r}, dtype="float32")
print(fill(f"a text with one {{fill.tokenizer.mask_token}} hidden."))

# as the backbone of another recipe: python recipes/text_classify.py --backbone.name {folder}"""


@dataclass(frozen=True)
class MaskConfig:
    """Which words are hidden?"""

    share: Share = 0.15
    """share of a document's words that are asked for, at least one of each window"""
    hide: Fraction = 0.8
    """in training, share of the pieces that are asked for that become the mask token (in evaluation all do)"""
    swap: Fraction = 0.1
    """in training, share of them that become a random token; the rest stays as it is"""

    def __post_init__(self) -> None:
        if self.hide + self.swap > 1 + 1e-9:
            raise UserError(f"--mask.hide {self.hide} and --mask.swap {self.swap}: they add up to more than 1")


class Word(NamedTuple):
    """Pieces of a document that are hidden together."""

    first: int
    end: int  # the piece after the last


class Read(NamedTuple):
    """A document as the tokenizer has it."""

    ids: list[int]  # of the pieces, without special tokens around them
    spans: list[tuple[int, int]]  # the letters of each piece, as first and end
    windows: list[list[Word]]


class MaskedLanguageModelling:
    """Cross-entropy over the vocabulary at the pieces of hidden words; `beside`: what the saved folder holds besides.

    `beside` are weights of the backbone that its class with a masked-language head drops, by name: its pooler. Without
    `keep_words` no word of a document stands in its record.
    """

    name = "fill-mask"
    headline = HEADLINES[0]
    headlines = HEADLINES
    lower = SCORING.lower
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
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.labels: list[str] = []
        self.mask = mask
        self.beside = beside
        self.keep_words = keep_words
        self.special = set(tokenizer.all_special_ids)
        self.ordinary = np.array([i for i in range(len(tokenizer)) if i not in self.special])
        self.before, self.after = _affixes(tokenizer)
        self.room = tokenizer.model_max_length - len(self.before) - len(self.after)

    def lengths(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens that are read of each row, in all its windows, (rows,) int32. UserError for a row without any."""
        around = len(self.before) + len(self.after)
        read = (self._read(row) for row in rows)
        return np.array([len(one.ids) + around * len(one.windows) for one in read], dtype=np.int32)

    def encode(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """The inputs of each window; of each piece that is asked for, its window and place, and what stood there.

        `words` says how many pieces each hidden word has, in the order of the pieces.
        """
        read = self._read(row)
        chance = _chance_of(row) if rng is None else rng
        windows, at, truth, words = [], [], [], []
        for number, (window, hidden) in enumerate(zip(read.windows, self._hidden(read, chance), strict=True)):
            start, end = window[0].first, window[-1].end
            ids = read.ids[start:end]
            for word in hidden:
                truth += read.ids[word.first : word.end]
                words.append(word.end - word.first)
                for piece in range(word.first - start, word.end - start):
                    at.append((number, len(self.before) + piece))
                    ids[piece] = self.tokenizer.mask_token_id if rng is None else self._shown(ids[piece], rng)
            windows.append(self._inputs([*self.before, *ids, *self.after]))
        return {"id": row["id"], "windows": windows, "at": at, "truth": truth, "words": words}

    def parts(self, row: Row) -> list[dict[str, Any]]:
        """The windows of a document as rows of their own."""
        read = self._read(row)
        ends = [read.spans[window[-1].end - 1][1] for window in read.windows[:-1]]  # a blank belongs to what follows it
        return [
            {"id": f"{row['id']}/{number}", "text": row["text"][start:end]}
            for number, (start, end) in enumerate(pairwise([0, *ends, len(row["text"])]), start=1)
        ]

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

        `loss`, summed over the `masked` pieces that are hidden, and how many of them are `right`; of each hidden word
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
                "masked": row.stop - row.start,
                "right": int((filled[row] == truth[row]).sum()),
                "words": [self._write(truth[word]) for word in pieces] if self.keep_words else None,
                "filled": [self._write(filled[word]) for word in pieces] if self.keep_words else None,
                "losses": [float(losses[word].sum()) for word in pieces],
            }
            records.append(record)
        return records

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores of `metrics.masked_language`."""
        return sums.score(SCORING, records)

    def digest(self, row: Row) -> str:
        """Of the text."""
        return text_hash(row["text"])

    def overlong(self, rows: Sequence[Row]) -> None:
        """Nothing is cut."""

    def kept(self, row: Row) -> Kept:
        """The text, and as a JSON list where its hidden words begin and end; its words, tokens and windows."""
        read = self._read(row)
        hidden = [word for window in self._hidden(read, _chance_of(row)) for word in window]
        spans = [_without_blank(row["text"], read.spans[word.first][0], read.spans[word.end - 1][1]) for word in hidden]
        measures = {
            "words": float(sum(map(len, read.windows))),
            "tokens": float(len(read.ids)),
            "unknown_tokens": float(read.ids.count(self.tokenizer.unk_token_id)),
            "windows": float(len(read.windows)),
            "hidden_words": float(len(hidden)),
        }
        return Kept({"text": row["text"], "hidden": json.dumps(spans)}, measures)

    def baselines(self, train: Dataset, dev: Dataset, test: Dataset) -> dict[str, Baseline]:
        """The loss of each row by how often each token stands in train, each counted once more than it does."""
        started = time.perf_counter()
        counts = np.ones(len(self.tokenizer))
        for row in train:
            np.add.at(counts, self._read(row).ids, 1)
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

    # how a document is read

    def _read(self, row: Row) -> Read:
        """The pieces of a document, and its windows of words. UserError where the tokenizer finds nothing in it."""
        found = self.tokenizer(row["text"], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, spans = found["input_ids"], found["offset_mapping"]
        if not ids:
            raise UserError(f"row {row['id']}: its tokenizer finds no word in {row['text'][:40]!r}; leave this row out")
        return Read(ids, spans, cut_windows(words_of(found.word_ids(), min(LONG_WORD, self.room)), self.room))

    def _hidden(self, read: Read, chance: np.random.Generator) -> list[list[Word]]:
        """The words of each window that are asked for; one that the tokenizer does not know only where all are so."""
        chosen = []
        for window in read.windows:
            known = [word for word in window if self.special.isdisjoint(read.ids[word.first : word.end])]
            offered = known or window
            count = max(1, round(self.mask.share * len(offered)))
            chosen.append([offered[i] for i in np.sort(chance.choice(len(offered), count, replace=False))])
        return chosen

    def _shown(self, piece: int, rng: np.random.Generator) -> int:
        """What the model sees of a piece that is asked for, in training."""
        share = rng.random()
        if share < self.mask.hide:
            return self.tokenizer.mask_token_id
        if share < self.mask.hide + self.mask.swap:
            return int(self.ordinary[rng.integers(len(self.ordinary))])
        return piece

    def _inputs(self, ids: list[int]) -> dict[str, list[int]]:
        values = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
        return {name: values[name] for name in self.tokenizer.model_input_names if name in values}

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


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError for a tokenizer without a mask token, or of which nobody knows where words begin."""
    if tokenizer.mask_token_id is None:
        raise UserError(
            f"--backbone.name {tokenizer.name_or_path}: its tokenizer has no mask token, so it fills no gaps, as with "
            "all GPT-style checkpoints, which recipes/generate.py trains on texts; name a BERT-style one here"
        )
    if len(set(tokenizer("two words", add_special_tokens=False).word_ids())) < 2:
        raise UserError(
            f"--backbone.name {tokenizer.name_or_path}: its tokenizer does not tell where words begin, so none can be "
            "hidden whole; take another checkpoint"
        )


def words_of(word_ids: Sequence[int | None], most: int) -> list[Word]:
    """The pieces that belong together, by the word of each piece; a word of more than `most` pieces is each alone."""
    starts = [i for i, word in enumerate(word_ids) if i == 0 or word is None or word != word_ids[i - 1]]
    found: list[Word] = []
    for first, end in zip(starts, [*starts[1:], len(word_ids)], strict=True):
        found += [Word(first, end)] if end - first <= most else [Word(i, i + 1) for i in range(first, end)]
    return found


def cut_windows(words: Sequence[Word], room: int) -> list[list[Word]]:
    """Neighbouring words in as few windows of at most `room` pieces as go, all of nearly the same size."""
    pieces = words[-1].end
    count = -(-pieces // room)
    while True:
        windows: list[list[Word]] = [[] for _ in range(count)]
        for word in words:
            windows[word.first * count // pieces].append(word)
        filled = [window for window in windows if window]
        if all(window[-1].end - window[0].first <= room for window in filled):
            return filled
        count += 1


def logits_at(model: nn.Module, inputs: Mapping[str, Tensor], windows: Tensor, places: Tensor) -> Tensor:
    """The logits at these places of these windows, (places, vocabulary).

    The head sees only these: over a vocabulary of tens of thousands it costs as much as the rest of a small network,
    and at 15% of the tokens, what the backbone says there is cut out before it reaches the head.
    """
    from transformers import PreTrainedModel

    def cut_out(module: nn.Module, given: Any, output: Any) -> Any:
        output["last_hidden_state"] = output[0][windows, places][None]  # (1, places, width)
        return output

    plain = next(module for module in model.modules() if isinstance(module, PreTrainedModel))  # within DDP and PEFT
    hook = plain.base_model.register_forward_hook(cut_out)
    try:
        return model(**inputs).logits[0]
    finally:
        hook.remove()


def cut_documents(
    run: Run, task: MaskedLanguageModelling, splits: Splits, lengths: dict[str, np.ndarray]
) -> tuple[Splits, dict[str, np.ndarray]]:
    """The splits, and their lengths, with a row of train for each window of a long document: an update stays small.

    In dev and test a document stays a row, of which there is one record. A window ends where the next begins, so that
    no letter is lost.
    """
    from datasets import Dataset

    longer = set(np.flatnonzero(lengths["train"] > task.tokenizer.model_max_length).tolist())
    if not longer:
        return splits, lengths
    rows: dict[str, list[str]] = {"id": [], "text": []}
    for place, row in enumerate(splits.train):
        parts = task.parts(row) if place in longer else [row]
        for name, values in rows.items():
            values += [part[name] for part in parts]
    run.say(f"each window of a long document of train is a row of its own: {len(rows['id']):,} rows")
    train = Dataset.from_dict(rows)
    return replace(splits, train=train), lengths | {"train": task.lengths(train)}


def say_whose_head(run: Run, headed: Headed) -> None:
    """Say whether the checkpoint brings the head that fills gaps, and what of it is the embeddings."""
    if not headed.head:
        return
    first, last = headed.model.get_input_embeddings(), headed.model.get_output_embeddings()
    shared = ", but for its last matrix, which is that of the embeddings" if last.weight is first.weight else ""
    run.say(f"the checkpoint fills no gaps yet: it has no masked-language head, so a new one is trained{shared}")


def _affixes(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    first = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:first], whole[first + len(bare) :]


def _without_blank(text: str, start: int, end: int) -> tuple[int, int]:
    """First and end of a word without the blank before it, which tokenizers of bytes count in."""
    return end - len(text[start:end].lstrip()), end


def _chance_of(row: Row) -> np.random.Generator:
    """Chance that follows from a row's content alone."""
    return np.random.default_rng(int(text_hash(row["text"])[:16], 16))
