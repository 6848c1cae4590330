"""Which words are hidden?

A share of a document's words is hidden, whole, since some pieces of a word would give the others away. In training each
piece that is asked for becomes the mask token, a random token, or stays as it is, as chance has it (Devlin et al. 2019,
BERT); in evaluation all become the mask token, since what can be read off says nothing of the model, and which words
are hidden follows from the document's content alone: the same ones for every run, seed and machine.

A document that is longer than the model reads is read in windows of like size, without overlap and never cut within a
word, so that each word can be asked for once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graftkit.config import Fraction, Share
from graftkit.errors import UserError
from graftkit.task import Row
from graftkit.text import check_can_hide, text_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from graftkit.data.splits import Splits
    from graftkit.run import Run

LONG_WORD = 8  # pieces: what has more (a link, a sentence in a script without blanks) is hidden piece by piece


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


class Masking:
    """How documents are read with a tokenizer, and which of their words are asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: MaskConfig):
        check_can_hide(tokenizer)
        self.tokenizer = tokenizer
        self.config = config
        self.special = set(tokenizer.all_special_ids)
        self.ordinary = np.array([i for i in range(len(tokenizer)) if i not in self.special])
        self.before, self.after = _affixes(tokenizer)
        self.room = tokenizer.model_max_length - len(self.before) - len(self.after)

    def read(self, row: Row) -> Read:
        """The pieces of a document, and its windows of words. UserError where the tokenizer finds nothing in it."""
        found = self.tokenizer(row["text"], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, spans = found["input_ids"], found["offset_mapping"]
        if not ids:
            raise UserError(f"row {row['id']}: its tokenizer finds no word in {row['text'][:40]!r}; leave this row out")
        return Read(ids, spans, cut_windows(words_of(found.word_ids(), min(LONG_WORD, self.room)), self.room))

    def lengths(self, rows: Sequence[Row]) -> np.ndarray:
        """Tokens that are read of each row, in all its windows, (rows,) int32. UserError for a row without any."""
        around = len(self.before) + len(self.after)
        found = (self.read(row) for row in rows)
        return np.array([len(read.ids) + around * len(read.windows) for read in found], dtype=np.int32)

    def parts(self, row: Row) -> list[dict[str, Any]]:
        """The windows of a document as rows of their own."""
        read = self.read(row)
        ends = [read.spans[window[-1].end - 1][1] for window in read.windows[:-1]]  # a blank belongs to what follows it
        return [
            {"id": f"{row['id']}/{number}", "text": row["text"][start:end]}
            for number, (start, end) in enumerate(pairwise([0, *ends, len(row["text"])]), start=1)
        ]

    def hide(self, row: Row, rng: np.random.Generator | None) -> dict[str, Any]:
        """The inputs of each window; of each piece that is asked for, its window and place, and what stood there.

        `words` says how many pieces each hidden word has, in the order of the pieces.
        """
        read = self.read(row)
        windows, at, truth, words = [], [], [], []
        chosen = self._chosen(read, _chance_of(row) if rng is None else rng)
        for number, (window, hidden) in enumerate(zip(read.windows, chosen, strict=True)):
            start, end = window[0].first, window[-1].end
            ids = read.ids[start:end]
            for word in hidden:
                truth += read.ids[word.first : word.end]
                words.append(word.end - word.first)
                for piece in range(word.first - start, word.end - start):
                    at.append((number, len(self.before) + piece))
                    ids[piece] = self.tokenizer.mask_token_id if rng is None else self._shown(ids[piece], rng)
            windows.append(self._inputs([*self.before, *ids, *self.after]))
        return {"windows": windows, "at": at, "truth": truth, "words": words}

    def hidden_spans(self, row: Row, read: Read) -> list[tuple[int, int]]:
        """First letter and end of each word that evaluation hides, without the blank before it."""
        words = [word for window in self._chosen(read, _chance_of(row)) for word in window]
        return [_without_blank(row["text"], read.spans[word.first][0], read.spans[word.end - 1][1]) for word in words]

    def _chosen(self, read: Read, chance: np.random.Generator) -> list[list[Word]]:
        """The words of each window that are asked for; one that the tokenizer does not know only where all are so."""
        chosen = []
        for window in read.windows:
            known = [word for word in window if self.special.isdisjoint(read.ids[word.first : word.end])]
            offered = known or window
            count = max(1, round(self.config.share * len(offered)))
            chosen.append([offered[i] for i in np.sort(chance.choice(len(offered), count, replace=False))])
        return chosen

    def _shown(self, piece: int, rng: np.random.Generator) -> int:
        """What the model sees of a piece that is asked for, in training."""
        share = rng.random()
        if share < self.config.hide:
            return self.tokenizer.mask_token_id
        if share < self.config.hide + self.config.swap:
            return int(self.ordinary[rng.integers(len(self.ordinary))])
        return piece

    def _inputs(self, ids: list[int]) -> dict[str, list[int]]:
        values = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
        return {name: values[name] for name in self.tokenizer.model_input_names if name in values}


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


def cut_documents(
    run: Run, masking: Masking, splits: Splits, lengths: dict[str, np.ndarray]
) -> tuple[Splits, dict[str, np.ndarray]]:
    """The splits, and their lengths, with a row of train for each window of a long document: an update stays small.

    In dev and test a document stays a row, of which there is one record. A window ends where the next begins, so that
    no letter is lost.
    """
    from datasets import Dataset

    longer = set(np.flatnonzero(lengths["train"] > masking.tokenizer.model_max_length).tolist())
    if not longer:
        return splits, lengths
    rows: dict[str, list[str]] = {"id": [], "text": []}
    for place, row in enumerate(splits.train):
        parts = masking.parts(row) if place in longer else [row]
        for name, values in rows.items():
            values += [part[name] for part in parts]
    run.say(f"each window of a long document of train is a row of its own: {len(rows['id']):,} rows")
    train = Dataset.from_dict(rows)
    return replace(splits, train=train), lengths | {"train": masking.lengths(train)}


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
